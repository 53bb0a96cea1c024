"""How many tokens each decoding step writes, and how hot it is."""

import math
from typing import Literal

import numpy as np

TokenSchedule = Literal["linear", "cosine"]


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


def step_temperatures(schedule: str, *, temperature: float, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Temperature of each step.

    `constant`; `linear`: falls with the share of tokens still to write; `decreasing:<min>`: the same down to `min`,
    with the share that is left after the step; `onex:<min>:<power>`: starts near `temperature` and falls like
    1/x**power to `min` (the published schedule of 4M).
    """
    total = max(sum(counts), 1)
    before = [1 - sum(counts[:step]) / total for step in range(len(counts))]
    after = [1 - sum(counts[: step + 1]) / total for step in range(len(counts))]
    name, *numbers = schedule.split(":")
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
