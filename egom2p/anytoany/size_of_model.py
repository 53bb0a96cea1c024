"""Sizes of an any-to-any model without its weights: it is made on the meta device, which holds no numbers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egom2p.anytoany.connectors import build_connector
from egom2p.anytoany.language_model import LanguageModelConfig
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.anytoany.perception.tower import build_tower
from egom2p.layers.lora import attach_lora


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, and the shape of the language model's blocks."""

    language_model: int
    adapters: int
    connector: int
    towers: int
    in_blocks: int
    width: int
    mlp_width: int
    num_heads: int
    kv_width: int
    num_blocks: int
    vocab_size: int


def size_of(config: AnyToAnyConfig) -> ModelSize:
    """Sizes of a configured model; of a pretrained one only `config.json` is read."""
    from transformers import AutoModelForCausalLM

    settings = _settings(config.language_model)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(settings)
    base = _count(lm)
    blocks = sum(parameter.numel() for name, parameter in lm.named_parameters() if ".layers." in name)
    if config.adapt == "lora":
        with torch.device("meta"):
            attach_lora(lm, config.lora)
    towers = [build_tower(source) for source in config.perception]
    width = lm.get_input_embeddings().weight.shape[1]
    with torch.device("meta"):
        connector = build_connector(
            config.connector,
            width=max(tower.width for tower in towers),
            out_width=config.connector.dim if config.connector.kind == "gated_xattn" else width,
            num_sources=sum(tower.num_sources for tower in towers),
        )
    heads = settings.num_attention_heads
    head_width = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    return ModelSize(
        language_model=base,
        adapters=_count(lm) - base,
        connector=_count(connector),
        towers=sum(_count(tower) for tower in towers),
        in_blocks=blocks,
        width=width,
        mlp_width=settings.intermediate_size,
        num_heads=heads,
        kv_width=(getattr(settings, "num_key_value_heads", None) or heads) * head_width,
        num_blocks=settings.num_hidden_layers,
        vocab_size=settings.vocab_size,
    )


def _settings(config: LanguageModelConfig) -> Any:
    from transformers import AutoConfig

    if config.pretrained is not None:
        return AutoConfig.from_pretrained(config.pretrained, revision=config.revision or "main")
    given = dict(config.architecture or {})
    return AutoConfig.for_model(given.pop("model_type"), **given)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
