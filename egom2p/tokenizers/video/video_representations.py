"""What a codec sees of a clip: RGB or depth as video in [-1, 1], and back; errors in physical units.

Any video is padded to the sizes a codec takes and cropped back: frames go to 1 + n * multiple by repeating the first
and last frame, half on each side and the odd one at the end (16 frames get one more at the end); height and width go to
multiples by repeating the border, half on each side. B clips, C channels, F frames, H, W pixels.

Metric depth goes to [-1, 1] and back in three ways; its errors come with the alignment each way needs:

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
import torch
import torch.nn.functional as F
from torch import Tensor

from egom2p.contracts import AlignedClip

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


@dataclass(frozen=True)
class VideoRepresentation:
    """RGB: bytes / 127.5 - 1. Depth: as `depth` says, on `channels` equal channels.

    Unknown pixels of depth weigh nothing in the loss.
    """

    quantity: str
    channels: int
    depth: DepthRepresentation

    @property
    def conventions(self) -> Mapping[str, str]:
        return {"values": "uint8 RGB"} if self.quantity == "rgb" else self.depth.conventions

    def to_video(self, frames: np.ndarray) -> Tensor:
        """RGB (F, H, W, 3) uint8 or depth (F, H, W) metres -> (C, F, H, W) float32."""
        if self.quantity == "rgb":
            return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)
        unit = self.depth.unit_from_depth(frames)
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
        unit = video.mean(dim=1)
        if not self.depth.is_metric:
            return (1.0 / self.depth.inverse_from_unit(unit.numpy())).astype(np.float32)
        nearest, farthest = (log(limit) for limit in self.depth.range_m)
        return torch.exp((unit + 1.0) * (0.5 * (farthest - nearest)) + nearest).numpy()

    def errors(self, found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
        """Of one clip's frames: rgb `psnr_db`; depth those of `DepthRepresentation.errors`."""
        return {"psnr_db": rgb_psnr(found, wanted)} if self.quantity == "rgb" else self.depth.errors(found, wanted)

    def own_errors(self, frames: np.ndarray) -> dict[str, float]:
        """What is lost before any network: depth there and back, and the share of known pixels cut at the range."""
        if self.quantity == "rgb":
            return {}
        restored = self.from_video(self.to_video(frames)[None])[0]
        errors = {f"representation_{name}": value for name, value in self.depth.errors(restored, frames).items()}
        if self.depth.is_metric:
            known, (nearest, farthest) = frames[frames > 0], self.depth.range_m
            outside = float(((known < nearest) | (known > farthest)).mean()) if len(known) else np.nan
            errors["representation_outside_range"] = outside
        return errors


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
    is_finite_F = np.isfinite(depth_m).all(axis=(1, 2))
    if not is_finite_F[is_valid_F].all():
        frame = int(np.argmax(is_valid_F & ~is_finite_F))
        raise ValueError(f"clip {clip.key}: depth holds NaN or infinite values in frame {frame}; unknown depth is 0")
    return np.where(is_valid_F[:, None, None], depth_m, 0.0)


def rgb_psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 videos in decibel, over all frames together."""
    mse = np.square(found.astype(np.float32) - wanted).mean()
    return float(10.0 * np.log10(255.0**2 / max(mse, 1e-10)))


def _check_frames(key: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != wanted:
        raise ValueError(f"clip {key}: {name} has shape {tuple(found)}, the tokenizer wants {wanted}")


def padded_frames(num_frames: int, multiple: int) -> int:
    return 1 + -(-(num_frames - 1) // multiple) * multiple


def padded_pixels(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pad_video(video: Tensor, frame_multiple: int, pixel_multiple: int) -> Tensor:
    """(B, C, F, H, W) -> the padded video."""
    _, _, frames, height, width = video.shape
    before, after = _sides(padded_frames(frames, frame_multiple) - frames)
    first, last = video[:, :, :1], video[:, :, -1:]
    if before or after:
        video = torch.cat([first.expand(-1, -1, before, -1, -1), video, last.expand(-1, -1, after, -1, -1)], dim=2)
    top, bottom = _sides(padded_pixels(height, pixel_multiple) - height)
    left, right = _sides(padded_pixels(width, pixel_multiple) - width)
    if top or bottom or left or right:
        video = F.pad(video, (left, right, top, bottom, 0, 0), mode="replicate")
    return video


def crop_padding(video: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Inverse of `pad_video` for an original of `size` (F, H, W)."""
    for axis, wanted in zip((2, 3, 4), size, strict=True):
        before, _ = _sides(video.shape[axis] - wanted)
        video = video.narrow(axis, before, wanted)
    return video


def _sides(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2
