"""How sure a mean over clips is: bootstrap intervals.

Clips are drawn with replacement, the mean of each draw is kept, and the interval cuts equal tails off (percentile
bootstrap). Clips of one recording are not independent: with `groups` whole recordings are drawn, which keeps the
interval from being too narrow.

G groups of clips, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK_VALUES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    mean         None when no clip has a value
    low, high    None with fewer than two values (or groups): nothing is known about the spread
    num_clips    clips with a value; num_missing: clips without one (None), left out of the mean
    median       over the same clips: a few lost clips carry a mean away. None where every value is 0 or 1 (right or
                 wrong): it would say no more than the mean, in one bit
    """

    mean: float | None
    low: float | None
    high: float | None
    num_clips: int
    num_missing: int = 0
    median: float | None = None


def bootstrap_interval(
    values: Sequence[float | None] | np.ndarray,
    rng: np.random.Generator,
    confidence: float = 0.95,
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = 2000,
) -> Interval:
    """Mean of one value per clip and its interval; None is a clip without value, NaN or inf raises ValueError.

    groups   what each clip belongs to (its recording); clips of one group are drawn together. None: each by itself
    """
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"every clip needs a group, found {len(values)} values and {len(groups)} groups")
    is_present = [value is not None for value in values]
    present = np.array([value for value in values if value is not None], dtype=np.float64)
    num_missing = len(values) - len(present)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if not np.isfinite(present).all():
        raise ValueError(f"{int((~np.isfinite(present)).sum())} of {len(present)} values are not finite")
    if len(present) == 0:
        return Interval(None, None, None, 0, num_missing)
    mean, median = float(present.mean()), None if np.isin(present, (0, 1)).all() else float(np.median(present))
    sums_G, counts_G = present, np.ones(len(present))
    if groups is not None:
        _, group_of = np.unique(np.asarray(groups)[is_present], return_inverse=True)
        sums_G, counts_G = np.bincount(group_of, weights=present), np.bincount(group_of)
    if len(sums_G) == 1:
        return Interval(mean, None, None, len(present), num_missing, median)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(sums_G, counts_G, rng, num_resamples), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(present), num_missing, median)


def paired_difference_interval(
    a: Sequence[float | None] | np.ndarray,
    b: Sequence[float | None] | np.ndarray,
    rng: np.random.Generator,
    confidence: float = 0.95,
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = 2000,
) -> Interval:
    """Mean of a - b over the same clips and its interval; a clip missing (None) on either side is left out.

    `groups` as in `bootstrap_interval`. An interval without 0 says that the two differ by more than the choice of clips
    explains.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need as many on both sides, found {len(a)} and {len(b)}")
    pairs = zip(a, b, strict=True)
    differences = [None if left is None or right is None else left - right for left, right in pairs]
    return bootstrap_interval(differences, rng, confidence, groups=groups, num_resamples=num_resamples)


def _resampled_means(
    sums_G: np.ndarray, counts_G: np.ndarray, rng: np.random.Generator, num_resamples: int
) -> np.ndarray:
    """Means (R,) over all clips of the groups drawn."""
    rows = max(1, _CHUNK_VALUES // len(sums_G))
    means = []
    for start in range(0, num_resamples, rows):
        drawn_RG = rng.integers(len(sums_G), size=(min(rows, num_resamples - start), len(sums_G)))
        means.append(sums_G[drawn_RG].sum(axis=1) / counts_G[drawn_RG].sum(axis=1))
    return np.concatenate(means)
