"""Cross entropy of next tokens without ever holding all logits.

M target positions, D width, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits in memory at once: about half a gigabyte with their gradients.
CHUNK_ELEMENTS = 2**25

Head = Callable[[Tensor], Tensor]


def next_token_loss(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    parameters: tuple[Tensor, ...],
    *,
    vocab_size: int,
    z_loss: float = 0.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Summed cross entropy (scalar, float32) of targets (M,) from hidden states (M, D).

    head        (C, D) -> logits (C, V); its trainable `parameters` must be named, frozen ones cost nothing
    z_loss      weight of log(sum exp logits)^2, which keeps logits from growing
    Gradients are made in the same pass over the chunks, so that no logits are kept or made twice.
    """
    wants_grad = torch.is_grad_enabled()
    trained = tuple(parameter for parameter in parameters if parameter.requires_grad)
    step = max(1, chunk_elements // vocab_size)
    return _ChunkedLoss.apply(hidden, targets, head, z_loss, step, wants_grad, *trained)


@torch.no_grad()
def next_token_losses(
    hidden: Tensor, targets: Tensor, head: Head, *, vocab_size: int, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """Cross entropy (M,) float32 of every target."""
    step = max(1, chunk_elements // vocab_size)
    parts = zip(hidden.split(step), targets.split(step), strict=True)
    losses = [F.cross_entropy(head(part).float(), wanted, reduction="none") for part, wanted in parts]
    return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        z_loss: float,
        step: int,
        wants_grad: bool,
        *parameters: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.zeros_like(hidden)
        grads = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, hidden.shape[0], step):
            rows = slice(start, start + step)
            with torch.set_grad_enabled(wants_grad):
                part = hidden[rows].detach().requires_grad_(wants_grad)
                loss = _summed_loss(head(part), targets[rows], z_loss)
            total += loss.detach()
            if wants_grad:
                found = torch.autograd.grad(loss, (part, *parameters))
                grad_hidden[rows] = found[0]
                for grad, more in zip(grads, found[1:], strict=True):
                    grad += more
        ctx.grads = (grad_hidden, *grads) if wants_grad else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the loss of a batch can be differentiated once")
        grad_hidden, *grads = (grad.mul_(grad_total) for grad in ctx.grads)
        ctx.grads = None
        return grad_hidden, None, None, None, None, None, *grads


def _summed_loss(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    if z_loss > 0:
        loss = loss + z_loss * logits.logsumexp(-1).square().sum()
    return loss
