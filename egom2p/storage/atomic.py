"""Files, JSON and folders that either exist completely or not at all, never outside the output they belong to.

A reader never meets half a checkpoint: everything is written beside its final place and renamed at the end. A folder
made here carries a mark; one without it is somebody's own and is neither replaced nor removed. One process writes to a
folder at a time.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

import egom2p
from egom2p.contracts import plain_name

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.unfinished-[0-9a-f]{8}", re.DOTALL)  # as `_sibling` names it
_MAX_JSON_BYTES = 1 << 28
LOCK, _LOCK_POLL_S = ".writer", 0.1
_held: set[int] = set()
MARK = ".egom2p"
_CHECKSUMS = "checksums.json"
_MARK_TEXT = "Made by egom2p, which replaces this folder as a whole when it is written again.\n"


def inside(folder: str | Path, *names: str) -> Path:
    """The path of `names` below an output; ValueError where it would lie outside.

    Every name is one plain part of a path (those of our own hidden folders begin with one dot), and no link on the way
    leads out of `folder`. Whatever writes below an output under a name that was read somewhere asks for its path here.
    """
    folder = Path(folder)
    for name in names:
        plain_name(name[1:] if isinstance(name, str) and name[:1] == "." else name, "name of a file or folder", folder)
    path = Path(folder, *names)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: leads out of {folder} to {path.resolve()}; nothing is written there")
    return path


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """An OSError without a path gets this one: writing to an open file does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `path` that becomes `path` when the block ends without an error.

    A folder that was written here before is replaced as a whole: until the rename readers see the old one. ValueError
    for a folder with anything in it that was not, and for a link.
    After an error the old folder stays and the unfinished one is removed. The process being killed leaves an
    unfinished folder behind, which `remove_unfinished` clears.
    """
    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _sibling(path)
    unfinished.mkdir()
    try:
        with errors_name(path):
            yield unfinished
            (unfinished / MARK).write_text(_MARK_TEXT)
            for file in unfinished.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            _replace_directory(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _sibling(path)
    try:
        with errors_name(path):
            yield unfinished
            _flush_to_disk(unfinished)
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def array_on_disk(folder: str | Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros in a file without a name below a folder: as large as the disk, and gone with the process or the array."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    with errors_name(folder), tempfile.TemporaryFile(dir=folder) as file:
        # Taken now: where the disk is full, a write through a map would end the process without a word.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        file.truncate(num_bytes)
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def append_to(file: Path) -> IO[bytes]:
    """Open a file to read it and to write at its end; ValueError for a link, through which nothing is written."""
    if file.is_symlink():
        raise ValueError(f"{file}: is a link, to {file.resolve()}; nothing is written through it")
    return file.open("a+b")


def check_link(file: Path, folder: Path) -> None:
    """ValueError for a file of `folder` that is a link to somewhere else; what is copied or pushed must lie in it.

    In the Hub's cache the files of a snapshot are links to the repository's own blobs.
    """
    here, found = folder.resolve(), file.resolve()
    is_of_cache = here.parent.name == "snapshots" and found.parent == here.parent.parent / "blobs"
    if not found.is_relative_to(here) and not is_of_cache:
        raise ValueError(f"{file}: leads out of its folder, to {found}; nothing is copied or pushed from there")


def copy_file(source: Path, target: Path) -> None:
    """The same content under another name: a second name of the file itself where the file system can."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def check_replaceable(path: str | Path) -> None:
    """ValueError where `atomic_directory` would have to replace something that is not its own."""
    path = Path(path)
    if path.is_symlink():
        raise ValueError(f"{path}: is a link; a folder is not written through it, name the folder that it leads to")
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        raise ValueError(f"{path}: is a file, wanted a folder to write")
    if _is_foreign(path) and _is_foreign(path):  # another writer of ours may have taken it away during the first look
        raise ValueError(
            f"{path}: holds files that were not written here (no {MARK} in it), so it is not replaced; choose another "
            "output, or move it away"
        )


def _is_foreign(folder: Path) -> bool:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return False
    return bool(entries) and not any(entry.name == MARK and entry.is_file() for entry in entries)


def remove_directory(path: str | Path) -> None:
    """Remove a folder that `atomic_directory` made, if it is there; ValueError for any other."""
    if Path(path).is_dir():
        check_replaceable(path)
        shutil.rmtree(path)


def with_pretrained(path: str | Path) -> Path:
    """The path itself; of a missing `checkpoints/<name>/...` the one that came with the package.

    So configs name what is pretrained as a checkout has it, and mean the same where no checkout is.
    """
    given, package = Path(path), Path(egom2p.__file__).resolve().parent
    if given.parts[:1] == ("checkpoints",) and ".." not in given.parts and not given.exists():
        for folder in (package / "pretrained", package.parent / "checkpoints"):
            if (found := folder.joinpath(*given.parts[1:])).exists():
                return found
    return given


