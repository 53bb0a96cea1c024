"""Two corners of the published model that the library does otherwise, or not at all, rebuilt here for comparison.

A clip without inputs: the published decoder then averages the padding of its encoder, here it sees nothing. All padding
of such a clip is the same vector, so one row in its place gives the published numbers.
Decoder attention that is not separated by modality: rows see those of their own and of earlier modalities.

N input rows, M target rows, H heads, E head width, D width.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.contracts import LossOutput, PackedBatch
from egom2p.layers.attention import AttentionLayout
from egom2p.layers.blocks import SelfAttention
from egom2p.models.egom2p_model import EgoM2P


@torch.no_grad()
def loss_with_padding_seen(model: EgoM2P, batch: PackedBatch) -> LossOutput:
    """Loss terms as published, where clips without inputs see their padding."""
    context_ND = model.encode(batch)
    padding_1D = _encoded_padding(model)
    rows, lengths, start = [], [], 0
    for length in batch.input_lengths:
        rows.append(context_ND[start : start + length] if length else padding_1D)
        lengths.append(length or 1)
        start += length
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    seen = replace(batch, input_offsets=offsets, input_lengths=tuple(lengths))
    hidden_MD = model.decode(seen, torch.cat(rows))
    sums = []
    for number in range(len(model.modalities)):
        belongs_M = batch.target_modality == number
        logits = model.logits(hidden_MD[belongs_M], number)
        sums.append(F.cross_entropy(logits, batch.target_ids[belongs_M].long(), reduction="sum"))
    return LossOutput(sums=torch.stack(sums), counts=batch.head_counts, names=batch.modalities)


def _encoded_padding(model: EgoM2P) -> Tensor:
    """Context (1, D) of a padded slot among padded slots: no token, no position, no modality."""
    hidden_1D = torch.zeros(1, model.config.dim)
    layout = AttentionLayout.within(torch.tensor([0, 1], dtype=torch.int32), (1,))
    for block in model.encoder:
        hidden_1D = block(hidden_1D, layout)
    return model.decoder_proj_context(model.encoder_norm(hidden_1D))


def see_earlier_modalities(model: EgoM2P, batch: PackedBatch, order: Sequence[str]) -> None:
    """Change the decoder in place, for this one batch: rows see their own and, in `order`, earlier modalities."""
    ranks_K = torch.tensor([order.index(name) for name in model.modalities])
    rank_M = ranks_K[batch.target_modality.long()]
    clip_M = torch.arange(batch.num_clips).repeat_interleave(torch.tensor(batch.target_lengths))
    may_see_MM = (clip_M[:, None] == clip_M) & (rank_M[None] <= rank_M[:, None])
    for block in model.decoder:
        block.self_attn = _DenselyMasked(block.self_attn, may_see_MM)


class _DenselyMasked(nn.Module):
    """Self-attention with a dense mask in place of a layout."""

    def __init__(self, attention: SelfAttention, may_see_MM: Tensor) -> None:
        super().__init__()
        self.attention, self.may_see_MM = attention, may_see_MM

    def forward(self, hidden: Tensor, layout: object) -> Tensor:
        attention = self.attention
        query, key, value = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        query_HME, key_HME = attention.q_norm(query).transpose(0, 1), attention.k_norm(key).transpose(0, 1)
        scores_HMM = query_HME @ key_HME.transpose(1, 2) / query_HME.shape[-1] ** 0.5
        share_HMM = scores_HMM.masked_fill(~self.may_see_MM, float("-inf")).softmax(-1)
        return attention.proj((share_HMM @ value.transpose(0, 1)).transpose(0, 1).flatten(1))
