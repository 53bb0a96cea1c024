"""Bring segments of unequal length into a few rectangles and back.

N rows, R rows of all rectangles with padding, G segments of one rectangle, Q, K its longest segment.

Segments of like length share a rectangle: each rectangle costs one attention call, each padded pair costs arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# One more attention call costs about as much as this many padded query-key pairs. Measured on a CPU (4 heads of 32);
# of GPUs estimated: 0.3 ms of the host against float32 products at 30 TFLOP/s (12 heads of 64, with gradient).
_PAIRS_PER_CALL = {"cpu": 3500, "cuda": 2**20}


@dataclass(frozen=True)
class PaddedRows:
    """One-to-one map between rows and padded rows.

    source       (R,) row that fills each padded row; padding repeats a row of its own segment
    position     (N,) padded row that holds each row; 0 where the row is in no rectangle
    padding      (...,) padded rows that are padding
    left_out     (...,) rows in no rectangle
    """

    source: Tensor
    position: Tensor
    padding: Tensor
    left_out: Tensor


@dataclass(frozen=True)
class PaddedGroup:
    """One rectangle: num_segments x query_length, num_segments x key_length.

    may_attend   (G, 1, 1, K) bool, False on padding; None where no key is padding
    """

    num_segments: int
    query_length: int
    key_length: int
    may_attend: Tensor | None


@dataclass(frozen=True)
class PaddingPlan:
    """How a layout is brought into rectangles.

    num_regular_segments   above 0: the rows already are one rectangle of so many segments, a reshape will do
    """

    num_regular_segments: int = 0
    groups: tuple[PaddedGroup, ...] = ()
    query_rows: PaddedRows | None = None
    key_rows: PaddedRows | None = None

    @cached_property
    def query_sizes(self) -> list[int]:
        return [group.num_segments * group.query_length for group in self.groups]

    @cached_property
    def key_sizes(self) -> list[int]:
        return [group.num_segments * group.key_length for group in self.groups]


def plan_padding(
    query_lengths: Sequence[int], key_lengths: Sequence[int], *, device: torch.device | str
) -> PaddingPlan:
    """Rectangles for segments of these lengths; segments without queries or without keys are left out."""
    if num_regular := regular_segments(query_lengths, key_lengths):
        return PaddingPlan(num_regular_segments=num_regular)
    queries, keys = np.asarray(query_lengths, np.int64), np.asarray(key_lengths, np.int64)
    pairs_per_call = _PAIRS_PER_CALL.get(torch.device(device).type, _PAIRS_PER_CALL["cuda"])
    members = _group_segments(queries, keys, pairs_per_call)
    groups = tuple(
        PaddedGroup(
            num_segments=len(segments),
            query_length=int(queries[segments].max()),
            key_length=int(keys[segments].max()),
            may_attend=_may_attend(keys[segments], device),
        )
        for segments in members
    )
    return PaddingPlan(
        groups=groups,
        query_rows=_padded_rows(queries, members, device),
        key_rows=_padded_rows(keys, members, device),
    )


def regular_segments(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> int:
    """Number of segments in use where all of them have as many queries, and as many keys; otherwise 0."""
    in_use = [pair for pair in zip(query_lengths, key_lengths, strict=True) if pair != (0, 0)]
    return len(in_use) if len(set(in_use)) == 1 else 0


def to_device(
    values: Tensor | np.ndarray | Sequence[float], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Numbers of the host on the device; the host does not wait until the device gets there."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pad_rows(rows: Tensor, plan: PaddedRows) -> Tensor:
    """(N, ...) -> (R, ...). Padding is finite; its gradient is taken to be zero, as masked attention makes it."""
    return _PadRows.apply(rows, plan.source, plan.position, plan.left_out)


def permute_rows(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """rows[order] for a permutation of all rows, whose inverse is given."""
    return _PermuteRows.apply(rows, order, inverse)


def inverse_permutation(order: Tensor) -> Tensor:
    """(N,) such that order[inverse] counts up."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))


