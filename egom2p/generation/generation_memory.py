"""How many clips fit into memory at once: a step measured before the work, smaller batches where that failed."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.contracts import TokenClip
from egom2p.generation.checkpoints import Checkpoint
from egom2p.jobs.progress import say
from egom2p.layers.step_memory import step_memory
from egom2p.models.prompt_answers import LOGITS_PER_CHUNK, PromptAnswers, Query
from egom2p.models.prompt_batches import Shown, states_of
from egom2p.models.sampling import TargetPlan

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Of the memory that is free now, how much a job plans with; the rest is for what no tensor holds, and for others.
_SHARE = 0.7
# A pixel of a joined result on disk: rgb and depth (7 bytes) until they are written, and at most as much when they are;
# depth over the whole source picture, which is rarely twice the clip's.
_JOINED_BYTES = 2 * 7 + 4
# A chunk of logits, its probabilities and their sum: fp32 and fp64 on a CPU, and twice as many rows on a GPU.
_LOGITS_BYTES = 2 * (4 + 4 + 8 + 8) * LOGITS_PER_CHUNK


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a generation needs: `fixed` whatever the batch, `per_clip` for every clip of a batch."""

    fixed: int
    per_clip: int

    def of(self, num_clips: int) -> int:
        return self.fixed + num_clips * self.per_clip


def measure_memory(checkpoint: Checkpoint, plans: Sequence[TargetPlan]) -> MemoryEstimate:
    """Of the dearest moment: a pass of the model in any plan, or a video through its tokenizer, beside their weights.

    The steps are taken without numbers (`layers.step_memory`), on one clip and on two.
    """
    steps = [(checkpoint.model, partial(_model_step, plan=plan)) for plan in plans]
    networks = [getattr(tokenizer, "network", None) for tokenizer in checkpoint.tokenizers.values()]
    # Tracks and texts are left out: a video is thousands of times larger.
    steps += [(network, _decoding_step) for network in networks if hasattr(network, "decode_codes")]
    one, two = (
        max((step_memory(module, partial(step, count), with_gradient=False).peak for module, step in steps), default=0)
        for count in (1, 2)
    )
    per_clip = max(two - one, 0)
    return MemoryEstimate(_LOGITS_BYTES + checkpoint.context_bytes + max(one - per_clip, 0), per_clip)


def _model_step(num_clips: int, model: nn.Module, *, plan: TargetPlan) -> Tensor:
    """Every position of the target asked at once, given all other modalities whole."""
    target = next(spec for spec in model.specs if spec.name == plan.target)
    # Other ids in every clip: equal inputs would be encoded once.
    prompts = [
        TokenClip(str(clip), {spec.name: spec.filled(clip) for spec in model.specs if spec is not target})
        for clip in range(num_clips)
    ]
    states, tables = states_of(prompts, model.specs)
    queries, asked = [], np.arange(target.num_tokens)
    for clip, state in enumerate(states):
        rows, weights = Shown(state, plan, model.specs).rows(asked)
        queries.append(Query(clip, rows, weights, np.zeros(len(asked)), asked))
    answers = PromptAnswers(model)
    answers.patches = tuple(torch.from_numpy(table) for table in tables)
    return answers.hidden_by_pass(queries)[0][0]


def _decoding_step(num_clips: int, network: nn.Module) -> Tensor:
    ids = torch.zeros(num_clips, *network.spec.grid.shape, dtype=torch.int64)
    return network.decode_codes(network.quantizer.indices_to_codes(ids))


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
    """ValueError when the pictures of one long result and their files will not fit onto the disk."""
    needed = num_pixels * _JOINED_BYTES
    if free is not None and needed > _SHARE * free:
        raise ValueError(
            f"{key}: as one result its pictures need about {_gib(needed)} of the disk, {_gib(free)} are free; generate "
            "with join=none (one result per clip), or cut the recording"
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


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate" in words and "memory" in words


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
