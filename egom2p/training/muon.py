"""Muon (Jordan et al. 2024) for whole matrices and for matrices of which every rank holds some rows.

The arithmetic of `torch.optim.Muon`. Orthogonalising needs the whole matrix: a sharded one is gathered, one at a time,
and every rank keeps its own rows of the result. A step can be skipped by a flag on the device.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from egom2p.training.sharded_tensors import local_part, part_like, sharded_like, whole_tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al.: steepest at zero, settles around 1
_NUM_ITERATIONS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; weight decay apart from it. Matrices only.

    A rate of 1 is an update of spectral norm sqrt(max(1, rows / columns)). Where the attribute `found_inf` is 1,
    weights and momentum stay as they are to the bit; the host never asks for its value.
    """

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"muon trains matrices only, found a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step of every matrix that has a gradient."""
        assert closure is None, "the loop computes gradients itself"
        found_inf = getattr(self, "found_inf", None)
        is_skipped = None if found_inf is None else found_inf.bool()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                _move(parameter, state["momentum_buffer"], group, is_skipped)


def _move(parameter: Tensor, momentum_buffer: Tensor, group: dict[str, Any], is_skipped: Tensor | None) -> None:
    weight, momentum, gradient = (local_part(tensor) for tensor in (parameter, momentum_buffer, parameter.grad))
    if is_skipped is not None:
        # The momentum moves towards itself, so it stays.
        gradient = torch.where(is_skipped, momentum, gradient)
    momentum.lerp_(gradient, 1 - group["momentum"])
    update = sharded_like(gradient.lerp(momentum, group["momentum"]), parameter)
    direction = part_like(orthogonalised(whole_tensor(update)), parameter).to(weight.dtype)
    rows, columns = parameter.shape
    moved = (weight * (1 - group["lr"] * group["weight_decay"])).add_(
        direction, alpha=-group["lr"] * math.sqrt(max(1, rows / columns))
    )
    weight.copy_(moved if is_skipped is None else torch.where(is_skipped, weight, moved))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal factor U V^T of a matrix U S V^T, in bfloat16: singular values end between 0.5 and 1.5."""
    linear, cubic, quintic = _QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.to(torch.bfloat16, copy=True)
    wide = wide.T if is_tall else wide
    wide.div_(wide.norm().clamp(min=_EPS))  # Frobenius, so no singular value exceeds 1
    for _ in range(_NUM_ITERATIONS):
        gram = wide @ wide.T
        polynomial = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.addmm(wide, polynomial, wide, beta=linear)
    return wide.T if is_tall else wide
