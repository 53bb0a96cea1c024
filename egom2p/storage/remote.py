"""Bytes on a disk or in an S3 bucket: one opener, what lies in a folder, whole files read or written."""

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlparse

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from egom2p.storage.atomic import atomic_file

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_PART_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RemoteConfig:
    """How long an S3 bucket is waited for, and how often it is asked.

    read_timeout_s   without a byte for so long, a request has failed
    num_attempts     of every request, and of the body of an object that breaks off (it goes on from where it broke)
    """

    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0  # without a connection for so long, a request has failed
    read_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    num_attempts: Annotated[int, Field(ge=1)] = 5


_settings = RemoteConfig()


class RemoteError(ValueError):
    """A bucket cannot be used as it was meant to; the message names the address and why."""


def configure_remote(config: RemoteConfig) -> None:
    """Timeouts and retries of this process, and of workers it forks, from now on."""
    global _settings
    _settings = config


def is_remote(url: str | Path) -> bool:
    """Whether a location is an S3 address (`s3://bucket/key`) instead of a path."""
    return str(url).startswith("s3://")


def bucket_and_key(url: str | Path) -> tuple[str, str]:
    """The two parts of an S3 address; the key is empty for a whole bucket. ValueError for anything else."""
    address = urlparse(str(url))
    if address.scheme != "s3" or not address.netloc:
        raise ValueError(f"{url}: an address in a bucket is s3://bucket/path")
    return address.netloc, address.path.lstrip("/")


def open_binary(url: str | Path, *, buffer_bytes: int = _PART_BYTES) -> BinaryIO:
    """A seekable file for reading: a local path, `file://...` or `s3://bucket/key` (read by ranges of `buffer_bytes`).

    The S3 endpoint, region and credentials are those of boto3's usual environment variables and files.
    FileNotFoundError names what is missing.
    """
    text = str(url)
    if is_remote(text):
        return _open_s3(text, buffer_bytes)
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

    def readall(self) -> bytes:
        """In one request; the base class would make one for every 8 kB."""
        data = self._fetch(self._position, self._size) if self._position < self._size else b""
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._fetch(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _open_s3(url: str, buffer_bytes: int) -> BinaryIO:
    bucket, key = bucket_and_key(url)
    client = s3_client()
    with errors_of_s3(url):
        size, version = _size_and_version(client, bucket, key)

    def fetch(start: int, stop: int) -> bytes:
        with errors_of_s3(url):
            return _read_range(client, url, start, stop, version)

    return io.BufferedReader(RangeReader(size, fetch), buffer_size=buffer_bytes)


def _size_and_version(client: Any, bucket: str, key: str) -> tuple[int, str]:
    """Bytes of an object, and its ETag. By a GET: what a HEAD is refused for it does not say."""
    from botocore.exceptions import ClientError

    try:
        answer = client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidRange":
            raise
        answer = client.get_object(Bucket=bucket, Key=key)  # an empty object has no first byte
        return answer["ContentLength"], answer["ETag"]
    return int(answer["ContentRange"].rpartition("/")[2]), answer["ETag"]


def _read_range(client: Any, url: str, start: int, stop: int, version: str) -> bytes:
    """The bytes of [start, stop). A body that breaks off, which the library does not repeat, goes on from there."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    bucket, key = bucket_and_key(url)
    content, problem = bytearray(), ""
    for attempt in range(_settings.num_attempts):
        if attempt:
            time.sleep(min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S))
        wanted = f"bytes={start + len(content)}-{stop - 1}"
        try:
            body = client.get_object(Bucket=bucket, Key=key, Range=wanted, IfMatch=version)["Body"]
            while part := body.read(_PART_BYTES):
                content += part
        except (HTTPClientError, IncompleteReadError, HTTPError, ConnectionError) as error:
            problem = f" ({error})"
        if len(content) == stop - start:
            return bytes(content)
    raise RemoteError(
        f"{url}: the bytes from {start} to {stop} broke off {_settings.num_attempts} times, after {len(content)} of "
        f"them{problem}"
    )


def s3_client() -> Any:
    """A client of S3 with the timeouts and retries in force."""
    # Imported here: slow, and only needed by those who use a bucket.
    import boto3
    from botocore.config import Config

    retries = {"total_max_attempts": _settings.num_attempts, "mode": "standard"}
    timeouts = {"connect_timeout": _settings.connect_timeout_s, "read_timeout": _settings.read_timeout_s}
    return boto3.client("s3", config=Config(retries=retries, **timeouts))


@contextmanager
def errors_of_s3(address: str) -> Iterator[None]:
    """Whatever goes wrong with a bucket becomes FileNotFoundError (absent) or RemoteError, naming the address."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        if code in ("404", "NoSuchKey"):
            raise FileNotFoundError(f"{address}: no such file") from error
        raise RemoteError(f"{address}: {_refusal(code, error, address)}") from error
    except Boto3Error as error:  # what the library makes of an upload that failed
        cause = error.__context__
        if isinstance(cause, ClientError):
            code = str(cause.response["Error"].get("Code", ""))
            raise RemoteError(f"{address}: {_refusal(code, cause, address)}") from error
        raise RemoteError(f"{address}: {error}") from error
    except BotoCoreError as error:
        raise RemoteError(f"{address}: cannot be reached ({error})") from error


def _refusal(code: str, error: Exception, address: str) -> str:
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"):
        return f"the credentials have expired ({code}); get new ones and start the same command again"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket_and_key(address)[0]!r}"
    if code in ("403", "AccessDenied", "Forbidden", "AllAccessDisabled"):
        return f"access is denied ({code}); to those who may not list the bucket an absent file looks the same"
    if code in ("412", "PreconditionFailed"):
        return "was changed while it was read"
    return str(error)


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
    folders, files = _list_objects(folder)
    return sorted(folders), sorted(files)


