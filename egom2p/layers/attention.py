"""Attention over segments laid end to end: no dense masks, nothing padded in what goes in and comes out.

N query rows, P key rows of all segments, H heads, E width of a head, G segments, Q, K rows of one segment.

A segment's queries see that segment's keys. Encoder self-attention: segments are clips. Decoder self-attention: a
segment is one modality of one clip. Cross-attention: queries and keys of one clip. Zero-length segments are legal;
queries without keys get 0.

Backends: `varlen` is variable-length flash attention (CUDA, half precision); `padded` works everywhere and is free of
padding where all segments are equally long; `plain` is slow and obvious, for tests. `auto` is `choose_backend`.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from egom2p.layers.padding import PaddingPlan, pad_rows, permute_rows, plan_padding, regular_segments, unpad_rows

Backend = Literal["auto", "varlen", "padded", "plain"]

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
    def max_lengths(self) -> tuple[int, int]:
        """Longest query and longest key segment, rounded up to tiles: kernels are told so that they can stop there."""
        longest = max(self.query_lengths, default=0), max(self.key_lengths, default=0)
        return -(-longest[0] // _TILE) * _TILE, -(-longest[1] // _TILE) * _TILE

    @cached_property
    def is_chosen_rectangle(self) -> bool:
        """Whether all segments are equally long, and of a length that somebody chose rather than drew at random.

        Kernels that are planned for a shape (cuDNN's, about 40 ms a plan) may then be used: shapes will repeat.
        """
        if not regular_segments(self.query_lengths, self.key_lengths):
            return False
        return max(self.query_lengths) % _TILE == 0 and max(self.key_lengths) % _TILE == 0

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
        backend = choose_backend(query.device.type, query.dtype, query.shape[-1], layout)
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


def choose_backend(device_type: str, dtype: torch.dtype, head_width: int, layout: AttentionLayout) -> Backend:
    """What `auto` is: the same for the same device, precision, head width and lengths, whatever came before.

    Rectangles go through torch's own attention (`padded` has nothing to pad there), which takes flash or cuDNN.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device_type != "cuda" or not is_half or head_width > _WIDEST_FLASH_HEAD or layout.is_chosen_rectangle:
        return "padded"
    return "varlen"


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
    return rearrange(rows_NHE, "(g q) h e -> g h q e", g=num_segments)


def _attend_varlen(query_NHE: Tensor, key_PHE: Tensor, value_PHE: Tensor, layout: AttentionLayout) -> Tensor:
    width = query_NHE.shape[-1]
    if width % _FLASH_ALIGNMENT:  # zeros add nothing to a score, and their part of the result is cut off
        missing = -width % _FLASH_ALIGNMENT
        query_NHE, key_PHE, value_PHE = (F.pad(rows, (0, missing)) for rows in (query_NHE, key_PHE, value_PHE))
    attended_NHE = _FlashAttention.apply(query_NHE, key_PHE, value_PHE, layout, width**-0.5)[..., :width]
    if not layout.has_queries_without_keys:
        return attended_NHE
    has_keys_G = layout.key_offsets.diff() > 0
    has_keys_N = torch.repeat_interleave(has_keys_G, layout.query_offsets.diff(), output_size=sum(layout.query_lengths))
    return torch.where(has_keys_N[:, None, None], attended_NHE, 0.0)


class _FlashAttention(torch.autograd.Function):
    """Flash attention over offsets, and nothing else.

    `torch.nn.attention.varlen` takes cuDNN on Hopper where the longest query exceeds 128 rows, and that makes a plan
    for each new (segments, rows, longest query, longest key), forward and backward: about 40 ms for nearly every
    ragged batch. Its switches reach the forward pass only. These are the operators beneath it, which packages of newer
    flash attention replace. It also needs neither a random state nor a custom operator's time on the host.
    """

    @staticmethod
    def forward(ctx, query_NHE, key_PHE, value_PHE, layout, scale):
        sizes, options = _flash_arguments(layout, scale)
        attended_NHE, normaliser, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(
            query_NHE, key_PHE, value_PHE, *sizes, 0.0, layout.is_causal, False, **options
        )
        ctx.save_for_backward(query_NHE, key_PHE, value_PHE, attended_NHE, normaliser, rng_state, unused)
        ctx.layout, ctx.scale = layout, scale
        return attended_NHE

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NHE):
        *kept, rng_state, unused = ctx.saved_tensors
        sizes, options = _flash_arguments(ctx.layout, ctx.scale)
        grads = torch.ops.aten._flash_attention_backward(
            grad_NHE.contiguous(), *kept, *sizes, 0.0, ctx.layout.is_causal, rng_state, unused, **options
        )
        return (*grads, None, None)


def _flash_arguments(layout: AttentionLayout, scale: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    window = {"window_size_left": -1, "window_size_right": 0 if layout.is_causal else -1}
    return (layout.query_offsets, layout.key_offsets, *layout.max_lengths), {"scale": scale, **window}


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
