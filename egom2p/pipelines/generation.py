"""From a video, recordings or tokens to the missing modalities, in physical units.

B clips, L tokens of one modality, T frames or samples of a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip
from egom2p.models.generation_plans import SamplingConfig
from egom2p.pipelines.checkpoints import Checkpoint, load_checkpoint, shipped_checkpoint
from egom2p.pipelines.generation_inputs import Prompt, read_prompts
from egom2p.pipelines.generation_outputs import write_generated
from egom2p.pipelines.progress import progress_bar, say
from egom2p.pipelines.scores import STREAM_OF_QUANTITY
from egom2p.storage import fingerprint_of, load_json, save_json

_UNITS = {"rgb": "uint8", "depth": "m", "gaze": "image", "camera": "world_from_cam"}


@strict
class GenerationConfig:
    """One generation job.

    checkpoint   model directory; it names its tokenizers. None: the one that is shipped
    input        what to start from, see `generation_inputs.read_prompts`
    targets      what to make, in this order: each one is a condition of the next (name, quantity or folder)
    conditions   modalities of the input to use; None: all that are not targets
    sampling     per target, or `default`
    stride_s     recordings and videos: seconds from one clip to the next; None: clips touch
    max_clips    stop after so many
    video        file type of the videos
    """

    checkpoint: str | None = None
    input: str
    output: str
    targets: tuple[str, ...]
    conditions: tuple[str, ...] | None = None
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    seed: int = 0
    dataset: str | None = None
    stride_s: float | None = None
    max_clips: int | None = None
    batch_size: int = 8
    video: Literal["mp4", "webm"] = "mp4"
    device: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets must name at least one modality")
        if self.stride_s is not None and self.stride_s <= 0:
            raise ValueError(f"stride_s must be positive, got {self.stride_s}")


@dataclass(frozen=True)
class Generated:
    """A clip with its targets filled: signals, and the tokens they were decoded from.

    given, made    modalities; made_streams: streams of the clip that were generated
    """

    clip: AlignedClip
    tokens: TokenClip
    given: tuple[str, ...]
    made: tuple[str, ...]
    made_streams: tuple[str, ...]


def run_generation(config: GenerationConfig) -> Path:
    """Generate and write `<output>/<clip key>/...` and `<output>/manifest.json`; returns the manifest's path.

    Clips that are already there, made with the same settings, are passed over.
    """
    checkpoint = load_checkpoint(config.checkpoint or shipped_checkpoint(), device=config.device)
    for word in (*config.targets, *(config.conditions or ())):
        checkpoint.tokenizer(checkpoint.spec(word).name)  # for its error, before any work
    folder = Path(config.output)
    settings = _settings(config, checkpoint)
    # Read as they are needed: the pictures of an hour do not fit into memory.
    source = read_prompts(config.input, checkpoint, dataset=config.dataset, stride_s=config.stride_s)
    prompts = enumerate(islice(source, config.max_clips))
    keys: list[str] = []
    num_kept = 0
    with progress_bar("generate clips", config.max_clips, is_shown=config.progress) as advance:
        while part := list(islice(prompts, config.batch_size)):
            keys += [prompt.key for _, prompt in part]
            jobs = [(index, prompt) for index, prompt in part if not _is_done(folder / prompt.key, settings)]
            num_kept += len(part) - len(jobs)
            _generate_part(checkpoint, jobs, config, settings)
            advance(len(part))
    if not keys:
        raise ValueError(f"{config.input}: found no clip to generate from")
    if num_kept:
        say(f"{num_kept} of {len(keys)} clips were already there and are kept")
    manifest = folder / "manifest.json"
    save_json(manifest, _manifest(folder, keys, settings))
    return manifest


def _generate_part(
    checkpoint: Checkpoint,
    jobs: Sequence[tuple[int, Prompt]],
    config: GenerationConfig,
    settings: Mapping[str, Any],
) -> None:
    """Generate and write some clips, each with its number in the whole input."""
    if not jobs:
        return
    made = generate_clips(
        checkpoint,
        [prompt for _, prompt in jobs],
        config.targets,
        conditions=config.conditions,
        sampling=config.sampling,
        seeds=[config.seed * 1_000_003 + index for index, _ in jobs],
    )
    for item in made:
        note = {"given": item.given, "made": item.made, "made_streams": item.made_streams, "settings": settings}
        write_generated(Path(config.output) / item.clip.key, item.clip, item.tokens, note, video=config.video)


def generate_clips(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    targets: Sequence[str],
    *,
    conditions: Sequence[str] | None = None,
    sampling: Mapping[str, SamplingConfig] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Generated]:
    """Fill the targets of clips or token clips; `sampling` by target or `default`, seeds 0, 1, ... unless given."""
    specs = [checkpoint.spec(word) for word in targets]
    chosen = None if conditions is None else {checkpoint.spec(word).name for word in conditions}
    target_names = {spec.name for spec in specs}
    token_prompts = [_prompt_tokens(checkpoint, prompt, chosen, target_names) for prompt in prompts]
    for prompt in token_prompts:
        if not prompt.tokens and chosen != set():
            raise ValueError(
                f"clip {prompt.key}: nothing of the input can be a condition (the model reads "
                f"{[spec.name for spec in checkpoint.specs]}); for generation from nothing say conditions=[]"
            )
    plans = [
        _sampling_for(spec, word, sampling or {}).plan(spec.name) for spec, word in zip(specs, targets, strict=True)
    ]
    made = checkpoint.sampler.generate(token_prompts, plans, seeds if seeds is not None else range(len(prompts)))
    values = {
        spec.name: checkpoint.tokenizer(spec.name).decode(np.stack([clip.tokens[spec.name] for clip in made]))
        for spec in specs
    }
    return [
        _generated(
            checkpoint, prompt, tokens, specs, {name: (found[0][row], found[1][row]) for name, found in values.items()}
        )
        for row, (prompt, tokens) in enumerate(zip(prompts, made, strict=True))
    ]


def _prompt_tokens(checkpoint: Checkpoint, prompt: Prompt, chosen: set[str] | None, targets: set[str]) -> TokenClip:
    """The condition tokens of a prompt."""
    if isinstance(prompt, TokenClip):
        available = set(prompt.tokens)
    else:
        available = {name for name, tokenizer in checkpoint.tokenizers.items() if tokenizer.stream in prompt}
    if chosen is not None and chosen - available:
        raise ValueError(
            f"clip {prompt.key} has {sorted(available)}, the conditions ask for {sorted(chosen - available)}"
        )
    names = sorted((available if chosen is None else chosen) - targets)
    if isinstance(prompt, AlignedClip):
        return checkpoint.tokenize([prompt], names)[0]
    return replace(prompt, tokens={name: prompt.tokens[name] for name in names})


def _sampling_for(spec: ModalitySpec, word: str, sampling: Mapping[str, SamplingConfig]) -> SamplingConfig:
    for key in (word, spec.name, spec.quantity, spec.folder, "default"):
        if key in sampling:
            return sampling[key]
    return SamplingConfig()


def _generated(
    checkpoint: Checkpoint,
    prompt: Prompt,
    tokens: TokenClip,
    specs: Sequence[ModalitySpec],
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Generated:
    made_names = [spec.name for spec in specs]
    given = tuple(name for name in tokens.tokens if name not in made_names)
    streams = dict(prompt.streams) if isinstance(prompt, AlignedClip) else _decoded_inputs(checkpoint, tokens, given)
    made_streams = [STREAM_OF_QUANTITY.get(s.quantity, checkpoint.tokenizer(s.name).stream) for s in specs]
    start_s = min((float(stream.times_s[0]) for stream in streams.values()), default=0.0)
    for stream, spec in zip(made_streams, specs, strict=True):
        streams[stream] = _stream(spec, *values[spec.name], start_s=start_s)
    empty = AlignedClip(prompt.key, {}, None, Provenance("tokens", prompt.key))
    base = prompt if isinstance(prompt, AlignedClip) else empty
    extra = dict(base.extra) | {"given": list(given), "made": made_names}
    return Generated(replace(base, streams=streams, extra=extra), tokens, given, tuple(made_names), tuple(made_streams))


def _decoded_inputs(checkpoint: Checkpoint, tokens: TokenClip, given: Sequence[str]) -> dict[str, Stream]:
    streams = {}
    for name in given:
        if name in checkpoint.tokenizers:
            values, is_valid = checkpoint.tokenizer(name).decode(tokens.tokens[name][None])
            streams[checkpoint.tokenizer(name).stream] = _stream(checkpoint.spec(name), values[0], is_valid[0])
    return streams


def _stream(spec: ModalitySpec, values: np.ndarray, is_valid: np.ndarray, *, start_s: float = 0.0) -> Stream:
    """A decoded stream on the clock of its clip, which began `start_s` into the recording."""
    times_s = start_s + np.arange(len(values)) / (spec.rate_hz or 1.0)
    return Stream(values, np.asarray(is_valid, bool), times_s, _UNITS.get(spec.quantity, ""))


def _settings(config: GenerationConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What decides the result of a clip; a clip made with other settings is made again."""
    plain = to_plain(config)
    kept = ("checkpoint", "input", "targets", "conditions", "sampling", "seed", "dataset", "stride_s", "video")
    plain["checkpoint"] = config.checkpoint or f"shipped {checkpoint.directory.name}"
    marks = {name: tokenizer.fingerprint for name, tokenizer in sorted(checkpoint.tokenizers.items())}
    # A model trained again lies at the same path: its weights tell it from the one before.
    model = fingerprint_of(checkpoint.model.state_dict(), to_plain(checkpoint.model.config))
    return {key: plain[key] for key in kept} | {"model": model, "tokenizers": marks}


def _is_done(folder: Path, settings: Mapping[str, Any]) -> bool:
    note = folder / "clip.json"
    return note.is_file() and load_json(note)["settings"] == settings


def _manifest(folder: Path, keys: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    clips = []
    for key in keys:
        note = load_json(folder / key / "clip.json")
        files = sorted(path.name for path in (folder / key).iterdir())
        made = {field: note[field] for field in ("given", "made", "made_streams")}
        clips.append({"key": key, **made, "files": files})
    return {"settings": dict(settings), "num_clips": len(clips), "clips": clips}
