"""What is known of a clip while it is generated, what of it the model is shown, and how many such prompts are packed.

N input tokens of all rows, M queries of all rows, L tokens of one modality, n positions asked in one step.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from egom2p.contracts import ModalitySpec, PackedBatch, TokenClip, check_fingerprint
from egom2p.models.sampling import TargetPlan, guidance_passes

UNKNOWN = -1  # id of a token that is not known: of a prompt, to be generated; of a query, the mask token is fed


@dataclass(frozen=True)
class KnownTokens:
    """Tokens of one modality that the encoder sees: ids and positions (n,), positions ascending.

    Where the device alone knows them they are handles (see `written_tokens`). Of patches they are lines of a table of
    the values of all prompts (`states_of`), and `content` says which values those are.
    """

    modality: int
    ids: np.ndarray
    positions: np.ndarray
    content: bytes = b""


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
            digest.update(known.content or np.asarray(known.ids, np.int32).tobytes())
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


@dataclass
class ClipState:
    """Tokens of one clip, -1 where unknown; grows while targets are generated.

    given  modalities the prompt held tokens of; grown: targets generated so far
    slots  of a target whose positions the device alone knows: handles of the positions of `tokens`
    values, content   of patches: their values (L, P), of which `tokens` has the lines in the table, and a digest
    """

    key: str
    tokens: dict[str, np.ndarray]
    fingerprints: dict[str, str | None]
    given: frozenset[str]
    grown: list[str] = field(default_factory=list)
    slots: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)

    def to_token_clip(self) -> TokenClip:
        return TokenClip(self.key, self.tokens | self.values, dict(self.fingerprints))


def states_of(
    prompts: Sequence[TokenClip], specs: Sequence[ModalitySpec]
) -> tuple[list[ClipState], tuple[np.ndarray, ...]]:
    """States before the first step, and per modality of kind patches the table (Q, P) of the values of all prompts.

    Equal videos have the same lines. ValueError names clip, modality, what was found and wanted.
    """
    states, tables = [state_of(prompt, specs) for prompt in prompts], []
    for spec in specs:
        if spec.kind != "patches":
            continue
        first_lines: dict[bytes, int] = {}
        pieces = [np.zeros((0, spec.num_values), np.uint8)]
        for state in states:
            if spec.name in state.values:
                content = state.content[spec.name]
                if content not in first_lines:
                    first_lines[content] = spec.num_tokens * len(first_lines)
                    pieces.append(state.values[spec.name])
                state.tokens[spec.name] = np.arange(spec.num_tokens, dtype=np.int32) + first_lines[content]
        tables.append(np.concatenate(pieces))
    return states, tuple(tables)


def state_of(prompt: TokenClip, specs: Sequence[ModalitySpec]) -> ClipState:
    """State before the first step; ValueError names clip, modality, what was found and wanted."""
    by_name = {spec.name: spec for spec in specs}
    tokens, values, content = {}, {}, {}
    for name, ids in prompt.tokens.items():
        if name not in by_name:
            raise ValueError(f"clip {prompt.key}: {name!r} is not a modality of the model: {sorted(by_name)}")
        if by_name[name].kind == "patches":
            values[name] = _checked_values(prompt, by_name[name])
            content[name] = hashlib.blake2b(values[name], digest_size=16).digest()
            tokens[name] = np.arange(by_name[name].num_tokens, dtype=np.int32)
        else:
            tokens[name] = _checked(prompt, by_name[name], np.array(ids, np.int32))
    given = frozenset(name for name, ids_L in tokens.items() if (ids_L != UNKNOWN).any())
    return ClipState(prompt.key, tokens, dict(prompt.fingerprints), given, values=values, content=content)


def _checked_values(prompt: TokenClip, spec: ModalitySpec) -> np.ndarray:
    values, wanted = np.ascontiguousarray(prompt.tokens[spec.name]), (spec.num_tokens, spec.num_values)
    if values.dtype != np.uint8 or values.shape != wanted:
        raise ValueError(
            f"clip {prompt.key}: {spec.name} has values {values.dtype} {values.shape}, wanted uint8 {wanted}"
        )
    _check_mark(prompt, spec)
    return values


def _check_mark(prompt: TokenClip, spec: ModalitySpec) -> None:
    found = prompt.fingerprints.get(spec.name)
    check_fingerprint(spec.name, found=found, wanted=spec.tokenizer_fingerprint, where=f"clip {prompt.key}")


def _checked(prompt: TokenClip, spec: ModalitySpec, ids_L: np.ndarray) -> np.ndarray:
    is_whole = ids_L.shape == (spec.num_tokens,)
    is_words = spec.kind == "sequence" and ids_L.ndim == 1 and len(ids_L) <= spec.num_tokens
    if not is_whole and not is_words:
        raise ValueError(f"clip {prompt.key}: {spec.name} has ids of shape {ids_L.shape}, wanted ({spec.num_tokens},)")
    if ids_L.size and (ids_L.min() < UNKNOWN or ids_L.max() >= spec.vocab_size):
        raise ValueError(
            f"clip {prompt.key}: {spec.name} has ids {ids_L.min()}..{ids_L.max()}, wanted 0..{spec.vocab_size - 1}"
        )
    _check_mark(prompt, spec)
    return ids_L


class Shown:
    """The known tokens of a clip that the model is shown while a target is made.

    With a generator and `plan.max_condition_tokens`, a random subset of the conditions, the same in all steps and
    passes.
    """

    def __init__(
        self,
        state: ClipState,
        plan: TargetPlan,
        specs: Sequence[ModalitySpec],
        rng: np.random.Generator | None = None,
    ) -> None:
        self._state, self._plan, self._specs = state, plan, specs
        self._modality = [spec.name for spec in specs].index(plan.target)
        self._subset: dict[str, np.ndarray] = {}
        if plan.max_condition_tokens is not None and rng is not None:
            self._subset = _draw_subset(state, plan, specs, rng)

    def rows(self, asked: np.ndarray, fed: np.ndarray | None = None) -> tuple[tuple[PromptRow, ...], tuple[float, ...]]:
        """One row per guidance pass that has weight, and the weights.

        asked  (n,) positions; fed: (n,) what the decoder of a sequence is fed (its own tokens are not shown then)
        """
        state, plan = self._state, self._plan
        conditions = [name for name in state.tokens if name in state.given and name != plan.target]
        earlier = [name for name in state.grown if name != plan.target and name not in conditions]
        always = set() if plan.grow_conditioning else set(earlier)
        if plan.grow_conditioning:
            conditions = conditions + earlier
        if fed is None:
            always = always | {plan.target}
        query_ids = np.full(len(asked), UNKNOWN, np.int32) if fed is None else fed
        passes = guidance_passes(plan, conditions)
        rows = [PromptRow(self._known(visible | always), self._modality, asked, query_ids) for visible, _ in passes]
        return tuple(rows), tuple(weight for _, weight in passes)

    def _known(self, names: frozenset[str]) -> tuple[KnownTokens, ...]:
        parts = []
        for index, spec in enumerate(self._specs):
            if spec.name not in names or spec.name not in self._state.tokens:
                continue
            ids_L = spec.words(self._state.tokens[spec.name])
            positions = self._subset.get(spec.name)
            if positions is None:
                positions = np.flatnonzero(ids_L != UNKNOWN)
            if len(positions):
                slots = self._state.slots.get(spec.name)
                known = ids_L[positions], positions if slots is None else slots[positions]
                parts.append(KnownTokens(index, *known, self._state.content.get(spec.name, b"")))
        return tuple(parts)


def _draw_subset(
    state: ClipState, plan: TargetPlan, specs: Sequence[ModalitySpec], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Positions kept of each condition, in proportion to its length and never more than allowed; empty when all fit."""
    words = {spec.name: spec.words for spec in specs}
    names = sorted({*state.given, *state.grown} - {plan.target})
    known = {name: np.flatnonzero(words[name](state.tokens[name]) != UNKNOWN) for name in names}
    total = sum(len(positions) for positions in known.values())
    if total <= plan.max_condition_tokens:
        return {}
    shares = {name: len(positions) * plan.max_condition_tokens / total for name, positions in known.items()}
    counts = {name: int(share) for name, share in shares.items()}
    # What rounding down left over goes to those it took most from.
    by_loss = sorted(known, key=lambda name: counts[name] - shares[name])
    for name in by_loss[: plan.max_condition_tokens - sum(counts.values())]:
        counts[name] += 1
    return {name: np.sort(rng.choice(positions, size=counts[name], replace=False)) for name, positions in known.items()}


