"""Encoder and decoder of the causal video codec, their blocks, and the linear codec they may start from.

B clips, C channels, F frames, H, W pixels; T time steps, H, W (h, w) cells of the latents. Module names follow the
published Cosmos network (NVIDIA, 2024), so that its weights load by name; so does the order of operations.

A frame never sees a later one. Convolutions are factorised: one inside each frame, one along time. Haar patches turn a
video into one picture of wavelet coefficients per block of frames and pixels. The first frame stands alone in time (it
is repeated to fill a block), so that 1 + n * size frames give 1 + n blocks. Each level halves time, height and width
and turns one channel into eight bands, ordered low/high of time, height, width. Coefficients are scaled to means,
so that the lowest band of a constant video is that constant.
"""

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CausalVideoNetwork:
    """Sizes shared by encoder and decoder; halvings come on top of the patch."""

    video_channels: int
    patch_size: int
    channels: int
    channel_multipliers: tuple[int, ...]
    num_blocks: int
    num_decoder_blocks: int
    num_middle_blocks: int
    attention: bool
    latent_channels: int
    num_space_halvings: int
    num_time_halvings: int

    @property
    def widths(self) -> list[int]:
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    def halvings(self) -> tuple[list[bool], list[bool]]:
        """Whether space and time are halved after each level of the encoder, doubled after each of the decoder."""
        levels = range(len(self.channel_multipliers))
        space = [level < self.num_space_halvings for level in levels]
        return space, [level < self.num_time_halvings for level in levels]


class CausalVideoEncoder(nn.Module):
    """Video (B, C, F, H, W) -> latents (B, latent_channels, T, h, w)."""

    def __init__(self, size: CausalVideoNetwork) -> None:
        super().__init__()
        space, time = size.halvings()
        self.patch_size = size.patch_size
        self.conv_in = factorised_conv(size.video_channels * size.patch_size**3, size.channels)
        self.down = nn.ModuleList()
        channels = size.channels
        for level, width in enumerate(size.widths):
            stage = nn.Module()
            stage.block = nn.ModuleList(
                ResidualBlock(channels if index == 0 else width, width) for index in range(size.num_blocks)
            )
            stage.downsample = None
            if space[level] or time[level]:
                stage.downsample = Downsample(width, space=space[level], time=time[level])
            self.down.append(stage)
            channels = width
        self.mid = _middle(size)
        self.norm_out = FrameNorm(channels)
        self.conv_out = factorised_conv(channels, size.latent_channels)

    def forward(self, video_BCFHW: Tensor) -> Tensor:
        hidden = self.conv_in(haar_patches(video_BCFHW, self.patch_size))
        for stage in self.down:
            for block in stage.block:
                hidden = block(hidden)
            if stage.downsample is not None:
                hidden = stage.downsample(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class CausalVideoDecoder(nn.Module):
    """Latents -> video; the mirror of the encoder with one more block per level."""

    def __init__(self, size: CausalVideoNetwork) -> None:
        super().__init__()
        space, time = size.halvings()
        self.patch_size = size.patch_size
        channels = size.widths[-1]
        self.conv_in = factorised_conv(size.latent_channels, channels)
        self.mid = _middle(size)
        stages = []
        for depth, width in enumerate(reversed(size.widths)):
            stage = nn.Module()
            stage.block = nn.ModuleList(
                ResidualBlock(channels if index == 0 else width, width) for index in range(size.num_decoder_blocks)
            )
            stage.upsample = None
            if space[depth] or time[depth]:
                stage.upsample = Upsample(width, space=space[depth], time=time[depth])
            stages.append(stage)
            channels = width
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out = FrameNorm(channels)
        self.conv_out = factorised_conv(channels, size.video_channels * size.patch_size**3)

    def forward(self, latent_BCThw: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latent_BCThw))
        for stage in reversed(self.up):
            for block in stage.block:
                hidden = block(hidden)
            if stage.upsample is not None:
                hidden = stage.upsample(hidden)
        patches = self.conv_out(F.silu(self.norm_out(hidden)))
        return haar_video(patches, self.patch_size)


