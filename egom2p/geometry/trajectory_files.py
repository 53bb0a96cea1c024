"""Text files of trajectories: TUM, KITTI and EuRoC.

Poses (S, 4, 4) are `world_from_cam` (or whatever body the file is about), metres; times (S,) seconds, never
going back (published files do repeat a time here and there; both lines are kept).
Every complaint names file, line, what was found and what was wanted; NaN is refused.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egom2p.geometry.rotations import matrix_from_quaternion, nearest_rotation, quaternion_from_matrix
from egom2p.geometry.trajectories import check_poses, poses_from_parts

_TUM = "timestamp tx ty tz qx qy qz qw"
_KITTI = "the 12 numbers of a row-major 3x4 matrix"
_EUROC = "timestamp [ns],px,py,pz,qw,qx,qy,qz"
_ROTATION_TOLERANCE = 1e-3
FORMATS = ("tum", "kitti", "euroc")


def read_trajectory(path: str | Path, file_format: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Times (S,) seconds (None for KITTI, which has none) and poses (S, 4, 4) of a file in one of FORMATS."""
    if file_format == "tum":
        return read_tum(path)
    if file_format == "euroc":
        return read_euroc(path)
    if file_format == "kitti":
        return None, read_kitti(path)
    raise ValueError(f"trajectory format must be one of {FORMATS}, got {file_format!r}")


