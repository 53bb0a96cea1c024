"""A model ready to use from Python: one object, from a file of video to arrays.

model = load_model("checkpoints/world_small")
clip = model.generate("walk.mp4", targets=["depth", "cam", "gaze"], seed=0)
clip.depth_m, clip.world_from_cam, clip.gaze
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from egom2p.contracts import AlignedClip, ModalitySpec, Recording, TokenClip
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.generation.clip_generation import Request, clip_seed, generate_clips
from egom2p.generation.generation_inputs import Prompt, clip_config_of, kind_of_input, read_prompts, read_recordings
from egom2p.generation.long_generation import Join, generate_stretch, window_seeds
from egom2p.generation.partial_prompts import HiddenPart
from egom2p.generation.recording_windows import overlap_of, plan_stretches
from egom2p.generation.stitching import StitchConfig
from egom2p.models.generation_plans import SamplingConfig

Input = str | Path | Recording | AlignedClip | TokenClip


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint with `generate`; everything else is in `checkpoint`."""

    checkpoint: Checkpoint

    @property
    def modalities(self) -> tuple[ModalitySpec, ...]:
        return self.checkpoint.specs

    def generate(self, source: Input, targets: Sequence[str], **options) -> AlignedClip:
        """The one result of `generate_each`; ValueError where the input holds none or several."""
        found = list(islice(self.generate_each(source, targets, **options), 2))
        if len(found) != 1:
            count = "nothing" if not found else "several recordings or clips"
            raise ValueError(f"{source}: found {count} to generate from; `generate_each` goes through them")
        return found[0]

    def generate_each(
        self,
        source: Input,
        targets: Sequence[str],
        *,
        conditions: Sequence[str] | None = None,
        sampling: Mapping[str, SamplingConfig] | None = None,
        hidden: Mapping[str, HiddenPart] | None = None,
        seed: int = 0,
        join: Join = "stitch",
        overlap_s: float | None = None,
        stitching: StitchConfig | None = None,
        rate_hz: float | None = None,
        batch_size: int = 8,
    ) -> Iterator[AlignedClip]:
        """Clips with their targets filled: one per recording, however long; of clips and tokens one each.

        source    a path of any kind `generate.py` takes, a recording, a clip, or tokens; with `hidden` parts,
                  recordings too are cut into clips
        targets   made in this order, each a condition of the next (`depth`, `cam`, `gaze`, `rgb`, or a name)
        Other arguments as in `GenerationConfig`. The streams of a result are in physical units: `depth_m` (F, H, W),
        `world_from_cam` (S, 4, 4), `gaze` (S, 2), `rgb` (F, H, W, 3); what the input holds is kept.
        """
        if hidden and join == "condition":
            raise ValueError("hidden parts belong to single clips, join=condition to recordings; leave one of them out")
        chosen = None if conditions is None else tuple(conditions)
        request = Request(tuple(targets), chosen, sampling or {}, hidden or {})
        request.specs(self.checkpoint)
        recordings = _recordings(source, rate_hz) if join != "none" and not hidden else None
        if recordings is None:
            for number, prompt in enumerate(self._prompts(source, rate_hz)):
                options = {
                    "conditions": conditions,
                    "sampling": sampling,
                    "hidden": hidden,
                    "seeds": [clip_seed(seed, number)],
                }
                yield generate_clips(self.checkpoint, [prompt], targets, **options)[0].clip
            return
        config = clip_config_of(self.checkpoint, span="any")
        for number, recording in enumerate(recordings):
            for stretch in plan_stretches(recording, config, overlap_s=overlap_of(config, overlap_s)):
                result = generate_stretch(
                    self.checkpoint,
                    stretch,
                    request,
                    seeds=window_seeds(seed, number, stretch),
                    join=join,
                    stitching=stitching,
                    batch_size=batch_size,
                )
                yield result.generated.clip

    def _prompts(self, source: Input, rate_hz: float | None) -> Iterator[Prompt]:
        if isinstance(source, AlignedClip | TokenClip):
            yield source
        elif isinstance(source, Recording):
            config = clip_config_of(self.checkpoint, span="any")
            for stretch in plan_stretches(source, config, overlap_s=0.0):
                yield from (stretch.clip(window) for window in stretch.windows)
        else:
            yield from read_prompts(str(source), self.checkpoint, rate_hz=rate_hz)


def load_model(id_or_path: str | Path | None = None, *, device: str = "auto") -> LoadedModel:
    """A model directory, an id `owner/name` of the Hub, or (None) the pretrained checkpoint."""
    return LoadedModel(load_checkpoint(id_or_path, device=device))


def _recordings(source: Input, rate_hz: float | None) -> Iterator[Recording] | None:
    """Recordings of a source that holds some; None for clips and tokens."""
    if isinstance(source, Recording):
        return iter([source])
    if isinstance(source, AlignedClip | TokenClip):
        return None
    kind = kind_of_input(str(source))
    if kind in ("shards", "token_file", "token_files", "clips"):
        return None
    return read_recordings(str(source), kind, rate_hz=rate_hz)
