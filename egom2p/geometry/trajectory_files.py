"""Text files of trajectories: TUM, KITTI and EuRoC.

Poses (S, 4, 4) are `world_from_cam` (or whatever body the file is about), metres; times (S,) seconds, never
going back (published files do repeat a time here and there; both lines are kept).
A header that names the columns (`# timestamp tx ty tz qw qx qy qz`, `timestamp [ns],p_RS_R_x [m],...`) is obeyed,
whatever the order; without one the columns are the format's.
Every complaint names file, line, what was found and what was wanted; NaN is refused.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egom2p.geometry.clocks import (
    TimeUnit,
    check_clock,
    number_from_text,
    seconds_from_stamps,
    stamps_from_text,
    stated_unit,
)
from egom2p.geometry.poses import (
    check_poses,
    matrix_from_quaternion,
    nearest_rotation,
    poses_from_parts,
    quaternion_from_matrix,
)

_TUM = "timestamp tx ty tz qx qy qz qw"
_KITTI = "the 12 numbers of a row-major 3x4 matrix"
_EUROC = "timestamp [ns],px,py,pz,qw,qx,qy,qz"
_ROTATION_TOLERANCE = 1e-3
FORMATS = ("tum", "kitti", "euroc")

_COLUMNS = ("time", "px", "py", "pz", "qx", "qy", "qz", "qw")
_TUM_ORDER, _EUROC_ORDER = (0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 5, 6, 7, 4)
_TIME_WORDS = {"timestamp", "timestamps", "time", "times", "stamp", "t"}
_POSITION_WORDS = {"t", "p", "pos", "position", "trans", "translation", "loc", "location"}
_QUATERNION_WORDS = {"q", "quat", "quaternion", "r", "rot", "rotation", "orientation", "ori", "attitude"}
_ANGLES = {"roll", "pitch", "yaw"}
_METRES = {"m", "meter", "meters", "metre", "metres"}
_SHORT = re.compile(r"^(pos|position|rot|quat|[tpqr])([xyzw])$")
# Columns beside the pose: EuRoC's velocity and biases, and what others add.
_OTHER_WORDS = {"velocity", "vel", "acceleration", "acc", "gyro", "gravity", "angular", "linear", "bias", "omega"}


class _Columns(NamedTuple):
    """Where the eight numbers of a pose lie in a row, how wide rows are (None: at least eight), the time's name."""

    order: tuple[int, ...]
    width: int | None
    time_name: str = ""


def read_trajectory(
    path: str | Path, file_format: str, *, time_unit: TimeUnit | None = None, offset_s: float = 0.0, say: str = ""
) -> tuple[np.ndarray | None, np.ndarray]:
    """Times (S,) seconds (None for KITTI, which has none) and poses (S, 4, 4) of a file in one of FORMATS.

    time_unit   by default what the header says, else the format's: seconds, EuRoC nanoseconds
    offset_s    added to the times
    say         the setting that states the unit, for the message about times that cannot be meant
    """
    if file_format == "tum":
        return read_tum(path, time_unit=time_unit, offset_s=offset_s, say=say)
    if file_format == "euroc":
        return read_euroc(path, time_unit=time_unit, offset_s=offset_s, say=say)
    if file_format == "kitti":
        return None, read_kitti(path)
    raise ValueError(f"trajectory format must be one of {FORMATS}, got {file_format!r}")


