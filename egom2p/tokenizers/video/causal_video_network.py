"""Encoder and decoder of the causal video codec.

B clips, C channels, F frames, H, W pixels; T, h, w cells of the latents.
Module names follow the published Cosmos network, so that its weights load by name.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.tokenizers.video.causal_video_layers import (
    AxisAttention,
    Downsample,
    FrameNorm,
    ResidualBlock,
    Upsample,
    factorised_conv,
)
from egom2p.tokenizers.video.haar import haar_patches, haar_video


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
