"""Where every clip lies in the tars of a folder: one packed file beside them, made once, mapped by every process.

`<folder>/.index/shards` (beside the tars on a disk or in a bucket, else in a cache folder, else in memory):

    head      magic, bytes and checksum of the table
    table     JSON, a row per shard: `_Row`
    members   9 bytes per clip: first block of its data (of 512 bytes), its bytes, which of its shard's suffixes
    keys      per shard: where each group of 16 begins; of a key what differs from the one before it in the group

Processes of a machine share the pages, and pages that nobody asks for are not there: of folders after the first only
the members. The file is never believed beyond its bounds: checksums, positions inside the tar, plain names; and whoever
reads a clip compares the header of the tar before it. A shard whose size or time (ETag) is not that of its row is read
anew.

    python -m egom2p.data.shards.shard_index 'TOKENS/[rgb,depth]/DATASET/shard-*.tar' [--workers 8] [--cache FOLDER]
"""

import argparse
import hashlib
import json
import mmap
import os
import struct
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egom2p.contracts import plain_name
from egom2p.data.shards.shard_files import Member, expand_files, read_index, split_folders
from egom2p.jobs.progress import progress_bar, say
from egom2p.jobs.workers import Workers, made_ahead, tick
from egom2p.storage import RemoteError, inside, is_remote, only_writer, parse_json, remove_unfinished
from egom2p.storage.remote import file_versions, joined, read_bytes, write_bytes

_FOLDER, _FILE = ".index", "shards"
_HEAD, _MAGIC = struct.Struct("<8sQI"), b"EGOM2PI1"
_MEMBER, _BLOCK = struct.Struct("<IIB"), 512
_MEMBERS = np.dtype([("block", "<u4"), ("size", "<u4"), ("suffix", "u1")])
_KEYS_PER_GROUP, _DIGEST_BYTES = 16, 16
_ERRORS = "surrogateescape"  # as tarfile has names that are not UTF-8
_WAIT_S = 7 * 86400.0  # for the process that makes an index: headers of millions of clips take an hour
_TICK_S = 0.02  # clocks of file systems stand still for so long
_READERS_OF_BUCKETS = 8
_FEW = 32  # shards whose headers are read in a moment: no bar
_in_memory: dict[str, "IndexFile"] = {}  # of directories whose index could not be kept anywhere


class _Row(NamedTuple):
    """A shard in the table: size and version (time in ns, or ETag) of its tar, and what its two parts must be."""

    name: str
    size: int
    version: str
    num_clips: int
    suffixes: list[str]
    keys_digest: str
    members_crc: int
    keys_bytes: int
    keys_crc: int


class PackedShard(NamedTuple):
    """What the index holds of one shard."""

    row: _Row
    members: bytes
    keys: bytes


