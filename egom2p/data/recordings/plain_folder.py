"""Anyone's data: a folder per recording.

    <root>/<recording>/
        video.mp4 | any one video | rgb/*.jpg|png       pictures
        depth/*.png (16 bit) | depth.npy | depth.npz    optional
        trajectory.txt (TUM) | .csv (EuRoC) | .npz      optional: poses
        gaze.csv | gaze.npz                             optional
        <track>.csv | <track>.npz                       optional: any further track
        <stream>_timestamps.txt                         optional: one time in seconds per picture
        recording.yaml                                  optional: what the files cannot say

A stream that is not there is an absent modality. Every stream has its own clock; `offset_s` in `recording.yaml` brings
them together. T samples, H, W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import FrameSource, Intrinsics, Provenance, Recording, Stream, check_shape
from egom2p.data.clips.image_files import DepthImages, RgbImages, list_images
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, open_video
from egom2p.data.recordings.plain_tracks import first_existing, read_camera, read_clock, read_further_track, read_gaze
from egom2p.data.recordings.recording_settings import (
    SETTINGS_FILE,
    DepthSettings,
    RecordingSettings,
    TrackSettings,
    read_settings,
)
from egom2p.data.recordings.track_files import load_npz
from egom2p.geometry import pixel_grid, rays

_TRACK_SUFFIXES = (".csv", ".npz")
_RESERVED = ("depth", "gaze", "trajectory")


class PlainFolderReader:
    """Recordings below a root, sorted by name; a root that itself holds the files is one recording.

    names    only these recordings (folder names)
    """

    def __init__(self, root: str | Path, *, names: Sequence[str] | None = None, dataset: str = "") -> None:
        self.root, self.dataset = Path(root), dataset
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder of recordings")
        found = sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        self._is_one = _is_recording(self.root)
        if self._is_one:
            found = [self.root.resolve().name]
        missing = sorted(set(names or ()) - set(found))
        if missing or not found:
            raise ValueError(f"{self.root}: found recordings {found[:20]}, wanted {missing or 'at least one folder'}")
        self.names: tuple[str, ...] = tuple(found if names is None else names)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Recording:
        """Open one recording; pictures stay in their files. Raises ValueError naming the file that is wrong."""
        name = self.names[index]
        folder = self.root if self._is_one else self.root / name
        return read_recording(folder, read_settings(folder, parent=self.root), name=name, dataset=self.dataset)


def read_recording(folder: Path, settings: RecordingSettings, *, name: str = "", dataset: str = "") -> Recording:
    """The recording in a folder."""
    intrinsics = settings.intrinsics.build() if settings.intrinsics else None
    streams: dict[str, Stream] = {}
    _add(streams, "rgb", _read_rgb(folder, settings))
    _add(streams, "depth", _read_depth(folder, settings.depth, streams.get("rgb"), intrinsics))
    _add(streams, "camera", read_camera(folder, settings.camera))
    _add(streams, "gaze", read_gaze(folder, settings.gaze, streams.get("rgb"), intrinsics))
    for track, path in _track_paths(folder, settings).items():
        _add(streams, track, read_further_track(path, settings.tracks.get(track, TrackSettings())))
    if not streams:
        raise ValueError(f"{folder}: found {_listing(folder)}, wanted a video, depth, trajectory, gaze or track file")
    _add(streams, "caption", _captions(settings, streams))
    name = name or folder.name
    return Recording(name, streams, intrinsics, Provenance(dataset, name, source=str(folder)))


def _read_rgb(folder: Path, settings: RecordingSettings) -> Stream | None:
    wanted = settings.rgb
    path = folder / wanted.file if wanted.file else _find_pictures(folder)
    if path is None:
        return None
    if path.is_dir():
        source: Any = RgbImages(_some_images(path))
        times_s = read_clock(folder, "rgb", len(source), wanted.rate_hz, path=path)
    else:
        source = open_video(path)
        times_s = read_clock(folder, "rgb", len(source), wanted.rate_hz, path=path, default=source.times_s)
    return Stream(source, np.ones(len(source), bool), times_s + wanted.offset_s, "uint8")


def _read_depth(
    folder: Path, wanted: DepthSettings, rgb: Stream | None, intrinsics: Intrinsics | None
) -> Stream | None:
    path = folder / wanted.file if wanted.file else first_existing(folder, ("depth", "depth.npy", "depth.npz"))
    if path is None:
        return None
    own_times_s = None
    if path.is_dir():
        values: Any = DepthImages(
            _some_images(path), metres_per_unit=wanted.metres_per_unit, invalid_values=wanted.invalid_values
        )
    else:
        arrays = load_npz(path)
        name = "depth" if "depth" in arrays else "arr_0"
        if name not in arrays:
            raise ValueError(f"{path}: found arrays {sorted(arrays)}, wanted `depth` (T, H, W) in metres")
        check_shape(f"{path}: depth", arrays[name], "t h w")
        values = np.nan_to_num(arrays[name].astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        own_times_s = arrays.get("timestamps")
    if own_times_s is None and rgb is not None and len(rgb.values) == len(values) and wanted.rate_hz is None:
        own_times_s = rgb.times_s  # taken together, frame by frame
    times_s = read_clock(folder, "depth", len(values), wanted.rate_hz, path=path, default=own_times_s)
    if wanted.measured_along == "ray":
        if intrinsics is None:
            raise ValueError(f"{folder / SETTINGS_FILE}: depth along the ray needs intrinsics, found none")
        values = DepthAlongAxis(values, intrinsics)
    return Stream(values, np.ones(len(values), bool), times_s + wanted.offset_s, "m")


def _track_paths(folder: Path, settings: RecordingSettings) -> dict[str, Path]:
    """Further tracks: those the settings name, and every csv or npz that is nothing else."""
    taken = {settings.rgb.file, settings.depth.file, settings.camera.file, settings.gaze.file}
    taken |= {track.file for track in settings.tracks.values()}
    found = {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix in _TRACK_SUFFIXES and path.stem not in _RESERVED and path.name not in taken
    }
    return found | {
        name: folder / (track.file or f"{name}.csv") for name, track in settings.tracks.items() if track.file
    }


def _captions(settings: RecordingSettings, streams: dict[str, Stream]) -> Stream | None:
    if not settings.caption:
        return None
    if isinstance(settings.caption, str):
        starts, texts = [min(float(stream.times_s[0]) for stream in streams.values())], [settings.caption]
    else:
        ordered = sorted(settings.caption, key=lambda caption: caption.start_s)
        starts, texts = [caption.start_s for caption in ordered], [caption.text for caption in ordered]
    return Stream(np.array(texts), np.ones(len(texts), bool), np.array(starts, dtype=np.float64), "text")


def _find_pictures(folder: Path) -> Path | None:
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    named = [path for path in videos if path.stem == "video"] or videos
    if len(named) > 1:
        raise ValueError(f"{folder}: found {[path.name for path in named]}, wanted one video; say rgb.file")
    return named[0] if named else first_existing(folder, ("rgb",))


def _some_images(folder: Path) -> list[Path]:
    images = list_images(folder)
    if not images:
        raise ValueError(f"{folder}: found no images, wanted at least one")
    return images


def _is_recording(folder: Path) -> bool:
    suffixes = {path.suffix.lower() for path in folder.iterdir() if path.is_file()}
    return bool(suffixes & {*VIDEO_SUFFIXES, ".csv", ".npz", ".npy"}) or (folder / "trajectory.txt").exists()


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:20]


def _add(streams: dict[str, Stream], name: str, stream: Stream | None) -> None:
    if stream is not None:
        streams[name] = stream


class DepthAlongAxis:
    """A FrameSource of depth along the optical axis, made from distances along each pixel's ray."""

    def __init__(self, distances: FrameSource | np.ndarray, intrinsics: Intrinsics) -> None:
        self._distances = distances
        size = distances.shape[1:] if isinstance(distances, np.ndarray) else (distances.height, distances.width)
        self.height, self.width = size
        own = intrinsics.resized(self.width, self.height)
        directions, is_seen = rays(pixel_grid(own), own)
        unit_z = directions[..., 2] / np.linalg.norm(directions, axis=-1)
        self._z_per_metre = np.where(is_seen, unit_z, 0.0).reshape(self.height, self.width).astype(np.float32)

    def __len__(self) -> int:
        return len(self._distances)

    def read(self, indices: np.ndarray) -> np.ndarray:
        is_array = isinstance(self._distances, np.ndarray)
        return (self._distances[indices] if is_array else self._distances.read(indices)) * self._z_per_metre
