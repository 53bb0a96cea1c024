"""How long to train, and the learning rate on the way, in steps, slots, tokens or clips alike."""

import math
from dataclasses import dataclass
from typing import Literal

Unit = Literal["steps", "slots", "tokens", "clips"]


@dataclass(frozen=True)
class Progress:
    """What training has consumed, over all ranks. The data state of a checkpoint is `clips`."""

    step: int = 0
    clips: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0

    def amount(self, unit: Unit) -> int:
        return self.step if unit == "steps" else getattr(self, unit)

    def advanced(self, *, clips: int, tokens: int, slots: int) -> "Progress":
        """After one more optimizer step."""
        return Progress(self.step + 1, self.clips + clips, self.tokens + tokens, self.slots + slots, self.seconds)


@dataclass(frozen=True)
class Length:
    """`total` and `warmup` in one unit."""

    unit: Unit
    total: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.total < 0:
            raise ValueError(f"the training length must not be negative, got {self.total} {self.unit}")
        if not 0 <= self.warmup <= self.total:
            raise ValueError(f"warmup must lie within the {self.total:g} {self.unit} of training, got {self.warmup:g}")

    def is_reached(self, progress: Progress) -> bool:
        return progress.amount(self.unit) >= self.total

    def fraction(self, progress: Progress) -> float:
        return min(1.0, progress.amount(self.unit) / self.total) if self.total else 1.0


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from `start` to `peak`, then `shape` down to `end`.

    With fixed steps this is the published schedule, value by value: the last warm-up step already has the peak.
    """

    length: Length
    peak: float
    start: float = 0.0
    end: float = 0.0
    shape: Literal["cosine", "constant"] = "cosine"

    def at(self, done: float, amount: float) -> float:
        """Learning rate of a step that begins after `done` units and consumes `amount` of them."""
        warmup, total = self.length.warmup, self.length.total
        if done < warmup:
            ramp = min(1.0, done / (warmup - amount)) if warmup > amount else 1.0
            return self.start + (self.peak - self.start) * ramp
        if self.shape == "constant":
            return self.peak
        part = min(1.0, (done - warmup) / max(total - warmup, 1e-12))
        return self.end + 0.5 * (self.peak - self.end) * (1 + math.cos(math.pi * part))
