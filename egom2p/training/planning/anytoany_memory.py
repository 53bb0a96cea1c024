"""What a configured run of the any-to-any model takes on one device, before anything is loaded.

M positions of a micro-batch, D width, V vocabulary.
"""

import torch

from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig
from egom2p.anytoany.language.language_model import next_token_loss
from egom2p.anytoany.language.size_of_model import ModelSize, block_memory, settings_without_weights, size_of
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.layers.step_memory import StepMemory, step_memory
from egom2p.training.planning.training_memory import GIB, Footprint
from egom2p.training.training_config import TrainingConfig

_FLOAT, _HALF = 4, 2


def estimate(model: AnyToAnyConfig, data: LanguageDataConfig, training: TrainingConfig) -> tuple[ModelSize, Footprint]:
    """Sizes and bytes of a training step; every row as long as it may be, every token a target: an upper bound.

    What perception towers that train keep for their backward pass is not known here.
    """
    size = size_of(model)
    is_full = model.adapt == "full"
    is_half, is_mixed = model.language_model.dtype == "bfloat16", training.dtype != "fp32"
    dtype = torch.bfloat16 if is_half else torch.float32
    beside = size.connector + size.trained_towers + size.new_tokens
    trained = beside + size.adapters + (size.language_model if is_full else 0)
    frozen = (0 if is_full else size.language_model) * dtype.itemsize + (size.towers - size.trained_towers) * _FLOAT
    positions = data.row_tokens if data.batching == "packed" else data.chat.max_length
    blocks = block_memory(
        settings_without_weights(model),
        rows=training.batch_size,
        positions=positions,
        dtype=dtype,
        lora=model.lora if model.adapt == "lora" else None,
        is_full=is_full,
        is_mixed=is_mixed,
        recompute=model.language_model.gradient_checkpointing or training.activation_checkpointing,
    )
    head = _head_memory(size, training.batch_size * positions, dtype=dtype, trains=is_full, is_mixed=is_mixed)
    return size, Footprint(
        weights=trained * _FLOAT + frozen,
        gradients=trained * _FLOAT,
        optimizer=2 * trained * _FLOAT,
        average=0 if training.ema is None else trained * _FLOAT,
        copies=blocks.copies + head.copies + (beside * _HALF if is_mixed else 0),
        activations=blocks.kept,
        temporaries=head.kept + max(head.workspace, blocks.workspace),
    )


def _head_memory(
    size: ModelSize, num_positions: int, *, dtype: torch.dtype, trains: bool, is_mixed: bool
) -> StepMemory:
    """Of the loss of so many positions, their states and the gradients of those included."""
    head = torch.nn.Linear(size.width, size.vocab_size, bias=False, device="meta", dtype=dtype).requires_grad_(trains)

    def loss(head: torch.nn.Module) -> torch.Tensor:
        hidden_MD = torch.empty(num_positions, size.width, dtype=dtype, requires_grad=True)
        targets_M = torch.zeros(num_positions, dtype=torch.int64)
        return next_token_loss(hidden_MD, targets_M, head, tuple(head.parameters()), vocab_size=size.vocab_size)

    return step_memory(head, loss, autocast=torch.bfloat16 if is_mixed else None)


def estimate_text(size: ModelSize, bytes_: Footprint) -> str:
    """The estimate for people."""
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in vars(bytes_).items() if value)
    return (
        f"parameters: language model {size.language_model / 1e6:.1f} M, adapters {size.adapters / 1e6:.2f} M, "
        f"connector {size.connector / 1e6:.2f} M, perception {size.towers / 1e6:.2f} M\n"
        f"memory of one device: at most {bytes_.total / GIB:.1f} GiB ({parts})"
    )
