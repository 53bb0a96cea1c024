"""Files of tracks: a table (csv, tsv) or npz with times, values and validity. T samples, C channels."""

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egom2p.data.shards.array_files import decode_array, read_npz
from egom2p.geometry import TimeUnit, check_clock, number_from_text, seconds_from_stamps, stamps_from_text, stated_unit

TABLE_SUFFIXES = (".csv", ".tsv")
# Names of a time column, without the unit that may follow: `timestamp [ns]`, `time_ms`.
_TIME_NAMES = (
    *("timestamps", "timestamp", "times", "time", "t", "time_stamp", "gaze_timestamp", "tracking_timestamp"),
    *("device_timestamp", "recording timestamp", "recordingtimestamp"),
)
VALID_NAMES = ("valid", "is_valid")
_WORDS = {"true": 1.0, "false": 0.0, "valid": 1.0, "invalid": 0.0, "yes": 1.0, "no": 0.0}


class Track(NamedTuple):
    """times_s (T,), values (T, ...), is_valid (T,), names of the value columns."""

    times_s: np.ndarray
    values: np.ndarray
    is_valid: np.ndarray
    names: tuple[str, ...]


class Table:
    """A csv or tsv as columns of text, read by name; cells become numbers when asked for.

    Names are lower case. Raises ValueError naming file, line, what was found and what was wanted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = read_text(path)
        try:
            numbered = list(enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)), start=1))
        except csv.Error as error:
            raise ValueError(f"{path}: not a readable table: {error}") from error
        rows = [(line, row) for line, row in numbered if row and not row[0].startswith("#")]
        if not rows:
            raise ValueError(f"{path}: the file is empty; wanted a header and rows")
        self.header = [name.strip().lower() for name in rows[0][1]]
        for line, row in rows[1:]:
            if len(row) != len(self.header):
                raise ValueError(
                    f"{path}, line {line}: found {len(row)} columns, wanted {len(self.header)} as in the header"
                )
        self.lines = [line for line, _ in rows[1:]]
        self._cells = [row for _, row in rows[1:]]

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, name: str) -> bool:
        return name in self.header

    def text(self, name: str) -> list[str]:
        """Cells of a column."""
        if name not in self.header:
            raise ValueError(f"{self.path}: found columns {self.header}, wanted {name!r}")
        if self.header.count(name) > 1:
            raise ValueError(f"{self.path}: found the column {name!r} twice, wanted it once")
        column = self.header.index(name)
        return [row[column].strip() for row in self._cells]

    def numbers(self, name: str) -> np.ndarray:
        """A column (T,) float64; an empty cell is nan, true, valid and yes are 1, their opposites 0."""
        cells = self.text(name)
        try:
            return np.array(list(map(number_from_text, cells)))
        except ValueError:
            return np.array([self._number(line, cell) for line, cell in zip(self.lines, cells, strict=True)])

    def keep(self, is_kept: Sequence[bool]) -> None:
        """Leave out rows that are no samples."""
        self.lines = [line for line, kept in zip(self.lines, is_kept, strict=True) if kept]
        self._cells = [row for row, kept in zip(self._cells, is_kept, strict=True) if kept]

    @cached_property
    def time_name(self) -> str:
        """The column of times: the first of the known names, whatever unit it states."""
        plain = [_without_unit(name) for name in self.header]
        found = next((plain.index(name) for name in _TIME_NAMES if name in plain), None)
        if found is None:
            raise ValueError(
                f"{self.path}: found columns {self.header}, wanted a time column called one of {list(_TIME_NAMES)}"
            )
        return self.header[found]

    def times_s(
        self, *, column: str | None, unit: TimeUnit | None, offset_s: float, stream: str, say: str
    ) -> np.ndarray:
        """Times (T,) seconds; they must increase, and be meant in their unit (`geometry.check_clock`)."""
        name = column.lower() if column else self.time_name
        cells = self.text(name)
        for line, cell in zip(self.lines, cells, strict=True):
            if not cell or cell.lower() == "nan":
                raise ValueError(f"{self.path}, line {line}: the time is not a finite number")
        try:
            stamps = stamps_from_text(cells)
        except ValueError:
            self.numbers(name)  # names the line
            raise
        unit = stated_unit(name, unit, where=str(self.path))
        return clock_s(stamps, unit, self.path, lines=self.lines, offset_s=offset_s, stream=stream, say=say)

    def _number(self, line: int, cell: str) -> float:
        text = cell.lower()
        try:
            return _WORDS[text] if text in _WORDS else number_from_text(text or "nan")
        except ValueError:
            raise ValueError(f"{self.path}, line {line}: found {cell!r}, wanted a number") from None


def read_track(
    path: Path,
    *,
    stream: str = "",
    columns: Sequence[str] | None = None,
    time_column: str | None = None,
    unit: TimeUnit | None = None,
    offset_s: float = 0.0,
) -> Track:
    """A track of a table (a time column, an optional `valid` column, value columns) or `.npz` file.

    columns   the value columns; by default all others. A sample with an empty or nan value in one of them is invalid
    Raises ValueError naming file and line.
    """
    say = f"{stream}.time_unit"
    if path.suffix.lower() == ".npz":
        if columns or time_column:
            raise ValueError(f"{path}: columns are those of a table; an npz holds `timestamps` and `values`")
        track = _read_npz(path, unit, offset_s=offset_s, stream=stream, say=say)
    else:
        table = Table(path)
        times_s = table.times_s(column=time_column, unit=unit, offset_s=offset_s, stream=stream, say=say)
        taken = {(time_column or table.time_name).lower(), *VALID_NAMES}
        names = tuple(name.lower() for name in columns or ()) or tuple(n for n in table.header if n not in taken)
        if not names:
            raise ValueError(f"{path}: found columns {table.header}, wanted at least one of values")
        values = np.stack([table.numbers(name) for name in names], axis=1)
        if len(table) and (is_empty := np.isnan(values).all(axis=0)).any() and not is_empty.all():
            raise ValueError(
                f"{path}: column {names[int(np.argmax(is_empty))]!r} has no value in any row, so no sample would be "
                f"valid; name the wanted ones in {stream}.columns"
            )
        track = Track(times_s, values, valid_rows(table), names)
    finite = np.isfinite(track.values.reshape(len(track.values), -1)).all(axis=1)
    return track._replace(is_valid=track.is_valid & finite)


def valid_rows(table: Table) -> np.ndarray:
    """Rows (T,) that a `valid` column, where there is one, does not mark as invalid."""
    name = next((name for name in VALID_NAMES if name in table), None)
    return np.ones(len(table), bool) if name is None else np.nan_to_num(table.numbers(name)) > 0


def read_times(path: Path, unit: TimeUnit | None = None, *, stream: str = "", offset_s: float = 0.0) -> np.ndarray:
    """Times (T,) seconds of a text file with one number per line; empty lines and `#` comments are passed over."""
    cells, lines = [], []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if text.strip() and not text.lstrip().startswith("#"):
            cells.append(text.strip())
            lines.append(line)
            try:
                number_from_text(text)
            except ValueError:
                raise ValueError(f"{path}, line {line}: found {text!r}, wanted a number") from None
    stamps = stamps_from_text(cells)
    return clock_s(stamps, unit, path, lines=lines, offset_s=offset_s, stream=stream, say=f"{stream}.time_unit")


def clock_s(
    stamps: np.ndarray,
    unit: TimeUnit | None,
    path: Path,
    *,
    lines: Sequence[int] | None = None,
    offset_s: float = 0.0,
    stream: str = "",
    say: str = "",
) -> np.ndarray:
    """Seconds (T,) of a stream's stamps (T,), int64 or float64; unit None: nothing states it, seconds are assumed.

    lines    of the file on which they stand, for messages
    """
    check_times(stamps, path, "row" if lines is None else "line", lines)
    check_clock(stamps, unit or "s", where=str(path), stream=stream, is_unit_stated=unit is not None, say=say)
    return seconds_from_stamps(stamps, unit or "s", offset_s=offset_s)


def check_times(times: np.ndarray, where: Path | str, what: str, numbers: Sequence[int] | None = None) -> None:
    """Raise ValueError naming the place where times (T,) are missing, not finite or do not increase.

    what, numbers    places are called by: `line` and the line of each; without numbers, by rows
    """
    if len(times) == 0:
        raise ValueError(f"{where}: found no rows, wanted at least one sample")
    is_bad = ~np.isfinite(times)
    is_back = np.r_[False, times[1:] <= times[:-1]]  # no difference: of unsigned stamps it is never below 0
    if not (is_bad | is_back).any():
        return
    row = int(np.argmax(is_bad if is_bad.any() else is_back))
    place = f"{where}, {what} {row if numbers is None else numbers[row]}"
    if is_bad.any():
        raise ValueError(f"{place}: the time is not a finite number")
    raise ValueError(f"{place}: time {times[row]} follows {times[row - 1]}; times must increase")


def distinct_samples(
    times_s: np.ndarray, *, where: str, weight: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows (T',) of samples in order of time, one of each time: that of the largest weight, else the first.

    Also a note of how many were left out; none where all stay.
    """
    order = np.lexsort((np.zeros(len(times_s)) if weight is None else -weight, times_s))
    rows = order[np.diff(times_s[order], prepend=-np.inf) > 0]
    count = len(order) - len(rows)
    note = f"{where}: {count} of {len(order)} samples have the time of another and are left out"
    return rows, (note,) if count else ()


