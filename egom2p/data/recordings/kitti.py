"""KITTI odometry: `sequences/<n>/{image_2/, times.txt, calib.txt}` and `poses/<n>.txt`.

Poses are of the rectified left grey camera (image_0), world_from_cam0, metres, OpenCV axes. Camera i's projection
matrix P_i = K [I | t_i] says where it sits: cam_i = cam_0 + t_i, so world_from_cam_i = world_from_cam0 with -t_i.
Sequences 11 to 21 have no poses. Format: the benchmark's development kit; held by a replica.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import strict
from egom2p.data.clips.image_files import image_sequence
from egom2p.data.recordings.reader_parts import lens, picture_stream, pose_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened
from egom2p.data.recordings.track_files import read_text, visible
from egom2p.geometry import poses_from_parts, read_kitti, read_kitti_times


@strict
class KittiSource(FolderSource):
    """KITTI odometry."""

    kind: Literal["kitti"]
    camera: Literal[0, 1, 2, 3] = 2  # left grey, right grey, left colour, right colour


class KittiReader(FormatReader):
    source, what = KittiSource, "KITTI odometry sequences"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        folder = root / "sequences"
        held = visible(folder) if folder.is_dir() else []
        return {path.name: path for path in held if (path / "times.txt").is_file() and (path / "calib.txt").is_file()}

    def files(self, name: str) -> Sequence[Path]:
        trajectory = self.root / "poses" / f"{name}.txt"
        return (self.paths[name], *([trajectory] if trajectory.is_file() else []))

    def open(self, name: str, path: Path) -> Opened:
        files = image_sequence(path / f"image_{self.config.camera}")
        times_s = read_kitti_times(path / "times.txt")
        streams = {"rgb": picture_stream(files, times_s, where=path / "times.txt")}
        size = streams["rgb"].values.width, streams["rgb"].values.height
        projection = _projection(path / "calib.txt", f"P{self.config.camera}")
        used = [path / "times.txt", path / "calib.txt", *files]
        if (trajectory := self.root / "poses" / f"{name}.txt").is_file():
            world_from_cam0 = read_kitti(trajectory)
            if len(world_from_cam0) != len(times_s):
                raise ValueError(f"{trajectory}: found {len(world_from_cam0)} poses, wanted {len(times_s)}")
            offset = np.linalg.inv(projection[:, :3]) @ projection[:, 3]
            world_from_cam = world_from_cam0 @ poses_from_parts(np.eye(3), -offset)
            streams["camera"] = pose_stream(times_s, world_from_cam, where=trajectory)
            used.append(trajectory)
        return Opened(streams, lens(path / "calib.txt", "pinhole", (), size, projection[:, :3]), used)


def _projection(path: Path, name: str) -> np.ndarray:
    """A camera's 3x4 matrix."""
    lines = dict(line.split(":", 1) for line in read_text(path).splitlines() if ":" in line)
    try:
        return np.array(lines[name].split(), np.float64).reshape(3, 4)
    except (KeyError, ValueError):
        raise ValueError(f"{path}: found {sorted(lines)}, wanted 12 numbers of {name}") from None
