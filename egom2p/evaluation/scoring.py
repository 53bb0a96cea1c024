"""What an evaluation has to know of a quantity; `quantities/` has one `Scoring` of each.

K samples of one clip, T frames or samples of a stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from egom2p.config import strict
from egom2p.contracts import AlignedClip, Stream
from egom2p.metrics.calibration import ClipSpread, clip_spread
from egom2p.metrics.perceptual import FvdConfig, LpipsConfig
from egom2p.metrics.result_table import Metric

ALIGNMENT_WORDS = {
    "none": "no alignment",
    "median": "scaled by the median, one scale per video",
    "scale_shift": "scale and shift fitted in disparity, one per video",
    "first_pose": "first poses laid on each other, metric scale",
    "se3": "rigidly aligned (SE3)",
    "sim3": "aligned with scale (Sim3)",
    "rotation": "rotation-only alignment about the first pose",
}
_MAX_VALUES = 4096  # of one clip, drawn at random: neighbouring pixels say the same

Scores = dict[str, float | None]
Estimates = Sequence[np.ndarray]


@strict
class ProtocolConfig:
    """Alignments under which depth and camera are scored; the first is the one that verdicts use.

    lpips, fvd   perceptual metrics of rgb, from weights on the local disk (None: not measured)
    """

    depth_alignments: tuple[str, ...] = ("none", "median")  # of predicted to true depth, before errors are taken
    camera_alignments: tuple[str, ...] = ("first_pose", "se3")  # of predicted to true paths
    lpips: LpipsConfig | None = None
    fvd: FvdConfig | None = None

    def __post_init__(self) -> None:
        if not self.depth_alignments or not self.camera_alignments:
            raise ValueError("depth_alignments and camera_alignments need at least one entry each")
        unknown = sorted(set((*self.depth_alignments, *self.camera_alignments)) - set(ALIGNMENT_WORDS))
        if unknown:
            raise ValueError(f"unknown alignments {unknown}; known: {sorted(ALIGNMENT_WORDS)}")


class Baselines(Protocol):
    """Estimates that ignore the input: what a trained model has to beat.

    Most come from one pass over the training clips; some need none, and are there in every evaluation.
    """

    def add(self, stream: Stream) -> None: ...

    def estimates(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Label -> estimate of a stream of this shape (T, ...); only those that need no training clips where none was
        added.
        """
        ...


@dataclass(frozen=True)
class DriftScoring:
    """What is measured of one long result.

    score       of values (T, ...) against truth (T, ...) and its validity (T,); further: metres of the camera's
                segments, pictures a second
    baselines   label -> estimate, of the truth
    """

    metrics: tuple[Metric, ...]
    score: Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[float], float], Scores]
    baselines: Callable[[np.ndarray], Mapping[str, np.ndarray]] = lambda truth: {}


def values_where_valid(
    samples: np.ndarray, truth: np.ndarray, is_valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Samples (K, N) and truth (N,) of all channels where the truth is valid."""
    return samples[:, is_valid], truth[is_valid]


def mean_of_values(samples: np.ndarray) -> np.ndarray:
    """Mean (T, ...) of estimates (K, T, ...)."""
    return samples.mean(0, dtype=np.float64).astype(samples.dtype)


@dataclass(frozen=True)
class Scoring:
    """Everything that an evaluation asks of one quantity.

    metrics      columns of its table, by protocol
    score        values of `metrics` for one clip: estimate (T, ...), the true clip, the name of its stream, protocol;
                 ValueError when the estimate cannot be scored (not finite, wrong shape)
    baselines    a new collector
    comparable   numbers of samples (K, T, ...) and of the truth (T, ...) with its validity that are held against each
                 other, both flat; None: there are none
    spread_unit  their unit
    mean         one estimate of several
    bounds       label -> estimates of the clips that are about the best any method can do
    of_the_set   None, or what scores the estimates of all clips together
    drift        what is measured of long results; None: nothing
    """

    metrics: Callable[[ProtocolConfig], tuple[Metric, ...]]
    score: Callable[[np.ndarray, AlignedClip, str, ProtocolConfig], Scores]
    baselines: Callable[[], Baselines]
    spread_unit: str = ""
    comparable: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray] | None] = (
        values_where_valid
    )
    mean: Callable[[np.ndarray], np.ndarray] = mean_of_values
    bounds: Callable[[Sequence[AlignedClip]], Mapping[str, Estimates]] = lambda clips: {}
    of_the_set: (
        Callable[[ProtocolConfig, Sequence[AlignedClip]], Callable[[Estimates], dict[str, float]] | None] | None
    ) = None
    drift: DriftScoring | None = None

    def mean_of_samples(self, samples: np.ndarray) -> np.ndarray:
        """One estimate (T, ...) of K (K, T, ...)."""
        return samples[0] if len(samples) == 1 else self.mean(samples)

    def spread(self, samples: np.ndarray, stream: Stream, rng: np.random.Generator) -> ClipSpread | None:
        """Spread and ranks of the samples (K, T, ...) of one clip.

        None when the truth has no value that could be compared, or the samples are of another size.
        """
        truth = np.asarray(stream.values)
        if samples.shape[1:] != truth.shape:
            return None
        is_valid = np.broadcast_to(stream.is_valid.reshape(-1, *[1] * (truth.ndim - 1)), truth.shape)
        found = self.comparable(samples, truth, is_valid)
        if found is None:
            return None
        samples, truth = found[0].reshape(len(samples), -1), found[1].reshape(-1)
        if truth.size == 0 or not (np.isfinite(samples).all() and np.isfinite(truth).all()):
            return None
        if truth.size > _MAX_VALUES:  # drawn, since a step that divides the picture's width keeps to a few columns
            kept = rng.choice(truth.size, _MAX_VALUES, replace=False)
            samples, truth = samples[:, kept], truth[kept]
        return clip_spread(samples, truth, rng)


class Mean:
    """Mean over the first axis of all arrays added, cell by cell, of valid entries; the overall mean where none is."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self._count: np.ndarray | float = 0.0

    def add(self, values: np.ndarray, is_valid: np.ndarray) -> None:
        self._sum = self._sum + np.where(is_valid, values, 0).sum(0, dtype=np.float64)
        self._count = self._count + is_valid.sum(0)

    def value(self) -> np.ndarray | None:
        total = np.sum(self._count)
        if total == 0:
            return None
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.sum(self._sum) / total)


class TrackBaselines:
    """The mean of the valid samples of a track, at every time.

    label   of that row; further: label -> one sample (C,) of rows that need no training clips
    """

    def __init__(self, label: str, further: Mapping[str, Sequence[float]] | None = None) -> None:
        self._mean, self._label, self._further = Mean(), label, dict(further or {})

    def add(self, stream: Stream) -> None:
        is_valid = np.repeat(stream.is_valid[:, None], stream.values.shape[1], axis=1)
        self._mean.add(np.where(is_valid, stream.values, 0.0), is_valid)

    def estimates(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        mean = self._mean.value()
        samples = {} if mean is None else {self._label: mean}
        samples |= {label: np.asarray(one) for label, one in self._further.items()}
        return {label: np.tile(one, (shape[0], 1)) for label, one in samples.items()}
