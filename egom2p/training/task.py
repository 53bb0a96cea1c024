"""What a trainer must tell the one loop about its model, its data and its loss.

K loss terms: the modalities when pretraining, the parts of the loss when training a tokenizer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.contracts import LossOutput
from egom2p.training.frozen import FrozenPhase


@dataclass(frozen=True)
class BatchSize:
    """How much one batch holds, known on the CPU.

    clips          clips of the batch
    tokens         real tokens (input and target)
    token_budget   the published "total tokens": the sum of the clips' budgets, filled or not
    flops          floating-point operations the model needs for it, forward and backward; 0: not known
    rows           tokens it has room for, in batches of a fixed shape; 0: no more than it holds
    trimmed        tokens left out to meet a fixed shape
    """

    clips: int
    tokens: int = 0
    token_budget: int = 0
    flops: int = 0
    rows: int = 0
    trimmed: int = 0

    def __add__(self, other: "BatchSize") -> "BatchSize":
        return BatchSize(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Measurement:
    """One number of an evaluation.

    group              evaluation task, e.g. `rgb2depth`
    name               what was measured in it, e.g. a modality
    value              a loss in nats, or an error in the unit its name ends in
    unigram_baseline   losses only: cross entropy, on the same tokens, of how often an id occurs at a position in
                       training: what a model that ignores its input can reach
    """

    group: str
    name: str
    value: float
    unigram_baseline: float | None = None


def kept_state(model: nn.Module) -> dict[str, Tensor]:
    """What must be kept of a model, by name: its state dict, unless it names less itself (frozen weights of files)."""
    return getattr(model, "state_to_keep", model.state_dict)()


class Task(ABC):
    """One training job. Everything random in it is a function of its own seed and the global index of a clip.

    model            the trained module, on the CPU or its device when handed over; the loop wraps it for several ranks
    num_train_clips  size of an epoch; None: not known, a run of epochs must say it
    clip_word        what lines for people call the clips of the loop; row_word: what `batch_size` counts
    frozen           a first phase in which only a part of the model trains
    notes            lines for the beginning of the log
    """

    model: nn.Module
    num_train_clips: int | None = None
    clip_word: str = "clips"
    row_word: str = "clips"
    frozen: FrozenPhase | None = None
    notes: Sequence[str] = ()

    @abstractmethod
    def batches(self, first_clip: int) -> Iterator[Any]:
        """Endless batches of this rank, starting at a global clip index: the loop resumes by it.

        A batch has `.to(device, non_blocking=...)`. Over all ranks the batches of one step hold consecutive clips.
        """

    @abstractmethod
    def counts(self, batch: Any) -> tuple[int, ...]:
        """K ints: how many rows each loss term will sum over. Known before the forward pass, on the CPU."""

    @abstractmethod
    def size(self, batch: Any) -> BatchSize: ...

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> LossOutput:
        """Loss sums of a batch; `model` is `self.model`, possibly wrapped for several ranks: call it, not its parts."""

    @abstractmethod
    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        """Scalar loss from sums (K,) and the counts of the whole optimizer step; linear in `sums`."""

    def after_step(self) -> None:  # noqa: B027 (most tasks have nothing to do here)
        """Called after each optimizer step, on every rank; nothing where all state is in weights and optimizer."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        """Measurements on held-out data, complete on every rank; the loop has set evaluation mode without gradient."""

    def data_identity(self) -> Mapping[str, Any]:
        """Plain values that change when the training data on the disk do: a restart tells which differ."""
        return {}

    @abstractmethod
    def check_checkpoint(self, directory: Path) -> None:
        """Raise ValueError when what `export` wrote there belongs to another job than this one; before resuming."""

    @abstractmethod
    def export(self, directory: Path) -> None:
        """Write the loadable artifact of the present weights into an existing folder; rank 0 only."""


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed out of several numbers; near numbers give unrelated seeds."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(*numbers: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block with torch's default generators (CPU, and that of a CUDA `device`) set by `numbers`."""
    device = torch.device(device)
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    seed = mixed_seed(*numbers)
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
