"""How a modality is to be generated: what a user writes in a config, what follows from it, and how tokens are drawn.

n positions still unknown in one clip; R rows, V vocabulary, C candidates (most likely first), P passes of guidance, K
draws per row.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from egom2p.config import Count, NotNegative, Share, strict

TokenSchedule = Literal["linear", "cosine"]


_MIN_TEMPERATURE = 1e-6  # logits divided by less overflow
_MOST_RECOMMENDED = 256  # samples, and steps, that a file of a stranger may ask for


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
    num_steps: Count = 1  # forward passes that the tokens are spread over
    token_schedule: Literal["linear", "cosine"] = "linear"  # how many tokens each step writes
    temperature: NotNegative = 0.0
    temperature_schedule: str = "constant"
    top_k: NotNegative = 0
    top_p: Share = 1.0
    guidance: float = 1.0
    guidance_weights: dict[str, float] | None = None
    grow_conditioning: bool = True
    max_condition_tokens: Count | None = None
    rewrite_fraction: Share = 0.0
    max_new_tokens: Count | None = None

    def __post_init__(self) -> None:
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise ValueError(
                f"temperature is 0 (the most likely) or at least {_MIN_TEMPERATURE}, got {self.temperature}"
            )
        if self.top_p == 0:
            raise ValueError(f"top_p must be in (0, 1] (the most likely token alone: temperature 0), got {self.top_p}")
        if self.rewrite_fraction == 1:
            raise ValueError(f"rewrite_fraction must be in [0, 1), got {self.rewrite_fraction}")
        step_temperatures(self.temperature_schedule, temperature=1.0, counts=(1,))

    def plan(self, target: str) -> "TargetPlan":
        """The same, for a modality."""
        return TargetPlan(target=target, **{field.name: getattr(self, field.name) for field in fields(SamplingConfig)})


@strict
class TargetPlan(SamplingConfig):
    """What is generated, and how."""

    target: str


@strict
class Recommendation:
    """How a checkpoint is to be asked where nobody says it: as it was measured. Part of its `model.json`.

    num_samples   several: their mean is what was measured
    num_steps     passes that each target is spread over
    temperature   of every target; 0 takes the most likely token
    chain         each target is a condition of those after it; not: all are made of the input alone
    """

    num_samples: Count = 1
    num_steps: Count = 1
    temperature: NotNegative = 0.0
    chain: bool = True

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_steps"):
            if (found := getattr(self, name)) > _MOST_RECOMMENDED:
                raise ValueError(f"{name} must be 1 ... {_MOST_RECOMMENDED}, found {found}")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.num_samples} samples of temperature 0 are all the same, wanted a temperature above 0"
            )
        SamplingConfig(temperature=self.temperature)

    def sampling(self, num_samples: int) -> SamplingConfig:
        """Of so many samples. A temperature that was recommended for a mean is none for a single sample: that takes
        the most likely tokens."""
        if num_samples == 1 < self.num_samples:
            return SamplingConfig()
        return SamplingConfig(num_steps=self.num_steps, temperature=self.temperature)


def guidance_passes(plan: TargetPlan, conditions: Sequence[str]) -> list[tuple[frozenset[str], float]]:
    """Visible conditions and weight of each pass; weights sum to 1, the unconditional pass last."""
    everything, nothing = frozenset(conditions), frozenset()
    if plan.guidance_weights is None:
        # uncond + s (cond - uncond), written as weights of the two.
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
    # A pass without weight would cost as much as any other: no guidance (1) is one pass, not two.
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
        # Positions are row-major with time first, so a frame is a run of them; of a partial prompt some are missing.
        starts = np.flatnonzero(np.diff(unknown // frame_size)) + 1
        frames = np.split(unknown, starts) if len(unknown) else []
        return [positions for frame in frames for positions in _at_random(plan, frame, rng)]
    return _at_random(plan, unknown, rng)


def _at_random(plan: TargetPlan, unknown: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Some positions in `num_steps` steps, in random order."""
    counts = token_counts(plan.token_schedule, num_steps=plan.num_steps, num_tokens=len(unknown))
    # In a single step everything is asked at once, whatever the order, so none is drawn.
    positions = rng.permutation(unknown) if len(counts) > 1 else unknown
    return np.split(positions, np.cumsum(counts)[:-1]) if counts else []


