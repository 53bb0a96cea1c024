"""AdamW, and Muon for hidden matrices; clipping and skipping decided on the device."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from egom2p.config import NotNegative, Positive, Share, strict
from egom2p.training.parallel import is_sharded, local_part, part_like, sharded_like, whole_tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al.: steepest at zero, settles around 1
_NUM_ITERATIONS = 5  # as published: singular values down to 1e-3 of the norm get near 1; three products each
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
            alike: dict[Any, list[Tensor]] = {}
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                # Matrices of one shape go through their products together; sharded ones are gathered one by one.
                kind = number if is_sharded(parameter) else (parameter.shape, parameter.dtype, parameter.device)
                alike.setdefault(kind, []).append(parameter)
            for parameters in alike.values():
                _move(parameters, [self.state[p]["momentum_buffer"] for p in parameters], group, is_skipped)


def _move(
    parameters: Sequence[Tensor], momenta: Sequence[Tensor], group: dict[str, Any], is_skipped: Tensor | None
) -> None:
    """Move S matrices of one shape, S >= 1 (or what this rank holds of one)."""
    like = parameters[0]
    rows, columns = like.shape
    weights, momenta, gradients = (
        [local_part(tensor) for tensor in tensors]
        for tensors in (parameters, momenta, [parameter.grad for parameter in parameters])
    )
    weight_SRC, momentum_SRC, gradient_SRC = (torch.stack(tensors) for tensors in (weights, momenta, gradients))
    if is_skipped is not None:
        # The momentum moves towards itself, so it stays.
        gradient_SRC = torch.where(is_skipped, momentum_SRC, gradient_SRC)
    momentum_SRC.lerp_(gradient_SRC, 1 - group["momentum"])
    torch._foreach_copy_(momenta, list(momentum_SRC.unbind()))
    # Nesterov: the gradient as it would look after the momentum has moved once more.
    update_SRC = gradient_SRC.lerp_(momentum_SRC, group["momentum"])
    if is_sharded(like):
        whole = whole_tensor(sharded_like(update_SRC[0], like))
        direction_SRC = part_like(orthogonalised(whole), like)[None]
    else:
        direction_SRC = orthogonalised(update_SRC)
    # Orthonormal columns keep a norm, so over more rows the root mean square falls; the factor undoes that (Jordan).
    moved_SRC = (weight_SRC * (1 - group["lr"] * group["weight_decay"])).add_(
        direction_SRC.to(weight_SRC.dtype), alpha=-group["lr"] * math.sqrt(max(1, rows / columns))
    )
    if is_skipped is not None:
        moved_SRC = torch.where(is_skipped, weight_SRC, moved_SRC)
    torch._foreach_copy_(weights, list(moved_SRC.unbind()))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factors U V^T of matrices U S V^T, in bfloat16: singular values end between 0.5 and 1.5.

    matrices   (R, C) or (S, R, C)
    """
    if matrices.ndim == 2:
        return orthogonalised(matrices[None])[0]
    linear, cubic, quintic = _QUINTIC
    is_tall = matrices.shape[1] > matrices.shape[2]
    # Half precision will do: the direction matters, and the polynomial pulls what rounding moved back towards 1.
    wide = matrices.to(torch.bfloat16, copy=True)
    # The Gram matrix of the shorter side is the smaller one.
    wide = wide.mT if is_tall else wide
    # Frobenius, so no singular value exceeds 1.
    wide.div_(torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True).clamp(min=_EPS))
    for _ in range(_NUM_ITERATIONS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, polynomial, wide, beta=linear)
    return wide.mT if is_tall else wide


@strict
class OptimizerConfig:
    """AdamW for everything, Muon for the weights of linear layers and AdamW for the rest, or plain SGD (to compare).

    Weight decay acts on everything with two axes or more, never on norms and biases (timm's groups).
    Muon's matrices learn at `muon_lr_scale` times the scheduled rate; a rate of 1 is an update of spectral norm
    sqrt(max(1, rows / columns)).
    """

    kind: Literal["adamw", "muon", "sgd"] = "adamw"  # which one
    weight_decay: NotNegative = 0.05  # share of the rate by which weights shrink at each step
    weight_decay_end: NotNegative | None = None  # reached at the end of training along half a cosine; null: constant
    betas: tuple[Share, Share] = (0.9, 0.95)  # of the moments of AdamW
    eps: Positive = 1e-8  # of AdamW
    muon_lr_scale: Positive = 10.0
    muon_momentum: Share = 0.95  # of Muon
    clip_grad_norm: Positive | None = 1.0  # longer gradients are shortened to it; null: never
    skip_grad_norm: Positive | None = None  # steps with a larger gradient norm are skipped (and counted); null: none
    no_decay: tuple[str, ...] = ()  # further parameter names, wildcards allowed

    def __post_init__(self) -> None:
        if not all(value < 1 for value in (*self.betas, self.muon_momentum)):
            raise ValueError(f"betas and muon_momentum are in [0, 1), got {self.betas} and {self.muon_momentum}")


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


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
