"""How long to train, and the learning rate on the way, in steps, token budgets, tokens or clips alike."""

import math
from dataclasses import dataclass
from typing import Literal

Unit = Literal["steps", "token_budget", "tokens", "clips"]
Shape = Literal["cosine", "constant", "inverse_sqrt", "warmup_stable_decay"]


@dataclass(frozen=True)
class Progress:
    """What training has consumed, over all ranks. The data state of a checkpoint is `clips`."""

    step: int = 0
    clips: int = 0
    tokens: int = 0
    token_budget: int = 0
    seconds: float = 0.0

    def amount(self, unit: Unit) -> int:
        return self.step if unit == "steps" else getattr(self, unit)

    def advanced(self, *, clips: int, tokens: int, token_budget: int) -> "Progress":
        """After one more optimizer step."""
        return Progress(
            self.step + 1, self.clips + clips, self.tokens + tokens, self.token_budget + token_budget, self.seconds
        )


@dataclass(frozen=True)
class Length:
    """`total` and `warmup` in one unit."""

    unit: Unit
    total: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.total < 0:
            raise ValueError(f"the training length must not be negative, got {self.total} {_words(self.unit)}")
        if not 0 <= self.warmup <= self.total:
            raise ValueError(
                f"warmup must lie within the {self.total:g} {_words(self.unit)} of training, got {self.warmup:g}"
            )

    def is_reached(self, progress: Progress) -> bool:
        return progress.amount(self.unit) >= self.total

    def fraction(self, progress: Progress) -> float:
        return min(1.0, progress.amount(self.unit) / self.total) if self.total else 1.0


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from `start` to `peak`, then a shape that ends at `end`.

    cosine               half a cosine down to `end`
    constant             stays at the peak
    inverse_sqrt         falls as 1 / sqrt(1 + units since warm-up / timescale), then linearly over `cooldown` to `end`
    warmup_stable_decay  stays at the peak, then falls linearly over `cooldown` to `end`
    `cooldown` (the last units of training) and `timescale` are in the unit of the length.
    With fixed steps cosine is the published schedule, value by value: the last warm-up step already has the peak.
    """

    length: Length
    peak: float
    start: float = 0.0
    end: float = 0.0
    shape: Shape = "cosine"
    cooldown: float = 0.0
    timescale: float | None = None  # None: as long as the warm-up

    def __post_init__(self) -> None:
        after_warmup = self.length.total - self.length.warmup
        if not 0 <= self.cooldown <= after_warmup:
            raise ValueError(
                f"cooldown must lie within the {after_warmup:g} {_words(self.length.unit)} after warm-up, got "
                f"{self.cooldown:g}"
            )
        if self.shape == "inverse_sqrt" and self._timescale <= 0:
            raise ValueError("schedule inverse_sqrt without warm-up needs a timescale")

    def at(self, done: float, amount: float) -> float:
        """Learning rate of a step that begins after `done` units and consumes `amount` of them."""
        warmup, total = self.length.warmup, self.length.total
        if done < warmup:
            # Less one step: published warm-ups are a linspace with both ends, so their last step has the peak.
            ramp = min(1.0, done / (warmup - amount)) if warmup > amount else 1.0
            return self.start + (self.peak - self.start) * ramp
        if self.shape == "cosine":
            return half_cosine(self.peak, self.end, min(1.0, (done - warmup) / max(total - warmup, 1e-12)))
        begin = total - self.cooldown
        if done < begin or not self.cooldown:
            return self._before_cooldown(done - warmup)
        left = max(0.0, (total - done) / self.cooldown)  # the last step may overshoot a length that is no whole number
        return self.end + (self._before_cooldown(begin - warmup) - self.end) * left

    def _before_cooldown(self, done: float) -> float:
        return self.peak / math.sqrt(1 + done / self._timescale) if self.shape == "inverse_sqrt" else self.peak

    @property
    def _timescale(self) -> float:
        return self.length.warmup if self.timescale is None else self.timescale


@dataclass(frozen=True)
class WeightDecay:
    """From `start` at the beginning of training to `end` at its end, along half a cosine (as timm and 4M do it)."""

    length: Length
    start: float
    end: float

    def at(self, done: float) -> float:
        """Weight decay of a step that begins after `done` units."""
        return half_cosine(self.start, self.end, min(1.0, done / self.length.total) if self.length.total else 1.0)


def half_cosine(first: float, last: float, part: float) -> float:
    """From `first` at 0 to `last` at 1."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * part))


def _words(unit: Unit) -> str:
    return unit.replace("_", " ")
