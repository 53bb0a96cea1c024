"""RGB-D frames with poses, the layout of 7-Scenes: `<stem>000000.color.jpg`, `.depth.png`, `.pose.txt`.

Depth is 16 bit, millimetres along the axis, 0 and 65535 none; a pose is 4x4, world_from_cam, OpenCV axes, metres, lost
where it holds nan or inf; `camera-intrinsics.txt` (3x3) serves colour and depth. There are no times: `source.rate_hz`
must be said, and a number that misses is a frame that misses. Confirmed on real files (depth warps with the poses).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.contracts import Stream
from egom2p.data.clips.image_files import IMAGE_SUFFIXES
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import (
    check_pose_direction,
    frame_stream,
    lens,
    picture_stream,
    pose_stream,
    read_numbers,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import visible

_FRAME = re.compile(r"^(?P<stem>.*?)(?P<number>\d+)\.(color|rgb)$")
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
        return open_frames(path, self.config.rate_hz)


def open_frames(path: Path, rate_hz: float) -> Opened:
    """The frames of a folder, so many a second."""
    colours, numbers = _colour_frames(path)
    times_s = (numbers - numbers[0]) / rate_hz
    streams: dict[str, Stream] = {"rgb": picture_stream(colours, times_s, where=path)}
    depths = [_beside_colour(file, ".depth.png") for file in colours]
    poses = [_beside_colour(file, ".pose.txt") for file in colours]
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
        intrinsics = lens(calibration, "pinhole", (), (rgb.width, rgb.height), read_numbers(calibration, (3, 3)))
        if {"depth", "camera"} <= streams.keys():
            check_pose_direction(streams, intrinsics, where=path)
    return Opened(streams, intrinsics, [*colours, *depths, *poses, path / _INTRINSICS])


def _colour_frames(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Colour pictures of RGB-D frames and their numbers (T,), increasing.

    Raises ValueError where they are of several sequences, or a number is there twice.
    """
    colours = colour_pictures(folder)
    stems = sorted({_FRAME.match(path.stem).group("stem") for path in colours})
    if len(stems) > 1:
        raise ValueError(f"{folder}: found frames of several sequences {stems[:10]}, wanted those of one in a folder")
    numbers = np.array([int(_FRAME.match(path.stem).group("number")) for path in colours])
    if (np.diff(numbers) <= 0).any():
        raise ValueError(f"{folder}: found frame {numbers[:-1][np.diff(numbers) <= 0][0]} twice, wanted each once")
    return colours, numbers


def colour_pictures(folder: Path) -> list[Path]:
    """Colour pictures of RGB-D frames, sorted by frame number."""
    found = [p for p in visible(folder) if p.suffix.lower() in IMAGE_SUFFIXES and _FRAME.match(p.stem)]
    return sorted(found, key=lambda path: int(_FRAME.match(path.stem).group("number")))


def _beside_colour(colour: Path, suffix: str) -> Path:
    """The file of another kind of the same frame."""
    return colour.with_name(colour.stem.rpartition(".")[0] + suffix)
