"""Ask the model about many clips at once and draw from its answers.

n positions asked of one clip, M rows of all different queries, R rows of logits, K clips that share them, D width,
V vocabulary, P passes of guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec
from egom2p.models.prompt_batches import PromptRow, pack_prompts
from egom2p.models.sampling import TargetPlan, combine_guided, draw

LOGITS_PER_CHUNK = 1 << 24


@dataclass(frozen=True)
class Query:
    """One clip's part of one step.

    clip         number of the clip
    rows         one per guidance pass, all asking for the same positions; weights: of the passes
    uniform      (n,) one random number per asked position
    num_written  how many of the positions will be written
    """

    clip: int
    rows: tuple[PromptRow, ...]
    weights: tuple[float, ...]
    uniform: np.ndarray
    num_written: int


class PromptAnswers:
    """Runs a model on queries. Equal rows are run once, and equal inputs are encoded once.

    context_bytes  encoder outputs kept for later calls, besides those of the last step; the weights must not change
                   meanwhile
    """

    def __init__(self, model: torch.nn.Module, *, context_bytes: int = 0) -> None:
        self.model = model
        self.specs: tuple[ModalitySpec, ...] = tuple(model.specs)
        self._num_registers = int(getattr(model.config, "num_registers", 0))
        self._context_bytes = context_bytes
        self._contexts: dict[bytes, Tensor] = {}

    def forget(self) -> None:
        """Drop encoder outputs, unless they are to be kept between calls."""
        if self._context_bytes == 0:
            self._contexts.clear()

    def hidden_by_pass(self, queries: Sequence[Query]) -> list[list[Tensor]]:
        """Per query the decoder output (n, D) of each pass."""
        hidden_MD, starts = self._hidden(queries)
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
                logits_RV = self._guided([part[rows] for part in passes], modality, query.weights).float()
                truth_R = truth[rows].to(logits_RV.device)
                log_probs_R = torch.log_softmax(logits_RV, 1).gather(1, truth_R[:, None])[:, 0]
                parts.append((log_probs_R, logits_RV.argmax(1) == truth_R))
            answers.append((torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])))
        return answers

    def drawn(
        self, queries: Sequence[Query], plan: TargetPlan, temperatures: Mapping[int, float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids (n,) and their log probability (n,) per query; temperatures by clip."""
        if not queries:
            return []
        hidden_MD, starts = self._hidden(queries)
        answers: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0), np.zeros(0))] * len(queries)
        for groups in _alike(queries, temperatures):
            first = queries[groups[0][0]]
            index_PR = np.stack(
                [
                    np.concatenate([_span(queries[members[0]], number, starts) for members in groups])
                    for number in range(len(first.weights))
                ]
            )
            uniform_RK = np.concatenate(
                [np.stack([queries[member].uniform for member in members], axis=1) for members in groups]
            )
            found = self._draw_rows(hidden_MD, index_PR, uniform_RK, first, temperatures[first.clip], plan)
            start = 0
            for members in groups:
                rows = slice(start, start + len(queries[members[0]].uniform))
                for column, member in enumerate(members):
                    answers[member] = (found[0][rows, column], found[1][rows, column])
                start = rows.stop
        return answers

    def _draw_rows(
        self,
        hidden_MD: Tensor,
        index_PR: np.ndarray,
        uniform_RK: np.ndarray,
        query: Query,
        temperature: float,
        plan: TargetPlan,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log probabilities (R, K), never holding more than a chunk of logits."""
        modality = query.rows[0].modality
        index = torch.from_numpy(index_PR).to(hidden_MD.device)
        uniform = torch.from_numpy(uniform_RK).to(hidden_MD.device)
        ids, log_probs = [], []
        for rows in self._chunks(index.shape[1], modality):
            guided_RV = self._guided([hidden_MD[part[rows]] for part in index], modality, query.weights)
            options = {"temperature": temperature, "top_k": plan.top_k, "top_p": plan.top_p}
            drawn_RK, log_probs_RK = draw(guided_RV, uniform[rows], **options)
            ids.append(drawn_RK)
            log_probs.append(log_probs_RK)
        return torch.cat(ids).cpu().numpy().astype(np.int32), torch.cat(log_probs).cpu().numpy()

    def _guided(self, passes: Sequence[Tensor], modality: int, weights: Sequence[float]) -> Tensor:
        return combine_guided([self.model.logits(hidden_RD, modality) for hidden_RD in passes], weights)

    def _chunks(self, num_rows: int, modality: int) -> list[slice]:
        size = max(1, LOGITS_PER_CHUNK // self.specs[modality].vocab_size)
        return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def _hidden(self, queries: Sequence[Query]) -> tuple[Tensor, dict[bytes, int]]:
        """Decoder output (M, D) of all different rows, and where each row's part starts."""
        rows = {row.key: row for query in queries for row in query.rows}
        names = tuple(spec.name for spec in self.specs)
        device = next(self.model.parameters()).device
        unseen = {row.input_key: row for row in rows.values() if row.input_key not in self._contexts}
        if unseen:
            only_inputs = [PromptRow(row.inputs) for row in unseen.values()]
            batch = pack_prompts(only_inputs, names, num_registers=self._num_registers)
            parts = self.model.encode(batch.to(device)).split(list(batch.input_lengths))
            self._contexts.update(zip(unseen, parts, strict=True))
        batch = pack_prompts(list(rows.values()), names, num_registers=self._num_registers)
        context_ND = torch.cat([self._contexts[row.input_key] for row in rows.values()])
        self._evict({row.input_key for row in rows.values()})
        hidden_MD = self.model.decode(batch.to(device), context_ND)
        starts = np.cumsum([0, *batch.target_lengths])
        return hidden_MD, {key: int(start) for key, start in zip(rows, starts, strict=False)}

    def _evict(self, used: set[bytes]) -> None:
        """Keep the contexts of this step, and of earlier ones as far as the budget goes, oldest out first."""
        room = self._context_bytes
        for key in reversed(list(self._contexts)):
            if key not in used:
                room -= self._contexts[key].numel() * self._contexts[key].element_size()
                if room < 0:
                    del self._contexts[key]


def _alike(queries: Sequence[Query], temperatures: Mapping[int, float]) -> list[list[list[int]]]:
    """Numbers of queries, grouped: those that share logits together, then groups of equal size and kind."""
    shared: dict[tuple, list[int]] = {}
    for number, query in enumerate(queries):
        key = (tuple(row.key for row in query.rows), query.weights, temperatures[query.clip])
        shared.setdefault(key, []).append(number)
    alike: dict[tuple, list[list[int]]] = {}
    for (_, weights, temperature), members in shared.items():
        alike.setdefault((weights, temperature, len(members)), []).append(members)
    return list(alike.values())


def _span(query: Query, number: int, starts: Mapping[bytes, int]) -> np.ndarray:
    """Rows of the decoder output that one pass of a query asked for."""
    row = query.rows[number]
    return np.arange(len(row.positions)) + starts[row.key]
