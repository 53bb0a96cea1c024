"""Sizes of an any-to-any model without its weights: it is made on the meta device, which holds no numbers."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from egom2p.anytoany.codebooks import codebook_sizes
from egom2p.anytoany.connectors import build_connector
from egom2p.anytoany.language.gated_layers import GatedCrossAttention
from egom2p.anytoany.language.language_model import model_settings
from egom2p.anytoany.language.language_tokenizer import load_text_tokenizer, reserved_tokens
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.anytoany.perception.tower import build_tower
from egom2p.layers.lora import attach_lora

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, and the shape of the language model's vocabulary.

    connector       gated layers in the language model included
    new_tokens      rows of reserved tokens and codebooks, which a frozen table cannot learn
    trained_towers  those of `towers` that train
    """

    language_model: int
    adapters: int
    connector: int
    towers: int
    trained_towers: int
    new_tokens: int
    width: int
    vocab_size: int


def size_of(config: AnyToAnyConfig) -> ModelSize:
    """Sizes of a configured model; of a pretrained one only `config.json` is read."""
    from transformers import AutoModelForCausalLM

    settings = settings_without_weights(config)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(settings)
    base = _count(lm)
    if config.adapt == "lora":
        with torch.device("meta"):
            attach_lora(lm, config.lora)
    towers = [build_tower(source, with_weights=False) for source in config.perception]
    width = lm.get_input_embeddings().weight.shape[1]
    with torch.device("meta"):
        connector = build_connector(
            config.connector,
            width=max(tower.width for tower in towers),
            out_width=config.connector.dim if config.connector.kind == "gated_xattn" else width,
            num_sources=sum(tower.num_sources for tower in towers),
        )
        if config.connector.kind == "gated_xattn":
            num_gated = settings.num_hidden_layers // config.connector.every
            layer = GatedCrossAttention(width, config.connector.dim, config.connector.num_heads)
            connector = nn.ModuleList([connector, *[copy.deepcopy(layer) for _ in range(num_gated)]])
    num_rows = len(reserved_tokens()) + sum(book.size for book in config.codebooks)
    has_head_rows = bool(config.codebooks) and lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight
    return ModelSize(
        language_model=base,
        adapters=_count(lm) - base,
        connector=_count(connector),
        towers=sum(_count(tower) for tower in towers),
        trained_towers=sum(p.numel() for tower in towers for p in tower.parameters() if p.requires_grad),
        new_tokens=0 if config.adapt == "full" else num_rows * width * (2 if has_head_rows else 1),
        width=width,
        vocab_size=settings.vocab_size,
    )


def settings_without_weights(config: AnyToAnyConfig) -> "PretrainedConfig":
    """transformers' config of the language model; of a pretrained one `config.json` is read.

    A described one has the tokenizer's vocabulary, where that lies in a folder here and no other size is given.
    """
    from transformers import AutoConfig

    settings = config.language_model
    if settings.pretrained is not None:
        return AutoConfig.from_pretrained(settings.pretrained, revision=settings.revision or "main")
    given = dict(settings.architecture or {})
    if "vocab_size" not in given and Path(settings.tokenizer_path).is_dir():
        codebooks = codebook_sizes(config.codebooks)
        return model_settings(given, load_text_tokenizer(settings.tokenizer_path, codebooks=codebooks))
    return AutoConfig.for_model(given.pop("model_type"), **given)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
