"""What a codec sees of a clip: RGB or depth as video in [-1, 1], and back; errors in physical units.

Any video is padded to the sizes a codec takes and cropped back: frames go to 1 + n * multiple by repeating the first
and last frame, half on each side and the odd one at the end (16 frames get one more at the end); height and width go to
multiples by repeating the border, half on each side. B clips, C channels, F frames, H, W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egom2p.contracts import AlignedClip
from egom2p.tokenizers.video.depth_representations import DepthRepresentation


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
