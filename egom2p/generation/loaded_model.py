"""A model ready to use from Python: one object, from a file of video to arrays.

model = load_model()
clip = model.generate("walk.mp4", targets=["depth", "cam", "gaze"], seed=0)
clip.depth_m, clip.world_from_cam, clip.gaze
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from egom2p.contracts import AlignedClip, Recording, TokenClip
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.generation.clip_generation import generate_clips
from egom2p.generation.generation_inputs import (
    RECORDED_KINDS,
    Prompt,
    clip_config_of,
    kind_of_input,
    read_prompts,
    read_recordings,
    recorded_prompts,
)
from egom2p.generation.long_generation import generate_segment, overlap_of, plan_segments, window_seeds
from egom2p.generation.request import Request, clip_seed
from egom2p.jobs.workers import Dtype

Input = str | Path | Recording | AlignedClip | TokenClip


@dataclass(frozen=True)
class LoadedModel(Checkpoint):
    """A checkpoint that generates, from what `generate.py` takes and from recordings, clips and tokens in memory."""

    def generate(self, source: Input, targets: Sequence[str], **further: Any) -> AlignedClip:
        """The one result of `generate_each`; ValueError where the input holds none or several.

        further   the other fields of `Request`
        """
        found = list(islice(self.generate_each(source, Request(targets=tuple(targets), **further)), 2))
        if len(found) != 1:
            count = "nothing" if not found else "several recordings or clips"
            raise ValueError(f"{source}: found {count} to generate from; `generate_each` goes through them")
        return found[0]

    def generate_each(self, source: Input, request: Request) -> Iterator[AlignedClip]:
        """Clips with their targets filled: one per recording, however long; of clips and tokens one each.

        The streams of a result are in physical units: `depth_m` (F, H, W), `world_from_cam` (S, 4, 4), `gaze` (S, 2),
        `rgb` (F, H, W, 3); what the input holds is kept.
        """
        request = request.settled(self)  # also for its errors, before any work
        request = replace(request, batch_size=max(request.batch_size, request.num_samples))
        recordings = None if request.join == "none" else _recordings(source, request.rate_hz, request.rotate)
        if recordings is None:
            for number, prompt in enumerate(self._prompts(source, request)):
                yield generate_clips(self, [prompt], request, [clip_seed(request.seed, number)])[0].clip
            return
        config = clip_config_of(self, span="any")
        overlap_s = overlap_of(config, request.overlap_s, join=request.join)
        for number, recording in enumerate(recordings):
            for segment in plan_segments(recording, config, overlap_s=overlap_s):
                seeds = window_seeds(request.seed, number, segment)
                yield generate_segment(self, segment, request, seeds=seeds).generated.clip

    def _prompts(self, source: Input, request: Request) -> Iterator[Prompt]:
        if isinstance(source, AlignedClip | TokenClip):
            yield source
        elif isinstance(source, Recording):
            yield from recorded_prompts([source], self, request)
        else:
            yield from read_prompts(str(source), self, request)


def load_model(
    id_or_path: str | Path | None = None, *, device: str = "auto", dtype: Dtype = "auto", graphs: bool = True
) -> LoadedModel:
    """A model directory, an id `owner/name` of the Hub, or the first of the pretrained ones; see `load_checkpoint`.

    None cannot know yet what will be asked: it is `world_real`, which reads video and makes no pictures; of rendered
    rooms, or from depth to pictures, say "checkpoints/world_small". `generate.py` chooses by its request.
    """
    return LoadedModel(**vars(load_checkpoint(id_or_path, device=device, dtype=dtype, graphs=graphs)))


def _recordings(source: Input, rate_hz: float | None, rotate: int = 0) -> Iterator[Recording] | None:
    """Recordings of a source that holds some; None for clips and tokens."""
    if isinstance(source, Recording):
        return iter([source])
    if isinstance(source, AlignedClip | TokenClip):
        return None
    kind = kind_of_input(str(source))
    if kind not in RECORDED_KINDS:
        return None
    return read_recordings(str(source), kind, rate_hz=rate_hz, rotate=rotate)
