"""What enters the encoder: token, position and modality embeddings.

K modalities, N rows, R registers of a clip, L positions and V ids of all modalities together, D width, Q patches of one
modality, P values of a patch.
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


class PatchEmbedding(nn.Module):
    """Linear embedding of uint8 pixels. They are brought to about zero mean and unit variance first: 0 ... 255 becomes
    -2 ... 2, as pictures deviate by a quarter of the range from its middle.
    """

    def __init__(self, num_values: int, dim: int) -> None:
        super().__init__()
        # No nn.Linear: as an embedding it is trained by AdamW, also beside Muon, and no adapter is attached to it.
        self.weight = nn.Parameter(torch.zeros(dim, num_values))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, values: Tensor) -> Tensor:
        """(Q, P) uint8 -> (Q, D)."""
        return F.linear(values.to(self.weight.dtype) * (4 / 255) - 2, self.weight, self.bias)


class EncoderEmbeddings(nn.Module):
    """Token embeddings of all modalities, linear ones of patches, and register tokens, which stand first in their clip.

    patches   modality of that kind -> its embedding
    """

    def __init__(self, specs: Sequence[ModalitySpec], dim: int, *, num_registers: int) -> None:
        super().__init__()
        vocab_sizes = [spec.vocab_size for spec in specs]
        self.num_registers = num_registers
        self.token_table = nn.Parameter(torch.zeros(sum(vocab_sizes), dim))
        self.register_tokens = nn.Parameter(torch.zeros(num_registers, dim)) if num_registers > 0 else None
        self.register_buffer("first_id", first_rows(vocab_sizes), persistent=False)
        kinds = {spec.name: spec.num_values for spec in specs if spec.kind == "patches"}
        self.patches = nn.ModuleDict({name: PatchEmbedding(count, dim) for name, count in kinds.items()})

    def forward(
        self,
        ids: Tensor,
        modality: Tensor,
        offsets: Tensor,
        patch_values: Sequence[Tensor] = (),
        patch_rows: Sequence[Tensor] = (),
    ) -> Tensor:
        """ids, modality (N,), clip offsets (B+1,), and of patches values and rows as in `PackedBatch` -> (N, D)."""
        row_N = self.first_id.index_select(0, modality.int()) + ids
        if not patch_rows:
            return self._with_registers(row_N, offsets)
        # One row more, which is cut off again: filler of a fixed shape goes there.
        known_ND = self._with_registers(F.pad(row_N, (0, 1)).clamp_(max=self.token_table.shape[0] - 1), offsets)
        for embed, values_QP, rows_Q in zip(self.patches.values(), patch_values, patch_rows, strict=True):
            lines_Q = F.pad(ids, (0, 1)).index_select(0, rows_Q)
            shown_QD = embed(values_QP.index_select(0, lines_Q))
            known_ND = known_ND.index_copy(0, rows_Q.long(), shown_QD.to(known_ND.dtype))
        return known_ND[:-1]

    def _with_registers(self, row_N: Tensor, offsets: Tensor) -> Tensor:
        if self.register_tokens is None:
            return F.embedding(row_N, self.token_table)
        tokens_ND = F.embedding(row_N.clamp_(max=self.token_table.shape[0] - 1), self.token_table)
        numbers_R = torch.arange(self.num_registers, device=row_N.device)
        register_row = (offsets[:-1, None] + numbers_R).flatten()
        registers = self.register_tokens.repeat(offsets.shape[0] - 1, 1)
        return tokens_ND.index_copy(0, register_row.long(), registers.to(tokens_ND.dtype))


def first_rows(sizes: Sequence[int]) -> Tensor:
    """(K+1,) int32: where each modality's lines begin in a table of all; the last is the end."""
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0).int()
