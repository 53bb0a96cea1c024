"""Whether a run gives the same numbers twice: its first steps are taken two times, and every tensor is compared.

`training.check_determinism=3` on the command line of any trainer. The first time writes batches, losses, gradients and
the state after each step into a temporary folder (about four times the trained weights per step; TMPDIR says where),
the second time compares bit by bit and names the first tensor, in the order of computing, that is another one. Both
times are taken by one process, or by the ranks of one launch: what differs between two starts of Python is not seen.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.storage import load_tensors, save_tensors
from egom2p.training.distributed import Ranks
from egom2p.training.parallel import local_part

DIFFERS_CODE = 5


class DifferingRunError(ValueError):
    """The same steps gave other numbers the second time."""


class TraceEndError(Exception):
    """Enough steps were traced; no error of the run."""


class StepTrace:
    """The tensors of the first `num_steps` steps of one rank: written into `folder`, or compared with what lies there.

    found   of the second time: which tensor differs first, and by how much; None: none so far
    """

    def __init__(self, folder: Path, num_steps: int, *, is_second: bool) -> None:
        self._folder, self._num_steps, self._is_second = folder, num_steps, is_second
        self.found: str | None = None
        self.num_compared = 0

    def gradients(self, step: int, window: Iterable[Any], losses: Tensor, model: nn.Module) -> None:
        """After the backward pass, before anything is clipped."""
        self._note(step, "batch", _tensors_of(list(window)))
        self._note(step, "loss", [("", losses)])
        # Backward: a gradient that differs makes those of all earlier layers differ, and they stand before it here.
        parameters = [(name, parameter.grad) for name, parameter in model.named_parameters()]
        self._note(step, "gradient of", [(name, grad) for name, grad in reversed(parameters) if grad is not None])

    def end_of_step(self, step: int, state: Iterable[tuple[str, Tensor]], ranks: Ranks) -> None:
        """After the optimizer. TraceEndError, on all ranks alike, where a tensor differs or enough steps are traced."""
        self._note(step, "after the step,", state)
        (num_found,) = ranks.sum_ints([self.found is not None])
        if num_found or step + 1 >= self._num_steps:
            raise TraceEndError

    def _note(self, step: int, part: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        held = {f"{part} {name}".strip(): local_part(tensor).detach().cpu() for name, tensor in tensors}
        file = self._folder / f"{step}-{part.split()[0]}.safetensors"
        if not self._is_second:
            save_tensors(
                file, {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in held.items()}
            )
            return
        before = load_tensors(file)
        for name in [*held, *(before.keys() - held.keys())]:
            if self.found is None and (difference := _difference(before.get(name), held.get(name))):
                self.found = f"step {step + 1}: {name} differs: {difference}"
            self.num_compared += 1


def check_determinism(fit: Callable[[Path, StepTrace], Any], num_steps: int, ranks: Ranks) -> str:
    """Take the steps twice with `fit(output folder, trace)`; a line for people. DifferingRunError names the tensor."""
    with tempfile.TemporaryDirectory(prefix="egom2p-") as folder:
        (Path(folder) / "traces").mkdir()
        for number in range(2):
            trace = StepTrace(Path(folder) / "traces", num_steps, is_second=number > 0)
            try:
                fit(Path(folder) / f"run{number}", trace)
            except TraceEndError:
                pass
            ranks.wait_for_all()
    (num_found,) = ranks.sum_ints([trace.found is not None])
    if num_found:
        raise DifferingRunError(f"rank {ranks.rank}: {trace.found or 'the same, but on another rank not'}")
    return f"{num_steps} steps twice: {trace.num_compared} tensors are the same, bit by bit"


def _tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors_of(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, dict):
        for key, held in value.items():
            yield from _tensors_of(held, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, held in enumerate(value):
            yield from _tensors_of(held, f"{name}[{number}]")


def _difference(one: Tensor | None, two: Tensor | None) -> str | None:
    """How two tensors differ; None where they hold the same bits."""
    if one is None or two is None:
        return f"only the {'second' if one is None else 'first'} time has it"
    if one.shape != two.shape or one.dtype != two.dtype:
        return f"{tuple(one.shape)} {one.dtype}, then {tuple(two.shape)} {two.dtype}"
    flat_one, flat_two = one.reshape(-1), two.reshape(-1)
    if torch.equal(flat_one.view(torch.uint8), flat_two.contiguous().view(torch.uint8)):
        return None
    apart = (flat_one.double() - flat_two.double()).abs()
    largest, size = apart.nan_to_num(torch.inf).max().item(), flat_one.double().abs().nan_to_num(0.0).max().item()
    return f"{int((apart != 0).sum())} of {apart.numel()} numbers, by up to {largest:.3g} (the largest is {size:.3g})"
