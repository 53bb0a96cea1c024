"""Parts that readers of several formats are made of: numbers and rows of files, streams, lenses, joined frames.

T samples, N frames asked for, H, W pixels.
"""

import json
import os
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from egom2p.contracts import FrameSource, Intrinsics, Stream
from egom2p.data.clips.image_files import RgbImages, are_dated, frame_numbers, image_sequence
from egom2p.data.clips.video_files import VideoFile, open_video
from egom2p.data.recordings.track_files import check_times, clock_s, named_file, read_text, visible
from egom2p.geometry import (
    TimeUnit,
    check_camera_model,
    check_poses,
    check_whole_picture,
    interpolate_poses,
    inverse_poses,
    is_inside,
    matrix_from_quaternion,
    number_from_text,
    pixel_grid,
    poses_from_parts,
    project,
    stamps_from_text,
    unproject,
)

# Of the extra `formats`: what may be imported by name.
Package = Literal["google.protobuf", "h5py", "liblzfse", "mcap", "mcap_ros2", "msgpack", "pyarrow"]
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_LENSES = {
    **dict.fromkeys(("radial-tangential", "radtan", "plumb_bob", "rational_polynomial", "radial"), "opencv"),
    **dict.fromkeys(("equidistant", "kannala_brandt", "fisheye"), "kannala_brandt"),
}


def read_numbers(path: Path, shape: tuple[int, ...] | None = None, *, delimiter: str | None = None) -> np.ndarray:
    """Numbers of a text file; all of them in `shape` where given, else as rows. Raises ValueError naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is refused below
            found = np.loadtxt(path, delimiter=delimiter, ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a file of numbers: {error}") from None
    if shape is not None and found.size != np.prod(shape):
        raise ValueError(f"{path}: found {found.size} numbers, wanted {int(np.prod(shape))}")
    if not found.size:
        raise ValueError(f"{path}: found no numbers")
    return found if shape is None else found.reshape(shape)


def read_npy(path: Path, *, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """One array of numbers, nothing unpickled. Raises ValueError naming the file."""
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as error:  # numpy raises many kinds on foreign bytes
        raise ValueError(f"{path}: not a readable array file: {error}") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file: {error}") from None


def numbered_frames(folder: Path, suffixes: Sequence[str], rate_hz: float) -> tuple[list[Path], np.ndarray]:
    """Pictures of a folder and their times (T,): the number in a name over the rate. ValueError: names have none."""
    paths = image_sequence(folder, suffixes)
    numbers = frame_numbers(paths)
    if numbers is None or are_dated(paths):
        raise ValueError(f"{folder}: found names like {paths[0].name}, wanted names that differ by their number")
    return paths, numbers / rate_hz


def stamped_rows(path: Path, unit: TimeUnit, *, columns: int, stream: str = "") -> tuple[np.ndarray, list[list[str]]]:
    """Times (T,) seconds and the cells after the time of a text table; comments and a header of words are passed over.

    Cells stand between commas where there are any, else between blanks; `columns` are the fewest, the time included.
    Raises ValueError naming file and line.
    """
    stamps, rows, lines = [], [], []
    for line, cells in _text_rows(path):
        if len(cells) < columns or not _is_number(cells[0]):
            raise ValueError(f"{path}, line {line}: found {cells}, wanted a time and {columns - 1} more columns")
        stamps.append(cells[0])
        rows.append(cells[1:])
        lines.append(line)
    return clock_s(stamps_from_text(stamps), unit, path, lines=lines, stream=stream), rows


def _text_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Lines and cells of a table, between commas or blanks; comments and a header of words are passed over."""
    lines = [(n, text) for n, text in enumerate(read_text(path).splitlines(), start=1) if text.strip()]
    held = [(n, text.split(",") if "," in text else text.split()) for n, text in lines if text.lstrip()[0] != "#"]
    rows = [(n, [cell.strip() for cell in cells]) for n, cells in held]
    return rows[1:] if rows and not _is_number(rows[0][1][0]) else rows


def table_of_numbers(path: Path) -> np.ndarray:
    """All cells (T, C) of such a table. Raises ValueError naming the row that is no numbers, or has others than C."""
    rows = [cells for _, cells in _text_rows(path)]
    if not rows:
        raise ValueError(f"{path}: found no rows of numbers")
    return numbers_of(path, rows, slice(None))


