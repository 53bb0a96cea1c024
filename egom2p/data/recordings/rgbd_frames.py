"""RGB-D frames with poses, the layout of 7-Scenes: `<stem>000000.color.jpg`, `.depth.png`, `.pose.txt`.

Depth is 16 bit, millimetres along the axis, 0 and 65535 none; a pose is 4x4, world_from_cam, OpenCV axes, metres, lost
where it holds nan or inf; `camera-intrinsics.txt` (3x3) serves colour and depth. There are no times: `source.rate_hz`
must be said, and a number that misses is a frame that misses. Confirmed on real files (depth warps with the poses).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.contracts import Stream
from egom2p.data.recordings.conversion import beside_colour, colour_frames
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import (
    check_pose_direction,
    frame_stream,
    picture_stream,
    pinhole_from_matrix,
    pose_stream,
    read_numbers,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with

_INTRINSICS = "camera-intrinsics.txt"


@strict
class RgbdFramesSource(FolderSource):
    """rate_hz: pictures a second, which the files do not say."""

    kind: Literal["rgbd_frames"]
    rate_hz: Positive | None = None


class RgbdFramesReader(FormatReader):
    source, what = RgbdFramesSource, "RGB-D frames with poses (7-Scenes)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "*0.color.*", "*0.pose.txt", depth=2)

    def open(self, name: str, path: Path) -> Opened:
        if self.config.rate_hz is None:
            raise ValueError(f"{path}: {self.what} hold no times, wanted source.rate_hz (pictures a second)")
        colours, numbers = colour_frames(path)
        times_s = (numbers - numbers[0]) / self.config.rate_hz
        streams: dict[str, Stream] = {"rgb": picture_stream(colours, times_s, where=path)}
        depths = [beside_colour(file, ".depth.png") for file in colours]
        poses = [beside_colour(file, ".pose.txt") for file in colours]
        has_depth, has_pose = (np.array([file.is_file() for file in files]) for files in (depths, poses))
        if has_depth.any():
            found = [file for file, is_there in zip(depths, has_depth, strict=True) if is_there]
            frames = DepthFrames(found, metres_per_unit=0.001, invalid_values=(0, 65535))
            streams["depth"] = frame_stream(frames, times_s[has_depth], "m", where=path)
        if has_pose.any():
            found = [file for file, is_there in zip(poses, has_pose, strict=True) if is_there]
            matrices = np.stack([read_numbers(file, (4, 4)) for file in found])
            streams["camera"] = pose_stream(times_s[has_pose], matrices, where=path)
        intrinsics, calibration = (
            None,
            next((f for f in (path / _INTRINSICS, path.parent / _INTRINSICS) if f.is_file()), None),
        )
        if calibration is not None:
            rgb = streams["rgb"].values
            intrinsics = pinhole_from_matrix(calibration, read_numbers(calibration, (3, 3)), rgb.width, rgb.height)
            if {"depth", "camera"} <= streams.keys():
                check_pose_direction(streams, intrinsics, where=path)
        return Opened(streams, intrinsics, [*colours, *depths, *poses, path / _INTRINSICS])
