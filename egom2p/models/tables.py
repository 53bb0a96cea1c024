"""Which lines of the model's tables belong to which modality.

Tables of all modalities lie one below the other; partial loading and partial training want them apart.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from egom2p.contracts import ModalitySpec

_VOCABULARY_TABLES = (
    "encoder_embeddings.token_table",
    "decoder_embeddings.head_table",
    "decoder_embeddings.token_table",
)
_MODALITY_TABLE = "positions.modality_table"
_EMBEDDINGS = ("encoder_embeddings.", "decoder_embeddings.", "positions.")


def table_lines(name: str, specs: Sequence[ModalitySpec]) -> list[int] | None:
    """Lines of each modality in the table with this name; None for a parameter that all modalities share."""
    if name == _MODALITY_TABLE:
        return [1] * len(specs)
    return [spec.vocab_size for spec in specs] if name in _VOCABULARY_TABLES else None


def split_tables(state: Mapping[str, Tensor], specs: Sequence[ModalitySpec]) -> dict[str, Tensor]:
    """A state dict with every table cut into `name[modality]`; the pieces are views."""
    pieces: dict[str, Tensor] = {}
    for name, tensor in state.items():
        lines = table_lines(name, specs)
        if lines is None:
            pieces[name] = tensor
            continue
        if sum(lines) != tensor.shape[0]:
            raise ValueError(f"{name} has {tensor.shape[0]} lines, its modalities have {sum(lines)}")
        parts = tensor.split(lines)
        pieces |= {f"{name}[{spec.name}]": part for spec, part in zip(specs, parts, strict=True)}
    return pieces


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
    return chosen