def read_tum(
    path: str | Path, *, time_unit: TimeUnit | None = None, offset_s: float = 0.0, say: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Times (S,) and poses (S, 4, 4) of a TUM file: lines `timestamp tx ty tz qx qy qz qw`, `#` comments."""
    columns = _Columns(_TUM_ORDER, 8)
    return _read_poses(path, columns, _TUM, given=time_unit, usual="s", offset_s=offset_s, say=say)


def read_euroc(
    path: str | Path, *, time_unit: TimeUnit | None = None, offset_s: float = 0.0, say: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Times (S,) and poses (S, 4, 4) of an EuRoC csv; quaternions w first, columns after the eighth are ignored.

    Stamps are nanoseconds in the file; as seconds since 1970 a float64 keeps them to an eighth of a microsecond.
    """
    columns = _Columns(_EUROC_ORDER, None)
    return _read_poses(path, columns, _EUROC, given=time_unit, usual="ns", offset_s=offset_s, say=say)


def _read_poses(
    path: str | Path,
    columns: _Columns,
    wanted: str,
    *,
    given: TimeUnit | None,
    usual: TimeUnit,
    offset_s: float,
    say: str,
) -> tuple[np.ndarray, np.ndarray]:
    header, content = _split_header(path)
    if content and header:
        columns = _named_columns(path, header, num_columns=len(_cells(content[0][1]))) or columns
    if columns.width is None and any("," not in text for _, text in content[:1]):
        line, text = content[0]
        raise ValueError(f"{path}, line {line}: found {text[:80]!r}, wanted columns between commas: {wanted}")
    lines, stamps, rows = [], [], []
    for line, text in content:
        cells = _cells(text)
        if len(cells) < 8 or (columns.width is not None and len(cells) != columns.width):
            raise ValueError(f"{path}, line {line}: found {len(cells)} columns, wanted {columns.width or 8}: {wanted}")
        time, *numbers = (cells[position] for position in columns.order)
        rows.append(_finite_numbers(path, line, text, [time, *numbers], wanted)[1:])
        lines.append(line)
        stamps.append(time)
    if not rows:
        raise ValueError(f"{path}: found no poses, wanted lines of {wanted}")
    times = stamps_from_text(stamps)
    _check_times(path, lines, times)
    unit = stated_unit(columns.time_name, given, where=str(path))
    check_clock(times, unit or usual, where=str(path), say=say)
    values = np.array(rows, dtype=np.float64)
    poses = poses_from_parts(_rotations(path, lines, values[:, 3:7]), values[:, :3])
    return seconds_from_stamps(times, unit or usual, offset_s=offset_s), poses


def read_kitti(path: str | Path) -> np.ndarray:
    """Poses (S, 4, 4) of a KITTI odometry file; the rounding of its matrices is taken out (nearest rotation)."""
    lines, rows = _read_rows(path, num_columns=12, wanted=_KITTI)
    matrices = rows.reshape(-1, 3, 4)
    rotations = matrices[:, :, :3]
    error = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
    for index in np.flatnonzero((error > _ROTATION_TOLERANCE) | (np.linalg.det(rotations) < 0))[:1]:
        raise ValueError(f"{path}, line {lines[index]}: the 3x3 part is no rotation matrix (off by {error[index]:.2g})")
    return poses_from_parts(nearest_rotation(rotations), matrices[:, :, 3])


def read_kitti_times(path: str | Path) -> np.ndarray:
    """Times (S,) seconds of the file beside a KITTI trajectory, one per line."""
    lines, rows = _read_rows(path, num_columns=1, wanted="one time in seconds")
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


def _read_rows(path: str | Path, *, num_columns: int, wanted: str) -> tuple[list[int], np.ndarray]:
    """Line numbers and finite numbers (S, num_columns) of all lines but empty ones and `#` comments."""
    lines, rows = [], []
    for line, text in _lines(path):
        if text.startswith("#"):
            continue
        cells = text.split()
        if len(cells) != num_columns:
            raise ValueError(f"{path}, line {line}: found {len(cells)} columns, wanted {num_columns}: {wanted}")
        rows.append(_finite_numbers(path, line, text, cells, wanted))
        lines.append(line)
    if not rows:
        raise ValueError(f"{path}: found no poses, wanted lines of {wanted}")
    return lines, np.array(rows, dtype=np.float64)


def _finite_numbers(path: str | Path, line: int, text: str, cells: Sequence[str], wanted: str) -> list[float]:
    try:
        row = [number_from_text(cell) for cell in cells]
    except ValueError:
        raise ValueError(f"{path}, line {line}: found {text[:80]!r}, wanted numbers: {wanted}") from None
    if not np.all(np.isfinite(row)):
        raise ValueError(f"{path}, line {line}: found {text[:80]!r}, wanted finite numbers (no nan or inf): {wanted}")
    return row


def _split_header(path: str | Path) -> tuple[list[list[str]], list[tuple[int, str]]]:
    """Names of every line above the poses (comments, or a header without `#`), and the lines of poses."""
    headers, content = [], []
    for line, text in _lines(path):
        names = _names(text)
        if text.startswith("#"):
            if not content:
                headers.append(names)
        elif not content and sorted(filter(None, map(_role, names))) == sorted(_COLUMNS):
            headers.append(names)
        else:
            content.append((line, text))
    return headers, content


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found a binary file, wanted a text file of poses (UTF-8): {error}") from None
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            yield line, content.strip()


def _cells(text: str) -> list[str]:
    separator = next((mark for mark in ",;" if mark in text), None)
    return [cell.strip() for cell in text.split(separator)]


def _names(text: str) -> list[str]:
    """Words of a header; a unit in brackets stays with its name."""
    return _cells(re.sub(r"\s+(?=[\[(])", "", text.lstrip("# \t")))


def _named_columns(path: str | Path, headers: Sequence[list[str]], *, num_columns: int) -> _Columns | None:
    """Columns as the last header states them; None where none names a rotation.

    Raises ValueError for a header that names a rotation but not every number of a pose, each once.
    """
    for names in reversed(headers):
        while len(names) > num_columns and _role(names[0]) is None:  # `format: timestamp tx ...`
            names = names[1:]
        roles = [_role(name) for name in names]
        if "time" in roles and (angles := [name for name in names if name.lower() in _ANGLES]):
            raise ValueError(f"{path}: found rotations as angles ({angles[0]}), wanted a quaternion (qx qy qz qw)")
        if sum(role in _COLUMNS[4:] for role in roles) < 3:
            continue
        for name, role in zip(names, roles, strict=True):
            length = re.search(r"[\[(]\s*(\w+)\s*[\])]", name)
            if role in _COLUMNS[1:4] and length and length.group(1).lower() not in _METRES:
                raise ValueError(f"{path}: found the column {name!r}, wanted positions in metres")
        counts = [roles.count(column) for column in _COLUMNS]
        if len(names) != num_columns or counts[0] < 1 or counts[1:] != [1] * 7:
            raise ValueError(
                f"{path}: found a header of the columns {' '.join(names)[:120]!r} over rows of {num_columns}, wanted "
                "a time, a position (tx ty tz) and a quaternion (qx qy qz qw), each named once"
            )
        order = tuple(roles.index(column) for column in _COLUMNS)
        return _Columns(order, num_columns, names[order[0]])
    return None


def _role(name: str) -> str | None:
    """Which of _COLUMNS a name stands for: `p_RS_R_x [m]`, `q_wo_w`, `tx_world_device`, `orientationW`, `qw`."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"[\[(].*?[\])]", "", name)).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    if not words or set(words) & _OTHER_WORDS or (words[0] in "vbw" and len(words) > 1):
        return None
    short = next((found for found in map(_SHORT.match, words) if found), None)
    if short:
        is_rotation, axis = short.group(1) in ("q", "r", "rot", "quat"), short.group(2)
    elif axis := next((word for word in reversed(words) if word in "xyzw"), None):
        is_rotation = bool(set(words) & _QUATERNION_WORDS) and words[0] not in _POSITION_WORDS
        if not is_rotation and len(words) > 1 and not set(words) & _POSITION_WORDS:
            return None
        is_rotation = is_rotation or words == ["w"]
    else:
        return "time" if set(words) & _TIME_WORDS else None
    if is_rotation:
        return f"q{axis}"
    return f"p{axis}" if axis != "w" else None


def _check_times(path: str | Path, lines: list[int], times: np.ndarray) -> None:
    for index in np.flatnonzero(np.diff(times) < 0)[:1] + 1:
        earlier, time = times[index - 1 : index + 1].tolist()
        raise ValueError(f"{path}, line {lines[index]}: found time {time!r} after {earlier!r}, wanted times in order")


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
