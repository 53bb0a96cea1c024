"""Sizes of an any-to-any model without its weights, made on the meta device, which holds no numbers; its arithmetic.

R rows of T positions, D width, V vocabulary, E width of a head.
"""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from egom2p.anytoany.codebooks import codebook_sizes
from egom2p.anytoany.connectors import build_connector
from egom2p.anytoany.language import packed_attention
from egom2p.anytoany.language.gated_layers import GatedCrossAttention
from egom2p.anytoany.language.language_model import model_settings
from egom2p.anytoany.language.language_tokenizer import load_text_tokenizer, reserved_tokens
from egom2p.anytoany.language.packaged_model import origin_of
from egom2p.anytoany.model import AnyToAny, AnyToAnyConfig
from egom2p.anytoany.perception.build_perception import build_tower
from egom2p.anytoany.types import LanguageBatch
from egom2p.layers.attention import AttentionLayout
from egom2p.layers.lora import LoraConfig, attach_lora
from egom2p.layers.step_memory import StepMemory, step_memory, step_of_blocks

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
        lm = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
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
    """transformers' config of the language model; of a pretrained one `config.json` is read, or `sizes` where it is
    not here or a stand-in lies in its place.

    A described one has the tokenizer's vocabulary, where that lies in a folder here and no other size is given.
    """
    from transformers import AutoConfig

    settings = config.language_model
    if settings.pretrained is not None:
        if settings.sizes is not None and not _is_here(settings.pretrained):
            sizes = dict(settings.sizes)
            return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        revision = settings.revision or "main"
        return AutoConfig.from_pretrained(settings.pretrained, revision=revision, trust_remote_code=False)
    given = dict(settings.architecture or {})
    if "vocab_size" not in given and Path(settings.tokenizer_path).is_dir():
        codebooks = codebook_sizes(config.codebooks)
        return model_settings(given, load_text_tokenizer(settings.tokenizer_path, codebooks=codebooks))
    return AutoConfig.for_model(given.pop("model_type"), **given)


def _is_here(pretrained: str) -> bool:
    origin = origin_of(pretrained)
    return (Path(pretrained) / "config.json").is_file() and not (origin is not None and origin.stand_in)


def block_memory(
    settings: "PretrainedConfig",
    *,
    rows: int,
    positions: int,
    dtype: torch.dtype,
    lora: LoraConfig | None,
    is_full: bool,
    is_mixed: bool,
    recompute: bool,
) -> StepMemory:
    """Bytes of the blocks of a language model in a training step on R = rows of T = positions.

    dtype    of the weights          lora      adapters of a frozen model; None: none
    is_full  whether all of it trains   is_mixed  whether matrix products are made in bfloat16 by autocast
    With recomputed blocks (`recompute`) what one block keeps is workspace.
    """

    def forward(decoder: nn.Module) -> Tensor:
        embeddings_RTD = torch.empty(rows, positions, settings.hidden_size, dtype=dtype, requires_grad=True)
        offsets = torch.arange(rows + 1, dtype=torch.int32) * positions
        return decoder(
            inputs_embeds=embeddings_RTD,
            position_ids=torch.zeros(rows, positions, dtype=torch.int64),
            attention_mask=embeddings_RTD.new_zeros(1, 1, 1, 1),
            use_cache=False,
            layout=AttentionLayout.within(offsets, (positions,) * rows, is_causal=True),
        ).last_hidden_state

    @functools.cache
    def of_few(depths: tuple[int, ...]) -> StepMemory:
        decoder = _decoder_without_weights(settings, depths[0], dtype, lora, is_full)
        return step_memory(decoder, forward, autocast=torch.bfloat16 if is_mixed else None)

    depth = settings.num_hidden_layers
    whole = step_of_blocks(of_few, [depth])
    if not recompute:
        return whole
    none, one = (step_of_blocks(of_few, [number]) for number in (0, 1))
    block_input = rows * positions * settings.hidden_size * dtype.itemsize
    return StepMemory(none.kept + depth * block_input, whole.copies, one.workspace + one.kept - none.kept)


def _decoder_without_weights(
    settings: "PretrainedConfig", num_blocks: int, dtype: torch.dtype, lora: LoraConfig | None, is_full: bool
) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = settings.to_dict() | {"num_hidden_layers": num_blocks}
    if values.get("layer_types") is not None:
        values["layer_types"] = values["layer_types"][:num_blocks]
    fewer = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(
            fewer, dtype=dtype, attn_implementation=packed_attention.register(), trust_remote_code=False
        )
        lm.requires_grad_(is_full)
        if lora is not None:
            attach_lora(lm, lora)
    return lm.base_model.train()


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class LanguageFlops:
    """Floating-point operations (two per multiply-add) of training on a batch, forward and backward.

    Made when it is settled what trains. A product with a weight costs as much again for the gradient of its input, and
    once more for that of the weight where it trains; attention costs three times its forward pass. Positions that hold
    no token, recomputation, norms and lookups do not count, nor do perception and connector, which are small beside a
    language model: what they cost makes the utilisation seem lower, never higher.
    """

    def __init__(self, model: AnyToAny) -> None:
        blocks, config = model.foreign_blocks(), model.lm.config.get_text_config()
        matrices = [weight for block in blocks for weight in block.parameters() if weight.dim() == 2]  # adapters too
        self._per_position = _numbers(matrices)
        head = model.lm.get_output_embeddings().weight
        self._per_label = _numbers([head])
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._per_pair = len(blocks) * config.num_attention_heads * head_dim

    def training(self, batch: LanguageBatch) -> int:
        """Every pair of positions of a conversation counts, masked or not. 0: the lengths are not known."""
        if batch.row_lengths is None:
            return 0
        pairs = sum(length * length for row in batch.row_lengths for length in row)
        products = batch.num_tokens * self._per_position + batch.num_targets * self._per_label
        return 2 * products + 3 * 4 * self._per_pair * pairs


def _numbers(weights: list[nn.Parameter]) -> int:
    """Numbers multiplied per row, forward and backward."""
    return sum(weight.numel() * (3 if weight.requires_grad else 2) for weight in weights)
