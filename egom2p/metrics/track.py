"""Errors of any sampled track, for modalities that have no metrics of their own.

S samples, C channels.
"""

from typing import Any

import numpy as np

from egom2p.contracts import check_shape


def track_errors(estimate: np.ndarray, reference: np.ndarray, is_valid: np.ndarray) -> dict[str, Any]:
    """Errors of `estimate` (S, C) against `reference` (S, C) where `is_valid` (S,).

    rms_error     root of the mean squared difference over samples and channels, in the unit of the track; None when
                  nothing is valid
    num_samples   samples scored
    A sample that is to be scored and is not finite raises ValueError.
    """
    estimate, reference = np.asarray(estimate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    is_valid = np.asarray(is_valid, dtype=bool)
    sizes = check_shape("reference", reference, "s c")
    check_shape("estimate", estimate, "s c", **sizes)
    check_shape("is_valid", is_valid, "s", s=sizes["s"])
    for name, values in (("estimate", estimate), ("reference", reference)):
        num_bad = int((~np.isfinite(values[is_valid]).all(axis=1)).sum())
        if num_bad:
            raise ValueError(f"{name}: {num_bad} of {int(is_valid.sum())} valid samples are not finite")
    difference = (estimate - reference)[is_valid]
    return {
        "rms_error": float(np.sqrt(np.mean(difference**2))) if len(difference) else None,
        "num_samples": int(is_valid.sum()),
    }