def _middle(size: CausalVideoNetwork) -> nn.Sequential:
    channels = size.widths[-1]
    middle = nn.Sequential()
    for index in range(1, size.num_middle_blocks + 1):
        middle.add_module(f"block_{index}", ResidualBlock(channels, channels))
        if index == 1 and size.attention:
            attention = nn.Sequential(AxisAttention(channels, axis="space"), AxisAttention(channels, axis="time"))
            middle.add_module("attn_1", attention)
    return middle


class LinearCodec(nn.Module):
    """The best linear codec of independent blocks, as a starting point: video -> code channels and back.

    A block is the pixels one token stands for. Principal components of training blocks give its code channels, least
    squares give the way back; the network learns what is left. A codec that is to be trained in a minute starts where
    its first hundreds of steps would otherwise lead. K values of one block, N blocks, Z code channels.
    """

    def __init__(self, *, video_channels: int, block: tuple[int, int], num_codes: int) -> None:
        """block: frames and pixels (height = width) of one token."""
        super().__init__()
        self.block_frames, self.block_pixels = block
        num_values = video_channels * self.block_frames * self.block_pixels**2
        self.analysis = nn.Conv3d(num_values, num_codes, 1)
        self.synthesis = nn.Conv3d(num_codes, num_values, 1)

    def encode(self, video: Tensor) -> Tensor:
        """(B, C, F, H, W) -> (B, Z, T, h, w)."""
        return self.analysis(self._blocks(video))

    def decode(self, codes: Tensor) -> Tensor:
        """(B, Z, T, h, w) -> (B, C, F, H, W)."""
        frames, pixels = self.block_frames, self.block_pixels
        video = rearrange(
            self.synthesis(codes), "b (c p a d) t h w -> b c (t p) (h a) (w d)", p=frames, a=pixels, d=pixels
        )
        return video[:, :, frames - 1 :]

    @torch.no_grad()
    def fit(self, video: Tensor, quantise: Callable[[Tensor], Tensor]) -> None:
        """Principal components with unit variance as codes; the way back is fitted to the quantised codes."""
        blocks = self._blocks(video)
        blocks_NK = rearrange(blocks, "b k t h w -> (b t h w) k")
        mean_K = blocks_NK.mean(dim=0)
        centred_NK = blocks_NK - mean_K
        variance_K, directions_KK = torch.linalg.eigh(centred_NK.T @ centred_NK / len(centred_NK))
        largest = variance_K.argsort(descending=True)[: self.analysis.out_channels]
        projection_ZK = (directions_KK[:, largest] / variance_K[largest].clamp(min=1e-8).sqrt()).T
        self.analysis.weight.copy_(projection_ZK[:, :, None, None, None])
        self.analysis.bias.copy_(-projection_ZK @ mean_K)
        codes_NZ = rearrange(quantise(self.analysis(blocks)), "b z t h w -> (b t h w) z")
        inputs_NZ1 = torch.cat([codes_NZ, torch.ones_like(codes_NZ[:, :1])], dim=1)
        solution_Z1K = torch.linalg.lstsq(inputs_NZ1, blocks_NK).solution
        self.synthesis.weight.copy_(solution_Z1K[:-1].T[:, :, None, None, None])
        self.synthesis.bias.copy_(solution_Z1K[-1])

    def _blocks(self, video: Tensor) -> Tensor:
        """(B, C, 1 + n * frames, H, W) -> (B, K, 1 + n, h, w); the first frame is repeated to fill a block."""
        first = video[:, :, :1].expand(-1, -1, self.block_frames - 1, -1, -1)
        return rearrange(
            torch.cat([first, video], dim=2),
            "b c (t p) (h a) (w d) -> b (c p a d) t h w",
            p=self.block_frames,
            a=self.block_pixels,
            d=self.block_pixels,
        )
