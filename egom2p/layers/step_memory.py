"""How much memory a step of any model takes, found by taking it with tensors that hold no numbers.

Torch itself makes the shapes, so any family of blocks, adapter and precision is counted as it is, on any machine.
A deep model need not be built: every block of a kind keeps as much as the others, so `step_of_blocks` takes the step
with one block of each kind, and with one more.

Attention is that of rows without padding (give segments of one length): a fused kernel that keeps no scores, as CUDA's.
What no tensor holds is not seen: the device's context, the allocator's gaps, workspaces inside of kernels.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class StepMemory:
    """Bytes beside weights, gradients and optimizer state.

    kept       from the end of the forward pass to the backward pass: its inputs, and what autograd keeps; of a step
               without gradient its result alone
    copies     of the weights in another precision, as autocast makes them; not in `kept`
    workspace  most that is alive beside both, at any moment of the step
    """

    kept: int
    copies: int
    workspace: int

    @property
    def peak(self) -> int:
        return self.kept + self.copies + self.workspace


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, `now` and at most (`peak`). Of real tensors too.

    copies     bytes of living copies of `own` storages in another precision
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.copies = 0
        self.own: set[int] = set()
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        is_copy = function is torch.ops.aten._to_copy.default and not given.isdisjoint(self.own)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage(), given, is_copy=is_copy)
        return found

    def _note(self, storage: torch.UntypedStorage, given: set[int], *, is_copy: bool) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self._known or number in given:
            return
        self._known.add(number)
        self.now += size
        self.copies += size * is_copy
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, number, size, is_copy)

    def _forget(self, number: int, size: int, is_copy: bool) -> None:
        self._known.discard(number)
        self.now -= size
        self.copies -= size * is_copy


def step_memory(
    module: nn.Module,
    step: Callable[[nn.Module], Tensor],
    *,
    autocast: torch.dtype | None = None,
    with_gradient: bool = True,
) -> StepMemory:
    """Bytes of one step of a module, which may lie on any device (`meta` costs nothing) and is left as it is.

    step       what is done with a copy of the module that holds no numbers. It makes its inputs itself, by ordinary
               torch calls on the CPU, and must not ask for a value. Its result is differentiated
    autocast   precision of matrix products; None: that of the weights
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # half a second that --help need not wait for

    # On the "CPU" wherever the caller is: attention on `meta` would keep its scores, as no device does.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), LiveBytes() as live:
        # Handed to deepcopy as what is copied already, so no weight is.
        alike = {id(tensor): _without_numbers(tensor) for tensor in (*module.parameters(), *module.buffers())}
        stand_in = copy.deepcopy(module, dict(alike))
        live.own = {tensor.untyped_storage()._cdata for tensor in alike.values()}
        for parameter in stand_in.parameters():
            if parameter.requires_grad and with_gradient:
                parameter.grad = torch.empty_like(parameter)  # as from the second micro-batch on
        before = live.peak = live.now
        with torch.set_grad_enabled(with_gradient):
            # Leaving autocast empties its cache: what lives then is what the backward pass needs.
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                result = step(stand_in)
            alive, copies = live.now - before, live.copies
            if with_gradient:
                result.backward(torch.empty_like(result))
        return StepMemory(alive - copies, copies, live.peak - before - alive)


def step_of_blocks(measure: Callable[[tuple[int, ...]], StepMemory], depths: Sequence[int]) -> StepMemory:
    """The step of a model with so many blocks of each kind, from `measure(depths)` of models with few of them."""
    one = (1,) * len(depths)
    first = measure(one)
    kept, copies = first.kept, first.copies
    for kind, depth in enumerate(depths):
        more = measure(tuple(number + (kind == index) for index, number in enumerate(one))) if depth != 1 else first
        kept += (depth - 1) * (more.kept - first.kept)
        copies += (depth - 1) * (more.copies - first.copies)
    return StepMemory(kept, copies, first.workspace)


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
