"""TUM RGB-D folders (and Bonn's): `rgb.txt`, `depth.txt`, `groundtruth.txt`, `accelerometer.txt`.

Times are seconds; each stream keeps its own. Poses are of the colour camera (world_from_cam, OpenCV axes, metres),
quaternions x, y, z, w; depth is 16 bits, 5000 a metre, along z, of the colour picture. Intrinsics are not in the
files: `source.intrinsics`. Format: the benchmark's own page; real trajectories confirm the poses' layout.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import numbers_of, pictures, poses, stamped_rows, track
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, folders_with
from egom2p.data.recordings.recording_settings import IntrinsicsSettings
from egom2p.geometry import read_tum


@strict
class TumRgbdSource(FolderSource):
    """TUM RGB-D folders."""

    kind: Literal["tum_rgbd"]
    intrinsics: IntrinsicsSettings | None = None  # of the colour camera, the same for all recordings of the root
    units_per_metre: float = 5000.0

    def __post_init__(self) -> None:
        if self.units_per_metre <= 0:
            raise ValueError(f"units_per_metre must be positive, got {self.units_per_metre}")


class TumRgbdReader(FormatReader):
    source, what = TumRgbdSource, "TUM RGB-D folders"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "rgb.txt", "groundtruth.txt", depth=2) or folders_with(
            root, "rgb.txt", "depth.txt", depth=2
        )

    def open(self, name: str, path: Path) -> tuple[Mapping[str, Stream], Intrinsics | None, Iterable[Path]]:
        rgb_s, rgb = _listed(path, "rgb")
        streams = {"rgb": pictures(rgb, rgb_s)}
        used = [path / "rgb.txt", *rgb]
        if (path / "depth.txt").is_file():
            depth_s, files = _listed(path, "depth")
            frames = DepthFrames(files, metres_per_unit=1 / self.config.units_per_metre, invalid_values=(0,))
            streams["depth"] = Stream(frames, np.ones(len(files), bool), depth_s, "m")
            used += [path / "depth.txt", *files]
        if (trajectory := path / "groundtruth.txt").is_file():
            times_s, world_from_cam = read_tum(trajectory)
            first = np.diff(times_s, prepend=-np.inf) > 0
            streams["camera"] = poses(str(trajectory), world_from_cam[first], times_s[first])
            used.append(trajectory)
        if (listing := path / "accelerometer.txt").is_file():
            times_s, rows = stamped_rows(listing, "s", columns=4, stream="accelerometer")
            values = numbers_of(listing, rows, slice(0, 3))
            streams["accelerometer"] = track(values, times_s, "m/s^2 xyz; axes of the sensor")
            used.append(listing)
        return streams, self.config.intrinsics.build() if self.config.intrinsics else None, used


def _listed(folder: Path, name: str) -> tuple[np.ndarray, list[Path]]:
    listing = folder / f"{name}.txt"
    times_s, rows = stamped_rows(listing, "s", columns=2, stream=name)
    files = [folder / row[0] for row in rows]
    if missing := next((path for path in files if not path.is_file()), None):
        raise ValueError(f"{missing}: no such picture; {listing.name} names it")
    return times_s, files
