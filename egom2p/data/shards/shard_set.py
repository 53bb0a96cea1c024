"""Clips in modality-wise tars: `root/<folder>/<dataset>/shard-000000.tar`, members `<key>.<suffix>`.

Every folder of a data set holds the same keys in the same order, so a clip is one index into all of them. The tars
are webdataset's. Beside the shards of a folder lies `card.json` (for tokens: the modality's spec and fingerprint).
"""

import bisect
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.data.shards.array_files import decode_array, encode_array
from egom2p.data.shards.shard_files import CARD_NAME, Member, OpenShards, expand_files, read_card, split_folders
from egom2p.data.shards.shard_index import ShardIndex
from egom2p.data.shards.shard_streams import StreamedShards
from egom2p.data.shards.shard_writer import ShardWriter

__all__ = ["CARD_NAME", "ShardSet", "ShardWriter", "decode_array", "encode_array", "read_card", "shard_pattern"]

_NUMBERED = re.compile(r"^shard-(\d{6})\.tar$")


def shard_pattern(root: str | Path, dataset: str, folders: Sequence[str]) -> str:
    """The pattern of all shards of a data set: `root/[a,b]/<dataset>/shard-*.tar`."""
    return f"{root}/[{','.join(folders)}]/{dataset}/shard-*.tar"


