"""How much arithmetic a batch is, from its lengths on the CPU: the numerator of model-FLOPs utilisation.

N, M input and target rows, D width, C hidden width of an MLP, V vocabulary.
"""

from collections.abc import Sequence

from egom2p.contracts import PackedBatch
from egom2p.models.egom2p_model import ModelConfig

# The backward pass multiplies twice for each product of the forward pass.
_TRAINING = 3


def forward_flops(config: ModelConfig, vocab_sizes: Sequence[int], batch: PackedBatch) -> int:
    """Floating-point operations (two per multiply-add) of the matrix products of one forward pass.

    Only what the model needs counts: no padding, filler, recomputation, norms or lookups. Attention counts every pair
    of rows of a segment, also where it is causal.
    """
    width, hidden = config.dim, config.mlp_dim
    mlp = (3 if config.activation == "swiglu" else 2) * width * hidden
    encoder_row = 4 * width**2 + mlp
    decoder_row = 6 * width**2 + mlp  # self-attention, and queries and output of cross-attention
    context_row = 2 * width**2 * config.decoder_depth + width**2  # keys and values, and the projection of the context
    inputs, targets = batch.clip_lengths
    products = sum(inputs) * (encoder_row * config.encoder_depth + context_row)
    products += sum(targets) * decoder_row * config.decoder_depth
    products += width * sum(rows * size for rows, size in zip(batch.head_counts, vocab_sizes, strict=True))
    pairs = config.encoder_depth * sum(rows * rows for rows in inputs)
    pairs += config.decoder_depth * sum(rows * rows for rows in batch.modality_lengths)
    pairs += config.decoder_depth * sum(m * n for m, n in zip(targets, inputs, strict=True))
    return 2 * products + 4 * width * pairs


def training_flops(config: ModelConfig, vocab_sizes: Sequence[int], batch: PackedBatch) -> int:
    """The same with the backward pass."""
    return _TRAINING * forward_flops(config, vocab_sizes, batch)