def pack_shard(name: str, size: int, version: str, members: Sequence[Member]) -> PackedShard:
    """The members of a tar of `size` bytes, packed. ValueError for a clip of 4 GiB or a tar of 2 TiB."""
    suffixes = sorted({member.suffix for member in members})
    table = np.zeros(len(members), _MEMBERS)
    offsets, sizes = (np.array([member[column] for member in members], np.int64) for column in (2, 3))
    if sizes.max(initial=0) >= 1 << 32 or (offsets.max(initial=0) // _BLOCK) >= 1 << 32 or len(suffixes) > 255:
        raise ValueError(f"{name}: found a clip of {sizes.max()} bytes, a tar of {size} or {len(suffixes)} suffixes")
    table["block"], table["size"] = offsets // _BLOCK, sizes
    table["suffix"] = [suffixes.index(member.suffix) for member in members]
    packed, keys = table.tobytes(), _pack_keys([member.key for member in members])
    digest = keys_digest(member.key for member in members)
    row = _Row(name, size, version, len(members), suffixes, digest, zlib.crc32(packed), len(keys), zlib.crc32(keys))
    return PackedShard(row, packed, keys)


def keys_digest(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode(errors=_ERRORS)).hexdigest()[: 2 * _DIGEST_BYTES]


def _pack_keys(keys: Sequence[str]) -> bytes:
    starts, packed, before = [], bytearray(), b""
    for number, key in enumerate(keys):
        text = key.encode(errors=_ERRORS)
        if number % _KEYS_PER_GROUP == 0:
            starts.append(len(packed))
            before = b""
        shared = len(os.path.commonprefix((before, text)))
        packed += bytes((shared, len(text) - shared)) + text[shared:]
        before = text
    return struct.pack(f"<{len(starts)}I", *starts) + packed


def packed_file(parts: Sequence[PackedShard]) -> bytes:
    """The content of an index file."""
    table = json.dumps([part.row for part in parts], separators=(",", ":")).encode()
    head = _HEAD.pack(_MAGIC, len(table), zlib.crc32(table))
    return b"".join((head, table, *(part.members for part in parts), *(part.keys for part in parts)))


class _Damaged(ValueError):
    """The file is not what was written; it names the file."""


class IndexFile:
    """The index of the tars of one directory, mapped from a file or held in memory."""

    def __init__(self, content: mmap.mmap | bytes, where: str) -> None:
        """Checks the table. Raises `_Damaged`, a ValueError, when it is not one."""
        self._content, self._where = content, where
        self.rows: Sequence[_Row] = self._read_table()
        rows = self.rows
        # Columns of numbers and not the rows: each process has these for itself.
        self._sizes = array("q", [row.size for row in rows])
        self.num_clips = array("q", [row.num_clips for row in rows])
        self._digests = b"".join(bytes.fromhex(row.keys_digest) for row in rows)
        self._members_crcs = array("L", [row.members_crc for row in rows])
        self._keys_crcs = array("L", [row.keys_crc for row in rows])
        self._keys_bytes = array("q", [row.keys_bytes for row in rows])
        kinds: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._suffixes = [kinds.setdefault(kind, kind) for kind in (tuple(row.suffixes) for row in rows)]
        at = self._end_of_table
        end = at + sum(row.num_clips * _MEMBER.size + row.keys_bytes for row in rows)
        if end != len(content):
            raise _Damaged(f"{where}: has {len(content)} bytes, its table speaks of {end}")
        self._members_at, self._keys_at = array("q"), array("q")
        for row in rows:
            self._members_at.append(at)
            at += row.num_clips * _MEMBER.size
        for row in rows:
            self._keys_at.append(at)
            at += row.keys_bytes
        self._is_checked = bytearray(len(rows))

    @classmethod
    def open(cls, path: str | Path) -> "IndexFile":
        """Maps a file; FileNotFoundError where there is none."""
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise _Damaged(f"{path}: is empty")
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))

    def forget_names(self) -> None:
        """Drop what only opening asks for: ten thousand names weigh more than all numbers."""
        self.rows = ()

    def digest(self, row: int) -> bytes:
        """Of the keys of a shard and their order."""
        return self._digests[_DIGEST_BYTES * row : _DIGEST_BYTES * (row + 1)]

    def member(self, row: int, clip: int) -> tuple[int, int, str]:
        """Byte offset and size of a clip in the tar of a row, and its suffix."""
        if not self._is_checked[row] & 1:
            self._check_members(row)
        block, size, suffix = _MEMBER.unpack_from(self._content, self._members_at[row] + clip * _MEMBER.size)
        return block * _BLOCK, size, self._suffixes[row][suffix]

    def key(self, row: int, clip: int) -> str:
        if not self._is_checked[row] & 2:
            self._check_keys(row)
        key = self._decoded(row, clip // _KEYS_PER_GROUP, clip % _KEYS_PER_GROUP + 1)[-1]
        return self._plain(row, key)

    def keys(self, row: int) -> list[str]:
        """All keys of a shard, in order."""
        if not self._is_checked[row] & 2:
            self._check_keys(row)
        count = self.num_clips[row]
        groups = range(0, count, _KEYS_PER_GROUP)
        return [
            self._plain(row, key)
            for first in groups
            for key in self._decoded(row, first // _KEYS_PER_GROUP, min(_KEYS_PER_GROUP, count - first))
        ]

    def packed(self, row: int) -> PackedShard:
        """A shard as it is, for an index that takes it over."""
        return PackedShard(self.rows[row], self._slice_of_members(row), self._slice_of_keys(row))

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the file itself; what is in memory is sent along."""
        return {"where": self._where, "content": self._content if isinstance(self._content, bytes) else None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        if state["content"] is not None:
            self.__init__(state["content"], state["where"])
        else:
            self.__dict__ = IndexFile.open(state["where"]).__dict__
        self.forget_names()

    def _read_table(self) -> list[_Row]:
        try:
            magic, length, crc = _HEAD.unpack_from(self._content)
        except struct.error:
            raise _Damaged(f"{self._where}: has {len(self._content)} bytes, too few for an index") from None
        self._end_of_table = _HEAD.size + length
        if magic != _MAGIC or self._end_of_table > len(self._content):
            raise _Damaged(f"{self._where}: begins with {magic!r} and a table of {length} bytes, is no index")
        text = self._content[_HEAD.size : self._end_of_table]
        if zlib.crc32(text) != crc:
            raise _Damaged(f"{self._where}: the checksum of its table differs")
        try:
            return [_checked_row(row) for row in parse_json(text, self._where)]
        except (TypeError, ValueError) as error:
            raise _Damaged(f"{self._where}: {error}") from error

    def _check_members(self, row: int) -> None:
        packed = self._slice_of_members(row)
        table = np.frombuffer(packed, _MEMBERS)
        ends = table["block"].astype(np.int64) * _BLOCK + table["size"]
        fits = table["block"].min() >= 1 and ends.max() <= self._sizes[row]
        if (
            zlib.crc32(packed) != self._members_crcs[row]
            or not fits
            or table["suffix"].max() >= len(self._suffixes[row])
        ):
            raise self._damage(row, "its members")
        self._is_checked[row] |= 1

    def _check_keys(self, row: int) -> None:
        if zlib.crc32(self._slice_of_keys(row)) != self._keys_crcs[row]:
            raise self._damage(row, "its keys")
        self._is_checked[row] |= 2

    def _slice_of_members(self, row: int) -> bytes:
        at = self._members_at[row]
        return self._content[at : at + self.num_clips[row] * _MEMBER.size]

    def _slice_of_keys(self, row: int) -> bytes:
        at = self._keys_at[row]
        return self._content[at : at + self._keys_bytes[row]]

    def _plain(self, row: int, key: bytes) -> str:
        try:
            return plain_name(key.decode(errors=_ERRORS), "clip key")
        except ValueError as error:
            raise self._damage(row, "its keys") from error

    def _decoded(self, row: int, group: int, count: int) -> list[bytes]:
        """The first `count` keys of a group."""
        num_groups, at = -(-self.num_clips[row] // _KEYS_PER_GROUP), self._keys_at[row]
        end = at + self._keys_bytes[row]
        first = at + 4 * group
        at += 4 * num_groups + int.from_bytes(self._content[first : first + 4], "little")
        # A key has at most 200 bytes and two before it; slices end where the part ends, whatever a number says.
        content = self._content[at : min(at + count * 202, end)]
        keys, key, at = [], b"", 0
        try:
            for _ in range(count):
                shared, more = content[at], content[at + 1]
                key = key[:shared] + content[at + 2 : at + 2 + more]
                at += 2 + more
                keys.append(key)
        except IndexError as error:
            raise self._damage(row, "its keys") from error
        return keys

    def _damage(self, row: int, what: str) -> "_Damaged":
        name = self._read_table()[row].name
        return _Damaged(f"{self._where}: {what} of {name} are damaged; remove the file, it is made anew from the tars")


class ShardIndex:
    """Where the clips of one folder's shards lie, opened or made. Shards are counted as in `paths`.

    cache         folder for indexes of directories that cannot be written to, and for copies of those in buckets
    num_workers   processes that read the headers of tars on a disk, where an index is to be made
    """

    def __init__(self, paths: Sequence[str], *, cache: str | Path | None = None, num_workers: int = 0) -> None:
        names: dict[str, list[str]] = {}
        parts = [path.removeprefix("file://").rpartition("/") for path in paths]
        for directory, _, name in parts:
            names.setdefault(directory or ".", []).append(name)
        self.paths = list(paths)
        opened = {directory: _open_or_make(directory, some, cache, num_workers) for directory, some in names.items()}
        self._files = list(opened.values())
        number = {directory: number for number, directory in enumerate(opened)}
        rows = {where: {row.name: place for place, row in enumerate(file.rows)} for where, file in opened.items()}
        self._file_of = array("i", [number[directory or "."] for directory, _, _ in parts])
        self._row_of = array("i", [rows[directory or "."][name] for directory, _, name in parts])
        for directory, file in opened.items():
            if directory not in _in_memory:
                file.forget_names()

    def num_clips(self, shard: int) -> int:
        return self._files[self._file_of[shard]].num_clips[self._row_of[shard]]

    def member(self, shard: int, clip: int) -> tuple[int, int, str]:
        """Byte offset, size and suffix of the clip at a row of a shard. ValueError when the index is damaged."""
        return self._files[self._file_of[shard]].member(self._row_of[shard], clip)

    def key(self, shard: int, clip: int) -> str:
        return self._files[self._file_of[shard]].key(self._row_of[shard], clip)

    def keys(self, shard: int) -> list[str]:
        """Keys of all clips of a shard, in order."""
        return self._files[self._file_of[shard]].keys(self._row_of[shard])

    def digest(self, shard: int) -> bytes:
        """Of the keys of a shard and their order."""
        return self._files[self._file_of[shard]].digest(self._row_of[shard])


def _checked_row(values: Any) -> _Row:
    """A row of a table; TypeError or ValueError for anything else."""
    row = _Row(*values)
    numbers = (row.size, row.num_clips, row.members_crc, row.keys_bytes, row.keys_crc)
    texts = (row.version, row.keys_digest, *row.suffixes)
    is_sound = all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    if not is_sound or not row.num_clips or not row.suffixes or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a row of its table is {str(values)[:200]}")
    plain_name(row.name, "shard")
    if len(bytes.fromhex(row.keys_digest)) != _DIGEST_BYTES or max(row.members_crc, row.keys_crc) >= 1 << 32:
        raise ValueError(f"a row of its table is {str(values)[:200]}")
    return row


def _open_or_make(directory: str, names: Sequence[str], cache: str | Path | None, num_workers: int) -> IndexFile:
    """The index of these tars of a directory; what it lacks of them is read from their headers and written to it."""
    wanted = file_versions(directory, names)
    if absent := sorted(set(names) - set(wanted)):
        raise ValueError(f"{directory}/{absent[0]}: cannot open this shard: no such file")
    folders = [] if is_remote(directory) else [inside(directory, _FOLDER)]
    if cache is not None:
        folders.append(Path(cache, hashlib.sha256(_address(directory).encode()).hexdigest()[:16]))
    if (found := _complete(directory, folders, wanted)) is not None:
        return found
    content, problem = None, ""
    for folder in folders:
        try:
            with _maker(folder):
                remove_unfinished(folder)
                # Another process may have made it while this one waited.
                if (found := _complete(directory, folders, wanted)) is not None:
                    return found
                content = content or _content(directory, folders, wanted, num_workers)
                path = inside(folder, _FILE)
                write_bytes(path, content)
                return IndexFile.open(path)
        except OSError as error:
            problem = str(error)
    content = content or _content(directory, folders, wanted, num_workers)
    if problem:
        advice = "" if cache is not None else "; data.index_cache=FOLDER keeps it in another folder"
        say(f"the index of {len(wanted)} shards stays in the memory of each process: {problem}{advice}")
    _in_memory[directory] = IndexFile(content, f"{directory}: index in memory")
    return _in_memory[directory]


@contextmanager
def _maker(folder: Path) -> Iterator[None]:
    """Hold the folder of an index; who waits for another process's says so."""
    with ExitStack() as stack:
        try:
            stack.enter_context(only_writer(folder))
        except ValueError:
            say(f"{folder}: another process makes this index; waiting for it")
            stack.enter_context(only_writer(folder, wait_s=_WAIT_S))
        yield


def _address(directory: str) -> str:
    return directory if is_remote(directory) else str(Path(directory).resolve())


def _complete(directory: str, folders: Sequence[Path], wanted: Mapping[str, tuple[int, str]]) -> IndexFile | None:
    """An index that has all wanted shards as they are now."""
    files = (_sound(folder / _FILE) for folder in folders)
    return next((file for file in (_in_memory.get(directory), *files) if file and _has(file, wanted)), None)


def _has(file: IndexFile, wanted: Mapping[str, tuple[int, str]]) -> bool:
    found = {row.name: (row.size, row.version) for row in file.rows}
    return all(found.get(name) == stamp for name, stamp in wanted.items())


def _sound(path: Path, tell: Callable[[str], None] | None = None) -> IndexFile | None:
    try:
        return IndexFile.open(path)
    except _Damaged as error:
        if tell is not None:
            tell(f"{error}; the index is made anew")
    except OSError:  # absent, or not ours to read
        pass
    return None


def _content(directory: str, folders: Sequence[Path], wanted: Mapping[str, tuple[int, str]], num_workers: int) -> bytes:
    """An index file of the wanted shards, and of those that older indexes know and that are still the same."""
    beside = joined(directory, _FOLDER, _FILE) if is_remote(directory) else None
    known = [file for folder in folders if (file := _sound(folder / _FILE, say)) is not None]
    if beside is not None:
        try:
            found = read_bytes(beside)
            known.append(IndexFile(found, beside))
            if _has(known[-1], wanted):
                return found
        except (FileNotFoundError, RemoteError):
            pass  # to those who may not list a bucket an absent file looks like a forbidden one
        except _Damaged as error:
            say(f"{error}; the index is made anew")
    others = {row.name for file in known for row in file.rows} - set(wanted)
    stamps = {**file_versions(directory, sorted(others)), **wanted}
    parts: dict[str, PackedShard] = {}
    for file in known:
        for number, row in enumerate(file.rows):
            if row.name not in parts and stamps.get(row.name) == (row.size, row.version):
                parts[row.name] = file.packed(number)
    tasks = [(directory, name, *stamp) for name, stamp in wanted.items() if name not in parts]
    parts |= {part.row.name: part for part in _read_headers(directory, tasks, num_workers)}
    content = packed_file([parts[name] for name in sorted(parts)])
    if beside is not None:
        try:
            write_bytes(beside, content)
        except RemoteError as error:
            say(f"{error}: so the index is not kept beside the shards")
    return content


def _read_headers(directory: str, tasks: Sequence[tuple], num_workers: int) -> Iterator[PackedShard]:
    few = len(tasks) <= _FEW
    with nullcontext(_nothing) if few else progress_bar(f"index of {directory}", len(tasks)) as advance:
        if not is_remote(directory):
            with Workers(num_workers, _nothing, ()) as workers:
                yield from workers.run(_read_shard, tasks, on_tick=advance)
            return
        for part in made_ahead(_read_shard, tasks, num_threads=_READERS_OF_BUCKETS):
            advance(1)
            yield part


def _nothing(*_: int) -> None:
    pass


def _read_shard(task: tuple[str, str, int, str]) -> PackedShard:
    directory, name, size, version = task
    if not is_remote(directory):
        # A tar that is replaced within the same tick of the clock could not be told from this one later.
        time.sleep(max(0.0, min(_TICK_S, int(version) / 1e9 + _TICK_S - time.time())))
    part = pack_shard(name, size, version, read_index(f"{directory}/{name}"))
    tick()
    return part


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the packed index of the shards that a pattern names.")
    parser.add_argument("pattern")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=None, help="folder for what cannot lie beside the shards")
    given = parser.parse_args(arguments)
    for folder, part in split_folders(given.pattern).items():
        index = ShardIndex(expand_files(part), cache=given.cache, num_workers=given.workers)
        say(f"{folder}: {len(index.paths)} shards, {sum(map(index.num_clips, range(len(index.paths))))} clips")


if __name__ == "__main__":
    main()
