"""AdamW, and Muon for hidden matrices; clipping and skipping decided on the device."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egom2p.config import strict
from egom2p.training.muon import Muon
from egom2p.training.sharded_tensors import local_part, whole_tensor


@strict
class OptimizerConfig:
    """AdamW for everything, Muon for the weights of linear layers and AdamW for the rest, or plain SGD (to compare).

    Weight decay acts on everything with two axes or more, never on norms and biases (timm's groups).
    Muon's matrices learn at `muon_lr_scale` times the scheduled rate; a rate of 1 is an update of spectral norm
    sqrt(max(1, rows / columns)).
    """

    kind: Literal["adamw", "muon", "sgd"] = "adamw"
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # reached at the end of training along half a cosine; null: constant
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    muon_lr_scale: float = 10.0
    muon_momentum: float = 0.95
    clip_grad_norm: float | None = 1.0
    skip_grad_norm: float | None = None  # steps with a larger gradient norm are skipped (and counted); null: none
    no_decay: tuple[str, ...] = ()  # further parameter names, wildcards allowed

    def __post_init__(self) -> None:
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise ValueError(f"clip_grad_norm must be positive (null: no clipping), got {self.clip_grad_norm}")
        if self.skip_grad_norm is not None and self.skip_grad_norm <= 0:
            raise ValueError(f"skip_grad_norm must be positive (null: never), got {self.skip_grad_norm}")
        if self.muon_lr_scale <= 0:
            raise ValueError(f"muon_lr_scale must be positive, got {self.muon_lr_scale}")


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for some matrices, AdamW for the other parameters, behind one optimizer's interface.

    The state of both lies in one table by parameter, so a checkpoint need not know there are two.
    """

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        # The parts act on these very groups and this very state.
        muon.param_groups = self.param_groups[: len(muon.param_groups)]
        adamw.param_groups = self.param_groups[len(muon.param_groups) :]
        muon.state = adamw.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step of both; where `found_inf` is 1, both stand still."""
        assert closure is None, "the loop computes gradients itself"
        muon, adamw = self.parts
        for part in self.parts:
            part.found_inf = getattr(self, "found_inf", None)
        muon.step()
        adamw.step()


class PlainSgd(torch.optim.SGD):
    """Weights minus rate times gradient, nothing else; where `found_inf` is 1 they stay."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        assert closure is None, "the loop computes gradients itself"
        is_skipped = self.__dict__.pop("found_inf", None)  # torch's plain step refuses to run while it is there
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for gradient in gradients if is_skipped is not None else ():
            local_part(gradient).masked_fill_(is_skipped.bool(), 0.0)
        super().step()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Optimizer over the trainable parameters; its learning rate is set at every step.

    On the CPU the loop over tensors inside the fused kernel costs the same as the plain one but has no Python in it.
    """
    # Imported here: it brings torchvision and torch's compiler along, seconds that `--help` need not wait for.
    from timm.optim import param_groups_weight_decay

    # Asked with 1: with 0 timm does not tell who decays, and the decay may rise later.
    groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=config.no_decay)
    for group in groups:
        group["is_decayed"] = group["weight_decay"] > 0
        group["weight_decay"] = config.weight_decay if group["is_decayed"] else 0.0
    groups = _split_by_rate(groups, model)
    if config.kind == "adamw":
        return _adamw(groups, config)
    if config.kind == "sgd":
        return PlainSgd([{**group, "weight_decay": 0.0, "is_decayed": False} for group in groups], lr=0.0)
    linear = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer.weight.requires_grad}
    if not linear:
        raise ValueError("optimizer.kind is muon, but the model has no linear layer to train; choose adamw")
    matrices = [
        {**group, "lr_scale": config.muon_lr_scale * group["lr_scale"]}
        for group in _chosen(groups, lambda parameter: parameter in linear)
    ]
    muon = Muon(matrices, lr=0.0, weight_decay=config.weight_decay, momentum=config.muon_momentum)
    rest = _chosen(groups, lambda parameter: parameter not in linear)
    return MuonWithAdamW(muon, _adamw(rest, config)) if rest else muon  # adapters (LoRA) are matrices only


def _split_by_rate(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Groups whose parameters share a factor on the learning rate; a model with `lr_multipliers` names those not 1."""
    named = dict(model.named_parameters())
    multipliers = model.lr_multipliers() if hasattr(model, "lr_multipliers") else {}
    factors = {named[name]: factor for name, factor in multipliers.items()}
    return [
        {**part, "lr_scale": rate}
        for rate in sorted({1.0, *factors.values()})
        for part in _chosen(groups, lambda parameter, rate=rate: factors.get(parameter, 1.0) == rate)
    ]


def _chosen(groups: list[dict[str, Any]], is_chosen: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """The groups with those of their parameters that are chosen; groups without any are left out."""
    parts = [{**group, "params": [p for p in group["params"] if is_chosen(p)]} for group in groups]
    return [part for part in parts if part["params"]]


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Set the weight decay of everything that decays at all."""
    for group in optimizer.param_groups:
        if group["is_decayed"]:
            group["weight_decay"] = weight_decay


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


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
