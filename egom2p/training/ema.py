"""Moving average of weights (timm's), kept where the weights are: whole on every rank, or sharded as they are."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from egom2p.config import Share, strict
from egom2p.training.parallel import local_part, sharded_like
from egom2p.training.task import kept_state


@strict
class EmaConfig:
    """`average = decay * average + (1 - decay) * weights` after every step.

    warmup    the decay rises with the steps, 1 - (1 + steps)^(-2/3), up to `decay`
    evaluate  measure the average instead of the weights
    export    checkpoints and `final` offer the average as the model; training goes on from the weights either way
    """

    decay: Share  # how much of the average stays at each step
    warmup: bool = False
    evaluate: bool = True
    export: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"ema.decay must be between 0 and 1, got {self.decay}")


class Ema:
    """The average of everything that is kept of a model; whole numbers are copied."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        # Imported here: it brings torchvision along, seconds that `--help` need not wait for.
        from timm.utils import ModelEmaV3

        self.config = config
        self._average = ModelEmaV3(_parts(model), decay=config.decay, use_warmup=config.warmup)

    def update(self, model: nn.Module, step: int) -> None:
        """After the step with this number, the first being 1; the first average is a copy."""
        # timm moves all tensors in one fused call (foreach): a loop in Python costs more than the arithmetic.
        self._average.update(_parts(model), step=step)

    def restart(self, model: nn.Module) -> None:
        """Begin again from the present weights."""
        self._average.set(_parts(model))

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The average by name, in its own memory, sharded as the model is."""
        return {name: sharded_like(average, like) for (name, like), average in self._pairs(model)}

    @contextlib.contextmanager
    def put_into(self, model: nn.Module) -> Iterator[None]:
        """The model holds the average inside the block, and its own weights again after it."""
        pairs = [(local_part(tensor), average) for (_, tensor), average in self._pairs(model)]
        _swap(pairs)
        try:
            yield
        finally:
            # Backwards: of a tensor with two names (tied weights) the first name's average holds the weights.
            _swap(reversed(pairs))

    def _pairs(self, model: nn.Module) -> Iterator[tuple[tuple[str, Tensor], Tensor]]:
        return zip(kept_state(model).items(), self._average.module.state_dict().values(), strict=True)


@contextlib.contextmanager
def shown_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block `model.state_dict()` gives these tensors: whole ones of a sharded model, or an average.

    Tied weights may be among them under one name only; what is not among them stays what it is.
    """
    tied: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(parameter, []).append(name)
    shown = dict(tensors)
    for names in tied.values():
        found = next((tensors[name] for name in names if name in tensors), None)
        shown |= {} if found is None else {name: tensors.get(name, found) for name in names}

    def show(module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: dict) -> None:
        state.update({name: shown[name] for name in state if name in shown})

    handle = model.register_state_dict_post_hook(show)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _swap(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    # Tensor by tensor: a second whole copy of the model may not fit.
    for weights, average in pairs:
        kept = weights.clone()
        weights.copy_(average)
        average.copy_(kept)


def _parts(model: nn.Module) -> nn.Module:
    """What this rank holds of what is kept as a plain module, in the same memory: timm knows nothing of shards."""
    return nn.ParameterList(
        nn.Parameter(local_part(tensor), requires_grad=False) for tensor in kept_state(model).values()
    )
