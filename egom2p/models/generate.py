"""Fill modalities step by step: ROAR, MaskGIT and autoregressive decoding of packed prompts, with guidance.

B clips, L tokens of one modality, n positions asked of one clip in one step, V vocabulary.

A clip's result depends on its prompt, the plans and its own seed alone, never on the batch it is in. Clips in the same
state (several samples of one prompt, the unconditional passes of guidance) are run once and share their logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.models.prompt_answers import PromptAnswers, Query
from egom2p.models.prompt_batches import UNKNOWN, ClipState, Shown, state_of
from egom2p.models.sampling import TargetPlan, combine_guided, step_temperatures, writing_order

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


class Sampler:
    """Generates with one model, which gives `config`, `specs`, `encode`, `decode` and `logits`.

    context_bytes  encoder outputs kept between calls (0: none), for the same prompts asked for several targets
    """

    def __init__(self, model: torch.nn.Module, *, context_bytes: int = 0) -> None:
        self.model = model
        self.specs: tuple[ModalitySpec, ...] = tuple(model.specs)
        self._answers = PromptAnswers(model, context_bytes=context_bytes)

    def generate(
        self,
        prompts: Sequence[TokenClip],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        *,
        positions: Positions | None = None,
    ) -> list[TokenClip]:
        """The prompts with every target filled; arguments as in `iterate`."""
        states = self._states(prompts, plans, seeds)
        for _ in self._run(states, plans, seeds, positions or {}):
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
        return self._run(self._states(prompts, plans, seeds), plans, seeds, positions or {})

    @torch.inference_mode()
    def logits(self, prompts: Sequence[TokenClip], plan: TargetPlan, positions: Sequence[np.ndarray]) -> list[Tensor]:
        """Guided logits (n, V) of the plan's target at the given positions of each clip, with nothing else asked."""
        queries = self._queries(prompts, plan, positions)
        found = zip(queries, self._answers.hidden_by_pass(queries), strict=True)
        return [
            combine_guided([self.model.logits(part, query.rows[0].modality) for part in parts], query.weights).float()
            for query, parts in found
        ]

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
            queries.append(Query(clip, rows, weights, np.zeros(len(asked)), len(asked)))
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
        self._answers.forget()
        return [state_of(prompt, self.specs) for prompt in prompts]

    @torch.inference_mode()
    def _run(
        self, states: list[ClipState], plans: Sequence[TargetPlan], seeds: Sequence[int], positions: Positions
    ) -> Iterator[GenerationStep]:
        was_training = self.model.training
        self.model.eval()
        try:
            for number, plan in enumerate(plans):
                spec = next(spec for spec in self.specs if spec.name == plan.target)
                rngs = [np.random.default_rng([seed, number]) for seed in seeds]
                if spec.kind == "sequence":
                    yield from self._run_sequence(states, plan, spec, rngs)
                else:
                    yield from self._run_grid(states, plan, spec, rngs, positions.get(plan.target))
                for state in states:
                    state.grown.append(plan.target)
                    state.fingerprints[plan.target] = spec.tokenizer_fingerprint
        finally:
            self._answers.forget()
            self.model.train(was_training)

    def _run_grid(
        self,
        states: list[ClipState],
        plan: TargetPlan,
        spec: ModalitySpec,
        rngs: list[np.random.Generator],
        positions: Sequence[Sequence[np.ndarray]] | None,
    ) -> Iterator[GenerationStep]:
        work = [
            _GridWork(state, plan, self.specs, spec, rng, None if positions is None else positions[clip])
            for clip, (state, rng) in enumerate(zip(states, rngs, strict=True))
        ]
        num_steps = max((len(part.order) for part in work), default=0)
        for step in range(num_steps):
            active = [clip for clip, part in enumerate(work) if step < len(part.order)]
            queries = [work[clip].query(clip, step) for clip in active]
            temperatures = {clip: work[clip].temperatures[step] for clip in active}
            answers = self._answers.drawn(queries, plan, temperatures)
            written = {
                query.clip: work[query.clip].write(query, step, ids, log_probs)
                for query, (ids, log_probs) in zip(queries, answers, strict=True)
            }
            yield _report(plan, step, num_steps, states, written)

    def _run_sequence(
        self, states: list[ClipState], plan: TargetPlan, spec: ModalitySpec, rngs: list[np.random.Generator]
    ) -> Iterator[GenerationStep]:
        """One token at a time, until the end token, continuing whatever the prompt holds."""
        shown = [Shown(state, plan, self.specs, rng) for state, rng in zip(states, rngs, strict=True)]
        start = _start_id(spec)
        limit = min(plan.max_new_tokens or spec.num_tokens, spec.num_tokens)
        for state in states:
            state.tokens[plan.target] = _beginning(state.tokens.get(plan.target, np.zeros(0, np.int32)), spec)
        heats = step_temperatures(plan.temperature_schedule, temperature=plan.temperature, counts=(1,) * limit)
        for step in range(limit):
            queries = []
            for clip, state in enumerate(states):
                ids = state.tokens[plan.target]
                if len(ids) >= spec.num_tokens or (len(ids) and ids[-1] == spec.eos_id):
                    continue
                fed = np.concatenate([[start], ids]).astype(np.int32)
                rows, weights = shown[clip].rows(np.arange(len(fed)), fed)
                queries.append(Query(clip, rows, weights, rngs[clip].random(len(fed)), 1))
            if not queries:
                return
            answers = self._answers.drawn(queries, plan, {query.clip: heats[step] for query in queries})
            written = {}
            for query, (ids, _) in zip(queries, answers, strict=True):
                state = states[query.clip]
                written[query.clip] = (np.array([len(state.tokens[plan.target])]), ids[-1:])
                state.tokens[plan.target] = np.concatenate([state.tokens[plan.target], ids[-1:]]).astype(np.int32)
            yield _report(plan, step, limit, states, written)


