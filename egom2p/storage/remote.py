"""Bytes on a disk or in an S3 bucket: one opener, what lies in a folder, whole files read or written."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

from egom2p.storage.atomic import atomic_file


def is_remote(url: str | Path) -> bool:
    """Whether a location is an S3 address (`s3://bucket/key`) instead of a path."""
    return str(url).startswith("s3://")


def bucket_and_key(url: str | Path) -> tuple[str, str]:
    """The two parts of an S3 address; the key is empty for a whole bucket. ValueError for anything else."""
    address = urlparse(str(url))
    if address.scheme != "s3" or not address.netloc:
        raise ValueError(f"{url}: an address in a bucket is s3://bucket/path")
    return address.netloc, address.path.lstrip("/")


def open_binary(url: str | Path) -> BinaryIO:
    """A seekable file for reading: a local path, `file://...` or `s3://bucket/key` (read by ranges, never whole).

    The S3 endpoint, region and credentials are those of boto3's usual environment variables and files.
    FileNotFoundError names what is missing.
    """
    text = str(url)
    if is_remote(text):
        return _open_s3(text)
    path = Path(text.removeprefix("file://"))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.open("rb")


class RangeReader(io.RawIOBase):
    """Seekable reading of an object of known size through a function that fetches a byte range."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        """`fetch(start, stop)` returns the bytes of [start, stop)."""
        super().__init__()
        self._size = size
        self._fetch = fetch
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._fetch(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _open_s3(url: str) -> BinaryIO:
    # Imported here: slow, and only needed by those who read from a bucket.
    import boto3
    from botocore.exceptions import ClientError

    bucket, key = bucket_and_key(url)
    client = boto3.client("s3")
    try:
        size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    except ClientError as error:
        raise FileNotFoundError(f"{url}: cannot be read ({error})") from error

    def fetch(start: int, stop: int) -> bytes:
        return client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")["Body"].read()

    return io.BufferedReader(RangeReader(size, fetch), buffer_size=1 << 20)


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
