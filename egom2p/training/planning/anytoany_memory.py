"""What a configured run of the any-to-any model takes on one device, before anything is loaded.

M positions of a micro-batch, D width, V vocabulary.
"""

import torch

from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig
from egom2p.anytoany.language.head_loss import CHUNK_ELEMENTS
from egom2p.anytoany.language.size_of_model import ModelSize, block_memory, settings_without_weights, size_of
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.training.planning.step_memory_table import GIB, Footprint
from egom2p.training.training_config import TrainingConfig

_FLOAT, _HALF = 4, 2
# Float32 numbers per logit at once: the log-probabilities, and two gradients while they become one.
_NUMBERS_PER_LOGIT = 3


def estimate(model: AnyToAnyConfig, data: LanguageDataConfig, training: TrainingConfig) -> tuple[ModelSize, Footprint]:
    """Sizes and bytes of a training step; every row as long as it may be, every token a target: an upper bound.

    What perception towers that train keep for their backward pass is not known here.
    """
    size = size_of(model)
    is_full = model.adapt == "full"
    is_half, is_mixed = model.language_model.dtype == "bfloat16", training.dtype != "fp32"
    weight = _HALF if is_half else _FLOAT
    beside = size.connector + size.trained_towers + size.new_tokens
    trained = beside + size.adapters + (size.language_model if is_full else 0)
    frozen = (0 if is_full else size.language_model) * weight + (size.towers - size.trained_towers) * _FLOAT
    positions = data.row_tokens if data.batching == "packed" else data.chat.max_length
    blocks = block_memory(
        settings_without_weights(model),
        rows=training.batch_size,
        positions=positions,
        dtype=torch.bfloat16 if is_half else torch.float32,
        lora=model.lora if model.adapt == "lora" else None,
        is_full=is_full,
        is_mixed=is_mixed,
        recompute=model.language_model.gradient_checkpointing or training.activation_checkpointing,
    )
    head, chunk = _head_bytes(size, training.batch_size * positions, weight=weight, trains=is_full, is_mixed=is_mixed)
    return size, Footprint(
        weights=trained * _FLOAT + frozen,
        gradients=trained * _FLOAT,
        optimizer=2 * trained * _FLOAT,
        average=0 if training.ema is None else trained * _FLOAT,
        gathered=beside * _HALF if is_mixed else 0,
        activations=blocks.kept + blocks.copies,
        head=head + max(chunk, blocks.workspace),
    )


def _head_bytes(size: ModelSize, num_positions: int, *, weight: int, trains: bool, is_mixed: bool) -> tuple[int, int]:
    """What the head keeps from its pass to its gradient's, and its largest chunk of logits."""
    kept = 2 * num_positions * size.width * weight  # states of the positions, and their gradients
    if trains:
        kept += size.vocab_size * size.width * (_FLOAT + (_HALF if is_mixed else 0))
    logits = min(num_positions, max(1, CHUNK_ELEMENTS // size.vocab_size)) * size.vocab_size
    table = size.vocab_size * size.width * _FLOAT if trains else 0  # the gradient of a chunk
    return kept, logits * _NUMBERS_PER_LOGIT * _FLOAT + table


def estimate_text(model: AnyToAnyConfig, data: LanguageDataConfig, training: TrainingConfig) -> str:
    """The estimate for people."""
    size, bytes_ = estimate(model, data, training)
    names = {"gathered": "copies in bf16", "head": "temporaries"}
    parts = ", ".join(f"{names.get(name, name)} {value / GIB:.2f}" for name, value in vars(bytes_).items() if value)
    return (
        f"parameters: language model {size.language_model / 1e6:.1f} M, adapters {size.adapters / 1e6:.2f} M, "
        f"connector {size.connector / 1e6:.2f} M, perception {size.towers / 1e6:.2f} M\n"
        f"memory of one device: at most {bytes_.total / GIB:.1f} GiB ({parts})"
    )
