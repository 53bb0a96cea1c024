"""What a drift table measures of one long result.

S poses, F frames.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from egom2p.evaluation.results import Metric
from egom2p.generation.long_generation import LongResult
from egom2p.generation.stitching import overlap_summary
from egom2p.geometry import canonicalise
from egom2p.metrics.camera import camera_errors
from egom2p.metrics.depth import depth_errors
from egom2p.metrics.drift import path_length_m, scale_drift, segment_errors
from egom2p.metrics.gaze import gaze_errors

_CAMERA = (
    Metric("translation_percent", "translation", "%", "mean over segments of the lengths named above", False, True, 1),
    Metric("rotation_deg_per_m", "rotation", "deg/m", "mean over the same segments", decimals=2),
    Metric("ate_m", "ATE, first_pose", "m", "RMSE of positions, first poses laid on each other"),
    Metric("ate_se3_m", "ATE, se3", "m", "RMSE of positions, rigidly aligned"),
    Metric("end_percent", "end", "%", "distance of the last positions over the path's length", decimals=1),
    Metric(
        "overlap_m",
        "overlap",
        "m",
        "RMS disagreement of neighbouring windows on their overlap, after aligning",
        decimals=3,
    ),
    Metric("overlap_deg", "overlap", "deg", "the same, of rotations", decimals=2),
)
_DEPTH = (
    Metric("abs_rel", "AbsRel", "", "no alignment, all pixels of the recording", False, True),
    Metric("abs_rel_median", "AbsRel, median", "", "one median scale per recording"),
    Metric("spread_percent", "scale spread", "%", "standard deviation over frames of the log of the scale", decimals=1),
    Metric("slope_percent_per_s", "scale trend", "%/s", "slope of the log of the scale", decimals=2),
    Metric("step_percent", "scale step", "%", "mean change of the log of the scale from frame to frame", decimals=2),
    Metric(
        "overlap_log_placed",
        "overlap",
        "log",
        "mean |log ratio| of neighbouring windows on the overlap, after aligning",
    ),
)
_GAZE = (
    Metric("distance", "distance", "image sizes", "mean over samples valid in the truth", False, True),
    Metric(
        "overlap", "overlap", "image sizes", "mean |difference| of neighbouring windows on the overlap, per coordinate"
    ),
)
METRICS = {"camera": _CAMERA, "depth": _DEPTH, "gaze": _GAZE}


def long_scores(
    result: LongResult,
    truth: Mapping[str, tuple[np.ndarray, np.ndarray]],
    segments_m: Sequence[float],
    rate_hz: float,
) -> dict[str, dict[str, float | None]]:
    """Quantity -> metric -> value, of the targets that have a truth.

    truth     stream -> values and validity of the whole recording; rate_hz: of its pictures
    """
    clip, found = result.generated.clip, {}
    for name in set(result.generated.made_streams) & set(truth):
        overlaps = overlap_summary(list(result.overlaps[name]))
        wanted, is_valid = truth[name]
        if name == "camera":
            found[name] = camera_drift(clip.world_from_cam[: len(wanted)], wanted, segments_m) | overlaps
        elif name == "depth":
            found[name] = _depth(clip.depth_m[: len(wanted)], wanted, rate_hz) | overlaps
        else:
            distance = gaze_errors(clip.gaze[: len(wanted)], wanted, is_valid)["distance"]
            found[name] = {"distance": distance} | overlaps
    return found


def camera_drift(estimate: np.ndarray, reference: np.ndarray, segments_m: Sequence[float]) -> dict[str, float | None]:
    """Errors of poses (S, 4, 4) by distance travelled, over the whole, and at the end."""
    first, aligned = (camera_errors(estimate, reference, mode) for mode in ("first_pose", "se3"))
    relative = canonicalise(estimate)
    end_m = float(np.linalg.norm(relative[-1, :3, 3] - canonicalise(reference)[-1, :3, 3]))
    length_m = path_length_m(reference)
    return segment_errors(estimate, reference, segments_m) | {
        "ate_m": first["ate_m"],
        "ate_se3_m": aligned["ate_m"],
        "end_percent": 100 * end_m / length_m if length_m > 0 else None,
    }


def _depth(estimate: np.ndarray, reference: np.ndarray, rate_hz: float) -> dict[str, float | None]:
    plain, median = (depth_errors(estimate, reference, alignment=name) for name in ("none", "median"))
    drift = scale_drift(estimate, reference, rate_hz=rate_hz)
    return {"abs_rel": plain["abs_rel"], "abs_rel_median": median["abs_rel"]} | drift
