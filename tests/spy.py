"""Counts the operators of a block of code, and notes those that make the host wait for the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
# In inference mode the same questions are asked by these names.
WAITING += ("aten::item", "aten::is_nonzero")


class Spy(TorchDispatchMode):
    """Names of operators that make the host wait, in the order they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.num_calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        self.num_calls += 1
        if name in WAITING or (name == "aten::index" and any(_is_bool(index) for index in args[1])):
            self.waiting.append(name)
        return function(*args, **(kwargs or {}))


def _is_bool(index) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
