"""Aligned clips on disk, in the layout of the token shards.

`root/<stream>/<dataset>/shard-000000.tar` holds `<key>.npz` (values, is_valid, times_s) and
`root/meta/<dataset>/shard-000000.tar` holds `<key>.json` (units as stored, intrinsics, provenance, extra). RGB is
stored as uint8, depth as uint16 millimetres (unit mm); everything else as it is. All clips of one data set have the
same streams.

A store is also read as plain files (`root/<stream>/<dataset>/<key>.npz`), and its tars below an S3 prefix.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.config import from_plain, strict
from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Stream, plain_name
from egom2p.data.clips.upright import MIRRORED_STREAMS, mirrored
from egom2p.data.shards.array_files import read_npz
from egom2p.data.shards.folder_set import FolderSet
from egom2p.data.shards.shard_set import CARD_NAME, ShardSet, ShardWriter, shard_pattern
from egom2p.storage import is_remote, parse_json
from egom2p.storage.remote import joined, list_names

META = "meta"
PLAN_NAME = "prepare_plan.json"
_ABOUT = (CARD_NAME, "prepare_report.json", PLAN_NAME)  # lie beside clips and describe their making
_STORED_UNITS = {"depth": "mm"}
_ARRAYS = ("values", "is_valid", "times_s")
_MM_PER_M = 1000.0
LARGEST_DEPTH_M = np.iinfo(np.uint16).max / _MM_PER_M  # 65.535


def clip_folders(streams: Iterable[str]) -> dict[str, str]:
    """Folder -> suffix of a store of clips with these streams."""
    streams = sorted(plain_name(name, "stream") for name in streams)
    if META in streams:
        raise ValueError(f"a stream cannot be called {META!r}: that folder describes the clips")
    return {META: "json", **dict.fromkeys(streams, "npz")}


def encode_clip(clip: AlignedClip) -> dict[str, bytes]:
    """The members of one clip: folder -> bytes."""
    contents = {name: _encode_stream(clip.key, name, stream) for name, stream in clip.streams.items()}
    meta = {
        "units": {name: _STORED_UNITS.get(name, stream.unit) for name, stream in clip.streams.items()},
        "intrinsics": asdict(clip.intrinsics) if clip.intrinsics else None,
        "provenance": asdict(clip.provenance),
        "extra": dict(clip.extra),
    }
    return {META: (json.dumps(meta, sort_keys=True) + "\n").encode(), **contents}


def write_clips(root: str | Path, dataset: str, clips: Iterable[AlignedClip], *, clips_per_shard: int = 1000) -> int:
    """Write clips as a data set; returns how many it then holds.

    Continues a store that was begun: clips whose keys it already has are passed over. Raises ValueError naming the
    clip whose streams differ from those of the first.
    """
    with ExitStack() as stack:
        writer: ShardWriter | None = None
        for clip in clips:
            if writer is None:
                folders = clip_folders(clip.streams)
                writer = stack.enter_context(ShardWriter(root, dataset, folders, clips_per_shard))
            if clip.key not in writer.finished_keys:
                writer.write(clip.key, encode_clip(clip))
        if writer is None:
            raise ValueError(f"{root}: data set {dataset} needs at least one clip, got none")
    return writer.num_clips


@strict
class _Meta:
    """What lies beside the streams of a clip, as `encode_clip` writes it."""

    units: dict[str, str]
    intrinsics: Intrinsics | None
    provenance: Provenance
    extra: dict[str, Any]


class ClipStore(Sequence[AlignedClip]):
    """Clips of one data set, read by index. Streams other than the asked-for ones are not touched.

    is_mirrored: every clip as its mirror image, see `upright.mirrored`. Raises ValueError naming what the root holds
    when the data set or a stream is not there.
    """

    def __init__(
        self, root: str | Path, dataset: str, *, streams: Sequence[str] | None = None, is_mirrored: bool = False
    ) -> None:
        self.root, self.dataset = root if is_remote(root) else Path(root), plain_name(dataset, "data set", root)
        present = stored_streams(root, dataset)
        missing = sorted(set(streams or ()) - set(present))
        if missing:
            raise ValueError(f"{self.root}: clips of data set {dataset} have {list(present)}, wanted {missing}")
        self.streams: tuple[str, ...] = tuple(streams) if streams is not None else present
        self._is_mirrored = is_mirrored
        if is_mirrored and (unknown := sorted(set(self.streams) - set(MIRRORED_STREAMS))):
            raise ValueError(f"{self.root}: found streams {unknown}, wanted for mirror images {list(MIRRORED_STREAMS)}")
        self._shards = _open_clips(root, dataset, [META, *self.streams])

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def keys(self) -> list[str]:
        return self._shards.keys

    @property
    def shard_starts(self) -> tuple[int, ...]:
        """Index of the first clip of every shard, then the number of clips."""
        return self._shards.shard_starts

    @property
    def is_sharded(self) -> bool:
        """Whether the clips lie in tars; else they are plain files."""
        return isinstance(self._shards, ShardSet)

    def verify(self) -> int:
        """Compare the keys of all streams' shards; returns the number of clips. ValueError names shard and key."""
        return self._shards.verify()

    def __getitem__(self, index: int) -> AlignedClip:
        if index < 0:
            index += len(self)
        key = self._shards.key(index)
        meta = self._load_meta(index)
        if missing := [name for name in self.streams if name not in meta.units]:
            raise ValueError(
                f"{self._shards.where(index, META)}: `units` has no {missing[0]}, found {dict(meta.units)}"
            )
        streams = {name: self._load_stream(index, name, meta.units[name]) for name in self.streams}
        clip = AlignedClip(key, streams, meta.intrinsics, meta.provenance, meta.extra)
        return mirrored(clip) if self._is_mirrored else clip

    def __iter__(self) -> Iterator[AlignedClip]:
        return (self[index] for index in range(len(self)))

    def _load_meta(self, index: int) -> "_Meta":
        where = self._shards.where(index, META)
        return from_plain(_Meta, parse_json(self._shards.read(index, META), where), where=where)

    def _load_stream(self, index: int, name: str, unit: str) -> Stream:
        content = self._shards.read(index, name)
        try:
            arrays = read_npz(io.BytesIO(content), names=_ARRAYS)
        except ValueError as error:
            raise ValueError(f"{self._shards.where(index, name)}: not a readable stream: {error}") from error
        values, is_valid, times_s = (arrays[part] for part in _ARRAYS)
        if name == "depth":
            if unit != _STORED_UNITS[name]:
                raise ValueError(f"{self._shards.where(index, name)}: found depth in {unit!r}, wanted mm")
            unit = "m"
            values = (values.astype(np.float32) / np.float32(_MM_PER_M)).astype(np.float32)
        return Stream(values=values, is_valid=is_valid, times_s=times_s, unit=unit)


