"""Clips of any budgets laid end to end: only real tokens (and at most a tail), every length known on the CPU.

B clips, K modalities, N input rows, M target rows, R registers per clip, Q patches of one modality, P values of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import MaskedClip, ModalitySpec, PackedBatch


@dataclass(frozen=True)
class BatchShape:
    """What a batch of fixed shape has room for: rows of both sides (registers apart), and clips.

    num_patches   so many of the input rows may be patches, per modality of that kind
    """

    num_inputs: int
    num_targets: int
    num_clips: int
    num_patches: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.num_inputs + self.num_targets


def collate(
    clips: Sequence[MaskedClip],
    specs: Sequence[ModalitySpec],
    num_registers: int = 0,
    token_budget: int = 0,
    shape: BatchShape | None = None,
    num_trimmed: int = 0,
) -> PackedBatch:
    """Pack clips; rows sorted by clip, modality (order of `specs`), position, with R register rows first in each clip.

    token_budget, num_trimmed   noted in the batch, for logging only
    shape                    fill up with segments that stand for no clip, so that every tensor has a fixed shape; the
                             last of them, the tail, takes all rows left over
    """
    names = [spec.name for spec in specs]
    num_modalities = len(names)
    registers = np.arange(num_registers) if num_registers else None
    inputs, targets = _Rows(), _Rows()
    queries: list[np.ndarray] = []
    has_queries = any(spec.kind == "sequence" for spec in specs)
    for clip in clips:
        if registers is not None:
            inputs.add(np.zeros_like(registers), registers, num_modalities)
        for index, name in enumerate(names):
            inputs.add_modality(clip.input_ids, clip.input_positions, name, index, specs[index])
            targets.add_modality(clip.target_ids, clip.target_positions, name, index, specs[index])
            if has_queries and name in clip.target_ids:
                queries.append(clip.query_ids[name])
    num_filler = 0
    if shape is not None:
        # Rows of the tail pass for tokens: patches would need values.
        tail = next(index for index, spec in enumerate(specs) if spec.kind != "patches")
        num_filler = _fill_up(inputs, targets, shape, num_modalities, registers, num_clips=len(clips), tail=tail)
        if has_queries:
            queries.append(np.full(targets.num_rows - sum(map(len, queries)), -1, dtype=np.int32))
    # The smallest type that holds every position: together with int32 ids a clip of full budgets takes <= 32 kB.
    position_type = _position_type(max(num_registers, *(spec.num_tokens for spec in specs)))
    target_modality_M, input_modality_N = targets.modality(), inputs.modality()
    patches = [index for index, spec in enumerate(specs) if spec.kind == "patches"]
    room = (None,) * len(patches) if shape is None else shape.num_patches
    # Input and target sides have K (+ 1 with registers) and K segments for each clip, empty ones too: so lengths are
    # sums over a regular table, and the model learns every length from Python ints without asking the device.
    num_segments = len(clips) + num_filler
    input_lengths_B = inputs.lengths_per_clip(num_segments, num_modalities + (registers is not None))
    segment_lengths = np.array(targets.lengths, dtype=np.int64)
    target_lengths_B = targets.lengths_per_clip(num_segments, num_modalities)
    num_targets = len(target_modality_M)
    return PackedBatch(
        input_ids=inputs.ids(),
        input_position=inputs.positions(position_type),
        input_modality=torch.from_numpy(input_modality_N),
        input_offsets=_offsets(input_lengths_B),
        target_ids=targets.ids(),
        target_position=targets.positions(position_type),
        target_modality=torch.from_numpy(target_modality_M),
        target_offsets=_offsets(target_lengths_B),
        # Without texts every query is the mask token: one number repeated by stride 0 costs no memory and no transfer.
        query_ids=_join(queries) if has_queries else torch.full((1,), -1, dtype=torch.int32).expand(num_targets),
        segment_offsets=_offsets(segment_lengths),
        # Stable, so that inside a modality rows stay in clip order: each head reads one slice, in the order of losses.
        head_order=torch.from_numpy(np.argsort(target_modality_M, kind="stable")),
        head_counts=tuple(np.bincount(target_modality_M, minlength=num_modalities)[:num_modalities].tolist()),
        input_lengths=tuple(input_lengths_B.tolist()),
        target_lengths=tuple(target_lengths_B.tolist()),
        segment_lengths=tuple(segment_lengths.tolist()),
        modalities=tuple(names),
        token_budget=token_budget,
        num_filler_clips=num_filler,
        num_trimmed=num_trimmed,
        patch_values=tuple(
            _patch_values(inputs.values.get(index, ()), specs[index].num_values, most)
            for index, most in zip(patches, room, strict=True)
        ),
        patch_rows=tuple(_patch_rows(input_modality_N, index, most) for index, most in zip(patches, room, strict=True)),
        patch_counts=tuple(sum(map(len, inputs.values.get(index, ()))) for index in patches),
    )


def _patch_values(pieces: Sequence[np.ndarray], num_values: int, most: int | None) -> Tensor:
    """(Q, P) of all clips, zeros below where there is room for more."""
    values_QP = np.zeros((sum(map(len, pieces)) if most is None else most, num_values), np.uint8)
    first = 0
    for piece in pieces:
        values_QP[first : first + len(piece)] = piece
        first += len(piece)
    return torch.from_numpy(values_QP)


def _patch_rows(input_modality_N: np.ndarray, modality: int, most: int | None) -> Tensor:
    """(Q,) input rows of one modality, N where there is room for more."""
    rows_Q = np.flatnonzero(input_modality_N == modality).astype(np.int32)
    filler = 0 if most is None else most - len(rows_Q)
    return torch.from_numpy(np.pad(rows_Q, (0, filler), constant_values=len(input_modality_N)))


def _fill_up(
    inputs: "_Rows",
    targets: "_Rows",
    shape: BatchShape,
    num_modalities: int,
    registers: np.ndarray | None,
    *,
    num_clips: int,
    tail: int,
) -> int:
    """Add unused segments and the tail; returns how many. The tail's rows stand in its last modality, so that they
    are the last rows of the batch in clip order and modality-major alike."""
    num_registers = 0 if registers is None else len(registers)
    left_inputs = shape.num_inputs - (inputs.num_rows - num_clips * num_registers)
    left_targets = shape.num_targets - targets.num_rows
    if min(left_inputs, left_targets, shape.num_clips - num_clips) < 0:
        raise ValueError(
            f"{num_clips} clips of {shape.num_inputs - left_inputs} inputs and {shape.num_targets - left_targets} "
            f"targets do not fit {shape}"
        )
    # One segment more than clips: the tail exists in every batch, also where it is empty, or shapes would not be fixed.
    num_filler = shape.num_clips + 1 - num_clips
    for number in range(num_filler):
        is_tail = number == num_filler - 1
        if registers is not None:
            inputs.add(np.zeros_like(registers), registers, num_modalities)
        for modality in range(num_modalities):
            has_rows = is_tail and modality == num_modalities - 1
            zeros = np.zeros(left_inputs if has_rows else 0, dtype=np.int32)
            inputs.add(zeros, zeros, tail)
            zeros = np.zeros(left_targets if has_rows else 0, dtype=np.int32)
            targets.add(zeros, zeros, num_modalities)
    return num_filler


class _Rows:
    """Pieces of one side, in row order; a segment without rows keeps its length 0.

    values   modality -> (n, P) of its patches so far, whose lines their ids count
    """

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._indices: list[int] = []
        self.lengths: list[int] = []
        self.values: dict[int, list[np.ndarray]] = {}

    @property
    def num_rows(self) -> int:
        return sum(self.lengths)

    def add(self, ids: np.ndarray, positions: np.ndarray, index: int) -> None:
        self._ids.append(ids)
        self._positions.append(positions)
        self._indices.append(index)
        self.lengths.append(len(ids))

    def add_modality(
        self,
        ids: Mapping[str, np.ndarray],
        positions: Mapping[str, np.ndarray],
        name: str,
        index: int,
        spec: ModalitySpec,
    ) -> None:
        found = ids.get(name)
        if found is not None and spec.kind == "patches":
            known = self.values.setdefault(index, [])
            first = sum(map(len, known))
            known.append(found)
            found = np.arange(first, first + len(found), dtype=np.int32)
        if found is None:
            self._indices.append(index)
            self.lengths.append(0)
        else:
            self.add(found, positions[name], index)

    def ids(self) -> Tensor:
        return _join(self._ids)

    def positions(self, dtype: np.dtype) -> Tensor:
        return _join(self._positions, dtype)

    def modality(self) -> np.ndarray:
        return np.repeat(np.array(self._indices, dtype=np.uint8), self.lengths)

    def lengths_per_clip(self, num_clips: int, num_segments: int) -> np.ndarray:
        return np.array(self.lengths, dtype=np.int64).reshape(num_clips, num_segments).sum(axis=1)


def _join(pieces: Sequence[np.ndarray], dtype: np.dtype | type = np.int32) -> Tensor:
    if not pieces:
        return torch.zeros(0, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype)
    return torch.from_numpy(np.concatenate(pieces, dtype=dtype, casting="same_kind"))


def _offsets(lengths: np.ndarray) -> Tensor:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return torch.from_numpy(offsets)


def _position_type(num_positions: int) -> np.dtype:
    """uint8 is left out: torch takes a uint8 index for a mask."""
    return np.dtype(np.int16 if num_positions <= 32768 else np.int32)
