"""Attention over segments laid end to end: no dense masks, nothing padded in what goes in and comes out.

N query rows, P key rows of all segments, H heads, E width of a head, G segments, Q, K rows of one segment.

A segment's queries see that segment's keys. Encoder self-attention: segments are clips. Decoder self-attention: a
segment is one modality of one clip. Cross-attention: queries and keys of one clip. Zero-length segments are legal;
queries without keys get 0.

Backends: `varlen` is torch's variable-length flash attention (CUDA, half precision); `padded` works everywhere and is
free of padding where all segments are equally long; `plain` is slow and obvious, for tests. `auto` chooses.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from egom2p.layers.padding import PaddingPlan, pad_rows, permute_rows, plan_padding, unpad_rows

Backend = Literal["auto", "varlen", "padded", "plain"]


@dataclass(frozen=True)
class AttentionLayout:
    """Who sees whom.

    query_offsets, key_offsets   (G+1,) int32 on the device of the rows: where each segment begins; the last is the end
    query_lengths, key_lengths   G ints each, on the CPU: nothing is read back from the device
    is_causal                    each query sees keys up to its own number in the segment (self-attention only)
    """

    query_offsets: Tensor
    key_offsets: Tensor
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    is_causal: bool = False

    def __post_init__(self) -> None:
        if len(self.query_lengths) != len(self.key_lengths):
            raise ValueError(
                f"{len(self.query_lengths)} query segments cannot see {len(self.key_lengths)} key segments"
            )
        if self.is_causal and self.query_lengths != self.key_lengths:
            raise ValueError("causal attention needs as many keys as queries in every segment")

    @classmethod
    def within(cls, offsets: Tensor, lengths: tuple[int, ...], *, is_causal: bool = False) -> "AttentionLayout":
        """Self-attention inside segments."""
        return cls(offsets, offsets, lengths, lengths, is_causal)

    @cached_property
    def padding(self) -> PaddingPlan:
        """Made once per layout, used by every layer."""
        return plan_padding(self.query_lengths, self.key_lengths, device=self.query_offsets.device)

    @cached_property
    def max_lengths(self) -> tuple[int, int]:
        """Longest query and longest key segment."""
        return max(self.query_lengths, default=0), max(self.key_lengths, default=0)

    @cached_property
    def sees_anything(self) -> bool:
        """Whether some segment has queries and keys."""
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return any(num_queries > 0 and num_keys > 0 for num_queries, num_keys in pairs)

    @cached_property
    def has_queries_without_keys(self) -> bool:
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return any(num_queries > 0 and num_keys == 0 for num_queries, num_keys in pairs)


@dataclass(frozen=True)
class MixedLayout:
    """Self-attention of several kinds: rows are brought into another order and attended part by part.

    order     (N,) rows in the order of the parts
    inverse   (N,) back again
    parts     one layout for each run of rows, in order
    """

    order: Tensor
    inverse: Tensor
    parts: tuple[AttentionLayout, ...]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: AttentionLayout | MixedLayout,
    backend: Backend = "auto",
) -> Tensor:
    """Softmax attention inside segments, scaled by 1 / sqrt(E).

    query   (N, H, E)   key, value   (P, H, E)   -> (N, H, E)

    Keys and values may have fewer heads, a divisor of H: neighbouring query heads share one (grouped queries).
    """
    if isinstance(layout, MixedLayout):
        return _attend_mixed(query, key, value, layout, backend)
    if backend == "auto":
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        backend = "varlen" if query.is_cuda and is_half else "padded"
    if not layout.sees_anything:
        # Nobody sees anybody. Still a function of all three, so that every parameter has a (zero) gradient.
        return query * 0 + (key.sum() + value.sum()) * 0
    if backend == "padded":
        return _attend_padded(query, key, value, layout)
    if backend == "varlen":
        return _attend_varlen(query, key, value, layout)
    if backend == "plain":
        return _attend_plain(query, key, value, layout)
    raise ValueError(f"backend must be auto, varlen, padded or plain, got {backend!r}")


def _attend_padded(query_NHE: Tensor, key_PHE: Tensor, value_PHE: Tensor, layout: AttentionLayout) -> Tensor:
    if query_NHE.is_cuda:  # torch's fast float32 kernels there know no groups
        key_PHE, value_PHE = _with_all_heads(query_NHE, key_PHE, value_PHE)
    plan, is_grouped = layout.padding, _is_grouped(query_NHE, key_PHE)
    if plan.num_regular_segments > 0:
        num_segments = plan.num_regular_segments
        attended_GHQE = F.scaled_dot_product_attention(
            _segments_first(query_NHE, num_segments),
            _segments_first(key_PHE, num_segments),
            _segments_first(value_PHE, num_segments),
            is_causal=layout.is_causal,
            enable_gqa=is_grouped,
        )
        return rearrange(attended_GHQE, "g h q e -> (g q) h e")
    padded_query = pad_rows(query_NHE, plan.query_rows).split(plan.query_sizes)
    padded_key = pad_rows(key_PHE, plan.key_rows).split(plan.key_sizes)
    padded_value = pad_rows(value_PHE, plan.key_rows).split(plan.key_sizes)
    attended = []
    for group, query, key, value in zip(plan.groups, padded_query, padded_key, padded_value, strict=True):
        # Padding stands at the end, so a causal query with a number inside the segment never sees it.
        out_GHQE = F.scaled_dot_product_attention(
            _segments_first(query, group.num_segments),
            _segments_first(key, group.num_segments),
            _segments_first(value, group.num_segments),
            attn_mask=None if layout.is_causal else group.may_attend,
            is_causal=layout.is_causal,
            enable_gqa=is_grouped,
        )
        attended.append(rearrange(out_GHQE, "g h q e -> (g q) h e"))
    return unpad_rows(torch.cat(attended) if len(attended) > 1 else attended[0], plan.query_rows)


def _is_grouped(query_NHE: Tensor, key_PHE: Tensor) -> bool:
    return query_NHE.shape[1] != key_PHE.shape[1]


def _with_all_heads(query_NHE: Tensor, key_PHE: Tensor, value_PHE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as queries."""
    if not _is_grouped(query_NHE, key_PHE):
        return key_PHE, value_PHE
    repeats = query_NHE.shape[1] // key_PHE.shape[1]
    return key_PHE.repeat_interleave(repeats, dim=1), value_PHE.repeat_interleave(repeats, dim=1)


