"""Models on disk, and the names of the published checkpoints.

A model directory holds `model.safetensors` and `model.json`:
{"model": ModelConfig, "modalities": [ModalitySpec, ...], "tokenizers": {name: path relative to the directory, or id},
"generation": Recommendation, where there is one, "about": what people want to know}. A model, here, has `config` and
`specs`, and names its parameters as EgoM2P does; how one is made of a directory stands beside it
(`egom2p_model.load_model`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.config import from_plain, to_plain
from egom2p.contracts import ModalitySpec, plain_name
from egom2p.models.sampling import Recommendation
from egom2p.storage import atomic_directory, check_finite, check_sizes, load_json, load_tensors, save_json, save_tensors
from egom2p.storage.atomic import with_pretrained
from egom2p.storage.hub import fetch

_VOCABULARY_TABLES = (
    "encoder_embeddings.token_table",
    "decoder_embeddings.head_table",
    "decoder_embeddings.token_table",
)
_MODALITY_TABLE = "positions.modality_table"
_PATCHES = "encoder_embeddings.patches."


_WEIGHTS, _CARD = "model.safetensors", "model.json"


def save_model(
    model: nn.Module,
    directory: str | Path,
    tokenizers: Mapping[str, str] | None = None,
    *,
    recommended: Recommendation | None = None,
) -> None:
    """Write a model directory atomically. `tokenizers`: modality -> path relative to the directory, or hub id."""
    with atomic_directory(directory) as unfinished:
        write_model_files(model, unfinished, tokenizers, recommended=recommended)


def write_model_files(
    model: nn.Module,
    directory: Path,
    tokenizers: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
    recommended: Recommendation | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """The two files of a model directory, into a folder that the caller makes atomic (a checkpoint).

    dtype   how weights are stored, e.g. float16 to publish them; None: as they are. `load_model` reads every one
    state   weights under the model's names instead of its own, e.g. averaged or merged ones
    recommended   how these weights were measured; not that of weights they were made from
    about   plain values for people and for the model card: licence, training data, progress, measurements
    """
    state = model.state_dict() if state is None else state
    stored = {name: _stored_as(dtype, name, tensor) for name, tensor in state.items()}
    check_finite(stored, where=f"{directory / _WEIGHTS} is not written")
    save_tensors(directory / _WEIGHTS, stored)
    card = {
        "model": to_plain(model.config),
        "modalities": [spec.to_dict() for spec in model.specs],
        "tokenizers": dict(tokenizers or {}),
        **({} if recommended is None else {"generation": to_plain(recommended)}),
        "about": dict(about or {}),
    }
    save_json(directory / _CARD, card)


def read_model_files(directory: str | Path) -> tuple[dict[str, Any], tuple[ModalitySpec, ...], dict[str, Tensor]]:
    """Plain values of the config, modalities and weights of a model directory, as they lie there."""
    directory = Path(directory)
    card, specs = _load_card(directory), card_specs(directory)
    check_sizes(card["model"], directory / _WEIGHTS, where=f"{directory / _CARD}: model")
    tensors = load_tensors(directory / _WEIGHTS)
    check_finite(tensors, where=directory / _WEIGHTS)
    return card["model"], specs, tensors


def card_specs(directory: str | Path) -> tuple[ModalitySpec, ...]:
    """Modalities of a model directory, by its card alone; ValueError names file and key."""
    where = f"{Path(directory) / _CARD}: modalities"
    values = _load_card(Path(directory))["modalities"]
    specs = tuple(ModalitySpec.from_dict(value, f"{where}[{number}]") for number, value in enumerate(values))
    if len({spec.name for spec in specs}) < len(specs) or not specs:
        raise ValueError(f"{where} are {[spec.name for spec in specs]}, wanted one or several of different names")
    return specs


def recommendation(directory: str | Path) -> Recommendation | None:
    """How the model of a directory is to be asked, by its card; ValueError names file and key."""
    values = _load_card(Path(directory)).get("generation")
    where = f"{Path(directory) / _CARD}: generation"
    return None if values is None else from_plain(Recommendation, values, where=where)


def about_model(directory: str | Path) -> dict[str, Any]:
    """What the card of a model directory says for people; nothing where it is no mapping."""
    about = _load_card(Path(directory)).get("about")
    return about if isinstance(about, dict) else {}


def find_model(location: str | Path) -> Path:
    """The model directory that a location means: itself, the `final` or newest checkpoint of a run, or a Hub id.

    FileNotFoundError says where was looked.
    """
    folder = fetch(location)
    checkpoints = sorted((folder / "checkpoints").glob("step-*"), reverse=True)
    for candidate in (folder, folder / "final", *checkpoints):
        if (candidate / _CARD).is_file():
            return candidate
    raise FileNotFoundError(f"{folder}: no {_CARD} here, in final/ or in checkpoints/; is this a model or a run?")


def tokenizer_locations(directory: str | Path) -> dict[str, str]:
    """Modality -> folder of its tokenizer (made absolute where it exists beside the model), or hub id."""
    directory = with_pretrained(directory)
    named = _load_card(directory)["tokenizers"]
    beside = {name: directory / location for name, location in named.items()}
    return {name: str(path.resolve()) if path.exists() else named[name] for name, path in beside.items()}


def from_reference_state_dict(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights that carry the published names; every one must fit, none may be missing.

    Ignored: position tables and the zero biases of norms without bias (both fixed), and tied copies.
    """
    remaining = dict(tensors)
    state: dict[str, Tensor] = {}
    for ours, theirs, shape in _reference_names(model):
        missing = [name for name in theirs if name not in remaining]
        if missing:
            raise ValueError(f"the reference weights have no {missing[0]}")
        state[ours] = torch.cat([remaining.pop(name).reshape(-1, shape[-1]) for name in theirs]).reshape(shape)
    unknown = [name for name, tensor in remaining.items() if not _is_redundant(name, tensor)]
    if unknown:
        raise ValueError(f"the model has no parameter for the reference weights {', '.join(unknown[:5])}")
    load_strictly(model, state, source="the reference weights")


