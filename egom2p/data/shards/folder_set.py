"""Clips as plain files: `root/[rgb,depth]/<dataset>/**/*.npz`; the same interface as shards, for small sets."""

from collections import Counter
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import plain_name
from egom2p.data.shards.shard_files import CARD_NAME, CLIPS_NAME, read_card, split_folders
from egom2p.data.shards.shard_set import ShardSet, check_same_keys, read_array


class FolderSet:
    """Clips of the files a pattern names, by index; key = path below the pattern's fixed part, without suffix.

    Folders within that path are joined with `__`: a key is one plain name. Keys are sorted and must be the same in
    every folder. Raises ValueError naming folder and key.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._base: dict[str, Path] = {}
        self._files: dict[str, list[Path]] = {}
        for folder, part in split_folders(pattern).items():
            self._base[folder], self._files[folder] = _files_of(part)
        self.folders: tuple[str, ...] = tuple(self._files)
        self.keys: list[str] = self._keys_of(self.folders[0])
        self.verify()

    @property
    def num_clips(self) -> int:
        return len(self.keys)

    def __len__(self) -> int:
        return self.num_clips

    @property
    def shard_starts(self) -> tuple[int, ...]:
        """Plain files are read one by one, so all clips count as one shard."""
        return (0, self.num_clips)

    @property
    def gaps(self) -> tuple[str, ...]:
        return ()

    def key(self, index: int) -> str:
        return self.keys[index]

    def where(self, index: int, folder: str) -> str:
        return f"{self._files[folder][index]}: clip {self.keys[index]}"

    def suffix(self, index: int, folder: str) -> str:
        return self._files[folder][index].name.partition(".")[2]

    def read(self, index: int, folder: str) -> bytes:
        if folder not in self._files:
            raise ValueError(f"{self.pattern}: no folder {folder!r}; it has {list(self.folders)}")
        return self._files[folder][index].read_bytes()

    def read_file(self, index: int, folder: str) -> tuple[bytes, str]:
        """Bytes of one clip in one folder, and its suffix."""
        return self.read(index, folder), self.suffix(index, folder)

    def read_array(self, index: int, folder: str) -> np.ndarray:
        return read_array(self, index, folder)

    def card(self, folder: str) -> dict[str, Any]:
        return read_card(self._base[folder])

    def verify(self) -> int:
        for folder in self.folders[1:]:
            check_same_keys(
                self._keys_of(folder),
                self.keys,
                where=str(self._base[folder]),
                folder=folder,
                reference=str(self._base[self.folders[0]]),
            )
        return self.num_clips

    def _keys_of(self, folder: str) -> list[str]:
        relative = [path.relative_to(self._base[folder]) for path in self._files[folder]]
        keys = ["__".join((*path.parts[:-1], path.name.partition(".")[0])) for path in relative]
        counts = Counter(plain_name(key, "clip key", self._base[folder]) for key in keys)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise ValueError(f"{self._base[folder]}: clip {twice[0]} occurs twice")
        return keys


def open_clips(
    pattern: str, *, index_cache: str | Path | None = None, streams: int | None = None
) -> ShardSet | FolderSet:
    """Shards where the pattern ends in `.tar`, plain files otherwise, which cannot be streamed (ValueError)."""
    if streams is not None and not pattern.endswith(".tar"):
        raise ValueError(f"{pattern}: access=streaming reads tars, wanted a pattern that ends in .tar")
    return (
        ShardSet(pattern, index_cache=index_cache, streams=streams) if pattern.endswith(".tar") else FolderSet(pattern)
    )


def _files_of(pattern: str) -> tuple[Path, list[Path]]:
    """Fixed part of a pattern and the files below it, sorted by key; a pattern without a glob is a directory."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if "*" in part or "?" in part), len(parts))
    base = Path(*parts[:fixed])
    wanted = pattern if fixed < len(parts) else f"{pattern}/**/*"
    found = [Path(name) for name in glob(wanted, recursive=True)]
    files = [path for path in found if path.is_file() and path.name not in (CARD_NAME, CLIPS_NAME)]
    if not files:
        raise ValueError(f"{pattern}: no file matches")
    return base, sorted(files, key=_sort_key)


def _sort_key(path: Path) -> Sequence[str]:
    return (*path.parent.parts, path.name.partition(".")[0])
