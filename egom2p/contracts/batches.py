"""What the model eats and returns.

B clips, K modalities, N input tokens of all clips, M target tokens of all clips, L tokens of one modality, Q patches of
one modality in all clips, P values of a patch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedClip:
    """Which positions of a clip are input and which are target; the two are disjoint.

    Each mapping: modality name -> array; positions ascending. A modality may be missing from either side.
    For grids and tracks `query_ids` is -1 (the mask token); for sequences it is the previous token. Patches, never a
    target, have values (n, P) uint8 in `input_ids`.
    """

    key: str
    input_ids: Mapping[str, np.ndarray]
    input_positions: Mapping[str, np.ndarray]
    target_ids: Mapping[str, np.ndarray]
    target_positions: Mapping[str, np.ndarray]
    query_ids: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PackedBatch:
    """Only the budgeted tokens of all clips, laid end to end; nothing padded.

    Rows are sorted by clip, then modality (index in `modalities`), then position.
    A register row has modality index K and its register number as position; registers stand first in their clip.
    A batch of fixed shape ends in `num_filler_clips` segments that are no clips: unused ones, which hold registers
    only, and the tail, which takes all rows left over (its targets have modality index K). Nothing real sees them.

    input_ids        (N,) int32        target_ids        (M,) int32
    input_position      (N,) int          target_position      (M,) int
    input_modality   (N,) uint8        target_modality   (M,) uint8
    input_offsets    (B+1,) int32      target_offsets    (B+1,) int32
    query_ids        (M,) int32        -1: the mask token; else the token fed to the decoder (sequences); all -1 may be
                                       one value repeated, so never write into it
    segment_offsets  (B*K+1,) int32    rows of one (clip, modality) of the targets; zero length is legal
    head_order       (M,) int64        permutation that sorts the target rows modality-major, filler last
    head_counts      K ints            rows per modality in that order
    input_lengths, target_lengths      B ints each, on the CPU
    segment_lengths                    B*K ints, on the CPU
    modalities       K names, the model's order
    token_budget     sum of the clips' budgets, filled or not (the published "total tokens"), for logging
    num_filler_clips segments at the end that stand for no clip; they count in the lengths and offsets
    num_trimmed      tokens that were drawn but left out to meet a fixed shape, for logging
    patch_values     per modality of kind patches, in the model's order, (Q, P) uint8; such rows' `input_ids` count its
                     lines
    patch_rows       the same, (Q',) int32: the input rows that are patches; N is no row (filler of a fixed shape).
                     In batches for training line q belongs to row q
    patch_counts     the same, ints: how many of them are rows of clips
    """

    input_ids: Tensor
    input_position: Tensor
    input_modality: Tensor
    input_offsets: Tensor
    target_ids: Tensor
    target_position: Tensor
    target_modality: Tensor
    target_offsets: Tensor
    query_ids: Tensor
    segment_offsets: Tensor
    head_order: Tensor
    head_counts: tuple[int, ...]
    input_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    segment_lengths: tuple[int, ...]
    modalities: tuple[str, ...]
    token_budget: int = 0
    num_filler_clips: int = 0
    num_trimmed: int = 0
    patch_values: tuple[Tensor, ...] = ()
    patch_rows: tuple[Tensor, ...] = ()
    patch_counts: tuple[int, ...] = ()

    @property
    def num_clips(self) -> int:
        return len(self.input_lengths) - self.num_filler_clips

    @property
    def clip_lengths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Input and target rows of every clip, without filler."""
        return self.input_lengths[: self.num_clips], self.target_lengths[: self.num_clips]

    @property
    def modality_lengths(self) -> tuple[int, ...]:
        """Target rows of every (clip, modality), without filler."""
        return self.segment_lengths[: self.num_clips * len(self.modalities)]

    @property
    def num_tokens(self) -> int:
        """Real tokens, input plus target."""
        inputs, targets = self.clip_lengths
        return sum(inputs) + sum(targets)

    @property
    def num_rows(self) -> int:
        """Rows of both sides, filler included."""
        return int(self.input_ids.shape[0] + self.target_ids.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "PackedBatch":
        """The batch on a device; what the device can make itself is not sent (a full clip takes <= 32 kB)."""
        device = torch.device(device)
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if device.type == self.head_order.device.type:
            moved["head_order"] = self.head_order.to(device, non_blocking=non_blocking)
        else:
            moved["head_order"] = torch.argsort(moved["target_modality"], stable=True)
        return replace(self, **moved)

    def pin_memory(self) -> "PackedBatch":
        return replace(self, **self._each(Tensor.pin_memory))

    @property
    def transfer_bytes(self) -> int:
        """Bytes that `to` sends to a device."""
        sizes = self._each(lambda tensor: tensor.numel() * tensor.element_size(), keep_repeats=False)
        return sum(sum(size) if isinstance(size, tuple) else size for size in sizes.values())

    def _each(self, send: Callable[[Tensor], Any], *, keep_repeats: bool = True) -> dict[str, Any]:
        """Apply to every tensor but `head_order`; of one value repeated (stride 0) only a single one is taken."""
        done = {}
        for item in fields(self):
            tensor = getattr(self, item.name)
            if item.name in ("patch_values", "patch_rows"):
                done[item.name] = tuple(map(send, tensor))
            if not isinstance(tensor, Tensor) or item.name == "head_order":
                continue
            is_repeated = tensor.dim() == 1 and tensor.shape[0] > 1 and tensor.stride(0) == 0
            sent = send(tensor[:1] if is_repeated else tensor)
            done[item.name] = sent.expand(tensor.shape[0]) if is_repeated and keep_repeats else sent
        return done


@dataclass(frozen=True)
class LossOutput:
    """Loss terms as sums, to be divided by the counts of the whole optimizer step.

    sums     (K,) fp32 on the device, with gradient: summed loss of each term
    counts   K ints, known on the CPU: how many rows each sum runs over
    names    K names: modalities when pretraining, loss terms for a tokenizer
    """

    sums: Tensor
    counts: tuple[int, ...]
    names: tuple[str, ...]
