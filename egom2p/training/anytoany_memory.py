"""What a configured run of the any-to-any model takes on one device, before anything is loaded."""

from egom2p.anytoany.loader import LanguageDataConfig
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.anytoany.size_of_model import ModelSize, size_of
from egom2p.training.memory import GIB, BlockShape, Footprint, HeadShape, ParameterCounts, Precision, footprint
from egom2p.training.training_config import TrainingConfig

_CHUNK = 2**25  # logits in memory at once, as in head_loss


def estimate(model: AnyToAnyConfig, data: LanguageDataConfig, training: TrainingConfig) -> tuple[ModelSize, Footprint]:
    """Sizes and bytes of a training step; every row as long as it may be, every token a target: an upper bound."""
    size = size_of(model)
    is_full = model.adapt == "full"
    trainable = size.adapters + size.connector + (size.language_model if is_full else 0)
    trained_towers = size.towers if any(source.gives_ids for source in model.perception) else 0
    is_half = model.language_model.dtype == "bfloat16"
    compute = 4 if training.dtype == "fp32" else 2
    precision = Precision(compute=compute, residual=2 if is_half else 4, frozen=2 if is_half else 4)
    rows = training.batch_size * (data.row_tokens if data.batching == "packed" else data.chat.max_length)
    block = BlockShape(
        rows=rows,
        width=size.width,
        mlp_width=size.mlp_width,
        num_heads=size.num_heads,
        kv_width=size.kv_width,
    )
    counts = ParameterCounts(
        trainable=trainable + trained_towers,
        frozen=0 if is_full else size.language_model,
        in_blocks=size.in_blocks if is_full else size.adapters,
        largest_block=size.in_blocks // max(size.num_blocks, 1),
    )
    return size, footprint(
        counts,
        [(block, size.num_blocks)],
        head=HeadShape((rows,), (size.vocab_size,), size.width, chunk_elements=_CHUNK, trains=is_full),
        precision=precision,
        recompute=model.language_model.gradient_checkpointing or training.activation_checkpointing,
    )


def estimate_text(model: AnyToAnyConfig, data: LanguageDataConfig, training: TrainingConfig) -> str:
    """The estimate for people."""
    size, bytes_ = estimate(model, data, training)
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in vars(bytes_).items() if value)
    return (
        f"parameters: language model {size.language_model / 1e6:.1f} M, adapters {size.adapters / 1e6:.2f} M, "
        f"connector {size.connector / 1e6:.2f} M, perception {size.towers / 1e6:.2f} M\n"
        f"memory of one device: at most {bytes_.total / GIB:.1f} GiB ({parts})"
    )
