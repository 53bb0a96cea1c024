"""Ask the model about many clips at once and draw from its answers.

n positions asked of one clip, N input rows and M rows of all different queries, R rows of logits, K clips that share
them, D width, V vocabulary, P passes of guidance, I numbers that are sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec, PackedBatch
from egom2p.layers.padding import to_device
from egom2p.models.prompt_batches import UNKNOWN, PromptArrays, PromptRow, prompt_arrays
from egom2p.models.sampling import TargetPlan, combine_guided, draw_ids, log_probability

LOGITS_PER_CHUNK = 1 << 24
_FEW_LOGITS = 1 << 20  # sorted whole in less than a launch takes: candidates are never too few
_TILE = 128  # rows of a tile of a product on a GPU: a chunk of whole tiles wastes none


@dataclass(frozen=True)
class Query:
    """One clip's part of one step.

    clip         number of the clip
    rows         one per guidance pass, all asking for the same positions; weights: of the passes
    uniform      (n,) one random number per answer that is wanted: of the last n positions
    written      (n,) where each answer is written: numbers of a vector, or handles of them
    """

    clip: int
    rows: tuple[PromptRow, ...]
    weights: tuple[float, ...]
    uniform: np.ndarray
    written: np.ndarray


class Group(NamedTuple):
    """Queries of as many clips each that share logits: R rows, K clips, their passes' weights, their temperature."""

    num_rows: int
    num_shared: int
    weights: tuple[float, ...]
    temperature: float


class StepShape(NamedTuple):
    """All that decides what is computed in a step, beside the numbers that are sent: equal shapes, equal kernels.

    sizes         of the parts of the numbers, see `Numbers`
    new_lengths   input rows of those that are encoded; input_lengths: of all rows, new or known
    num_patches   of `patch_rows`, per modality
    is_all_new    what is encoded is all that is seen, in the order in which it is seen
    has_handles   some numbers stand for what only the device knows; sees_handles: of the inputs
    """

    sizes: tuple[int, ...]
    new_lengths: tuple[int, ...]
    input_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    segment_lengths: tuple[int, ...]
    modality: int
    groups: tuple[Group, ...]
    num_patches: tuple[int, ...]
    is_all_new: bool
    has_handles: bool
    sees_handles: bool


class Numbers(NamedTuple):
    """The parts of what is sent, int32. The first five may be handles (below UNKNOWN) of numbers of the device.

    written      (sum of R*K,) of all groups; hidden_rows: (sum of P*R,) of decoder output
    new_...      of the inputs that are encoded; the rest is of all rows, as in `PackedBatch`
    patch_rows   (sum of Q,) of the inputs that are encoded, of all modalities of that kind
    counts       (2C,) of all clips, for `WrittenTokens`: tokens to write, tokens to forget before
    """

    new_ids: Tensor
    new_position: Tensor
    target_position: Tensor
    query_ids: Tensor
    written: Tensor
    new_modality: Tensor
    new_offsets: Tensor
    input_offsets: Tensor
    target_modality: Tensor
    target_offsets: Tensor
    segment_offsets: Tensor
    hidden_rows: Tensor
    patch_rows: Tensor
    counts: Tensor


_NUM_WITH_HANDLES = 5


@dataclass(frozen=True)
class PackedStep:
    """What is asked in one step of all clips.

    numbers   (I,) int32, `Numbers` end to end; uniform: (sum of R*K,) float64
    keys      of the inputs of every row; new_keys: of those that are encoded
    starts    key of a row -> its first row of decoder output
    """

    shape: StepShape
    numbers: np.ndarray
    uniform: np.ndarray
    keys: tuple[bytes, ...]
    new_keys: tuple[bytes, ...]
    starts: Mapping[bytes, int]


