"""From prompts of one clip's length to the same clips with their targets filled, in physical units.

B clips, L tokens of one modality, T frames or samples of a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip
from egom2p.contracts.quantities import STREAM_OF_QUANTITY
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.generation_inputs import Prompt
from egom2p.generation.partial_prompts import HiddenPart, encode_known, hide_tokens, merge_known
from egom2p.models.generation_plans import SamplingConfig, TargetPlan

UNITS = {"rgb": "uint8", "depth": "m", "gaze": "image", "camera": "world_from_cam", "text": "text"}


@dataclass(frozen=True)
class Request:
    """What is to be made of every clip.

    targets     in this order, each a condition of the next (name, quantity or folder)
    conditions  modalities of the input to use; None: all that are not targets
    sampling    by target or `default`
    hidden      targets that the input gives in part, and which part is to be made
    """

    targets: tuple[str, ...]
    conditions: tuple[str, ...] | None = None
    sampling: Mapping[str, SamplingConfig] = field(default_factory=dict)
    hidden: Mapping[str, HiddenPart] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets must name at least one modality")

    def specs(self, checkpoint: Checkpoint) -> list[ModalitySpec]:
        """The targets' modalities; ValueError for one that the checkpoint does not know or cannot decode."""
        for word in (*self.targets, *(self.conditions or ())):
            checkpoint.tokenizer(checkpoint.spec(word).name)
        specs = [checkpoint.spec(word) for word in self.targets]
        strangers = {checkpoint.spec(word).name for word in self.hidden} - {spec.name for spec in specs}
        if strangers:
            raise ValueError(f"hidden names {sorted(strangers)}, which are no targets: {list(self.targets)}")
        return specs

    def plans(self, specs: Sequence[ModalitySpec]) -> list[TargetPlan]:
        return [
            _found_by_word(self.sampling, spec, word, SamplingConfig()).plan(spec.name)
            for spec, word in zip(specs, self.targets, strict=True)
        ]

    def hidden_part(self, spec: ModalitySpec) -> HiddenPart | None:
        return _found_by_word(self.hidden, spec, spec.name, None)


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


def generate_clips(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    targets: Sequence[str],
    *,
    conditions: Sequence[str] | None = None,
    sampling: Mapping[str, SamplingConfig] | None = None,
    hidden: Mapping[str, HiddenPart] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Generated]:
    """Fill the targets of clips or token clips; `sampling` by target or `default`, seeds 0, 1, ... unless given."""
    chosen = None if conditions is None else tuple(conditions)
    request = Request(tuple(targets), chosen, sampling or {}, hidden or {})
    tokens = fill_tokens(checkpoint, prompts, request, seeds if seeds is not None else range(len(prompts)))
    values = decode_targets(checkpoint, tokens, request.specs(checkpoint))
    return [
        _generated(checkpoint, prompt, clip_tokens, request, {name: parts[row] for name, parts in values.items()})
        for row, (prompt, clip_tokens) in enumerate(zip(prompts, tokens, strict=True))
    ]


def clip_seed(seed: int, number: int) -> int:
    """Seed of clip `number` of an input."""
    return seed * 1_000_003 + number


