"""What a codec sees of a clip: RGB or log-metric depth as video in [-1, 1], and back; errors in physical units.

F frames, H, W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import AlignedClip


@dataclass(frozen=True)
class VideoRepresentation:
    """RGB: bytes / 127.5 - 1. Depth: -1 ... 1 is the logarithm of depth_range_m, so relative errors count alike.

    Depth outside the range is clamped; unknown pixels (0) are filled with the frame's mean logarithm (the range's
    middle when nothing is known) and weigh nothing in the loss.
    """

    quantity: str
    channels: int
    depth_range_m: tuple[float, float]

    @property
    def conventions(self) -> Mapping[str, str]:
        if self.quantity == "rgb":
            return {"values": "uint8 RGB"}
        nearest, farthest = self.depth_range_m
        return {"values": "metres along the camera's z axis", "range": f"{nearest:g} ... {farthest:g} m, logarithmic"}

    def to_video(self, frames: np.ndarray) -> Tensor:
        """RGB (F, H, W, 3) uint8 or depth (F, H, W) metres -> (C, F, H, W) float32."""
        if self.quantity == "rgb":
            return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)
        unit = self._unit_from_depth(frames)
        return torch.from_numpy(unit)[None].repeat(self.channels, 1, 1, 1)

    def is_known(self, frames: np.ndarray) -> Tensor:
        """(1, F, H, W) bool."""
        if self.quantity == "rgb":
            return torch.ones((1, *frames.shape[:3]), dtype=torch.bool)
        return torch.from_numpy(frames > 0)[None]

    def from_video(self, video: Tensor) -> np.ndarray:
        """(B, C, F, H, W) -> RGB (B, F, H, W, 3) uint8 or depth (B, F, H, W) float32 metres."""
        video = video.clamp(-1.0, 1.0)
        if self.quantity == "rgb":
            return video.add(1.0).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().numpy()
        nearest, farthest = (log(limit) for limit in self.depth_range_m)
        unit = video.mean(dim=1)
        return torch.exp((unit + 1.0) * (0.5 * (farthest - nearest)) + nearest).numpy()

    def _unit_from_depth(self, depth_m: np.ndarray) -> np.ndarray:
        nearest, farthest = (log(limit) for limit in self.depth_range_m)
        is_known = depth_m > 0
        logs = np.log(np.clip(np.where(is_known, depth_m, 1.0), *self.depth_range_m))
        unit = (logs - nearest) * (2.0 / (farthest - nearest)) - 1.0
        if not is_known.all():
            num_known = is_known.sum(axis=(1, 2), keepdims=True)
            mean = np.where(is_known, unit, 0.0).sum(axis=(1, 2), keepdims=True) / np.maximum(num_known, 1)
            unit = np.where(is_known, unit, mean)
        return unit.astype(np.float32)


def rgb_frames(clip: AlignedClip, *, num_frames: int, height: int, width: int) -> np.ndarray:
    """RGB (F, H, W, 3) uint8 of a clip; ValueError names the clip when it is something else."""
    frames = clip.rgb
    _check_frames(clip.key, "rgb", frames.shape, (num_frames, height, width, 3))
    if frames.dtype != np.uint8:
        raise ValueError(f"clip {clip.key}: rgb is {frames.dtype}, wanted uint8")
    return frames


def depth_frames(clip: AlignedClip, *, num_frames: int, height: int, width: int) -> np.ndarray:
    """Depth (F, H, W) metres of a clip, 0 where unknown (also whole invalid frames)."""
    depth_m = clip.depth_m
    _check_frames(clip.key, "depth", depth_m.shape, (num_frames, height, width))
    is_valid_F = clip.streams["depth"].is_valid
    if not np.isfinite(depth_m[is_valid_F]).all():
        raise ValueError(f"clip {clip.key}: depth holds NaN or infinite values; unknown depth is 0")
    return np.where(is_valid_F[:, None, None], depth_m, 0.0)


def rgb_psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 videos in decibel, over all frames together."""
    mse = np.square(found.astype(np.float32) - wanted).mean()
    return float(10.0 * np.log10(255.0**2 / max(mse, 1e-10)))


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


def _check_frames(key: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != wanted:
        raise ValueError(f"clip {key}: {name} has shape {tuple(found)}, the tokenizer wants {wanted}")
