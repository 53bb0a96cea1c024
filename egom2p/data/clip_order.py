"""The order in which clips are seen: computed from (seed, global clip index), so that resuming is a seek.

A data set is passed epoch by epoch: its shards are shuffled, taken in blocks, and clips shuffled inside a block, so a
worker touches few shards at a time. A mixture assigns data sets to global indices in shuffled cycles in which every
data set occurs in proportion to its weight.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from zlib import crc32

import numpy as np

# One draw of a cycle is 1.5e-5 of the mixture: the smallest published weight, 0.003, is met to 0.5 %.
_DRAWS_PER_CYCLE = 65536


def clip_rng(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The generator of one purpose (such as `masking`) at one index; streams of different purposes are independent."""
    return np.random.default_rng([seed, crc32(purpose.encode()), *indices])


class ClipOrder:
    """Endless order over the clips of one data set.

    shard_starts   (0, clips of shard 0, clips of shards 0 and 1, ...)
    """

    def __init__(self, shard_starts: Sequence[int], *, seed: int, name: str, shards_per_block: int) -> None:
        self._starts = np.asarray(shard_starts)
        self._seed, self._name, self._shards_per_block = seed, name, shards_per_block
        self._epoch: tuple[int, np.ndarray, list[int]] | None = None
        self._block: tuple[tuple[int, int], np.ndarray] | None = None

    @property
    def num_clips(self) -> int:
        return int(self._starts[-1])

    def locate(self, position: int) -> int:
        """Clip index at a position of the endless order."""
        # Every clip once an epoch, whatever the ranks: the position alone decides, nothing is drawn through a buffer.
        epoch, offset = divmod(position, self.num_clips)
        shards, ends = self._shards_of(epoch)
        block = int(np.searchsorted(ends, offset, side="right"))
        return int(self._clips_of(epoch, block, shards)[offset - (ends[block - 1] if block else 0)])

    def _shards_of(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Shards of an epoch in their order, and where each block of them ends."""
        if self._epoch is None or self._epoch[0] != epoch:
            shards = clip_rng(self._seed, f"shards of {self._name}", epoch).permutation(len(self._starts) - 1)
            sizes = np.diff(self._starts)[shards]
            blocks = range(0, len(shards), self._shards_per_block)
            ends = list(accumulate(int(sizes[start : start + self._shards_per_block].sum()) for start in blocks))
            self._epoch = epoch, shards, ends
        return self._epoch[1], self._epoch[2]

    def _clips_of(self, epoch: int, block: int, shards: np.ndarray) -> np.ndarray:
        if self._block is None or self._block[0] != (epoch, block):
            members = shards[block * self._shards_per_block : (block + 1) * self._shards_per_block]
            clips = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in members])
            # Shuffled inside a block only: a worker holds the indices and open files of a few shards instead of all,
            # at the price that clips of far shards do not meet in a batch of this epoch.
            rng = clip_rng(self._seed, f"clips of {self._name}", epoch, block)
            self._block = (epoch, block), rng.permutation(clips)
        return self._block[1]


class LaneOrder:
    """Global clip indices in another order, under which each of several readers passes consecutive ones.

    Runs of `run` indices are dealt to the lanes in turn; each lane takes its runs one after the other from a part of
    its own of a window of at least `num_clips` indices. So a reader that serves one lane touches one block of shards at
    a time, in whatever order the mixture has; every index of a window occurs once in it, and resuming stays a seek.
    """

    def __init__(self, *, num_lanes: int, run: int, num_clips: int) -> None:
        self._num_lanes, self._run = num_lanes, run
        self._runs_per_lane = -(-num_clips // (num_lanes * run))

    def locate(self, index: int) -> int:
        number, row = divmod(index, self._run)
        turn, lane = divmod(number, self._num_lanes)
        window, turn = divmod(turn, self._runs_per_lane)
        return ((window * self._num_lanes + lane) * self._runs_per_lane + turn) * self._run + row


class MixtureOrder:
    """Which data set, and which position of its own order, stands at a global clip index."""

    def __init__(self, weights: Mapping[str, float], *, seed: int) -> None:
        names = [name for name, weight in weights.items() if weight > 0]
        if not names or min(weights.values()) < 0:
            raise ValueError(f"weights of data sets are not negative and one is positive, got {dict(weights)}")
        self._names, self._seed = names, seed
        self._counts = _draws(np.array([weights[name] for name in names], dtype=np.float64))
        self._cycle: tuple[int, np.ndarray, np.ndarray] | None = None

    def locate(self, index: int) -> tuple[str, int]:
        """(data set, position in its order) at a global index."""
        if len(self._names) == 1:
            return self._names[0], index
        cycle, draw = divmod(index, _DRAWS_PER_CYCLE)
        if self._cycle is None or self._cycle[0] != cycle:
            owners = np.repeat(np.arange(len(self._names)), self._counts)
            owners = clip_rng(self._seed, "mixture", cycle).permutation(owners)
            # How often the owner of a draw came before it in this cycle; counts per cycle are fixed, so a global index
            # gives the position in the owner's own order without counting from the start.
            ranks = np.empty(len(owners), dtype=np.int64)
            for owner, count in enumerate(self._counts):
                ranks[owners == owner] = np.arange(count)
            self._cycle = cycle, owners, ranks
        _, owners, ranks = self._cycle
        owner = int(owners[draw])
        return self._names[owner], cycle * int(self._counts[owner]) + int(ranks[draw])


def _draws(weights: np.ndarray) -> np.ndarray:
    """Draws per cycle, at least one each, that sum to the cycle (largest remainders)."""
    wanted = weights / weights.sum() * _DRAWS_PER_CYCLE
    # At least one: a data set with any weight is seen in every cycle.
    counts = np.maximum(np.floor(wanted), 1).astype(np.int64)
    order = np.argsort(counts - wanted, kind="stable")
    left = _DRAWS_PER_CYCLE - int(counts.sum())
    if left >= 0:
        counts[order[:left]] += 1
    else:
        counts[np.argmax(counts)] += left
    return counts
