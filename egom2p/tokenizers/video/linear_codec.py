"""The best linear codec of independent blocks, as a starting point for the network.

B clips, C channels, F frames, H, W pixels, T, h, w token grid, K values of one block, N blocks, Z code channels.

A block is the pixels one token stands for. Principal components of training blocks give its code channels, least
squares give the way back; the network learns what is left. A codec that is to be trained in a minute starts where
its first hundreds of steps would otherwise lead.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn


class LinearCodec(nn.Module):
    """Video -> code channels and back, each block by itself."""

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
