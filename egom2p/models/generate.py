"""Fill modalities step by step: ROAR, MaskGIT and autoregressive decoding of packed prompts, with guidance.

B clips, L tokens of one modality, n places asked of one clip in one step, R rows of logits, K clips that share them.

A clip's result depends on its prompt, the plans and its own seed alone, never on the batch it is in. Clips in the same
state (several samples of one prompt, the unconditional passes of guidance) are run once and share their logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec, TokenClip, check_fingerprint
from egom2p.models.generation_plans import TargetPlan, guidance_passes, writing_order
from egom2p.models.prompt_batches import KnownTokens, PromptRow, pack_prompts
from egom2p.models.sampling import combine_guided, draw
from egom2p.models.schedules import step_temperatures

_LOGITS_PER_CHUNK = 1 << 24
_UNKNOWN = -1


@dataclass(frozen=True)
class GenerationStep:
    """What one step wrote.

    places, ids   per clip (n,), empty for a clip that was already done
    tokens        per clip: the target's ids (L,) after this step, -1 where still unknown
    """

    target: str
    step: int
    num_steps: int
    places: tuple[np.ndarray, ...]
    ids: tuple[np.ndarray, ...]
    tokens: tuple[np.ndarray, ...]


@dataclass
class _ClipState:
    """Tokens of one clip while it is generated; -1 where unknown."""

    key: str
    tokens: dict[str, np.ndarray]
    fingerprints: dict[str, str | None]
    given: frozenset[str]
    grown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """One clip's part of one step: a row per guidance pass, and a random number per asked place."""

    clip: int
    rows: tuple[PromptRow, ...]
    weights: tuple[float, ...]
    uniform: np.ndarray
    num_written: int


