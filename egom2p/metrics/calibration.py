"""Does the spread of several samples say how far they are from the truth?

K samples per clip, N values of one clip (coordinates of gaze or position, pixels of depth), B clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

STRETCHED_SHARE, FOLDS = 0.8, 5


@dataclass(frozen=True)
class ClipSpread:
    """Samples of one clip against its truth.

    ranks   (K + 1,) how many of the N values have exactly k samples below the truth
    spread  root mean square over values of the samples' standard deviation
    error   root mean square over values of the mean sample's distance from the truth, same unit
    needed  (N,) how often as far from their mean the samples would have to lie for their range to reach the truth
    """

    ranks: np.ndarray
    spread: float
    error: float
    needed: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Samples of many clips against their truths.

    levels       nominal shares of central intervals, ascending: the interval between the j lowest and j highest of K
                 samples holds (K + 1 - 2 j) / (K + 1) of draws from the same distribution
    coverage     share of the true values that lie inside them
    spread       (B,) per clip; error (B,) per clip
    correlation  Spearman's, of spread and error over clips; None below 3 clips or without any variation
    stretch      factor by which samples are moved away from their mean so that their range, from the lowest to the
                 highest, holds STRETCHED_SHARE of the true values; None below FOLDS clips, or where no factor does
    stretched    share that it holds of clips which the factor was not fitted to: of each of FOLDS parts, one after the
                 other, by the factor of the others
    """

    num_samples: int
    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    spread: tuple[float, ...]
    error: tuple[float, ...]
    correlation: float | None
    stretch: float | None = field(default=None, kw_only=True)
    stretched: float | None = field(default=None, kw_only=True)


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
        needed=_needed(samples, truth),
    )


def _needed(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    mean_N = samples.mean(0)
    reach_N = np.where(truth > mean_N, samples.max(0) - mean_N, mean_N - samples.min(0))
    off_N = np.abs(truth - mean_N)
    return np.divide(off_N, reach_N, out=np.where(off_N > 0, np.inf, 0.0), where=reach_N > 0).astype(np.float32)


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
    stretch, stretched = _stretch(clips)
    varies = len(clips) > 2 and np.ptp(spread) > 0 and np.ptp(error) > 0
    return Calibration(
        num_samples=num_samples,
        levels=tuple((count - 2 * trim) / count for trim in trims),
        coverage=tuple(float(ranks[trim : count - trim].sum() / ranks.sum()) for trim in trims),
        spread=tuple(spread.tolist()),
        error=tuple(error.tolist()),
        correlation=float(spearmanr(spread, error).statistic) if varies else None,
        stretch=stretch,
        stretched=stretched,
    )


def _stretch(clips: Sequence[ClipSpread]) -> tuple[float | None, float | None]:
    """The factor of all clips, and the share that factors hold of clips they were not fitted to."""
    if len(clips) < FOLDS:
        return None, None
    needed = [clip.needed for clip in clips]
    # Parts of clips that follow each other, since clips of one recording are alike.
    parts = [np.concatenate(needed[part[0] : part[-1] + 1]) for part in np.array_split(np.arange(len(clips)), FOLDS)]
    held = 0
    for number, part in enumerate(parts):
        factor = _factor(parts[:number] + parts[number + 1 :])
        held += (part <= factor).sum() if np.isfinite(factor) else 0
    whole = _factor(parts)
    return (whole, float(held / sum(map(len, parts)))) if np.isfinite(whole) else (None, None)


def _factor(parts: Sequence[np.ndarray]) -> float:
    return float(np.quantile(np.concatenate(parts), STRETCHED_SHARE, method="higher"))