def unpad_rows(padded: Tensor, plan: PaddedRows) -> Tensor:
    """(R, ...) -> (N, ...); rows in no rectangle are zero."""
    return _UnpadRows.apply(padded, plan.source, plan.position, plan.padding, plan.left_out)


class _PadRows(torch.autograd.Function):
    """Gather whose gradient is a gather too: autograd's own would scatter and be slow."""

    @staticmethod
    def forward(ctx, rows, source, position, left_out):
        ctx.save_for_backward(position, left_out)
        return rows.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_padded):
        position, left_out = ctx.saved_tensors
        grad_rows = grad_padded.index_select(0, position)
        return grad_rows.index_fill_(0, left_out, 0.0), None, None, None


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, order, inverse):
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows):
        (inverse,) = ctx.saved_tensors
        return grad_rows.index_select(0, inverse), None, None


class _UnpadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, padded, source, position, padding, left_out):
        ctx.save_for_backward(source, padding)
        return padded.index_select(0, position).index_fill_(0, left_out, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows):
        source, padding = ctx.saved_tensors
        grad_padded = grad_rows.index_select(0, source)
        return grad_padded.index_fill_(0, padding, 0.0), None, None, None, None


def _group_segments(queries: np.ndarray, keys: np.ndarray, pairs_per_call: int) -> list[np.ndarray]:
    """Segment numbers of each rectangle: longest first, a new one where padding would cost more than a call."""
    order = [int(i) for i in np.lexsort((-queries, -keys)) if queries[i] > 0 and keys[i] > 0]
    groups: list[list[int]] = []
    longest_query = longest_key = waste = 0
    # Longest keys first, so a rectangle's key length is known when it is opened. One pass, not the best cut: plans are
    # made anew for every batch, of thousands of segments.
    for segment in order:
        num_queries, num_keys = int(queries[segment]), int(keys[segment])
        # A longer query than the group's pads every segment already in it.
        growth = max(0, num_queries - longest_query) * longest_key * len(groups[-1]) if groups else 0
        added = max(num_queries, longest_query) * longest_key - num_queries * num_keys + growth
        if not groups or waste + added > pairs_per_call:
            groups.append([])
            longest_query, longest_key, waste, added = num_queries, num_keys, 0, 0
        groups[-1].append(segment)
        longest_query = max(longest_query, num_queries)
        waste += added
    return [np.asarray(group) for group in groups]


def _may_attend(keys_G: np.ndarray, device: torch.device | str) -> Tensor | None:
    if keys_G.min() == keys_G.max():
        return None
    may_attend_GK = np.arange(keys_G.max())[None, :] < keys_G[:, None]
    return to_device(may_attend_GK[:, None, None, :], device)


def _padded_rows(lengths: np.ndarray, members: list[np.ndarray], device: torch.device | str) -> PaddedRows:
    starts = np.cumsum(lengths) - lengths
    num_rows = int(lengths.sum())
    source_parts, padding_parts = [], []
    position, is_left_out = np.zeros(num_rows, np.int64), np.ones(num_rows, bool)
    first = 0
    for segments in members:
        numbers = np.arange(lengths[segments].max())[None, :]
        is_row = numbers < lengths[segments][:, None]
        # Padding repeats the last row of its own segment: finite like any row, and one gather without a row of zeros.
        source = starts[segments][:, None] + np.minimum(numbers, lengths[segments][:, None] - 1)
        padded = first + np.arange(source.size).reshape(source.shape)
        position[source[is_row]] = padded[is_row]
        is_left_out[source[is_row]] = False
        source_parts.append(source.ravel())
        padding_parts.append(padded[~is_row])
        first += source.size
    arrays = (np.concatenate(source_parts), position, np.concatenate(padding_parts), np.flatnonzero(is_left_out))
    return PaddedRows(*(to_device(array, device) for array in arrays))
