"""Forward and backward of one optimizer step, and the sums a run keeps on the device between log lines.

K loss terms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.training.distributed import Ranks, autocast
from egom2p.training.parallel import TouchAll, gradient_exchange, is_sharded_model, whole_tensor
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
    scaler: torch.amp.GradScaler | None = None,
) -> StepLosses:
    """Gradients of the whole step's loss in `.grad` of every trainable parameter, equal on all ranks.

    Sharded models have their part of the gradients; with a `scaler` (float16) they are multiplied by its scale.
    window   the micro-batches of this rank
    counts   K counts of all micro-batches of all ranks: the denominators
    """
    losses, sums = [], []
    for index, batch in enumerate(window):
        batch = batch.to(ranks.device, non_blocking=True)
        is_last = index == len(window) - 1  # gradients travel once a step, not once a micro-batch
        with gradient_exchange(model, wanted=is_last):
            with autocast(ranks.device, dtype):
                output = task.loss(model, batch)
            if reference_denominator:
                loss = task.combine(output.sums.float(), output.counts) / (len(window) * ranks.world_size)
            else:
                loss = task.combine(output.sums.float(), counts)
            losses.append(loss.detach())
            sums.append(output.sums.detach())
            if ranks.world_size > 1:
                # Gradients are averaged over ranks, but the shares of the ranks are to be summed.
                loss = loss * ranks.world_size
                if not is_sharded_model(model) and not getattr(task.model, "uses_all_parameters", False):
                    loss = TouchAll.apply(loss, *_trainable(model))
            (loss if scaler is None else scaler.scale(loss)).backward()
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
        # loss, gradient norm, steps: skipped, without a loss, without a norm; then K sums and K counts without a loss
        self._values: Tensor | None = None
        self._in_a_row = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # steps skipped: up to now, at most

    def add(self, step: StepLosses) -> None:
        # float64: a log line may be thousands of steps away, and sums of one step reach 1e7 nats.
        # A step whose loss is no number was skipped, so it says nothing about the weights: it is counted, and the mean
        # and those of its terms are of the others. A line on which no step is left has no finite loss. Where only some
        # ranks lost theirs, a rank's share counts as an even one.
        is_lost = torch.isfinite(step.loss).logical_not()
        loss, sums = (values.double().masked_fill(is_lost, 0.0) for values in (step.loss, step.sums))
        # Products with numbers of the host: a tensor of the counts would be a copy to the device in every step.
        lost = torch.stack([is_lost.double() * count for count in (1, *step.counts)])
        values = torch.cat([torch.stack([loss, loss * 0, loss * 0, lost[0], loss * 0]), sums, lost[1:]])
        self._values = values if self._values is None else self._values + values
        self._counts = [a + b for a, b in zip(self._counts or [0] * len(step.counts), step.counts, strict=True)]
        self._names = step.names
        self._num_steps += 1

    def add_norm(self, norm: Tensor, is_skipped: Tensor) -> None:
        # Every rank has the same two; its share keeps the sums over ranks right.
        is_lost = torch.isfinite(norm).logical_not()
        self._values[1] += norm.masked_fill(is_lost, 0.0) / self._ranks.world_size
        self._values[2] += is_skipped / self._ranks.world_size
        self._values[4] += is_lost / self._ranks.world_size
        now = (self._in_a_row[0] + 1) * is_skipped
        self._in_a_row = torch.stack([now, torch.maximum(self._in_a_row[1], now)])

    def take(self) -> dict[str, float]:
        """Mean loss, mean per term (nats per row), mean gradient norm and number of skipped steps since the last call.

        Means are of the steps in which they are finite, nan where there is none; `steps_not_finite` counts the others.
        `skipped_in_a_row`: the longest row of them that reached into this time. Waits for the device.
        """
        # In one copy: each of its own would make the host wait again.
        told = torch.cat([self._in_a_row, self._ranks.sum_tensor(self._values)]).tolist()
        _, longest, loss, norm, num_skipped, num_lost, num_without_norm, *rest = told
        sums, lost_counts = rest[: len(self._names)], rest[len(self._names) :]
        num_steps = self._num_steps - num_lost / self._ranks.world_size
        values = {"loss": loss / num_steps if num_steps else math.nan}
        for name, total, count, lost in zip(self._names, sums, self._counts, lost_counts, strict=True):
            if count:
                left = count - lost / self._ranks.world_size
                values[f"loss/{name}"] = total / left if left else math.nan
        num_norms = self._num_steps - round(num_without_norm)
        values["grad_norm"] = norm / num_norms if num_norms else math.nan
        values["steps_not_finite"] = round(num_without_norm)  # a loss that is not finite makes the norm so
        values["skipped_steps"], values["num_steps"] = round(num_skipped), self._num_steps
        values["skipped_in_a_row"] = round(longest)
        self._in_a_row = self._in_a_row[:1].repeat(2)
        self._values, self._counts, self._num_steps = None, [], 0
        return values

    @property
    def is_empty(self) -> bool:
        return self._values is None

    def skipped_in_a_row(self) -> int:
        """Steps skipped just now, one after the other, whichever lines they are on. Waits for the device."""
        return round(self._in_a_row[0].item())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: sums over ranks, so that the next log line is that of an uninterrupted run."""
        rows = {"in_a_row": self._in_a_row.cpu()} if self._in_a_row.any() else {}
        if self._values is None:
            return rows
        return rows | {
            "values": self._ranks.sum_tensor(self._values).cpu(),
            "counts": torch.tensor(self._counts, dtype=torch.int64),
            "num_steps": torch.tensor(self._num_steps),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        if "in_a_row" in state:
            self._in_a_row = state["in_a_row"].to(self._ranks.device)
        if "values" not in state:
            return
        # The first rank carries the sum, the others zero.
        values = state["values"].to(self._ranks.device)
        self._values = values if self._ranks.is_first else torch.zeros_like(values)
        self._counts = state["counts"].tolist()
        self._num_steps = int(state["num_steps"])


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _total(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum(0)


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    clip_grad_norm: float | None,
    skip_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """One step; returns the gradient norm before clipping and whether the step was skipped (1.0 or 0.0), on the device.

    A step whose norm is not finite, or above `skip_grad_norm`, leaves weights and moments as they are. That is decided
    on the device (`found_inf`, as for mixed precision), so the host never waits for it.
    scaler   has scaled the loss; gradients are brought back to their size first
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole_tensor(torch.nn.utils.get_total_norm(gradients))
    if clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
    largest = math.inf if skip_grad_norm is None else skip_grad_norm
    is_skipped = (torch.isfinite(norm) & (norm <= largest)).logical_not().to(torch.float32)
    optimizer.found_inf = is_skipped
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if scaler is not None:
        scaler.update()
    return norm, is_skipped
