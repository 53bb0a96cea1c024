"""Tracks that the project knows nothing of: the error in the unit of the track."""

import numpy as np

from egom2p.contracts import AlignedClip
from egom2p.evaluation.scoring import ProtocolConfig, Scores, Scoring, TrackBaselines
from egom2p.metrics.result_table import Metric
from egom2p.metrics.track import track_errors

_METRICS = (Metric("rms_error", "RMS error", "", "over valid samples and channels, unit of the track", False, True),)


def _score(estimate: np.ndarray, truth: AlignedClip, stream: str, protocol: ProtocolConfig) -> Scores:
    wanted = truth.streams[stream]
    return {"rms_error": track_errors(estimate, wanted.values, wanted.is_valid)["rms_error"]}


SCORING = Scoring(metrics=lambda protocol: _METRICS, score=_score, baselines=lambda: TrackBaselines("mean value"))
