"""Counts the operators of a block of code, and notes those that make the host wait for the device."""

import sys

import torch
from torch.overrides import TorchFunctionMode
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
        self.largest = 0  # elements of any result

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        self.num_calls += 1
        if name in WAITING or (name == "aten::index" and any(_is_bool(index) for index in args[1])):
            self.waiting.append(name)
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.largest = max(self.largest, found.numel())
        return found


class BlockingCopies(TorchFunctionMode):
    """Names of calls that on a GPU would copy while the host waits: to a device without `non_blocking`, or from it.

    Seen on a CPU too, where they copy nothing: it is the call that tells.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[str] = []
        self.num_sent = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if "/torch/" in sys._getframe(1).f_code.co_filename:
            pass  # torch moves its own numbers between tensors of one device
        elif name == "to" and isinstance(kwargs.get("device", args[1] if len(args) > 1 else None), torch.device | str):
            self.num_sent += 1
            if not kwargs.get("non_blocking", len(args) > 3 and args[3]):
                self.blocking.append(f"to({args[1:]})")
        elif name in ("cpu", "cuda", "item", "tolist", "numpy", "__bool__", "__int__", "__float__"):
            self.blocking.append(name)
        elif name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            self.blocking.append(f"{name} with a device")
        return function(*args, **kwargs)


def _is_bool(index) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
