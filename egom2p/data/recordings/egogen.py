"""EgoGen as EgoM2P packs it: camera poses of synthetic walks, with videos where they lie beside.

    cam/[<folder>/]<window>.npz    rgb/[<folder>/]<window>.mp4

`arr_0` (T, 4, 4) of each npz is world_from_cam with OpenGL axes (x right, y up, z back), metres, world z up; windows
are 4 s at 30 Hz. Format: github.com/ligengen/EgoM2P, its loader and example; tried on a replica with the poses of that
example. Not confirmed: the names inside the published archives (`source.axes`, `source.maps` and the two folders above
are what its code reads). Depth of EgoM2P's archives is relative brightness, not metres, and is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.contracts import check_shape
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.reader_parts import OPENCV_FROM_OPENGL, frame_stream, pose_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, called_by_path
from egom2p.data.recordings.track_files import load_npz, matching
from egom2p.geometry import inverse_poses


@strict
class EgoGenSource(FolderSource):
    """rate_hz: poses a second. maps, axes: direction of the poses, and the camera's axes."""

    kind: Literal["egogen"]
    rate_hz: Positive = 30.0
    maps: Literal["world_from_cam", "cam_from_world"] = "world_from_cam"
    axes: Literal["opengl", "opencv"] = "opengl"


class EgoGenReader(FormatReader):
    source, what = EgoGenSource, "EgoGen, as EgoM2P packs it"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return called_by_path(root / "cam", matching(root, "cam/*.npz", "cam/*/*.npz"))

    def files(self, name: str) -> Sequence[Path]:
        video = self._video(self.paths[name])
        return [self.paths[name], *([video] if video.is_file() else [])]

    def _video(self, path: Path) -> Path:
        return (self.root / "rgb" / path.relative_to(self.root / "cam")).with_suffix(".mp4")

    def open(self, name: str, path: Path) -> Opened:
        arrays, video = load_npz(path), self._video(path)
        if "arr_0" not in arrays:
            raise ValueError(f"{path}: found arrays {sorted(arrays)}, wanted arr_0 (T, 4, 4)")
        poses = np.asarray(arrays["arr_0"], dtype=np.float64)
        check_shape(f"{path}: arr_0", poses, "t 4 4")
        world_from_cam = poses if self.config.maps == "world_from_cam" else inverse_poses(poses)
        if self.config.axes == "opengl":
            world_from_cam = world_from_cam @ OPENCV_FROM_OPENGL
        times_s = np.arange(len(poses)) / self.config.rate_hz
        streams = {"camera": pose_stream(times_s, world_from_cam, where=path)}
        if video.is_file():
            rgb = VideoFile(video)
            if abs(rgb.times_s[-1] - times_s[-1]) > 0.5:
                raise ValueError(f"{video}: found {rgb.times_s[-1]:.2f} s, wanted {times_s[-1]:.2f} s as in {path}")
            streams["rgb"] = frame_stream(rgb, rgb.times_s, "uint8", where=video)
        return Opened(streams, None, [path, video])
