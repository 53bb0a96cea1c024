"""The any-to-any model on disk, and as a plain language model.

A directory holds
  anytoany.json            the config it was made with
  parts.safetensors        connector, new token rows, gated layers, what is trained of the perception towers
  familiarity.safetensors  what the training's perception features were like, where a run wrote it
  origin.json              where the pretrained language model came from, as its folder says
  adapter_config.json, adapter_model.safetensors   LoRA in peft's format: loads on the base model with plain peft
  tokenizer/               with reserved tokens and chat template
  codebooks.json           where the codes of modalities lie in the vocabulary
  language_model/          the whole language model, where it was trained in full or made from a description
  perception/<number>/     the EgoM2P checkpoint of a source, tokenizers included; or tower.safetensors, an image tower
The base model of an adapter is not copied: the config names its folder or Hub id. Nor is a frozen image tower that timm
downloads.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.packaged_model import origin_of, save_origin
from egom2p.anytoany.model import AnyToAny, AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.source import PerceptionConfig, TokenConfig, TrainableSource, VectorsConfig
from egom2p.anytoany.perception.timm_frames import plain_tower_state
from egom2p.config import from_plain, to_plain
from egom2p.layers.lora import adapter_settings, has_lora, load_lora_state, lora_state, merge_lora
from egom2p.models.weights import tokenizer_locations
from egom2p.storage import atomic_directory, check_finite, copy_file, load_json, load_tensors, save_json, save_tensors
from egom2p.storage.atomic import with_pretrained
from egom2p.tokenizers.pretrained import copy_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CARD, _PARTS, _CODEBOOKS = "anytoany.json", "parts.safetensors", "codebooks.json"
_ADAPTER, _ADAPTER_CARD = "adapter_model.safetensors", "adapter_config.json"
_LANGUAGE_MODEL, _TOKENIZER, _PERCEPTION = "language_model", "tokenizer", "perception"
_TOWER = "tower.safetensors"


def save_anytoany(model: AnyToAny, directory: str | Path) -> None:
    """Write a directory atomically."""
    with atomic_directory(directory) as unfinished:
        write_anytoany_files(model, unfinished)


def write_anytoany_files(model: AnyToAny, folder: Path) -> None:
    """The files of a directory, into a folder that the caller makes atomic (a checkpoint)."""
    config, state = model.config, model.state_dict()
    check_finite(state, where=f"{folder} is not written")
    of_lm = {name.removeprefix("lm."): tensor for name, tensor in state.items() if name.startswith("lm.")}
    save_json(folder / _CARD, {"config": to_plain(config)})
    save_tensors(folder / _PARTS, {name: state[name] for name in _own_parts(model)})
    save_json(folder / _CODEBOOKS, model.codebooks.to_plain())
    origin = None if config.language_model.pretrained is None else origin_of(config.language_model.pretrained)
    if origin is not None:
        save_origin(folder, origin)
    model.tokenizer.save_pretrained(folder / _TOKENIZER)
    if has_lora(model.lm):
        settings = adapter_settings(model.lm)
        settings |= {"base_model_name_or_path": config.language_model.pretrained, "task_type": "CAUSAL_LM"}
        save_json(folder / _ADAPTER_CARD, settings | {"inference_mode": True})
        save_tensors(folder / _ADAPTER, lora_state(model.lm, of_lm), {"format": "pt"})
    if config.adapt == "full" or config.language_model.pretrained is None:
        _write_language_model(model.lm, of_lm, folder / _LANGUAGE_MODEL)
    for number, source in enumerate(config.perception):
        if isinstance(source, TokenConfig) and source.checkpoint is not None:
            _copy_checkpoint(with_pretrained(source.checkpoint), folder / _PERCEPTION / str(number))
        elif source.gives_pixels and (source.train != "frozen" or source.tower_weights is not None):
            start = f"towers.{number}."
            tower = {name.removeprefix(start): state[name] for name in state if name.startswith(start)}
            target = folder / _PERCEPTION / str(number)
            target.mkdir(parents=True)
            save_tensors(target / _TOWER, plain_tower_state(tower))


def load_anytoany(directory: str | Path, *, device: torch.device | str = "cpu", live_encoder: bool = False) -> AnyToAny:
    """The model of a directory on a device, in evaluation mode. ValueError names the file that does not fit.

    live_encoder   a model trained on exported states of an encoder gets the encoder itself, and perceives ids
    """
    directory = Path(directory)
    config = load_config_of(directory)
    if live_encoder:
        config = replace(config, perception=tuple(_live(source) for source in config.perception))
    with torch.random.fork_rng(devices=[]):  # what is drawn for a start is overwritten
        model = build_anytoany(config, device=device)
    found, wanted = load_json(directory / _CODEBOOKS), model.codebooks.to_plain()
    if found != wanted:
        raise ValueError(f"{directory / _CODEBOOKS}: says {found!r:.200}, the tokenizer and config mean {wanted}")
    _load_parts(model, load_tensors(directory / _PARTS), source=directory / _PARTS)
    if has_lora(model.lm):
        load_lora_state(model.lm, load_tensors(directory / _ADAPTER))
    check_finite(model.state_dict(), where=directory)
    return model.eval()


def is_anytoany(directory: str | Path) -> bool:
    """Whether a directory is one of an any-to-any model; others (and ids of the Hub) may be plain language models."""
    return (Path(directory) / _CARD).is_file()


def load_plain(pretrained: str | Path, *, device: torch.device | str = "cpu") -> AnyToAny:
    """A language model of transformers as one that is asked without media; nothing of it is changed."""
    dtype = "bfloat16" if torch.device(device).type == "cuda" else "float32"
    config = AnyToAnyConfig(
        language_model=LanguageModelConfig(pretrained=str(pretrained), dtype=dtype),
        perception=(VectorsConfig(width=1),),
        adapt="frozen",
    )
    return build_anytoany(config, device=device)


def run_folder_of(directory: str | Path) -> Path | None:
    """The training run that wrote a directory, as its `final` or as a checkpoint; None where it lies elsewhere."""
    runs = (
        folder
        for folder in list(Path(directory).parents)[:2]
        if (folder / "config.json").is_file() or (folder / "log.jsonl").is_file()
    )
    return next(runs, None)


def load_config_of(directory: str | Path) -> AnyToAnyConfig:
    """The config of a directory, with what it holds itself in place of the paths it was made from."""
    directory = Path(directory)
    file = directory / _CARD
    if not file.is_file():
        raise ValueError(f"{directory}: no {_CARD}; wanted a directory that save_anytoany wrote")
    card = load_json(file)
    if not isinstance(card, dict) or "config" not in card:
        raise ValueError(f"{file}: no `config`; wanted the settings of a model")
    config = from_plain(AnyToAnyConfig, card["config"], where=str(file))
    if not (directory / _TOKENIZER).is_dir():
        raise ValueError(f"{directory}: no folder {_TOKENIZER}; wanted a directory that save_anytoany wrote")
    language_model = replace(config.language_model, tokenizer=str(directory / _TOKENIZER), chat_template="own")
    if (directory / _LANGUAGE_MODEL).is_dir():
        language_model = replace(
            language_model, pretrained=str(directory / _LANGUAGE_MODEL), architecture=None, revision=None
        )
    copies = [directory / _PERCEPTION / str(number) for number in range(len(config.perception))]
    perception = tuple(_with_copy(source, copy) for source, copy in zip(config.perception, copies, strict=True))
    return replace(config, language_model=language_model, perception=perception)


def _live(source: PerceptionConfig) -> PerceptionConfig:
    """A source that computes its features in the model."""
    return replace(source, precomputed=False) if isinstance(source, TrainableSource) else source


def _with_copy(source: PerceptionConfig, copy: Path) -> PerceptionConfig:
    """The source with what a directory holds of it."""
    if (copy / _TOWER).is_file():
        return replace(source, tower_weights=str(copy / _TOWER))
    return replace(source, checkpoint=str(copy)) if copy.is_dir() else source


@torch.no_grad()
def merge_into_plain(model: AnyToAny) -> "PreTrainedModel":
    """The language model alone, adapters folded in and new tokens in its own tables, for plain transformers.

    The model itself is used up: its language model is the result. ValueError with gated layers, which no plain
    language model has.
    """
    if model.gated is not None:
        raise ValueError("a model with gated_xattn cannot become a plain language model; choose another connector")
    lm = merge_lora(model.lm) if has_lora(model.lm) else model.lm
    if model.new_tokens is not None:
        _add_rows(lm, model)
    lm.set_attn_implementation("sdpa")
    lm.requires_grad_(False)
    return lm.eval()


def save_merged(model: AnyToAny, directory: str | Path) -> None:
    """Merge (see `merge_into_plain`) and write a folder that AutoModelForCausalLM and AutoTokenizer read."""
    lm = merge_into_plain(model)
    with atomic_directory(directory) as unfinished:
        lm.save_pretrained(unfinished)
        model.tokenizer.save_pretrained(unfinished)


def _own_parts(model: AnyToAny) -> dict[str, Tensor]:
    """Everything but the language model and what is frozen of the towers."""
    # Its buffers too: a factor set once, from weights that training moves.
    connector = {f"connector.{name}": tensor for name, tensor in model.connector.state_dict().items()}
    return connector | {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("lm.") and (parameter.requires_grad or not name.startswith("towers."))
    }


@torch.no_grad()
def _load_parts(model: AnyToAny, state: Mapping[str, Tensor], *, source: Path) -> None:
    wanted = _own_parts(model)
    for name in sorted(wanted.keys() | state.keys()):
        found_shape = tuple(state[name].shape) if name in state else "nothing"
        wanted_shape = tuple(wanted[name].shape) if name in wanted else "nothing"
        if found_shape != wanted_shape:
            raise ValueError(f"{source}: {name} should be {wanted_shape}, found {found_shape}")
        wanted[name].copy_(state[name])


def _add_rows(lm: "PreTrainedModel", model: AnyToAny) -> None:
    new, first = model.new_tokens, model.media_id
    assert new is not None
    end = first + new.rows.shape[0]
    if lm.get_input_embeddings().weight.shape[0] < end:
        lm.resize_token_embeddings(end, mean_resizing=False)
    table, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    table.weight[first:end] = new.rows.to(table.weight.dtype)
    emitted = new.emitted_rows()
    if head.weight is not table.weight:
        head.weight[first:end] = 0.0 if emitted is None else emitted.to(head.weight.dtype)
        if getattr(head, "bias", None) is not None:
            head.bias[first:end] = 0.0
    if emitted is None:
        # The model never learned when not to say these.
        lm.generation_config.suppress_tokens = list(range(first, end))


def _write_language_model(lm: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Base weights under their own names, whether or not adapters hang on them."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if not any(part.startswith("lora_") for part in name.split("."))
    }
    lm.save_pretrained(folder, state_dict=state)


def _copy_checkpoint(source: Path, target: Path) -> None:
    """A model directory with its tokenizers inside; files are linked where the file system can."""
    target.mkdir(parents=True)
    card = load_json(source / "model.json")
    folders = {name: Path(folder) for name, folder in tokenizer_locations(source).items()}
    copy_file(source / "model.safetensors", target / "model.safetensors")
    for name, folder in folders.items():
        if folder.is_dir():
            copy_tokenizer(folder, target / "tokenizers" / name)
            card["tokenizers"][name] = f"tokenizers/{name}"
    save_json(target / "model.json", card)
