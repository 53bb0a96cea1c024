"""Stray Scanner folders: `rgb.mp4`, `depth/%06d.png`, `odometry.csv`, `camera_matrix.csv`, `imu.csv`, `confidence/`.

Poses are world_from_cam in OpenCV axes already, metres, one row a frame; times are the rows' stamps (seconds since
boot): frame numbers run on over jumps of time. Depth is 16 bits in millimetres along z, smaller than the picture,
its file named by the frame's number. Newer files add fx, fy, cx, cy a frame: the track `intrinsics`, pixels.
Format: the app's source; real rows confirm times, poses and intrinsics, a replica the rest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import strict
from egom2p.data.clips.image_files import read_picture
from egom2p.data.clips.video_files import open_video
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import (
    JoinedFrames,
    frame_stream,
    lens,
    numbers_of,
    pose_stream,
    poses_from_rows,
    read_numbers,
    stamped_rows,
    text_track,
    track_stream,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with


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

    def open(self, name: str, path: Path) -> Opened:
        odometry, video_path = path / "odometry.csv", path / "rgb.mp4"
        times_s, rows = stamped_rows(odometry, "s", columns=9, stream="camera")
        values = numbers_of(odometry, rows, slice(0, 8))
        numbers = values[:, 0].astype(np.int64)
        matrices = poses_from_rows(str(odometry), values[:, 1:4], values[:, 4:8])
        streams = {"camera": pose_stream(times_s, matrices, where=odometry)}
        used = [odometry]
        if all(len(row) >= 12 and all(row[8:12]) for row in rows):
            values = numbers_of(odometry, rows, slice(8, 12))
            streams["intrinsics"] = track_stream(times_s, values, "fx, fy, cx, cy in pixels", where=odometry)
        intrinsics, notes = None, ()
        if video_path.is_file():
            video = open_video(video_path)
            if numbers.max() >= len(video):
                raise ValueError(
                    f"{video_path}: found {len(video)} frames, wanted {numbers.max() + 1} as in {odometry.name}"
                )
            streams["rgb"] = frame_stream(JoinedFrames([(video, numbers)]), times_s, "uint8", where=video_path)
            file = path / "camera_matrix.csv"
            matrix = read_numbers(file, (3, 3), delimiter=",")
            intrinsics = lens(file, "pinhole", (), (video.width, video.height), matrix)
            used += [video_path, file]
            if unnamed := len(video) - len(np.unique(numbers)):
                notes = (f"{unnamed} of {len(video)} frames of the video have no row in {odometry.name}: left out",)
        if (folder := path / "depth").is_dir():
            files = [folder / f"{number:06d}.png" for number in numbers]
            is_there = np.array([file.is_file() for file in files])
            if is_there.any():
                kept = [file for file, there in zip(files, is_there, strict=True) if there]
                frames: Any = DepthFrames(kept, metres_per_unit=0.001, invalid_values=(0,))
                if self.config.min_confidence:
                    frames = _SureDepth(frames, kept, self.config.min_confidence)
                    used.append(path / "confidence")
                streams["depth"] = frame_stream(frames, times_s[is_there], "m", where=folder)
                used += kept
        if (imu := path / "imu.csv").is_file():
            unit = "accelerometer m/s^2 xyz, gyroscope rad/s xyz; axes of the phone"
            streams["imu"] = text_track(imu, "s", columns=6, unit=unit, stream="imu")
            used.append(imu)
        return Opened(streams, intrinsics, used, notes)


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
