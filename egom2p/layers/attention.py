"""Attention over segments laid end to end: no dense masks, nothing padded in what goes in and comes out.

N query rows, P key rows of all segments, H heads, E width of a head, G segments, Q, K rows of one segment.

A segment's queries see that segment's keys. Encoder self-attention: segments are clips. Decoder self-attention: a
segment is one modality of one clip. Cross-attention: queries and keys of one clip. Zero-length segments are legal;
queries without keys get 0.

Backends: `flash` is for CUDA and half precision: torch's own attention for rectangles, variable-length flash attention
for ragged rows. `padded` works everywhere; `plain` is slow and obvious, for tests. `auto` is `choose_backend`.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from egom2p.layers.padding import PaddingPlan, pad_rows, permute_rows, plan_padding, regular_segments, unpad_rows

Backend = Literal["auto", "flash", "padded", "plain"]

# Flash kernels work on tiles of this many rows; a longest length rounded up to it costs no tile, and makes few values.
_TILE = 128
_WIDEST_FLASH_HEAD, _FLASH_ALIGNMENT = 256, 8


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
    def flash(self) -> "FlashLayout":
        """What the flash backend needs to know, as few numbers: compiled code is made for their kinds, not values."""
        longest = (max(lengths, default=0) for lengths in (self.query_lengths, self.key_lengths))
        max_query, max_key = (-(-length // _TILE) * _TILE for length in longest)
        num_segments = regular_segments(self.query_lengths, self.key_lengths)
        # A rectangle of lengths that somebody chose, not drew at random: its shape will come again.
        is_chosen = num_segments > 0 and not any(length % _TILE for length in (*self.query_lengths, *self.key_lengths))
        return FlashLayout(
            self.query_offsets,
            self.key_offsets,
            max_query,
            max_key,
            num_segments if is_chosen else 0,
            self.is_causal,
            self.has_queries_without_keys,
        )

    @cached_property
    def sees_anything(self) -> bool:
        """Whether some segment has queries and keys."""
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return any(num_queries > 0 and num_keys > 0 for num_queries, num_keys in pairs)

    @cached_property
    def has_queries_without_keys(self) -> bool:
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return any(num_queries > 0 and num_keys == 0 for num_queries, num_keys in pairs)


class FlashLayout(NamedTuple):
    """A layout as the flash backend takes it.

    max_query, max_key   longest segments, rounded up to tiles: kernels are told so that they can stop there
    num_segments         above 0: a rectangle of so many segments, which torch's own attention takes: flash or cuDNN.
                         cuDNN makes a plan for every new shape, about 40 ms; so only for lengths that are whole tiles
    has_lonely_queries   some segment has queries and no keys
    """

    query_offsets: Tensor
    key_offsets: Tensor
    max_query: int
    max_key: int
    num_segments: int
    is_causal: bool
    has_lonely_queries: bool


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
    layout: AttentionLayout | MixedLayout | FlashLayout,
    backend: Backend = "auto",
) -> Tensor:
    """Softmax attention inside segments, scaled by 1 / sqrt(E).

    query   (N, H, E)   key, value   (P, H, E)   -> (N, H, E)

    Keys and values may have fewer heads, a divisor of H: neighbouring query heads share one (grouped queries).
    """
    if isinstance(layout, FlashLayout):
        return _attend_flash(query, key, value, layout)
    if isinstance(layout, MixedLayout):
        return _attend_mixed(query, key, value, layout, backend)
    if backend == "auto":
        backend = choose_backend(query.device.type, query.dtype, query.shape[-1])
    if not layout.sees_anything:
        # Nobody sees anybody. Still a function of all three, so that every parameter has a (zero) gradient.
        return query * 0 + (key.sum() + value.sum()) * 0
    if backend == "padded":
        return _attend_padded(query, key, value, layout)
    if backend == "flash":
        return _attend_flash(query, key, value, layout.flash)
    if backend == "plain":
        return _attend_plain(query, key, value, layout)
    raise ValueError(f"backend must be auto, flash, padded or plain, got {backend!r}")


def choose_backend(device_type: str, dtype: torch.dtype, head_width: int) -> Backend:
    """What `auto` is: the same for the same device, precision and head width, whatever came before."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return "flash" if device_type == "cuda" and is_half and head_width <= _WIDEST_FLASH_HEAD else "padded"


def use_fastest_flash(device: torch.device) -> str:
    """Make this process use the newest flash attention that is installed for a device; returns which.

    2 comes with torch. 3 (Hopper) and 4 (Blackwell) are packages of their own, about 1.5 times as fast there.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return "FA2"
    major = torch.cuda.get_device_capability(device)[0]
    packages = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn.cute")}
    name, package = packages.get(major, ("FA2", ""))
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None or not package or not _is_installed(package):
        return "FA2"
    activate(name)
    return name


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


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
    return rows_NHE.unflatten(0, (num_segments, -1)).transpose(1, 2)


def _attend_flash(query_NHE: Tensor, key_PHE: Tensor, value_PHE: Tensor, layout: FlashLayout) -> Tensor:
    if layout.num_segments > 0:
        attended_GHQE = F.scaled_dot_product_attention(
            *(_segments_first(rows, layout.num_segments) for rows in (query_NHE, key_PHE, value_PHE)),
            is_causal=layout.is_causal,
            enable_gqa=_is_grouped(query_NHE, key_PHE),
        )
        return attended_GHQE.transpose(1, 2).flatten(0, 1)
    width = query_NHE.shape[-1]
    scale = width**-0.5
    if missing := -width % _FLASH_ALIGNMENT:  # zeros add nothing to a score, and their part of the result is cut off
        query_NHE, key_PHE, value_PHE = (F.pad(rows, (0, missing)) for rows in (query_NHE, key_PHE, value_PHE))
    # The operator beneath torch.nn.attention.varlen, which takes cuDNN on Hopper where the longest query exceeds 128
    # rows: a plan for every new (segments, rows, longest query, longest key), which is nearly every ragged batch. Its
    # switches reach the forward pass only. Packages of newer flash attention replace this operator, and it costs the
    # host less.
    attended_NHE = torch.ops.aten._flash_attention_forward(
        query_NHE,
        key_PHE,
        value_PHE,
        layout.query_offsets,
        layout.key_offsets,
        layout.max_query,
        layout.max_key,
        0.0,
        layout.is_causal,
        False,
        scale=scale,
        window_size_left=-1,
        window_size_right=0 if layout.is_causal else -1,
    )[0][..., :width]
    if not layout.has_lonely_queries:
        return attended_NHE
    has_keys_G = layout.key_offsets.diff() > 0
    num_queries_G = layout.query_offsets.diff()
    has_keys_N = torch.repeat_interleave(has_keys_G, num_queries_G, output_size=query_NHE.shape[0])
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
