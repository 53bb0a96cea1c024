"""Transformer encoder and decoder over the tokens of one track.

B clips, S samples, L tokens, C channels, D width.
Blocks are ordinary ones with biases and GELU; module names follow the published trajectory tokenizer.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from egom2p.contracts import TokenGrid
from egom2p.layers.attention import AttentionLayout
from egom2p.layers.blocks import BlockConfig, EncoderBlock, sincos_positions


@dataclass(frozen=True)
class TrackNetwork:
    """Sizes shared by encoder and decoder."""

    num_channels: int
    num_tokens: int
    samples_per_token: int
    dim: int
    num_heads: int
    mlp_ratio: float


class TrackEncoder(nn.Module):
    """Samples (B, S, C) -> hidden (B, L, D): strided convolution, blocks, tanh MLP.

    `is_local` makes every token describe its own samples only, in the same words at every position.
    """

    def __init__(self, size: TrackNetwork, *, depth: int, is_local: bool = False) -> None:
        super().__init__()
        step = size.samples_per_token
        self.conv = nn.Conv1d(size.num_channels, size.dim, step, stride=step)
        self.trunk = TrackTrunk(size, depth=depth, is_local=is_local)

    def forward(self, samples_BSC: Tensor) -> Tensor:
        hidden_BDL = self.conv(rearrange(samples_BSC, "b s c -> b c s"))
        return self.trunk(rearrange(hidden_BDL, "b d l -> b l d"))


class TrackDecoder(nn.Module):
    """Hidden (B, L, D) -> samples (B, S, C)."""

    def __init__(self, size: TrackNetwork, *, depth: int) -> None:
        super().__init__()
        self.samples_per_token = size.samples_per_token
        self.trunk = TrackTrunk(size, depth=depth)
        self.out_proj = nn.Linear(size.dim, size.num_channels * size.samples_per_token)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return rearrange(self.out_proj(self.trunk(hidden_BLD)), "b l (c p) -> b (l p) c", p=self.samples_per_token)


class TrackTrunk(nn.Module):
    """Position codes, transformer blocks and one tanh MLP; when local, no positions and no look at other tokens."""

    def __init__(self, size: TrackNetwork, *, depth: int, is_local: bool = False) -> None:
        super().__init__()
        self.is_local = is_local
        if not is_local:
            positions_LD = sincos_positions(TokenGrid((size.num_tokens,)), size.dim)
            self.register_buffer("positions", positions_LD, persistent=False)
        block = BlockConfig(
            dim=size.dim, num_heads=size.num_heads, mlp_ratio=size.mlp_ratio, activation="gelu", use_bias=True
        )
        self.blocks = nn.ModuleList(EncoderBlock(block) for _ in range(depth))
        self.norm_mlp = nn.LayerNorm(size.dim, eps=1e-6)
        self.post_mlp = TanhMlp(size.dim, block.mlp_dim)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        clips, tokens, _ = hidden_BLD.shape
        if not self.is_local:
            hidden_BLD = hidden_BLD + self.positions
        layout = _equal_segments(clips * tokens, 1 if self.is_local else tokens, hidden_BLD.device)
        hidden_ND = rearrange(hidden_BLD, "b l d -> (b l) d")
        for block in self.blocks:
            hidden_ND = block(hidden_ND, layout)
        hidden_ND = hidden_ND + self.post_mlp(self.norm_mlp(hidden_ND))
        return rearrange(hidden_ND, "(b l) d -> b l d", b=clips)


class TanhMlp(nn.Module):
    """fc2(tanh(fc1 x))."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(hidden)))


def _equal_segments(num_rows: int, length: int, device: torch.device) -> AttentionLayout:
    offsets = torch.arange(0, num_rows + 1, length, dtype=torch.int32, device=device)
    return AttentionLayout.within(offsets, (length,) * (num_rows // length))