def visible(folder: Path) -> list[Path]:
    """Entries of a folder, sorted; names that begin with a dot (a system's own notes) are not there."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def files_below(folder: Path, names: Collection[str] | None = None) -> Iterator[Path]:
    """Files (of these names) in a folder and below, sorted; links are followed, what is hidden is not there."""

    def walk(folder: Path, real: Path, above: frozenset[Path]) -> Iterator[Path]:
        for entry in entries_of(folder):
            if is_folder(entry):
                inner = Path(entry.path).resolve() if entry.is_symlink() else real / entry.name
                if inner not in above:  # else a link leads up again
                    yield from walk(Path(entry.path), inner, above | {inner})
            elif (names is None or entry.name in names) and os.path.isfile(entry.path):
                yield Path(entry.path)

    return walk(folder, folder.resolve(), frozenset((folder.resolve(),)))


def entries_of(folder: Path) -> list[os.DirEntry]:
    """Visible entries of a folder, sorted, told without a look at each: a level may hold a million pictures."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def matching(folder: Path, *patterns: str) -> list[Path]:
    """Entries below a folder that match one of the globs, sorted; what is hidden, or lies hidden, is not there."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_text(path: Path) -> str:
    """Text of a file. Raises ValueError naming it when it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "no UTF-8"
        raise ValueError(f"{path}: found {kind} ({error}), wanted text in UTF-8; save it so") from None


