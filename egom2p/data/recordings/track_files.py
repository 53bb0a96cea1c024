"""Files of tracks: a csv or npz with times, values and validity. T samples, C channels."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

_TIME_NAMES = ("timestamps", "timestamp", "times_s", "time_s", "time", "t")
_VALID_NAMES = ("valid", "is_valid")
_NO_NUMBER = {"": "nan", "true": "1", "false": "0"}


class Track(NamedTuple):
    """times (T,) in the file's unit, values (T, ...), is_valid (T,), names of the value columns."""

    times: np.ndarray
    values: np.ndarray
    is_valid: np.ndarray
    names: tuple[str, ...]


def read_track(path: Path) -> Track:
    """A track of a `.csv` (a `timestamps` column, an optional `valid` column, value columns) or `.npz` file.

    A sample with an empty or nan value is invalid. Raises ValueError naming file and line.
    """
    track = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    finite = np.isfinite(track.values.reshape(len(track.values), -1)).all(axis=1)
    return track._replace(is_valid=track.is_valid & finite)


def read_times(path: Path) -> np.ndarray:
    """Times (T,) seconds of a text file with one number per line; empty lines and `#` comments are passed over."""
    times = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if text.strip() and not text.lstrip().startswith("#"):
            times.append(_number(text, f"{path}, line {line}"))
    result = np.array(times, dtype=np.float64)
    check_times(result, [f"{path}, entry {row}" for row in range(len(times))], path)
    return result


def check_times(times: np.ndarray, positions: list[str], path: Path) -> None:
    """Raise ValueError naming the place where times are missing, not finite or do not increase."""
    if len(times) == 0:
        raise ValueError(f"{path}: found no rows, wanted at least one sample")
    is_bad = ~np.isfinite(times)
    if is_bad.any():
        raise ValueError(f"{positions[int(np.argmax(is_bad))]}: the time is not a finite number")
    is_bad = np.diff(times) <= 0
    if is_bad.any():
        row = int(np.argmax(is_bad)) + 1
        raise ValueError(f"{positions[row]}: time {times[row]:.17g} follows {times[row - 1]:.17g}; times must increase")


def _read_csv(path: Path) -> Track:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [(line, row) for line, row in enumerate(csv.reader(file), start=1) if row and not row[0].startswith("#")]
    if not rows:
        raise ValueError(f"{path}: the file is empty; wanted a header and rows")
    header = [name.strip().lower() for name in rows[0][1]]
    time_column = _find(header, _TIME_NAMES)
    if time_column is None:
        raise ValueError(f"{path}: found columns {header}, wanted a time column called one of {list(_TIME_NAMES)}")
    positions = [f"{path}, line {line}" for line, _ in rows[1:]]
    for position, (_, row) in zip(positions, rows[1:], strict=True):
        if len(row) != len(header):
            raise ValueError(f"{position}: found {len(row)} columns, wanted {len(header)} as in the header")
    table = np.array(
        [[_number(cell, position) for cell in row] for position, (_, row) in zip(positions, rows[1:], strict=True)],
        dtype=np.float64,
    ).reshape(len(positions), len(header))
    check_times(table[:, time_column], positions, path)
    valid_column = _find(header, _VALID_NAMES)
    is_valid = np.ones(len(table), bool) if valid_column is None else np.nan_to_num(table[:, valid_column]) > 0
    columns = [i for i in range(len(header)) if i not in (time_column, valid_column)]
    return Track(table[:, time_column], table[:, columns], is_valid, tuple(header[i] for i in columns))


def _read_npz(path: Path) -> Track:
    arrays = load_npz(path)
    time_name = next((name for name in _TIME_NAMES if name in arrays), None)
    if time_name is None or "values" not in arrays:
        raise ValueError(f"{path}: found arrays {sorted(arrays)}, wanted `timestamps` and `values`")
    times, values = arrays[time_name].astype(np.float64), np.asarray(arrays["values"], dtype=np.float64)
    valid_name = next((name for name in _VALID_NAMES if name in arrays), None)
    is_valid = arrays[valid_name].astype(bool) if valid_name else np.ones(len(values), dtype=bool)
    if not len(times) == len(values) == len(is_valid):
        raise ValueError(f"{path}: found {len(times)} times, {len(values)} values and {len(is_valid)} validities")
    check_times(times, [f"{path}, row {row}" for row in range(len(times))], path)
    return Track(times, values.reshape(len(values), -1) if values.ndim == 1 else values, is_valid, ())


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz (or one npy, as `arr_0`); nothing is unpickled. Raises ValueError naming the file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"arr_0": loaded}
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # numpy raises many kinds (zip, struct, key, pickle) on foreign bytes
        raise ValueError(f"{path}: not a readable array file: {error}") from error


def _find(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _number(cell: str, position: str) -> float:
    text = cell.strip().lower()
    try:
        return float(_NO_NUMBER.get(text, text))
    except ValueError:
        raise ValueError(f"{position}: found {cell!r}, wanted a number") from None
