"""From prompts of one clip's length to the same clips with their targets filled, in physical units.

B clips, K samples of one, L tokens of one modality, T frames or samples of a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.generation_inputs import Prompt
from egom2p.generation.generation_memory import in_smaller_batches
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
    request = request.settled(checkpoint)
    chosen = [clip_seed(request.seed, number) for number in range(len(prompts))] if seeds is None else seeds
    made = fill_tokens(checkpoint, prompts, request, chosen)
    values = decode_targets(checkpoint, made, request)
    return [
        _generated(checkpoint, prompt, made[row], request, {name: values[name][row] for name in values})
        for row, prompt in enumerate(prompts)
    ]


def fill_tokens(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    request: Request,
    seeds: Sequence[int],
    *,
    partial: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> list[TokenClip]:
    """Condition tokens of the prompts and generated tokens of the targets: ids (L,), of several samples (K, L).

    A prompt is tokenized once. Its samples are rows of the batches, and the sampler runs rows in the same state once.

    request   settled
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
    count, size = request.num_samples, request.batch_size
    rows = [
        (prompt, seed if number == 0 else seed * 10_007 + number)  # the first is what is made where there is one
        for prompt, seed in zip(token_prompts, seeds, strict=True)
        for number in range(count)
    ]

    def fill(part: Sequence[tuple[TokenClip, int]]) -> list[TokenClip]:
        prompts, seeds = [prompt for prompt, _ in part], [seed for _, seed in part]
        return checkpoint.sampler.generate(prompts, plans, seeds, chain=request.chain)

    plans = request.plans(specs)
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    filled = [clip for part in parts for clip in in_smaller_batches(fill, part)]
    samples = [filled[first : first + count] for first in range(0, len(filled), count)]
    # Pixels are what the input holds anyway; of an hour of video they would not fit into memory.
    left_out = {spec.name for spec in checkpoint.specs if spec.is_input_only or spec in specs}
    return [
        replace(first, tokens={name: ids for name, ids in first.tokens.items() if name not in left_out} | made)
        for first, made in ((clips[0], _made_ids(clips, specs)) for clips in samples)
    ]


def _made_ids(samples: Sequence[TokenClip], specs: Sequence[ModalitySpec]) -> dict[str, np.ndarray]:
    """Target -> ids (L,) of one sample, or (K, L) of several."""
    if len(samples) == 1:
        return {spec.name: samples[0].tokens[spec.name] for spec in specs}
    return {spec.name: np.stack([spec.padded(clip.tokens[spec.name]) for clip in samples]) for spec in specs}


def decode_targets(
    checkpoint: Checkpoint, tokens: Sequence[TokenClip], request: Request
) -> dict[str, list[list[tuple[np.ndarray, np.ndarray]]]]:
    """Target -> per clip and sample values (T, ...) in the stream's unit and validity (T,)."""
    found = {}
    for spec in request.specs(checkpoint):
        samples = [clip.tokens[spec.name] for clip in tokens]
        rows = np.concatenate([ids if ids.ndim == 2 else spec.padded(ids)[None] for ids in samples])
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for first in range(0, len(rows), request.batch_size):
            values, is_valid = checkpoint.tokenizer(spec.name).decode(rows[first : first + request.batch_size])
            parts += zip(values, np.asarray(is_valid, bool), strict=True)
        count = request.num_samples
        found[spec.name] = [parts[first : first + count] for first in range(0, len(parts), count)]
    return found


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
