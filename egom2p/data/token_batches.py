"""Batches of a fixed number of tokens: as many clips as fill the rows, cut to fit exactly.

Clips are taken in their order until both sides are full to 99 %. What exceeds a side is left out, evenly from all clips
of the batch and at random inside a clip (never from a text); what is missing is the tail. So a batch is a run of
consecutive clips, and how long a run is follows from sizes alone, which cost no reading: resuming stays a seek, and any
rank finds its own runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from egom2p.contracts import MaskedClip, ModalitySpec
from egom2p.data.clip_order import clip_rng
from egom2p.data.collate import BatchShape

# To fill the last percent a clip more would be taken, and nearly all of it left out.
_FULL = 0.99
_SAMPLE = 2048  # clips whose sizes decide how the rows are shared out


@dataclass(frozen=True)
class ClipSize:
    """Rows of one masked clip; `free` ones are those that may be left out.

    patches   of the inputs, per modality of kind patches
    """

    inputs: int
    targets: int
    free_inputs: int
    free_targets: int
    patches: tuple[int, ...] = ()

    def __add__(self, other: "ClipSize") -> "ClipSize":
        return ClipSize(
            self.inputs + other.inputs,
            self.targets + other.targets,
            self.free_inputs + other.free_inputs,
            self.free_targets + other.free_targets,
        )


@dataclass(frozen=True)
class Run:
    """Consecutive clips of one batch: global indices from `first` on, and their sizes."""

    first: int
    sizes: tuple[ClipSize, ...]

    @property
    def end(self) -> int:
        return self.first + len(self.sizes)


def choose_shape(size_of: Callable[[int], ClipSize], num_tokens: int) -> BatchShape:
    """Share rows out between inputs and targets as the first clips of the mixture do.

    Raises ValueError when one of those clips has more tokens than the batch.
    """
    sizes = [size_of(index) for index in range(_SAMPLE)]
    largest = max(size.inputs + size.targets for size in sizes)
    if largest > num_tokens:
        raise ValueError(f"a batch of {num_tokens} tokens is too small: a clip of this mixture has {largest}")
    total_inputs, total = sum(size.inputs for size in sizes), sum(size.inputs + size.targets for size in sizes)
    num_inputs = min(max(1, round(num_tokens * total_inputs / total)), num_tokens - 1)
    mean = total / len(sizes)
    # Twice the mean number of clips and some: a run of small clips must not end for want of segments.
    # Patches vary from run to run; four deviations more than on average, and never less than a clip has.
    patches_CK = np.array([size.patches for size in sizes], dtype=np.float64)
    usual_K = patches_CK.mean(0) * num_tokens / mean + 4 * patches_CK.std(0) * (num_tokens / mean) ** 0.5
    most_K = np.maximum(usual_K, patches_CK.max(0, initial=0)).clip(max=num_inputs).astype(int)
    num_clips = int(2 * num_tokens / mean) + 8
    return BatchShape(num_inputs, num_tokens - num_inputs, num_clips=num_clips, num_patches=tuple(most_K.tolist()))


def runs(size_of: Callable[[int], ClipSize], shape: BatchShape, first_clip: int) -> Iterator[Run]:
    """Endless runs from a global clip index on."""
    while True:
        run = _next_run(size_of, shape, first_clip)
        yield run
        first_clip = run.end


def _next_run(size_of: Callable[[int], ClipSize], shape: BatchShape, first: int) -> Run:
    sizes: list[ClipSize] = []
    total = ClipSize(0, 0, 0, 0)
    while len(sizes) < shape.num_clips and not _is_full(total, shape):
        size = size_of(first + len(sizes))
        added = total + size
        # Text is never cut: a clip whose text does not fit begins the next batch.
        too_long = (
            added.inputs - added.free_inputs > shape.num_inputs
            or added.targets - added.free_targets > shape.num_targets
        )
        if too_long and not sizes:
            raise ValueError(f"the text of clip {first} has {size}, more than a batch of {shape} holds")
        if too_long:
            break
        sizes.append(size)
        total = added
    return Run(first, tuple(sizes))


def _is_full(total: ClipSize, shape: BatchShape) -> bool:
    return total.inputs >= _FULL * shape.num_inputs and total.targets >= _FULL * shape.num_targets


def fit_clips(
    clips: Sequence[MaskedClip], run: Run, shape: BatchShape, specs: Sequence[ModalitySpec], seed: int
) -> tuple[list[MaskedClip], int]:
    """The clips of a run with what exceeds the shape left out, and the number of tokens that this took."""
    texts = {spec.name for spec in specs if spec.kind == "sequence"}
    drop_inputs = _shares(
        sum(size.inputs for size in run.sizes) - shape.num_inputs, [size.free_inputs for size in run.sizes]
    )
    drop_targets = _shares(
        sum(size.targets for size in run.sizes) - shape.num_targets, [size.free_targets for size in run.sizes]
    )
    fitted = []
    for number, (clip, num_inputs, num_targets) in enumerate(zip(clips, drop_inputs, drop_targets, strict=True)):
        if num_inputs or num_targets:
            rng = clip_rng(seed, "left out", run.first + number)
            clip = _without(clip, num_inputs, num_targets, texts, rng)
        fitted.append(clip)
    num_trimmed = sum(drop_inputs) + sum(drop_targets)
    patches = [spec.name for spec in specs if spec.kind == "patches"]
    for name, most in zip(patches, shape.num_patches, strict=True):
        counts = [len(clip.input_ids.get(name, ())) for clip in fitted]
        drops = _shares(sum(counts) - most, counts)
        others = {spec.name for spec in specs} - {name}
        for number, count in enumerate(drops):
            if count:
                rng = clip_rng(seed, f"{name} left out", run.first + number)
                fitted[number] = _without(fitted[number], count, 0, others, rng)
        num_trimmed += sum(drops)
    return fitted, num_trimmed


def _shares(total: int, free: Sequence[int]) -> list[int]:
    """`total` (nothing where it is not positive) shared out in proportion to `free`."""
    if total <= 0:
        return [0] * len(free)
    # Differences of rounded running sums: whole numbers, in proportion, that sum to the total exactly.
    ends = np.cumsum(free) * total // max(1, sum(free))
    return np.diff(ends, prepend=0).tolist()


def _without(
    clip: MaskedClip, num_inputs: int, num_targets: int, texts: set[str], rng: np.random.Generator
) -> MaskedClip:
    input_kept = _kept(clip.input_positions, num_inputs, texts, rng)
    target_kept = _kept(clip.target_positions, num_targets, texts, rng)
    return replace(
        clip,
        input_ids=_taken(clip.input_ids, input_kept),
        input_positions=_taken(clip.input_positions, input_kept),
        target_ids=_taken(clip.target_ids, target_kept),
        target_positions=_taken(clip.target_positions, target_kept),
        query_ids=_taken(clip.query_ids, target_kept),
    )


def _kept(
    positions: dict[str, np.ndarray], num_dropped: int, texts: set[str], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Ascending rows that stay, of every modality with rows."""
    names = [name for name in positions if name not in texts]
    sizes = [len(positions[name]) for name in names]
    is_kept = np.ones(sum(sizes), dtype=bool)
    is_kept[rng.choice(len(is_kept), num_dropped, replace=False, shuffle=False)] = False
    parts = np.split(is_kept, np.cumsum(sizes)[:-1]) if names else []
    kept = {name: np.flatnonzero(part) for name, part in zip(names, parts, strict=True)}
    return kept | {name: np.arange(len(positions[name])) for name in positions if name in texts}


def _taken(arrays: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows that stay; a modality of which none stays loses its entry."""
    return {name: values[kept[name]] for name, values in arrays.items() if len(kept[name])}