def to_reference_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights under the published names, with tied copies, without fixed tables."""
    state = model.state_dict()
    named: dict[str, Tensor] = {}
    for ours, theirs, _ in _reference_names(model):
        lines = table_lines(ours, model.specs)
        parts = (state[ours],) if lines is None else state[ours].split(lines)
        named.update(zip(theirs, parts, strict=True))
    for name in [name for name in named if name.endswith("mod_emb")]:
        named[name] = named[name][None]
        named[name.replace("encoder_", "decoder_", 1)] = named[name]
    for name in [name for name in named if name.endswith("to_logits.weight")]:
        if model.config.share_embeddings:
            named[name.replace("to_logits", "token_emb")] = named[name]
    for name in ("mask_token", "register_tokens"):
        if name in named:
            named[name] = named[name][None]
    return named


def _reference_names(model: nn.Module) -> Iterator[tuple[str, list[str], torch.Size]]:
    """(our name, published names whose lines make it up, our shape) of every parameter."""
    tables = {
        "positions.modality_table": "encoder_embeddings.{}.mod_emb",
        "encoder_embeddings.token_table": "encoder_embeddings.{}.token_emb.weight",
        "decoder_embeddings.head_table": "decoder_embeddings.{}.to_logits.weight",
        "decoder_embeddings.token_table": "decoder_embeddings.{}.token_emb.weight",
    }
    singles = {
        "decoder_embeddings.mask_token": "mask_token",
        "encoder_embeddings.register_tokens": "register_tokens",
    }
    for name, parameter in model.named_parameters():
        if name in tables:
            yield name, [tables[name].format(modality) for modality in model.modalities], parameter.shape
        else:
            yield name, [singles.get(name, name)], parameter.shape


def _stored_as(dtype: torch.dtype | None, name: str, tensor: Tensor) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    stored = tensor.detach().to(dtype)
    if not torch.isfinite(stored).all():
        raise ValueError(f"{name} reaches {tensor.abs().max().item():.3g}, which {dtype} cannot hold")
    return stored


def _is_redundant(name: str, tensor: Tensor) -> bool:
    is_fixed = name.endswith(".pos_emb") or (name.endswith("norm.bias") and not tensor.any())
    is_fixed |= name.endswith(("norm1.bias", "norm2.bias")) and not tensor.any()
    return is_fixed or (name.startswith("decoder_embeddings.") and name.endswith(("mod_emb", "token_emb.weight")))


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights under the model's own names; ValueError names `source` and the first that does not fit."""
    wanted = model.state_dict()
    for name in wanted.keys() | state.keys():
        found_shape = tuple(state[name].shape) if name in state else "nothing"
        wanted_shape = tuple(wanted[name].shape) if name in wanted else "nothing"
        if found_shape != wanted_shape:
            raise ValueError(f"{source}: {name} should be {wanted_shape}, found {found_shape}")
    model.load_state_dict(dict(state))


def _load_card(directory: Path) -> dict[str, Any]:
    card = load_json(directory / _CARD)
    where = directory / _CARD
    for key, kind in (("model", dict), ("modalities", list)):
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise ValueError(f"{where}: no {key!r} that is a {kind.__name__}; is this a model directory?")
    tokenizers = card.setdefault("tokenizers", {})
    if not isinstance(tokenizers, dict) or not all(isinstance(location, str) for location in tokenizers.values()):
        raise ValueError(f"{where}: `tokenizers` is {tokenizers!r}, wanted modality -> folder or id of the Hub")
    for name in tokenizers:
        plain_name(name, "modality", where)
    return card


def table_lines(name: str, specs: Sequence[ModalitySpec]) -> list[int] | None:
    """Lines of each modality in the table with this name; None for a parameter that all modalities share."""
    if name == _MODALITY_TABLE:
        return [1] * len(specs)
    return [spec.vocab_size for spec in specs] if name in _VOCABULARY_TABLES else None


def owner(name: str) -> str | None:
    """The modality to which a parameter (or a piece of `split_tables`) belongs alone; None where it is shared."""
    if name.startswith(_PATCHES):
        return name.removeprefix(_PATCHES).partition(".")[0]
    return name.partition("[")[2].rstrip("]") or None


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
        pieces |= {f"{name}[{spec.name}]": part for spec, part in zip(specs, parts, strict=True) if len(part)}
    return pieces