def _segments_first(rows_NHE: Tensor, num_segments: int) -> Tensor:
    return rearrange(rows_NHE, "(g q) h e -> g h q e", g=num_segments)


def _attend_varlen(query_NHE: Tensor, key_PHE: Tensor, value_PHE: Tensor, layout: AttentionLayout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Not every torch that we support knows groups here. Asked where there are some: nobody else need compile this.
    if _is_grouped(query_NHE, key_PHE) and "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        key_PHE, value_PHE = _with_all_heads(query_NHE, key_PHE, value_PHE)
    max_query, max_key = layout.max_lengths
    attended_NHE = varlen_attn(
        query_NHE,
        key_PHE,
        value_PHE,
        layout.query_offsets,
        layout.key_offsets,
        max_query,
        max_key,
        **({"window_size": (-1, 0)} if layout.is_causal else {}),
        **({"enable_gqa": True} if _is_grouped(query_NHE, key_PHE) else {}),
    )
    if not layout.has_queries_without_keys:
        return attended_NHE
    has_keys_G = layout.key_offsets.diff() > 0
    has_keys_N = torch.repeat_interleave(has_keys_G, layout.query_offsets.diff(), output_size=sum(layout.query_lengths))
    return torch.where(has_keys_N[:, None, None], attended_NHE, 0.0)


def _attend_plain(query_NHE: Tensor, key_PHE: Tensor, value_PHE: Tensor, layout: AttentionLayout) -> Tensor:
    attended = []
    key_PHE, value_PHE = _with_all_heads(query_NHE, key_PHE, value_PHE)
    segments = zip(
        query_NHE.split(layout.query_lengths),
        key_PHE.split(layout.key_lengths),
        value_PHE.split(layout.key_lengths),
        strict=True,
    )
    for query_QHE, key_KHE, value_KHE in segments:
        scores_HQK = torch.einsum("qhe,khe->hqk", query_QHE, key_KHE) / query_QHE.shape[-1] ** 0.5
        if layout.is_causal:
            is_later_QK = torch.ones(scores_HQK.shape[1:], dtype=torch.bool, device=query_QHE.device).triu(1)
            scores_HQK = scores_HQK.masked_fill(is_later_QK, float("-inf"))
        attended.append(torch.einsum("hqk,khe->qhe", scores_HQK.softmax(-1), value_KHE))
    return torch.cat(attended)


def _attend_mixed(
    query_NHE: Tensor, key_NHE: Tensor, value_NHE: Tensor, layout: MixedLayout, backend: Backend
) -> Tensor:
    sizes = [sum(part.query_lengths) for part in layout.parts]
    rows = (query_NHE, key_NHE, value_NHE)
    ordered = [permute_rows(part, layout.order, layout.inverse).split(sizes) for part in rows]
    attended = [attend(q, k, v, part, backend) for q, k, v, part in zip(*ordered, layout.parts, strict=True)]
    return permute_rows(torch.cat(attended), layout.inverse, layout.order)
