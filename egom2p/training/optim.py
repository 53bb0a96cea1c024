"""AdamW, and Muon for hidden matrices; clipping and skipping decided on the device."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egom2p.config import strict


@strict
class OptimizerConfig:
    """AdamW for everything, or Muon for the weights of linear layers and AdamW for the rest.

    Weight decay acts on everything with two axes or more, never on norms and biases (timm's groups).
    Muon's matrices learn at `muon_lr_scale` times the scheduled rate; a rate of 1 is an update of spectral norm
    sqrt(max(1, rows / columns)).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    muon_lr_scale: float = 10.0
    muon_momentum: float = 0.95
    clip_grad_norm: float | None = 1.0
    no_decay: tuple[str, ...] = ()  # further parameter names, wildcards allowed

    def __post_init__(self) -> None:
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise ValueError(f"clip_grad_norm must be positive (null: no clipping), got {self.clip_grad_norm}")
        if self.muon_lr_scale <= 0:
            raise ValueError(f"muon_lr_scale must be positive, got {self.muon_lr_scale}")


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for some matrices, AdamW for the other parameters, behind one optimizer's interface.

    The state of both lies in one table by parameter, so a checkpoint need not know there are two.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        # The parts act on these very groups and this very state.
        muon.param_groups = self.param_groups[: len(muon.param_groups)]
        adamw.param_groups = self.param_groups[len(muon.param_groups) :]
        muon.state = adamw.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step of both; where `found_inf` is 1, gradients count as 0 for Muon and AdamW stands still."""
        assert closure is None, "the loop computes gradients itself"
        muon, adamw = self.parts
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            gradients = [p.grad for group in muon.param_groups for p in group["params"] if p.grad is not None]
            for gradient in gradients:
                gradient.masked_fill_(found_inf.bool(), 0.0)
            adamw.found_inf = found_inf
        muon.step()
        adamw.step()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Optimizer over the trainable parameters; its learning rate is set at every step.

    On the CPU the loop over tensors inside the fused kernel costs the same as the plain one but has no Python in it.
    """
    # Imported here: it brings torchvision and torch's compiler along, seconds that `--help` need not wait for.
    from timm.optim import param_groups_weight_decay

    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=config.no_decay)
    if config.kind == "adamw":
        return _adamw(groups, config)
    linear = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer.weight.requires_grad}
    if not linear:
        raise ValueError("optimizer.kind is muon, but the model has no linear layer to train; choose adamw")
    muon = torch.optim.Muon(
        [parameter for parameter in model.parameters() if parameter in linear],
        lr=0.0,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
    )
    for group in muon.param_groups:
        group["lr_scale"] = config.muon_lr_scale
    rest = [{**group, "params": [p for p in group["params"] if p not in linear]} for group in groups]
    return MuonWithAdamW(muon, _adamw(rest, config))


def apply_gradients(optimizer: torch.optim.Optimizer, *, learning_rate: float, clip_grad_norm: float | None) -> Tensor:
    """One step; returns the gradient norm before clipping, on the device.

    A step whose norm is not finite leaves weights and moments as they are (Muon's matrices: as after a gradient of
    zero). That decision is taken on the device (`found_inf`, as for mixed precision), so the host never waits for it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    optimizer.found_inf = torch.isfinite(norm).logical_not().to(torch.float32)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
