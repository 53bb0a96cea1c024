"""Does the spread of several samples say how far they are from the truth?

K samples per clip, N values of one clip (coordinates of gaze or position, pixels of depth), B clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr


@dataclass(frozen=True)
class ClipSpread:
    """Samples of one clip against its truth.

    ranks   (K + 1,) how many of the N values have exactly k samples below the truth
    spread  root mean square over values of the samples' standard deviation
    error   root mean square over values of the mean sample's distance from the truth, same unit
    """

    ranks: np.ndarray
    spread: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """Samples of many clips against their truths.

    levels       nominal shares of central intervals, ascending: the interval between the j lowest and j highest of K
                 samples holds (K + 1 - 2 j) / (K + 1) of draws from the same distribution
    coverage     share of the true values that lie inside them
    spread       (B,) per clip; error (B,) per clip
    correlation  Spearman's, of spread and error over clips; None below 3 clips or without any variation
    """

    num_samples: int
    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    spread: tuple[float, ...]
    error: tuple[float, ...]
    correlation: float | None


def clip_spread(samples: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> ClipSpread:
    """Ranks, spread and error of samples (K, N) against truth (N,), all finite.

    Where samples equal the truth exactly (decoded codes repeat), the rank is drawn among the tied positions.
    """
    if samples.ndim != 2 or samples.shape[1:] != truth.shape or len(samples) < 2:
        raise ValueError(f"samples (K >= 2, N) and truth (N,) expected, found {samples.shape} and {truth.shape}")
    samples = samples.astype(np.float64)
    num_below_N = (samples < truth).sum(0)
    num_equal_N = (samples == truth).sum(0)
    rank_N = num_below_N + rng.integers(0, num_equal_N + 1)
    variance_N = samples.var(0, ddof=1)
    return ClipSpread(
        ranks=np.bincount(rank_N, minlength=len(samples) + 1),
        spread=float(np.sqrt(variance_N.mean())),
        error=float(np.sqrt(((samples.mean(0) - truth) ** 2).mean())),
    )


def calibration(clips: Sequence[ClipSpread]) -> Calibration:
    """All clips together: coverage by rank, and whether clips with a larger spread have a larger error."""
    if not clips:
        raise ValueError("calibration needs at least one clip")
    ranks = np.sum([clip.ranks for clip in clips], axis=0)
    count = len(ranks)
    num_samples = count - 1
    trims = range(num_samples // 2, 0, -1)
    spread = np.array([clip.spread for clip in clips])
    error = np.array([clip.error for clip in clips])
    varies = len(clips) > 2 and np.ptp(spread) > 0 and np.ptp(error) > 0
    return Calibration(
        num_samples=num_samples,
        levels=tuple((count - 2 * trim) / count for trim in trims),
        coverage=tuple(float(ranks[trim : count - trim].sum() / ranks.sum()) for trim in trims),
        spread=tuple(spread.tolist()),
        error=tuple(error.tolist()),
        correlation=float(spearmanr(spread, error).statistic) if varies else None,
    )
