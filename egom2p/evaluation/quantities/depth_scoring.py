"""Depth: metric and scale-free errors over the valid pixels of a video; of long results how the scale drifts.

F frames, H, W pixels.
"""

from collections.abc import Sequence

import numpy as np

from egom2p.contracts import AlignedClip, Stream
from egom2p.evaluation.scoring import ALIGNMENT_WORDS, DriftScoring, Mean, ProtocolConfig, Scores, Scoring
from egom2p.metrics.depth import depth_errors
from egom2p.metrics.drift import scale_drift
from egom2p.metrics.result_table import Metric

_CONSTANT_M = 2.0  # about how far away indoors is; scaled by the median, any constant is the same


def _metrics(protocol: ProtocolConfig) -> tuple[Metric, ...]:
    return tuple(metric for name in protocol.depth_alignments for metric in _aligned(name, protocol))


def _aligned(alignment: str, protocol: ProtocolConfig) -> tuple[Metric, ...]:
    words, is_first = ALIGNMENT_WORDS[alignment], alignment == protocol.depth_alignments[0]
    tail = "" if alignment == "none" else f", {alignment}"
    return (
        Metric(
            f"abs_rel/{alignment}", f"AbsRel{tail}", "", f"{words}, over valid pixels of the video", False, is_first
        ),
        Metric(f"rmse_m/{alignment}", f"RMSE{tail}", "m", f"{words}, over valid pixels of the video"),
        Metric(f"delta1/{alignment}", f"δ<1.25{tail}", "", f"{words}, share of valid pixels", True),
    )


def _score(estimate: np.ndarray, truth: AlignedClip, stream: str, protocol: ProtocolConfig) -> Scores:
    found = {name: depth_errors(estimate, truth.depth_m, alignment=name) for name in protocol.depth_alignments}
    return {
        f"{metric}/{name}": errors[metric]
        for name, errors in found.items()
        for metric in ("abs_rel", "rmse_m", "delta1")
    }


class _Baselines:
    """Per pixel: the arithmetic mean, best for squared errors, and the geometric one, better for relative ones.

    Without training clips: one distance everywhere.
    """

    def __init__(self) -> None:
        self._depth, self._log_depth = Mean(), Mean()

    def add(self, stream: Stream) -> None:
        is_valid = stream.values > 0
        self._depth.add(stream.values, is_valid)
        self._log_depth.add(np.log(np.where(is_valid, stream.values, 1.0)), is_valid)

    def estimates(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        found = {f"constant depth, {_CONSTANT_M:g} m": np.full(shape, _CONSTANT_M, np.float32)}
        mean_m, log_mean = self._depth.value(), self._log_depth.value()
        if mean_m is None or log_mean is None:
            return found
        return found | {
            "per-pixel mean depth": np.repeat(mean_m[None], shape[0], axis=0),
            "per-pixel geometric mean depth": np.repeat(np.exp(log_mean)[None], shape[0], axis=0),
        }


def _comparable(samples: np.ndarray, truth: np.ndarray, is_valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms, where the truth and every sample have depth."""
    is_valid = is_valid & (truth > 0) & (samples > 0).all(0)
    samples, truth = np.log(np.where(is_valid, samples, 1.0)), np.log(np.where(is_valid, truth, 1.0))
    return samples[:, is_valid], truth[is_valid]


_DRIFT_METRICS = (
    Metric("abs_rel", "AbsRel", "", "no alignment, all pixels of the recording", False, True),
    Metric("abs_rel_median", "AbsRel, median", "", "one median scale per recording"),
    Metric("spread_percent", "scale spread", "%", "standard deviation over frames of the log of the scale", decimals=1),
    Metric("slope_percent_per_s", "scale trend", "%/s", "slope of the log of the scale", decimals=2),
    Metric("step_percent", "scale step", "%", "mean change of the log of the scale from frame to frame", decimals=2),
    Metric(
        "overlap_log", "overlap", "log",
        "mean |log ratio| of neighbouring windows on the overlap, after aligning",
    ),
)  # fmt: skip


def _drift(
    estimate: np.ndarray, truth: np.ndarray, is_valid: np.ndarray, segments_m: Sequence[float], rate_hz: float
) -> Scores:
    plain, median = (depth_errors(estimate, truth, alignment=name) for name in ("none", "median"))
    found = scale_drift(estimate, truth, rate_hz=rate_hz)
    return {"abs_rel": plain["abs_rel"], "abs_rel_median": median["abs_rel"]} | found


SCORING = Scoring(
    metrics=_metrics,
    score=_score,
    baselines=_Baselines,
    spread_unit="log depth",
    comparable=_comparable,
    drift=DriftScoring(_DRIFT_METRICS, _drift),
)
