"""A first phase in which only new parts of a model train and the rest stands still to the bit.

For adding modalities to a trained model: their embeddings and heads learn first, then everything does.
Wherever nothing trains there is no gradient, so no optimizer touches it (no decay, no moments). In tables of which only
some lines train, the other lines are put back after each step.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from egom2p.config import Positive, strict
from egom2p.contracts import ModalitySpec
from egom2p.models.weights import owner, table_lines
from egom2p.training.parallel import local_part, part_like

_EMBEDDINGS = ("encoder_embeddings.", "decoder_embeddings.", "positions.")


@strict
class FrozenConfig:
    """How long (in the unit of the run's length) only a part of the model trains, and which.

    train   `embeddings`: embeddings and heads of all modalities; or modalities whose embeddings and heads train
    """

    until: Positive  # end of the phase, in the unit of the length of the run
    train: tuple[str, ...] | Literal["embeddings"] = "embeddings"

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("frozen.train names no modality")


class FrozenPhase:
    """Holds parts of a model still for as long as it is asked to.

    trained   parameter name -> None (all of it trains), or which of its lines train, (V,) bool; what is not named
              stands still
    """

    def __init__(self, trained: Mapping[str, Tensor | None], *, until: float) -> None:
        self.until = until
        self._trained = dict(trained)
        self._held: dict[str, tuple[Tensor, Tensor]] = {}  # name -> numbers of the lines that stand still, and they

    @torch.no_grad()
    def hold_gradients(self, model: nn.Module) -> None:
        """Before a step: nothing that stands still has a gradient; of tables in part, it is 0."""
        for name, parameter in model.named_parameters():
            if name not in self._trained:
                parameter.grad = None
            elif self._trained[name] is not None:
                if name not in self._held:
                    lines = _lines(~self._trained[name], parameter)
                    self._held[name] = lines, local_part(parameter.detach()).index_select(0, lines)
                if parameter.grad is not None:
                    local_part(parameter.grad).index_fill_(0, self._held[name][0], 0.0)

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """After a step: lines that stand still are as they were before the first one."""
        for name, (lines, values) in self._held.items():
            local_part(model.get_parameter(name).detach()).index_copy_(0, lines, values)

    def forget(self) -> None:
        """The phase is over: give its memory back."""
        self._held.clear()


def _lines(chosen_V: Tensor, parameter: nn.Parameter) -> Tensor:
    """Numbers of the chosen lines within the part of the table that this rank holds. Waits for the device."""
    chosen_VD = chosen_V.to(parameter.device)[:, None].expand(parameter.shape).contiguous()
    return part_like(chosen_VD, parameter)[:, 0].nonzero()[:, 0]


def trained_lines(
    model: nn.Module, specs: Sequence[ModalitySpec], train: Sequence[str] | Literal["embeddings"]
) -> dict[str, Tensor | None]:
    """Parameters that train when only embeddings and heads do: all (`embeddings`), or those of some modalities.

    Returns name -> None (all of it) or (V,) bool, which of its lines. ValueError for a modality that there is not.
    """
    names = [name for name, _ in model.named_parameters()]
    if train == "embeddings":
        return {name: None for name in names if name.startswith(_EMBEDDINGS)}
    known = [spec.name for spec in specs]
    if unknown := sorted(set(train) - set(known)):
        raise ValueError(f"frozen.train names {unknown}, the modalities are {known}")
    chosen: dict[str, Tensor | None] = {}
    for name in names:
        lines = table_lines(name, specs)
        if lines is not None:
            parts = [torch.full((count,), spec.name in train) for spec, count in zip(specs, lines, strict=True)]
            chosen[name] = torch.cat(parts)
        elif owner(name) in train:
            chosen[name] = None
    return chosen
