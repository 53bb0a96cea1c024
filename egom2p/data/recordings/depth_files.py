"""Depth of a plain folder: pictures (16-bit, float TIFF, EXR) or arrays, in metres along the camera's axis.

T frames, H, W pixels; 0 is no distance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from egom2p.contracts import FrameSource, Intrinsics, check_shape
from egom2p.data.clips.clip_store import LARGEST_DEPTH_M
from egom2p.data.clips.image_files import IMAGE_SUFFIXES
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.reader_parts import read_npy
from egom2p.data.recordings.recording_settings import SETTINGS_FILE, DepthSettings
from egom2p.data.recordings.track_files import load_npz, named, stamps_in
from egom2p.geometry import TimeUnit, pixel_grid, rays

DEPTH_SUFFIXES = (*IMAGE_SUFFIXES, ".exr")
_PICTURE_METRES_PER_UNIT = 0.001
_USUAL_M = 0.2, 5.0  # of what a head-worn camera sees; beyond, a unit that nobody stated is worth a note
_EXR_NAMES = ("Z", "depth", "Depth", "distance", "Y")


class DepthFrames:
    """Depth in metres of stored frames, scaled as they are read; a FrameSource of (N, H, W) float32.

    frames             stored frames: an array (T, H, W) or rows that are read when asked for, or picture files
    metres_per_unit    of one step of a stored number; None: whole numbers of pictures are millimetres, floats metres
    invalid_values     stored numbers that mean "no depth"; so do all that are not positive and finite
    """

    def __init__(
        self, frames: np.ndarray | Sequence[Any], *, metres_per_unit: float | None, invalid_values: Sequence[float]
    ) -> None:
        self.stored, self._invalid_values = frames, list(invalid_values)
        self._metres_per_unit = metres_per_unit
        first = self._read(0)
        self.height, self.width = first.shape
        self.is_whole = not np.issubdtype(first.dtype, np.floating)  # whole numbers are stored

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.frame(int(index)) for index in indices])

    def frame(self, index: int) -> np.ndarray:
        stored = self._read(index)
        if stored.shape != (self.height, self.width):
            raise ValueError(
                f"{self.stored[index]}: picture of shape {stored.shape}, wanted {(self.height, self.width)} as the "
                "first of its folder"
            )
        usual = 1.0 if np.issubdtype(stored.dtype, np.floating) else _PICTURE_METRES_PER_UNIT
        depth_m = stored.astype(np.float32) * np.float32(self._metres_per_unit or usual)
        is_valid = np.isfinite(depth_m) & (depth_m > 0) & ~np.isin(stored, self._invalid_values)
        return np.where(is_valid, depth_m, np.float32(0.0))

    def _read(self, index: int) -> np.ndarray:
        stored = self.stored[index]
        return read_depth_picture(stored) if isinstance(stored, Path) else np.asarray(stored)


class DepthVideo(VideoFile):
    """Depth in metres of a video of one channel (FFV1 and the like); a FrameSource of (N, H, W) float32.

    metres    (V,) float32, what each stored number means, 0 for no distance: 65536 of 16 bits, 4096 of 12
    Raises ValueError for a video of other bits or of colours, whose numbers are no distances.
    """

    def __init__(self, path: Path, metres: np.ndarray) -> None:
        super().__init__(path)
        self._metres, self._pixels = metres, {1 << 16: "gray16le", 1 << 12: "gray12le"}[len(metres)]
        self.read(np.zeros(1, np.int64))

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = np.empty((len(indices), self.stored_height, self.stored_width), np.float32)
        for position in np.argsort(indices, kind="stable"):
            frames[position] = self._frame(int(indices[position]))
        return frames

    def _upright(self, frame: Any, row: int) -> np.ndarray:
        if frame.format.name != self._pixels:
            raise ValueError(f"{self.path}: found pictures of {frame.format.name}, wanted {self._pixels[4:6]}-bit grey")
        if frame.is_corrupt or (frame.width, frame.height) != (self.stored_width, self.stored_height):
            raise ValueError(f"{self.path}: frame {row} of {len(self)} is damaged, or of another size")
        plane = np.frombuffer(frame.planes[0], "<u2").reshape(frame.height, frame.planes[0].line_size // 2)
        return self._metres[np.minimum(plane[:, : frame.width], len(self._metres) - 1)]


def metres_of_steps(metres_per_unit: float) -> np.ndarray:
    """Metres (65536,) float32 of 16-bit numbers in even steps; 0 and 65535 are no distance."""
    metres = np.arange(1 << 16, dtype=np.float32) * np.float32(metres_per_unit)
    metres[-1] = 0.0
    return metres


class DepthAlongAxis:
    """A FrameSource of depth along the optical axis, made from distances along each pixel's ray."""

    def __init__(self, distances: FrameSource, intrinsics: Intrinsics) -> None:
        self._distances = distances
        self.height, self.width = distances.height, distances.width
        own = intrinsics.resized(self.width, self.height)
        directions, is_seen = rays(pixel_grid(own), own)
        unit_z = directions[..., 2] / np.linalg.norm(directions, axis=-1)
        self._z_per_metre = np.where(is_seen, unit_z, 0.0).reshape(self.height, self.width).astype(np.float32)

    def __len__(self) -> int:
        return len(self._distances)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._distances.read(indices) * self._z_per_metre


