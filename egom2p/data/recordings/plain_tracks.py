"""Streams of a plain folder that are tables: poses, gaze, further tracks, and clocks. T samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from egom2p.contracts import Intrinsics, Stream, check_shape
from egom2p.data.recordings.recording_settings import (
    DEFAULT_RATE_HZ,
    SECONDS_PER_UNIT,
    SETTINGS_FILE,
    CameraSettings,
    GazeSettings,
    TrackSettings,
)
from egom2p.data.recordings.track_files import check_times, load_npz, read_times, read_track
from egom2p.geometry import CLOCKWISE_TURN, check_poses, gaze_from_pixels, inverse_poses, read_trajectory

_FORMAT_OF_SUFFIX = {".txt": "tum", ".tum": "tum", ".csv": "euroc", ".npz": "npz"}
_AXES = {"opencv": np.eye(4), "opengl": np.diag([1.0, -1.0, -1.0, 1.0]), "turned": CLOCKWISE_TURN}


def read_camera(folder: Path, wanted: CameraSettings) -> Stream | None:
    names = [f"trajectory{suffix}" for suffix in _FORMAT_OF_SUFFIX]
    path = folder / wanted.file if wanted.file else first_existing(folder, names)
    if path is None:
        return None
    file_format = wanted.file_format or _FORMAT_OF_SUFFIX.get(path.suffix)
    if file_format is None:
        raise ValueError(f"{path}: the suffix does not tell the format; say camera.file_format")
    if file_format == "npz":
        times_s, poses, is_valid = _read_pose_arrays(path)
    else:
        times_s, poses = read_trajectory(path, file_format)
        is_valid = np.ones(len(poses), dtype=bool)
    if wanted.maps == "cam_from_world":
        poses = inverse_poses(poses)
    poses = poses @ _AXES[wanted.axes]
    times_s = read_clock(folder, "trajectory", len(poses), wanted.rate_hz, path=path, default=times_s)
    return Stream(poses, is_valid, times_s + wanted.offset_s, "world_from_cam")


def _read_pose_arrays(path: Path) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Times (T,) or None, poses (T, 4, 4) and validity (T,) of an npz; an invalid row may hold anything."""
    arrays = load_npz(path)
    name = next((name for name in ("world_from_camera", "world_from_cam", "poses", "arr_0") if name in arrays), None)
    if name is None:
        raise ValueError(
            f"{path}: found arrays {sorted(arrays)}, wanted `world_from_camera` (T, 4, 4) and `timestamps`"
        )
    poses = np.array(arrays[name], dtype=np.float64)
    check_shape(f"{path}: {name}", poses, "t 4 4")
    is_valid = arrays["valid"].astype(bool) if "valid" in arrays else np.ones(len(poses), dtype=bool)
    times_s = arrays.get("timestamps")
    check_shape(f"{path}: valid", is_valid, "t", t=len(poses))
    if times_s is not None:
        check_shape(f"{path}: timestamps", times_s, "t", t=len(poses))
        times_s = times_s.astype(np.float64)
        check_times(times_s, [f"{path}, row {row}" for row in range(len(times_s))], path)
    poses[~is_valid] = np.eye(4)
    return times_s, check_poses(str(path), poses), is_valid


def read_gaze(folder: Path, wanted: GazeSettings, rgb: Stream | None, intrinsics: Intrinsics | None) -> Stream | None:
    path = folder / wanted.file if wanted.file else first_existing(folder, ("gaze.csv", "gaze.npz"))
    if path is None:
        return None
    track = read_track(path)
    pairs = [pair for pair in (("u", "v"), ("x", "y")) if set(pair) <= set(track.names)]
    if pairs:
        gaze = track.values[:, [track.names.index(name) for name in pairs[0]]]
    elif not track.names and track.values.shape[1:] == (2,):
        gaze = track.values
    else:
        raise ValueError(f"{path}: found columns {list(track.names)}, wanted `u` and `v`")
    if wanted.coordinates == "pixel":
        gaze = gaze_from_pixels(gaze, *_gaze_picture_size(folder, wanted, rgb, intrinsics))
    times_s = track.times * SECONDS_PER_UNIT[wanted.time_unit] + wanted.offset_s
    return Stream(gaze, track.is_valid, times_s, "image")


def _gaze_picture_size(
    folder: Path, wanted: GazeSettings, rgb: Stream | None, intrinsics: Intrinsics | None
) -> tuple[int, int]:
    """Width and height of the picture that gaze in pixels belongs to."""
    if wanted.width and wanted.height:
        return wanted.width, wanted.height
    if intrinsics is not None:
        return intrinsics.width, intrinsics.height
    if rgb is not None:
        return rgb.values.width, rgb.values.height
    raise ValueError(f"{folder / SETTINGS_FILE}: gaze in pixels needs gaze.width and gaze.height, found neither")


def read_further_track(path: Path, wanted: TrackSettings) -> Stream:
    track = read_track(path)
    times_s = track.times * SECONDS_PER_UNIT[wanted.time_unit] + wanted.offset_s
    return Stream(track.values, track.is_valid, times_s, wanted.unit)


def read_clock(
    folder: Path, name: str, count: int, rate_hz: float | None, *, path: Path, default: np.ndarray | None = None
) -> np.ndarray:
    """Times (T,): `<name>_timestamps.txt`, else the stated rate, else the file's own, else 30 Hz from 0."""
    stamps = folder / f"{name}_timestamps.txt"
    if stamps.is_file():
        times_s = read_times(stamps)
        if len(times_s) != count:
            raise ValueError(f"{stamps}: found {len(times_s)} times, wanted {count} as {path} has frames")
        return times_s
    if rate_hz is None and default is not None:
        return np.asarray(default, dtype=np.float64)
    return np.arange(count) / (rate_hz or DEFAULT_RATE_HZ)


def first_existing(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)