class PromptAnswers:
    """Runs a model on queries. Equal rows are run once, and equal inputs are encoded once.

    context_bytes  encoder outputs kept for later calls, besides those of the last step; the weights must not change
                   meanwhile
    patches        on the device, what the ids of inputs that are patches count: see `prompt_batches.states_of`
    """

    def __init__(self, model: torch.nn.Module, *, context_bytes: int = 0) -> None:
        self.model = model
        self.specs: tuple[ModalitySpec, ...] = tuple(model.specs)
        self._names = tuple(spec.name for spec in self.specs)
        self._num_registers = int(getattr(model.config, "num_registers", 0))
        self._context_bytes = context_bytes
        self._contexts: dict[bytes, Tensor] = {}
        self._patch_kinds = [number for number, spec in enumerate(self.specs) if spec.kind == "patches"]
        self.patches: tuple[Tensor, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forget(self) -> None:
        """Drop encoder outputs, unless they are to be kept between calls."""
        if self._context_bytes == 0:
            self._contexts.clear()

    def hidden_by_pass(self, queries: Sequence[Query]) -> list[list[Tensor]]:
        """Per query the decoder output (n, D) of each pass."""
        step = self.pack(queries, dict.fromkeys((query.clip for query in queries), 0.0))
        parts = parts_of(step.shape, self.send([step])[0][0])
        hidden_MD = self.decode(step.shape, parts, self.context(step, parts))
        starts = step.starts
        return [
            [hidden_MD[starts[row.key] : starts[row.key] + len(row.positions)] for row in query.rows]
            for query in queries
        ]

    def log_likelihood(self, queries: Sequence[Query], truths: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per query log p (n,) of the true ids (n,), and where the most likely id is the true one."""
        answers = []
        for query, passes, truth in zip(queries, self.hidden_by_pass(queries), truths, strict=True):
            modality = query.rows[0].modality
            parts = []
            for rows in self._chunks(len(truth), modality):
                logits_RV = self.guided([part[rows] for part in passes], modality, query.weights).float()
                truth_R = to_device(truth[rows], logits_RV.device)
                log_probs_R = torch.log_softmax(logits_RV, 1).gather(1, truth_R[:, None])[:, 0]
                parts.append((log_probs_R, logits_RV.argmax(1) == truth_R))
            answers.append((torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])))
        return answers

    def pack(
        self, queries: Sequence[Query], temperatures: Mapping[int, float], counts: np.ndarray | None = None
    ) -> PackedStep:
        """One step of several clips; temperatures by clip, counts as in `Numbers`."""
        rows = {row.key: row for query in queries for row in query.rows}
        keys = tuple(row.input_key for row in rows.values())
        new = {row.input_key: row for row in rows.values() if row.input_key not in self._contexts}
        asked = self._arrays(list(rows.values()))
        is_all_new = tuple(new) == keys
        seen = asked if is_all_new else self._arrays([PromptRow(row.inputs) for row in new.values()])
        starts = dict(zip(rows, np.cumsum([0, *asked.target_lengths]).tolist(), strict=False))
        groups, members = [], []
        for weights, temperature, alike in _alike(queries, temperatures):
            num_rows = sum(len(queries[shared[0]].uniform) for shared in alike)
            groups.append(Group(num_rows, len(alike[0]), weights, temperature))
            members.append(alike)
        patch_rows = [np.flatnonzero(seen.input_modality == number) for number in self._patch_kinds]
        numbers = Numbers(
            seen.input_ids,
            seen.input_position,
            asked.target_position,
            asked.query_ids,
            _end_to_end([_by_row(queries, shared, "written") for alike in members for shared in alike]),
            seen.input_modality,
            seen.input_offsets,
            asked.input_offsets,
            asked.target_modality,
            asked.target_offsets,
            asked.segment_offsets,
            _end_to_end(
                [
                    _wanted_rows(queries[shared[0]], number, starts)
                    for group, alike in zip(groups, members, strict=True)
                    for number in range(len(group.weights))
                    for shared in alike
                ]
            ),
            _end_to_end(patch_rows),
            np.zeros(0, np.int32) if counts is None else counts,
        )
        shape = StepShape(
            sizes=tuple(len(part) for part in numbers),
            new_lengths=seen.input_lengths,
            input_lengths=asked.input_lengths,
            target_lengths=asked.target_lengths,
            segment_lengths=asked.segment_lengths,
            modality=queries[0].rows[0].modality,
            groups=tuple(groups),
            num_patches=tuple(map(len, patch_rows)),
            is_all_new=is_all_new,
            has_handles=any(part.min(initial=0) < UNKNOWN for part in numbers[:_NUM_WITH_HANDLES]),
            sees_handles=any(part.min(initial=0) < UNKNOWN for part in numbers[:2]),
        )
        uniform = [_by_row(queries, shared, "uniform") for alike in members for shared in alike]
        return PackedStep(
            shape, np.concatenate(numbers, dtype=np.int32), np.concatenate(uniform), keys, tuple(new), starts
        )

    def send(self, steps: Sequence[PackedStep]) -> list[tuple[Tensor, Tensor]]:
        """Numbers and uniform numbers of every step on the device, in one copy that nobody waits for."""
        device = self.device
        if device.type == "cpu":
            return [(torch.from_numpy(step.numbers), torch.from_numpy(step.uniform)) for step in steps]
        return split_sent(steps, to_device(joined(steps), device))

    def context(self, step: PackedStep, parts: Numbers) -> Tensor:
        """What the decoder sees (N, D), encoded where it is not known yet."""
        shape, contexts = step.shape, self._contexts
        encoded_ND = self.model.encode(self._batch(shape, parts)) if step.new_keys else None
        if not shape.sees_handles:
            if encoded_ND is not None:
                contexts.update(zip(step.new_keys, encoded_ND.split(shape.new_lengths), strict=True))
            self._evict(set(step.keys))
        if shape.is_all_new:
            return encoded_ND
        if shape.sees_handles:  # what they stand for changes, so nothing of it is kept
            contexts = contexts | dict(zip(step.new_keys, encoded_ND.split(shape.new_lengths), strict=True))
        return torch.cat([contexts[key] for key in step.keys])

    def context_of(self, step: PackedStep, numbers: Tensor) -> Tensor:
        """The same of a step without handles."""
        return self.context(step, parts_of(step.shape, numbers))

    def decode(self, shape: StepShape, parts: Numbers, context_ND: Tensor) -> Tensor:
        """Decoder output (M, D) of all different rows."""
        return self.model.decode(self._batch(shape, parts, is_decoded=True), context_ND)

    def draw(
        self,
        shape: StepShape,
        parts: Numbers,
        uniform: Tensor,
        hidden_MD: Tensor,
        plan: TargetPlan,
        *,
        num_candidates: int | None,
        with_certainty: bool,
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Ids and, where wanted, log probabilities of all groups (sum of R*K,); which rows were short of candidates.

        Never holds more than a chunk of logits.
        """
        ids, log_probs, is_short = [], [], []
        first_row = first = 0
        for group in shape.groups:
            num_passes, count = len(group.weights), group.num_rows * group.num_shared
            index_PR = parts.hidden_rows[first_row : first_row + num_passes * group.num_rows].view(num_passes, -1)
            is_few = group.num_rows * self.specs[shape.modality].vocab_size <= _FEW_LOGITS
            uniform_RK = uniform[first : first + count].view(group.num_rows, group.num_shared)
            for rows in self._chunks(group.num_rows, shape.modality):
                passes = [hidden_MD.index_select(0, part[rows]) for part in index_PR]
                guided_RV = self.guided(passes, shape.modality, group.weights)
                ids_RK, short = draw_ids(
                    guided_RV,
                    uniform_RK[rows],
                    temperature=group.temperature,
                    top_k=plan.top_k,
                    top_p=plan.top_p,
                    num_candidates=guided_RV.shape[1] if num_candidates and is_few else num_candidates,
                )
                ids.append(ids_RK.flatten())
                if with_certainty:
                    log_probs.append(log_probability(guided_RV, ids_RK).flatten())
                if short is not None:
                    is_short.append(short)
            first_row, first = first_row + num_passes * group.num_rows, first + count
        return torch.cat(ids), torch.cat(log_probs) if with_certainty else None, is_short

    def guided(self, passes: Sequence[Tensor], modality: int, weights: Sequence[float]) -> Tensor:
        """Logits (R, V) of decoder outputs (R, D) of several passes."""
        if len(passes) == 1 or passes[0].dtype == torch.float32:
            return combine_guided([self.model.logits(hidden_RD, modality) for hidden_RD in passes], weights)
        # Heads are linear: in half precision one product of what was mixed before, instead of one for each pass and
        # three passes over as many logits. Float32 keeps to the published order, where rounding decides ties.
        mixed_RD = combine_guided([hidden_RD.float() for hidden_RD in passes], weights)
        return self.model.logits(mixed_RD.to(passes[0].dtype), modality)

    def _chunks(self, num_rows: int, modality: int) -> list[slice]:
        size = max(1, LOGITS_PER_CHUNK // self.specs[modality].vocab_size)
        if self.device.type == "cuda":  # few and large products; there is room for twice as many logits
            size = max(size, 2 * size // _TILE * _TILE)
        return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def _arrays(self, rows: Sequence[PromptRow]) -> PromptArrays:
        return prompt_arrays(rows, len(self._names), num_registers=self._num_registers)

    def _batch(self, shape: StepShape, parts: Numbers, *, is_decoded: bool = False) -> PackedBatch:
        num_asked = parts.target_position.shape[0]
        return PackedBatch(
            input_ids=parts.new_ids,
            input_position=parts.new_position,
            input_modality=parts.new_modality,
            input_offsets=parts.input_offsets if is_decoded else parts.new_offsets,
            target_ids=parts.query_ids,
            target_position=parts.target_position,
            target_modality=parts.target_modality,
            target_offsets=parts.target_offsets,
            query_ids=parts.query_ids,
            segment_offsets=parts.segment_offsets,
            head_order=torch.arange(num_asked, device=parts.query_ids.device),  # of one modality
            head_counts=tuple(num_asked * (number == shape.modality) for number in range(len(self.specs))),
            input_lengths=shape.input_lengths if is_decoded else shape.new_lengths,
            target_lengths=shape.target_lengths,
            segment_lengths=shape.segment_lengths,
            modalities=self._names,
            patch_values=self.patches,
            patch_rows=parts.patch_rows.split(shape.num_patches) if self.patches else (),
        )

    def _evict(self, used: set[bytes]) -> None:
        """Keep the contexts of this step, and of earlier ones as far as the budget goes, oldest out first."""
        room = self._context_bytes
        for key in reversed(list(self._contexts)):
            if key not in used:
                room -= self._contexts[key].numel() * self._contexts[key].element_size()
                if room < 0:
                    del self._contexts[key]


def joined(steps: Sequence[PackedStep]) -> np.ndarray:
    """Bytes of all steps: first all float64, which must lie at multiples of eight, then all int32."""
    parts = [*(step.uniform for step in steps), *(step.numbers for step in steps)]
    return np.concatenate([part.view(np.uint8) for part in parts])


def split_sent(steps: Sequence[PackedStep], sent: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Numbers and uniform numbers of each step, of the bytes of all."""
    sizes = [step.uniform.nbytes for step in steps] + [step.numbers.nbytes for step in steps]
    parts = sent.split(sizes)
    uniform, numbers = parts[: len(steps)], parts[len(steps) :]
    return [(n.view(torch.int32), u.view(torch.float64)) for n, u in zip(numbers, uniform, strict=True)]


def parts_of(shape: StepShape, numbers: Tensor, values: Tensor | None = None) -> Numbers:
    """The parts of the numbers, handles replaced by the values they stand for."""
    if values is not None and shape.has_handles:
        front, rest = numbers.split([sum(shape.sizes[:_NUM_WITH_HANDLES]), sum(shape.sizes[_NUM_WITH_HANDLES:])])
        known = values.index_select(0, (UNKNOWN - 1 - front).clamp_(min=0))
        front = torch.where(front < UNKNOWN, known, front)
        parts = (*front.split(shape.sizes[:_NUM_WITH_HANDLES]), *rest.split(shape.sizes[_NUM_WITH_HANDLES:]))
        return Numbers(*parts)
    return Numbers(*numbers.split(shape.sizes))


def _alike(
    queries: Sequence[Query], temperatures: Mapping[int, float]
) -> list[tuple[tuple[float, ...], float, list[list[int]]]]:
    """(weights, temperature, numbers of queries): those that share logits together, of groups of equal size."""
    shared: dict[tuple, list[int]] = {}
    for number, query in enumerate(queries):
        key = (tuple(row.key for row in query.rows), query.weights, temperatures[query.clip])
        shared.setdefault(key, []).append(number)
    alike: dict[tuple, list[list[int]]] = {}
    for (_, weights, temperature), members in shared.items():
        alike.setdefault((weights, temperature, len(members)), []).append(members)
    return [(weights, temperature, members) for (weights, temperature, _), members in alike.items()]


def _wanted_rows(query: Query, number: int, starts: Mapping[bytes, int]) -> np.ndarray:
    """Rows of decoder output whose answers one pass of a query wants."""
    row = query.rows[number]
    end = starts[row.key] + len(row.positions)
    return np.arange(end - len(query.uniform), end)


def _by_row(queries: Sequence[Query], members: Sequence[int], field: str) -> np.ndarray:
    """(R*K,) of clips that share logits: all that is drawn from a row stands together."""
    return np.stack([getattr(queries[member], field) for member in members], axis=1).ravel()


def _end_to_end(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
