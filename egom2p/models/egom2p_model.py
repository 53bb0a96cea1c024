"""EgoM2P: a masked encoder-decoder transformer over discrete tokens of several modalities.

B clips, K modalities, N input rows and M target rows of all clips, D width.

The encoder sees the input tokens of a clip; the decoder asks for the target positions of the same clip with mask
tokens, sees the other targets of the same modality and, by cross-attention, the whole encoder output. In a sequence
(text) the decoder is fed the previous token and looks back only. Mathematics as published (4M, EgoM2P).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from egom2p.config import Count, Natural, NotNegative, Positive, Share, from_plain, strict
from egom2p.contracts import LossOutput, ModalitySpec, PackedBatch
from egom2p.layers.attention import AttentionLayout, MixedLayout
from egom2p.layers.blocks import (
    BlockConfig,
    DecoderBlock,
    EncoderBlock,
    draw_branch_scale,
    initialize_linear,
    layer_norm,
    spread_over_rows,
)
from egom2p.layers.padding import inverse_permutation, permute_rows
from egom2p.models.decoder_embeddings import DecoderEmbeddings
from egom2p.models.encoder_embeddings import EncoderEmbeddings, PositionEmbedding
from egom2p.models.losses import modality_cross_entropy, product_dtype, row_cross_entropy
from egom2p.models.weights import load_strictly, read_model_files
from egom2p.storage.hub import fetch


@strict
class ModelConfig(BlockConfig):
    """Size and options of EgoM2P; defaults are the published ones.

    drop_path        rate of stochastic depth in the last block of each side; rises linearly from 0 in the first
    position_period, position_scale   of the sin-cos positions; small grids learn faster with a shorter period
    embedding_std    of token, modality, register and mask embeddings at the start
    input_embedding_std   the same for all of them but the heads' table, where given: at 0.02 tokens enter far weaker
                     than positions (root mean square 0.7). Made little difference where measured (docs/LOG.md)
    causal_decoder   targets see only earlier targets of their modality (a published variant)
    """

    encoder_depth: Count  # blocks of the encoder
    decoder_depth: Count  # blocks of the decoder
    num_registers: Natural = 0  # learned tokens that the encoder sees beside the inputs
    drop_path: Share = 0.0
    share_embeddings: bool = True  # heads are the decoder's token embeddings
    position_period: Positive = 10000.0
    position_scale: Positive = 1.0
    embedding_std: NotNegative = 0.02
    input_embedding_std: NotNegative | None = None
    causal_decoder: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_path == 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")


class EgoM2P(nn.Module):
    """`specs` fix the order of the modalities; a batch must be collated in that order.

    uses_all_parameters   every parameter has a gradient, if zero, from any batch: ranks need not add zeros to them
    """

    uses_all_parameters = True

    def __init__(self, config: ModelConfig, specs: tuple[ModalitySpec, ...]) -> None:
        super().__init__()
        self.config = config
        self.specs = tuple(specs)
        self.modalities = tuple(spec.name for spec in specs)
        self.positions = PositionEmbedding(
            specs, config.dim, period=config.position_period, scale=config.position_scale
        )
        self.encoder_embeddings = EncoderEmbeddings(specs, config.dim, num_registers=config.num_registers)
        self.decoder_embeddings = DecoderEmbeddings(specs, config.dim, share=config.share_embeddings)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = layer_norm(config.dim, use_bias=config.use_bias)
        self.decoder_proj_context = nn.Linear(config.dim, config.dim)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = layer_norm(config.dim, use_bias=config.use_bias)
        self.compiles_loss = False  # set where blocks are compiled
        self._initialize()

    @staticmethod
    def from_pretrained(
        id_or_path: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "EgoM2P":
        """`load_model` under the name that users of the Hub expect."""
        return load_model(id_or_path, device, revision=revision)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.decoder_embeddings.vocab_sizes

    def forward(self, batch: PackedBatch, *, generator: torch.Generator | None = None) -> LossOutput:
        """Summed cross entropy and number of targets of every modality.

        `generator` draws stochastic depth; without it torch's own state does.
        """
        context_ND = self.encode(batch, generator=generator)
        return self.token_losses(batch, self.decode(batch, context_ND, generator=generator))

    def token_losses(self, batch: PackedBatch, hidden: Tensor) -> LossOutput:
        """The same from decoder states (M, D)."""
        hidden_MD, target_ids_M = self._modality_major(batch, hidden)
        sums_K = modality_cross_entropy(
            hidden_MD,
            self.decoder_embeddings.head_table,
            target_ids_M,
            counts=batch.head_counts,
            vocab_sizes=self.vocab_sizes,
            is_compiled=self.compiles_loss,
        )
        return LossOutput(sums=sums_K, counts=batch.head_counts, names=self.modalities)

    @torch.no_grad()
    def row_losses(self, batch: PackedBatch) -> Tensor:
        """Cross entropy (M,) float32 in nats of every target row, in the order of the batch."""
        hidden_MD, target_ids_M = self._modality_major(batch, self.decode(batch, self.encode(batch)))
        losses_M = row_cross_entropy(
            hidden_MD,
            self.decoder_embeddings.head_table,
            target_ids_M,
            counts=batch.head_counts,
            vocab_sizes=self.vocab_sizes,
        )
        return losses_M.index_select(0, inverse_permutation(batch.head_order))

    def encoder_output(
        self, batch: PackedBatch, *, layer: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Encoder states (N, D), registers included: after the final norm, or after so many blocks (0: embeddings)."""
        return self._run_encoder(batch, generator, layer)[0]

    def encode(self, batch: PackedBatch, *, generator: torch.Generator | None = None) -> Tensor:
        """Context (N, D): what the decoder's cross-attention sees."""
        hidden_ND, positions_ND = self._run_encoder(batch, generator)
        return self.decoder_proj_context(hidden_ND) + positions_ND

    def decode(self, batch: PackedBatch, context: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Decoder states (M, D) after the final norm, in the order of the batch's target rows."""
        queries_MD = self.decoder_embeddings(batch.query_ids, batch.target_modality)
        hidden_MD = queries_MD + self.positions(batch.target_position, batch.target_modality)
        self_layout = self._target_layout(batch)
        cross_layout = AttentionLayout(
            batch.target_offsets, batch.input_offsets, batch.target_lengths, batch.input_lengths
        )
        for number, block in enumerate(self.decoder):
            scale_M3 = self._branch_scale(number, len(self.decoder), 3, batch.target_offsets, hidden_MD, generator)
            hidden_MD = block(hidden_MD, context, self_layout, cross_layout, scale_M3)
        return self.decoder_norm(hidden_MD)

    def logits(self, hidden: Tensor, modality: int) -> Tensor:
        """(..., D) -> (..., V) of the modality with this index."""
        return self.decoder_embeddings.logits(hidden, modality)

    def _run_encoder(
        self, batch: PackedBatch, generator: torch.Generator | None, layer: int | None = None
    ) -> tuple[Tensor, Tensor]:
        if batch.modalities != self.modalities:
            raise ValueError(f"the batch holds modalities {batch.modalities}, the model knows {self.modalities}")
        positions_ND = self.positions(batch.input_position, batch.input_modality)
        patches = (batch.patch_values, batch.patch_rows)
        tokens_ND = self.encoder_embeddings(batch.input_ids, batch.input_modality, batch.input_offsets, *patches)
        hidden_ND = tokens_ND + positions_ND
        layout = AttentionLayout.within(batch.input_offsets, batch.input_lengths)
        for number, block in enumerate(self.encoder[:layer]):
            scale_N2 = self._branch_scale(number, len(self.encoder), 2, batch.input_offsets, hidden_ND, generator)
            hidden_ND = block(hidden_ND, layout, scale_N2)
        return self.encoder_norm(hidden_ND) if layer is None else hidden_ND, positions_ND

    def _target_layout(self, batch: PackedBatch) -> AttentionLayout | MixedLayout:
        """Targets see targets of their clip and modality; inside a sequence only earlier ones."""
        if self.config.causal_decoder or not self.decoder_embeddings.has_sequences:
            return AttentionLayout.within(
                batch.segment_offsets, batch.segment_lengths, is_causal=self.config.causal_decoder
            )
        num_modalities = len(self.specs)
        lengths_BK = batch.segment_offsets.diff().view(-1, num_modalities)
        parts = []
        for number, spec in enumerate(self.specs):
            offsets = nn.functional.pad(lengths_BK[:, number].cumsum(0, dtype=torch.int32), (1, 0))
            lengths = batch.segment_lengths[number::num_modalities]
            parts.append(AttentionLayout.within(offsets, lengths, is_causal=spec.kind == "sequence"))
        return MixedLayout(batch.head_order, inverse_permutation(batch.head_order), tuple(parts))

    def _modality_major(self, batch: PackedBatch, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
        order_M = batch.head_order
        # Narrowed first: the heads multiply in that precision, and half as many bytes are put in order.
        narrow_MD = hidden_MD.to(product_dtype(hidden_MD))
        ordered_MD = permute_rows(narrow_MD, order_M, inverse_permutation(order_M))
        num_real = sum(batch.head_counts)  # the rest is the tail of a batch of fixed shape
        ordered_MD = ordered_MD if num_real == len(ordered_MD) else ordered_MD[:num_real]
        return ordered_MD, batch.target_ids.index_select(0, order_M)[:num_real].long()

    def _branch_scale(
        self,
        number: int,
        depth: int,
        num_branches: int,
        offsets: Tensor,
        rows: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor | None:
        rate = self.config.drop_path * number / max(depth - 1, 1)
        if not self.training or rate == 0:
            return None
        scale = draw_branch_scale(offsets.shape[0] - 1, num_branches, rate, device=rows.device, generator=generator)
        return spread_over_rows(scale, offsets, rows.shape[0])

    def _initialize(self) -> None:
        """Xavier-uniform projections and normal embeddings, as 4M; norms 1 and biases 0."""
        self.apply(initialize_linear)
        nn.init.xavier_uniform_(self.decoder_proj_context.weight)
        nn.init.zeros_(self.decoder_proj_context.bias)
        head_std, input_std = self.config.embedding_std, self.config.input_embedding_std
        input_std = head_std if input_std is None else input_std
        embeddings = (self.positions, self.encoder_embeddings, self.decoder_embeddings)
        for parameter in (parameter for module in embeddings for parameter in module.parameters()):
            nn.init.normal_(parameter, std=input_std)
        nn.init.normal_(self.decoder_embeddings.head_table, std=head_std)
        for embedding in self.encoder_embeddings.patches.values():
            # Of unit variance, near that of the positions they are added to.
            nn.init.normal_(embedding.weight, std=embedding.weight.shape[1] ** -0.5)
            nn.init.zeros_(embedding.bias)


def load_model(id_or_path: str | Path, device: torch.device | str = "cpu", *, revision: str | None = None) -> EgoM2P:
    """The model of a directory, or of a repository `owner/name` of the Hub (`storage.hub.fetch` says how).

    In evaluation mode, with float32 weights however they are stored. Errors name the file.
    """
    directory = fetch(id_or_path, revision=revision)
    config, specs, state = read_model(directory)
    model = EgoM2P(config, specs)
    load_strictly(model, state, source=str(Path(directory) / "model.safetensors"))
    return model.to(device).eval()


def read_model(directory: str | Path) -> tuple[ModelConfig, tuple[ModalitySpec, ...], dict[str, Tensor]]:
    """Config, modalities and weights of a model directory, without a model made of them."""
    values, specs, state = read_model_files(directory)
    return from_plain(ModelConfig, values, where=str(Path(directory) / "model.json")), specs, state
