"""Folders in an S3 bucket that either exist completely or not at all.

A bucket knows no rename, so a list of contents, written last and removed first, says that a folder is complete. Readers
ask for the list and never meet half a checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from egom2p.storage.atomic import atomic_directory, atomic_file
from egom2p.storage.remote import bucket_and_key

_CONTENTS = ".complete.json"


class RemoteFolder:
    """One address `s3://bucket/prefix`. Endpoint, region and credentials are those of boto3's usual environment."""

    def __init__(self, url: str) -> None:
        # Imported here: slow, and only needed by those who use a bucket.
        import boto3

        self.url = url.rstrip("/")
        self._bucket, self._prefix = bucket_and_key(self.url)
        if not self._prefix:
            raise ValueError(f"{url}: names a whole bucket, wanted a folder in it: s3://bucket/path")
        self._client = boto3.client("s3")

    def upload_file(self, file: str | Path, name: str) -> None:
        """One file; the object is replaced as a whole."""
        self._client.upload_file(str(file), self._bucket, self._key(name))

    def download_file(self, name: str, file: str | Path) -> bool:
        """Whether the object was there; the file appears complete or not at all."""
        from botocore.exceptions import ClientError

        try:
            self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return False
            raise FileNotFoundError(f"{self.url}/{name}: cannot be read ({error})") from error
        with atomic_file(file) as unfinished:
            self._client.download_file(self._bucket, self._key(name), str(unfinished))
        return True

    def upload_directory(self, directory: str | Path, name: str) -> None:
        """A local folder as the folder `name`; until the end readers see none."""
        files = {path.relative_to(directory).as_posix(): path for path in sorted(Path(directory).rglob("*"))}
        files = {relative: path for relative, path in files.items() if path.is_file()}
        self.remove_directory(name)
        for relative, path in files.items():
            self.upload_file(path, f"{name}/{relative}")
        contents = {relative: path.stat().st_size for relative, path in files.items()}
        self._client.put_object(
            Bucket=self._bucket, Key=self._key(f"{name}/{_CONTENTS}"), Body=json.dumps(contents).encode()
        )

    def download_directory(self, name: str, directory: str | Path) -> None:
        """A complete folder into `directory`, which appears complete or not at all.

        FileNotFoundError when the folder is not complete; ValueError when a file of it has another size than noted.
        """
        contents = self._contents(name)
        if contents is None:
            raise FileNotFoundError(f"{self.url}/{name}: no complete folder here")
        with atomic_directory(directory) as unfinished:
            for relative, size in contents.items():
                target = unfinished / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                if not self.download_file(f"{name}/{relative}", target) or target.stat().st_size != size:
                    found = f"{target.stat().st_size} bytes" if target.is_file() else "nothing"
                    raise ValueError(f"{self.url}/{name}/{relative}: wanted {size} bytes, found {found}")

    def directories(self, name: str = "") -> list[str]:
        """Names of the complete folders directly below the folder `name`, sorted."""
        below = f"{self._key(name)}/" if name else f"{self._prefix}/"
        found = []
        for page in self._pages(below, delimiter="/"):
            found += [entry["Prefix"].removeprefix(below).rstrip("/") for entry in page.get("CommonPrefixes", [])]
        return sorted(entry for entry in found if self._contents(f"{name}/{entry}" if name else entry) is not None)

    def remove_directory(self, name: str) -> None:
        """Remove a folder; from its first moment on readers see none."""
        self._client.delete_object(Bucket=self._bucket, Key=self._key(f"{name}/{_CONTENTS}"))
        for page in self._pages(f"{self._key(name)}/"):
            keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
            if keys:
                self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys})

    def _contents(self, name: str) -> dict[str, int] | None:
        from botocore.exceptions import ClientError

        key = self._key(f"{name}/{_CONTENTS}")
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise FileNotFoundError(f"{self.url}/{name}: cannot be read ({error})") from error
        return json.loads(body)

    def _pages(self, prefix: str, *, delimiter: str | None = None) -> Any:
        options = {"Delimiter": delimiter} if delimiter else {}
        return self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix, **options)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"
