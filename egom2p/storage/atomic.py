"""Files, JSON and folders that either exist completely or not at all, and one writer for a folder at a time.

A reader never meets half a checkpoint: everything is written beside its final place and renamed at the end.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_UNFINISHED = ".unfinished-"


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `path` that becomes `path` when the block ends without an error.

    A folder that is already there is replaced as a whole: until the rename readers see the old one.
    After an error the old folder stays and the unfinished one is removed. The process being killed leaves an
    unfinished folder behind, which `remove_unfinished` clears.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _sibling(path)
    unfinished.mkdir()
    try:
        yield unfinished
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
        yield unfinished
        _flush_to_disk(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def is_unfinished(path: str | Path) -> bool:
    """Whether a name belongs to something whose writing has not ended (or was killed)."""
    return _UNFINISHED in Path(path).name


def remove_unfinished(folder: str | Path) -> int:
    """Remove what killed processes left in `folder`; return how many entries that were.

    Only for folders that a single writer owns: another process's unfinished work would vanish too.
    """
    leftovers = [entry for entry in Path(folder).iterdir() if is_unfinished(entry)] if Path(folder).is_dir() else []
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return len(leftovers)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}{_UNFINISHED}{uuid.uuid4().hex[:8]}")


def _replace_directory(source: Path, target: Path) -> None:
    """Rename over an existing folder: POSIX renames onto empty folders only, so the old one steps aside first."""
    if not target.exists():
        os.rename(source, target)
        return
    old = _sibling(target)
    os.rename(target, old)
    os.rename(source, target)
    shutil.rmtree(old)


def _flush_to_disk(file: Path) -> None:
    """A rename survives a power cut before the data does, unless the data is flushed first."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Hold `folder` (made if absent) for this process; ValueError when another process holds it.

    The hold ends with the process, however it ends. File systems without locks are left unguarded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".writer").open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is writing here; wait for it, or stop it first") from None
        except OSError:
            pass  # no locks on this file system
        yield


def save_json(path: str | Path, value: Any) -> None:
    """Write plain values (also numpy scalars and arrays, paths, tuples) as indented JSON."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, default=_as_plain) + "\n", encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read JSON; ValueError names the file and the line where it breaks, FileNotFoundError the missing file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")