def token_counts(schedule: TokenSchedule, *, num_steps: int, num_tokens: int) -> tuple[int, ...]:
    """Tokens written per step; positive, summing to `num_tokens`, so there may be fewer than `num_steps` steps.

    `linear` spreads evenly, the surplus first; `cosine` writes few at both ends and many in the middle.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if num_tokens < 0:
        raise ValueError(f"num_tokens must not be negative, got {num_tokens}")
    if schedule == "linear":
        base, surplus = divmod(num_tokens, num_steps)
        counts = [base + (step < surplus) for step in range(num_steps)]
    elif schedule == "cosine":
        counts = _cosine_counts(num_steps, num_tokens)
    else:
        raise ValueError(f"token_schedule must be linear or cosine, got {schedule!r}")
    # A step that writes nothing would still run the model once.
    return tuple(count for count in counts if count > 0)


def _cosine_counts(num_steps: int, num_tokens: int) -> list[int]:
    left = [num_tokens * (1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(num_steps + 1)]
    counts = [round(before - after) for before, after in zip(left, left[1:], strict=False)]
    counts[-1] = num_tokens - sum(counts[:-1])
    if min(counts) <= 0:
        # Rounding each step by itself can write more tokens than there are; rounding the running total cannot.
        ends = [round(value) for value in left]
        counts = [before - after for before, after in zip(ends, ends[1:], strict=False)]
    return counts


def _number(text: str) -> float:
    """nan where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def step_temperatures(schedule: str, *, temperature: float, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Temperature of each step.

    `constant`; `linear`: falls with the share of tokens still to write; `decreasing:<min>`: the same down to `min`,
    with the share that is left after the step; `onex:<min>:<power>`: starts near `temperature` and falls like
    1/x**power to `min` (the published schedule of 4M).
    """
    # Shares of tokens, not of steps: how much is still open says how much a wrong draw can be made up for.
    total = max(sum(counts), 1)
    before = [1 - sum(counts[:step]) / total for step in range(len(counts))]
    after = [1 - sum(counts[: step + 1]) / total for step in range(len(counts))]
    name, *numbers = schedule.split(":")
    if any(not 0 <= _number(text) < math.inf for text in numbers):
        raise ValueError(f"temperature_schedule: its numbers are finite and not negative, got {schedule!r}")
    if name == "constant" and not numbers:
        return (temperature,) * len(counts)
    if name == "linear" and not numbers:
        return tuple(temperature * share for share in before)
    if name == "decreasing" and len(numbers) == 1:
        lowest = float(numbers[0])
        return tuple(lowest + (temperature - lowest) * share for share in after)
    if name == "onex" and len(numbers) == 2:
        lowest, power = float(numbers[0]), float(numbers[1])
        shape = np.linspace(1, 100, total) ** -power  # one point per token, yet read per step: as published
        shape = (shape - shape[-1]) / max(shape[0] - shape[-1], 1e-12)
        return tuple(
            max(lowest + (temperature - lowest) * float(shape[step]) * share, 0.0) for step, share in enumerate(after)
        )
    raise ValueError(
        f"temperature_schedule must be constant, linear, decreasing:<min> or onex:<min>:<power>, got {schedule!r}"
    )


# Of a vocabulary this many most likely tokens are taken first where top_p asks for few, then so many times as many.
FEWEST_CANDIDATES, MORE_CANDIDATES = 64, 8


def combine_guided(logits_passes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of the logits (R, V) of several passes; weights sum to 1.

    Classifier-free guidance of scale s is weights (s, 1 - s) of (conditional, unconditional).
    """
    if len(logits_passes) == 1:
        return logits_passes[0]
    # Written as base + w * (other - base), the published form: at a tie the rounding decides.
    *others, base = logits_passes
    guided_RV = base
    for logits_RV, weight in zip(others, weights, strict=False):
        guided_RV = guided_RV + (logits_RV - base) * weight
    return guided_RV


def candidates(logits_RV: Tensor, *, top_k: int | float = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits and ids (R, C) of the tokens that may be drawn, most likely first; excluded ones are -inf.

    top_k  0 keeps all; a number below 1 is a share of the vocabulary
    top_p  smallest set of most likely tokens whose probability (among the top_k) reaches top_p; 1 or 0 keeps all
    Never sorts the vocabulary: the most likely few are taken, and more only while their mass is short of top_p.
    """
    values_RC, ids_RC, _ = _most_likely(logits_RV, None, top_k=top_k, top_p=top_p)
    return values_RC, ids_RC


def _most_likely(
    logits_RV: Tensor, size: int | None, *, top_k: int | float, top_p: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Candidates among the `size` most likely tokens; whether some row (scalar bool) would take more, None: none can.

    size   None: as many as it takes, about which the device is asked
    """
    vocab = logits_RV.shape[1]
    limit = _num_kept(top_k, vocab)
    if not 0 < top_p < 1 or limit < vocab:
        values_RC, ids_RC = torch.topk(logits_RV, limit, dim=1)
        if not 0 < top_p < 1:
            return values_RC, ids_RC, None
    log_total_R1 = torch.logsumexp(logits_RV if limit == vocab else values_RC, dim=1, keepdim=True)
    if limit == vocab:
        values_RC, ids_RC = torch.topk(logits_RV, min(limit, size or FEWEST_CANDIDATES), dim=1)
    asks = size is None
    while asks and values_RC.shape[1] < limit:
        if bool(((values_RC - log_total_R1).exp().sum(1) >= top_p).all()):
            break
        values_RC, ids_RC = torch.topk(logits_RV, min(limit, MORE_CANDIDATES * values_RC.shape[1]), dim=1)
    share_RC = (values_RC - log_total_R1).exp()
    is_short = None if asks or values_RC.shape[1] == limit else (share_RC.sum(1) < top_p).any()
    before_RC = share_RC.cumsum(1) - share_RC
    # The first token is always kept; a token is kept while the mass before it has not passed top_p.
    is_kept_RC = before_RC <= top_p
    is_kept_RC[:, 0] = True
    return values_RC.masked_fill(~is_kept_RC, float("-inf")), ids_RC, is_short


def _num_kept(top_k: int | float, vocab: int) -> int:
    if top_k < 0:
        raise ValueError(f"top_k must not be negative, got {top_k}")
    if top_k == 0:
        return vocab
    if top_k < 1:
        return max(1, int(top_k * vocab))
    return min(int(top_k), vocab)


def keep_likely(logits_RV: Tensor, *, top_k: int | float = 0, top_p: float = 1.0) -> Tensor:
    """The logits (R, V) with everything outside top_k / top_p at -inf."""
    values_RC, ids_RC = candidates(logits_RV, top_k=top_k, top_p=top_p)
    return torch.full_like(logits_RV, float("-inf")).scatter_(1, ids_RC, values_RC)


def draw(
    logits_RV: Tensor, uniform_RK: Tensor, *, temperature: float, top_k: int | float = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Ids (R, K) drawn from the logits, and the log probability (R, K) of each at temperature 1.

    One uniform number per draw (inverse of the cumulative distribution), so a clip's randomness does not depend on
    the vocabulary or on the other clips of a batch. Temperature 0 takes the most likely token.
    """
    ids_RK, _ = draw_ids(logits_RV, uniform_RK, temperature=temperature, top_k=top_k, top_p=top_p)
    return ids_RK, log_probability(logits_RV, ids_RK)


def log_probability(logits_RV: Tensor, ids_RK: Tensor) -> Tensor:
    """(R, K) in nats, float32."""
    log_total_R1 = torch.logsumexp(logits_RV.float(), dim=1, keepdim=True)
    return logits_RV.gather(1, ids_RK).float() - log_total_R1


def draw_ids(
    logits_RV: Tensor,
    uniform_RK: Tensor,
    *,
    temperature: float,
    top_k: int | float = 0,
    top_p: float = 1.0,
    num_candidates: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Ids (R, K), and whether `num_candidates` were too few for them (scalar bool; None: they cannot be).

    num_candidates   taken of the vocabulary for top_p; None: as many as it takes, which makes the host wait for the
                     device to say so
    """
    if temperature == 0 or top_k == 1:
        return logits_RV.argmax(1, keepdim=True).expand(-1, uniform_RK.shape[1]), None
    if top_k == 0 and not 0 < top_p < 1:
        return _draw_inverse(logits_RV / temperature, uniform_RK), None
    # top_p is a share of the distribution that is drawn from, so the temperature comes first (as published).
    values_RC, ids_RC, is_short = _most_likely(logits_RV / temperature, num_candidates, top_k=top_k, top_p=top_p)
    return ids_RC.gather(1, _draw_inverse(values_RC, uniform_RK)), is_short


def _draw_inverse(logits_RC: Tensor, uniform_RK: Tensor) -> Tensor:
    # fp64 sums: with 64,000 terms fp32 loses the tail. Rare enough to afford (one row chunk at a time).
    cumulative_RC = torch.softmax(logits_RC.float(), dim=1).double().cumsum(1)
    total_R1 = cumulative_RC[:, -1:]
    # Below the total even where rounding reached it: then a sum exceeds it, the first of them at a token that adds to
    # the sum, so one that may be drawn.
    wanted_RK = torch.minimum(uniform_RK.to(total_R1) * total_R1, total_R1.nextafter(torch.zeros_like(total_R1)))
    return torch.searchsorted(cumulative_RC, wanted_RK, right=True)
