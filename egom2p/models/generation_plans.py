"""How a modality is to be generated: what a user writes in a config, and what follows from it.

n positions still unknown in one clip.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import numpy as np

from egom2p.config import strict
from egom2p.models.schedules import step_temperatures, token_counts


@strict
class SamplingConfig:
    """How tokens of one modality are generated. The defaults are one step, most likely tokens, no guidance.

    scheme                 roar: random positions; maskgit: most confident first; autoregressive: in position order;
                           frames: one frame (sample) after the other, each in `num_steps` steps as roar
    temperature            0 takes the most likely token
    temperature_schedule   constant | linear | decreasing:<min> | onex:<min>:<power>
    top_k                  0 keeps all; below 1: share of the vocabulary
    top_p                  1 keeps all
    guidance               scale s of uncond + s * (cond - uncond): 1 none, >1 stronger, 0..1 weak, <0 away from it
    guidance_weights       own scale per condition; each is then shown to the model alone. Replaces `guidance`
    grow_conditioning      modalities generated earlier in the chain count as conditions (hidden from the
                           unconditional pass); otherwise both passes see them
    max_condition_tokens   show a random subset of the conditions, as large as the budget the model was trained with
    rewrite_fraction       maskgit: before each step this share of the tokens written so far, the least certain ones,
                           is forgotten and decided again in that step
    max_new_tokens         sequences: stop after so many
    """

    scheme: Literal["roar", "maskgit", "autoregressive", "frames"] = "roar"
    num_steps: int = 1
    token_schedule: Literal["linear", "cosine"] = "linear"
    temperature: float = 0.0
    temperature_schedule: str = "constant"
    top_k: float = 0
    top_p: float = 1.0
    guidance: float = 1.0
    guidance_weights: dict[str, float] | None = None
    grow_conditioning: bool = True
    max_condition_tokens: int | None = None
    rewrite_fraction: float = 0.0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be in [0, 1], got {self.top_p}")
        if not 0 <= self.rewrite_fraction < 1:
            raise ValueError(f"rewrite_fraction must be in [0, 1), got {self.rewrite_fraction}")
        step_temperatures(self.temperature_schedule, temperature=1.0, counts=(1,))

    def plan(self, target: str) -> "TargetPlan":
        """The same, for a modality."""
        return TargetPlan(target=target, **{field.name: getattr(self, field.name) for field in fields(SamplingConfig)})


@strict
class TargetPlan(SamplingConfig):
    """What is generated, and how."""

    target: str


def guidance_passes(plan: TargetPlan, conditions: Sequence[str]) -> list[tuple[frozenset[str], float]]:
    """Visible conditions and weight of each pass; weights sum to 1, the unconditional pass last."""
    everything, nothing = frozenset(conditions), frozenset()
    if plan.guidance_weights is None:
        passes = [(everything, plan.guidance), (nothing, 1 - plan.guidance)]
    else:
        unknown = set(plan.guidance_weights) - everything
        if unknown:
            raise ValueError(
                f"{plan.target}: guidance_weights name {sorted(unknown)}, the conditions are {sorted(everything)}"
            )
        passes = [(frozenset([name]), weight) for name, weight in plan.guidance_weights.items()]
        passes.append((nothing, 1 - sum(plan.guidance_weights.values())))
    if not conditions:
        return [(nothing, 1.0)]
    return [(visible, weight) for visible, weight in passes if weight != 0]


def writing_order(
    plan: TargetPlan,
    unknown: np.ndarray,
    rng: np.random.Generator,
    given: Sequence[np.ndarray] | None,
    *,
    frame_size: int = 1,
) -> list[np.ndarray]:
    """Positions written in each step; for maskgit only their number counts.

    frame_size   positions of one frame, or sample of a track
    """
    if given is not None:
        if plan.scheme == "maskgit":
            raise ValueError(f"{plan.target}: maskgit chooses its positions by confidence; given positions need roar")
        order = [np.asarray(part, np.int64) for part in given]
        written = np.concatenate(order) if order else np.zeros(0, np.int64)
        if not np.array_equal(np.sort(written), unknown):
            raise ValueError(f"{plan.target}: the given positions must be the {len(unknown)} unknown ones, each once")
        return order
    if plan.scheme == "autoregressive":
        return list(np.split(unknown, len(unknown))) if len(unknown) else []
    if plan.scheme == "frames":
        starts = np.flatnonzero(np.diff(unknown // frame_size)) + 1
        frames = np.split(unknown, starts) if len(unknown) else []
        return [positions for frame in frames for positions in _at_random(plan, frame, rng)]
    return _at_random(plan, unknown, rng)


def _at_random(plan: TargetPlan, unknown: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Some positions in `num_steps` steps, in random order."""
    counts = token_counts(plan.token_schedule, num_steps=plan.num_steps, num_tokens=len(unknown))
    positions = rng.permutation(unknown) if len(counts) > 1 else unknown
    return np.split(positions, np.cumsum(counts)[:-1]) if counts else []