def _start_id(spec: ModalitySpec) -> int:
    """What the decoder of a sequence is fed first: the mark of the first hidden span, here the whole text."""
    return spec.sentinel_ids[0] if spec.sentinel_ids else spec.pad_id


def _beginning(ids_L: np.ndarray, spec: ModalitySpec) -> np.ndarray:
    """What a prompt holds of a sequence: its ids before padding or the first unknown one, with eos where it has one."""
    known = ids_L[: np.argmax(ids_L == UNKNOWN)] if (ids_L == UNKNOWN).any() else ids_L
    words = spec.words(known)
    return known[: len(words) + 1] if len(words) < len(known) and known[len(words)] == spec.eos_id else words


class _GridWork:
    """One clip's way through the steps of a grid or track target."""

    def __init__(
        self,
        state: ClipState,
        plan: TargetPlan,
        specs: Sequence[ModalitySpec],
        spec: ModalitySpec,
        rng: np.random.Generator,
        positions: Sequence[np.ndarray] | None,
    ) -> None:
        self._ids_L = state.tokens.setdefault(plan.target, np.full(spec.num_tokens, UNKNOWN, np.int32))
        self._plan, self._rng = plan, rng
        self._shown = Shown(state, plan, specs, rng)
        self._certainty_L = np.full(spec.num_tokens, np.inf)  # of what was given: never rewritten
        unknown = np.flatnonzero(self._ids_L == UNKNOWN)
        self.order = writing_order(plan, unknown, rng, positions, frame_size=spec.num_tokens // spec.grid.shape[0])
        counts = tuple(len(part) for part in self.order)
        self.temperatures = step_temperatures(plan.temperature_schedule, temperature=plan.temperature, counts=counts)

    def query(self, clip: int, step: int) -> Query:
        """ROAR asks for the positions it writes, MaskGIT for all unknown ones."""
        asked, num_written = self.order[step], len(self.order[step])
        if self._plan.scheme == "maskgit":
            num_written += self._forget_least_certain()
            asked = np.flatnonzero(self._ids_L == UNKNOWN)
        rows, weights = self._shown.rows(asked)
        return Query(clip, rows, weights, self._rng.random(len(asked)), num_written)

    def write(self, query: Query, step: int, ids: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions and ids written; of MaskGIT the most certain, at the last step all."""
        asked = query.rows[0].positions
        kept = np.arange(len(asked))
        if self._plan.scheme == "maskgit" and step + 1 < len(self.order):
            kept = np.sort(np.argsort(-log_probs, kind="stable")[: query.num_written])
        self._ids_L[asked[kept]] = ids[kept]
        self._certainty_L[asked[kept]] = log_probs[kept]
        return asked[kept], ids[kept]

    def _forget_least_certain(self) -> int:
        written = np.flatnonzero(np.isfinite(self._certainty_L) & (self._ids_L != UNKNOWN))
        count = int(self._plan.rewrite_fraction * len(written))
        least = written[np.argsort(self._certainty_L[written], kind="stable")[:count]]
        self._ids_L[least] = UNKNOWN
        return count


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


def generate(
    model: torch.nn.Module, prompts: Sequence[TokenClip], plans: Sequence[TargetPlan], seeds: Sequence[int]
) -> list[TokenClip]:
    """The prompts with every target filled, in the order of the plans."""
    return Sampler(model).generate(prompts, plans, seeds)


def iterate(
    model: torch.nn.Module, prompts: Sequence[TokenClip], plans: Sequence[TargetPlan], seeds: Sequence[int]
) -> Iterator[GenerationStep]:
    """The same, yielding what each step wrote."""
    return Sampler(model).iterate(prompts, plans, seeds)
