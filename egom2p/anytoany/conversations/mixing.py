"""Which sample of which data set stands at a position of the endless stream: computed, so that resuming is a seek.

Round-robin by progress: the next sample comes from the data set that is least far through its share. A data set is
passed epoch by epoch, shuffled anew each time. Ranks and workers change nothing.
"""

from collections.abc import Mapping

import numpy as np

from egom2p.config import strict
from egom2p.data.clip_order import ClipOrder


@strict
class MixConfig:
    """How often each data set is drawn from.

    weights      data set -> share of the stream (any positive numbers); null: by size
    temperature  without weights the share is size^(1 / temperature): 1 proportional to size, large: all alike
    """

    weights: dict[str, float] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.weights is not None and any(not weight > 0 for weight in self.weights.values()):
            raise ValueError(f"weights must be positive, got {self.weights}; leave out what is not to be used")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.weights is not None and self.temperature != 1.0:
            raise ValueError("temperature has a meaning only without weights")


class Mix:
    """The stream over several data sets of known sizes."""

    def __init__(self, sizes: Mapping[str, int], config: MixConfig, *, seed: int) -> None:
        empty = [name for name, size in sizes.items() if size < 1]
        if not sizes or empty:
            raise ValueError(f"data set {empty[0]!r} is empty" if empty else "a mix needs at least one data set")
        weights = config.weights or {name: size ** (1 / config.temperature) for name, size in sizes.items()}
        if set(weights) != set(sizes):
            differing = sorted(set(weights) ^ set(sizes))[0]
            raise ValueError(f"weights name {sorted(weights)}, the data sets are {sorted(sizes)}: see {differing!r}")
        self.names = tuple(sizes)
        self.sizes = dict(sizes)
        self._weights = np.array([weights[name] for name in self.names], dtype=np.float64)
        self._orders = {
            name: ClipOrder((0, size), seed=seed, name=name, shards_per_block=1) for name, size in sizes.items()
        }
        self._position, self._counts = 0, np.zeros(len(self.names), dtype=np.int64)

    def locate(self, position: int) -> tuple[str, int, int]:
        """(data set, how many of its samples came before, sample index) at a position of the stream."""
        if position != self._position:
            self._position, self._counts = position, self.counts(position)
        number = self._next(self._counts)
        name, before = self.names[number], int(self._counts[number])
        self._counts[number] += 1
        self._position += 1
        return name, before, self._orders[name].locate(before)

    def counts(self, position: int) -> np.ndarray:
        """(data sets,) int64: samples of each among the first `position` of the stream."""
        share = position * self._weights / self._weights.sum()
        # The true counts lie within half a sample and half a turn of the shares; the few that are left are walked.
        slack = 1 + len(self.names) / 2 * self._weights / self._weights.sum()
        counts = np.maximum(np.floor(share - slack), 0).astype(np.int64)
        for _ in range(position - int(counts.sum())):
            counts[self._next(counts)] += 1
        return counts

    def _next(self, counts: np.ndarray) -> int:
        return int(np.argmin((counts + 0.5) / self._weights))
