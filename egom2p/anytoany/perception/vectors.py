"""Precomputed vectors from files: one per image, video or sound, as ImageBind's 1024 numbers in a parquet column.

D width of a vector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.types import PerceptionFeatures

# Columns that the published data sets use.
COLUMNS = ("video_embed", "ib_embed", "image_embed", "audio_embed", "embedding")


class VectorFiles:
    """Vectors by reference: `file.parquet#row` (also .jsonl, .json), `file.npz#name`, `file.npy#row` or `file.npy`.

    A row may hold one vector (D,) or several (n, D); all are rows of the features, numbered along its t axis.

    columns   of tables: the first one that the file has is read
    """

    def __init__(self, width: int, *, columns: Sequence[str] = COLUMNS) -> None:
        self.width, self.columns = width, tuple(columns)
        self._opened: dict[str, Any] = {}

    def __getitem__(self, ref: str) -> PerceptionFeatures:
        path, _, inner = ref.partition("#")
        vectors = np.asarray(self._read(Path(path), inner), dtype=np.float32)
        if vectors.ndim not in (1, 2) or vectors.size == 0 or vectors.shape[-1] != self.width:
            raise ValueError(f"{ref}: a vector of shape {vectors.shape}, wanted {self.width} numbers")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{ref}: the vector holds numbers that are not finite")
        return features_of_vectors(vectors)

    def _read(self, path: Path, inner: str) -> Any:
        if path.suffix == ".npz":
            return self._of_archive(path, inner)
        if path.suffix == ".npy":
            array = self._open(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
            return array[_row(path, inner, len(array))] if inner else array
        table, column = self._open(path, lambda: self._table(path))
        return table[_row(path, inner, len(table))][column]

    def _of_archive(self, path: Path, name: str) -> Any:
        archive = self._open(path, lambda: np.load(path, allow_pickle=False))
        if not name and len(archive.files) == 1:
            name = archive.files[0]
        if name not in archive.files:
            some = ", ".join(archive.files[:5])
            raise ValueError(f"{path}: has no array {name!r}; it has {len(archive.files)}: {some}")
        return archive[name]

    def _table(self, path: Path) -> tuple[TableFiles, str]:
        table = TableFiles([str(path)], (), optional=self.columns)
        found = [column for column in self.columns if len(table) and table[0].get(column) is not None]
        if not found:
            raise ValueError(f"{path}: has none of the columns {', '.join(self.columns)}")
        return table, found[0]

    def _open(self, path: Path, read: Any) -> Any:
        if str(path) not in self._opened:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            self._opened[str(path)] = read()
        return self._opened[str(path)]


def features_of_vectors(vectors: np.ndarray) -> PerceptionFeatures:
    """Vectors (D,) or (n, D) as perception features of n rows."""
    features_ND = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    position_N3 = np.zeros((len(features_ND), 3), np.int16)
    position_N3[:, 0] = np.arange(len(features_ND))
    return PerceptionFeatures(features_ND, position_N3, np.zeros(len(features_ND), np.int16))


def _row(path: Path, text: str, count: int) -> int:
    if not text.isdecimal() or int(text) >= count:
        raise ValueError(f"{path}#{text}: wanted a row number from 0 to {count - 1} behind the #")
    return int(text)
