"""Xperience-10M's HDF5: `<sequence>/annotation.hdf5` beside `stereo_left.mp4`; package h5py.

Row i of every table is frame i of the video; its time is `video/device_timestamp`, nanoseconds of the device as text.
`slam` (quat_wxyz, trans_xyz) is body_from_world, `calibration/cam01/T_c0_b` cam_from_body of the rectified stereo
camera: camera poses are the inverse of their product (OpenCV axes, as public readers take them). Rows of nan or zeros
are missing. `hand_left`, `hand_right` (N, 21 x 3): metres in the camera; `body` (N, 52 x 3): metres in the world;
`imu`: gyroscope rad/s and accelerometer m/s^2 of the body, on stamps of its own. The unit of depth is not confirmed: it
is left out, with a note, where `source.depth_metres_per_unit` is not said. Format: HOMIE-toolkit's README; a replica.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.contracts import Stream
from egom2p.data.clips.video_files import open_video
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import frame_stream, lens, needs, pose_stream, poses_from_rows, track_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.geometry import inverse_poses, seconds_from_stamps, stamps_from_text

_FILE, _VIDEO, _DEPTH = "annotation.hdf5", "stereo_left.mp4", "depth/depth"


@strict
class XperienceSource(FolderSource):
    """depth_metres_per_unit: of one step of `depth/depth`; None: depth is left out."""

    kind: Literal["xperience"]
    depth_metres_per_unit: Positive | None = None


class XperienceReader(FormatReader):
    source, what = XperienceSource, "Xperience-10M (HDF5 beside mp4)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, _FILE, _VIDEO, depth=2)

    def open(self, name: str, path: Path) -> Opened:
        file = path / _FILE
        h5py: Any = needs("h5py", file)
        video = open_video(path / _VIDEO)
        try:
            with h5py.File(file, "r") as held:
                keys = _keys(held, self.config.depth_metres_per_unit)
                tables = {k: _TableRows(file, k, held[k]) if k == _DEPTH else np.array(held[k]) for k in keys}
        except (OSError, RuntimeError, KeyError) as error:  # h5py's own of damaged bytes
            raise ValueError(f"{file}: not a readable HDF5 file: {error}") from error
        if "video/device_timestamp" not in tables:
            raise ValueError(f"{file}: found the tables {sorted(tables)}, wanted video/device_timestamp")
        stamps = [text.decode() if isinstance(text, bytes) else str(text) for text in tables["video/device_timestamp"]]
        times_s = seconds_from_stamps(stamps_from_text(stamps), "ns")
        streams: dict[str, Stream] = {"rgb": frame_stream(video, times_s, "uint8", where=path / _VIDEO)}
        notes = []
        if {"slam/quat_wxyz", "slam/trans_xyz", "calibration/cam01/T_c0_b"} <= set(tables):
            wxyz, position = tables["slam/quat_wxyz"], tables["slam/trans_xyz"]
            is_known = _is_known(np.concatenate([wxyz, position], axis=1))
            xyzw = np.where(is_known[:, None], wxyz[:, [1, 2, 3, 0]], [0.0, 0.0, 0.0, 1.0])
            body_from_world = poses_from_rows(f"{file}: slam", np.nan_to_num(position), xyzw)
            cam_from_body = np.asarray(tables["calibration/cam01/T_c0_b"], np.float64)
            world_from_cam = inverse_poses(cam_from_body @ body_from_world)
            streams["camera"] = pose_stream(times_s, world_from_cam, where=f"{file}: slam", is_valid=is_known)
        else:
            notes.append("there are no poses: slam and calibration/cam01/T_c0_b are needed")
        tracks = {f"hand_{side}": (f"hand_mocap/{side}_joints_3d", "m, camera's frame") for side in ("left", "right")}
        tracks["body"] = "full_body_mocap/keypoints", "m, world's frame"
        for track, (key, unit) in tracks.items():
            if key in tables:
                rows = tables[key].reshape(len(tables[key]), -1)
                unit = f"{unit}; xyz of {rows.shape[1] // 3} joints"
                streams[track] = track_stream(times_s, rows, unit, where=f"{file}: {key}", is_valid=_is_known(rows))
        if {"imu/device_timestamp_ns", "imu/gyro_xyz", "imu/accel_xyz"} <= set(tables):
            rows = np.concatenate([tables["imu/gyro_xyz"], tables["imu/accel_xyz"]], axis=1)
            imu_s = seconds_from_stamps(tables["imu/device_timestamp_ns"].astype(np.int64), "ns")
            unit = "gyroscope rad/s xyz, accelerometer m/s^2 xyz; axes of the body"
            streams["imu"] = track_stream(imu_s, rows, unit, where=f"{file}: imu")
        if _DEPTH in tables:
            frames = DepthFrames(tables[_DEPTH], metres_per_unit=self.config.depth_metres_per_unit, invalid_values=(0,))
            streams["depth"] = frame_stream(frames, times_s, "m", where=f"{file}: depth")
        elif self.config.depth_metres_per_unit is None:
            notes.append("depth is left out where there is some: source.depth_metres_per_unit says its unit")
        intrinsics = None
        if (k := tables.get("calibration/cam01/K")) is not None:
            intrinsics = lens(f"{file}: calibration/cam01/K", "pinhole", (), (video.width, video.height), k)
        return Opened(streams, intrinsics, [file, path / _VIDEO], notes)


class _TableRows:
    """Rows of a table, read one by one: depth of minutes is gigabytes. A file opened anew passes between processes."""

    def __init__(self, file: Path, key: str, table: Any) -> None:
        self._file, self._key, self._count = file, key, len(table)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            with needs("h5py", self._file).File(self._file, "r") as held:
                return held[self._key][index]
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{self._file}: row {index} of {self._key} is not readable: {error}") from error


def _keys(held: Any, depth_metres_per_unit: float | None) -> Sequence[str]:
    """Tables that are read; depth, which is large, only where its unit is known."""
    wanted = ["video/device_timestamp", "slam/quat_wxyz", "slam/trans_xyz", "calibration/cam01/T_c0_b"]
    wanted += ["calibration/cam01/K", "full_body_mocap/keypoints"]
    wanted += [f"hand_mocap/{side}_joints_3d" for side in ("left", "right")]
    wanted += [f"imu/{key}" for key in ("device_timestamp_ns", "gyro_xyz", "accel_xyz")]
    wanted += [_DEPTH] if depth_metres_per_unit is not None else []
    return [key for key in wanted if key in held]


def _is_known(rows: np.ndarray) -> np.ndarray:
    """Which rows (N, C) hold something: all finite, and not all 0."""
    return np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
