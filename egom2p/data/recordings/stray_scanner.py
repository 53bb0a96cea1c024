"""Stray Scanner folders: `rgb.mp4`, `depth/%06d.png`, `odometry.csv`, `camera_matrix.csv`, `imu.csv`, `confidence/`.

Poses are world_from_cam in OpenCV axes already, metres, one row a frame; times are the rows' stamps (seconds since
boot): frame numbers run on over jumps of time. Depth is 16 bits in millimetres along z, smaller than the picture,
its file named by the frame's number. Newer files add fx, fy, cx, cy a frame: the track `intrinsics`, pixels.
Format: the app's source; real rows confirm times, poses and intrinsics, a replica the rest.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.image_files import read_picture
from egom2p.data.clips.video_files import open_video
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import (
    JoinedFrames,
    lens,
    numbers_of,
    poses,
    poses_from_rows,
    stamped_rows,
    track,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, folders_with


@strict
class StrayScannerSource(FolderSource):
    """Stray Scanner folders."""

    kind: Literal["stray_scanner"]
    min_confidence: Literal[0, 1, 2] = 0  # depth pixels that the phone was less sure of have no depth


class StrayScannerReader(FormatReader):
    source, what = StrayScannerSource, "Stray Scanner folders"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "odometry.csv", "camera_matrix.csv", depth=2)

    def open(self, name: str, path: Path) -> tuple[Mapping[str, Stream], Intrinsics | None, Iterable[Path]]:
        odometry, video_path = path / "odometry.csv", path / "rgb.mp4"
        times_s, rows = stamped_rows(odometry, "s", columns=9, stream="camera")
        values = numbers_of(odometry, rows, slice(0, 8))
        numbers = values[:, 0].astype(np.int64)
        matrices = poses_from_rows(str(odometry), values[:, 1:4], values[:, 4:8])
        streams = {"camera": poses(str(odometry), matrices, times_s)}
        used = [odometry]
        if all(len(row) >= 12 and all(row[8:12]) for row in rows):
            streams["intrinsics"] = track(numbers_of(odometry, rows, slice(8, 12)), times_s, "fx, fy, cx, cy in pixels")
        intrinsics = None
        if video_path.is_file():
            video = open_video(video_path)
            if numbers.max() >= len(video):
                raise ValueError(
                    f"{video_path}: found {len(video)} frames, wanted {numbers.max() + 1} as in {odometry.name}"
                )
            streams["rgb"] = Stream(JoinedFrames([(video, numbers)]), np.ones(len(numbers), bool), times_s, "uint8")
            intrinsics = _camera(path / "camera_matrix.csv", (video.width, video.height))
            used += [video_path, path / "camera_matrix.csv"]
        if (folder := path / "depth").is_dir():
            files = [folder / f"{number:06d}.png" for number in numbers]
            is_there = np.array([file.is_file() for file in files])
            if is_there.any():
                kept = [file for file, there in zip(files, is_there, strict=True) if there]
                frames: Any = DepthFrames(kept, metres_per_unit=0.001, invalid_values=(0,))
                if self.config.min_confidence:
                    frames = _SureDepth(frames, kept, self.config.min_confidence)
                    used.append(path / "confidence")
                streams["depth"] = Stream(frames, np.ones(len(kept), bool), times_s[is_there], "m")
                used += kept
        if (imu := path / "imu.csv").is_file():
            imu_s, rows = stamped_rows(imu, "s", columns=7, stream="imu")
            unit = "accelerometer m/s^2 xyz, gyroscope rad/s xyz; axes of the phone"
            streams["imu"] = track(numbers_of(imu, rows, slice(0, 6)), imu_s, unit)
            used.append(imu)
        return streams, intrinsics, used


class _SureDepth:
    """Depth without the pixels of low confidence (pictures of 0, 1, 2 beside the depth)."""

    def __init__(self, depth: DepthFrames, files: list[Path], least: int) -> None:
        self._depth, self._files, self._least = depth, files, least
        self.height, self.width = depth.height, depth.width

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        sure = [self._files[int(i)].parents[1] / "confidence" / self._files[int(i)].name for i in indices]
        levels = np.stack([read_picture(path)[0, ..., 0] for path in sure])
        return np.where(levels >= self._least, self._depth.read(indices), np.float32(0.0))


def _camera(path: Path, size: tuple[int, int]) -> Intrinsics:
    try:
        matrix = np.loadtxt(path, delimiter=",")
    except ValueError as error:
        raise ValueError(f"{path}: not a matrix of numbers: {error}") from error
    if matrix.shape != (3, 3):
        raise ValueError(f"{path}: found a matrix of shape {matrix.shape}, wanted (3, 3)")
    if not (0 < matrix[0, 2] < size[0] and 0 < matrix[1, 2] < size[1]):
        raise ValueError(f"{path}: found the centre {matrix[:2, 2].tolist()}, wanted one inside {size[0]}x{size[1]}")
    return lens(str(path), "pinhole", (), size, (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]))
