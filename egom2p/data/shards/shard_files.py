"""One tar: where its members lie, and reading one of them without the others."""

import os
import tarfile
import threading
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from egom2p.storage import open_binary

_MAX_OPEN_FILES = 128


class Member(NamedTuple):
    """Bytes of one clip in one tar: key, suffix without dot, byte offset and size."""

    key: str
    suffix: str
    offset: int
    size: int


def open_shard(path: str) -> BinaryIO:
    """The one place where a shard is opened: a seekable file of bytes, local or in an object store."""
    try:
        return open_binary(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot open this shard: {error}") from error


def split_member_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the suffix starts at the first dot of the last part, as in webdataset."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)), suffix


def read_index(path: str) -> list[Member]:
    """Members of a tar in order, read once from its headers. Raises ValueError naming the tar."""
    members: list[Member] = []
    with open_shard(path) as file:
        total = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    if not entry.isfile():
                        continue
                    if entry.offset_data + entry.size > total:
                        raise tarfile.ReadError(f"member {entry.name} ends after the file does")
                    members.append(Member(*split_member_name(entry.name), entry.offset_data, entry.size))
        except tarfile.TarError as error:
            raise ValueError(f"{path}: not a complete tar: {error}") from error
    seen: set[str] = set()
    for member in members:
        if member.key in seen:
            raise ValueError(f"{path}: clip {member.key} occurs twice")
        seen.add(member.key)
    if not members:
        raise ValueError(f"{path}: the tar has no clips")
    return members


class OpenShards:
    """Bounded cache of open shards; each process and each thread opens its own: they would share a file position."""

    def __init__(self) -> None:
        self._files: dict[int, OrderedDict[str, BinaryIO]] = {}  # by thread
        self._process = os.getpid()

    def read(self, path: str, member: Member) -> bytes:
        file = self._open(path)
        file.seek(member.offset)
        content = file.read(member.size)
        if len(content) != member.size:
            raise ValueError(f"{path}: clip {member.key} has {len(content)} of {member.size} bytes")
        return content

    def close(self) -> None:
        while self._files:
            files = self._files.popitem()[1]
            while files:
                files.popitem()[1].close()

    def _open(self, path: str) -> BinaryIO:
        if self._process != os.getpid():
            # Parent and child would move the same file position; closing here leaves the parent's handles open.
            self.close()
            self._process = os.getpid()
        files = self._files.setdefault(threading.get_ident(), OrderedDict())
        if path in files:
            files.move_to_end(path)
            return files[path]
        if len(files) >= _MAX_OPEN_FILES:
            files.popitem(last=False)[1].close()
        file = files[path] = open_shard(path)
        return file

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()

    def __del__(self) -> None:
        self.close()
