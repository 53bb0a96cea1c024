"""Shards written by number, so that several processes fill one data set and finished ones stay finished."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from egom2p.data.shards.shard_files import read_index
from egom2p.data.shards.shard_set import ShardWriter

_ALL = 10**9


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
        shutil.rmtree(Path(root) / folder / part, ignore_errors=True)
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
            shutil.rmtree(Path(root) / folder / part, ignore_errors=True)


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


def _part(dataset: str, number: int) -> str:
    return f".{dataset}-part-{number:06d}"
