"""Score an estimate of one stream against the truth of a clip: which metrics, by which protocol.

F frames, S samples of a track, H, W pixels.
"""

import functools
from typing import Any

import numpy as np

from egom2p.config import strict
from egom2p.contracts import AlignedClip
from egom2p.evaluation.results import Metric
from egom2p.geometry import canonicalise
from egom2p.metrics.camera import camera_errors
from egom2p.metrics.caption import text_errors
from egom2p.metrics.depth import depth_errors
from egom2p.metrics.gaze import gaze_errors
from egom2p.metrics.perceptual import FvdConfig, Lpips, LpipsConfig
from egom2p.metrics.track import track_errors
from egom2p.metrics.video import video_errors

_ALIGNMENT_WORDS = {
    "none": "no alignment",
    "median": "scaled by the median, one scale per video",
    "scale_shift": "scale and shift fitted in disparity, one per video",
    "first_pose": "first poses laid on each other, metric scale",
    "se3": "rigidly aligned (SE3)",
    "sim3": "aligned with scale (Sim3)",
    "rotation": "rotation-only alignment about the first pose",
}


@strict
class ProtocolConfig:
    """Alignments under which depth and camera are scored; the first is the one that verdicts use.

    lpips, fvd   perceptual metrics of rgb, from weights on the local disk (None: not measured)
    """

    depth_alignments: tuple[str, ...] = ("none", "median")
    camera_alignments: tuple[str, ...] = ("first_pose", "se3")
    lpips: LpipsConfig | None = None
    fvd: FvdConfig | None = None

    def __post_init__(self) -> None:
        if not self.depth_alignments or not self.camera_alignments:
            raise ValueError("depth_alignments and camera_alignments need at least one entry each")
        unknown = sorted(set((*self.depth_alignments, *self.camera_alignments)) - set(_ALIGNMENT_WORDS))
        if unknown:
            raise ValueError(f"unknown alignments {unknown}; known: {sorted(_ALIGNMENT_WORDS)}")


def metrics_of(quantity: str, protocol: ProtocolConfig) -> tuple[Metric, ...]:
    """Columns of the table of a quantity."""
    if quantity == "depth":
        return tuple(metric for name in protocol.depth_alignments for metric in _depth_metrics(name, protocol))
    if quantity == "camera":
        return tuple(metric for name in protocol.camera_alignments for metric in _camera_metrics(name, protocol))
    if quantity == "gaze":
        over = "mean over samples that are valid in the truth"
        return (
            Metric("distance", "distance", "image sizes", f"{over}, image = [0, 1]", is_primary=True),
            Metric("distance_px", "distance", "px", f"{over}, pixels of the clip", decimals=2),
            Metric("angle_deg", "angle", "deg", f"{over}, between rays through the intrinsics", decimals=2),
            Metric("auc", "AUC", "", f"{over}, of Lai et al. 2022 on a 64x64 map", True),
            Metric("mse", "MSE", "image²", f"{over} and both coordinates, image = [0, 1]", decimals=4),
        )
    if quantity == "rgb":
        likeness = (
            Metric("psnr_db", "PSNR", "dB", "per frame, mean over frames", True, True, 2),
            Metric("ssim", "SSIM", "", "per frame, window 11, mean over channels and frames", True),
        )
        perceptual = Metric("lpips", "LPIPS", "", "AlexNet v0.1, per frame, mean over frames")
        return likeness if protocol.lpips is None else (*likeness, perceptual)
    if quantity == "generic":
        return (
            Metric("rms_error", "RMS error", "", "over valid samples and channels, unit of the track", False, True),
        )
    if quantity == "text":
        words = "case and spaces do not count"
        return (
            Metric("exact", "exact", "", f"share of texts with exactly the true words, {words}", True, True),
            Metric("word_error_rate", "WER", "", f"words to change over words of the truth, {words}"),
        )
    raise ValueError(f"no metrics for quantity {quantity!r}")