def text_track(path: Path, time_unit: TimeUnit, *, columns: int, unit: str, stream: str) -> Stream:
    """The first `columns` numbers after the time as a track; see `stamped_rows`."""
    times_s, rows = stamped_rows(path, time_unit, columns=columns + 1, stream=stream)
    return track_stream(times_s, numbers_of(path, rows, slice(0, columns)), unit, where=path)


def numbers_of(path: Path, rows: Sequence[Sequence[str]], columns: slice) -> np.ndarray:
    """Some columns of rows of text as (T, C) float64. Raises ValueError naming the row."""
    try:
        return np.array([[number_from_text(cell) for cell in row[columns]] for row in rows], dtype=np.float64)
    except ValueError:
        wanted = len(rows[0][columns])
        for number, cells in enumerate((row[columns] for row in rows), start=1):
            if len(cells) != wanted or not all(map(_is_number, cells)):
                raise ValueError(f"{path}, sample {number}: found {cells}, wanted {wanted} numbers") from None
        raise


def track_stream(
    times_s: np.ndarray, values: np.ndarray, unit: str, *, where: Path | str, is_valid: np.ndarray | None = None
) -> Stream:
    """A track (T, ...) on its clock; samples with a number that is not finite are invalid and become 0.

    Raises ValueError naming the file and row where times do not increase.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(times_s) != len(values):
        raise ValueError(f"{where}: found {len(times_s)} times for {len(values)} samples of {unit}, wanted one each")
    check_times(times_s, where, "sample")
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    is_valid = finite if is_valid is None else finite & is_valid
    return Stream(np.where(is_valid.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0), is_valid, times_s, unit)


def pose_stream(
    times_s: np.ndarray, world_from_cam: np.ndarray, *, where: Path | str, is_valid: np.ndarray | None = None
) -> Stream:
    """Camera poses (T, 4, 4), OpenCV axes; a pose that is not finite is invalid and becomes the identity.

    Raises ValueError naming the file where a pose is no rigid motion.
    """
    stream = track_stream(times_s, world_from_cam, "world_from_cam", where=where, is_valid=is_valid)
    poses = np.where(stream.is_valid[:, None, None], world_from_cam, np.eye(4))
    return replace(stream, values=check_poses(str(where), poses))


def frame_stream(frames: FrameSource, times_s: np.ndarray, unit: str, *, where: Path | str) -> Stream:
    """Pictures on their clock. Raises ValueError when there is not one time for each, or times do not increase."""
    if len(frames) != len(times_s):
        raise ValueError(f"{where}: found {len(frames)} pictures, wanted {len(times_s)}, one for each time")
    check_times(times_s, where, "picture")
    return Stream(frames, np.ones(len(frames), bool), np.asarray(times_s, dtype=np.float64), unit)


def picture_stream(paths: Sequence[Path], times_s: np.ndarray, *, where: Path | str) -> Stream:
    """Picture files on their clock, as stored, as their poses are. Raises ValueError naming one that is not there."""
    return frame_stream(RgbImages(present(paths, where=where), as_stored=True), times_s, "uint8", where=where)


def present(paths: Sequence[Path], *, where: Path | str) -> Sequence[Path]:
    """The paths themselves. Raises ValueError naming the first that is no file, and the listing `where`."""
    if missing := next((path for path in paths if not path.is_file()), None):
        raise ValueError(f"{missing}: no such picture; {Path(where).name} names it")
    return paths


def listed_pictures(listing: Path, folder: Path, *, stream: str) -> tuple[np.ndarray, list[Path], tuple[str, ...]]:
    """Times (T,), files and a note of TUM RGB-D's listing: lines of a time in seconds and a file below `folder`.

    Raises ValueError naming the line.
    """
    rows = [(line, text.split(maxsplit=1)) for line, text in enumerate(read_text(listing).splitlines(), start=1)]
    rows = [(line, row) for line, row in rows if row and not row[0].startswith("#")]
    for line, row in rows:
        if len(row) != 2 or not _is_number(row[0]):
            raise ValueError(f"{listing}, line {line}: found {row}, wanted a time in seconds and a file below {folder}")
    stamps, lines = stamps_from_text([row[0] for _, row in rows]), [line for line, _ in rows]
    times_s = clock_s(stamps, "s", listing, lines=lines, stream=stream)
    paths = [named_file(folder, row[1].strip(), where=f"{listing}, line {line}") for line, row in rows]
    present(paths, where=listing)
    return times_s, paths, unlisted(listing, paths)


def unlisted(listing: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """A note of how many pictures lie beside those that a listing names; none where it names all."""
    known, suffixes = set(paths), {path.suffix for path in paths}
    beside = [path for folder in {path.parent for path in paths} for path in visible(folder)]
    count = sum(path not in known and path.suffix in suffixes for path in beside)
    note = f"{listing.name} names {len(known)} pictures, {count} more lie beside them and are left out"
    return (note,) if count else ()


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
    where: Path | str,
    model: str,
    distortion: Sequence[float],
    size: Sequence[int],
    camera: np.ndarray | Sequence[float],
) -> Intrinsics:
    """Intrinsics of a named lens model, of the width and height `size`.

    camera   3x3 matrix, or fx, fy, cx, cy, with pixel (0, 0) the centre of the first pixel
    Raises ValueError for a model or number of parameters that `geometry.cameras` does not know, and for a camera that
    cannot be of a picture of this size.
    """
    distortion = tuple(float(value) for value in distortion)
    known = _LENSES.get(model.lower(), model)
    # Without bend a fisheye is still none: its angle goes with the radius, not its tangent.
    known = "pinhole" if known == "opencv" and not any(distortion) else known
    numbers = np.asarray(camera, dtype=np.float64)
    numbers = numbers[[0, 1, 0, 1], [0, 1, 2, 2]] if numbers.shape == (3, 3) else numbers.ravel()
    if numbers.size != 4:
        raise ValueError(f"{where}: found a camera of {numbers.size} numbers, wanted fx, fy, cx, cy or a 3x3 matrix")
    fx, fy, cx, cy = numbers.tolist()
    found = Intrinsics(*map(int, size), fx, fy, cx, cy, known, () if known == "pinhole" else distortion)
    try:
        check_camera_model(found)
        check_whole_picture(found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return found


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
        self.is_as_stored = all(getattr(source, "is_as_stored", True) for source in self._sources)
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
    return frame_stream(JoinedFrames(parts, notes=notes), joined_s, "uint8", where=videos[0])


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


def needs(package: Package, path: Path) -> Any:
    """An optional package. Raises ValueError saying which, and for what file, where it is not installed."""
    assert package in get_args(Package)
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"{path}: is read by the package {package}: pip install 'egom2p[formats]'") from None


def _is_number(cell: str) -> bool:
    try:
        number_from_text(cell)
    except ValueError:
        return False
    return True


_STEP_PX, _MOVED_M, _PAIR = 8, 0.02, 30


def check_pose_direction(streams: Mapping[str, Stream], intrinsics: Intrinsics, *, where: Path) -> None:
    """Raise ValueError when depth fits the inverse of the poses much better than the poses.

    The first depth picture is seen from a later one, at most 30 on, from which the camera has moved the most.
    """
    depth, camera = streams["depth"], streams["camera"]
    rows = np.arange(min(len(depth.values), _PAIR + 1))
    poses, is_known = interpolate_poses(
        camera.times_s, camera.values, depth.times_s[rows], max_gap_s=0.2, is_valid=camera.is_valid
    )
    moved_m = np.where(is_known & is_known[0], np.linalg.norm(poses[:, :3, 3] - poses[0, :3, 3], axis=1), 0.0)
    last = int(np.argmax(moved_m))
    if moved_m[last] < _MOVED_M:
        return
    first_m, last_m = depth.values.read(np.array([0, last]))
    own = intrinsics.resized(first_m.shape[1], first_m.shape[0])
    pixels = pixel_grid(own)[::_STEP_PX, ::_STEP_PX]
    points, is_valid = unproject(pixels, first_m[::_STEP_PX, ::_STEP_PX], own)

    def error_m(last_from_first: np.ndarray) -> float:
        seen = points[is_valid] @ last_from_first[:3, :3].T + last_from_first[:3, 3]
        landed, is_seen = project(seen, own)
        is_seen &= is_inside(landed, own)
        u, v = np.round(landed[is_seen]).astype(int).T
        there_m = last_m[np.clip(v, 0, own.height - 1), np.clip(u, 0, own.width - 1)]
        differs_m = np.abs(seen[is_seen, 2] - there_m)[there_m > 0]
        return float(np.median(differs_m)) if len(differs_m) else np.inf

    as_read_m = error_m(inverse_poses(poses[last]) @ poses[0])
    inverted_m = error_m(poses[last] @ inverse_poses(poses[0]))
    if as_read_m > 2 * inverted_m + 0.01:
        raise ValueError(
            f"{where}: depth of pictures 0 and {last} differs by {as_read_m:.3f} m with the poses and by "
            f"{inverted_m:.3f} m with their inverse; wanted poses in the direction its format documents"
        )