def file_versions(folder: str | Path, names: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Name -> bytes, and what changes with the content (time of change in ns, or ETag), of those that are there."""
    if not is_remote(folder):
        found = {}
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                about = os.stat(os.path.join(folder, name))
                found[name] = about.st_size, str(about.st_mtime_ns)
        return found
    try:
        files = _list_objects(folder)[1]
        return {name: files[name] for name in names if name in files}
    except RemoteError:  # some may read what they may not list
        client, found = s3_client(), {}
        for name in names:
            with suppress(FileNotFoundError), errors_of_s3(joined(folder, name)):
                found[name] = _size_and_version(client, *bucket_and_key(joined(folder, name)))
        return found


def _list_objects(folder: str | Path) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """Folders directly below an address, and file -> bytes and ETag."""
    bucket, prefix = bucket_and_key(f"{str(folder).rstrip('/')}/")
    folders, files = [], {}
    with errors_of_s3(str(folder)):
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        for page in pages:
            folders += [row["Prefix"][len(prefix) :].rstrip("/") for row in page.get("CommonPrefixes", [])]
            rows = (row for row in page.get("Contents", []) if row["Key"] != prefix)
            files.update((row["Key"][len(prefix) :], (row["Size"], row["ETag"])) for row in rows)
    return folders, files


def read_bytes(location: str | Path) -> bytes:
    """A whole file; FileNotFoundError names it."""
    with open_binary(location) as opened:
        return opened.read()


def write_bytes(location: str | Path, content: bytes) -> None:
    """A whole file, there completely or not at all."""
    if is_remote(location):
        bucket, key = bucket_and_key(str(location))
        with errors_of_s3(str(location)):
            s3_client().put_object(Bucket=bucket, Key=key, Body=content)
        return
    with atomic_file(location) as unfinished:
        unfinished.write_bytes(content)


def upload(file: str | Path, address: str) -> None:
    """Send a file of any size to an S3 address; it appears there when complete."""
    bucket, key = bucket_and_key(address)
    with errors_of_s3(address):
        s3_client().upload_file(str(file), bucket, key)
