"""AdamW with the published groups; clipping and skipping decided on the device."""

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from egom2p.config import strict


@strict
class OptimizerConfig:
    """AdamW. Weight decay acts on everything with two axes or more, never on norms and biases (timm's groups)."""

    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_grad_norm: float | None = 1.0
    no_decay: tuple[str, ...] = ()  # further parameter names, wildcards allowed

    def __post_init__(self) -> None:
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise ValueError(f"clip_grad_norm must be positive (null: no clipping), got {self.clip_grad_norm}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; its learning rate is set at every step.

    On the CPU the loop over tensors inside the fused kernel costs the same as the plain one but has no Python in it.
    """
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=config.no_decay)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def apply_gradients(optimizer: torch.optim.AdamW, *, learning_rate: float, clip_grad_norm: float | None) -> Tensor:
    """One step; returns the gradient norm before clipping, on the device.

    A step whose norm is not finite leaves weights and moments as they are. That decision is taken inside the fused
    kernel (`found_inf`, as for mixed precision), so the host never waits for it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.found_inf = torch.isfinite(norm).logical_not().to(torch.float32)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
