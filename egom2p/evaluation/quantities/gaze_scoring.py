"""Gaze: distances in the picture and angles, over the samples that are valid in the truth."""

from collections.abc import Mapping, Sequence

import numpy as np

from egom2p.contracts import AlignedClip
from egom2p.evaluation.scoring import DriftScoring, Estimates, ProtocolConfig, Scores, Scoring, TrackBaselines
from egom2p.metrics.gaze import gaze_errors
from egom2p.metrics.result_table import Metric

_OVER = "mean over samples that are valid in the truth"
_METRICS = (
    Metric("distance", "distance", "image sizes", f"{_OVER}, image = [0, 1]", is_primary=True),
    Metric("distance_px", "distance", "px", f"{_OVER}, pixels of the clip", decimals=2),
    Metric("angle_deg", "angle", "deg", f"{_OVER}, between rays through the intrinsics", decimals=2),
    Metric("auc", "AUC", "", f"{_OVER}, of Lai et al. 2022 on a 64x64 map", True),
    Metric("mse", "MSE", "image²", f"{_OVER} and both coordinates, image = [0, 1]", decimals=4),
)
_DRIFT_METRICS = (
    Metric("distance", "distance", "image sizes", "mean over samples valid in the truth", False, True),
    Metric(
        "overlap", "overlap", "image sizes",
        "mean |difference| of neighbouring windows on the overlap, per coordinate",
    ),
)  # fmt: skip
_LAW = "gaze_law"  # stream of the synthetic world: where its own law points, without noise


def _score(estimate: np.ndarray, truth: AlignedClip, stream: str, protocol: ProtocolConfig) -> Scores:
    errors = gaze_errors(estimate, truth.gaze, truth.gaze_is_valid, intrinsics=truth.intrinsics)
    return {metric.key: errors[metric.key] for metric in _METRICS}


def _bounds(clips: Sequence[AlignedClip]) -> Mapping[str, Estimates]:
    """The gaze a world's own law points at: about the best an estimate from the picture can be."""
    if not all(_LAW in clip for clip in clips):
        return {}
    return {"law of the world, without its noise": [np.asarray(clip.streams[_LAW].values) for clip in clips]}


def _drift(
    estimate: np.ndarray, truth: np.ndarray, is_valid: np.ndarray, segments_m: Sequence[float], rate_hz: float
) -> Scores:
    return {"distance": gaze_errors(estimate, truth, is_valid)["distance"]}


SCORING = Scoring(
    metrics=lambda protocol: _METRICS,
    score=_score,
    baselines=lambda: TrackBaselines("mean gaze", {"image centre": (0.5, 0.5)}),
    spread_unit="image sizes",
    bounds=_bounds,
    drift=DriftScoring(_DRIFT_METRICS, _drift),
)
