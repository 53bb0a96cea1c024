"""Shards by pattern, and one tar: where its members lie, and reading one of them without the others.

In a pattern such as `root/[rgb,depth]/world/shard-{000000..000003}.tar`, `[a,b]` lists folders (one list in a pattern),
`{000..003}` and `{x,y}` expand as in a shell, `*` and `?` are globs.
"""

import os
import re
import tarfile
import threading
from collections import OrderedDict
from glob import glob
from io import FileIO
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from egom2p.contracts import plain_name
from egom2p.storage import is_remote, open_binary, parse_json
from egom2p.storage.remote import read_bytes

CARD_NAME = "card.json"
CLIPS_NAME = "clips.json"  # beside tokens: the card of the clips they were made from
_MAX_OPEN_FILES = 128
_BLOCK = tarfile.BLOCKSIZE
_NAME_BYTES, _LONGEST_HEADERS = 100, 16 * _BLOCK  # of a name in the header of a tar; of all headers of one member
_FOLDERS = re.compile(r"\[([^\[\]]*)\]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")


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
    return "/".join((*path.parts[:-1], stem)), suffix


def check_end(file: BinaryIO, end: int) -> None:
    """tarfile stops without a word at the first header it cannot read: only two blocks of zeros are the end.

    Raises tarfile.ReadError when they are not there, or anything but zeros follows them.
    """
    file.seek(end)
    found = 0
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"found bytes after {end}, which are neither a member nor the end mark")
        found += len(rest)
    if found < 2 * _BLOCK:
        raise tarfile.ReadError(f"found {found} bytes of the end mark at {end}, wanted {2 * _BLOCK}: cut")


def read_index(path: str) -> list[Member]:
    """Members of a tar in order, read once from its headers. Raises ValueError naming the tar.

    Keys become names of files in whatever is made of the clips, so one that is not a plain name is refused here.
    """
    members: list[Member] = []
    with open_shard(path) as file:
        total = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    if entry.isdir():
                        continue
                    if not entry.isreg() or entry.issparse():
                        raise ValueError(f"{path}: {entry.name} is a link, a device or has holes, wanted plain files")
                    if entry.offset_data + entry.size > total:
                        raise tarfile.ReadError(f"member {entry.name} ends after the file does")
                    key, suffix = split_member_name(entry.name)
                    members.append(Member(plain_name(key, "clip key", path), suffix, entry.offset_data, entry.size))
                check_end(file, archive.offset)
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


def _name_of(member: Member) -> bytes:
    text = f"{member.key}.{member.suffix}" if member.suffix else member.key
    return text.encode(errors="surrogateescape")


def _is_header(before: bytes, head: bytes, member: Member) -> bool:
    """Whether a block of a tar is the header of this member: its size and its name.

    A long name, and one beyond ASCII, stands in a header of its own `before` this one, of PAX or of GNU.
    """
    name = _name_of(member)
    if _size_in(head) != member.size:
        return False
    if head[:_NAME_BYTES].partition(b"\0")[0].removeprefix(b"./") == name:
        return True
    for start in range(len(before) - 2 * _BLOCK, -1, -_BLOCK):
        kind, size, content = before[start + 156 : start + 157], _size_in(before[start:]), before[start + _BLOCK :]
        if kind in (b"x", b"L") and size is not None and len(content) - _BLOCK < size <= len(content):
            found, mark = content[:size], b" path=" if kind == b"x" else b""
            ends = (mark + name, mark + b"./" + name)
            return any(end + b"\n" in found for end in ends) if mark else found.rstrip(b"\0") in ends
    return False


def _size_in(head: bytes) -> int | None:
    """What a header says its member's bytes are."""
    digits = head[124:135].strip(b" \0")
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


class OpenShards:
    """Bounded cache of open shards; each process and each thread opens its own: they would share a file position."""

    def __init__(self) -> None:
        self._files: dict[int, OrderedDict[str, BinaryIO]] = {}  # by thread
        self._process = os.getpid()

    def read(self, path: str, member: Member) -> bytes:
        """The bytes of a clip. ValueError when they are not there, or the header before them is another clip's."""
        name = _name_of(member)
        is_plain = name.isascii() and len(name) < _NAME_BYTES - 2
        file, head = self._open(path), _BLOCK if is_plain else min(_LONGEST_HEADERS, member.offset)
        start, size = member.offset - head, head + member.size
        if isinstance(getattr(file, "raw", None), FileIO):
            found = os.pread(file.fileno(), size, start)  # half the time of seeking and reading
        else:
            file.seek(start)
            found = file.read(size)
        if len(found) != size:
            raise ValueError(f"{path}: clip {member.key} has {max(0, len(found) - head)} of {member.size} bytes")
        if not _is_header(found[: head - _BLOCK], found[head - _BLOCK : head], member):
            raise ValueError(
                f"{path}: clip {member.key} is not where the headers of this tar had it; the tar has changed since it "
                "was opened"
            )
        return found[head:]

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


def expand_braces(pattern: str) -> list[str]:
    """All strings a pattern with `{000..003}` ranges and `{a,b}` lists stands for, in written order."""
    pieces = _BRACES.split(pattern)
    choices = [[piece] if i % 2 == 0 else _alternatives(piece, pattern) for i, piece in enumerate(pieces)]
    return ["".join(choice) for choice in product(*choices)]


def split_folders(pattern: str) -> dict[str, str]:
    """Folder -> pattern of that folder, in the listed order.

    Without a `[...]` list the folder is the one above the data set: `root/<folder>/<dataset>/shard-*.tar`.
    """
    found = _FOLDERS.findall(pattern)
    if len(found) > 1:
        raise ValueError(f"{pattern}: a pattern has one [...] list of folders, found {len(found)}")
    if not found:
        parts = PurePosixPath(pattern).parts
        if len(parts) < 3:
            raise ValueError(f"{pattern}: without a [...] list the pattern must be <folder>/<dataset>/<shards>")
        return {parts[-3]: pattern}
    folders = [folder.strip() for folder in found[0].split(",")]
    if "" in folders or len(set(folders)) != len(folders):
        raise ValueError(f"{pattern}: the list of folders has an empty or repeated name: {folders}")
    return {folder: _FOLDERS.sub(lambda _, folder=folder: folder, pattern) for folder in folders}


def expand_files(pattern: str) -> list[str]:
    """Existing files of one folder's pattern: braces in written order, globs sorted. Raises ValueError if none."""
    files: list[str] = []
    for path in expand_braces(pattern):
        if any(mark in path for mark in "*?"):
            if is_remote(path):
                raise ValueError(f"{path}: a remote pattern cannot hold * or ?; write a range {{000000..000003}}")
            files += sorted(glob(path, recursive=True))
        else:
            files.append(path)
    if not files:
        raise ValueError(f"{pattern}: no file matches")
    return files


def _alternatives(inside: str, pattern: str) -> list[str]:
    matched = _RANGE.match(inside)
    if matched is None:
        return inside.split(",")
    first, last = matched.groups()
    if int(last) < int(first):
        raise ValueError(f"{pattern}: the range {{{inside}}} ends before it starts")
    width = len(first)
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def read_card(directory: str | Path) -> dict[str, Any]:
    """The card beside the clips of one folder, local or in an object store; empty where there is none."""
    path = f"{directory}/{CARD_NAME}"
    try:
        card = parse_json(read_bytes(path), path)
    except FileNotFoundError:
        return {}
    if not isinstance(card, dict):
        raise ValueError(f"{path}: a card is a mapping, found {type(card).__name__}")
    return card
