"""Errors of depth video.

F frames, H, W pixels. Depth is metres along the camera's z axis; 0 (or less) is invalid. Pixels invalid in the
reference never count; pixels the estimate leaves out are not scored but lower `coverage`.

Alignments (`DEPTH_ALIGNMENTS`):
  none         metric depth, as it is
  median       scale: median of the reference over median of the estimate
  scale_shift  least-squares scale and shift in disparity (1 / depth), then back to depth
Scopes (`DEPTH_SCOPES`):
  video        one alignment for all frames, errors over all pixels of the video (the custom for video depth)
  frame        an alignment for each frame, errors per frame, then their mean over frames that have valid pixels
"""

from typing import Any

import numpy as np

from egom2p.contracts import check_shape

DEPTH_METRICS = ("abs_rel", "sq_rel", "rmse_m", "rmse_log", "delta1", "delta2", "delta3")
DEPTH_ALIGNMENTS = ("none", "median", "scale_shift")
DEPTH_SCOPES = ("video", "frame")


def depth_errors(
    estimate: np.ndarray,
    reference: np.ndarray,
    *,
    alignment: str = "none",
    scope: str = "video",
    estimate_is_disparity: bool = False,
    range_m: tuple[float, float] = (1e-3, 80.0),
) -> dict[str, Any]:
    """Errors of depth `estimate` (F, H, W) against `reference` (F, H, W) metres.

    abs_rel mean |d - g| / g; sq_rel mean (d - g)^2 / g; rmse_m; rmse_log of ln d - ln g; delta1..3 fraction of pixels
    with max(d / g, g / d) below 1.25, 1.25^2, 1.25^3; num_pixels scored; coverage = scored / valid in the reference;
    alignment and scope as asked; problem: what the alignment could not determine (None: nothing).
    Reference pixels beyond `range_m` are invalid; the aligned estimate is clipped to it.
    `estimate_is_disparity`: the estimate is 1 / depth up to scale (and shift), near = large, every number counts.
    No scored pixel: every error is None. NaN in either raises ValueError; an infinite estimate is far away.
    """
    if alignment not in DEPTH_ALIGNMENTS or scope not in DEPTH_SCOPES:
        raise ValueError(
            f"wanted an alignment of {DEPTH_ALIGNMENTS} and a scope of {DEPTH_SCOPES}, got {alignment!r}, {scope!r}"
        )
    estimate, reference = np.asarray(estimate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    check_shape("estimate", estimate, "f h w", **check_shape("reference", reference, "f h w"))
    for name, depth in (("estimate", estimate), ("reference", reference)):
        if np.isnan(depth).any():
            raise ValueError(f"{name}: {int(np.isnan(depth).sum())} of {depth.size} depths are NaN; invalid depth is 0")
    disparity = estimate if estimate_is_disparity else _inverse(estimate)
    if not np.isfinite(disparity).all():
        raise ValueError("estimate: disparities must be finite")
    is_known = (reference > range_m[0]) & (reference <= range_m[1])
    is_scored = is_known if estimate_is_disparity else is_known & (estimate > 0)
    groups = [np.ones(len(reference), dtype=bool)] if scope == "video" else list(np.eye(len(reference), dtype=bool))
    results, problems = [], []
    for is_member in groups:
        is_used = is_scored & is_member[:, None, None]
        if not is_used.any():
            continue
        aligned_m, problem = _align(disparity[is_used], reference[is_used], alignment, range_m)
        results.append(_errors(aligned_m, reference[is_used]))
        problems += [problem] if problem else []
    errors: dict[str, Any] = {
        name: float(np.mean([result[name] for result in results])) if results else None for name in DEPTH_METRICS
    }
    num_known, num_scored = int(is_known.sum()), int(is_scored.sum())
    errors |= {"num_pixels": num_scored, "coverage": num_scored / num_known if num_known else None}
    return errors | {"alignment": alignment, "scope": scope, "problem": "; ".join(dict.fromkeys(problems)) or None}


def _inverse(depth: np.ndarray) -> np.ndarray:
    """Disparity of valid depth, 0 elsewhere."""
    return np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0)


def _align(
    disparity_N: np.ndarray, reference_m_N: np.ndarray, alignment: str, range_m: tuple[float, float]
) -> tuple[np.ndarray, str | None]:
    """Depth (N,) metres of the aligned estimate, clipped to the range, and what could not be determined."""
    problem = None
    if alignment == "median":
        with np.errstate(divide="ignore"):
            middle_m = np.median(1.0 / disparity_N)
        if not np.isfinite(middle_m) or middle_m <= 0:
            raise ValueError("estimate: its median depth is not a positive number, so median alignment is impossible")
        disparity_N = disparity_N * (middle_m / np.median(reference_m_N))
    elif alignment == "scale_shift":
        target_N = 1.0 / reference_m_N
        centred_N = disparity_N - disparity_N.mean()
        spread = np.mean(centred_N**2)
        if spread <= (1e-9 * max(np.abs(disparity_N).max(), 1e-12)) ** 2:
            problem, scale = "the estimate is constant: only the shift is determined", 0.0
        else:
            scale = np.mean(centred_N * (target_N - target_N.mean())) / spread
            problem = "the best scale is negative: near and far are swapped" if scale < 0 else None
        disparity_N = target_N.mean() + scale * centred_N
    return 1.0 / np.clip(disparity_N, 1.0 / range_m[1], 1.0 / range_m[0]), problem


def _errors(depth_m_N: np.ndarray, reference_m_N: np.ndarray) -> dict[str, float]:
    difference_N = depth_m_N - reference_m_N
    ratio_N = np.maximum(depth_m_N / reference_m_N, reference_m_N / depth_m_N)
    return {
        "abs_rel": float(np.mean(np.abs(difference_N) / reference_m_N)),
        "sq_rel": float(np.mean(difference_N**2 / reference_m_N)),
        "rmse_m": float(np.sqrt(np.mean(difference_N**2))),
        "rmse_log": float(np.sqrt(np.mean(np.log(depth_m_N / reference_m_N) ** 2))),
        **{f"delta{power}": float(np.mean(ratio_N < 1.25**power)) for power in (1, 2, 3)},
    }
