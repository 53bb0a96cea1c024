"""Tokens of a target while they are written on the device, and steps that the host need not follow.

C clips, L positions of the target, R answers of a step.

On a GPU the host plans all steps ahead: how many tokens each step writes is known, and what it does not know it calls
by handles, negative numbers that the device replaces by its own. So a generation is one copy there, steps of which none
waits for another's result on the host, and one copy back; of shapes seen before, one replay of a CUDA graph.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from egom2p.models.prompt_answers import PackedStep, PromptAnswers, parts_of
from egom2p.models.prompt_batches import UNKNOWN
from egom2p.models.sampling import TargetPlan

ID, POSITION, PLACE = range(3)
"""What handles stand for: the id in a slot, the position of a slot, and its place among all tokens (C*L,).

A slot is a position; where certainty decides what is written, slots count known tokens first, unknown ones then, both
by position: the host knows how many there are of each.
"""

_MOST_GRAPHS = 8


def handles(what: int, clip: int, slots: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(n,) below UNKNOWN, for slots of one clip; shape: (C, L)."""
    num_clips, length = shape
    return (UNKNOWN - 1 - ((what * num_clips + clip) * length + slots)).astype(np.int32)


class WrittenTokens:
    """`ids` (C, L) int32, UNKNOWN where nothing is written yet.

    by_certainty   of the answers of a step the most certain are written (maskgit)
    """

    def __init__(self, ids: Tensor, *, by_certainty: bool) -> None:
        self.ids, self.by_certainty = ids, by_certainty
        # Of what was given: never rewritten.
        self._certainty = torch.full(ids.shape, torch.inf, device=ids.device) if by_certainty else None
        self.is_short = torch.zeros(1, dtype=torch.bool, device=ids.device)

    def values(self) -> Tensor:
        """What handles stand for."""
        if not self.by_certainty:
            return self.ids.flatten()
        num_clips, length = self.ids.shape
        position_CL = torch.argsort((self.ids == UNKNOWN).byte(), dim=1, stable=True).int()
        first_C1 = torch.arange(0, num_clips * length, length, dtype=torch.int32, device=self.ids.device)[:, None]
        place = (position_CL + first_C1).flatten()
        return torch.cat([self.ids.flatten().index_select(0, place), position_CL.flatten(), place])

    def write(self, place_R: Tensor, ids_R: Tensor, certainty_R: Tensor | None, num_written_C: Tensor) -> Tensor | None:
        """Write answers to their places, by certainty only so many of each clip; then which (C, L) were written."""
        if not self.by_certainty:
            self.ids.view(-1).index_copy_(0, place_R.long(), ids_R.int())
            return None
        place_R = place_R.long()
        ids_CL = torch.full_like(self.ids, UNKNOWN)
        ids_CL.view(-1).index_copy_(0, place_R, ids_R.int())
        certainty_CL = torch.full_like(self._certainty, -torch.inf)
        # Above what was not asked, however unlikely.
        certainty_CL.view(-1).index_copy_(0, place_R, certainty_R.clamp(min=torch.finfo(torch.float32).min))
        is_written_CL = _rank(certainty_CL, descending=True) < num_written_C[:, None]
        self.ids = torch.where(is_written_CL, ids_CL, self.ids)
        self._certainty = torch.where(is_written_CL, certainty_CL, self._certainty)
        return is_written_CL

    def forget(self, num_forgotten_C: Tensor) -> None:
        """So many of each clip's tokens are unknown again: those written with the least certainty."""
        is_written_CL = self._certainty.isfinite() & (self.ids != UNKNOWN)
        rank_CL = _rank(self._certainty.masked_fill(~is_written_CL, torch.inf), descending=False)
        self.ids = self.ids.masked_fill(rank_CL < num_forgotten_C[:, None], UNKNOWN)


def _rank(values_CL: Tensor, *, descending: bool) -> Tensor:
    """Of each value in its row; of equal ones the first comes first."""
    order_CL = torch.argsort(values_CL, dim=1, descending=descending, stable=True)
    ranks_L = torch.arange(values_CL.shape[1], device=values_CL.device)
    return torch.empty_like(order_CL).scatter_(1, order_CL, ranks_L.expand_as(order_CL))


def write_step(
    answers: PromptAnswers,
    tokens: WrittenTokens,
    plan: TargetPlan,
    step: PackedStep,
    sent: tuple[Tensor, Tensor],
    *,
    context: Tensor | None = None,
    num_candidates: int | None = None,
) -> Tensor | None:
    """Ask the model and write its answers; see `WrittenTokens.write`.

    sent             `PromptAnswers.send` of the step
    context          where it is known already
    num_candidates   None: the device may be asked
    """
    shape, (numbers, uniform) = step.shape, sent
    num_clips = len(tokens.ids)
    counts = numbers[-2 * num_clips :]
    if tokens.by_certainty and shape.has_handles and plan.rewrite_fraction > 0:
        tokens.forget(counts[num_clips:])
    parts = parts_of(shape, numbers, tokens.values() if shape.has_handles else None)
    context_ND = answers.context(step, parts) if context is None else context
    hidden_MD = answers.decode(shape, parts, context_ND)
    ids_R, certainty_R, is_short = answers.draw(
        shape, parts, uniform, hidden_MD, plan, num_candidates=num_candidates, with_certainty=tokens.by_certainty
    )
    for short in is_short:
        tokens.is_short |= short
    return tokens.write(parts.written, ids_R, certainty_R, counts[:num_clips])


class Arriving:
    """Numbers on their way to the host, for which it need not wait."""

    def __init__(self, values: Tensor) -> None:
        self._event = torch.cuda.Event() if values.is_cuda else None
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        self._host.copy_(values, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def look(self) -> np.ndarray | None:
        """None while they are not there yet."""
        return self._host.numpy() if self._event is None or self._event.query() else None


class Graphs:
    """Work on a GPU whose kernels depend on nothing but a key: from its second time on one CUDA graph.

    A graph launches thousands of kernels as one; what the host would take for them is more than a GPU takes for a clip.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor] | None] = OrderedDict()

    def run(self, key: Hashable, work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """`work(*inputs)`, which must not ask the device; the result is overwritten by the next call."""
        if key not in self._graphs:
            # Most shapes come once; and what is made at a first time (plans, workspaces) must not be part of a graph.
            self._graphs[key] = None
            if len(self._graphs) > _MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return work(*inputs)
        self._graphs.move_to_end(key)
        found = self._graphs[key]
        if found is None:
            graph, kept = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in inputs]
            # None needs what another one has left in memory, so all share that of any that still lives.
            pool = next((other[0].pool() for other in self._graphs.values() if other is not None), None)
            # Other threads may pin memory meanwhile. Torch's own stream would be that of the first device to capture.
            settings = {"stream": torch.cuda.Stream(), "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, pool=pool, **settings):
                result = work(*kept)
            self._graphs[key] = found = (graph, kept, result)
        graph, kept, result = found
        for mine, given in zip(kept, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return result
