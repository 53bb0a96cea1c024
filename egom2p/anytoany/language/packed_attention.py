"""Attention of a language model inside the conversations of a packed row, whatever model it is.

R rows, T positions, H query heads, J key heads, E width of a head, N = R T positions of all rows.

transformers dispatches attention by name; the name registered here lays all rows end to end and calls
`layers.attention` (variable-length flash attention on CUDA), told who sees whom by a layout. Without a layout it is
torch's ordinary attention with the mask transformers made: generation with a cache.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from egom2p.anytoany.types import LanguageBatch
from egom2p.layers.attention import AttentionLayout, attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "egom2p_packed"
# Arguments that change the scores in ways not known here.
_UNSUPPORTED = ("s_aux", "position_bias")


def register() -> str:
    """Make the packed attention known to transformers; returns its name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    return NAME


def packed_layout(batch: LanguageBatch) -> AttentionLayout:
    """Every conversation sees itself, looking back; padding at the end of a row is a segment of its own."""
    num_positions = batch.ids.shape[1]
    lengths: list[int] = []
    for row in batch.row_lengths if batch.row_lengths is not None else _row_lengths(batch.segments):
        rest = num_positions - sum(row)
        if rest < 0:
            raise ValueError(f"conversations of {sum(row)} positions in a row of {num_positions}")
        lengths += [*row, rest] if rest else row
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return AttentionLayout.within(offsets.to(batch.ids.device, non_blocking=True), tuple(lengths), is_causal=True)


def packed_hidden(decoder: "PreTrainedModel", embeddings: Tensor, positions: Tensor, layout: AttentionLayout) -> Tensor:
    """Hidden states (R, T, D) of embeddings (R, T, D), no conversation seeing another.

    A mask with four axes passes through transformers untouched: this one only says that none is to be made.
    """
    no_mask = embeddings.new_zeros(1, 1, 1, 1)
    return decoder(
        inputs_embeds=embeddings, position_ids=positions, attention_mask=no_mask, use_cache=False, layout=layout
    ).last_hidden_state


def _row_lengths(segments: Tensor) -> list[list[int]]:
    rows = []
    for row in segments.cpu():
        numbers, counts = torch.unique_consecutive(row, return_counts=True)
        rows.append([count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True) if number >= 0])
    return rows


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """query (R, H, T, E), key, value (R, J, T, E) -> (R, T, H, E), as transformers asks for it."""
    found = [name for name in _UNSUPPORTED if arguments.get(name) is not None]
    if found:
        raise ValueError(f"{type(module).__name__}: attention with {found[0]} is not supported")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is None:
        if softcap is not None:
            return _capped(query, key, value, attention_mask, scaling=scaling, softcap=softcap), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **arguments
        )
    if dropout > 0:
        raise ValueError("packed attention has no dropout; set attention_dropout of the language model to 0")
    if softcap is not None or (sliding_window is not None and max(layout.query_lengths, default=0) > sliding_window):
        may_attend = _may_attend(layout, query, sliding_window)
        return _capped(query, key, value, may_attend, scaling=scaling, softcap=softcap), None
    # The layout's attention scales by 1 / sqrt(E).
    factor = scaling * query.shape[-1] ** 0.5
    query = query if math.isclose(factor, 1.0) else query * factor
    rows = [rearrange(part, "r h t e -> (r t) h e") for part in (query, key, value)]
    return rearrange(attend(*rows, layout), "(r t) h e -> r t h e", r=query.shape[0]), None


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
) -> Tensor:
    """The slow way, for families that bound their scores or look back a limited number of positions."""
    key, value = _repeated(query, key, value)
    scores_RHTS = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores_RHTS = torch.tanh(scores_RHTS / softcap) * softcap
    if mask is None:
        num_queries, num_keys = scores_RHTS.shape[-2:]
        ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = ones.tril(num_keys - num_queries)[None, None]
    scores_RHTS = scores_RHTS.masked_fill(~mask, torch.finfo(scores_RHTS.dtype).min)
    return (scores_RHTS.softmax(-1, dtype=torch.float32).to(value.dtype) @ value).transpose(1, 2)


def _may_attend(layout: AttentionLayout, query: Tensor, sliding_window: int | None) -> Tensor:
    """(R, 1, T, T)."""
    num_rows, _, num_positions, _ = query.shape
    numbers_N = torch.arange(num_rows * num_positions, device=query.device)
    segments_RT = torch.searchsorted(layout.query_offsets.long(), numbers_N, right=True).view(num_rows, -1)
    distance_TT = numbers_N[:num_positions, None] - numbers_N[:num_positions]
    is_seen_TT = distance_TT >= 0
    if sliding_window is not None:
        is_seen_TT &= distance_TT < sliding_window
    return ((segments_RT[:, :, None] == segments_RT[:, None]) & is_seen_TT)[:, None]


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as queries."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
