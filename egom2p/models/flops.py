"""How much arithmetic a batch is, from its lengths on the CPU: the numerator of model-FLOPs utilisation.

N, M input and target rows, D width, V vocabulary.
"""

from collections.abc import Sequence

from torch import nn

from egom2p.contracts import PackedBatch
from egom2p.models.egom2p_model import EgoM2P


class ModelFlops:
    """Floating-point operations (two per multiply-add) of the matrix products that a model needs for a batch.

    Made when it is settled what of the model trains, adapters included. A product with a weight costs as much again
    for the gradient of its input, and once more for that of the weight where it trains; one of two activations
    (attention) costs three times its forward pass in any case. No padding, filler, recomputation, norms or lookups
    count. Attention counts every pair of rows of a segment, also where it is causal.
    """

    def __init__(self, model: EgoM2P) -> None:
        config = model.config
        self._width, self._vocab_sizes = config.dim, model.vocab_sizes
        self._depths = config.encoder_depth, config.decoder_depth
        linear = [(name, layer.weight) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        self._all = _per_row(linear)
        self._trained = _per_row([(name, weight) for name, weight in linear if weight.requires_grad])
        self._trains_heads = model.decoder_embeddings.head_table.requires_grad

    def forward(self, batch: PackedBatch) -> int:
        """Of one forward pass."""
        return self._products(batch, self._all) + self._heads(batch) + self._attention(batch)

    def training(self, batch: PackedBatch) -> int:
        """The same with the backward pass."""
        weights = self._products(batch, self._trained) + (self._heads(batch) if self._trains_heads else 0)
        return 2 * self.forward(batch) + self._attention(batch) + weights

    def _products(self, batch: PackedBatch, per_row: tuple[int, int]) -> int:
        return 2 * sum(sum(lengths) * size for lengths, size in zip(batch.clip_lengths, per_row, strict=True))

    def _heads(self, batch: PackedBatch) -> int:
        rows = zip(batch.head_counts, self._vocab_sizes, strict=True)
        return 2 * self._width * sum(count * size for count, size in rows)

    def _attention(self, batch: PackedBatch) -> int:
        inputs, targets = batch.clip_lengths
        encoder_depth, decoder_depth = self._depths
        pairs = encoder_depth * sum(rows * rows for rows in inputs)
        pairs += decoder_depth * sum(rows * rows for rows in batch.modality_lengths)
        pairs += decoder_depth * sum(m * n for m, n in zip(targets, inputs, strict=True))
        return 4 * self._width * pairs


def _per_row(linear: Sequence[tuple[str, nn.Parameter]]) -> tuple[int, int]:
    """Numbers of the weights that each input row, and each target row, is multiplied with."""
    # Keys and values of cross-attention are made of input rows, as the context is.
    reads_targets = [name.startswith("decoder.") and ".cross_attn.kv" not in name for name, _ in linear]
    sizes = [weight.numel() for _, weight in linear]
    of_targets = sum(size for size, is_target in zip(sizes, reads_targets, strict=True) if is_target)
    return sum(sizes) - of_targets, of_targets
