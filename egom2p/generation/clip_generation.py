"""From prompts of one clip's length to the same clips with their targets filled, in physical units.

B clips, L tokens of one modality, T frames or samples of a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.generation_inputs import Prompt
from egom2p.generation.partial_prompts import InpaintingMask, encode_given, mask_tokens, merge_given
from egom2p.generation.request import Request, clip_seed
from egom2p.generation.sample_ranges import range_notes, summary


@dataclass(frozen=True)
class Generated:
    """A clip with its targets filled: signals, and the tokens they were decoded from.

    given, made    modalities; made_streams: streams of the clip that were generated
    truth          what the prompt held of those streams: unseen by the model, or seen in part (inpainting)
    """

    clip: AlignedClip
    tokens: TokenClip
    given: tuple[str, ...]
    made: tuple[str, ...]
    made_streams: tuple[str, ...]
    truth: Mapping[str, Stream] = field(default_factory=dict)


def generate_clips(
    checkpoint: Checkpoint, prompts: Sequence[Prompt], request: Request, seeds: Sequence[int] | None = None
) -> list[Generated]:
    """Fill the targets of clips or token clips; seeds: one per prompt, None: those of clips 0, 1, ... of an input."""
    chosen = [clip_seed(request.seed, number) for number in range(len(prompts))] if seeds is None else seeds
    specs = request.specs(checkpoint)
    samples_K = []
    for number in range(request.num_samples):
        asked = [sample_of(*one, number) for one in zip(prompts, chosen, strict=True)]
        samples_K.append(fill_tokens(checkpoint, [prompt for prompt, _ in asked], request, [seed for _, seed in asked]))
    values_K = [decode_targets(checkpoint, tokens, specs) for tokens in samples_K]
    return [
        _generated(
            checkpoint,
            prompt,
            joined_tokens([tokens[row] for tokens in samples_K], [spec.name for spec in specs]),
            request,
            {spec.name: [values[spec.name][row] for values in values_K] for spec in specs},
        )
        for row, prompt in enumerate(prompts)
    ]


def sample_of(prompt: Prompt, seed: int, number: int) -> tuple[Prompt, int]:
    """The prompt and seed of one of several samples; the first is what is made where there is one."""
    return (
        (prompt, seed) if number == 0 else (replace(prompt, key=f"{prompt.key}_sample{number}"), seed * 10_007 + number)
    )


def joined_tokens(samples: Sequence[TokenClip], made: Sequence[str]) -> TokenClip:
    """Tokens of samples of one clip: those that were made as (K, L) where there are several."""
    first = samples[0]
    if len(samples) == 1:
        return first
    return replace(
        first,
        tokens={
            name: np.stack([clip.tokens[name] for clip in samples]) if name in made else ids
            for name, ids in first.tokens.items()
        },
    )


def fill_tokens(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    request: Request,
    seeds: Sequence[int],
    *,
    partial: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> list[TokenClip]:
    """Condition tokens of the prompts and generated tokens of the targets.

    partial   per prompt: target -> ids (L,), UNKNOWN where they are to be made
    """
    specs = request.specs(checkpoint)
    token_prompts = [_prompt_tokens(checkpoint, prompt, request, specs) for prompt in prompts]
    if partial is not None:
        token_prompts = [
            replace(prompt, tokens=dict(prompt.tokens) | dict(more))
            for prompt, more in zip(token_prompts, partial, strict=True)
        ]
    for prompt in token_prompts:
        if not prompt.tokens and request.conditions != ():
            raise ValueError(
                f"clip {prompt.key}: nothing of the input can be a condition (the model reads "
                f"{[spec.name for spec in checkpoint.specs]}); for generation from nothing say conditions=[]"
            )
    filled = checkpoint.sampler.generate(token_prompts, request.plans(specs), seeds)
    # Pixels are what the input holds anyway; of an hour of video they would not fit into memory.
    pixels = {spec.name for spec in checkpoint.specs if spec.is_input_only}
    return [
        replace(clip, tokens={name: ids for name, ids in clip.tokens.items() if name not in pixels}) for clip in filled
    ]


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
    return spec.signal.stream or checkpoint.tokenizer(spec.name).stream


def stream_at(spec: ModalitySpec, values: np.ndarray, is_valid: np.ndarray, *, start_s: float = 0.0) -> Stream:
    """A decoded stream on the clock of its clip, which began `start_s` into the recording."""
    times_s = start_s + np.arange(len(values)) / (spec.rate_hz or 1.0)
    return Stream(values, np.asarray(is_valid, bool), times_s, spec.signal.unit)


def condition_names(
    checkpoint: Checkpoint, prompt: Prompt, request: Request, specs: Sequence[ModalitySpec]
) -> list[str]:
    """Modalities of a prompt that the model is shown: those asked for, without the targets and their pixels."""
    available = _available(checkpoint, prompt)
    chosen = available
    if request.conditions is not None:
        chosen = {spec.name for word in request.conditions for spec in checkpoint.inputs(word)}
    if chosen - available:
        raise ValueError(
            f"clip {prompt.key} has {sorted(available)}, the conditions ask for {sorted(chosen - available)}"
        )
    made = {spec.quantity for spec in specs}
    answers = {spec.name for spec in specs}
    answers |= {spec.name for spec in checkpoint.specs if spec.is_input_only and spec.quantity in made}
    return sorted(chosen - answers)


def _available(checkpoint: Checkpoint, prompt: Prompt) -> set[str]:
    if isinstance(prompt, TokenClip):
        return set(prompt.tokens)
    return {name for name, tokenizer in checkpoint.tokenizers.items() if tokenizer.stream in prompt}


def _prompt_tokens(
    checkpoint: Checkpoint, prompt: Prompt, request: Request, specs: Sequence[ModalitySpec]
) -> TokenClip:
    """The condition tokens of a prompt, and the partial prompts of targets that have an inpainting mask."""
    names = condition_names(checkpoint, prompt, request, specs)
    if isinstance(prompt, AlignedClip):
        found = checkpoint.tokenize([prompt], names)[0]
    else:
        found = replace(prompt, tokens={name: prompt.tokens[name] for name in names})
    partial = {}
    for spec in specs:
        mask = request.mask_of(spec)
        if mask is None:
            continue
        available = _available(checkpoint, prompt)
        if spec.name not in available:
            raise ValueError(
                f"clip {prompt.key} has no {spec.name} of which a part could be masked, only {sorted(available)}"
            )
        partial[spec.name] = _partial_prompt(checkpoint, prompt, spec, mask)
    return replace(found, tokens=dict(found.tokens) | partial)


def _partial_prompt(checkpoint: Checkpoint, prompt: Prompt, spec: ModalitySpec, mask: InpaintingMask) -> np.ndarray:
    tokenizer = checkpoint.tokenizer(spec.name)
    if isinstance(prompt, TokenClip):
        config = tokenizer.network.config
        return mask_tokens(prompt, spec, mask, getattr(config, "num_frames", None) or config.num_samples)
    is_masked_T = mask.is_masked(len(prompt.streams[tokenizer.stream].values), spec.rate_hz or 1.0)
    return encode_given(tokenizer, prompt, ~is_masked_T, box=mask.box)


def _generated(
    checkpoint: Checkpoint,
    prompt: Prompt,
    tokens: TokenClip,
    request: Request,
    values: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
) -> Generated:
    specs = request.specs(checkpoint)
    notes = range_notes(checkpoint.directory, specs, request.num_samples) if request.num_samples > 1 else {}
    made_names = [spec.name for spec in specs]
    given = tuple(name for name in tokens.tokens if name not in made_names)
    given += tuple(name for name in condition_names(checkpoint, prompt, request, specs) if name not in tokens.tokens)
    streams = dict(prompt.streams) if isinstance(prompt, AlignedClip) else _decoded_inputs(checkpoint, tokens, given)
    truth = {}
    start_s = min((float(stream.times_s[0]) for stream in streams.values()), default=0.0)
    for spec in specs:
        name = stream_of(checkpoint, spec)
        parts = values[spec.name]
        stretch = notes[spec.name].stretch if spec.name in notes else None
        found = {"": parts[0]} if len(parts) == 1 else summary(spec.signal, parts, stretch)
        made, mask = stream_at(spec, *found.pop(""), start_s=start_s), request.mask_of(spec)
        if isinstance(prompt, AlignedClip) and name in prompt.streams:
            truth[name] = prompt.streams[name]
        if mask is not None and isinstance(prompt, AlignedClip):
            made = merge_given(spec, prompt.streams[name], made, mask)
        streams[name] = made
        streams |= {name + end: stream_at(spec, *part, start_s=start_s) for end, part in found.items()}
    empty = AlignedClip(prompt.key, {}, None, Provenance("tokens", prompt.key))
    base = prompt if isinstance(prompt, AlignedClip) else empty
    ranges = {stream_of(checkpoint, spec): asdict(notes[spec.name]) for spec in specs if spec.name in notes}
    extra = dict(base.extra) | {"given": list(given), "made": made_names, "ranges": ranges}
    made_streams = tuple(stream_of(checkpoint, spec) for spec in specs)
    clip = replace(base, streams=streams, extra=extra)
    return Generated(clip, tokens, given, tuple(made_names), made_streams, truth)


def _decoded_inputs(checkpoint: Checkpoint, tokens: TokenClip, given: Sequence[str]) -> dict[str, Stream]:
    streams = {}
    for name in given:
        is_motion = getattr(checkpoint.tokenizers.get(name), "is_motion", False)  # of the pictures: no stream of a clip
        if name in checkpoint.tokenizers and name in tokens.tokens and not is_motion:
            values, is_valid = checkpoint.tokenizer(name).decode(tokens.tokens[name][None])
            streams[checkpoint.tokenizer(name).stream] = stream_at(checkpoint.spec(name), values[0], is_valid[0])
    return streams