def cut_notes(paths: Iterable[Path]) -> tuple[str, ...]:
    """A note for each table whose last number may have been cut: no line ends it, and every other has more decimals."""
    notes = []
    for path in paths:
        if path.suffix.lower() not in (*TABLE_SUFFIXES, ".txt", ".tum") or not path.is_file():
            continue
        with open(path, "rb") as opened:
            opened.seek(max(0, path.stat().st_size - 1))
            if opened.read() in (b"", b"\n"):
                continue
        cells = [re.split(r"[,;\s]+", line.strip())[-1] for line in read_text(path).splitlines()]
        numbers = [cell for cell in cells if re.fullmatch(r"[-+]?\d[\d.eE+-]*", cell)]
        decimals = [len(number.partition(".")[2]) for number in numbers]
        if len(numbers) > 2 and numbers[-1] is cells[-1] and decimals[-1] < min(decimals[:-1]):
            notes.append(f"{path.name}: its last row ends in {cells[-1]!r} and no line end, as in a file that was cut")
    return tuple(notes)


def _read_npz(path: Path, unit: TimeUnit | None, *, offset_s: float, stream: str, say: str) -> Track:
    arrays = load_npz(path)
    stamps, unit = stamps_in(arrays, path, unit)
    if stamps is None or "values" not in arrays:
        raise ValueError(f"{path}: found arrays {sorted(arrays)}, wanted `timestamps` and `values`")
    if (held := arrays["values"]).ndim == 0 or held.dtype.kind not in "biuf":
        raise ValueError(f"{path}: found values of shape {held.shape} and type {held.dtype}, wanted (T, ...) numbers")
    values = held.astype(np.float64)
    is_valid = validity_in(arrays, len(values))
    if not len(stamps) == len(values) == len(is_valid):
        raise ValueError(f"{path}: found {len(stamps)} times, {len(values)} values and {len(is_valid)} validities")
    times_s = clock_s(stamps, unit, path, offset_s=offset_s, stream=stream, say=say)
    return Track(times_s, values.reshape(len(values), -1) if values.ndim == 1 else values, is_valid, ())


