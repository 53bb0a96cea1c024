"""What a trainer must tell the one loop about its model, its data and its loss.

K loss terms: the modalities when pretraining, the parts of the loss when training a tokenizer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from egom2p.contracts import LossOutput


@dataclass(frozen=True)
class BatchSize:
    """How much one batch holds, known on the CPU.

    clips   clips of the batch
    tokens  real tokens (input and target)
    slots   slots of the published "total tokens": the sum of the clips' budgets, filled or not
    flops   floating-point operations the model needs for it, forward and backward; 0: not known
    rows    tokens it has room for, in batches of a fixed shape; 0: no more than it holds
    trimmed tokens left out to meet a fixed shape
    """

    clips: int
    tokens: int = 0
    slots: int = 0
    flops: int = 0
    rows: int = 0
    trimmed: int = 0

    def __add__(self, other: "BatchSize") -> "BatchSize":
        return BatchSize(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Measurement:
    """One number of an evaluation.

    group     evaluation task, e.g. `rgb2depth`
    name      what was measured in it, e.g. a modality
    value     a loss in nats, or an error in the unit its name ends in
    marginal  losses only: cross entropy of the training tokens' marginals per place on the same tokens, which is
              what a model that ignores its input can reach
    """

    group: str
    name: str
    value: float
    marginal: float | None = None


class Task(Protocol):
    """One training job. Everything random in it is a function of its own seed and the global index of a clip.

    model  the trained module, on the CPU when handed over; the loop moves it, and wraps it when several ranks train
    """

    model: nn.Module

    def batches(self, first_clip: int) -> Iterator[Any]:
        """Endless batches of this rank, starting at a global clip index: the loop resumes by it.

        A batch has `.to(device, non_blocking=...)`. Over all ranks the batches of one step hold consecutive clips.
        """
        ...

    def counts(self, batch: Any) -> tuple[int, ...]:
        """K ints: how many rows each loss term will sum over. Known before the forward pass, on the CPU."""
        ...

    def size(self, batch: Any) -> BatchSize: ...

    def loss(self, model: nn.Module, batch: Any) -> LossOutput:
        """Loss sums of a batch; `model` is `self.model`, possibly wrapped for several ranks: call it, not its parts."""
        ...

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        """Scalar loss from sums (K,) and the counts of the whole optimizer step; linear in `sums`."""
        ...

    def after_step(self) -> None:
        """Called after each optimizer step, on every rank."""
        ...

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        """Measurements on held-out data, complete on every rank; the loop has set evaluation mode without gradient."""
        ...

    def check_checkpoint(self, directory: Path) -> None:
        """Raise ValueError when what `export` wrote there belongs to another job than this one; before resuming."""
        ...

    def export(self, directory: Path) -> None:
        """Write the loadable artifact of the present weights into an existing folder; rank 0 only."""
        ...
