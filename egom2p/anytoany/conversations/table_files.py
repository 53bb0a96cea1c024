"""Rows of JSON-lines and parquet files, by number, without holding what is not asked for.

JSON lines are found by their byte offsets and parsed when asked for. Of parquet only the named columns are read, in
Arrow's compact form. A `.json` file holds one list of rows.
"""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.storage import load_json

Row = dict[str, Any]


class TableFiles(Sequence[Row]):
    """Rows of several files, one after the other.

    columns  that every row must have; of parquet no other is read
    """

    def __init__(self, patterns: Sequence[str], columns: Sequence[str], optional: Sequence[str] = ()) -> None:
        self.files = find_files(patterns)
        self._tables = [_open_table(file, columns, optional) for file in self.files]
        self._starts = np.cumsum([0, *(len(table) for table in self._tables)])
        self._columns = tuple(columns)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Row:
        number, row = self.locate(index)
        found = self._tables[number][row]
        missing = [column for column in self._columns if column not in found]
        if missing:
            raise ValueError(f"{self.files[number]}, row {row}: has no {missing[0]!r}, only {sorted(found)}")
        return found

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the file, and the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Files of paths and glob patterns, sorted within each; FileNotFoundError names a pattern that fits nothing."""
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{pattern}: no such file")
        files += [Path(file) for file in found]
    return files


class _JsonLines(Sequence[Row]):
    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("rb") as opened:
            lengths = [(len(line), bool(line.strip())) for line in opened]
        starts = np.cumsum([0, *(length for length, _ in lengths)])[:-1]
        self._starts = starts[[has_text for _, has_text in lengths]] if lengths else starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self._file.open("rb") as opened:
            opened.seek(int(self._starts[index]))
            line = opened.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self._file}, row {index}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{self._file}, row {index}: wanted an object, found {type(row).__name__}")
        return row


class _Parquet(Sequence[Row]):
    def __init__(self, file: Path, columns: Sequence[str], optional: Sequence[str]) -> None:
        # Imported here: it comes with the extra `anytoany`.
        from pyarrow import parquet

        present = parquet.read_schema(file).names
        missing = [column for column in columns if column not in present]
        if missing:
            raise ValueError(f"{file}: has no column {missing[0]!r}, only {present}")
        wanted = [*columns, *(column for column in optional if column in present)]
        # Without any wanted column only the number of rows is of interest.
        self._table = parquet.read_table(file, columns=wanted, memory_map=True)
        self._num_rows = parquet.read_metadata(file).num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Row:
        return {name: self._table.column(name)[index].as_py() for name in self._table.column_names}


def _open_table(file: Path, columns: Sequence[str], optional: Sequence[str]) -> Sequence[Row]:
    if file.suffix == ".parquet":
        return _Parquet(file, columns, optional)
    if file.suffix in (".jsonl", ".ndjson"):
        return _JsonLines(file)
    if file.suffix == ".json":
        rows = load_json(file)
        if not isinstance(rows, list):
            raise ValueError(f"{file}: wanted a list of rows, found {type(rows).__name__}")
        return rows
    raise ValueError(f"{file}: tables are .jsonl, .json or .parquet, found {file.suffix!r}")
