"""Folders of files, on a disk or below an S3 prefix: what lies in one, and whole files written or read at once."""

from pathlib import Path
from typing import Any

from egom2p.storage.atomic import atomic_file
from egom2p.storage.remote import bucket_and_key, is_remote, open_binary


def joined(location: str | Path, *parts: str) -> str:
    """A location below another one; addresses keep their two slashes."""
    if is_remote(location):
        return "/".join([str(location).rstrip("/"), *parts])
    return str(Path(location, *parts))


def list_names(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files directly in a folder, sorted; both empty where it does not exist."""
    if not is_remote(folder):
        entries = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
        return [entry.name for entry in entries if entry.is_dir()], [e.name for e in entries if e.is_file()]
    bucket, prefix = bucket_and_key(f"{str(folder).rstrip('/')}/")
    folders, files = [], []
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    for page in pages:
        folders += [row["Prefix"][len(prefix) :].rstrip("/") for row in page.get("CommonPrefixes", [])]
        files += [row["Key"][len(prefix) :] for row in page.get("Contents", []) if row["Key"] != prefix]
    return sorted(folders), sorted(files)


def read_bytes(location: str | Path) -> bytes:
    """A whole file; FileNotFoundError names it."""
    with open_binary(location) as opened:
        return opened.read()


def write_bytes(location: str | Path, content: bytes) -> None:
    """A whole file, there completely or not at all."""
    if is_remote(location):
        bucket, key = bucket_and_key(str(location))
        _client().put_object(Bucket=bucket, Key=key, Body=content)
        return
    with atomic_file(location) as unfinished:
        unfinished.write_bytes(content)


def upload(file: str | Path, address: str) -> None:
    """Send a file of any size to an S3 address; it appears there when complete."""
    bucket, key = bucket_and_key(address)
    _client().upload_file(str(file), bucket, key)


def _client() -> Any:
    # Imported here: slow, and only needed by those who use a bucket.
    import boto3

    return boto3.client("s3")
