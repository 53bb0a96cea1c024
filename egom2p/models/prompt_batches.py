"""Lay what a model is asked during generation end to end, as the collator does for training.

N input tokens of all rows, M queries of all rows, L tokens of one modality.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from egom2p.contracts import PackedBatch


@dataclass(frozen=True)
class KnownTokens:
    """Tokens of one modality that the encoder sees: ids and positions (n,), positions ascending."""

    modality: int
    ids: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class PromptRow:
    """One query to the model: what it sees, and the positions of one modality it is asked for.

    inputs         known tokens by modality, modality index ascending
    modality       index of the asked modality
    positions         (n,) asked positions
    query_ids      (n,) what is fed to the decoder; -1: the mask token
    """

    inputs: tuple[KnownTokens, ...]
    modality: int = 0
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    query_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @cached_property
    def input_key(self) -> bytes:
        """Equal for rows that the encoder need see only once."""
        digest = hashlib.blake2b(digest_size=16)
        for known in self.inputs:
            digest.update(np.array([known.modality, len(known.ids)], np.int64).tobytes())
            digest.update(np.asarray(known.ids, np.int32).tobytes())
            digest.update(np.asarray(known.positions, np.int32).tobytes())
        return digest.digest()

    @cached_property
    def key(self) -> bytes:
        """Equal for rows that the model need answer only once."""
        digest = hashlib.blake2b(self.input_key, digest_size=16)
        digest.update(np.int64(self.modality).tobytes())
        digest.update(np.asarray(self.positions, np.int32).tobytes())
        digest.update(np.asarray(self.query_ids, np.int32).tobytes())
        return digest.digest()


def pack_prompts(rows: Sequence[PromptRow], modalities: tuple[str, ...], *, num_registers: int = 0) -> PackedBatch:
    """Rows as clips of a PackedBatch on the CPU; `target_ids` are -1, nobody knows them yet."""
    num_modalities = len(modalities)
    ids, positions, kinds, input_lengths = [], [], [], []
    target_positions, query_ids, target_kinds, segment_lengths = [], [], [], []
    for row in rows:
        known = [KnownTokens(num_modalities, np.zeros(num_registers, np.int32), np.arange(num_registers))]
        known.extend(row.inputs)
        ids.extend(np.asarray(part.ids, np.int32) for part in known)
        positions.extend(np.asarray(part.positions, np.int32) for part in known)
        kinds.extend(np.full(len(part.ids), part.modality, np.uint8) for part in known)
        input_lengths.append(sum(len(part.ids) for part in known))
        target_positions.append(np.asarray(row.positions, np.int32))
        query_ids.append(np.asarray(row.query_ids, np.int32))
        target_kinds.append(np.full(len(row.positions), row.modality, np.uint8))
        segment_lengths.extend(len(row.positions) if kind == row.modality else 0 for kind in range(num_modalities))
    target_lengths = [len(part) for part in target_positions]
    target_kind_M = np.concatenate(target_kinds) if target_kinds else np.zeros(0, np.uint8)
    queries = torch.from_numpy(_joined(query_ids, np.int32))
    return PackedBatch(
        input_ids=torch.from_numpy(_joined(ids, np.int32)),
        input_position=torch.from_numpy(_joined(positions, np.int32)),
        input_modality=torch.from_numpy(_joined(kinds, np.uint8)),
        input_offsets=_offsets(input_lengths),
        target_ids=torch.full_like(queries, -1),
        target_position=torch.from_numpy(_joined(target_positions, np.int32)),
        target_modality=torch.from_numpy(target_kind_M),
        target_offsets=_offsets(target_lengths),
        query_ids=queries,
        segment_offsets=_offsets(segment_lengths),
        head_order=torch.from_numpy(np.argsort(target_kind_M, kind="stable")),
        head_counts=tuple(int(count) for count in np.bincount(target_kind_M, minlength=num_modalities)),
        input_lengths=tuple(input_lengths),
        target_lengths=tuple(target_lengths),
        segment_lengths=tuple(segment_lengths),
        modalities=modalities,
    )


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
