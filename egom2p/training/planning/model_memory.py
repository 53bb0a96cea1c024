"""The memory of training EgoM2P: its parameters counted without making them, its rows put into shapes.

N input rows and M target rows of a micro-batch, D width, K modalities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from egom2p.contracts import ModalitySpec
from egom2p.layers.blocks import transformer_blocks
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.training.optim import OptimizerConfig
from egom2p.training.planning.step_memory_table import (
    MIXED,
    BlockShape,
    Footprint,
    HeadShape,
    ParameterCounts,
    Precision,
    footprint,
)

_INDEX_BYTES = 16  # ids, positions and orders of one row


@dataclass(frozen=True)
class ClipRows:
    """Rows of one clip, on average or at most.

    inputs    input rows, registers not counted
    targets   modality -> target rows
    """

    inputs: float
    targets: Mapping[str, float]

    @property
    def num_targets(self) -> float:
        return sum(self.targets.values())


def model_without_weights(config: ModelConfig, specs: Sequence[ModalitySpec]) -> EgoM2P:
    """EgoM2P of any size with shapes only: costs no memory and no device."""
    with torch.device("meta"):
        return EgoM2P(config, tuple(specs))


def count_parameters(model: nn.Module, optimizer: OptimizerConfig, *, has_average: bool = False) -> ParameterCounts:
    """Counts of a model that may lie on the meta device, as `build_optimizer` would split its parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    blocks = [sum(p.numel() for p in block.parameters()) for block in transformer_blocks(model)]
    matrices: set[nn.Parameter] = set()
    if optimizer.kind == "muon":
        matrices = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)} & set(trainable)
    total = sum(parameter.numel() for parameter in trainable)
    has_counters = optimizer.kind != "sgd"
    return ParameterCounts(
        trainable=total,
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        in_blocks=sum(blocks),
        largest_block=max(blocks, default=0),
        with_one_moment=sum(matrix.numel() for matrix in matrices),
        without_moment=0 if has_counters else total,
        num_tensors=len(trainable) - len(matrices) if has_counters else 0,
        num_averaged=sum(tensor.numel() for tensor in model.state_dict().values()) if has_average else 0,
    )


def step_footprint(
    model: EgoM2P,
    rows: ClipRows,
    *,
    counts: ParameterCounts,
    num_clips: int,
    precision: Precision = MIXED,
    num_shards: int = 1,
    recompute: bool = False,
) -> Footprint:
    """Memory of one device that trains on micro-batches of `num_clips` clips; `counts`: of `count_parameters`."""
    config = model.config
    num_inputs = round(num_clips * (rows.inputs + config.num_registers))
    num_targets = round(num_clips * rows.num_targets)
    head_rows = tuple(round(num_clips * rows.targets.get(name, 0)) for name in model.modalities)
    return footprint(
        counts,
        block_shapes(config, num_inputs, num_targets),
        head=HeadShape(head_rows, model.vocab_sizes, config.dim),
        precision=precision,
        other_activations=outside_blocks(config, num_inputs, num_targets, len(model.specs), precision),
        num_shards=num_shards,
        recompute=recompute,
    )


def block_shapes(config: ModelConfig, num_inputs: int, num_targets: int) -> tuple[tuple[BlockShape, int], ...]:
    """Encoder and decoder blocks for N input and M target rows."""
    common = {
        "width": config.dim,
        "mlp_width": config.mlp_dim,
        "num_heads": config.num_heads,
        "is_gated": config.activation == "swiglu",
        "has_qk_norm": config.qk_norm,
        "has_drop_path": config.drop_path > 0,
    }
    encoder = BlockShape(rows=num_inputs, **common)
    decoder = BlockShape(rows=num_targets, context_rows=num_inputs, **common)
    return (encoder, config.encoder_depth), (decoder, config.decoder_depth)


def outside_blocks(
    config: ModelConfig, num_inputs: int, num_targets: int, num_modalities: int, precision: Precision
) -> int:
    """Activations of embeddings, final norms and the projection of the context."""
    width, small, large = config.dim, precision.compute, precision.residual
    embedding = _INDEX_BYTES + 4 * num_modalities
    per_input = embedding + 2 * large * width + small * width  # norm's input, its output, the context
    per_target = embedding + large * width
    return num_inputs * per_input + num_targets * per_target
