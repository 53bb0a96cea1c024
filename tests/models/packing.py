"""Packed batches for tests: from plain lists, and at random."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from egom2p.contracts import ModalitySpec, PackedBatch, TokenGrid

# One side of a clip: modality -> (ids, positions), and for targets optionally the fed tokens.
Side = Mapping[str, tuple]

TINY_SPECS = (
    ModalitySpec("tok_motion", "track", "generic", TokenGrid((6,)), 7, "motion"),
    ModalitySpec("tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell"),
)


def pack(clips: Sequence[tuple[Side, Side]], specs: Sequence[ModalitySpec], *, num_registers: int = 0) -> PackedBatch:
    """Clips given as (inputs, targets), laid end to end."""
    names = tuple(spec.name for spec in specs)
    inputs = [_side_rows(clip[0], names, num_registers) for clip in clips]
    targets = [_side_rows(clip[1], names, 0) for clip in clips]
    input_rows, target_rows = (np.concatenate([*side, np.zeros((0, 4), np.int64)]) for side in (inputs, targets))
    segment_lengths = tuple(int((rows[:, 0] == k).sum()) for rows in targets for k in range(len(names)))
    input_lengths, target_lengths = (tuple(len(rows) for rows in side) for side in (inputs, targets))
    return PackedBatch(
        input_ids=_tensor(input_rows[:, 1], torch.int32),
        input_position=_tensor(input_rows[:, 2], torch.int16),
        input_modality=_tensor(input_rows[:, 0], torch.uint8),
        input_offsets=_offsets(input_lengths),
        target_ids=_tensor(target_rows[:, 1], torch.int32),
        target_position=_tensor(target_rows[:, 2], torch.int16),
        target_modality=_tensor(target_rows[:, 0], torch.uint8),
        target_offsets=_offsets(target_lengths),
        query_ids=_tensor(target_rows[:, 3], torch.int32),
        segment_offsets=_offsets(segment_lengths),
        head_order=_tensor(np.argsort(target_rows[:, 0], kind="stable"), torch.int64),
        head_counts=tuple(int((target_rows[:, 0] == k).sum()) for k in range(len(names))),
        input_lengths=input_lengths,
        target_lengths=target_lengths,
        segment_lengths=segment_lengths,
        modalities=names,
    )


def random_clips(
    rng: np.random.Generator, specs: Sequence[ModalitySpec], num_clips: int, *, share: float = 0.4
) -> list[tuple[dict, dict]]:
    """Clips whose positions are input, target or neither at random."""
    clips = []
    for _ in range(num_clips):
        inputs, targets = {}, {}
        for spec in specs:
            use = rng.random(spec.num_tokens)
            ids = rng.integers(0, spec.vocab_size, spec.num_tokens)
            for side, chosen in ((inputs, use < share), (targets, use > 1 - share)):
                positions = np.flatnonzero(chosen)
                side[spec.name] = (ids[positions], positions)
            if spec.kind == "sequence":
                ids_of_target = targets[spec.name][0]
                fed = np.concatenate([[spec.sentinel_ids[0]], ids_of_target[:-1]])[: len(ids_of_target)]
                targets[spec.name] = (*targets[spec.name], fed)
        clips.append((inputs, targets))
    return clips


def _side_rows(side: Side, names: tuple[str, ...], num_registers: int) -> np.ndarray:
    """(rows, 4): modality, id, position, fed token."""
    rows = [(len(names), 0, number, -1) for number in range(num_registers)]
    for modality, name in enumerate(names):
        ids, positions, *fed = side.get(name, ((), ()))
        queries = fed[0] if fed else [-1] * len(ids)
        rows += [(modality, *row) for row in zip(ids, positions, queries, strict=True)]
    return np.array(rows, np.int64).reshape(-1, 4)


def _tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(dtype)


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).int()
