"""Pictures: likeness per frame; perceptual distances where their weights are given."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from egom2p.contracts import AlignedClip, Stream
from egom2p.evaluation.scoring import Estimates, Mean, ProtocolConfig, Scores, Scoring, mean_of_values
from egom2p.metrics.perceptual import Lpips, LpipsConfig, VideoFeatures, frechet_distance
from egom2p.metrics.result_table import Metric
from egom2p.metrics.video import video_errors


def _metrics(protocol: ProtocolConfig) -> tuple[Metric, ...]:
    likeness = (
        Metric("psnr_db", "PSNR", "dB", "per frame, mean over frames", True, True, 2),
        Metric("ssim", "SSIM", "", "per frame, window 11, mean over channels and frames", True),
    )
    perceptual = Metric("lpips", "LPIPS", "", "AlexNet v0.1, per frame, mean over frames")
    return likeness if protocol.lpips is None else (*likeness, perceptual)


def _score(estimate: np.ndarray, truth: AlignedClip, stream: str, protocol: ProtocolConfig) -> Scores:
    errors = video_errors(estimate, truth.rgb)
    values: Scores = {key: errors[key] for key in ("psnr_db", "ssim")}
    if protocol.lpips is not None:
        values["lpips"] = float(_lpips(protocol.lpips)(estimate, truth.rgb).mean())
    return values


@functools.cache
def _lpips(config: LpipsConfig) -> Lpips:
    return Lpips.from_files(config)


def _of_the_set(
    protocol: ProtocolConfig, clips: Sequence[AlignedClip]
) -> Callable[[Estimates], dict[str, float]] | None:
    """FVD of the estimates. Weights and program are checked here, before anything is generated."""
    if protocol.fvd is None:
        return None
    features = VideoFeatures(protocol.fvd)
    true_features = features(clip.rgb for clip in clips)
    return lambda estimates: {"FVD": frechet_distance(features(estimates), true_features)} if len(clips) > 1 else {}


class _Baselines:
    def __init__(self) -> None:
        self._mean = Mean()

    def add(self, stream: Stream) -> None:
        self._mean.add(stream.values.astype(np.float64), np.ones(stream.values.shape, bool))

    def estimates(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        mean = self._mean.value()
        return (
            {} if mean is None else {"mean frame": np.repeat(np.round(mean).astype(np.uint8)[None], shape[0], axis=0)}
        )


SCORING = Scoring(
    metrics=_metrics,
    score=_score,
    baselines=_Baselines,
    spread_unit="grey levels",
    mean=lambda samples: np.round(mean_of_values(samples.astype(np.float64))).astype(np.uint8),
    of_the_set=_of_the_set,
)
