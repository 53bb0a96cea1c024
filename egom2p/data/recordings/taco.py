"""TACO: its egocentric camera.

    Egocentric_Camera_Parameters/<triplet>/<sequence>/ egocentric_intrinsic.txt  egocentric_frame_extrinsic.npy
    Egocentric_RGB_Videos/<triplet>/<sequence>/color.mp4
    Egocentric_Depth_Videos/<triplet>/<sequence>/egocentric_depth.avi

Triplets are called `(tool, action, object)`. Extrinsics (T, 4, 4) are cam_from_world, OpenCV axes, metres, one for each
frame of the video; depth is 16-bit grey, 4000 steps a metre, aligned to RGB. Format: github.com/leolyliu/
TACO-Instructions; tried on a replica only. Not confirmed: the codec of the depth video; one that is not of 16-bit grey
is refused. The direction of the poses is checked by the depth of each recording.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from egom2p.config import Positive, strict
from egom2p.contracts import check_shape
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.depth_files import DepthVideo, metres_of_steps
from egom2p.data.recordings.reader_parts import (
    check_pose_direction,
    frame_stream,
    lens,
    pose_stream,
    read_npy,
    read_numbers,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, called_by_path
from egom2p.data.recordings.track_files import matching
from egom2p.geometry import inverse_poses

_CAMERAS, _RGB, _DEPTH = "Egocentric_Camera_Parameters", "Egocentric_RGB_Videos", "Egocentric_Depth_Videos"
_EXTRINSICS = "egocentric_frame_extrinsic.npy"


@strict
class TacoSource(FolderSource):
    """metres_per_unit: of a step of the depth video."""

    kind: Literal["taco"]
    metres_per_unit: Positive = 1 / 4000


class TacoReader(FormatReader):
    source, what = TacoSource, "TACO"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = matching(root, f"{_CAMERAS}/*/*/{_EXTRINSICS}")
        return called_by_path(root / _CAMERAS, [path.parent for path in found])

    def files(self, name: str) -> Sequence[Path]:
        path = self.paths[name]
        below = path.relative_to(self.root / _CAMERAS)
        return [path, *(held for held in (self.root / _RGB / below, self.root / _DEPTH / below) if held.is_dir())]

    def open(self, name: str, path: Path) -> Opened:
        below = path.relative_to(self.root / _CAMERAS)
        video, depth_video = self.root / _RGB / below / "color.mp4", self.root / _DEPTH / below / "egocentric_depth.avi"
        extrinsics = path / _EXTRINSICS
        if not video.is_file():
            raise ValueError(f"{video}: no such video; {extrinsics} has its poses, whose times are those of its frames")
        rgb, cam_from_world = VideoFile(video), read_npy(extrinsics)
        check_shape(str(extrinsics), cam_from_world, "t 4 4")
        if len(rgb) != len(cam_from_world):
            raise ValueError(f"{extrinsics}: found {len(cam_from_world)} poses, wanted {len(rgb)} as frames of {video}")
        matrix = read_numbers(path / "egocentric_intrinsic.txt", (3, 3))
        intrinsics = lens(path / "egocentric_intrinsic.txt", "pinhole", (), (rgb.width, rgb.height), matrix)
        streams = {
            "rgb": frame_stream(rgb, rgb.times_s, "uint8", where=video),
            "camera": pose_stream(rgb.times_s, inverse_poses(cam_from_world), where=extrinsics),
        }
        if depth_video.is_file():
            depth = DepthVideo(depth_video, metres_of_steps(self.config.metres_per_unit))
            streams["depth"] = frame_stream(depth, rgb.times_s, "m", where=depth_video)
            check_pose_direction(streams, intrinsics, where=extrinsics)
        return Opened(streams, intrinsics, [video, depth_video, extrinsics, path / "egocentric_intrinsic.txt"])
