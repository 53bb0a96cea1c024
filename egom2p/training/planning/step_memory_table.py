"""How much device memory a training step takes, as arithmetic on plain shapes: any transformer, no model needed.

All results are bytes. Rows are tokens laid end to end, without padding; attention keeps no matrix of scores (flash
kernels). What is counted: weights, gradients, optimizer state, what the backward pass needs, and the largest temporary
of the heads. What is not: the device's context and the allocator's gaps; see `Footprint.fits`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_FLOAT = 4
GIB = 2**30
# Context of the driver, libraries and gaps between blocks take a part that no arithmetic knows.
USABLE_SHARE = 0.92


@dataclass(frozen=True)
class Precision:
    """Bytes of one number. Weights that train are float32 and computing is bf16 in the trainers of this project.

    compute    inputs and outputs of matrix products
    residual   the stream between blocks, which norms keep as their input
    master     weights that train, and their gradients
    frozen     weights that do not train
    """

    compute: int = 2
    residual: int = _FLOAT
    master: int = _FLOAT
    frozen: int = _FLOAT

    @property
    def copies_weights(self) -> bool:
        """Whether autocast keeps a second, smaller copy of the matrices until the backward pass is over."""
        return self.compute != self.master


MIXED = Precision()  # bf16 products, float32 weights


@dataclass(frozen=True)
class BlockShape:
    """One kind of pre-norm transformer block and the rows it works on.

    rows           rows of one micro-batch on one device
    mlp_width      hidden width of the MLP
    kv_width       width of keys and of values where it is smaller (grouped queries); None: `width`
    context_rows   rows that cross-attention reads; None: no cross-attention
    """

    rows: int
    width: int
    mlp_width: int
    num_heads: int
    kv_width: int | None = None
    is_gated: bool = True
    context_rows: int | None = None
    has_qk_norm: bool = False
    has_drop_path: bool = False

    def activation_bytes(self, precision: Precision) -> int:
        """What autograd keeps from the forward to the backward pass of this block, its input included."""
        rows, width, small, large = self.rows, self.width, precision.compute, precision.residual
        kv_width = self.kv_width or width
        statistics = 2 * _FLOAT  # of one norm's row
        norm = large * width + small * width + statistics  # its input, and its output as the next product's input
        attended = small * width + _FLOAT * self.num_heads  # output, which the projection keeps too, and normaliser
        attention = small * (width + 2 * kv_width) + attended
        mlp = small * self.mlp_width * (4 if self.is_gated else 2)
        if self.is_gated and small != large:
            mlp += small * width  # autocast narrows the input of both first matrices separately
        per_row, branches = 2 * norm + attention + mlp, 2
        per_context_row = 0
        if self.context_rows is not None:
            per_row += norm + small * width + attended
            per_context_row = small * (width + 2 * kv_width) + statistics  # all blocks share the norm's input
            branches = 3
        if self.has_qk_norm:
            # On CUDA autocast widens a norm's input; on CPUs it does not, and this is then too much.
            normed = (small + _FLOAT if small != _FLOAT else small) * (width + kv_width)
            per_row += normed + 2 * statistics * self.num_heads
            if self.context_rows is not None:
                per_row += normed * width // (width + kv_width)
                per_context_row += normed * kv_width // (width + kv_width)
        if self.has_drop_path:
            per_row += branches * _FLOAT
        return rows * per_row + (self.context_rows or 0) * per_context_row

    def input_bytes(self, precision: Precision) -> int:
        """What stays of the block when it is recomputed in the backward pass."""
        return self.rows * self.width * precision.residual


@dataclass(frozen=True)
class HeadShape:
    """Cross entropy in chunks over one or several vocabularies.

    rows, vocab_sizes   target rows of each vocabulary, and its size
    chunk_elements      logits in memory at once
    trains              whether the table of the head trains (its gradient is made during the forward pass)
    """

    rows: tuple[int, ...]
    vocab_sizes: tuple[int, ...]
    width: int
    chunk_elements: int = 2**26
    trains: bool = True

    def workspace_bytes(self, precision: Precision) -> int:
        """Most that is in memory at once beside the table itself."""
        table = sum(self.vocab_sizes) * self.width
        kept = sum(self.rows) * self.width * precision.compute * 2  # rows in the precision of products, and gradients
        kept += table * precision.compute if precision.copies_weights else 0
        kept += table * _FLOAT if self.trains else 0
        return kept + max(map(self._chunk_bytes, self.rows, self.vocab_sizes, [precision] * len(self.rows)), default=0)

    def _chunk_bytes(self, rows: int, vocab_size: int, precision: Precision) -> int:
        chunk = min(rows, max(1, self.chunk_elements // vocab_size)) * vocab_size
        half = 2 * precision.compute if precision.copies_weights else 0  # the product before it is widened, the error
        product = vocab_size * self.width * precision.compute if self.trains and precision.copies_weights else 0
        return chunk * (2 * _FLOAT + half) + product


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of a model's parameters.

    trainable, frozen   all of them
    in_blocks           those inside transformer blocks, trainable or not
    largest_block       those of one block
    with_one_moment     trainable ones with one optimizer moment (Muon's matrices) instead of two (AdamW)
    without_moment      trainable ones with none (SGD)
    num_tensors         trainable tensors with a step counter of their own (AdamW)
    num_averaged        numbers in the moving average of the weights, where there is one
    """

    trainable: int
    frozen: int = 0
    in_blocks: int = 0
    largest_block: int = 0
    with_one_moment: int = 0
    without_moment: int = 0
    num_tensors: int = 0
    num_averaged: int = 0

    @property
    def optimizer_bytes(self) -> int:
        moments = 2 * (self.trainable - self.with_one_moment - self.without_moment) + self.with_one_moment
        return _FLOAT * (moments + self.num_tensors)


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """All at once: activations fade while gradients appear, so the peak lies somewhat lower."""
        return sum(vars(self).values())

    def fits(self, device_bytes: float) -> bool:
        return self.total <= USABLE_SHARE * device_bytes