def fill_tokens(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    request: Request,
    seeds: Sequence[int],
    *,
    known: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> list[TokenClip]:
    """Condition tokens of the prompts and generated tokens of the targets.

    known   per prompt: target -> ids (L,), -1 where they are to be made
    """
    specs = request.specs(checkpoint)
    token_prompts = [_prompt_tokens(checkpoint, prompt, request, specs) for prompt in prompts]
    if known is not None:
        token_prompts = [
            replace(prompt, tokens=dict(prompt.tokens) | dict(more))
            for prompt, more in zip(token_prompts, known, strict=True)
        ]
    for prompt in token_prompts:
        if not prompt.tokens and request.conditions != ():
            raise ValueError(
                f"clip {prompt.key}: nothing of the input can be a condition (the model reads "
                f"{[spec.name for spec in checkpoint.specs]}); for generation from nothing say conditions=[]"
            )
    return checkpoint.sampler.generate(token_prompts, request.plans(specs), seeds)


def decode_targets(
    checkpoint: Checkpoint, tokens: Sequence[TokenClip], specs: Sequence[ModalitySpec]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Target -> per clip values (T, ...) in the stream's unit and validity (T,)."""
    found = {}
    for spec in specs:
        values, is_valid = checkpoint.tokenizer(spec.name).decode(_stacked(spec, tokens))
        found[spec.name] = list(zip(values, np.asarray(is_valid, bool), strict=True))
    return found


def _stacked(spec: ModalitySpec, tokens: Sequence[TokenClip]) -> np.ndarray:
    return np.stack([spec.padded(clip.tokens[spec.name]) for clip in tokens])


def stream_of(checkpoint: Checkpoint, spec: ModalitySpec) -> str:
    """Name of the stream of a clip that a modality stands for."""
    return STREAM_OF_QUANTITY.get(spec.quantity, checkpoint.tokenizer(spec.name).stream)


def stream_at(spec: ModalitySpec, values: np.ndarray, is_valid: np.ndarray, *, start_s: float = 0.0) -> Stream:
    """A decoded stream on the clock of its clip, which began `start_s` into the recording."""
    times_s = start_s + np.arange(len(values)) / (spec.rate_hz or 1.0)
    return Stream(values, np.asarray(is_valid, bool), times_s, UNITS.get(spec.quantity, ""))


def _prompt_tokens(
    checkpoint: Checkpoint, prompt: Prompt, request: Request, specs: Sequence[ModalitySpec]
) -> TokenClip:
    """The condition tokens of a prompt, and of targets that are given in part what is known of them."""
    if isinstance(prompt, TokenClip):
        available = set(prompt.tokens)
    else:
        available = {name for name, tokenizer in checkpoint.tokenizers.items() if tokenizer.stream in prompt}
    chosen = available
    if request.conditions is not None:
        chosen = {checkpoint.spec(word).name for word in request.conditions}
    if chosen - available:
        raise ValueError(
            f"clip {prompt.key} has {sorted(available)}, the conditions ask for {sorted(chosen - available)}"
        )
    targets = {spec.name for spec in specs}
    names = sorted(chosen - targets)
    if isinstance(prompt, AlignedClip):
        found = checkpoint.tokenize([prompt], names)[0]
    else:
        found = replace(prompt, tokens={name: prompt.tokens[name] for name in names})
    parts = {spec.name: request.hidden_part(spec) for spec in specs}
    known = {}
    for name, part in parts.items():
        if part is None:
            continue
        if name not in available:
            raise ValueError(
                f"clip {prompt.key} has no {name} of which a part could be hidden, only {sorted(available)}"
            )
        known[name] = _known_tokens(checkpoint, prompt, name, part)
    return replace(found, tokens=dict(found.tokens) | known)


def _known_tokens(checkpoint: Checkpoint, prompt: Prompt, name: str, part: HiddenPart) -> np.ndarray:
    tokenizer, spec = checkpoint.tokenizer(name), checkpoint.spec(name)
    if isinstance(prompt, TokenClip):
        config = tokenizer.network.config
        return hide_tokens(prompt, spec, part, getattr(config, "num_frames", None) or config.num_samples)
    is_hidden_T = part.hides(len(prompt.streams[tokenizer.stream].values), spec.rate_hz or 1.0)
    return encode_known(tokenizer, prompt, ~is_hidden_T, box=part.box)


def _generated(
    checkpoint: Checkpoint,
    prompt: Prompt,
    tokens: TokenClip,
    request: Request,
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Generated:
    specs = request.specs(checkpoint)
    made_names = [spec.name for spec in specs]
    given = tuple(name for name in tokens.tokens if name not in made_names)
    streams = dict(prompt.streams) if isinstance(prompt, AlignedClip) else _decoded_inputs(checkpoint, tokens, given)
    start_s = min((float(stream.times_s[0]) for stream in streams.values()), default=0.0)
    for spec in specs:
        name = stream_of(checkpoint, spec)
        made, part = stream_at(spec, *values[spec.name], start_s=start_s), request.hidden_part(spec)
        if part is not None and isinstance(prompt, AlignedClip):
            is_known_T = ~part.hides(len(made.values), spec.rate_hz or 1.0)
            made = merge_known(spec.quantity, prompt.streams[name], made, is_known_T, part.box)
        streams[name] = made
    empty = AlignedClip(prompt.key, {}, None, Provenance("tokens", prompt.key))
    base = prompt if isinstance(prompt, AlignedClip) else empty
    extra = dict(base.extra) | {"given": list(given), "made": made_names}
    made_streams = tuple(stream_of(checkpoint, spec) for spec in specs)
    return Generated(replace(base, streams=streams, extra=extra), tokens, given, tuple(made_names), made_streams)


def _decoded_inputs(checkpoint: Checkpoint, tokens: TokenClip, given: Sequence[str]) -> dict[str, Stream]:
    streams = {}
    for name in given:
        if name in checkpoint.tokenizers:
            values, is_valid = checkpoint.tokenizer(name).decode(tokens.tokens[name][None])
            streams[checkpoint.tokenizer(name).stream] = stream_at(checkpoint.spec(name), values[0], is_valid[0])
    return streams


def _found_by_word(entries: Mapping, spec: ModalitySpec, word: str, default):
    """Entry of a modality by the word it was asked with, its name, quantity or folder, or `default`."""
    for key in (word, spec.name, spec.quantity, spec.folder, "default"):
        if key in entries:
            return entries[key]
    return default
