"""Metric depth as numbers in [-1, 1] and back, in three ways; errors of depth, with the alignment each way needs.

F frames, H, W pixels.

    log_metric            the logarithm of metres between the ends of range_m; metres come back
    inverse_per_sequence  as published: 1 / depth, its least and largest value of the clip at -1 and 1, in 256 steps as
                          in the 8-bit video that the published tokens were made from; 1 / depth comes back up to
                          scale and shift
    relative_inverse      1 / depth over its 98th percentile of the clip, cut at 1; back up to one scale

What comes back of the relative ways is written as if the clip's 1 / depth ran over range_m; it means metres only after
an alignment, which `errors` does by least squares per clip.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

DepthKind = Literal["log_metric", "inverse_per_sequence", "relative_inverse"]
_SMALLEST = 1e-9
_STEPS = 255  # of an 8-bit picture
_NEAR_PERCENTILE = 98.0  # a few wrong near pixels must not darken the rest


@dataclass(frozen=True)
class DepthRepresentation:
    """One way to write depth. Unknown pixels (0) get their frame's mean, or the middle where nothing is known."""

    kind: DepthKind
    range_m: tuple[float, float]

    @property
    def is_metric(self) -> bool:
        return self.kind == "log_metric"

    @property
    def conventions(self) -> Mapping[str, str]:
        nearest, farthest = self.range_m
        if self.kind == "log_metric":
            return {
                "values": "metres along the camera's z axis",
                "range": f"{nearest:g} ... {farthest:g} m, logarithmic",
            }
        known = "scale and shift" if self.kind == "inverse_per_sequence" else "one scale"
        about = {"inverse_per_sequence": "inverse depth, its range per sequence in 8 bits"}
        return {
            "values": f"depth along the camera's z axis, its inverse up to {known} per clip",
            "range": about.get(self.kind, f"inverse depth over its {_NEAR_PERCENTILE:g}th percentile per clip"),
        }

    def unit_from_depth(self, depth_m: np.ndarray) -> np.ndarray:
        """Depth (F, H, W) metres, 0 unknown -> (F, H, W) float32 in [-1, 1]."""
        is_known = depth_m > 0
        unit = self._log_unit(depth_m, is_known) if self.is_metric else self._inverse_unit(depth_m, is_known)
        if not is_known.all():
            num_known = is_known.sum(axis=(1, 2), keepdims=True)
            mean = np.where(is_known, unit, 0.0).sum(axis=(1, 2), keepdims=True) / np.maximum(num_known, 1)
            unit = np.where(is_known, unit, mean)
        return unit.astype(np.float32)

    def inverse_from_unit(self, unit: np.ndarray) -> np.ndarray:
        """Of the relative ways: nominal inverse depth (1/m) of numbers in [-1, 1]."""
        nearest, farthest = self.range_m
        share = (unit.astype(np.float64) + 1.0) / 2.0
        if self.kind == "inverse_per_sequence":
            return 1.0 / farthest + share * (1.0 / nearest - 1.0 / farthest)
        return np.maximum(share / nearest, 1.0 / farthest)

    def errors(self, found_m: np.ndarray, wanted_m: np.ndarray) -> dict[str, float]:
        """`depth_errors` of a clip; `..._aligned` where depth comes back relative."""
        if self.is_metric:
            return depth_errors(found_m, wanted_m)
        aligned = depth_errors(self._aligned(found_m, wanted_m), wanted_m)
        return {f"{name}_aligned": value for name, value in aligned.items()}

    def _log_unit(self, depth_m: np.ndarray, is_known: np.ndarray) -> np.ndarray:
        nearest, farthest = (log(limit) for limit in self.range_m)
        logs = np.log(np.clip(np.where(is_known, depth_m, 1.0), *self.range_m))
        return (logs - nearest) * (2.0 / (farthest - nearest)) - 1.0

    def _inverse_unit(self, depth_m: np.ndarray, is_known: np.ndarray) -> np.ndarray:
        if not is_known.any():
            return np.zeros(depth_m.shape)
        inverse = 1.0 / np.where(is_known, depth_m, 1.0).astype(np.float64)
        known = inverse[is_known]
        if self.kind == "relative_inverse":
            return np.clip(inverse / np.percentile(known, _NEAR_PERCENTILE), 0.0, 1.0) * 2.0 - 1.0
        least, largest = known.min(), known.max()
        share = np.clip((inverse - least) / max(largest - least, _SMALLEST), 0.0, 1.0)
        return np.rint(share * _STEPS) / _STEPS * 2.0 - 1.0

    def _aligned(self, found_m: np.ndarray, wanted_m: np.ndarray) -> np.ndarray:
        """`found_m` with the scale (and shift) of its inverse that fit the known pixels best."""
        is_known = wanted_m > 0
        found = 1.0 / np.maximum(found_m.astype(np.float64), _SMALLEST)
        if not is_known.any():
            return found_m
        x, y = found[is_known], 1.0 / wanted_m[is_known].astype(np.float64)
        if self.kind == "inverse_per_sequence" and np.ptp(x) > _SMALLEST:
            scale, shift = np.polyfit(x, y, 1)
        else:
            scale, shift = float((x * y).sum() / (x * x).sum()), 0.0
        # A line through all pixels may pass below zero at the farthest ones.
        return 1.0 / np.maximum(found * scale + shift, y.min() / 10)


def depth_errors(found_m: np.ndarray, wanted_m: np.ndarray) -> dict[str, float]:
    """Mean relative error, share of pixels within a factor 1.25, RMSE in metres; NaN where nothing is known."""
    is_known = wanted_m > 0
    if not is_known.any():
        return {"abs_rel": np.nan, "delta1": np.nan, "rmse_m": np.nan}
    found, wanted = found_m[is_known], wanted_m[is_known]
    ratio = np.maximum(found / wanted, wanted / found)
    return {
        "abs_rel": float((np.abs(found - wanted) / wanted).mean()),
        "delta1": float((ratio < 1.25).mean()),
        "rmse_m": float(np.sqrt(np.square(found - wanted).mean())),
    }