def footprint(
    parameters: ParameterCounts,
    blocks: Sequence[tuple[BlockShape, int]],
    *,
    head: HeadShape | None = None,
    precision: Precision = MIXED,
    other_activations: int = 0,
    num_shards: int = 1,
    recompute: bool = False,
) -> Footprint:
    """Memory of one device.

    blocks             shapes of blocks, and how many there are of each
    other_activations  bytes outside of blocks
    num_shards         devices that share one copy of weights, gradients and moments (FSDP); 1: whole copies (DDP)
    recompute          activation checkpointing of every block
    """
    trainable, frozen = parameters.trainable, parameters.frozen
    kept = [block.input_bytes(precision) if recompute else block.activation_bytes(precision) for block, _ in blocks]
    activations = other_activations + sum(size * count for size, (_, count) in zip(kept, blocks, strict=True))
    if recompute:
        activations += max((block.activation_bytes(precision) for block, _ in blocks), default=0)
    gathered = 0
    if num_shards > 1:
        # Everything outside of blocks is gathered for the whole pass, with its gradient; of blocks, two at a time.
        outside = max(0, trainable + frozen - parameters.in_blocks)
        gathered = outside * 2 * precision.master + parameters.largest_block * (
            2 * precision.compute + precision.master
        )
    elif precision.copies_weights:
        gathered = parameters.in_blocks * precision.compute
    return Footprint(
        weights=_share(trainable * precision.master + frozen * precision.frozen, num_shards),
        gradients=_share(trainable * precision.master, num_shards),
        optimizer=_share(parameters.optimizer_bytes, num_shards),
        average=_share(parameters.num_averaged * _FLOAT, num_shards),
        gathered=gathered,
        activations=activations,
        head=head.workspace_bytes(precision) if head is not None else 0,
    )


def _share(size: int, num_shards: int) -> int:
    return -(-size // num_shards)