def is_unfinished(path: str | Path) -> bool:
    """Whether a name belongs to something whose writing has not ended (or was killed)."""
    return _UNFINISHED.fullmatch(Path(path).name) is not None


def remove_unfinished(folder: str | Path, names: Collection[str] | None = None) -> int:
    """Remove what killed processes left half-written in `folder`; return how many entries that were.

    names   the files and folders whose only writer the caller is. None: every one, for a folder that nobody else
            writes to; in any other another process's unfinished work would vanish too
    """
    leftovers = []
    for entry in Path(folder).iterdir() if Path(folder).is_dir() else ():
        name = entry.name
        while made := _UNFINISHED.fullmatch(name):  # twice where it is written as a whole into one that is, an export
            name = made["name"]
        if name != entry.name and not entry.is_symlink() and (names is None or name in names):
            leftovers.append(entry)
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return len(leftovers)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished-{uuid.uuid4().hex[:8]}")


def _replace_directory(source: Path, target: Path) -> None:
    """Rename over an existing folder: POSIX renames onto empty folders only, so the old one steps aside first.

    Of several writers each puts its own whole folder there; the last one stays.
    """
    while True:
        check_replaceable(target)  # again: it may have come while this one was written
        old: Path | None = _sibling(target)
        try:
            os.rename(target, old)
        except FileNotFoundError:  # nothing was there, or another writer's old one steps aside just now
            old = None
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer's came in between
                if old is not None:
                    shutil.rmtree(old)
                continue
            if old is not None:
                os.rename(old, target)
            raise
        if old is not None:
            shutil.rmtree(old)
        return


def _flush_to_disk(file: Path) -> None:
    """A rename survives a power cut before the data does, unless the data is flushed first."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def only_writer(folder: str | Path, *, wait_s: float = 3.0) -> Iterator[None]:
    """Hold `folder` (made if absent) for this process; ValueError when another process holds it for `wait_s` more.

    The hold ends with the process, however it ends, and is not inherited: workers that outlive a killed process for a
    moment do not keep its successor out. A folder made here in which nothing was written is removed at the end. File
    systems without locks are left unguarded.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    opened = _locked(folder, wait_s)
    _held.add(opened)
    try:
        yield
    finally:
        # The holder may have removed the folder as done, its lock with it.
        if made and folder.is_dir() and [entry.name for entry in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            with contextlib.suppress(OSError):  # somebody else's files came beside it
                for path in made:
                    path.rmdir()
        _held.discard(opened)
        os.close(opened)


def _locked(folder: Path, wait_s: float) -> int:
    """Descriptor of the lock file, locked where the file system can."""
    end_s = time.monotonic() + wait_s
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        # Neither through a link nor emptied: what is called .writer may be somebody's file.
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            if time.monotonic() >= end_s:
                raise ValueError(f"{folder}: another process is writing here; wait for it, or stop it first") from None
            time.sleep(_LOCK_POLL_S)
            continue
        except OSError:
            return opened  # no locks on this file system
        if _is_same(opened, folder / LOCK):
            return opened
        os.close(opened)  # its last holder removed it in between


def _is_same(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False


def _drop_in_child() -> None:
    """A forked child shares the open file, and with it the lock, until it closes its own copy."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_drop_in_child)


def write_checksums(folder: str | Path) -> None:
    """Note of every file of a folder what its bytes are, for `find_damage`; the last file that is written there."""
    save_json(Path(folder, _CHECKSUMS), {"sha256": _checksums(Path(folder))})


def find_damage(folder: str | Path) -> str | None:
    """The first file of a folder that is not what `write_checksums` saw, and why; None: all are."""
    folder = Path(folder)
    try:
        note = load_json(folder / _CHECKSUMS)
        wanted = note["sha256"] if isinstance(note, dict) and isinstance(note.get("sha256"), dict) else {}
        found = _checksums(folder)
    except (OSError, ValueError) as error:
        return str(error)
    if not wanted:
        return f"{_CHECKSUMS} lists no files"
    for name in sorted(wanted):
        if name not in found:
            return f"{name} is missing"
        if found[name] != wanted[name]:
            return f"{name} has other bytes than were written (its checksum differs)"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in (_CHECKSUMS, MARK):
            with file.open("rb") as opened:
                sums[file.relative_to(folder).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums


def save_json(path: str | Path, value: Any) -> None:
    """Write plain values (also numpy scalars and arrays, paths, tuples) as indented JSON."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, default=_as_plain) + "\n", encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read JSON; ValueError names the file and the line where it breaks, FileNotFoundError the missing file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, at most {_MAX_JSON_BYTES} are read as JSON")
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes | str, where: object) -> Any:
    """The value of JSON text; ValueError names `where` it was read. Neither depth nor digits are without bound."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON (nested too deep)") from None
    except ValueError as error:  # of its grammar, its encoding, or a number of thousands of digits
        raise ValueError(f"{where}: not valid JSON ({error})") from None


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")
