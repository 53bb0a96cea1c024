"""Which checkpoints of a run stay: the last ones, every n-th, and the best by one measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egom2p.storage import load_json, save_json
from egom2p.training.task import Measurement

_BEST = "best.json"


@dataclass(frozen=True)
class Retention:
    """keep_last >= 1 newest steps; multiples of keep_every; the best step, where one is known."""

    keep_last: int
    keep_every: int | None = None
    best: int | None = None

    def removable(self, steps: Sequence[int]) -> list[int]:
        """Of ascending steps those that need not stay."""
        return [
            step
            for step in steps[: -self.keep_last]
            if step != self.best and (self.keep_every is None or step % self.keep_every)
        ]


class BestCheckpoint:
    """The lowest value so far of one measurement, and the step that had it; kept beside the checkpoints.

    name   `group/name` of a measurement, or `group`: the mean over what is measured in it
    """

    def __init__(self, name: str | None, folder: Path) -> None:
        self.name, self._file = name, folder / _BEST
        self.step: int | None = None
        self._value = float("inf")
        self._load()

    def _load(self) -> None:
        if self.name is None or not self._file.is_file():
            return
        note = load_json(self._file)
        if note["name"] == self.name:  # else another measurement counts from now on
            self.step, self._value = note["step"], note["value"]

    def is_better(self, measurements: Sequence[Measurement]) -> bool:
        """Whether these beat all before. ValueError when the configured name is not among them."""
        return self.name is not None and chosen_value(self.name, measurements) < self._value

    def note(self, step: int, measurements: Sequence[Measurement]) -> None:
        """The checkpoint of `step`, which is on the disk, is the best."""
        self.step, self._value = step, chosen_value(self.name, measurements)
        save_json(self._file, {"name": self.name, "step": self.step, "value": self._value})


def chosen_value(name: str, measurements: Sequence[Measurement]) -> float:
    """The measurement `group/name`, or the mean of a group."""
    values = [item.value for item in measurements if name in (item.group, f"{item.group}/{item.name}")]
    if not values:
        known = ", ".join(f"{item.group}/{item.name}" for item in measurements) or "nothing"
        raise ValueError(f"keep_best is {name!r}, but measured are {known}")
    return sum(values) / len(values)
