"""Fill modalities step by step: ROAR, MaskGIT and autoregressive decoding of packed prompts, with guidance.

B clips, L tokens of one modality, n positions asked of one clip in one step, V vocabulary.

A clip's result depends on its prompt, the plans and its own seed alone, never on the batch it is in. Clips in the same
state (several samples of one prompt, the unconditional passes of guidance) are run once and share their logits.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.layers.attention import choose_backend
from egom2p.layers.padding import to_device
from egom2p.models.prompt_answers import PackedStep, PromptAnswers, Query, joined, split_sent
from egom2p.models.prompt_batches import UNKNOWN, ClipState, Shown, states_of
from egom2p.models.sampling import (
    FEWEST_CANDIDATES,
    MORE_CANDIDATES,
    TargetPlan,
    step_temperatures,
    writing_order,
)
from egom2p.models.written_tokens import ID, PLACE, POSITION, Arriving, Graphs, WrittenTokens, handles, write_step

Positions = Mapping[str, Sequence[Sequence[np.ndarray]]]
"""Target -> clip -> step -> positions to write."""


@dataclass(frozen=True)
class GenerationStep:
    """What one step wrote.

    positions, ids   per clip (n,), empty for a clip that was already done
    tokens        per clip: the target's ids (L,) after this step, -1 where still unknown
    """

    target: str
    step: int
    num_steps: int
    positions: tuple[np.ndarray, ...]
    ids: tuple[np.ndarray, ...]
    tokens: tuple[np.ndarray, ...]


# More steps than this are planned one by one: what all of them are asked would not fit into memory.
_MOST_STEPS_AHEAD = 64
# Above so many rows of a step a GPU takes longer for its kernels than the host to launch them; and graphs keep memory.
_MOST_ROWS_OF_A_GRAPH = 1 << 14


class Sampler:
    """Generates with one model, which gives `config`, `specs`, `encode`, `decode` and `logits`.

    context_bytes  encoder outputs kept between calls (0: none), for the same prompts asked for several targets
    asks           the host reads every step's tokens before it plans the next; by default everywhere but on GPUs,
                   where it would wait for them
    graphs         on GPUs: generations of few clips whose shapes come again are replayed as CUDA graphs
    """

    def __init__(
        self, model: torch.nn.Module, *, context_bytes: int = 0, asks: bool | None = None, graphs: bool = True
    ) -> None:
        self.model = model
        self.specs: tuple[ModalitySpec, ...] = tuple(model.specs)
        self._answers = PromptAnswers(model, context_bytes=context_bytes)
        self._asks = asks
        self._graphs = Graphs() if graphs else None
        self._num_candidates: dict[str, int] = {}  # by target: what was enough so far

    def generate(
        self,
        prompts: Sequence[TokenClip],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        *,
        positions: Positions | None = None,
        chain: bool = True,
    ) -> list[TokenClip]:
        """The prompts with every target filled; arguments as in `iterate`.

        chain   a target is shown when those after it are made; not: all are made of the prompts alone
        """
        states = self._states(prompts, plans, seeds)
        asks = self._answers.device.type != "cuda" if self._asks is None else self._asks
        # Streams, events and graphs are those of the current device, which need not be the model's.
        with torch.cuda.device_of(next(self.model.parameters())):
            for _ in self._run(states, plans, seeds, positions or {}, asks=asks, chain=chain):
                pass
        return [state.to_token_clip() for state in states]

    def iterate(
        self,
        prompts: Sequence[TokenClip],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        *,
        positions: Positions | None = None,
    ) -> Iterator[GenerationStep]:
        """Generate the targets in the order of `plans`, yielding after each step.

        prompts   any set of modalities per clip; ids (L,), -1 = unknown (so a target may be given in part)
        seeds     one per prompt; equal prompt and seed give an equal result in any batch
        positions    instead of drawn ones (roar)
        """
        steps = self._run(self._states(prompts, plans, seeds), plans, seeds, positions or {}, asks=True)
        return self._with_patches(steps, self._answers.patches)

    def _with_patches(self, steps: Iterator[GenerationStep], patches: tuple[Tensor, ...]) -> Iterator[GenerationStep]:
        """Steps between which the sampler may be asked other things."""
        while True:
            self._answers.patches = patches
            if (step := next(steps, None)) is None:
                return
            yield step

    @torch.inference_mode()
    def logits(self, prompts: Sequence[TokenClip], plan: TargetPlan, positions: Sequence[np.ndarray]) -> list[Tensor]:
        """Guided logits (n, V) of the plan's target at the given positions of each clip, with nothing else asked."""
        queries = self._queries(prompts, plan, positions)
        found = zip(queries, self._answers.hidden_by_pass(queries), strict=True)
        return [self._answers.guided(parts, query.rows[0].modality, query.weights).float() for query, parts in found]

    @torch.inference_mode()
    def log_likelihood(
        self, prompts: Sequence[TokenClip], plan: TargetPlan, truths: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per clip log p (L,) in nats of the true ids (L,), all positions asked at once; where the best guess is right.

        Of a sequence: of its words and eos, each after the true ones before it.
        Raises ValueError for a prompt that holds the target: the model would see the answer.
        """
        if holding := [prompt.key for prompt in prompts if plan.target in prompt.tokens]:
            raise ValueError(f"clip {holding[0]}: the prompt holds {plan.target}, whose likelihood is asked")
        spec = next((spec for spec in self.specs if spec.name == plan.target), None)
        if spec is not None and spec.kind == "sequence":
            truths = [_beginning(np.asarray(truth), spec) for truth in truths]
        queries = self._queries(prompts, plan, [np.arange(len(truth)) for truth in truths], truths)
        wanted = [torch.from_numpy(np.asarray(truth, np.int64)) for truth in truths]
        found = self._answers.log_likelihood(queries, wanted)
        return [(log_probs.cpu().numpy(), is_right.cpu().numpy()) for log_probs, is_right in found]

    def _queries(
        self,
        prompts: Sequence[TokenClip],
        plan: TargetPlan,
        positions: Sequence[np.ndarray],
        truths: Sequence[np.ndarray] | None = None,
    ) -> list[Query]:
        """truths: (L,) per clip; the decoder of a sequence is fed with them, one position late."""
        queries = []
        states = self._states(prompts, [plan], [0] * len(prompts))
        spec = next(spec for spec in self.specs if spec.name == plan.target)
        for clip, (state, asked) in enumerate(zip(states, positions, strict=True)):
            fed = None
            if spec.kind == "sequence" and truths is not None:
                fed = np.concatenate([[_start_id(spec)], truths[clip][:-1]]).astype(np.int32)
            rows, weights = Shown(state, plan, self.specs).rows(np.asarray(asked), fed)
            queries.append(Query(clip, rows, weights, np.zeros(len(asked)), np.asarray(asked)))
        return queries

    def _states(
        self, prompts: Sequence[TokenClip], plans: Sequence[TargetPlan], seeds: Sequence[int]
    ) -> list[ClipState]:
        if len(seeds) != len(prompts):
            raise ValueError(f"one seed per prompt is needed: {len(prompts)} prompts, {len(seeds)} seeds")
        names = [spec.name for spec in self.specs]
        for plan in plans:
            if plan.target not in names:
                raise ValueError(f"target {plan.target!r} is not a modality of the model: {sorted(names)}")
            if self.specs[names.index(plan.target)].is_input_only:
                raise ValueError(f"target {plan.target!r}: patches are input only; a video is generated as tokens")
        self._answers.forget()
        states, tables = states_of(prompts, self.specs)
        self._answers.patches = tuple(to_device(table, self._answers.device) for table in tables)
        return states

    @torch.inference_mode()
    def _run(
        self,
        states: list[ClipState],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        positions: Positions,
        *,
        asks: bool,
        chain: bool = True,
    ) -> Iterator[GenerationStep]:
        was_training = self.model.training
        self.model.eval()
        try:
            for number, plan in enumerate(plans):
                spec = next(spec for spec in self.specs if spec.name == plan.target)
                rngs = [np.random.default_rng([seed, number]) for seed in seeds]
                if spec.kind == "sequence":
                    yield from self._run_sequence(states, plan, spec, rngs, asks=asks)
                else:
                    order = positions.get(plan.target)
                    work = _GridWork(states, plan, self.specs, spec, rngs, order, self._answers)
                    if asks:
                        yield from work.steps()
                    else:
                        self._run_ahead(work)
                for state in states:
                    if chain:
                        state.grown.append(plan.target)
                    state.fingerprints[plan.target] = spec.tokenizer_fingerprint
        finally:
            self._answers.forget()
            self.model.train(was_training)

    def _run_ahead(self, work: "_GridWork") -> None:
        """Write all tokens of a target without a look at any before the last step."""
        planned = work.planned()
        steps = list(islice(planned, _MOST_STEPS_AHEAD))
        if work.num_steps > len(steps):
            work.finish(self._one_by_one(work, steps, planned))
            return
        size = self._num_candidates.get(work.plan.target, FEWEST_CANDIDATES)
        while steps:
            found = self._all_at_once(work, steps, size).cpu().numpy()
            if not found[-1]:
                break
            # Rare, and remembered: what is drawn from was flatter than any before.
            size *= MORE_CANDIDATES
            self._num_candidates[work.plan.target] = size
        work.finish(found[:-1] if steps else work.start.ravel())

    def _all_at_once(self, work: "_GridWork", steps: Sequence[PackedStep], size: int) -> Tensor:
        """Ids (C*L,) after the last step, and whether `size` candidates were too few; all is sent in one copy."""
        answers, plan, device = self._answers, work.plan, self._answers.device
        sent = to_device(np.concatenate([joined(steps), work.start.ravel().view(np.uint8)]), device)
        numbers, start = sent.split([len(sent) - work.start.nbytes, work.start.nbytes])
        context_ND = answers.context_of(steps[0], split_sent(steps, numbers)[0][0])

        def write_all(numbers: Tensor, start: Tensor, context_ND: Tensor, *patches: Tensor) -> Tensor:
            answers.patches = patches  # of a graph: its own, filled anew at every replay
            start_CL = start.view(torch.int32).view(work.start.shape)
            tokens = WrittenTokens(start_CL.clone(), by_certainty=plan.scheme == "maskgit")
            for number, (step, part) in enumerate(zip(steps, split_sent(steps, numbers), strict=True)):
                context = context_ND if number == 0 else None
                write_step(answers, tokens, plan, step, part, context=context, num_candidates=size)
            return torch.cat([tokens.ids.flatten(), tokens.is_short.int()])

        num_rows = max(sum(step.shape.input_lengths) for step in steps)
        is_closed = all(step.shape.is_all_new for step in steps[1:])
        if not self._makes_graphs() or not is_closed or num_rows > _MOST_ROWS_OF_A_GRAPH:
            return write_all(numbers, start, context_ND, *answers.patches)
        # Weights are read where they lie: after they were moved or replaced it is another graph.
        weights = hash(tuple(parameter.data_ptr() for parameter in self.model.parameters()))
        drawn = (plan.scheme, plan.top_k, plan.top_p, plan.rewrite_fraction > 0, size)
        sizes = (work.start.shape, *(table.shape for table in answers.patches))
        key = (tuple(step.shape for step in steps), sizes, drawn, weights)
        return self._graphs.run(key, write_all, (numbers, start, context_ND, *answers.patches))

    def _makes_graphs(self) -> bool:
        """Not of padded attention, which sends a plan of its rectangles in every step."""
        if self._graphs is None or self._answers.device.type != "cuda":
            return False
        config, dtype = self.model.config, next(self.model.parameters()).dtype
        backend = choose_backend("cuda", dtype, config.dim // config.num_heads)
        return backend == "flash" and config.attention_backend in ("auto", "flash")

    def _one_by_one(self, work: "_GridWork", first: Sequence[PackedStep], others: Iterator[PackedStep]) -> np.ndarray:
        """Ids (C*L,) after the last step; every step is sent by itself."""
        tokens = WrittenTokens(to_device(work.start, self._answers.device), by_certainty=work.plan.scheme == "maskgit")
        # Whole vocabularies: of the few rows of a step out of many that costs little, and nothing is left to ask.
        size = max(spec.vocab_size for spec in self.specs)
        for step in chain(first, others):
            write_step(self._answers, tokens, work.plan, step, self._answers.send([step])[0], num_candidates=size)
        return tokens.ids.flatten().cpu().numpy()

    def _run_sequence(
        self,
        states: list[ClipState],
        plan: TargetPlan,
        spec: ModalitySpec,
        rngs: list[np.random.Generator],
        *,
        asks: bool,
    ) -> Iterator[GenerationStep]:
        """One token at a time, until the end token, continuing whatever the prompt holds.

        A host that does not look hears later that a clip has ended; what was written behind the end is cut off.
        """
        answers, target, shape = self._answers, plan.target, (len(states), spec.num_tokens)
        shown = [Shown(state, plan, self.specs, rng) for state, rng in zip(states, rngs, strict=True)]
        limit = min(plan.max_new_tokens or spec.num_tokens, spec.num_tokens)
        start = np.full(shape, UNKNOWN, np.int32)
        for state, ids_L in zip(states, start, strict=True):
            state.tokens[target] = _beginning(state.tokens.get(target, np.zeros(0, np.int32)), spec)
            ids_L[: len(state.tokens[target])] = state.tokens[target]
        first = [len(state.tokens[target]) for state in states]
        ended = {clip for clip, count in enumerate(first) if count and start[clip, count - 1] == spec.eos_id}
        heats = step_temperatures(plan.temperature_schedule, temperature=plan.temperature, counts=(1,) * limit)
        tokens = WrittenTokens(to_device(start, answers.device), by_certainty=False)
        on_their_way: deque[Arriving] = deque()
        for step in range(limit):
            while on_their_way and (found := on_their_way[0].look()) is not None:
                ended |= {clip for clip, count in enumerate(first) if (found[clip, count:] == spec.eos_id).any()}
                on_their_way.popleft()
            queries, written = [], {}
            for clip, state in enumerate(states):
                ids = state.tokens[target]
                if len(ids) >= spec.num_tokens or clip in ended:
                    continue
                fed = np.concatenate([[_start_id(spec)], ids]).astype(np.int32)
                rows, weights = shown[clip].rows(np.arange(len(fed)), fed)
                # One answer, after the last word, is wanted.
                uniform, place = rngs[clip].random(len(fed))[-1:], np.array([clip * shape[1] + len(ids)])
                queries.append(Query(clip, rows, weights, uniform, place))
                written[clip] = np.array([len(ids)])
            if not queries:
                break
            packed = answers.pack(queries, dict.fromkeys(written, heats[step]), np.zeros(2 * len(states), np.int32))
            size = None if asks else spec.vocab_size
            write_step(answers, tokens, plan, packed, answers.send([packed])[0], num_candidates=size)
            on_their_way.append(Arriving(tokens.ids))
            ids_CL = tokens.ids.cpu().numpy() if asks else None
            for clip, slots in written.items():
                newest = handles(ID, clip, slots, shape) if ids_CL is None else ids_CL[clip, slots]
                states[clip].tokens[target] = np.concatenate([states[clip].tokens[target], newest])
            if ids_CL is not None:
                report = {clip: (slots, ids_CL[clip, slots]) for clip, slots in written.items()}
                yield _report(plan, step, limit, states, report)
        if not asks:
            for clip, ids_L in enumerate(tokens.ids.cpu().numpy()):
                ids = ids_L[: len(states[clip].tokens[target])]
                ends = first[clip] + np.flatnonzero(ids[first[clip] :] == spec.eos_id)
                states[clip].tokens[target] = ids[: ends[0] + 1] if len(ends) else ids


def _start_id(spec: ModalitySpec) -> int:
    """What the decoder of a sequence is fed first: the mark of the first hidden span, here the whole text."""
    return spec.sentinel_ids[0] if spec.sentinel_ids else spec.pad_id


def _beginning(ids_L: np.ndarray, spec: ModalitySpec) -> np.ndarray:
    """What a prompt holds of a sequence: its ids before padding or the first unknown one, with eos where it has one."""
    known = ids_L[: np.argmax(ids_L == UNKNOWN)] if (ids_L == UNKNOWN).any() else ids_L
    words = spec.words(known)
    return known[: len(words) + 1] if len(words) < len(known) and known[len(words)] == spec.eos_id else words


class _GridWork:
    """The way of all clips through the steps of a grid or track target.

    start   (C, L) ids before the first step
    """

    def __init__(
        self,
        states: list[ClipState],
        plan: TargetPlan,
        specs: Sequence[ModalitySpec],
        spec: ModalitySpec,
        rngs: list[np.random.Generator],
        positions: Sequence[Sequence[np.ndarray]] | None,
        answers: PromptAnswers,
    ) -> None:
        self.plan = plan
        self._states, self._rngs, self._answers = states, rngs, answers
        nothing = np.full(spec.num_tokens, UNKNOWN, np.int32)
        for state in states:
            state.tokens.setdefault(plan.target, nothing.copy())
        self._shown = [Shown(state, plan, specs, rng) for state, rng in zip(states, rngs, strict=True)]
        self.start = np.stack([state.tokens[plan.target] for state in states]) if states else nothing[None, :0]
        self._orders = [
            writing_order(
                plan,
                np.flatnonzero(ids_L == UNKNOWN),
                rngs[clip],
                None if positions is None else positions[clip],
                frame_size=spec.num_tokens // spec.grid.shape[0],
            )
            for clip, ids_L in enumerate(self.start)
        ]
        self._heats = [
            step_temperatures(
                plan.temperature_schedule, temperature=plan.temperature, counts=tuple(len(part) for part in order)
            )
            for order in self._orders
        ]
        self.num_steps = max((len(order) for order in self._orders), default=0)

    def steps(self) -> Iterator[GenerationStep]:
        """Take every step, look at its tokens, and plan the next."""
        if not self.num_steps:
            return
        tokens = WrittenTokens(
            to_device(self.start.copy(), self._answers.device), by_certainty=self.plan.scheme == "maskgit"
        )
        for step in range(self.num_steps):
            counts = self._counts(step)
            if self.plan.rewrite_fraction > 0 and self.plan.scheme == "maskgit":
                tokens.forget(to_device(counts[1], tokens.ids.device))
                self._look(tokens)
            packed = self._packed(step, counts, knows=True)
            is_written = write_step(self._answers, tokens, self.plan, packed, self._answers.send([packed])[0])
            self._look(tokens)
            yield _report(self.plan, step, self.num_steps, self._states, self._written(step, is_written))

    def planned(self) -> Iterator[PackedStep]:
        """Plan every step without its tokens; `finish` then brings them."""
        by_certainty = self.plan.scheme == "maskgit"
        length = self.start.shape[1]
        for step in range(self.num_steps):
            counts = self._counts(step)
            active = [clip for clip, order in enumerate(self._orders) if step < len(order)]
            ids_by_clip = {clip: self._states[clip].tokens[self.plan.target] for clip in active}
            for clip, ids_L in ids_by_clip.items():
                if counts[1, clip]:  # the known ones stand first, and which of them become unknown the device knows
                    ids_L[np.count_nonzero(ids_L != UNKNOWN) - counts[1, clip] :] = UNKNOWN
            yield self._packed(step, counts, knows=step == 0 or not by_certainty)
            for clip, ids_L in ids_by_clip.items():
                slots = self._orders[clip][step]
                if by_certainty:
                    slots = np.arange(np.count_nonzero(ids_L != UNKNOWN) + counts[0, clip])
                    ids_L[len(slots) :] = UNKNOWN
                    all_slots = handles(POSITION, clip, np.arange(length), self.start.shape)
                    self._states[clip].slots[self.plan.target] = all_slots
                ids_L[slots] = handles(ID, clip, slots, self.start.shape)

    def finish(self, ids: np.ndarray) -> None:
        """Give the clips their ids (C*L,)."""
        for state, ids_L in zip(self._states, ids.reshape(self.start.shape).astype(np.int32), strict=True):
            state.slots.pop(self.plan.target, None)
            state.tokens[self.plan.target] = ids_L

    def _packed(self, step: int, counts: np.ndarray, *, knows: bool) -> PackedStep:
        """ROAR asks for the positions it writes, MaskGIT for all unknown ones; knows: the host knows which ones."""
        queries, heats = [], {}
        for clip, (order, state) in enumerate(zip(self._orders, self._states, strict=True)):
            if step >= len(order):
                continue
            asked = order[step]
            if self.plan.scheme == "maskgit":
                asked = np.flatnonzero(state.tokens[self.plan.target] == UNKNOWN)
            shape = self.start.shape
            places = clip * shape[1] + asked if knows else handles(PLACE, clip, asked, shape)
            positions = asked if knows else handles(POSITION, clip, asked, shape)
            rows, weights = self._shown[clip].rows(positions)
            queries.append(Query(clip, rows, weights, self._rngs[clip].random(len(asked)), places))
            heats[clip] = self._heats[clip][step]
        return self._answers.pack(queries, heats, counts.ravel())

    def _counts(self, step: int) -> np.ndarray:
        """(2, C) of each clip: tokens to write, and to forget before."""
        counts = np.zeros((2, len(self._orders)), np.int32)
        for clip, order in enumerate(self._orders):
            if step < len(order):
                made = sum(len(part) for part in order[:step])
                counts[1, clip] = int(self.plan.rewrite_fraction * made) if self.plan.scheme == "maskgit" else 0
                counts[0, clip] = len(order[step]) + counts[1, clip]
        return counts

    def _look(self, tokens: WrittenTokens) -> None:
        for state, ids_L in zip(self._states, tokens.ids.cpu().numpy(), strict=True):
            state.tokens[self.plan.target] = ids_L

    def _written(self, step: int, is_written: Tensor | None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Clip -> positions and ids that a step wrote."""
        found = {}
        for clip, (order, state) in enumerate(zip(self._orders, self._states, strict=True)):
            if step < len(order):
                positions = order[step] if is_written is None else np.flatnonzero(is_written[clip].cpu().numpy())
                found[clip] = (positions, state.tokens[self.plan.target][positions])
        return found


def _report(
    plan: TargetPlan,
    step: int,
    num_steps: int,
    states: Sequence[ClipState],
    written: Mapping[int, tuple[np.ndarray, np.ndarray]],
) -> GenerationStep:
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int32))
    parts = [written.get(clip, nothing) for clip in range(len(states))]
    return GenerationStep(
        target=plan.target,
        step=step,
        num_steps=num_steps,
        positions=tuple(part[0] for part in parts),
        ids=tuple(part[1] for part in parts),
        tokens=tuple(state.tokens[plan.target].copy() for state in states),
    )
