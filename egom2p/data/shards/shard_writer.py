"""Writing clips into modality-wise tars, so that a killed run loses one shard at most and continues after it.

One process appends to a data set (`ShardWriter`), or several fill it shard by shard, by number (`write_shard`).
"""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from egom2p.contracts import plain_name
from egom2p.data.shards.shard_files import CARD_NAME, read_index
from egom2p.jobs.progress import timed
from egom2p.storage import errors_name, inside, save_json

_ALL = 10**9


class ShardWriter:
    """Writes clips into shards of `clips_per_shard`, one tar per folder, each shard of all folders as one unit.

    A shard is written beside its place and renamed when complete. A writer on a folder with complete shards continues
    after them: skip the keys in `finished_keys`. Shards that are not complete in all folders are written again.

    folders   folder -> suffix of its members, without dot
    """

    def __init__(self, root: str | Path, dataset: str, folders: Mapping[str, str], clips_per_shard: int = 1000) -> None:
        if clips_per_shard < 1 or not folders:
            raise ValueError(f"a shard needs folders and at least one clip, got {dict(folders)}, {clips_per_shard}")
        self.folders = dict(folders)
        self._directories = {folder: inside(root, folder, dataset) for folder in folders}
        self._clips_per_shard = clips_per_shard
        self._open: dict[str, tuple[BinaryIO, tarfile.TarFile]] = {}
        self._num_open = 0
        for directory in self._directories.values():
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob("shard-*.tar.tmp"):
                leftover.unlink()
        self._shard = 0
        finished: list[str] = []
        while all(self._path(folder).is_file() for folder in self.folders):
            finished += [member.key for member in read_index(str(self._path(next(iter(self.folders)))))]
            self._shard += 1
        self.finished_keys: frozenset[str] = frozenset(finished)
        self._keys = set(finished)
        self._drop_half_renamed_shard()

    @property
    def num_clips(self) -> int:
        """Clips written so far, those of earlier runs included."""
        return len(self._keys)

    def write(self, key: str, contents: Mapping[str, bytes]) -> None:
        """Append one clip: its bytes for every folder. The key has no dot and no slash and is new."""
        if "." in plain_name(key, "clip key"):
            raise ValueError(f"a clip key has no dot, got {key!r}")
        if key in self._keys:
            raise ValueError(f"clip {key} is already written; keys of a data set are unique")
        if set(contents) != set(self.folders):
            raise ValueError(
                f"clip {key} has {sorted(contents)}, wanted {sorted(self.folders)}: every clip of a data set has all"
            )
        if not self._open:
            self._start_shard()
        for folder, suffix in self.folders.items():
            entry = tarfile.TarInfo(f"{key}.{suffix}")
            entry.size, entry.mode = len(contents[folder]), 0o644
            with errors_name(self._path(folder)), timed("write"):
                self._open[folder][1].addfile(entry, io.BytesIO(contents[folder]))
        self._keys.add(key)
        self._num_open += 1
        if self._num_open == self._clips_per_shard:
            self._finish_shard()

    def card(self, folder: str, values: Mapping[str, Any]) -> None:
        """Write `card.json` of a folder."""
        save_json(self._directories[folder] / CARD_NAME, dict(values))

    def close(self) -> None:
        """Finish the last, possibly shorter shard."""
        if self._open:
            self._finish_shard()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None:
            self.close()
            return
        # An unfinished shard is not kept: shards would otherwise differ between interrupted and whole runs.
        for file, _ in self._open.values():
            with contextlib.suppress(OSError):  # of a full disk: what is still to be flushed is not wanted either
                file.close()
            Path(file.name).unlink()
        self._open = {}

    def _path(self, folder: str, shard: int | None = None) -> Path:
        return self._directories[folder] / f"shard-{self._shard if shard is None else shard:06d}.tar"

    def _start_shard(self) -> None:
        for folder in self.folders:
            file = open(f"{self._path(folder)}.tmp", "wb")
            self._open[folder] = file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._num_open = 0

    def _finish_shard(self) -> None:
        for folder, (file, archive) in self._open.items():
            with errors_name(self._path(folder)), timed("write"):
                archive.close()
                file.flush()
                os.fsync(file.fileno())
                file.close()
        for folder in self.folders:
            os.replace(f"{self._path(folder)}.tmp", self._path(folder))
        self._open, self._shard = {}, self._shard + 1

    def _drop_half_renamed_shard(self) -> None:
        """Remove what a run killed while renaming left; refuse folders that differ by more than that."""
        for folder in self.folders:
            later = self._path(folder, self._shard + 1)
            if later.is_file():
                lacking = [name for name in self.folders if not self._path(name).is_file()]
                raise ValueError(
                    f"{later.parent}: has shards that {lacking} lacks from {self._path(folder).name} on; "
                    "write a new folder of an existing data set by itself, or remove the differing folders"
                )
            self._path(folder).unlink(missing_ok=True)


def write_shard(
    root: str | Path,
    dataset: str,
    number: int,
    folders: Mapping[str, str],
    clips: Iterable[tuple[str, Mapping[str, bytes]]],
) -> int:
    """Write shard `number` of all folders (folder -> suffix) from (key, folder -> bytes); returns the clips in it.

    The shard is made in hidden folders beside the data set and renamed when complete. Without clips nothing is left.
    """
    part = _part(dataset, number)
    for folder in folders:
        inside(root, folder, dataset)
        _drop_part(inside(root, folder, part))
    try:
        with ShardWriter(root, part, folders, clips_per_shard=_ALL) as writer:
            for key, contents in clips:
                writer.write(key, contents)
        if writer.num_clips:
            for folder in folders:
                target = shard_path(root, folder, dataset, number)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(shard_path(root, folder, part, 0), target)
        return writer.num_clips
    finally:
        for folder in folders:
            _drop_part(Path(root) / folder / part)


def shard_path(root: str | Path, folder: str, dataset: str, number: int) -> Path:
    return Path(root) / folder / dataset / f"shard-{number:06d}.tar"


def finished_keys(root: str | Path, dataset: str, number: int, folders: Iterable[str]) -> list[str] | None:
    """Keys of a shard that is complete in all folders, else None."""
    paths = [shard_path(root, folder, dataset, number) for folder in folders]
    if not all(path.is_file() for path in paths):
        return None
    keys = [[member.key for member in read_index(str(path))] for path in paths]
    return keys[0] if all(other == keys[0] for other in keys) else None


def check_finished(found: Sequence[str], wanted: Sequence[str], *, where: str) -> None:
    """Raise ValueError when a finished shard holds other clips than wanted, or them in another order."""
    if list(found) == list(wanted):
        return
    foreign = [key for key in found if key not in set(wanted)]
    raise ValueError(
        f"{where}: found {len(found)} clips ({foreign[0] if foreign else 'fewer, or in another order'}), wanted the "
        f"{len(wanted)} clips of this configuration; it is another run's: choose another output, or remove it"
    )


def _drop_part(folder: Path) -> None:
    """Remove the hidden folder of a part with the shards in it; OSError, which names it, where others' files lie."""
    if folder.is_dir():
        for file in folder.iterdir():
            if file.name.endswith((".tar", ".tar.tmp")):
                file.unlink()
        folder.rmdir()


def _part(dataset: str, number: int) -> str:
    return f".{dataset}-part-{number:06d}"
