"""Padding of any video to the sizes a codec takes, and the crop back.

Frames go to 1 + n * multiple by repeating the first and last frame, half on each side and the odd one at the end (16
frames get one more at the end). Height and width go to multiples by repeating the border, half on each side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
