"""How a long estimate walks away from the truth.

S poses, F frames, H, W pixels. Poses are world_from_cam in metres, paired by index.
"""

from collections.abc import Sequence

import numpy as np

from egom2p.contracts import check_shape
from egom2p.geometry import check_poses, inverse_poses, rotation_angle


def path_length_m(poses: np.ndarray) -> float:
    """Metres travelled along poses (S, 4, 4)."""
    return float(_travelled_m(check_poses("poses", poses))[-1])


def segment_errors(estimate: np.ndarray, reference: np.ndarray, lengths_m: Sequence[float]) -> dict[str, float | None]:
    """Relative errors over segments of the reference that are `lengths_m` long, as the KITTI odometry benchmark does.

    translation_percent   mean |error of the motion over the segment| / length
    rotation_deg_per_m    mean angle of that error / length
    num_segments          segments compared: from every sample, every length that still fits
    No segment fits: the errors are None. No alignment is needed: motions are seen from their first pose.
    """
    estimate, reference = check_poses("estimate", estimate), check_poses("reference", reference)
    if len(estimate) != len(reference):
        raise ValueError(f"found {len(estimate)} estimated and {len(reference)} reference poses, wanted as many")
    if not lengths_m or min(lengths_m) <= 0:
        raise ValueError(f"lengths_m must be positive, at least one, got {list(lengths_m)}")
    travelled_m = _travelled_m(reference)
    translations, rotations = [], []
    for length_m in lengths_m:
        last = np.searchsorted(travelled_m, travelled_m + length_m)
        first = np.flatnonzero(last < len(reference))
        if len(first) == 0:
            continue
        last = last[first]
        wanted = inverse_poses(reference[first]) @ reference[last]
        error = inverse_poses(wanted) @ inverse_poses(estimate[first]) @ estimate[last]
        translations.append(np.linalg.norm(error[:, :3, 3], axis=1) / length_m)
        rotations.append(np.degrees(rotation_angle(error[:, :3, :3])) / length_m)
    if not translations:
        return {"translation_percent": None, "rotation_deg_per_m": None, "num_segments": 0}
    all_translations = np.concatenate(translations)
    return {
        "translation_percent": 100 * float(all_translations.mean()),
        "rotation_deg_per_m": float(np.concatenate(rotations).mean()),
        "num_segments": len(all_translations),
    }


def scale_drift(estimate: np.ndarray, reference: np.ndarray, *, rate_hz: float) -> dict[str, float | None]:
    """How the scale of depth (F, H, W) metres wanders over time; 0 is invalid.

    The scale of a frame is the median of estimate / reference over its known pixels.
    spread_percent   standard deviation of the logarithm of the scale over frames
    slope_percent_per_s   |trend| of the logarithm of the scale by time
    step_percent     mean change of the logarithm of the scale from one frame to the next: flicker and jumps at overlaps
    With fewer than two frames that can be compared all are None.
    """
    estimate, reference = np.asarray(estimate, np.float64), np.asarray(reference, np.float64)
    check_shape("estimate", estimate, "f h w", **check_shape("reference", reference, "f h w"))
    frames, logs = [], []
    for frame, (found, wanted) in enumerate(zip(estimate, reference, strict=True)):
        is_known = (found > 0) & (wanted > 0)
        if is_known.any():
            frames.append(frame)
            logs.append(np.log(np.median(found[is_known] / wanted[is_known])))
    if len(logs) < 2:
        return {"spread_percent": None, "slope_percent_per_s": None, "step_percent": None}
    slope = np.polyfit(np.array(frames) / rate_hz, logs, 1)[0]
    is_next = np.diff(frames) == 1
    steps = np.abs(np.diff(logs))[is_next]
    return {
        "spread_percent": 100 * float(np.std(logs)),
        "slope_percent_per_s": 100 * float(abs(slope)),
        "step_percent": 100 * float(steps.mean()) if len(steps) else None,
    }


def _travelled_m(poses: np.ndarray) -> np.ndarray:
    """(S,) metres from the first pose."""
    steps_m = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps_m)])