def stored_streams(root: str | Path, dataset: str) -> tuple[str, ...]:
    """Streams of a data set, sorted. Raises ValueError listing the data sets that exist."""
    folders = [folder for folder in list_names(root)[0] if folder[0] != "." and _is_stored(root, folder, dataset)]
    if META not in folders or len(folders) == 1:
        raise ValueError(f"{root}: no clips of data set {dataset!r}; found {list(stored_datasets(root))}")
    return tuple(plain_name(folder, "stream", root) for folder in folders if folder != META)


def stored_datasets(root: str | Path) -> tuple[str, ...]:
    """Data sets below a root of clips, sorted."""
    return tuple(name for name in list_names(joined(root, META))[0] if _is_stored(root, META, name))


def _is_stored(root: str | Path, folder: str, dataset: str) -> bool:
    _, files = list_names(joined(root, folder, dataset))
    return bool(_tars(files)) or any(Path(name).suffix in (".npz", ".json") for name in files if name not in _ABOUT)


def _tars(files: Iterable[str]) -> list[str]:
    return [name for name in files if name.startswith("shard-") and name.endswith(".tar")]


def _open_clips(root: str | Path, dataset: str, folders: Sequence[str]) -> ShardSet | FolderSet:
    tars = _tars(list_names(joined(root, META, dataset))[1])
    if not tars:
        return FolderSet(shard_pattern(root, dataset, folders).rpartition("/")[0])
    pattern = shard_pattern(root, dataset, folders)
    # A bucket has no globs, so every shard is named.
    names = tars[0] if len(tars) == 1 else f"{{{','.join(tars)}}}"
    return ShardSet(pattern.replace("shard-*.tar", names) if is_remote(root) else pattern)


def _encode_stream(key: str, name: str, stream: Stream) -> bytes:
    values = np.asarray(stream.values)
    if values.dtype == object:
        raise ValueError(f"clip {key}: stream {name} holds Python objects; an array of numbers or text is wanted")
    arrays: Mapping[str, np.ndarray] = {
        "values": _millimetres(values) if name == "depth" else values,
        "is_valid": np.asarray(stream.is_valid, dtype=bool),
        "times_s": np.asarray(stream.times_s, dtype=np.float64),
    }
    buffer = io.BytesIO()
    # Camera noise does not deflate: compressing pictures costs ten times the writing and gains a few per cent.
    (np.savez if name == "rgb" else np.savez_compressed)(buffer, **arrays)
    return buffer.getvalue()


def _millimetres(depth_m: np.ndarray) -> np.ndarray:
    """uint16 millimetres; what is not a positive finite distance below LARGEST_DEPTH_M is 0, invalid."""
    millimetres = np.nan_to_num(np.asarray(depth_m, np.float64) * _MM_PER_M, nan=0.0, posinf=0.0, neginf=0.0)
    is_storable = (millimetres > 0) & (millimetres < LARGEST_DEPTH_M * _MM_PER_M)
    return np.where(is_storable, np.maximum(np.rint(millimetres), 1), 0).astype(np.uint16)
