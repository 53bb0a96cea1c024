"""Which positions of a clip are input and which are target.

K modalities, L positions of one modality.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from egom2p.contracts import MaskedClip, ModalitySpec, TokenClip
from egom2p.data.budgets import draw_budgets
from egom2p.data.masking_config import (
    AlphasConfig,
    GridPositions,
    MaskingConfig,
    ModalityAlphas,
    TrackPositions,
    TransferConfig,
)
from egom2p.data.sequence_masking import mask_sequence
from egom2p.data.transfer_masking import Sides, TransferMasking, check_targets, draw_cuts, transfer_positions

__all__ = [
    "AlphasConfig",
    "Masking",
    "MaskingConfig",
    "ModalityAlphas",
    "TransferConfig",
    "TransferMasking",
    "UnifiedMasking",
]


class Masking(Protocol):
    """Anything that decides which positions of a clip are input and which are target."""

    def __call__(self, clip: TokenClip, rng: np.random.Generator) -> MaskedClip: ...


@dataclass(frozen=True)
class _Plan:
    """The mixture as it applies to clips that have one certain set of modalities."""

    names: tuple[str, ...]
    thresholds: list[float]  # cumulative weights of the components, then of the transfers that are possible
    transfers: tuple[TransferConfig, ...]
    input_alphas: list[list[float]]  # components x K
    target_alphas: list[list[float]]
    limits: list[int]  # K
    always: list[bool]  # K


class UnifiedMasking:
    """Draws one masking of a clip: a component of the Dirichlet mixture, or a transfer.

    Inputs and targets are disjoint. Everything random comes from the generator given.
    """

    def __init__(self, specs: Sequence[ModalitySpec], config: MaskingConfig) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._config = config
        self._in = _domain("in_domains", config.in_domains, self._specs)
        self._out = _domain("out_domains", config.out_domains, self._specs)
        shown = {name for name, spec in self._specs.items() if spec.is_input_only}
        self._out = self._out - shown if config.out_domains is None else self._out
        self._plans: dict[tuple[str, ...], _Plan] = {}
        alphas = config.alphas
        transfers = list(alphas.transfers.values())
        named = [*alphas.alphas_mixture, *alphas.always_target]
        named += [name for transfer in transfers for name in (*transfer.inputs, *transfer.targets)]
        if unknown := sorted(set(named) - set(self._specs)):
            raise ValueError(f"alphas name {unknown}, but the modalities are {sorted(self._specs)}")
        asked = {name for name, part in alphas.alphas_mixture.items() if max(part.target_alphas) > 0}
        asked |= {*alphas.always_target, *(config.out_domains or ())}
        asked |= {name for transfer in transfers for name in transfer.targets}
        check_targets(asked, self._specs)
        for name, transfer in alphas.transfers.items():
            outside = sorted((set(transfer.inputs) - self._in) | (set(transfer.targets) - self._out))
            if outside:
                raise ValueError(f"transfer {name} uses {outside} outside in_domains or out_domains")
            for both in sorted(set(transfer.inputs) & set(transfer.targets)):
                spec = self._specs[both]
                if spec.kind == "sequence" or spec.grid.shape[0] < 2:
                    raise ValueError(
                        f"transfer {name}: next_frame needs a grid or track of at least 2 frames, {both} is a "
                        f"{spec.kind} of {spec.grid.shape}"
                    )

    def __call__(self, clip: TokenClip, rng: np.random.Generator) -> MaskedClip:
        names = tuple(name for name in self._specs if name in clip.tokens)
        plan = self._plan_of(names)
        choice = _choose(plan, rng)
        num_components = len(plan.input_alphas)
        if choice < num_components:
            masked = self._draw(clip, plan, choice, rng)
        else:
            transfer = plan.transfers[choice - num_components]
            targets = _transfer_targets(transfer, plan)
            masked = transfer_positions(
                clip,
                transfer.inputs,
                targets,
                self._specs,
                rng,
                positions_per_input=transfer.positions_per_input,
                positions_per_target=transfer.positions_per_target,
                next_frame=transfer.next_frame,
            )
        if self._config.input_dropout > 0 and rng.random() < self._config.input_dropout:
            masked = MaskedClip(masked.key, {}, {}, masked.target_ids, masked.target_positions, masked.query_ids)
        return masked

    def sizes(self, names: Sequence[str], rng: np.random.Generator) -> tuple[int, int, tuple[int, ...]] | None:
        """Input and target rows that a call with this generator gives a clip with these modalities, and how many of
        the input rows are patches, per modality of that kind.

        Much cheaper than the call: no position is drawn, no token needed. None where only the call can tell: for texts,
        and with `input_dropout`.
        """
        names = tuple(name for name in self._specs if name in names)
        if self._config.input_dropout > 0 or any(self._specs[name].kind == "sequence" for name in names):
            return None
        plan = self._plan_of(names)
        choice = _choose(plan, rng)
        num_components = len(plan.input_alphas)
        if choice < num_components:
            inputs, targets = self._budgets(plan, choice, rng)
            return sum(inputs), sum(targets), self._patches(dict(zip(names, inputs, strict=True)))
        transfer = plan.transfers[choice - num_components]
        lengths = dict(zip(names, plan.limits, strict=True))
        targets = _transfer_targets(transfer, plan)
        cuts = draw_cuts(transfer.inputs, targets, self._specs, lengths, rng) if transfer.next_frame else {}
        wanted = [name for name in targets if name in cuts or name not in transfer.inputs]
        shown = {name: len(cuts[name].before) if name in cuts else lengths[name] for name in lengths}
        asked = {name: len(cuts[name].frame) if name in cuts else lengths[name] for name in lengths}
        given = {
            name: _at_most(shown[name], transfer.positions_per_input) for name in transfer.inputs if name in lengths
        }
        num_targets = sum(_at_most(asked[name], transfer.positions_per_target) for name in wanted if name in lengths)
        return sum(given.values()), num_targets, self._patches(given)

    def _patches(self, inputs: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(inputs.get(name, 0) for name, spec in self._specs.items() if spec.kind == "patches")

    def check(self, names: Sequence[str], *, where: str) -> None:
        """Raise ValueError when clips with these modalities could never have a target."""
        present = tuple(name for name in self._specs if name in names)
        try:
            self._plans[present] = self._make_plan(present)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _plan_of(self, names: tuple[str, ...]) -> _Plan:
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = self._make_plan(names)
        return plan

    def _budgets(self, plan: _Plan, component: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Inputs and targets of each modality."""
        config = self._config
        num_input = _request(config.min_input_tokens, config.max_input_tokens, rng)
        num_target = _request(config.min_target_tokens, config.max_target_tokens, rng)
        limits, always, policy = plan.limits, plan.always, config.policy
        # Half of a modality that is always a target stays free, or an unlucky draw of inputs would leave it none.
        input_limits = [limit // 2 if is_always else limit for limit, is_always in zip(limits, always, strict=True)]
        inputs = draw_budgets(num_input, plan.input_alphas[component], input_limits, policy=policy, rng=rng)
        # Both sides of a text may be long: its hidden words are not lost to the input.
        room = [
            limit if self._specs[name].kind == "sequence" else limit - count
            for name, limit, count in zip(plan.names, limits, inputs, strict=True)
        ]
        sure = [count if is_always else 0 for count, is_always in zip(room, always, strict=True)]
        drawn = draw_budgets(
            max(num_target - sum(sure), 0), plan.target_alphas[component], room, policy=policy, rng=rng
        )
        return inputs, [first + further for first, further in zip(sure, drawn, strict=True)]

    def _draw(self, clip: TokenClip, plan: _Plan, component: int, rng: np.random.Generator) -> MaskedClip:
        inputs, targets = self._budgets(plan, component, rng)
        sides = Sides()
        for name, count_in, count_out in zip(plan.names, inputs, targets, strict=True):
            if count_in or count_out:
                self._position(sides, self._specs[name], clip.tokens[name], count_in, count_out, rng)
        return sides.clip(clip.key)

    def _position(
        self,
        sides: "Sides",
        spec: ModalitySpec,
        ids: np.ndarray,
        num_input: int,
        num_target: int,
        rng: np.random.Generator,
    ) -> None:
        config = self._config
        if spec.kind == "sequence":
            parts = mask_sequence(ids, spec, num_input, num_target, config.keep_scheme, rng)
            sides.add_input(spec.name, parts.input_ids, np.arange(len(parts.input_ids)))
            sides.add_target(spec.name, parts.target_ids, np.arange(len(parts.target_ids)), parts.query_ids)
            return
        how = config.grid_positions if len(spec.grid.shape) == 3 else config.track_positions
        if how == "random":
            positions = draw_split(spec.num_tokens, num_input=num_input, num_target=num_target, rng=rng)
        else:
            positions = draw_connected(
                spec.grid.shape, num_input=num_input, num_target=num_target, positions=how, rng=rng
            )
        sides.add_input(spec.name, ids[positions[0]], positions[0])
        sides.add_target(spec.name, ids[positions[1]], positions[1])

    def _make_plan(self, names: tuple[str, ...]) -> _Plan:
        alphas = self._config.alphas
        always = [name in alphas.always_target and name in self._out for name in names]
        input_alphas, target_alphas = [], []
        for component in range(alphas.num_components):
            mixtures = [alphas.alphas_mixture.get(name) for name in names]
            input_alphas.append(
                [
                    mixture.input_alphas[component] if mixture and name in self._in else 0.0
                    for name, mixture in zip(names, mixtures, strict=True)
                ]
            )
            # Modalities that are always targets get theirs outside the draw.
            target_alphas.append(
                [
                    mixture.target_alphas[component] if mixture and name in self._out and not is_always else 0.0
                    for name, mixture, is_always in zip(names, mixtures, always, strict=True)
                ]
            )
        transfers = tuple(alphas.transfers.values())
        # A component needs a target modality; a transfer all its inputs and one of its targets.
        useful = [any(always) or sum(row) > 0 for row in target_alphas]
        useful += [set(t.inputs) <= set(names) and bool(set(t.targets) & set(names)) for t in transfers]
        weights = [weight if is_useful else 0.0 for weight, is_useful in zip(alphas.weights, useful, strict=True)]
        if sum(weights) <= 0:
            raise ValueError(f"clips with {list(names)}: no part of the mixture of maskings has a target there")
        limits = [self._specs[name].num_tokens for name in names]
        return _Plan(names, list(accumulate(weights)), transfers, input_alphas, target_alphas, limits, always)


def _domain(field: str, names: Sequence[str] | None, specs: Mapping[str, ModalitySpec]) -> frozenset[str]:
    if names is None:
        return frozenset(specs)
    if unknown := sorted(set(names) - set(specs)):
        raise ValueError(f"{field} names {unknown}, but the modalities are {sorted(specs)}")
    return frozenset(names)


def _choose(plan: _Plan, rng: np.random.Generator) -> int:
    """Number of a component of the mixture, or behind them of a transfer."""
    choice = bisect_right(plan.thresholds, rng.random() * plan.thresholds[-1])
    return min(choice, len(plan.thresholds) - 1)


def _transfer_targets(transfer: TransferConfig, plan: _Plan) -> list[str]:
    always = [name for name, is_always in zip(plan.names, plan.always, strict=True) if is_always]
    return [*transfer.targets, *(name for name in always if name not in transfer.targets)]


def _at_most(length: int, count: int | None) -> int:
    return length if count is None else min(length, count)


def _request(low: int | None, high: int, rng: np.random.Generator) -> int:
    return high if low is None or low == high else int(rng.integers(low, high + 1))


def draw_split(
    num_tokens: int, *, num_input: int, num_target: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Independent random positions: disjoint, ascending, int32, exactly as many as asked for.

    Raises ValueError if the counts do not fit.
    """
    total = num_input + num_target
    if total > num_tokens:
        raise ValueError(f"{num_input} inputs and {num_target} targets do not fit {num_tokens} positions")
    # All positions on one side, as direct tasks ask: nothing is random, and a range costs a 16th of a draw (5,120).
    if total == num_tokens and (num_input == 0 or num_target == 0):
        positions = np.arange(num_tokens, dtype=np.int32)
        return (positions, positions[:0]) if num_target == 0 else (positions[:0], positions)
    # One draw without replacement for both sides makes them disjoint; shuffled only where it is cut in two.
    drawn = rng.choice(num_tokens, total, replace=False, shuffle=num_input > 0 and num_target > 0)
    return _ascending(drawn[:num_input], num_tokens), _ascending(drawn[num_input:], num_tokens)


def draw_connected(
    shape: tuple[int, ...],
    *,
    num_input: int,
    num_target: int,
    positions: GridPositions | TrackPositions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Targets that hang together, inputs at random among all other positions; returned as by `draw_split`.

    `block`, `span`   the positions nearest to a random centre, each axis measured in its own length
    `tube`            spatial cells at all times, the last cell perhaps at some times only
    """
    num_tokens = int(np.prod(shape))
    if num_input + num_target > num_tokens:
        raise ValueError(f"{num_input} inputs and {num_target} targets do not fit {num_tokens} positions")
    if positions == "tube":
        # Cell after cell, each through all times: a prefix of this order is whole tubes and the start of one more.
        num_cells = num_tokens // shape[0]
        rank = (rng.permutation(num_cells)[None] * shape[0] + np.arange(shape[0])[:, None]).reshape(-1)
        order = np.argsort(rank)
    else:
        # Largest of the distances along the axes (a box, not a ball), so that the nearest positions are a block.
        centre = rng.random(len(shape))
        axes = np.meshgrid(*[(np.arange(size) + 0.5) / size for size in shape], indexing="ij")
        distance = np.max([np.abs(axis - at) for axis, at in zip(axes, centre, strict=True)], axis=0)
        order = np.argsort(distance.reshape(-1), kind="stable")
    targets, others = order[:num_target], order[num_target:]
    inputs = rng.choice(others, num_input, replace=False) if num_input else others[:0]
    return _ascending(inputs, num_tokens), _ascending(targets, num_tokens)


def _ascending(positions: np.ndarray, num_tokens: int) -> np.ndarray:
    # Sorting int16 takes a third of the time of int64, and sorting is half of the masking of a large grid.
    return np.sort(positions.astype(np.int16 if num_tokens <= 32768 else np.int32)).astype(np.int32)