def _camera_errors(estimate: np.ndarray, truth: np.ndarray, alignment: str) -> dict[str, Any]:
    """The rotation-only alignment turns about the origin, which is the first pose only when both start there."""
    if alignment == "rotation":
        estimate, truth = canonicalise(estimate), canonicalise(truth)
    return camera_errors(estimate, truth, alignment)


@functools.cache
def _lpips(config: LpipsConfig) -> Lpips:
    return Lpips.from_files(config)


def _depth_metrics(alignment: str, protocol: ProtocolConfig) -> tuple[Metric, ...]:
    words, is_first = _ALIGNMENT_WORDS[alignment], alignment == protocol.depth_alignments[0]
    tail = "" if alignment == "none" else f", {alignment}"
    return (
        Metric(
            f"abs_rel/{alignment}", f"AbsRel{tail}", "", f"{words}, over valid pixels of the video", False, is_first
        ),
        Metric(f"rmse_m/{alignment}", f"RMSE{tail}", "m", f"{words}, over valid pixels of the video"),
        Metric(f"delta1/{alignment}", f"δ<1.25{tail}", "", f"{words}, share of valid pixels", True),
    )


def _camera_metrics(alignment: str, protocol: ProtocolConfig) -> tuple[Metric, ...]:
    words, is_first = _ALIGNMENT_WORDS[alignment], alignment == protocol.camera_alignments[0]
    metrics = [Metric(f"ate_m/{alignment}", f"ATE, {alignment}", "m", f"RMSE of positions, {words}", False, is_first)]
    if is_first:
        metrics += [
            Metric(f"rpe_t_m/{alignment}", "RPE-t", "m", f"RMSE of motion over one sample, {words}", decimals=4),
            Metric(f"rpe_r_deg/{alignment}", "RPE-r", "deg", f"RMSE of rotation over one sample, {words}"),
        ]
    return tuple(metrics)


def score(
    quantity: str, estimate: np.ndarray, truth: AlignedClip, protocol: ProtocolConfig, *, stream: str = ""
) -> dict[str, float | None]:
    """Values of `metrics_of(quantity)` for one clip; estimate (T, ...) in the stream's unit.

    stream   name of the stream in the clip, for a generic quantity
    Raises ValueError when the estimate cannot be scored (not finite, wrong shape).
    """
    if quantity == "depth":
        found = {name: depth_errors(estimate, truth.depth_m, alignment=name) for name in protocol.depth_alignments}
        return {
            f"{metric}/{name}": errors[metric]
            for name, errors in found.items()
            for metric in ("abs_rel", "rmse_m", "delta1")
        }
    if quantity == "camera":
        found = {name: _camera_errors(estimate, truth.world_from_cam, name) for name in protocol.camera_alignments}
        values = {f"ate_m/{name}": errors["ate_m"] for name, errors in found.items()}
        first = protocol.camera_alignments[0]
        return values | {f"{metric}/{first}": found[first][metric] for metric in ("rpe_t_m", "rpe_r_deg")}
    if quantity == "gaze":
        errors = gaze_errors(estimate, truth.gaze, truth.gaze_is_valid, intrinsics=truth.intrinsics)
        return {key: errors[key] for key in ("distance", "distance_px", "angle_deg", "auc", "mse")}
    if quantity == "rgb":
        errors = video_errors(estimate, truth.rgb)
        values = {key: errors[key] for key in ("psnr_db", "ssim")}
        if protocol.lpips is not None:
            values["lpips"] = float(_lpips(protocol.lpips)(estimate, truth.rgb).mean())
        return values
    if quantity == "generic":
        wanted = truth.streams[stream]
        return {"rms_error": track_errors(estimate, wanted.values, wanted.is_valid)["rms_error"]}
    if quantity == "text":
        return text_errors(str(estimate[0]), str(truth.streams[stream].values[0]))
    raise ValueError(f"no metrics for quantity {quantity!r}")
