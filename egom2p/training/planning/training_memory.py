"""How much device memory a training step takes: states by counting, all else by a step without numbers.

N input rows and M target rows of a micro-batch, D width, K modalities. All results are bytes of one device.
What no tensor shows is not in them (the device's context, the allocator's gaps): see `Footprint.fits`.
"""

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from egom2p.contracts import ModalitySpec, PackedBatch
from egom2p.layers.blocks import transformer_blocks
from egom2p.layers.step_memory import StepMemory, step_memory, step_of_blocks
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import CHUNK_ELEMENTS, modality_cross_entropy
from egom2p.training.optim import OptimizerConfig
from egom2p.training.parallel import Recompute

_FLOAT, _HALF = 4, 2
GIB = 2**30
# Context of the driver, libraries and gaps between blocks take a part that no tensor shows.
USABLE_SHARE = 0.92
# What blocks keep is proportional to their rows, so it is measured on as many as make rounding small.
_MEASURED_CLIPS = 4
_MOST_CLIPS = 4096  # no batch per device larger than this is tried


@dataclass(frozen=True)
class ClipRows:
    """Rows of one clip, on average or at most.

    inputs    input rows, registers not counted
    targets   modality -> target rows
    patches   modality of kind patches -> how many of the input rows are its
    """

    inputs: float
    targets: Mapping[str, float]
    patches: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_targets(self) -> float:
        return sum(self.targets.values())


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
    """Bytes on one device.

    copies        of weights: in the precision of matrix products, or gathered from other ranks
    activations   what the backward pass needs
    temporaries   most that is alive beside all else: logits with their gradients, or one block going back
    """

    weights: int
    gradients: int
    optimizer: int
    average: int = 0
    copies: int = 0
    activations: int = 0
    temporaries: int = 0

    @property
    def total(self) -> int:
        """All at once: activations fade while gradients appear, so the peak lies somewhat lower."""
        return sum(vars(self).values())

    def fits(self, device_bytes: float) -> bool:
        return self.total <= USABLE_SHARE * device_bytes


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