class Sampler:
    """Generates with one model. The model gives `specs`, `encode`, `decode` and `logits`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.specs: tuple[ModalitySpec, ...] = tuple(model.specs)
        self._index = {spec.name: index for index, spec in enumerate(self.specs)}
        self._num_registers = int(getattr(model.config, "num_registers", 0))
        self._contexts: dict[bytes, Tensor] = {}

    def generate(
        self,
        prompts: Sequence[TokenClip],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        *,
        places: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None,
    ) -> list[TokenClip]:
        """The prompts with every target filled; arguments as in `iterate`."""
        states = self._states(prompts, plans, seeds)
        for _ in self._run(states, plans, seeds, places or {}):
            pass
        return [TokenClip(state.key, dict(state.tokens), dict(state.fingerprints)) for state in states]

    def iterate(
        self,
        prompts: Sequence[TokenClip],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        *,
        places: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None,
    ) -> Iterator[GenerationStep]:
        """Generate the targets in the order of `plans`, yielding after each step.

        prompts   any set of modalities per clip; ids (L,), -1 = unknown (so a target may be given in part)
        seeds     one per prompt; equal prompt and seed give an equal result in any batch
        places    target -> clip -> step -> places to write, instead of drawn ones (roar)
        """
        return self._run(self._states(prompts, plans, seeds), plans, seeds, places or {})

    @torch.inference_mode()
    def logits(self, prompts: Sequence[TokenClip], plan: TargetPlan, places: Sequence[np.ndarray]) -> list[Tensor]:
        """Guided logits (n, V) of the plan's target at the given places of each clip, with nothing else asked."""
        states = self._states(prompts, [plan], [0] * len(prompts))
        return [
            combine_guided([self.model.logits(part, self._index[plan.target]) for part in parts], weights).float()
            for parts, weights in self._asked(states, plan, places)
        ]

    @torch.inference_mode()
    def log_likelihood(
        self, prompts: Sequence[TokenClip], plan: TargetPlan, truths: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per clip: log p (L,) in nats of the true ids (L,), all places asked at once; where the best guess is right.

        The prompt must not hold the target.
        """
        states = self._states(prompts, [plan], [0] * len(prompts))
        modality = self._index[plan.target]
        size = max(1, _LOGITS_PER_CHUNK // self.specs[modality].vocab_size)
        answers = []
        asked = self._asked(states, plan, [np.arange(len(truth)) for truth in truths])
        for (parts, weights), truth in zip(asked, truths, strict=True):
            truth_L = torch.from_numpy(np.asarray(truth, np.int64)).to(parts[0].device)
            log_probs, is_right = [], []
            for start in range(0, len(truth_L), size):
                rows = slice(start, start + size)
                logits_RV = combine_guided([self.model.logits(part[rows], modality) for part in parts], weights).float()
                log_probs.append(torch.log_softmax(logits_RV, 1).gather(1, truth_L[rows, None])[:, 0])
                is_right.append(logits_RV.argmax(1) == truth_L[rows])
            answers.append((torch.cat(log_probs).cpu().numpy(), torch.cat(is_right).cpu().numpy()))
        return answers

    def _asked(
        self, states: Sequence[_ClipState], plan: TargetPlan, places: Sequence[np.ndarray]
    ) -> list[tuple[list[Tensor], tuple[float, ...]]]:
        """Per clip: decoder output (n, D) of each guidance pass, and the weights of the passes."""
        jobs = []
        for clip, (state, asked) in enumerate(zip(states, places, strict=True)):
            rows, weights = self._rows(state, plan, np.asarray(asked), _Subset(self, state, plan, None))
            jobs.append(_Job(clip, rows, weights, np.zeros(len(asked)), len(asked)))
        hidden_MD, offsets = self._hidden(jobs)
        return [
            ([hidden_MD[offsets[row.key] : offsets[row.key] + len(row.places)] for row in job.rows], job.weights)
            for job in jobs
        ]

    def _states(
        self, prompts: Sequence[TokenClip], plans: Sequence[TargetPlan], seeds: Sequence[int]
    ) -> list[_ClipState]:
        if len(seeds) != len(prompts):
            raise ValueError(f"one seed per prompt is needed: {len(prompts)} prompts, {len(seeds)} seeds")
        for plan in plans:
            if plan.target not in self._index:
                raise ValueError(f"target {plan.target!r} is not a modality of the model: {sorted(self._index)}")
        self._contexts.clear()
        return [self._state(prompt) for prompt in prompts]

    def _state(self, prompt: TokenClip) -> _ClipState:
        tokens = {}
        for name, ids in prompt.tokens.items():
            if name not in self._index:
                raise ValueError(f"clip {prompt.key}: {name!r} is not a modality of the model: {sorted(self._index)}")
            spec = self.specs[self._index[name]]
            ids_L = np.array(ids, np.int32)
            is_whole = ids_L.shape == (spec.num_tokens,)
            if not is_whole and not (spec.kind == "sequence" and ids_L.ndim == 1 and len(ids_L) <= spec.num_tokens):
                raise ValueError(
                    f"clip {prompt.key}: {name} has ids of shape {ids_L.shape}, wanted ({spec.num_tokens},)"
                )
            if ids_L.size and (ids_L.min() < _UNKNOWN or ids_L.max() >= spec.vocab_size):
                raise ValueError(
                    f"clip {prompt.key}: {name} has ids {ids_L.min()}..{ids_L.max()}, wanted 0..{spec.vocab_size - 1}"
                )
            check_fingerprint(
                name,
                found=prompt.fingerprints.get(name),
                wanted=spec.tokenizer_fingerprint,
                where=f"clip {prompt.key}",
            )
            tokens[name] = ids_L
        given = frozenset(name for name, ids_L in tokens.items() if (ids_L != _UNKNOWN).any())
        return _ClipState(prompt.key, tokens, dict(prompt.fingerprints), given)

    @torch.inference_mode()
    def _run(
        self,
        states: list[_ClipState],
        plans: Sequence[TargetPlan],
        seeds: Sequence[int],
        places: Mapping[str, Sequence[Sequence[np.ndarray]]],
    ) -> Iterator[GenerationStep]:
        was_training = self.model.training
        self.model.eval()
        try:
            for number, plan in enumerate(plans):
                spec = self.specs[self._index[plan.target]]
                rngs = [np.random.default_rng([seed, number]) for seed in seeds]
                if spec.kind == "sequence":
                    yield from self._run_sequence(states, plan, spec, rngs)
                else:
                    yield from self._run_grid(states, plan, spec, rngs, places.get(plan.target))
                for state in states:
                    state.grown.append(plan.target)
                    state.fingerprints[plan.target] = spec.tokenizer_fingerprint
        finally:
            self._contexts.clear()
            self.model.train(was_training)

    def _run_grid(
        self,
        states: list[_ClipState],
        plan: TargetPlan,
        spec: ModalitySpec,
        rngs: list[np.random.Generator],
        places: Sequence[Sequence[np.ndarray]] | None,
    ) -> Iterator[GenerationStep]:
        subsets, orders = [], []
        for clip, (state, rng) in enumerate(zip(states, rngs, strict=True)):
            state.tokens.setdefault(plan.target, np.full(spec.num_tokens, _UNKNOWN, np.int32))
            subsets.append(_Subset(self, state, plan, rng))
            unknown = np.flatnonzero(state.tokens[plan.target] == _UNKNOWN)
            orders.append(writing_order(plan, unknown, rng, None if places is None else places[clip]))
        certainty = [np.full(spec.num_tokens, np.inf) for _ in states]
        num_steps = max((len(order) for order in orders), default=0)
        temperatures = [
            step_temperatures(
                plan.temperature_schedule, temperature=plan.temperature, counts=tuple(len(part) for part in order)
            )
            for order in orders
        ]
        for step in range(num_steps):
            jobs = []
            for clip, state in enumerate(states):
                if step >= len(orders[clip]):
                    continue
                asked = orders[clip][step]
                if plan.scheme == "maskgit":
                    asked = self._asked_by_certainty(state, plan, spec, certainty[clip], step, orders[clip])
                rows, weights = self._rows(state, plan, asked, subsets[clip])
                jobs.append(_Job(clip, rows, weights, rngs[clip].random(len(asked)), len(orders[clip][step])))
            answers = self._answer(jobs, plan, {job.clip: temperatures[job.clip][step] for job in jobs})
            written = {}
            for job, (ids, log_probs) in zip(jobs, answers, strict=True):
                asked = job.rows[0].places
                kept = np.arange(len(asked))
                if plan.scheme == "maskgit":
                    kept = np.sort(np.argsort(-log_probs, kind="stable")[: max(job.num_written, 0)])
                    if step + 1 == len(orders[job.clip]):
                        kept = np.arange(len(asked))
                states[job.clip].tokens[plan.target][asked[kept]] = ids[kept]
                certainty[job.clip][asked[kept]] = log_probs[kept]
                written[job.clip] = (asked[kept], ids[kept])
            yield _step_report(plan, step, num_steps, states, written)

    def _asked_by_certainty(
        self,
        state: _ClipState,
        plan: TargetPlan,
        spec: ModalitySpec,
        certainty_L: np.ndarray,
        step: int,
        order: list[np.ndarray],
    ) -> np.ndarray:
        """Unknown places, after forgetting the least certain written ones where the plan says so."""
        tokens_L = state.tokens[plan.target]
        written = np.flatnonzero(np.isfinite(certainty_L) & (tokens_L != _UNKNOWN))
        num_forgotten = int(plan.rewrite_fraction * len(written))
        if num_forgotten:
            forgotten = written[np.argsort(certainty_L[written], kind="stable")[:num_forgotten]]
            tokens_L[forgotten] = _UNKNOWN
            order[step] = np.concatenate([order[step], forgotten])
        return np.flatnonzero(tokens_L == _UNKNOWN)

    def _run_sequence(
        self, states: list[_ClipState], plan: TargetPlan, spec: ModalitySpec, rngs: list[np.random.Generator]
    ) -> Iterator[GenerationStep]:
        """One token at a time, until the end token, continuing whatever the prompt holds."""
        subsets = [_Subset(self, state, plan, rng) for state, rng in zip(states, rngs, strict=True)]
        start = spec.sentinel_ids[0] if spec.sentinel_ids else spec.pad_id
        limit = min(plan.max_new_tokens or spec.num_tokens, spec.num_tokens)
        for state in states:
            state.tokens.setdefault(plan.target, np.zeros(0, np.int32))
        counts = (1,) * limit
        temperatures = step_temperatures(plan.temperature_schedule, temperature=plan.temperature, counts=counts)
        for step in range(limit):
            jobs = []
            for clip, state in enumerate(states):
                ids = state.tokens[plan.target]
                if len(ids) >= spec.num_tokens or (len(ids) and ids[-1] == spec.eos_id):
                    continue
                fed = np.concatenate([[start], ids]).astype(np.int32)
                rows, weights = self._rows(state, plan, np.arange(len(fed)), subsets[clip], fed)
                jobs.append(_Job(clip, rows, weights, rngs[clip].random(len(fed)), 1))
            if not jobs:
                return
            answers = self._answer(jobs, plan, {job.clip: temperatures[step] for job in jobs})
            written = {}
            for job, (ids, _) in zip(jobs, answers, strict=True):
                state = states[job.clip]
                written[job.clip] = (np.array([len(state.tokens[plan.target])]), ids[-1:])
                state.tokens[plan.target] = np.concatenate([state.tokens[plan.target], ids[-1:]]).astype(np.int32)
            yield _step_report(plan, step, limit, states, written)

    def _rows(
        self,
        state: _ClipState,
        plan: TargetPlan,
        asked: np.ndarray,
        subset: "_Subset",
        fed: np.ndarray | None = None,
    ) -> tuple[tuple[PromptRow, ...], tuple[float, ...]]:
        """One row per guidance pass that has weight."""
        conditions = [name for name in state.tokens if name in state.given and name != plan.target]
        earlier = [name for name in state.grown if name != plan.target and name not in conditions]
        always = set() if plan.grow_conditioning else set(earlier)
        if plan.grow_conditioning:
            conditions = conditions + earlier
        query_ids = np.full(len(asked), _UNKNOWN, np.int32) if fed is None else fed
        is_sequence = fed is not None
        rows, weights = [], []
        for visible, weight in guidance_passes(plan, conditions):
            names = visible | always | (set() if is_sequence else {plan.target})
            rows.append(PromptRow(subset.known(names), self._index[plan.target], asked, query_ids))
            weights.append(weight)
        return tuple(rows), tuple(weights)

    def _hidden(self, jobs: Sequence[_Job]) -> tuple[Tensor, dict[bytes, int]]:
        """Decoder output (M, D) of all different rows, and where each row's part starts."""
        rows = {row.key: row for job in jobs for row in job.rows}
        names = tuple(spec.name for spec in self.specs)
        device = next(self.model.parameters()).device
        unseen = {row.input_key: row for row in rows.values() if row.input_key not in self._contexts}
        if unseen:
            only_inputs = [PromptRow(row.inputs) for row in unseen.values()]
            batch = pack_prompts(only_inputs, names, num_registers=self._num_registers)
            context_ND = self.model.encode(batch.to(device))
            parts = context_ND.split(list(batch.input_lengths))
            self._contexts.update(zip(unseen, parts, strict=True))
        used = {row.input_key for row in rows.values()}
        self._contexts = {key: context for key, context in self._contexts.items() if key in used}
        batch = pack_prompts(list(rows.values()), names, num_registers=self._num_registers)
        context_ND = torch.cat([self._contexts[row.input_key] for row in rows.values()])
        hidden_MD = self.model.decode(batch.to(device), context_ND)
        starts = np.cumsum([0, *batch.target_lengths])
        return hidden_MD, {key: int(start) for key, start in zip(rows, starts, strict=False)}

    def _answer(
        self, jobs: Sequence[_Job], plan: TargetPlan, temperatures: Mapping[int, float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Drawn ids (n,) and their log probability (n,) per job, in the order of the jobs."""
        if not jobs:
            return []
        hidden_MD, offsets = self._hidden(jobs)
        shared: dict[tuple, list[int]] = {}
        for number, job in enumerate(jobs):
            key = (tuple(row.key for row in job.rows), job.weights, temperatures[job.clip])
            shared.setdefault(key, []).append(number)
        alike: dict[tuple, list[list[int]]] = {}
        for (_, weights, temperature), members in shared.items():
            alike.setdefault((weights, temperature, len(members)), []).append(members)
        answers: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(jobs)
        for (weights, temperature, _), groups in alike.items():
            firsts = [jobs[members[0]] for members in groups]
            index_PR = np.stack(
                [
                    np.concatenate([np.arange(len(job.uniform)) + offsets[job.rows[number].key] for job in firsts])
                    for number in range(len(weights))
                ]
            )
            uniform_RK = np.concatenate(
                [np.stack([jobs[member].uniform for member in members], axis=1) for members in groups]
            )
            ids_RK, log_probs_RK = self._draw_rows(hidden_MD, index_PR, uniform_RK, weights, temperature, plan)
            start = 0
            for members in groups:
                end = start + len(jobs[members[0]].uniform)
                for column, member in enumerate(members):
                    answers[member] = (ids_RK[start:end, column], log_probs_RK[start:end, column])
                start = end
        return answers

    def _draw_rows(
        self,
        hidden_MD: Tensor,
        index_PR: np.ndarray,
        uniform_RK: np.ndarray,
        weights: tuple[float, ...],
        temperature: float,
        plan: TargetPlan,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log probabilities (R, K), never holding more than a chunk of logits."""
        modality = self._index[plan.target]
        size = max(1, _LOGITS_PER_CHUNK // self.specs[modality].vocab_size)
        index = torch.from_numpy(index_PR).to(hidden_MD.device)
        uniform = torch.from_numpy(uniform_RK).to(hidden_MD.device)
        ids, log_probs = [], []
        for start in range(0, index.shape[1], size):
            passes = [self.model.logits(hidden_MD[part[start : start + size]], modality) for part in index]
            drawn, certainty = draw(
                combine_guided(passes, weights),
                uniform[start : start + size],
                temperature=temperature,
                top_k=plan.top_k,
                top_p=plan.top_p,
            )
            ids.append(drawn)
            log_probs.append(certainty)
        return torch.cat(ids).cpu().numpy().astype(np.int32), torch.cat(log_probs).cpu().numpy()


class _Subset:
    """The known tokens of a clip that the model is shown, by modality; fixed for all steps and passes of a target."""

    def __init__(self, sampler: Sampler, state: _ClipState, plan: TargetPlan, rng: np.random.Generator | None) -> None:
        self._sampler, self._state, self._target = sampler, state, plan.target
        self._places: dict[str, np.ndarray] = {}
        if plan.max_condition_tokens is None or rng is None:
            return
        known = {name: np.flatnonzero(ids != _UNKNOWN) for name, ids in state.tokens.items() if name != plan.target}
        total = sum(len(places) for places in known.values())
        if total <= plan.max_condition_tokens:
            return
        for name, places in sorted(known.items()):
            count = round(len(places) * plan.max_condition_tokens / total)
            self._places[name] = np.sort(rng.choice(places, size=count, replace=False))

    def known(self, names: set[str] | frozenset[str]) -> tuple[KnownTokens, ...]:
        parts = []
        for index, spec in enumerate(self._sampler.specs):
            ids_L = self._state.tokens.get(spec.name)
            if spec.name not in names or ids_L is None:
                continue
            places = self._places.get(spec.name)
            if places is None:
                places = np.flatnonzero(ids_L != _UNKNOWN)
            if len(places):
                parts.append(KnownTokens(index, ids_L[places], places))
        return tuple(parts)


def _step_report(
    plan: TargetPlan,
    step: int,
    num_steps: int,
    states: Sequence[_ClipState],
    written: Mapping[int, tuple[np.ndarray, np.ndarray]],
) -> GenerationStep:
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int32))
    parts = [written.get(clip, nothing) for clip in range(len(states))]
    return GenerationStep(
        target=plan.target,
        step=step,
        num_steps=num_steps,
        places=tuple(part[0] for part in parts),
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
