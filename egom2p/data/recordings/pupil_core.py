"""Pupil Core: a recording's folder (`info.player.json`, `world.mp4`), Player's export in it, or an export alone.

Clock: seconds from an arbitrary start (Pupil time), of pictures and gaze alike. Gaze: `norm_pos` from the bottom left;
its stamps are not sorted (samples of two eyes are joined as they come): they are sorted here, and of samples at one
time the surest stays. Samples below `min_confidence` are invalid. Gaze is read from an export's gaze_positions.csv,
else from gaze.pldata (package msgpack). Format: Pupil Labs' documentation and code; real exports confirm gaze, the
rest is held by a replica.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import Share, strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.recordings.reader_parts import lens, needs, read_npy, track_stream, video_with_times
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, add_named, folders_with
from egom2p.data.recordings.recording_settings import SETTINGS_FILE
from egom2p.data.recordings.track_files import Table, distinct_samples

_EXPORT = "gaze_positions.csv"


@strict
class PupilCoreSource(FolderSource):
    """Pupil Core recordings or exports."""

    kind: Literal["pupil_core"]
    min_confidence: Share = 0.6  # what Pupil Labs advise
    export: str | None = None  # which of several exports of a recording: 000, 001, ...


class PupilCoreReader(FormatReader):
    source, what = PupilCoreSource, "Pupil Core recordings"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = folders_with(root, "world*.mp4", "world*_timestamps.npy", depth=3)
        found = found or folders_with(root, "gaze.pldata", depth=3)
        return found or _exports_alone(root)

    def open(self, name: str, path: Path) -> Opened:
        if path.is_file():
            gaze, notes = _gaze(*_exported(path), self.config.min_confidence, where=path)
            return Opened({"gaze": gaze}, None, [path], notes)
        streams: dict[str, Stream] = {}
        intrinsics, notes = None, ()
        videos = sorted(path.glob("world*.mp4"), key=lambda file: (len(file.stem), file.stem))
        clocks = [file.with_name(f"{file.stem}_timestamps.npy") for file in videos]
        used = [*videos, *clocks]
        if videos:
            streams["rgb"] = video_with_times(videos, [read_npy(clock).astype(np.float64) for clock in clocks])
            if (camera := path / "world.intrinsics").is_file():
                intrinsics = _intrinsics(camera, streams["rgb"].values)
                used.append(camera)
        export = self._export(path)
        if export is not None:
            streams["gaze"], notes = _gaze(*_exported(export), self.config.min_confidence, where=export)
            used.append(export)
        elif (recorded := path / "gaze.pldata").is_file():
            streams["gaze"], notes = _gaze(*_recorded(recorded), self.config.min_confidence, where=recorded)
            used += [recorded, path / "gaze_timestamps.npy"]
        if not streams:
            raise ValueError(f"{path}: found neither a video nor gaze, wanted world.mp4, {_EXPORT} or gaze.pldata")
        return Opened(streams, intrinsics, used, notes)

    def _export(self, path: Path) -> Path | None:
        found = sorted(path.glob(f"exports/{self.config.export or '*'}/{_EXPORT}"))
        if len(found) > 1:
            names = [str(file.relative_to(path)) for file in found]
            raise ValueError(f"{path}: found several exports of gaze {names}, wanted one: say source.export")
        if not found and self.config.export:
            raise ValueError(f"{path}: found no export {self.config.export!r} with {_EXPORT}; source.export names it")
        return found[0] if found else None


def _exports_alone(root: Path) -> dict[str, Path]:
    """Files of exports below a root that hold no recording, called by folder and what stands before their name."""
    found: dict[str, Path] = {}
    for pattern in (f"*{_EXPORT}", f"*/*{_EXPORT}", f"*/exports/*/{_EXPORT}"):
        for file in sorted(root.glob(pattern)):
            prefix = file.name.removesuffix(_EXPORT).rstrip("_- ")
            parts = [*file.relative_to(root).parts[:-1], *([prefix] if prefix else [])]
            if not (file.parent / SETTINGS_FILE).is_file() and not any(part.startswith(".") for part in parts):
                add_named(found, "_".join(parts) or root.resolve().name, file)
    return found


def _gaze(
    times_s: np.ndarray, norm: np.ndarray, confidence: np.ndarray, least: float, *, where: Path
) -> tuple[Stream, tuple[str, ...]]:
    """Gaze of unsorted samples (T,), norm_pos (T, 2) from the bottom left, and a note of those left out."""
    if not len(times_s) or not np.isfinite(times_s).all():
        raise ValueError(f"{where}: found {len(times_s)} samples of gaze, wanted at least one, each with a time")
    confidence = np.nan_to_num(confidence)
    rows, notes = distinct_samples(times_s, where=where.name, weight=confidence)
    gaze = np.stack([norm[:, 0], 1 - norm[:, 1]], axis=1)[rows]
    return track_stream(times_s[rows], gaze, "image", where=where, is_valid=confidence[rows] >= least), notes


def _exported(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (T,), norm_pos (T, 2) and confidence (T,) of Player's export."""
    table = Table(path)
    name = "gaze_timestamp" if "gaze_timestamp" in table else "timestamp"
    norm = np.stack([table.numbers("norm_pos_x"), table.numbers("norm_pos_y")], axis=1)
    return table.numbers(name), norm, table.numbers("confidence")


def _recorded(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of what Capture wrote: messages of a topic and a payload that is packed a second time."""
    msgpack = needs("msgpack", path)
    try:
        with open(path, "rb") as opened:
            held: list[Any] = [
                msgpack.unpackb(payload, strict_map_key=False)
                for _, payload in msgpack.Unpacker(opened, strict_map_key=False)
            ]
        rows = [(sample["timestamp"], *sample["norm_pos"][:2], sample["confidence"]) for sample in held]
        values = np.array(rows, np.float64).reshape(-1, 4)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"{path}: not gaze as Pupil Core writes it: {error!r}") from error
    clock = path.with_name("gaze_timestamps.npy")
    if clock.is_file() and (count := len(read_npy(clock))) != len(values):
        raise ValueError(f"{path}: found {len(values)} samples and {count} times in {clock.name}")
    return values[:, 0], values[:, 1:3], values[:, 3]


def _intrinsics(path: Path, video: Any) -> Intrinsics | None:
    """The camera that Capture kept for the video's resolution; None where it knew none."""
    msgpack = needs("msgpack", path)
    try:
        held = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
        sizes = {tuple(map(int, re.findall(r"\d+", key))): key for key in held if re.search(r"\d+,\s*\d+", key)}
        key = sizes.get((video.width, video.height))
        if key is None or held[key].get("cam_type") == "dummy":
            return None
        matrix, distortion = np.array(held[key]["camera_matrix"]), np.array(held[key]["dist_coefs"]).ravel()
        model = held[key]["cam_type"]
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise ValueError(f"{path}: not a camera as Pupil Core writes it: {error!r}") from error
    return lens(path, model, distortion.tolist(), (video.width, video.height), matrix)
