"""TUM RGB-D folders (and Bonn's): `rgb.txt`, `depth.txt`, `groundtruth.txt`, `accelerometer.txt`.

Times are seconds; each stream keeps its own. Poses are of the colour camera (world_from_cam, OpenCV axes, metres),
quaternions x, y, z, w; depth is 16 bits, 5000 a metre, along z, of the colour picture. Intrinsics are not in the
files: `source.intrinsics`. Format: the benchmark's own page; real trajectories confirm the poses' layout.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from egom2p.config import Positive, strict
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import (
    frame_stream,
    listed_pictures,
    picture_stream,
    pose_stream,
    text_track,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.recording_settings import IntrinsicsSettings
from egom2p.data.recordings.track_files import distinct_samples
from egom2p.geometry import read_tum


@strict
class TumRgbdSource(FolderSource):
    """TUM RGB-D folders."""

    kind: Literal["tum_rgbd"]
    intrinsics: IntrinsicsSettings | None = None  # of the colour camera, the same for all recordings of the root
    units_per_metre: Positive = 5000.0  # of the numbers in depth pictures


class TumRgbdReader(FormatReader):
    source, what = TumRgbdSource, "TUM RGB-D folders"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "rgb.txt", "groundtruth.txt", depth=2) or folders_with(
            root, "rgb.txt", "depth.txt", depth=2
        )

    def open(self, name: str, path: Path) -> Opened:
        rgb_s, rgb, notes = listed_pictures(path / "rgb.txt", path, stream="rgb")
        streams = {"rgb": picture_stream(rgb, rgb_s, where=path / "rgb.txt")}
        used = [path / "rgb.txt", *rgb]
        if (path / "depth.txt").is_file():
            depth_s, files, left = listed_pictures(path / "depth.txt", path, stream="depth")
            frames = DepthFrames(files, metres_per_unit=1 / self.config.units_per_metre, invalid_values=(0,))
            streams["depth"] = frame_stream(frames, depth_s, "m", where=path / "depth.txt")
            used += [path / "depth.txt", *files]
            notes += left
        if (trajectory := path / "groundtruth.txt").is_file():
            times_s, world_from_cam = read_tum(trajectory)
            rows, repeats = distinct_samples(times_s, where=trajectory.name)
            streams["camera"] = pose_stream(times_s[rows], world_from_cam[rows], where=trajectory)
            used.append(trajectory)
            notes += repeats
        if (listing := path / "accelerometer.txt").is_file():
            unit = "m/s^2 xyz; axes of the sensor"
            streams["accelerometer"] = text_track(listing, "s", columns=3, unit=unit, stream="accelerometer")
            used.append(listing)
        intrinsics = self.config.intrinsics.build() if self.config.intrinsics else None
        return Opened(streams, intrinsics, used, notes)
