"""Encoder and decoder of the causal video codec, and the linear codec they may start from.

B clips, C channels, F frames, H, W pixels; T, h, w cells of the latents.
Module names follow the published Cosmos network, so that its weights load by name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from egom2p.tokenizers.video.causal_video_layers import (
    AxisAttention,
    Downsample,
    FrameNorm,
    ResidualBlock,
    Upsample,
    factorised_conv,
    haar_patches,
    haar_video,
)


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