def open_depth(
    path: Path, pictures: Sequence[Path], wanted: DepthSettings, intrinsics: Intrinsics | None
) -> tuple[Any, np.ndarray | None, TimeUnit | None, tuple[str, ...]]:
    """A FrameSource of depth in metres, the stamps (T,) that stand beside it in an npz, with their unit, and notes.

    path       a folder, whose pictures are `pictures`, or an array file
    Raises ValueError naming the file, and what is missing to know its unit.
    """
    stamps, unit = None, wanted.time_unit
    if path.is_dir():
        frames: Any = list(pictures)
    else:
        frames, stamps, unit = _load_array(path, unit)
        if np.issubdtype(frames.dtype, np.integer) and wanted.metres_per_unit is None:
            raise ValueError(
                f"{path}: found whole numbers ({frames.dtype}), wanted depth.metres_per_unit in {SETTINGS_FILE} "
                "(0.001: millimetres)"
            )
    source = DepthFrames(frames, metres_per_unit=wanted.metres_per_unit, invalid_values=wanted.invalid_values)
    # The first frame with any distance: sensors begin with empty ones.
    seen = next((depth_m[depth_m > 0] for depth_m in map(source.frame, range(len(source))) if depth_m.any()), None)
    if seen is not None and (usual_m := float(np.median(seen))) > LARGEST_DEPTH_M:
        raise ValueError(
            f"{path}: found depth of {usual_m:.6g} m (median of a frame), wanted below {LARGEST_DEPTH_M:g} m; say "
            "depth.metres_per_unit (0.001: millimetres)"
        )
    notes: tuple[str, ...] = ()
    is_listed = path.is_dir() and named(path.parent, f"{path.name.lower()}.txt").is_file()
    if wanted.metres_per_unit is None and seen is not None and source.is_whole:
        if is_listed or not _USUAL_M[0] <= usual_m <= _USUAL_M[1]:
            listed = f"; {path.name}.txt is TUM RGB-D's listing, whose depth is 1/5000 m (0.0002)" * is_listed
            notes = (
                f"{path.name}: nothing says its unit, read as millimetres (its first frame is {usual_m:.3g} m away); "
                f"depth.metres_per_unit says another{listed}",
            )
    if wanted.measured_along == "ray":
        if intrinsics is None:
            raise ValueError(f"{path.parent / SETTINGS_FILE}: depth along the ray needs intrinsics, found none")
        return DepthAlongAxis(source, intrinsics), stamps, unit, notes
    return source, stamps, unit, notes


def _load_array(path: Path, unit: TimeUnit | None) -> tuple[np.ndarray, np.ndarray | None, TimeUnit | None]:
    if path.suffix.lower() == ".npy":
        array, stamps = read_npy(path, mmap_mode="r"), None
    else:
        arrays = load_npz(path)
        name = next((name for name in ("depth", "arr_0") if name in arrays), None)
        if name is None:
            raise ValueError(f"{path}: found arrays {sorted(arrays)}, wanted `depth` (T, H, W)")
        array = arrays[name]
        stamps, unit = stamps_in(arrays, path, unit)
    check_shape(f"{path}: depth", array, "t h w")
    if stamps is not None:
        check_shape(f"{path}: its times", stamps, "t", t=len(array))
    if not len(array) or not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(f"{path}: found {len(array)} frames of {array.dtype}, wanted whole or real numbers")
    return array, stamps, unit


def read_depth_picture(path: Path) -> np.ndarray:
    """Stored numbers (H, W) of one picture. Raises ValueError naming the file."""
    if path.suffix.lower() == ".exr":
        return _read_exr(path)
    try:
        with Image.open(path) as image:
            stored = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error
    if stored.ndim != 2 or stored.dtype in (np.uint8, np.bool_):
        kind = f"{stored.shape[2]} channels" if stored.ndim == 3 else "8"
        raise ValueError(f"{path}: depth needs 16 bits a pixel in one channel, found {kind}")
    return stored


def _read_exr(path: Path) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError:
        raise ValueError(f"{path}: EXR is read by the package OpenEXR: pip install 'egom2p[formats]'") from None
    try:
        channels = OpenEXR.File(str(path), separate_channels=True).channels()
        pixels = {name: np.array(channel.pixels) for name, channel in channels.items()}
    except Exception as error:  # the binding raises RuntimeError and its own kinds
        raise ValueError(f"{path}: not a readable EXR: {error}") from error
    colours = [pixels[name] for name in ("R", "G", "B") if name in pixels]
    if len(colours) == 3 and all(np.array_equal(colours[0], other, equal_nan=True) for other in colours[1:]):
        pixels = {"Y": colours[0]}  # a grey picture written as colour
    name = next((name for name in _EXR_NAMES if name in pixels), next(iter(pixels)) if len(pixels) == 1 else None)
    if name is None:
        raise ValueError(f"{path}: found channels {sorted(pixels)}, wanted one of {list(_EXR_NAMES)}")
    return pixels[name]