def stamps_in(
    arrays: Mapping[str, np.ndarray], path: Path, unit: TimeUnit | None
) -> tuple[np.ndarray | None, TimeUnit | None]:
    """The array of times (T,) of an npz, whichever known name it has, and its unit; None where there is none.

    Raises ValueError for an array of anything but numbers in a row.
    """
    name = next((name for name in arrays if _without_unit(name.lower()) in _TIME_NAMES), None)
    if name is None:
        return None, unit
    stamps = arrays[name]
    if stamps.ndim != 1 or stamps.dtype.kind not in "iuf":
        raise ValueError(f"{path}: found {name} of shape {stamps.shape} and type {stamps.dtype}, wanted (T,) numbers")
    return stamps, stated_unit(name, unit, where=str(path))


def validity_in(arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Which samples (T,) an npz calls valid; all where it says nothing."""
    name = next((name for name in VALID_NAMES if name in arrays), None)
    # As in a table: nan, and what is below 0, is not valid.
    return np.ones(count, dtype=bool) if name is None else np.nan_to_num(np.asarray(arrays[name], np.float64)) > 0


def named(folder: Path, name: str) -> Path:
    """The file of a folder with this (lower case) name in any case, else the path as it is.

    Raises ValueError when two files answer to it.
    """
    found = [path for path in visible(folder) if path.name.lower() == name] if folder.is_dir() else []
    if len(found) > 1:
        raise ValueError(f"{folder}: found {[path.name for path in found]}, wanted one of them")
    return found[0] if found else folder / name


def named_file(folder: Path, name: str, *, where: Path | str) -> Path:
    """The file that a listing names. Raises ValueError where that lies outside of the folder."""
    path = folder / name
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"{where}: names {name!r}, which lies outside of {folder}, wanted a file below it")
    return path


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz (or one npy, as `arr_0`); nothing is unpickled. Raises ValueError naming the file."""
    try:
        with open(path, "rb") as opened:
            if opened.read(6) == b"\x93NUMPY":
                opened.seek(0)
                return {"arr_0": decode_array(opened.read()).copy()}
            return read_npz(opened)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a readable array file: {error}") from error


def _delimiter(text: str) -> str:
    """The separator that the header has most of: a comma, a semicolon or a tab."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    header = next(lines, "")
    return max(",;\t", key=header.count)


def _without_unit(name: str) -> str:
    """`timestamp [ns]`, `time_ms` and `t (s)` without their unit."""
    for opening in "[(":
        name = name.partition(opening)[0].strip()
    stem, _, last = name.rpartition("_")
    return stem if last in ("s", "ms", "us", "ns") else name
