"""Parts that readers of several formats are made of: stamped text rows, frames joined from parts, streams of poses.

T samples, N frames asked for, H, W pixels.
"""

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.image_files import RgbImages
from egom2p.data.clips.video_files import VideoFile, open_video
from egom2p.data.recordings.track_files import clock_s, read_text
from egom2p.geometry import (
    TimeUnit,
    check_camera_model,
    check_poses,
    matrix_from_quaternion,
    poses_from_parts,
    stamps_from_text,
)

OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_LENSES = {
    **dict.fromkeys(("radial-tangential", "radtan", "plumb_bob", "rational_polynomial", "radial"), "opencv"),
    **dict.fromkeys(("equidistant", "kannala_brandt", "fisheye"), "kannala_brandt"),
}


def stamped_rows(path: Path, unit: TimeUnit, *, columns: int, stream: str = "") -> tuple[np.ndarray, list[list[str]]]:
    """Times (T,) seconds and the cells after the time of a text table; comments and a header of words are passed over.

    Cells stand between commas where there are any, else between blanks; `columns` are the fewest, the time included.
    Raises ValueError naming file and line.
    """
    stamps, rows, row_names = [], [], []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        cells = [cell.strip() for cell in (text.split(",") if "," in text else text.split())]
        if not rows and not _is_number(cells[0]):
            continue
        if len(cells) < columns or not _is_number(cells[0]):
            raise ValueError(f"{path}, line {line}: found {text[:80]!r}, wanted a time and {columns - 1} more columns")
        stamps.append(cells[0])
        rows.append(cells[1:])
        row_names.append(f"{path}, line {line}")
    return clock_s(stamps_from_text(stamps), unit, path, row_names, stream=stream), rows


def numbers_of(path: Path, rows: Sequence[Sequence[str]], columns: slice) -> np.ndarray:
    """Some columns of rows of text as (T, C) float64. Raises ValueError naming the row."""
    try:
        return np.array([row[columns] for row in rows], dtype=np.float64)
    except ValueError:
        for number, row in enumerate(rows, start=1):
            if not all(map(_is_number, row[columns])):
                raise ValueError(f"{path}, sample {number}: found {row[columns]}, wanted numbers") from None
        raise ValueError(f"{path}: found rows of different lengths, wanted a table") from None


def track(values: np.ndarray, times_s: np.ndarray, unit: str, is_valid: np.ndarray | None = None) -> Stream:
    """A stream of values (T, ...); a sample that is not finite is invalid, and 0."""
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    is_valid = finite if is_valid is None else finite & is_valid
    return Stream(np.where(is_valid.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0), is_valid, times_s, unit)


def poses(where: str, world_from_cam: np.ndarray, times_s: np.ndarray, is_valid: np.ndarray | None = None) -> Stream:
    """A stream of camera poses (T, 4, 4), metres, OpenCV axes; those that are not finite are invalid.

    Raises ValueError where a valid one is no rigid motion.
    """
    finite = np.isfinite(world_from_cam).all(axis=(1, 2))
    is_valid = finite if is_valid is None else finite & is_valid
    filled = np.where(is_valid[:, None, None], world_from_cam, np.eye(4))
    return Stream(check_poses(where, filled), is_valid, times_s, "world_from_cam")


def poses_from_rows(where: str, positions: np.ndarray, quaternions_xyzw: np.ndarray) -> np.ndarray:
    """Matrices (T, 4, 4) of positions (T, 3) and quaternions (T, 4); nan where a quaternion is not of length 1.

    Writers leave the quaternion 0 where tracking was lost. Raises ValueError when none is of length 1.
    """
    lengths = np.linalg.norm(quaternions_xyzw, axis=1)
    is_unit = np.abs(lengths - 1) < 1e-2
    if not is_unit.any():
        raise ValueError(f"{where}: found quaternions of length {lengths[:3].tolist()}, wanted length 1")
    usable = np.where(is_unit[:, None], quaternions_xyzw, [0.0, 0.0, 0.0, 1.0])
    matrices = poses_from_parts(matrix_from_quaternion(usable), positions)
    matrices[~is_unit] = np.nan
    return matrices


def lens(
    where: str, model: str, distortion: Sequence[float], size: tuple[int, int], f_c: Sequence[float]
) -> Intrinsics:
    """Intrinsics of a named lens model; `f_c` is fx, fy, cx, cy with pixel (0, 0) the centre of the first pixel.

    Raises ValueError for a model or number of parameters that `geometry.cameras` does not know.
    """
    distortion = tuple(float(value) for value in distortion)
    known = "pinhole" if not any(distortion) else _LENSES.get(model.lower(), model)
    fx, fy, cx, cy = map(float, f_c)
    camera = Intrinsics(*map(int, size), fx, fy, cx, cy, known, () if known == "pinhole" else distortion)
    try:
        check_camera_model(camera)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return camera


