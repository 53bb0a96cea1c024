"""How many clips fit into memory at once: an estimate before the work, smaller batches when it was wrong.

N input rows, M target rows, D width, V vocabulary.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from egom2p.generation.checkpoints import Checkpoint
from egom2p.jobs.progress import say
from egom2p.models.generation_plans import TargetPlan

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Of the memory that is free now, how much a job plans with; the rest is for what the estimate leaves out.
_SHARE = 0.7
# Rows that one block holds at once beside its input: queries, keys, values, attention output, both halves of the MLP.
_BLOCK_ROWS = 8.0
# Activations of the finest level of a video codec that are alive together.
_CODEC_LAYERS = 6.0
# A pixel of a joined result: rgb and depth (7 bytes), and what the grey, dotted and npz copies of one of them take.
_JOINED_BYTES = 7 + 16
_LOGITS_BYTES = 3 * 4 * (1 << 24)  # a chunk of logits, its probabilities and their sum


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a generation needs: `fixed` whatever the batch, `per_clip` for every clip of a batch."""

    fixed: int
    per_clip: int

    def of(self, num_clips: int) -> int:
        return self.fixed + num_clips * self.per_clip


def estimate_memory(checkpoint: Checkpoint, plans: Sequence[TargetPlan]) -> MemoryEstimate:
    """From the sizes of model and tokenizers, beside their weights; the model runs in fp32."""
    config, specs = checkpoint.model.config, {spec.name: spec for spec in checkpoint.specs}
    num_inputs = sum(spec.num_tokens for spec in specs.values())
    largest = max((specs[plan.target].num_tokens for plan in plans), default=0)
    passes = max((_num_passes(plan, len(specs)) for plan in plans), default=1)
    block = _BLOCK_ROWS + 3 * config.mlp_ratio
    rows = int((num_inputs + largest) * passes * config.dim * 4 * block)
    contexts = int(num_inputs * passes * config.dim * 4 * 2)
    codec = max((_codec_bytes(checkpoint, name) for name in checkpoint.tokenizers), default=0)
    return MemoryEstimate(fixed=_LOGITS_BYTES, per_clip=max(rows + contexts, codec))


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free now; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def check_joined_fits(key: str, num_pixels: int, free: int | None) -> None:
    """ValueError when the pictures of one long result, and the copies its files are written from, will not fit."""
    needed = num_pixels * _JOINED_BYTES
    if free is not None and needed > _SHARE * free:
        raise ValueError(
            f"{key}: as one result its pictures need about {_gib(needed)}, {_gib(free)} are free; generate with "
            "join=none (one result per clip), or cut the recording"
        )


def fitting_batch(estimate: MemoryEstimate, wanted: int, free: int | None) -> int:
    """The largest batch up to `wanted` that should fit; at least 1. Says so when it is smaller."""
    if free is None or estimate.of(wanted) <= _SHARE * free:
        return wanted
    room = (_SHARE * free - estimate.fixed) / max(estimate.per_clip, 1)
    chosen = max(1, min(wanted, int(room)))
    say(
        f"memory: {wanted} clips at once would need about {_gib(estimate.of(wanted))}, {_gib(free)} are free: "
        f"{chosen} at once"
    )
    return chosen


def in_smaller_batches(
    work: Callable[[Sequence[ItemT]], Sequence[ResultT]], items: Sequence[ItemT]
) -> Iterator[ResultT]:
    """Results of `work(items)`; when memory runs out, of halves, and of their halves."""
    if not items:
        return
    try:
        results = work(items)
    except (MemoryError, RuntimeError) as error:
        if len(items) == 1 or not _is_out_of_memory(error):
            raise
        results = None
    if results is not None:
        yield from results
        return
    # Outside of the handler: the traceback would keep the tensors of the failed attempt alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    say(f"memory: {len(items)} clips at once do not fit, going on with {half}")
    yield from in_smaller_batches(work, items[:half])
    yield from in_smaller_batches(work, items[half:])


def _num_passes(plan: TargetPlan, num_modalities: int) -> int:
    if plan.guidance_weights is not None:
        return len(plan.guidance_weights) + 1
    return 1 if plan.guidance == 1 or num_modalities == 1 else 2


def _codec_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Activations of one clip in the finest level of a video codec; small for others."""
    tokenizer = checkpoint.tokenizers[name]
    config = getattr(getattr(tokenizer, "network", None), "config", None)
    if not hasattr(config, "num_frames"):
        return 0
    pixels = config.num_frames * config.height * config.width / config.patch_size**2
    return int(pixels * config.channels * max(config.channel_multipliers) * 4 * _CODEC_LAYERS)


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate" in words and "memory" in words


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