class PromptArrays(NamedTuple):
    """Rows end to end, as in `PackedBatch`, but in int32 all of them."""

    input_ids: np.ndarray
    input_position: np.ndarray
    input_modality: np.ndarray
    input_offsets: np.ndarray
    target_position: np.ndarray
    target_modality: np.ndarray
    target_offsets: np.ndarray
    query_ids: np.ndarray
    segment_offsets: np.ndarray
    input_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    segment_lengths: tuple[int, ...]


def prompt_arrays(rows: Sequence[PromptRow], num_modalities: int, *, num_registers: int = 0) -> PromptArrays:
    """Rows end to end, as the collator lays clips for training."""
    registers = KnownTokens(num_modalities, np.zeros(num_registers, np.int32), np.arange(num_registers))
    known = [part for row in rows for part in (registers, *row.inputs)]
    input_lengths = [num_registers + sum(len(part.ids) for part in row.inputs) for row in rows]
    target_lengths = [len(row.positions) for row in rows]
    segment_lengths = [
        length if kind == row.modality else 0
        for row, length in zip(rows, target_lengths, strict=True)
        for kind in range(num_modalities)
    ]
    return PromptArrays(
        input_ids=_joined([part.ids for part in known]),
        input_position=_joined([part.positions for part in known]),
        input_modality=_joined([np.full(len(part.ids), part.modality) for part in known]),
        input_offsets=_offsets(input_lengths),
        target_position=_joined([row.positions for row in rows]),
        target_modality=_joined([np.full(len(row.positions), row.modality) for row in rows]),
        target_offsets=_offsets(target_lengths),
        query_ids=_joined([row.query_ids for row in rows]),
        segment_offsets=_offsets(segment_lengths),
        input_lengths=tuple(input_lengths),
        target_lengths=tuple(target_lengths),
        segment_lengths=tuple(segment_lengths),
    )


def pack_prompts(rows: Sequence[PromptRow], modalities: tuple[str, ...], *, num_registers: int = 0) -> PackedBatch:
    """The same as a batch on the CPU; `target_ids` are UNKNOWN."""
    arrays = prompt_arrays(rows, len(modalities), num_registers=num_registers)
    kinds_M = arrays.target_modality
    tensors = {name: torch.from_numpy(part) for name, part in arrays._asdict().items() if isinstance(part, np.ndarray)}
    lengths = {name: part for name, part in arrays._asdict().items() if isinstance(part, tuple)}
    return PackedBatch(
        **tensors,
        **lengths,
        target_ids=torch.full((len(kinds_M),), UNKNOWN, dtype=torch.int32),
        head_order=torch.from_numpy(np.argsort(kinds_M, kind="stable")),
        head_counts=tuple(int(count) for count in np.bincount(kinds_M, minlength=len(modalities))),
        modalities=modalities,
    )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