class JoinedFrames:
    """Frames of one or several parts behind one another, or some rows of a file; a FrameSource.

    parts    frame sources of one picture size, and which of their rows to take (None: all)
    """

    def __init__(self, parts: Sequence[tuple[Any, np.ndarray | None]], *, notes: Sequence[str] = ()) -> None:
        self._sources = [source for source, _ in parts]
        rows = [np.arange(len(source)) if rows is None else np.asarray(rows) for source, rows in parts]
        self._source_of = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        self._rows = np.concatenate(rows)
        sizes = {(source.width, source.height) for source in self._sources}
        if len(sizes) != 1:
            raise ValueError(f"found parts of a video of sizes {sorted(sizes)}, wanted one size")
        ((self.width, self.height),) = sizes
        own_notes = [note for source in self._sources for note in getattr(source, "notes", ())]
        self.notes = tuple(dict.fromkeys([*own_notes, *notes]))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"frames {indices.min()}..{indices.max()} of {len(self)}")
        numbers, rows = self._source_of[indices], self._rows[indices]
        frames: np.ndarray | None = None
        for number in np.unique(numbers):
            mine = numbers == number
            read = self._sources[number].read(rows[mine])
            frames = np.empty((len(indices), *read.shape[1:]), read.dtype) if frames is None else frames
            frames[mine] = read
        return np.empty((0, self.height, self.width, 3), np.uint8) if frames is None else frames


def video_with_times(videos: Sequence[Path], times_s: Sequence[np.ndarray]) -> Stream:
    """Video files, one behind the other, with the times (T,) that stand beside each.

    Recorders of glasses cut a video before its last stamps: the shorter rules, and a note says so. Raises ValueError
    when a file has more frames than times, or times do not increase.
    """
    parts, kept, notes = [], [], []
    for path, own_times_s in zip(videos, times_s, strict=True):
        video: VideoFile = open_video(path)
        if len(video) > len(own_times_s):
            raise ValueError(f"{path}: found {len(video)} frames, wanted {len(own_times_s)} as there are times")
        if len(video) < len(own_times_s):
            notes.append(f"{path.name}: {len(own_times_s) - len(video)} times at the end have no frame")
        parts.append((video, None))
        kept.append(own_times_s[: len(video)])
    joined_s = np.concatenate(kept)
    if (np.diff(joined_s) <= 0).any():
        row = int(np.argmax(np.diff(joined_s) <= 0)) + 1
        raise ValueError(f"{videos[0]}: frame {row} is at {joined_s[row]}, after {joined_s[row - 1]}; must increase")
    return Stream(JoinedFrames(parts, notes=notes), np.ones(len(joined_s), bool), joined_s, "uint8")


def copied_video(content: bytes, where: str) -> VideoFile:
    """A video that lies inside another file, copied into one of its own, which goes when the object does."""
    handle, name = tempfile.mkstemp(suffix=".mp4")
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
    try:
        video = open_video(name)
    except ValueError as error:
        os.unlink(name)
        raise ValueError(str(error).replace(name, where)) from error
    weakref.finalize(video, _remove, name, os.getpid())
    return video


def _remove(name: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked worker shares the file and must leave it
        Path(name).unlink(missing_ok=True)


def pictures(paths: Sequence[Path], times_s: np.ndarray) -> Stream:
    """Picture files with their times (T,). Raises ValueError naming the first that is not there."""
    if missing := next((path for path in paths if not path.is_file()), None):
        raise ValueError(f"{missing}: no such picture, wanted {len(paths)} as listed")
    return Stream(RgbImages(paths), np.ones(len(paths), bool), times_s, "uint8")


def sorted_samples(times_s: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rows (T',) of unsorted samples in order of time; of samples at the same time the one of the largest weight."""
    order = np.lexsort((-weight, times_s))
    return order[np.diff(times_s[order], prepend=-np.inf) > 0]


def needs(package: str, path: Path) -> Any:
    """An optional package. Raises ValueError saying which, and for what file, where it is not installed."""
    try:
        return __import__(package)
    except ImportError:
        raise ValueError(f"{path}: is read by the package {package}: pip install 'egom2p[formats]'") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
