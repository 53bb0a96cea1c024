"""What enters the decoder, and the heads that leave it.

K modalities, M rows, V ids of all modalities together, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.contracts import ModalitySpec
from egom2p.models.encoder_embeddings import first_rows


class DecoderEmbeddings(nn.Module):
    """Queries (the mask token, or the previous token of a sequence) and the heads.

    With `share` the heads are the token embeddings. Without it only sequences have embeddings of their own: nothing
    else is ever fed to the decoder.
    """

    def __init__(self, specs: Sequence[ModalitySpec], dim: int, *, share: bool) -> None:
        super().__init__()
        self.vocab_sizes = tuple(spec.vocab_size for spec in specs)
        self.has_sequences = any(spec.kind == "sequence" for spec in specs)
        self.head_table = nn.Parameter(torch.zeros(sum(self.vocab_sizes), dim))
        has_own_tokens = self.has_sequences and not share
        self.token_table = nn.Parameter(torch.zeros_like(self.head_table)) if has_own_tokens else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_buffer("first_id", first_rows(self.vocab_sizes), persistent=False)

    def forward(self, query_ids: Tensor, modality: Tensor) -> Tensor:
        """query_ids (M,), -1 for the mask token; modality (M,) -> (M, D), or (1, D) where all rows are equal."""
        if not self.has_sequences:
            return self.mask_token
        table_VD = self.head_table if self.token_table is None else self.token_table
        row_M = self.first_id.index_select(0, modality.int()) + query_ids.clamp(min=0)
        row_M.clamp_(max=table_VD.shape[0] - 1)  # the tail of a batch of fixed shape has no modality
        return torch.where((query_ids >= 0)[:, None], F.embedding(row_M, table_VD), self.mask_token)

    def logits(self, hidden: Tensor, modality: int) -> Tensor:
        """(..., D) -> (..., vocabulary of that modality); of weights in half precision float32 all the same.

        A vocabulary's logits reach tens, where bfloat16 knows steps of a sixteenth: too coarse to choose by.
        """
        first = sum(self.vocab_sizes[:modality])
        table_VD = self.head_table[first : first + self.vocab_sizes[modality]]
        if table_VD.dtype == torch.float32:
            return F.linear(hidden, table_VD)
        if table_VD.is_cuda:
            return torch.mm(hidden.flatten(0, -2), table_VD.T, out_dtype=torch.float32).unflatten(0, hidden.shape[:-1])
        return F.linear(hidden, table_VD).float()
