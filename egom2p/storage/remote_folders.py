"""Folders in an S3 bucket that either exist completely or not at all.

A bucket knows no rename, so a list of contents, written last and removed first, says that a folder is complete. Readers
ask for the list and never meet half a checkpoint.
"""

import json
import shutil
from pathlib import Path

from egom2p.storage.atomic import MARK, atomic_directory, atomic_file, check_link, inside, parse_json
from egom2p.storage.remote import (
    bucket_and_key,
    errors_of_s3,
    list_names,
    open_binary,
    read_bytes,
    s3_client,
    write_bytes,
)

_CONTENTS = ".complete.json"
_PART_BYTES = 1 << 26


class RemoteFolder:
    """One address `s3://bucket/prefix`. Endpoint, region and credentials are those of boto3's usual environment."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._bucket, self._prefix = bucket_and_key(self.url)
        if not self._prefix:
            raise ValueError(f"{url}: names a whole bucket, wanted a folder in it: s3://bucket/path")
        self._client = s3_client()

    def upload_file(self, file: str | Path, name: str) -> None:
        """One file; the object is replaced as a whole."""
        with errors_of_s3(f"{self.url}/{name}"):
            self._client.upload_file(str(file), self._bucket, self._key(name))

    def download_file(self, name: str, file: str | Path) -> bool:
        """Whether the object was there; the file appears complete or not at all."""
        try:
            with open_binary(f"{self.url}/{name}") as opened, atomic_file(file) as unfinished:
                with unfinished.open("wb") as written:
                    shutil.copyfileobj(opened, written, _PART_BYTES)
        except FileNotFoundError:
            return False
        return True

    def upload_directory(self, directory: str | Path, name: str) -> None:
        """A local folder as the folder `name`; until the end readers see none."""
        files = {path.relative_to(directory).as_posix(): path for path in sorted(Path(directory).rglob("*"))}
        files = {relative: path for relative, path in files.items() if path.is_file() and path.name != MARK}
        for path in files.values():
            check_link(path, Path(directory))
        self.remove_directory(name)
        for relative, path in files.items():
            self.upload_file(path, f"{name}/{relative}")
        contents = {relative: path.stat().st_size for relative, path in files.items()}
        write_bytes(f"{self.url}/{name}/{_CONTENTS}", json.dumps(contents).encode())

    def download_directory(self, name: str, directory: str | Path) -> None:
        """A complete folder into `directory`, which appears complete or not at all.

        FileNotFoundError when the folder is not complete; ValueError when a file of it has another size than noted.
        """
        contents = self._contents(name)
        if contents is None:
            raise FileNotFoundError(f"{self.url}/{name}: no complete folder here")
        with atomic_directory(directory) as unfinished:
            for relative, size in contents.items():
                target = inside(unfinished, *relative.split("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                if not self.download_file(f"{name}/{relative}", target) or target.stat().st_size != size:
                    found = f"{target.stat().st_size} bytes" if target.is_file() else "nothing"
                    raise ValueError(f"{self.url}/{name}/{relative}: wanted {size} bytes, found {found}")

    def directories(self, name: str = "") -> list[str]:
        """Names of the complete folders directly below the folder `name`, sorted."""
        below = f"{name}/" if name else ""
        found, _ = list_names(f"{self.url}/{below}")
        return [entry for entry in found if self._contents(f"{below}{entry}") is not None]

    def remove_directory(self, name: str) -> None:
        """Remove a folder; from its first moment on readers see none."""
        with errors_of_s3(f"{self.url}/{name}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(f"{name}/{_CONTENTS}"))
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._key(name)}/"):
                keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
                if keys:
                    self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys})

    def _contents(self, name: str) -> dict[str, int] | None:
        address = f"{self.url}/{name}/{_CONTENTS}"
        try:
            contents = parse_json(read_bytes(address), address)
        except FileNotFoundError:
            return None
        if not isinstance(contents, dict) or not all(isinstance(size, int) for size in contents.values()):
            raise ValueError(f"{address}: wanted name -> bytes of the files of the folder")
        return contents

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"
