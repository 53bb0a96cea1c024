"""How much arithmetic a batch is for the language model: the numerator of model-FLOPs utilisation.

N positions, M positions with a label, D width, V vocabulary, E width of a head.
"""

from torch import nn

from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.types import LanguageBatch


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