class ShardSet:
    """Clips of the shards a pattern names, by index; where they lie is read once from the tar headers (`ShardIndex`).

    The index of the first folder is opened at once, that of another folder when one of its shards is first touched.
    The keys of the shard are then compared, so a clip missing in one tar is an error that names shard and key, never a
    shifted pair.

    index_cache   folder for indexes that cannot lie beside their shards
    streams       clips of each folder are taken from whole shards in memory, so many of them; None: read one by one
    """

    def __init__(self, pattern: str, *, index_cache: str | Path | None = None, streams: int | None = None) -> None:
        self.pattern, self._index_cache = pattern, index_cache
        self._paths = {folder: expand_files(part) for folder, part in split_folders(pattern).items()}
        self.folders: tuple[str, ...] = tuple(self._paths)
        self._check_same_shards()
        first = self.folders[0]
        self._index = {first: ShardIndex(self._paths[first], cache=index_cache)}
        sizes = map(self._index[first].num_clips, range(self.num_shards))
        self.shard_starts: tuple[int, ...] = (0, *accumulate(sizes))
        self._is_compared = {folder: bytearray([folder == first]) * self.num_shards for folder in self.folders}
        self._last_key = (-1, "")
        self._open = OpenShards() if streams is None else StreamedShards(streams * len(self.folders))

    @property
    def num_shards(self) -> int:
        return len(self._paths[self.folders[0]])

    @property
    def num_clips(self) -> int:
        return self.shard_starts[-1]

    def __len__(self) -> int:
        return self.num_clips

    @property
    def keys(self) -> list[str]:
        """Key of every clip, in order."""
        index = self._index[self.folders[0]]
        return [key for shard in range(self.num_shards) for key in index.keys(shard)]

    @property
    def gaps(self) -> tuple[str, ...]:
        """Names of shards that numbers leave out between the first and the last: lost, or left out on purpose."""
        names = [Path(path).name for path in next(iter(self._paths.values()))]
        numbers = {int(found[1]): found for name in names if (found := _NUMBERED.search(name))}
        missing = sorted(set(range(min(numbers, default=0), max(numbers, default=0))) - numbers.keys())
        return tuple(f"shard-{number:06d}.tar" for number in missing)

    def key(self, index: int) -> str:
        known, key = self._last_key  # the folders of a clip are read one after the other
        if known != index:
            key = self._index[self.folders[0]].key(*self._locate(index))
            self._last_key = index, key
        return key

    def where(self, index: int, folder: str) -> str:
        """Shard and key of a clip, for messages."""
        return f"{self._paths[folder][self._locate(index)[0]]}: clip {self.key(index)}"

    def suffix(self, index: int, folder: str) -> str:
        """What kind of file the clip is in a folder, without dot: `npy`, `npz`, `json`, `mp4`."""
        shard, row = self._locate(index)
        return self._compared(shard, folder).member(shard, row)[2]

    def read(self, index: int, folder: str) -> bytes:
        """Bytes of one clip in one folder."""
        return self.read_file(index, folder)[0]

    def read_file(self, index: int, folder: str) -> tuple[bytes, str]:
        """Bytes of one clip in one folder, and its suffix."""
        shard, row = self._locate(index)
        offset, size, suffix = self._compared(shard, folder).member(shard, row)
        member = Member(self.key(index), suffix, offset, size)
        return self._open.read(self._paths[folder][shard], member), suffix

    def ahead(self, index: int, folders: Sequence[str]) -> None:
        """Begin to stream the shard of a clip."""
        for folder in folders:
            self._open.ahead(self._paths[folder][self._locate(index)[0]])

    def read_array(self, index: int, folder: str) -> np.ndarray:
        """The array of one clip in one folder (npy or npz). Raises ValueError naming shard and key."""
        return read_array(self, index, folder)

    def card(self, folder: str) -> dict[str, Any]:
        """What `card.json` beside the shards says; equal in all data sets that the pattern names."""
        if folder not in self._paths:
            raise ValueError(f"{self.pattern}: no folder {folder!r}; it has {list(self.folders)}")
        # As text: a Path would make one slash of the two of an address.
        directories = dict.fromkeys(path.rpartition("/")[0] for path in self._paths[folder])
        (first, card), *others = ((directory, read_card(directory)) for directory in directories)
        for directory, other in others:
            if differing := sorted(key for key in card.keys() | other.keys() if card.get(key) != other.get(key)):
                raise ValueError(
                    f"{directory}/{CARD_NAME}: found {differing[0]} {other.get(differing[0])}, but {first}/{CARD_NAME} "
                    f"says {card.get(differing[0])}; the data sets of one pattern need equal cards"
                )
        return card

    def verify(self) -> int:
        """Compare every shard of every folder with the first folder; returns the number of clips.

        Raises ValueError naming shard, key and folder at the first clip that is missing or out of order.
        """
        for folder in self.folders:
            for shard in range(self.num_shards):
                self._compared(shard, folder)
        return self.num_clips

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.num_clips:
            raise IndexError(f"{self.pattern}: clip {index} of {self.num_clips}")
        shard = bisect.bisect_right(self.shard_starts, index) - 1
        return shard, index - self.shard_starts[shard]

    def _compared(self, shard: int, folder: str) -> ShardIndex:
        """The index of a folder, whose keys of this shard are those of the first folder."""
        if folder not in self._paths:
            raise ValueError(f"{self.pattern}: no folder {folder!r}; it has {list(self.folders)}")
        if folder not in self._index:
            self._index[folder] = ShardIndex(self._paths[folder], cache=self._index_cache)
        found = self._index[folder]
        if not self._is_compared[folder][shard]:
            first = self.folders[0]
            reference = self._index[first]
            if found.digest(shard) != reference.digest(shard):
                check_same_keys(
                    found.keys(shard),
                    reference.keys(shard),
                    where=self._paths[folder][shard],
                    folder=folder,
                    reference=self._paths[first][shard],
                )
            self._is_compared[folder][shard] = True
        return found

    def _check_same_shards(self) -> None:
        first = self.folders[0]
        wanted = [Path(path).name for path in self._paths[first]]
        for folder in self.folders[1:]:
            found = [Path(path).name for path in self._paths[folder]]
            if found != wanted:
                differing = sorted(set(found) ^ set(wanted)) or [f"order {found[:3]}..."]
                raise ValueError(
                    f"{self.pattern}: folder {folder} has {len(found)} shards, folder {first} has {len(wanted)}; "
                    f"only in one of them: {differing[:5]}"
                )


def read_array(clips: Any, index: int, folder: str) -> np.ndarray:
    """The array of one clip of a set (this one's, or `folder_set`'s). Raises ValueError naming file and key."""
    content, suffix = clips.read_file(index, folder)
    try:
        return decode_array(content, suffix)
    except ValueError as error:
        raise ValueError(f"{clips.where(index, folder)}: {error}") from error


def check_same_keys(found: Sequence[str], wanted: Sequence[str], *, where: str, folder: str, reference: str) -> None:
    """Raise ValueError naming the first key that is missing, surplus or out of order."""
    if list(found) == list(wanted):
        return
    missing = [key for key in wanted if key not in set(found)]
    surplus = [key for key in found if key not in set(wanted)]
    compared = f"compared with {reference}"
    if missing:
        what = f"clip {missing[0]} has no {folder} ({len(missing)} missing); {compared}"
    elif surplus:
        what = f"clip {surplus[0]} of {folder} is missing in {reference} ({len(surplus)} such)"
    else:
        row = next(row for row, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        what = f"clip {row} of {folder} is {found[row]}, wanted {wanted[row]}: the order differs; {compared}"
    raise ValueError(f"{where}: {what}. Every folder needs the same keys in the same order")
