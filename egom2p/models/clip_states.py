"""What is known of a clip while it is generated, and what of it the model is shown.

L tokens of one modality, n positions asked in one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from egom2p.contracts import ModalitySpec, TokenClip, check_fingerprint
from egom2p.models.generation_plans import TargetPlan, guidance_passes
from egom2p.models.prompt_batches import KnownTokens, PromptRow

UNKNOWN = -1  # id of a token that is not known: of a prompt, to be generated; of a query, the mask token is fed


@dataclass
class ClipState:
    """Tokens of one clip, -1 where unknown; grows while targets are generated.

    given  modalities the prompt held tokens of; grown: targets generated so far
    """

    key: str
    tokens: dict[str, np.ndarray]
    fingerprints: dict[str, str | None]
    given: frozenset[str]
    grown: list[str] = field(default_factory=list)

    def to_token_clip(self) -> TokenClip:
        return TokenClip(self.key, dict(self.tokens), dict(self.fingerprints))


def state_of(prompt: TokenClip, specs: Sequence[ModalitySpec]) -> ClipState:
    """State before the first step; ValueError names clip, modality, what was found and wanted."""
    by_name = {spec.name: spec for spec in specs}
    tokens = {}
    for name, ids in prompt.tokens.items():
        if name not in by_name:
            raise ValueError(f"clip {prompt.key}: {name!r} is not a modality of the model: {sorted(by_name)}")
        tokens[name] = _checked(prompt, by_name[name], np.array(ids, np.int32))
    given = frozenset(name for name, ids_L in tokens.items() if (ids_L != UNKNOWN).any())
    return ClipState(prompt.key, tokens, dict(prompt.fingerprints), given)


def _checked(prompt: TokenClip, spec: ModalitySpec, ids_L: np.ndarray) -> np.ndarray:
    is_whole = ids_L.shape == (spec.num_tokens,)
    is_words = spec.kind == "sequence" and ids_L.ndim == 1 and len(ids_L) <= spec.num_tokens
    if not is_whole and not is_words:
        raise ValueError(f"clip {prompt.key}: {spec.name} has ids of shape {ids_L.shape}, wanted ({spec.num_tokens},)")
    if ids_L.size and (ids_L.min() < UNKNOWN or ids_L.max() >= spec.vocab_size):
        raise ValueError(
            f"clip {prompt.key}: {spec.name} has ids {ids_L.min()}..{ids_L.max()}, wanted 0..{spec.vocab_size - 1}"
        )
    found = prompt.fingerprints.get(spec.name)
    check_fingerprint(spec.name, found=found, wanted=spec.tokenizer_fingerprint, where=f"clip {prompt.key}")
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
                parts.append(KnownTokens(index, ids_L[positions], positions))
        return tuple(parts)


def _draw_subset(
    state: ClipState, plan: TargetPlan, specs: Sequence[ModalitySpec], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Positions kept of each condition, in proportion to its length and never more than allowed; empty when all fit."""
    words = {spec.name: spec.words for spec in specs}
    names = sorted(set(state.tokens) - {plan.target})
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
