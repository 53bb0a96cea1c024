"""H2O: the head-mounted camera (cam4) of its recordings.

    <subject>/<scene>/<take>/cam4/ rgb/000000.png  depth/000000.png  cam_pose/000000.txt  cam_intrinsics.txt  hand_pose/

Poses are 16 numbers, row by row, world_from_cam in metres and OpenCV axes; depth is 16 bit, millimetres, aligned to RGB
with the same intrinsics (`fx fy cx cy width height`). The files hold no times: picture n is at n / rate_hz. Where `rgb`
is not there, `rgb256` is taken. Format: github.com/taeinkwon/h2odataset; tried on a replica only.

Not confirmed: frame, unit and order of hand_pose (a flag and 21 joints for each of two hands). Without
`source.hand_frame` it is left out, with a note; `camera` takes it for metres in the camera, the left hand first:
`hands` (T, 126), valid where both are noted, refused where joints do not lie before the camera. The direction of the
poses is checked by the depth of each recording.
"""

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
    numbered_frames,
    picture_stream,
    pose_stream,
    read_numbers,
    track_stream,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with

_CAMERA, _JOINTS = "cam4", 21
_INVALID = (0, 65535)


@strict
class H2oSource(FolderSource):
    """rate_hz: pictures a second, which the files do not say. hand_frame: that of hand_pose, which is not confirmed."""

    kind: Literal["h2o"]
    rate_hz: Positive = 30.0
    hand_frame: Literal["camera"] | None = None


class H2oReader(FormatReader):
    source, what = H2oSource, "H2O"
    groups = r"(?P<participant>subject\d+)(_ego)?_(?P<environment>[a-z]\d+)_"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = folders_with(root, f"{_CAMERA}/cam_pose", f"{_CAMERA}/cam_intrinsics.txt", depth=3)
        return {name: path / _CAMERA for name, path in found.items()}

    def open(self, name: str, path: Path) -> Opened:
        rate_hz, camera_file = self.config.rate_hz, path / "cam_intrinsics.txt"
        numbers = read_numbers(camera_file, (6,))
        intrinsics = lens(camera_file, "pinhole", (), numbers[4:], numbers[:4])
        pose_files, pose_times_s = numbered_frames(path / "cam_pose", (".txt",), rate_hz)
        poses = np.stack([read_numbers(file, (4, 4)) for file in pose_files])
        streams = {"camera": pose_stream(pose_times_s, poses, where=path / "cam_pose")}
        used = [camera_file, path / "cam_pose"]
        folder = next((path / name for name in ("rgb", "rgb256") if (path / name).is_dir()), None)
        if folder is not None:
            files, times_s = numbered_frames(folder, IMAGE_SUFFIXES, rate_hz)
            streams["rgb"] = picture_stream(files, times_s, where=folder)
            used.append(folder)
        if (path / "depth").is_dir():
            files, times_s = numbered_frames(path / "depth", IMAGE_SUFFIXES, rate_hz)
            depth = DepthFrames(files, metres_per_unit=0.001, invalid_values=_INVALID)
            streams["depth"] = frame_stream(depth, times_s, "m", where=path / "depth")
            used.append(path / "depth")
            check_pose_direction(streams, intrinsics, where=path / "cam_pose")
        notes = ()
        if (hand_pose := path / "hand_pose").is_dir():
            if self.config.hand_frame is None:
                notes = ("hand_pose is left out: its frame is not confirmed, source.hand_frame=camera says it",)
            else:
                streams["hands"] = _hands(hand_pose, rate_hz)
                used.append(hand_pose)
        return Opened(streams, intrinsics, used, notes)


def _hands(folder: Path, rate_hz: float) -> Stream:
    files, times_s = numbered_frames(folder, (".txt",), rate_hz)
    rows = np.stack([read_numbers(file, (2, 1 + 3 * _JOINTS)) for file in files])
    is_noted, joints = rows[:, :, 0] > 0, rows[:, :, 1:].reshape(len(rows), 2, _JOINTS, 3)
    z_m = joints[is_noted][..., 2]
    if z_m.size and not 0 < np.median(z_m) < 3:
        raise ValueError(f"{folder}: found joints {np.median(z_m):.3g} m along the camera's axis, wanted 0 to 3 m")
    return track_stream(
        times_s, joints.reshape(len(rows), -1), "m, in the camera", where=folder, is_valid=is_noted.all(axis=1)
    )
