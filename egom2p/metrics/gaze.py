"""Errors of gaze points.

S samples. Gaze is (u, v) in [0, 1] of the image, (0, 0) the outer corner of the first pixel. Only samples that are
valid in the reference count; where the estimate has a validity of its own, samples it leaves out are not scored but
lower `coverage`. A clip without scored samples has None for every error.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from egom2p.contracts import Intrinsics, check_shape
from egom2p.geometry import angle_between, gaze_rays

GAZE_METRICS = ("mse", "distance", "distance_px", "angle_deg", "auc")

_AUC_CELLS = 64
_AUC_SIGMA_CELLS = 3.2


def gaze_errors(
    estimate: np.ndarray,
    reference: np.ndarray,
    is_valid: np.ndarray,
    *,
    estimate_is_valid: np.ndarray | None = None,
    size_px: tuple[int, int] | None = None,
    intrinsics: Intrinsics | None = None,
) -> dict[str, Any]:
    """Mean errors of gaze `estimate` (S, 2) against `reference` (S, 2) where `is_valid` (S,).

    mse            mean over samples and both coordinates of the squared difference, image = [0, 1]
                   (four times larger on [-1, 1])
    distance       mean length of the difference, image = [0, 1]
    distance_px    the same in pixels of `size_px` = (width, height), else of `intrinsics`; None without both
    angle_deg      mean angle between the two rays through `intrinsics`; None without them, or where a point of the
                   clip has no ray
    auc            see `gaze_auc`
    num_samples    samples scored; coverage: scored / valid in the reference (None when none is valid)
    A sample that is to be scored and is not finite raises ValueError.
    """
    estimate, reference, is_scored, coverage = _scored(estimate, reference, is_valid, estimate_is_valid)
    if intrinsics is not None and size_px is None:
        size_px = (intrinsics.width, intrinsics.height)
    errors: dict[str, Any] = dict.fromkeys(GAZE_METRICS)
    if is_scored.any():
        estimate_N2, reference_N2 = estimate[is_scored], reference[is_scored]
        difference_N2 = estimate_N2 - reference_N2
        errors["mse"] = float(np.mean(difference_N2**2))
        errors["distance"] = float(np.mean(np.linalg.norm(difference_N2, axis=-1)))
        if size_px is not None:
            errors["distance_px"] = float(np.mean(np.linalg.norm(difference_N2 * size_px, axis=-1)))
        if intrinsics is not None:
            errors["angle_deg"] = _mean_angle_deg(estimate_N2, reference_N2, intrinsics)
        errors["auc"] = _auc(estimate_N2, reference_N2)
    return errors | {"num_samples": int(is_scored.sum()), "coverage": coverage}


def gaze_auc(estimate: np.ndarray, reference: np.ndarray, is_valid: np.ndarray) -> float | None:
    """Mean AUC of GLC (Lai et al. 2022) where `is_valid` (S,); None when nothing is valid.

    A point on a 64x64 map, blurred with sigma 3.2 cells: 1 minus the fraction of cells above the cell of the
    reference. The blur is cut off at 4 sigma, so a sample that misses by far scores about 0.82, not 0;
    and it mirrors at the border, so there even a perfect sample may score a little below 1.
    """
    estimate, reference, is_scored, _ = _scored(estimate, reference, is_valid, None)
    return _auc(estimate[is_scored], reference[is_scored]) if is_scored.any() else None


def _scored(
    estimate: np.ndarray, reference: np.ndarray, is_valid: np.ndarray, estimate_is_valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float | None]:
    estimate, reference = np.asarray(estimate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    is_valid = np.asarray(is_valid, dtype=bool)
    sizes = check_shape("reference", reference, "s 2")
    check_shape("estimate", estimate, "s 2", **sizes)
    check_shape("is_valid", is_valid, "s", **sizes)
    is_scored = is_valid.copy()
    if estimate_is_valid is not None:
        check_shape("estimate_is_valid", estimate_is_valid, "s", **sizes)
        is_scored &= np.asarray(estimate_is_valid, dtype=bool)
    for name, points in (("estimate", estimate), ("reference", reference)):
        num_bad = int((~np.isfinite(points).all(axis=-1) & is_scored).sum())
        if num_bad:
            raise ValueError(f"{name}: {num_bad} of {int(is_scored.sum())} valid gaze points are not finite")
    coverage = float(is_scored.sum() / is_valid.sum()) if is_valid.any() else None
    return estimate, reference, is_scored, coverage


def _mean_angle_deg(estimate_N2: np.ndarray, reference_N2: np.ndarray, intrinsics: Intrinsics) -> float | None:
    rays_a_N3, exists_a_N = gaze_rays(estimate_N2, intrinsics)
    rays_b_N3, exists_b_N = gaze_rays(reference_N2, intrinsics)
    # Points of the far corners of a fisheye image have no ray: leaving them out would flatter the estimate.
    if not (exists_a_N & exists_b_N).all():
        return None
    return float(np.mean(np.degrees(angle_between(rays_a_N3, rays_b_N3))))


def _auc(estimate_N2: np.ndarray, reference_N2: np.ndarray) -> float:
    cells = [
        np.clip(np.round(points * (_AUC_CELLS - 1)), 0, _AUC_CELLS - 1).astype(int)
        for points in (estimate_N2, reference_N2)
    ]
    values = []
    for (column, row), (reference_column, reference_row) in zip(*cells, strict=True):
        heat = np.zeros((_AUC_CELLS, _AUC_CELLS))
        heat[row, column] = 1.0
        heat = gaussian_filter(heat, _AUC_SIGMA_CELLS)
        values.append(1.0 - np.mean(heat > heat[reference_row, reference_column]))
    return float(np.mean(values))
