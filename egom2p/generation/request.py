"""What is asked of a model: one schema, from the command line and from Python down to the sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Literal, Self

from egom2p.config import Count, Natural, NotNegative, Positive, not_deciding, strict
from egom2p.contracts import QUANTITIES, ModalitySpec
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.partial_prompts import InpaintingMask
from egom2p.generation.stitching import StitchConfig
from egom2p.models.sampling import SamplingConfig, TargetPlan

Join = Literal["stitch", "condition", "none"]


@strict
class Request:
    """What is to be made of every recording or clip.

    targets      what to make, in this order (name, quantity or folder)
    chain        each target is a condition of those after it; not: all are made of the input alone. None: as the
                 checkpoint recommends, else a chain
    conditions   modalities of the input to use; None: all that are not targets. A model that knows pixels reads them
                 beside the tokens where `rgb` is said; by name (`tok_rgb`, `rgb_patches`) one of them alone
    sampling     per target, or `default`; a word that is no modality is an error. What is not said is as the checkpoint
                 recommends
    num_samples  several: what is made is their mean, and `<stream>_low`, `<stream>_high` are the range that should hold
                 80 % of the true values (`generation.sample_ranges`); they differ by temperature alone. None: as many
                 as the checkpoint recommends, one where no mean is possible
    inpainting   per target that the input gives in part: which part is to be made (clips only, join=none)
    join         recordings and videos: `stitch` or `condition` makes one result of each recording from overlapping
                 windows; `none` one per clip
    overlap_s    seconds that neighbouring windows share; None: half a clip
    stitching    how windows are placed onto each other
    stride_s     join=none: seconds from one clip to the next; None: clips touch
    dataset      which of stored clips, where there are several
    rate_hz      pictures a second, where the input is a folder of pictures
    rotate       degrees clockwise that bring videos and pictures upright, where the file does not say it
    batch_size   clips, or samples of clips, at once; fewer where they would not fit into memory. A clip is the same in
                 any batch
    """

    targets: tuple[str, ...]
    chain: bool | None = None
    conditions: tuple[str, ...] | None = None
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    num_samples: Count | None = None
    inpainting: dict[str, InpaintingMask] = field(default_factory=dict)
    join: Join = "stitch"
    overlap_s: NotNegative | None = None
    stitching: StitchConfig = StitchConfig()
    stride_s: Positive | None = None
    dataset: str | None = None
    rate_hz: Positive | None = None
    rotate: Literal[0, 90, 180, 270] = 0
    seed: Natural = 0
    batch_size: Count = not_deciding(8)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets must name at least one modality")
        if self.stride_s is not None and self.join != "none":
            raise ValueError("stride_s cuts separate clips: say join=none; joined windows have overlap_s")
        if self.inpainting and self.join != "none":
            raise ValueError(f"inpainting masks belong to single clips: say join=none, got join={self.join}")
        if self.num_samples not in (None, 1) and (self.inpainting or self.join == "condition"):
            raise ValueError(
                f"num_samples={self.num_samples} makes whole targets, each window by itself: not with inpainting, nor "
                "with join=condition"
            )

    def specs(self, checkpoint: Checkpoint) -> list[ModalitySpec]:
        """The targets' modalities; ValueError for one that the checkpoint does not know or cannot decode."""
        specs = [checkpoint.target(word) for word in self.targets]
        for spec in (*specs, *(spec for word in self.conditions or () for spec in checkpoint.inputs(word))):
            checkpoint.tokenizer(spec.name)
        for word in self.sampling.keys() - {"default", *QUANTITIES}:  # configs are shared by checkpoints of fewer
            checkpoint.spec(word)
        strangers = {checkpoint.spec(word).name for word in self.inpainting} - {spec.name for spec in specs}
        if strangers:
            raise ValueError(f"inpainting names {sorted(strangers)}, which are no targets: {list(self.targets)}")
        return specs

    def settled(self, checkpoint: Checkpoint) -> Self:
        """The request with what nobody said as the checkpoint recommends it; a settled one is itself.

        ValueError as `specs`, and for several samples that cannot differ.
        """
        specs, recommended, count = self.specs(checkpoint), checkpoint.recommended, self.num_samples
        if count is None:
            count = 1 if self.why_single(specs) else recommended.num_samples
        chain = recommended.chain if self.chain is None else self.chain
        sampling = {"default": recommended.sampling(count)} | self.sampling
        found = replace(self, num_samples=count, sampling=sampling, chain=chain)
        frozen = [plan.target for plan in found.plans(specs) if plan.temperature == 0]
        if count > 1 and frozen:
            raise ValueError(
                f"num_samples={count} samples of temperature 0 are all the same, found it for {', '.join(frozen)}; say "
                "sampling={default: {temperature: 1.0}}"
            )
        return found

    def why_single(self, specs: Sequence[ModalitySpec]) -> str:
        """Why several samples of these targets would be no better than one; empty where their mean may be."""
        if self.inpainting:
            return "a part of a target is made"
        if self.join == "condition":
            return "each window goes on from the one before it"
        for spec, word in zip(specs, self.targets, strict=True):
            if not spec.signal.has_range:
                return f"{spec.name} has no mean"
            said = _found_by_word(self.sampling, spec, word, None)
            if said is not None and said.temperature == 0:
                return f"temperature 0 is asked for {spec.name}"
        return ""

    def plans(self, specs: Sequence[ModalitySpec]) -> list[TargetPlan]:
        return [
            _found_by_word(self.sampling, spec, word, SamplingConfig()).plan(spec.name)
            for spec, word in zip(specs, self.targets, strict=True)
        ]

    def mask_of(self, spec: ModalitySpec) -> InpaintingMask | None:
        return _found_by_word(self.inpainting, spec, spec.name, None)


def clip_seed(seed: int, clip: int, sample: int | None = None) -> int:
    """Seed of clip number `clip` of an input, and of one of several samples of it.

    Linear in both with coprime primes, so that seeds of different clips meet only beyond a million clips of one input,
    and a clip keeps its seed whatever was made before it.
    """
    own = seed * 1_000_003 + clip
    return own if sample is None else own * 10_007 + sample


def _found_by_word(entries: Mapping[str, Any], spec: ModalitySpec, word: str, default: Any) -> Any:
    """Entry of a modality by the word it was asked with, its name, quantity or folder, or `default`."""
    for key in (word, spec.name, spec.quantity, spec.folder, "default"):
        if key in entries:
            return entries[key]
    return default
