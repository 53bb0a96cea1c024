"""The any-to-any model: what is perceived becomes tokens among the text, and a causal language model goes on.

R rows of T positions, M positions with a label, N feature rows of I media items, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.anytoany.codebooks import CodebookConfig, Codebooks, NewTokens, codebook_sizes
from egom2p.anytoany.connectors import ConnectorConfig, build_connector, match_scale
from egom2p.anytoany.language.gated_layers import GatedLayers, media_memory
from egom2p.anytoany.language.language_model import (
    LanguageModelConfig,
    head_logits,
    load_language_model,
    next_token_loss,
    next_token_losses,
)
from egom2p.anytoany.language.language_tokenizer import load_text_tokenizer, media_id
from egom2p.anytoany.language.packed_attention import packed_hidden, packed_layout
from egom2p.anytoany.perception.build_perception import build_tower
from egom2p.anytoany.perception.source import FeatureRows, PerceptionConfig, source_of_kind
from egom2p.anytoany.splice import splice
from egom2p.anytoany.types import NO_LOSS, LanguageBatch
from egom2p.config import NotNegative, strict
from egom2p.contracts import LossOutput
from egom2p.layers.lora import LoraConfig, attach_lora, has_lora
from egom2p.layers.padding import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PUBLISHED_LORA = LoraConfig(rank=8, alpha=16.0, target_modules=("q_proj", "v_proj"))


@strict
class AnyToAnyConfig:
    """Everything the model is made of.

    adapt        of the language model: `lora` (settings below), `full`, or `frozen`
    perception   sources; with several, each names the kinds of media it serves
    codebooks    modalities in the vocabulary, which the model may say
    z_loss       weight of log(sum exp logits)^2; with codebooks 1e-4 keeps their logits from growing
    connector_lr, new_token_lr, perception_lr   factors on the learning rate of these parts; LoRA or the language model
                 have factor 1
    """

    language_model: LanguageModelConfig
    connector: ConnectorConfig = ConnectorConfig()
    perception: tuple[PerceptionConfig, ...]
    codebooks: tuple[CodebookConfig, ...] = ()
    adapt: Literal["lora", "full", "frozen"] = "lora"
    lora: LoraConfig = field(default_factory=lambda: PUBLISHED_LORA)
    z_loss: NotNegative = 0.0
    connector_lr: NotNegative = 1.0
    new_token_lr: NotNegative = 1.0
    perception_lr: NotNegative = 1.0

    def __post_init__(self) -> None:
        if not self.perception:
            raise ValueError("perception names no source")
        if self.adapt == "full" and self.language_model.dtype != "float32":
            raise ValueError(
                "training the whole language model needs language_model.dtype float32 (steps of AdamW vanish below "
                "bfloat16's resolution); run it under training.dtype bfloat16 instead"
            )
        if self.adapt == "full" and self.connector.num_words:
            raise ValueError(
                "connector.num_words keeps embeddings of words as they are, which adapt: full would change"
            )
        if self.adapt == "lora" and self.lora.also_train and self.language_model.dtype != "float32":
            raise ValueError("lora.also_train trains weights of the base, which needs language_model.dtype float32")


class AnyToAny(nn.Module):
    """`lm` is a plain causal language model of transformers; nothing of it is replaced, adapters apart."""

    def __init__(self, config: AnyToAnyConfig, lm: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.media_id = media_id(tokenizer)
        self.codebooks = Codebooks.of_tokenizer(config.codebooks, tokenizer)
        self.lm = lm
        table = lm.get_input_embeddings()
        self.new_tokens = self._new_tokens(table)
        self.towers = nn.ModuleList(build_tower(source) for source in config.perception)
        widths = [tower.width for tower in self.towers]
        self._first_source = np.cumsum([0, *(tower.num_sources for tower in self.towers)]).tolist()
        is_alone = len(self.towers) == 1
        self.projections = nn.ModuleList(
            nn.Identity() if is_alone else nn.Linear(width, max(widths)) for width in widths
        )
        self.gated: GatedLayers | None = None
        width = table.weight.shape[1]
        is_gated = config.connector.kind == "gated_xattn"
        self.connector = build_connector(
            config.connector,
            width=max(widths),
            out_width=config.connector.dim if is_gated else width,
            num_sources=self._first_source[-1],
        )
        if is_gated:
            self.media_mark = nn.Parameter(table.weight.detach().float().mean(0))
            self.gated = GatedLayers(
                _blocks(lm),
                width=width,
                memory_width=config.connector.dim,
                num_heads=config.connector.num_heads,
                every=config.connector.every,
            )
        else:
            match_scale(self.connector, table.weight)
        self._choose_trained()
        self.to(lm.device)

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        if self.new_tokens is not None and self.new_tokens.is_emitted:
            return self.new_tokens.first + self.new_tokens.rows.shape[0]
        return self.lm.get_output_embeddings().weight.shape[0]

    def forward(self, batch: LanguageBatch) -> LossOutput:
        """Summed next-token loss over the labels, and their number."""
        hidden_MD, labels_M = self._labelled(batch)
        total = next_token_loss(
            hidden_MD,
            labels_M,
            self.logits,
            self._head_parameters(),
            vocab_size=self.vocab_size,
            z_loss=self.config.z_loss,
        )
        return LossOutput(sums=total[None], counts=(batch.num_targets,), names=("text",))

    @torch.no_grad()
    def token_losses(self, batch: LanguageBatch) -> Tensor:
        """Cross entropy (M,) float32 in nats of every label, in reading order."""
        hidden_MD, labels_M = self._labelled(batch)
        return next_token_losses(hidden_MD, labels_M, self.logits, vocab_size=self.vocab_size)

    def hidden(self, batch: LanguageBatch) -> Tensor:
        """Hidden states (R, T, D) of packed rows; no conversation sees another."""
        embeddings_RTD = self.embed(batch)
        return packed_hidden(self.lm.base_model, embeddings_RTD, batch.positions, packed_layout(batch))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        rows = None if self.new_tokens is None else self.new_tokens.emitted_rows()
        return head_logits(self.lm, hidden, new_rows=rows, first_new=self.media_id)

    def embed(self, batch: LanguageBatch) -> Tensor:
        """Embeddings (R, T, D): text as the language model has it, media as perceived."""
        embeddings_RTD = self.embed_ids(batch.ids)
        if not batch.kinds:
            if self.gated is not None:
                self.gated.look_at(None)
            return embeddings_RTD
        return splice(
            embeddings_RTD,
            self.perceive(batch),
            ids=batch.ids,
            media_id=self.media_id,
            media_rows=batch.media_rows,
            media_starts=batch.media_starts,
            media_lengths=batch.media_lengths,
        )

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(..., D) of ids (...), new tokens included."""
        table = self.lm.get_input_embeddings()
        return table(ids) if self.new_tokens is None else self.new_tokens.embed(table, ids)

    def perceive(self, batch: LanguageBatch) -> Tensor:
        """Perception tokens (positions of all media items, D), item after item."""
        rows = self._features(batch)
        counts = batch.media_lengths.tolist()
        if self.gated is None:
            return self.connector(rows, counts)
        num_tokens = self.config.connector.max_tokens
        memory = self.connector(rows, [num_tokens] * len(counts))
        self.gated.look_at(media_memory(memory, batch, num_tokens))
        return self.media_mark.expand(sum(counts), -1)

    def lr_multipliers(self) -> dict[str, float]:
        """Factor on the learning rate of every trained parameter whose factor is not 1, by name."""
        config = self.config
        parts = {
            "connector.": config.connector_lr,
            "projections.": config.connector_lr,
            "gated.": config.connector_lr,
            "media_mark": config.connector_lr,
            "new_tokens.": config.new_token_lr,
            "towers.": config.perception_lr,
        }
        trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        factors = {name: next((f for start, f in parts.items() if name.startswith(start)), 1.0) for name in trained}
        return {name: factor for name, factor in factors.items() if factor != 1.0}

    def foreign_blocks(self) -> nn.ModuleList:
        """The language model's blocks, which run in every pass."""
        return _blocks(self.lm)

    def state_to_keep(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, tied weights once: frozen ones come from the files the model was made from.

        A base that was drawn is kept too: another version of torch may draw another.
        """
        is_drawn = self.config.language_model.pretrained is None
        kept = {
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or (is_drawn and name.startswith("lm."))
        }
        others = {name for name, _ in self.named_parameters(remove_duplicate=False)} - kept
        return {name: tensor for name, tensor in self.state_dict().items() if name not in others}

    def _features(self, batch: LanguageBatch) -> FeatureRows:
        """What the connector gets: each media item through the tower of its source."""
        lengths = tuple(batch.feature_offsets.diff().tolist())
        if len(lengths) != len(batch.kinds) or len(lengths) != len(batch.media_lengths):
            found = f"{len(lengths)} perception features and {len(batch.media_lengths)} spans"
            raise ValueError(f"{found} for {len(batch.kinds)} media items; wanted one of each")
        numbers = [source_of_kind(self.config.perception, kind) for kind in batch.kinds]
        if len(self.towers) == 1:
            rows = FeatureRows(batch.features, batch.position, batch.source, lengths)
            return FeatureRows(self.towers[0](rows), batch.position, batch.source, lengths)
        features_NW, source_N = None, batch.source
        owner_N = np.repeat(numbers, lengths)
        for number in sorted(set(numbers)):
            positions_N = to_device(np.flatnonzero(owner_N == number), batch.features.device)
            own = [length for length, used in zip(lengths, numbers, strict=True) if used == number]
            part = self._seen_by(number, batch, positions_N, own)
            if features_NW is None:
                features_NW = part.new_zeros(len(owner_N), part.shape[1])
            features_NW = features_NW.index_copy(0, positions_N, part)
            source_N = source_N.index_add(
                0, positions_N, source_N.new_full((len(positions_N),), self._first_source[number])
            )
        assert features_NW is not None
        return FeatureRows(features_NW, batch.position, source_N, lengths)

    def _seen_by(self, number: int, batch: LanguageBatch, positions_N: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features of some of the rows by one tower, in the width that all share."""
        width = self.towers[number].row_width
        if batch.features.shape[1] < width:
            raise ValueError(f"rows of {batch.features.shape[1]} numbers, source {number} needs {width}")
        # A batch has one width: narrower perception features are padded with zeros.
        features = batch.features[positions_N, :width]
        rows = FeatureRows(features, batch.position[positions_N], batch.source[positions_N], tuple(lengths))
        return self.projections[number](self.towers[number](rows))

    def _labelled(self, batch: LanguageBatch) -> tuple[Tensor, Tensor]:
        """Hidden states (M, D) and labels (M,) of the positions that have one, gathered before the head."""
        hidden_ND, labels_N = self.hidden(batch).flatten(0, 1), batch.labels.flatten()
        positions_M = torch.nonzero_static(labels_N != NO_LOSS, size=batch.num_targets)[:, 0]
        torch._assert_async((labels_N != NO_LOSS).sum() == batch.num_targets, "num_targets differs from the labels")
        return hidden_ND[positions_M], labels_N[positions_M].long()

    def _head_parameters(self) -> tuple[Tensor, ...]:
        new = None if self.new_tokens is None else self.new_tokens.emitted_rows()
        own = tuple(self.lm.get_output_embeddings().parameters())
        return own if new is None else (*own, new)

    def _new_tokens(self, table: nn.Embedding) -> NewTokens | None:
        """A frozen table cannot learn the reserved tokens; nor can one that ends before them hold them."""
        if self.config.adapt == "full" and table.weight.shape[0] >= len(self.tokenizer):
            return None
        return NewTokens(
            table,
            self.lm.get_output_embeddings(),
            first=self.media_id,
            count=len(self.tokenizer) - self.media_id,
            is_emitted=bool(self.config.codebooks),
        )

    def _choose_trained(self) -> None:
        self.lm.requires_grad_(self.config.adapt == "full")
        if self.config.adapt == "lora" and not has_lora(self.lm):
            attach_lora(self.lm, self.config.lora)


def build_anytoany(config: AnyToAnyConfig, *, device: torch.device | str = "cpu") -> AnyToAny:
    """The model with the language model's weights on `device`, in evaluation mode.

    What is new is drawn from torch's default generators.
    """
    settings = config.language_model
    tokenizer = load_text_tokenizer(
        settings.tokenizer_path, template=settings.chat_template, codebooks=codebook_sizes(config.codebooks)
    )
    lm = load_language_model(settings, tokenizer, device=device)
    return AnyToAny(config, lm, tokenizer).eval()


def _blocks(lm: "PreTrainedModel") -> nn.ModuleList:
    """The blocks of a language model: its longest list of modules."""
    lists = [module for module in lm.base_model.modules() if isinstance(module, nn.ModuleList)]
    depth = getattr(lm.config, "num_hidden_layers", None)
    found = [blocks for blocks in lists if len(blocks) == depth]
    if not found:
        raise ValueError(f"{type(lm).__name__}: found no list of its {depth} blocks")
    return found[0]
