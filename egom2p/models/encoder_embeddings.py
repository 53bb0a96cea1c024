"""What enters the encoder: token, position and modality embeddings.

K modalities, N rows, R registers of a clip, L positions and V ids of all modalities together, D width.
Tables of all modalities lie one below the other, so that one lookup serves rows of any modality.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.contracts import ModalitySpec
from egom2p.layers.blocks import sincos_positions


class PositionEmbedding(nn.Module):
    """Fixed sin-cos code of a row's position plus the learned embedding of its modality; both sides share it.

    Register rows (modality index K) get 0.
    """

    def __init__(self, specs: Sequence[ModalitySpec], dim: int, *, period: float, scale: float) -> None:
        super().__init__()
        codes = [sincos_positions(spec.grid, dim, period=period, scale=scale) for spec in specs]
        self.modality_table = nn.Parameter(torch.zeros(len(specs), dim))
        self.register_buffer("position_table", torch.cat([*codes, torch.zeros(1, dim)]), persistent=False)
        # The last line is zero and serves registers, whatever their number.
        self.register_buffer("first_position", first_rows([spec.num_tokens for spec in specs]), persistent=False)

    def forward(self, position: Tensor, modality: Tensor) -> Tensor:
        """position, modality (N,) of any integer type -> (N, D)."""
        modality_N = modality.int()
        row_N = self.first_position.index_select(0, modality_N) + position.int()
        codes_ND = F.embedding(row_N.clamp_(max=self.position_table.shape[0] - 1), self.position_table)
        # As a product: a lookup's gradient would add thousands of rows into K lines one by one.
        numbers_K = torch.arange(self.modality_table.shape[0], device=modality.device)
        is_modality_NK = (modality_N[:, None] == numbers_K).to(self.modality_table.dtype)
        return codes_ND + is_modality_NK @ self.modality_table


class EncoderEmbeddings(nn.Module):
    """Token embeddings of all modalities, and register tokens, which stand first in their clip."""

    def __init__(self, specs: Sequence[ModalitySpec], dim: int, *, num_registers: int) -> None:
        super().__init__()
        vocab_sizes = [spec.vocab_size for spec in specs]
        self.num_registers = num_registers
        self.token_table = nn.Parameter(torch.zeros(sum(vocab_sizes), dim))
        self.register_tokens = nn.Parameter(torch.zeros(num_registers, dim)) if num_registers > 0 else None
        self.register_buffer("first_id", first_rows(vocab_sizes), persistent=False)

    def forward(self, ids: Tensor, modality: Tensor, offsets: Tensor) -> Tensor:
        """ids, modality (N,), clip offsets (B+1,) -> token embeddings (N, D)."""
        row_N = self.first_id.index_select(0, modality.int()) + ids
        if self.register_tokens is None:
            return F.embedding(row_N, self.token_table)
        tokens_ND = F.embedding(row_N.clamp_(max=self.token_table.shape[0] - 1), self.token_table)
        numbers_R = torch.arange(self.num_registers, device=ids.device)
        register_row = (offsets[:-1, None] + numbers_R).flatten()
        registers = self.register_tokens.repeat(offsets.shape[0] - 1, 1)
        return tokens_ND.index_copy(0, register_row.long(), registers.to(tokens_ND.dtype))


def first_rows(sizes: Sequence[int]) -> Tensor:
    """(K+1,) int32: where each modality's lines begin in a table of all; the last is the end."""
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0).int()
