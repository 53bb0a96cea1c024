"""Blocks of a causal video network: a frame never sees a later one.

Haar patches turn a video into one picture of wavelet coefficients per block of frames and pixels. The first frame
stands alone in time (it is repeated to fill a block), so that 1 + n * size frames give 1 + n blocks. Each level halves
time, height and width and turns one channel into eight bands, ordered low/high of time, then height, then width.
Coefficients are scaled to means, so that the lowest band of a constant video is that constant.

B clips, C channels, F frames, H, W pixels; T time steps, H, W cells. Convolutions are factorised: one inside each
frame, one along time. Design: the Cosmos tokenizer (NVIDIA, 2024); the order of operations is its own, so that its
weights fit.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Orthonormal 3-D Haar grows a constant by sqrt(8) at each level.
_LEVEL_SCALE = sqrt(8.0)


class SpatialConv(nn.Module):
    """Convolution inside each frame, zeros around it."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, padding: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(
            in_channels, out_channels, (1, kernel, kernel), stride=(1, stride, stride), padding=(0, padding, padding)
        )

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        return self.conv3d(video_BCTHW)


class TemporalConv(nn.Module):
    """Convolution along time over the present and the two steps before it; the first step stands for the past."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, (3, 1, 1), stride=(stride, 1, 1))
        self.num_past = 3 - stride
        if in_channels == out_channels:
            start_as_identity(self.conv3d)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        past = video_BCTHW[:, :, :1].expand(-1, -1, self.num_past, -1, -1)
        return self.conv3d(torch.cat([past, video_BCTHW], dim=2))


def start_as_identity(conv: nn.Conv3d) -> None:
    """A convolution that passes on the present cell; deep networks of such layers learn from the first step."""
    with torch.no_grad():
        nn.init.zeros_(conv.bias)
        nn.init.zeros_(conv.weight)
        now, row, column = conv.kernel_size[0] - 1, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2
        conv.weight[:, :, now, row, column] = torch.eye(conv.out_channels, conv.in_channels)


def start_as_zero(conv: nn.Conv3d) -> None:
    """A branch that adds nothing yet."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


def pointwise(in_channels: int, out_channels: int) -> SpatialConv:
    return SpatialConv(in_channels, out_channels, kernel=1, padding=0)


def factorised_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(SpatialConv(in_channels, out_channels), TemporalConv(out_channels, out_channels))


class FrameNorm(nn.Module):
    """Group norm with one group, each frame by itself, so that no statistics leak through time."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        clips = video_BCTHW.shape[0]
        frames = rearrange(video_BCTHW, "b c t h w -> (b t) c h w")
        return rearrange(self.norm(frames), "(b t) c h w -> b c t h w", b=clips)


class ResidualBlock(nn.Module):
    """Norm, SiLU, factorised convolution, twice."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = FrameNorm(in_channels)
        self.conv1 = factorised_conv(in_channels, out_channels)
        self.norm2 = FrameNorm(out_channels)
        self.conv2 = factorised_conv(out_channels, out_channels)
        self.nin_shortcut = pointwise(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        start_as_zero(self.conv2[1].conv3d)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(video_BCTHW)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.nin_shortcut(video_BCTHW) + hidden


class AxisAttention(nn.Module):
    """One-head attention over the cells of a frame (`space`) or over the past of a cell (`time`)."""

    def __init__(self, channels: int, *, axis: str):
        super().__init__()
        if axis not in ("space", "time"):
            raise ValueError(f"axis must be 'space' or 'time', got {axis!r}")
        self.axis = axis
        self.norm = FrameNorm(channels)
        self.q = pointwise(channels, channels)
        self.k = pointwise(channels, channels)
        self.v = pointwise(channels, channels)
        self.proj_out = pointwise(channels, channels)
        start_as_zero(self.proj_out.conv3d)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        clips, _, _, height, _ = video_BCTHW.shape
        normed = self.norm(video_BCTHW)
        rows = "(b t) (h w) c" if self.axis == "space" else "(b h w) t c"
        q, k, v = (rearrange(to(normed), f"b c t h w -> {rows}") for to in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.axis == "time")
        mixed = rearrange(mixed, f"{rows} -> b c t h w", b=clips, h=height)
        return video_BCTHW + self.proj_out(mixed)


class Downsample(nn.Module):
    """Halve space, then time, each as convolution plus average."""

    def __init__(self, channels: int, *, space: bool, time: bool):
        super().__init__()
        self.conv1 = SpatialConv(channels, channels, stride=2, padding=0) if space else None
        self.conv2 = TemporalConv(channels, channels, stride=2) if time else None
        self.conv3 = pointwise(channels, channels)
        _start_as_resampling(self)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        hidden = video_BCTHW
        if self.conv1 is not None:
            hidden = F.pad(hidden, (0, 1, 0, 1))
            hidden = self.conv1(hidden) + F.avg_pool3d(hidden, (1, 2, 2))
        if self.conv2 is not None:
            # The first step is doubled, so that 1 + 2n steps give 1 + n.
            hidden = torch.cat([hidden[:, :, :1], hidden], dim=2)
            hidden = self.conv2(hidden) + F.avg_pool3d(hidden, (2, 1, 1))
        return self.conv3(hidden)


class Upsample(nn.Module):
    """Double time, then space, each as repetition plus a convolution of it; a single step stays single."""

    def __init__(self, channels: int, *, space: bool, time: bool):
        super().__init__()
        self.conv1 = TemporalConv(channels, channels) if time else None
        self.conv2 = SpatialConv(channels, channels) if space else None
        self.conv3 = pointwise(channels, channels)
        _start_as_resampling(self)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        hidden = video_BCTHW
        if self.conv1 is not None:
            if hidden.shape[2] > 1:
                hidden = hidden.repeat_interleave(2, dim=2)[:, :, 1:]
            hidden = self.conv1(hidden) + hidden
        if self.conv2 is not None:
            hidden = hidden.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            hidden = self.conv2(hidden) + hidden
        return self.conv3(hidden)


def _start_as_resampling(layer: Downsample | Upsample) -> None:
    for branch in (layer.conv1, layer.conv2):
        if branch is not None:
            start_as_zero(branch.conv3d)
    start_as_identity(layer.conv3.conv3d)


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