def states(counts: ParameterCounts, *, num_shards: int = 1) -> Footprint:
    """Weights, gradients, moments and averages, float32 all of them, spread over devices that share one copy."""
    trainable, frozen = counts.trainable, counts.frozen
    sizes = ((trainable + frozen) * _FLOAT, trainable * _FLOAT, counts.optimizer_bytes, counts.num_averaged * _FLOAT)
    return Footprint(*(-(-size // num_shards) for size in sizes))


class TrainingMemory:
    """Memory of training EgoM2P on clips of given rows. `build(size)` makes the model of that size without weights."""

    def __init__(
        self,
        build: Callable[[ModelConfig], EgoM2P],
        size: ModelConfig,
        rows: ClipRows,
        optimizer: OptimizerConfig,
        *,
        has_average: bool = False,
        is_mixed: bool = True,
        is_compiled: bool = False,
    ) -> None:
        self._is_compiled = is_compiled and is_mixed
        self.model = build(size)
        self.counts = count_parameters(self.model, optimizer, has_average=has_average)
        self._rows, self._autocast = rows, torch.bfloat16 if is_mixed else None
        self._heads: dict[tuple[int, ...], StepMemory] = {}
        self._knots = self._find_knots()
        depths = (size.encoder_depth, size.decoder_depth)

        @functools.cache
        def of_few(few: tuple[int, ...]) -> StepMemory:
            model = build(replace(size, encoder_depth=few[0], decoder_depth=few[1])).train()
            return step_memory(model, self._pass, autocast=self._autocast)

        self._trunk, self._outside = (step_of_blocks(of_few, number) for number in (depths, (0, 0)))
        self._block = max((step_of_blocks(of_few, few) for few in ((1, 0), (0, 1))), key=lambda block: block.kept)

    def footprint(self, num_clips: int, *, num_shards: int = 1, recompute: Recompute = False) -> Footprint:
        """Of a micro-batch of so many clips.

        num_shards   devices that share one copy of weights, gradients and moments (FSDP); 1: whole copies (DDP)
        recompute    activation checkpointing of every block, or of its MLP (compiled blocks only)
        """
        counts, config, scale = self.counts, self.model.config, num_clips / _MEASURED_CLIPS
        head = self._head(num_clips)
        kept, one_block, copies = self._trunk.kept, self._trunk.workspace * scale, self._trunk.copies
        heads = head.workspace
        if self._is_compiled and num_shards == 1 and recompute is not True:
            kept, copies = self._kept_when_compiled(has_mlp=not recompute), self._outside.copies
        elif recompute:
            # Each block keeps its input, in the float32 of the stream between blocks, and is whole again one at a time.
            inputs = config.encoder_depth * self._num_inputs(_MEASURED_CLIPS)
            inputs += config.decoder_depth * round(_MEASURED_CLIPS * self._rows.num_targets)
            kept = self._outside.kept + inputs * config.dim * _FLOAT
            one_block += (self._block.kept - self._outside.kept) * scale + self._block.copies - self._outside.copies
            # Autocast lets its copies of the weights go at the end of the forward pass: only the heads meet them.
            heads, copies = heads + copies, self._outside.copies
        copies += head.copies
        if num_shards > 1:
            # Everything outside of blocks is gathered for the whole pass, with its gradient; of blocks, two at a time.
            outside = max(0, counts.trainable + counts.frozen - counts.in_blocks)
            half = _FLOAT if self._autocast is None else _HALF
            heads = head.workspace
            copies = head.copies + outside * 2 * _FLOAT + counts.largest_block * (2 * half + _FLOAT)
        return replace(
            states(counts, num_shards=num_shards),
            copies=copies,
            activations=round(kept * scale),
            # The heads' pass ends before the blocks' backward pass begins, but its gradients wait for it.
            temporaries=head.kept + max(heads, round(one_block)),
        )

    def most_clips(self, gigabytes: float, *, num_shards: int = 1, recompute: Recompute = False) -> int:
        """Largest micro-batch that fits into a device's memory; 0: not even one clip."""

        def fits(num_clips: int) -> bool:
            return self.footprint(num_clips, num_shards=num_shards, recompute=recompute).fits(gigabytes * 1e9)

        low, high = 0, 1
        while high <= _MOST_CLIPS and fits(high):
            low, high = high, 2 * high
        high = min(high, _MOST_CLIPS + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _kept_when_compiled(self, *, has_mlp: bool) -> int:
        """What compiled blocks keep: inputs and outputs of products and attention, each once; norms and the product of
        SwiGLU are made again. Counted on the stand-in for a GPU (tests/null_gpu), which it meets to 1 %."""
        config = self.model.config
        stream, half, scores = config.dim * _FLOAT, config.dim * _HALF, config.num_heads * _FLOAT
        mlp = config.mlp_dim * _HALF * (2 if config.activation == "swiglu" else 1) if has_mlp else 0
        statistics = 2 * _FLOAT  # of a norm
        attended = 4 * half + scores + half  # queries, keys, values, result, and what the projection makes of it
        of_input = stream + attended + mlp + 2 * statistics
        of_target = stream + attended + 3 * half + scores + mlp + 3 * statistics
        of_context = 2 * half + statistics
        inputs = self._num_inputs(_MEASURED_CLIPS)
        targets = round(_MEASURED_CLIPS * self._rows.num_targets)
        encoder = config.encoder_depth * inputs * of_input
        return self._outside.kept + encoder + config.decoder_depth * (targets * of_target + inputs * of_context)

    def _num_inputs(self, num_clips: int) -> int:
        return round(num_clips * (self._rows.inputs + self.model.config.num_registers))

    def _pass(self, model: EgoM2P) -> Tensor:
        """From tokens to decoder states; how rows are cut into clips does not change what is kept."""
        num_targets = round(_MEASURED_CLIPS * self._rows.num_targets)
        patches = {name: round(_MEASURED_CLIPS * count) for name, count in self._rows.patches.items()}
        batch = one_segment(model, self._num_inputs(_MEASURED_CLIPS), num_targets, patches)
        return model.decode(batch, model.encode(batch)).sum()

    def _head(self, num_clips: int) -> StepMemory:
        """Of the losses: measured where the logits of a modality begin to fill a chunk, straight lines between."""
        last = bisect.bisect_right(self._knots, num_clips, hi=len(self._knots) - 1)
        low, high = self._knots[last - 1], self._knots[last]
        share, ends = (num_clips - low) / (high - low), [vars(self._measured_head(n)).values() for n in (low, high)]
        return StepMemory(*(round(first + share * (last - first)) for first, last in zip(*ends, strict=True)))

    def _find_knots(self) -> list[int]:
        knots = {1, _MOST_CLIPS}
        for name, size in zip(self.model.modalities, self.model.vocab_sizes, strict=True):
            for num_chunks in (1, 2):
                full = num_chunks * (CHUNK_ELEMENTS // max(1, size)) / max(self._rows.targets.get(name, 0), 1e-9)
                knots |= {number for number in (int(full), int(full) + 1) if 1 < number < _MOST_CLIPS}
        return sorted(knots)

    def _measured_head(self, num_clips: int) -> StepMemory:
        config, sizes = self.model.config, self.model.vocab_sizes
        rows = [round(num_clips * self._rows.targets.get(name, 0)) for name in self.model.modalities]
        # Logits are made chunk by chunk, and at most two chunks meet: more rows need not be measured.
        counts = tuple(
            min(count, 2 * max(1, CHUNK_ELEMENTS // max(1, size))) for count, size in zip(rows, sizes, strict=True)
        )
        if counts not in self._heads:
            self._heads[counts] = step_memory(
                self.model.decoder_embeddings,
                lambda embeddings: modality_cross_entropy(
                    torch.empty(sum(counts), config.dim, requires_grad=True),
                    embeddings.head_table,
                    torch.zeros(sum(counts), dtype=torch.int64),
                    counts=counts,
                    vocab_sizes=sizes,
                ).sum(),
                autocast=self._autocast,
            )
        found = self._heads[counts]
        # Of every further row: its state, in float32 and in the precision of products, and the gradient of the latter.
        half = _FLOAT if self._autocast is None else 2 * _HALF
        return replace(found, kept=found.kept + (sum(rows) - sum(counts)) * config.dim * (_FLOAT + half))


def one_segment(
    model: EgoM2P, num_inputs: int, num_targets: int, num_patches: Mapping[str, int] | None = None
) -> PackedBatch:
    """A batch of one clip with all rows, the targets of one modality: no padding, as attention has none on CUDA."""
    kinds = [(spec.num_values, (num_patches or {}).get(spec.name, 0)) for spec in model.specs if spec.kind == "patches"]
    num_modalities = len(model.specs)
    inputs, targets = (torch.zeros(count, dtype=torch.int32) for count in (num_inputs, num_targets))
    segments = (num_targets, *(0 for _ in range(num_modalities - 1)))
    return PackedBatch(
        input_ids=inputs,
        input_position=inputs,
        input_modality=inputs.to(torch.uint8),
        input_offsets=torch.tensor([0, num_inputs], dtype=torch.int32),
        target_ids=targets,
        target_position=targets,
        target_modality=targets.to(torch.uint8),
        target_offsets=torch.tensor([0, num_targets], dtype=torch.int32),
        query_ids=targets,
        segment_offsets=torch.zeros(num_modalities + 1, dtype=torch.int32),
        head_order=torch.zeros(num_targets, dtype=torch.int64),
        head_counts=segments,
        input_lengths=(num_inputs,),
        target_lengths=(num_targets,),
        segment_lengths=segments,
        modalities=model.modalities,
        patch_values=tuple(torch.zeros(count, size, dtype=torch.uint8) for size, count in kinds),
        patch_rows=tuple(torch.arange(count, dtype=torch.int32) for _, count in kinds),
        patch_counts=tuple(count for _, count in kinds),
    )
