"""3-D Haar patches: a video as one picture of wavelet coefficients per block of frames and pixels.

B clips, C channels, F frames, H, W pixels.

The first frame stands alone in time (it is repeated to fill a block), so that 1 + n * size frames give 1 + n blocks.
Each level halves time, height and width and turns one channel into eight bands, ordered low/high of time, then height,
then width. Coefficients are scaled to means, so that the lowest band of a constant video is that constant.
"""

from math import sqrt

import torch
from einops import rearrange
from torch import Tensor

# Orthonormal 3-D Haar grows a constant by sqrt(8) at each level.
_LEVEL_SCALE = sqrt(8.0)


def haar_patches(video: Tensor, size: int) -> Tensor:
    """(B, C, 1 + n * size, H, W) -> (B, C * size**3, 1 + n, H / size, W / size); size is a power of two."""
    first, rest = video[:, :, :1], video[:, :, 1:]
    bands = torch.cat([first.expand(-1, -1, size, -1, -1), rest], dim=2)
    for _ in range(_num_levels(size)):
        bands = _analyse(bands)
    return bands


def haar_video(patches: Tensor, size: int) -> Tensor:
    """Inverse of `haar_patches`; the repeated copies of the first frame are dropped."""
    bands = patches
    for _ in range(_num_levels(size)):
        bands = _synthesise(bands)
    return bands[:, :, size - 1 :]


def _num_levels(size: int) -> int:
    levels = size.bit_length() - 1
    if size < 1 or 1 << levels != size:
        raise ValueError(f"the Haar patch size must be a power of two, got {size}")
    return levels


def _butterfly(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low + high, low - high


def _analyse(video: Tensor) -> Tensor:
    cells = rearrange(video, "b c (t a) (h d) (w e) -> a d e b c t h w", a=2, d=2, e=2)
    for axis in range(3):
        cells = torch.stack(_butterfly(*cells.unbind(axis)), dim=axis)
    return rearrange(cells, "a d e b c t h w -> b (a d e c) t h w") / _LEVEL_SCALE**2


def _synthesise(bands: Tensor) -> Tensor:
    cells = rearrange(bands, "b (a d e c) t h w -> a d e b c t h w", a=2, d=2, e=2)
    for axis in range(3):
        cells = torch.stack(_butterfly(*cells.unbind(axis)), dim=axis)
    return rearrange(cells, "a d e b c t h w -> b c (t a) (h d) (w e)")
