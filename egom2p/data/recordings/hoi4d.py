"""HOI4D: colour, depth and camera of its helmet-mounted sensors.

    ZY.../H./C./N./S./s./T./ align_rgb/image.mp4  align_depth/depth_video.avi  3Dseg/output.log
    camera_params/ZY.../intrin.npy

`output.log` has 5 lines a pose, `i i i+1` and 4x4 world_from_cam in metres, OpenCV axes; pose i is at i / rate_hz.
Depth is 16-bit grey aligned to colour. Intrinsics come in a download of their own; without them a recording has none,
since the cameras differ. Format: github.com/leolyliu/HOI4D-Instructions; tried on a replica only.

Not confirmed: the unit of depth (`metres_per_unit`; millimetres in its own code), the codec of its video (one that is
not of 16-bit grey is refused), the name of the intrinsics. Checked: poses last as long as the video, and the direction
of the poses by the depth, where there are intrinsics.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.depth_files import DepthVideo, metres_of_steps
from egom2p.data.recordings.reader_parts import (
    check_pose_direction,
    frame_stream,
    lens,
    pose_stream,
    read_npy,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import read_text
from egom2p.geometry import number_from_text

_RGB, _DEPTH, _LOG = "align_rgb/image.mp4", "align_depth/depth_video.avi", "3Dseg/output.log"
_INTRINSICS = "camera_params"
_DEPTH_OF_TREE = 7


@strict
class Hoi4dSource(FolderSource):
    """rate_hz: poses a second. metres_per_unit: of a step of depth. camera_params: folder of <camera>/intrin.npy."""

    kind: Literal["hoi4d"]
    rate_hz: Positive = 15.0
    metres_per_unit: Positive = 0.001
    camera_params: str | None = None  # by default camera_params below the root


class Hoi4dReader(FormatReader):
    source, what = Hoi4dSource, "HOI4D"
    groups = r"_(?P<participant>H\d+)_C\d+_N\d+_(?P<environment>S\d+)_"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, _RGB, depth=_DEPTH_OF_TREE)

    def files(self, name: str) -> Sequence[Path]:
        intrinsics = self._intrinsics_file(self.paths[name])
        is_below = intrinsics is not None and intrinsics.is_relative_to(self.root)
        return [self.paths[name], *([intrinsics] if is_below else [])]

    def _intrinsics_file(self, path: Path) -> Path | None:
        folder = Path(self.config.camera_params) if self.config.camera_params else self.root / _INTRINSICS
        camera = next((part for part in path.resolve().parts if part.startswith("ZY")), "")
        file = folder / camera / "intrin.npy"
        if self.config.camera_params and not file.is_file():
            raise ValueError(f"{file}: no such file of intrinsics; source.camera_params names its folder")
        return file if camera and file.is_file() else None

    def open(self, name: str, path: Path) -> Opened:
        rgb, log, file = VideoFile(path / _RGB), path / _LOG, self._intrinsics_file(path)
        streams = {"rgb": frame_stream(rgb, rgb.times_s, "uint8", where=path / _RGB)}
        intrinsics = None if file is None else lens(file, "pinhole", (), (rgb.width, rgb.height), read_npy(file))
        if log.is_file():
            poses = _read_log(log)
            lasts_s, video_s = len(poses) / self.config.rate_hz, float(rgb.times_s[-1])
            if abs(lasts_s - video_s) > max(0.5, 0.1 * video_s):
                raise ValueError(
                    f"{log}: found {len(poses)} poses, {lasts_s:.2f} s at {self.config.rate_hz:g} a second, wanted "
                    f"{video_s:.2f} s, the length of {_RGB}; say source.rate_hz"
                )
            streams["camera"] = pose_stream(np.arange(len(poses)) / self.config.rate_hz, poses, where=log)
        if (path / _DEPTH).is_file():
            depth = DepthVideo(path / _DEPTH, metres_of_steps(self.config.metres_per_unit))
            streams["depth"] = frame_stream(depth, depth.times_s, "m", where=path / _DEPTH)
            if intrinsics is not None and "camera" in streams:
                check_pose_direction(streams, intrinsics, where=log)
        used = [path / _RGB, log, path / _DEPTH]
        return Opened(streams, intrinsics, used if file is None else [*used, file])


def _read_log(path: Path) -> np.ndarray:
    """Poses (T, 4, 4) of Open3D's trajectory log."""
    words = read_text(path).split()
    if not words or len(words) % 19:
        raise ValueError(f"{path}: found {len(words)} numbers, wanted 19 for each pose: three of a frame and 4x4")
    try:
        rows = np.array([number_from_text(word) for word in words]).reshape(-1, 19)
    except ValueError as error:
        raise ValueError(f"{path}: not a log of poses: {error}") from None
    if not np.array_equal(rows[:, 0], np.arange(len(rows))):
        raise ValueError(f"{path}: found frames {rows[:5, 0].tolist()} ..., wanted 0, 1, 2 ...")
    return rows[:, 3:].reshape(-1, 4, 4)