def read_tum(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (S,) and poses (S, 4, 4) of a TUM file: lines `timestamp tx ty tz qx qy qz qw`, `#` comments."""
    lines, rows = _read_rows(path, separator=None, num_columns=8, wanted=_TUM)
    _check_times(path, lines, rows[:, 0])
    return rows[:, 0], poses_from_parts(_rotations(path, lines, rows[:, 4:8]), rows[:, 1:4])


def read_euroc(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (S,) and poses (S, 4, 4) of an EuRoC csv; quaternions w first, columns after the eighth are ignored.

    Stamps are nanoseconds in the file; as seconds since 1970 a float64 keeps them to a quarter of a microsecond.
    """
    lines, rows = _read_rows(path, separator=",", num_columns=8, wanted=_EUROC, may_have_more=True)
    times_s = rows[:, 0] * 1e-9
    _check_times(path, lines, times_s)
    return times_s, poses_from_parts(_rotations(path, lines, rows[:, [5, 6, 7, 4]]), rows[:, 1:4])


def read_kitti(path: str | Path) -> np.ndarray:
    """Poses (S, 4, 4) of a KITTI odometry file; the rounding of its matrices is taken out (nearest rotation)."""
    lines, rows = _read_rows(path, separator=None, num_columns=12, wanted=_KITTI)
    matrices = rows.reshape(-1, 3, 4)
    rotations = matrices[:, :, :3]
    error = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
    for index in np.flatnonzero((error > _ROTATION_TOLERANCE) | (np.linalg.det(rotations) < 0))[:1]:
        raise ValueError(f"{path}, line {lines[index]}: the 3x3 part is no rotation matrix (off by {error[index]:.2g})")
    return poses_from_parts(nearest_rotation(rotations), matrices[:, :, 3])


def read_kitti_times(path: str | Path) -> np.ndarray:
    """Times (S,) seconds of the file beside a KITTI trajectory, one per line."""
    lines, rows = _read_rows(path, separator=None, num_columns=1, wanted="one time in seconds")
    _check_times(path, lines, rows[:, 0])
    return rows[:, 0]


def write_tum(path: str | Path, times_s: np.ndarray, world_from_cam: np.ndarray) -> None:
    """Write times (S,) and poses (S, 4, 4) as TUM text; every number reads back as the same float64."""
    poses = _check_writable(times_s, world_from_cam)
    numbers = np.column_stack([times_s, poses[:, :3, 3], quaternion_from_matrix(poses[:, :3, :3])])
    _write_lines(path, f"# {_TUM}", (" ".join(repr(float(number)) for number in row) for row in numbers))


def write_euroc(path: str | Path, times_s: np.ndarray, world_from_cam: np.ndarray) -> None:
    """Write times (S,) and poses (S, 4, 4) as EuRoC csv; times are rounded to nanoseconds."""
    poses = _check_writable(times_s, world_from_cam)
    quaternions = quaternion_from_matrix(poses[:, :3, :3])[:, [3, 0, 1, 2]]
    stamps_ns = [round(float(time_s) * 1e9) for time_s in times_s]
    numbers = np.column_stack([poses[:, :3, 3], quaternions])
    rows = zip(stamps_ns, numbers, strict=True)
    _write_lines(path, f"#{_EUROC}", (",".join([str(ns), *(repr(float(n)) for n in row)]) for ns, row in rows))


def write_kitti(path: str | Path, world_from_cam: np.ndarray) -> None:
    """Write poses (S, 4, 4) as KITTI text (no times)."""
    numbers = check_poses("world_from_cam", world_from_cam)[:, :3].reshape(-1, 12)
    _write_lines(path, None, (" ".join(repr(float(number)) for number in row) for row in numbers))


def _read_rows(
    path: str | Path, *, separator: str | None, num_columns: int, wanted: str, may_have_more: bool = False
) -> tuple[list[int], np.ndarray]:
    """Line numbers and finite numbers (S, num_columns) of all lines but empty ones and `#` comments."""
    lines, rows = [], []
    for line, text in _content_lines(path):
        cells = text.split(separator)
        if len(cells) < num_columns or (len(cells) > num_columns and not may_have_more):
            raise ValueError(f"{path}, line {line}: found {len(cells)} columns, wanted {num_columns}: {wanted}")
        try:
            row = [float(cell) for cell in cells[:num_columns]]
        except ValueError:
            raise ValueError(f"{path}, line {line}: found {text[:80]!r}, wanted numbers: {wanted}") from None
        if not np.all(np.isfinite(row)):
            raise ValueError(
                f"{path}, line {line}: found {text[:80]!r}, wanted finite numbers (no nan or inf): {wanted}"
            )
        lines.append(line)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: found no poses, wanted lines of {wanted}")
    return lines, np.array(rows, dtype=np.float64)


def _content_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: found a binary file, wanted a text file of poses") from None
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip() and not content.lstrip().startswith("#"):
            yield line, content.strip()


def _check_times(path: str | Path, lines: list[int], times_s: np.ndarray) -> None:
    for index in np.flatnonzero(np.diff(times_s) < 0)[:1] + 1:
        earlier_s, time_s = times_s[index - 1 : index + 1].tolist()
        raise ValueError(
            f"{path}, line {lines[index]}: found time {time_s!r} s after {earlier_s!r} s, wanted times in order"
        )


def _rotations(path: str | Path, lines: list[int], quaternions: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(quaternions, axis=1)
    # Printed digits cost at most a few 1e-4; anything else is a swapped column or not a quaternion.
    for index in np.flatnonzero(np.abs(length - 1) > 1e-2)[:1]:
        raise ValueError(
            f"{path}, line {lines[index]}: found a quaternion of length {length[index]:.4g}, wanted length 1"
        )
    return matrix_from_quaternion(quaternions)


def _check_writable(times_s: np.ndarray, world_from_cam: np.ndarray) -> np.ndarray:
    poses = check_poses("world_from_cam", world_from_cam)
    if len(times_s) != len(poses):
        raise ValueError(f"found {len(times_s)} times for {len(poses)} poses, wanted one time per pose")
    if not np.all(np.isfinite(times_s)) or not np.all(np.diff(times_s) >= 0):
        raise ValueError("times must be finite and must not go back")
    return poses


def _write_lines(path: str | Path, header: str | None, lines: Iterator[str]) -> None:
    head = [] if header is None else [header]
    Path(path).write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
