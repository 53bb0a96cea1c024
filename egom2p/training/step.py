"""Forward and backward of one optimizer step, and the sums a run keeps on the device between log lines.

K loss terms.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from egom2p.training.distributed import Ranks
from egom2p.training.task import Task


@dataclass(frozen=True)
class StepLosses:
    """Of one step on one rank, on the device: summing them over ranks gives the step's.

    loss    scalar: this rank's share of the step's loss
    sums    (K,) summed loss terms
    counts  K ints of the whole step, over all ranks
    """

    loss: Tensor
    sums: Tensor
    counts: tuple[int, ...]
    names: tuple[str, ...]


def forward_backward(
    task: Task,
    model: nn.Module,
    window: Sequence[Any],
    counts: tuple[int, ...],
    *,
    ranks: Ranks,
    dtype: torch.dtype,
    reference_denominator: bool = False,
) -> StepLosses:
    """Gradients of the whole step's loss in `.grad` of every trainable parameter, equal on all ranks.

    window   the micro-batches of this rank
    counts   K counts of all micro-batches of all ranks: the denominators
    """
    losses, sums = [], []
    for index, batch in enumerate(window):
        batch = batch.to(ranks.device, non_blocking=True)
        is_last = index == len(window) - 1
        with _gradient_exchange(model, wanted=is_last):
            with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                output = task.loss(model, batch)
            if reference_denominator:
                loss = task.combine(output.sums.float(), output.counts) / (len(window) * ranks.world_size)
            else:
                loss = task.combine(output.sums.float(), counts)
            losses.append(loss.detach())
            sums.append(output.sums.detach())
            if ranks.world_size > 1:
                # Gradients are averaged over ranks by the wrapper, but the shares of the ranks are to be summed.
                loss = _TouchAll.apply(loss * ranks.world_size, *_trainable(model))
            loss.backward()
    for parameter in _trainable(model):
        # A parameter that no clip of the step used has gradient 0, on one rank as on many.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return StepLosses(_total(losses), _total(sums), counts, output.names)


class StepSums:
    """Sums over the steps since the last log line; stay on the device until they are taken."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._names: tuple[str, ...] = ()
        self._counts: list[int] = []
        self._num_steps = 0
        self._values: Tensor | None = None  # loss, gradient norm, then K sums

    def add(self, step: StepLosses) -> None:
        values = torch.cat([step.loss.reshape(1), torch.zeros_like(step.loss).reshape(1), step.sums]).double()
        self._values = values if self._values is None else self._values + values
        self._counts = [a + b for a, b in zip(self._counts or [0] * len(step.counts), step.counts, strict=True)]
        self._names = step.names
        self._num_steps += 1

    def add_norm(self, norm: Tensor) -> None:
        # Every rank has the same norm; its share keeps the sum over ranks right.
        self._values[1] += norm / self._ranks.world_size

    def take(self) -> dict[str, float]:
        """Mean loss, mean per term (nats per row) and mean gradient norm since the last call. Waits for the device."""
        loss, norm, *sums = self._ranks.sum_tensor(self._values).tolist()
        values = {"loss": loss / self._num_steps}
        for name, total, count in zip(self._names, sums, self._counts, strict=True):
            if count:
                values[f"loss/{name}"] = total / count
        values["grad_norm"] = norm / self._num_steps
        self._values, self._counts, self._num_steps = None, [], 0
        return values

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: sums over ranks, so that the next log line is that of an uninterrupted run."""
        if self._values is None:
            return {}
        return {
            "values": self._ranks.sum_tensor(self._values).cpu(),
            "counts": torch.tensor(self._counts, dtype=torch.int64),
            "num_steps": torch.tensor(self._num_steps),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        # The first rank carries the sum, the others zero.
        values = state["values"].to(self._ranks.device)
        self._values = values if self._ranks.is_first else torch.zeros_like(values)
        self._counts = state["counts"].tolist()
        self._num_steps = int(state["num_steps"])


class _TouchAll(torch.autograd.Function):
    """The loss itself, with a zero gradient to every parameter.

    DistributedDataParallel waits for the gradient of each parameter; a modality that no clip of this rank has would
    leave its parameters without one. Searching the graph for them at every step costs more than these zeros.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zero = torch.zeros((), device=gradient.device)
        return gradient, *(zero.to(parameter.dtype).expand(parameter.shape) for parameter in ctx.parameters)


def _gradient_exchange(model: nn.Module, *, wanted: bool) -> contextlib.AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not wanted:
        return model.no_sync()
    return contextlib.nullcontext()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _total(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum(0)
