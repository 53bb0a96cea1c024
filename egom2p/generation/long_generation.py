"""Recordings of any length: overlapping windows, generated and joined into one result.

W windows, S samples of a window, n of an overlap, L tokens.

`stitch` generates every window by itself, in batches, and joins them. `condition` goes window by window: the part of
each target that the sequence already holds is encoded and given to the model, which continues it; then they are joined
alike. Tokens of a window cannot simply be moved to the next: its positions lie on another clock, a video's first token
is one frame alone, and camera poses are relative to the window's first one.

Where the overlap allows it, windows start on times at which every clock of the clips has a sample (8 Hz pictures and
30 Hz tracks share every half second), so that samples of neighbouring windows coincide. Other overlaps are whole
pictures, and a window's tracks are resampled onto the clock of the whole.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, Recording, Stream, TokenClip, quantity_of_stream
from egom2p.contracts.quantities import PICTURE_STREAMS
from egom2p.data.clips.clip_alignment import (
    ClipConfig,
    KeptPictures,
    RecordingTooShort,
    Window,
    clip_key,
    cut_clip,
    plan_clips,
)
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.clip_generation import (
    Generated,
    condition_names,
    decode_targets,
    fill_tokens,
    stream_of,
)
from egom2p.generation.generation_inputs import tell_too_short
from egom2p.generation.generation_memory import in_smaller_batches
from egom2p.generation.partial_prompts import encode_given
from egom2p.generation.pose_graph import motion_errors
from egom2p.generation.request import Join, Request, clip_seed
from egom2p.generation.sample_ranges import HIGH, LOW, range_notes, summary
from egom2p.generation.stitching import (
    ErrorsOf,
    JoinedStream,
    Part,
    ScaledStream,
    StitchConfig,
    joined_stream,
    overlap_summary,
)


@dataclass(frozen=True)
class Segment:
    """Windows of one recording without a gap between them.

    key        for files and folders; the recording's own, with `_part2` ... behind it where it has several segments
    unused_s   seconds of the recording after (or between) the windows that no window covers
    """

    key: str
    recording: Recording
    config: ClipConfig
    windows: tuple[Window, ...]
    unused_s: float
    _kept: KeptPictures = field(default_factory=dict, repr=False, compare=False)

    @property
    def start_s(self) -> float:
        return self.windows[0].start_s

    @property
    def duration_s(self) -> float:
        return self.windows[-1].start_s - self.start_s + self.config.duration_s

    def first_sample(self, window: Window, rate_hz: float) -> float:
        """Where a window's first sample lies among those of the whole segment; a whole number where clocks agree."""
        return (window.start_s - self.start_s) * rate_hz

    def num_samples(self, rate_hz: float) -> int:
        """Samples of the whole segment."""
        return round(self.duration_s * rate_hz)

    def clip(self, window: Window) -> AlignedClip:
        """One window, read when asked for; in their order, what overlaps is read once."""
        clip = cut_clip(self.recording, window, self.config, kept=self._kept)
        return replace(clip, key=f"{self.key}_{window.index:06d}")


def common_step_s(rates_hz: Iterable[float]) -> float:
    """The shortest time in which every clock makes a whole number of samples."""
    rates = [Fraction(rate).limit_denominator(1001) for rate in rates_hz]
    numerator, denominator = 0, 1
    for rate in rates:
        numerator = gcd(numerator * rate.denominator, rate.numerator * denominator)
        denominator *= rate.denominator
    return float(Fraction(denominator, numerator))


def overlap_of(config: ClipConfig, wanted_s: float | None = None, *, join: Join = "stitch") -> float:
    """Seconds that neighbouring windows share: half a clip, or what is wanted; ValueError where clocks do not allow it.

    Half a clip is the longest up to there on which the clocks agree: zero where they only meet at the ends of a clip.
    Windows that are conditioned begin where all clocks have a sample, others with any picture.
    """
    step_s = common_step_s((config.video_rate_hz, config.track_rate_hz))
    if wanted_s is None:
        return int(config.duration_s / 2 / step_s + 1e-6) * step_s
    if join != "condition":
        step_s = 1 / config.video_rate_hz
    steps = wanted_s / step_s
    if not 0 <= wanted_s < config.duration_s or abs(steps - round(steps)) > 1e-6:
        allowed = [f"{k * step_s:g}" for k in range(20) if k * step_s < config.duration_s - 1e-9]
        raise ValueError(
            f"overlap_s must be one of {', '.join(allowed)} with join={join} (windows of {config.duration_s:g} s, "
            f"pictures at {config.video_rate_hz:g} Hz, tracks at {config.track_rate_hz:g} Hz), got {wanted_s:g}"
        )
    return wanted_s


def plan_segments(recording: Recording, config: ClipConfig, *, overlap_s: float) -> list[Segment]:
    """Windows every `duration_s - overlap_s`, the last as late as the recording allows; split where streams miss.

    Raises RecordingTooShort naming recording, found and wanted.
    """
    common_s = common_step_s((config.video_rate_hz, config.track_rate_hz))
    hop_s = config.duration_s - overlap_s
    step_s = 1 / common_step_s((common_s, hop_s))  # the longest that both are whole multiples of
    try:
        plan = plan_clips(recording, replace(config, stride_s=step_s))
    except RecordingTooShort:
        raise RecordingTooShort(tell_too_short(recording, config)) from None
    if not plan.windows:
        raise RecordingTooShort(tell_too_short(recording, config))
    runs: list[list[Window]] = []
    for window in plan.windows:
        if runs and window.index - runs[-1][-1].index == 1:
            runs[-1].append(window)
        else:
            runs.append([window])
    hop = round((config.duration_s - overlap_s) / step_s)
    base = clip_key(recording.name, 0).removesuffix("_000000")
    segments = []
    for number, run in enumerate(runs, start=1):
        chosen = run[::hop]
        if chosen[-1] is not run[-1]:
            chosen = [*chosen, run[-1]]
        key = base if number == 1 else f"{base}_part{number}"
        segments.append(Segment(key, recording, config, tuple(chosen), unused_s=plan.unused_s))
    return segments


class Store(Protocol):
    """Keeps tokens of windows by key."""

    def load(self, key: str) -> TokenClip | None: ...

    def save(self, clip: TokenClip) -> None: ...


_AS_IS = StitchConfig(camera="none", depth="none")


@dataclass(frozen=True)
class LongResult:
    """A segment of a recording as one clip, however long.

    generated   tokens are (W, L): one row per window
    overlaps    stream -> what joining measured, one entry per overlap
    windows_s   start of every window
    """

    generated: Generated
    overlaps: Mapping[str, Sequence[Mapping[str, float]]]
    windows_s: tuple[float, ...]

    def note(self) -> dict[str, Any]:
        """For clip.json."""
        overlaps = {
            name: {"mean": overlap_summary(list(found)), "each": list(found)} for name, found in self.overlaps.items()
        }
        return {"windows_s": list(self.windows_s), "overlaps": overlaps}


def generate_segment(
    checkpoint: Checkpoint,
    segment: Segment,
    request: Request,
    *,
    seeds: Sequence[int],
    store: Store | None = None,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> LongResult:
    """Generate every window of a segment and join them.

    seeds    one per window
    store    keeps the tokens of finished windows, so that an interrupted segment goes on where it was
    folder   pictures of the result lie in files without a name below it instead of in memory: hours of them
    """
    request = request.settled(checkpoint)
    specs = request.specs(checkpoint)
    sequences = _Sequences(checkpoint, segment, request, folder)
    tokens: list[TokenClip] = []
    # A conditioned window waits for the one before it, so there is never more than one to make.
    size = 1 if request.join == "condition" else max(1, request.batch_size // request.num_samples)
    for first in range(0, len(segment.windows), size):
        windows = segment.windows[first : first + size]
        clips = [segment.clip(window) for window in windows]
        partial = [sequences.partial_prompts(windows[0])] if request.join == "condition" else None
        made = _made(checkpoint, clips, request, seeds[first : first + size], partial, store)
        values = decode_targets(checkpoint, made, request)
        for row, (window, clip) in enumerate(zip(windows, clips, strict=True)):
            sequences.add(window, clip, {name: values[name][row] for name in values})
        tokens += made
        shown = condition_names(checkpoint, clips[0], request, specs)
        advance(len(windows))
    return sequences.result(tokens, [name for name in shown if checkpoint.spec(name).is_input_only])


def window_seeds(seed: int, recording: int, segment: Segment) -> list[int]:
    """Seeds of the windows of recording number `recording`: the same whatever was made before.

    Recordings are numbered apart by more windows than most have (10,007 of them half a second apart are over an hour;
    where they are more, two windows of different recordings share a seed, and nothing else).
    """
    return [clip_seed(seed, recording * 10_007 + window.index) for window in segment.windows]


def _made(
    checkpoint: Checkpoint,
    clips: Sequence[AlignedClip],
    request: Request,
    seeds: Sequence[int],
    partial: Sequence[Mapping[str, np.ndarray]] | None,
    store: Store | None,
) -> list[TokenClip]:
    """Tokens of some windows, from the store where it has them."""
    found = {clip.key: store.load(clip.key) if store else None for clip in clips}
    missing = [row for row, clip in enumerate(clips) if found[clip.key] is None]

    def fill(rows: Sequence[int]) -> list[TokenClip]:
        part = None if partial is None else [partial[row] for row in rows]
        chosen = [seeds[row] for row in rows]
        return fill_tokens(checkpoint, [clips[row] for row in rows], request, chosen, partial=part)

    for made in in_smaller_batches(fill, missing):
        found[made.key] = made
        if store:
            store.save(made)
    return [found[clip.key] for clip in clips]


class _Sequences:
    """The growing streams of a segment: what was given, and what was made."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        segment: Segment,
        request: Request,
        folder: Path | None,
    ) -> None:
        specs = request.specs(checkpoint)
        self._checkpoint, self._segment, self._specs, self._folder = checkpoint, segment, specs, folder
        self._stitching = request.stitching
        several = request.num_samples > 1
        self._ranges = range_notes(checkpoint.directory, specs, request.num_samples) if several else {}
        self._streams = {spec.name: stream_of(checkpoint, spec) for spec in specs}
        self._made: dict[tuple[str, str], JoinedStream] = {}  # by modality, and which of its streams
        self._given: dict[str, JoinedStream] = {}
        self._units: dict[str, str] = {}
        self._first: AlignedClip | None = None
        common = [set(window.streams) for window in segment.windows]
        self._kept = set.intersection(*common) - set(self._streams.values())

    def partial_prompts(self, window: Window) -> dict[str, np.ndarray]:
        """Target -> ids (L,), UNKNOWN beyond what the sequences hold of a window; nothing for the first one."""
        found = {}
        for spec in self._specs:
            sequence = self._made.get((spec.name, ""))
            start = round(self._segment.first_sample(window, spec.rate_hz or 1.0))
            if sequence is None or sequence.end <= start:
                continue
            values, is_valid = sequence.part(start, sequence.end)
            count = self._num_samples(spec)
            is_given_S = np.arange(count) < len(values)
            # The last value repeated, invalid: it must not look like a jump to what lies before it.
            padding = np.repeat(values[-1:], count - len(values), axis=0)
            stream = Stream(
                np.concatenate([values, padding]),
                np.concatenate([is_valid, np.zeros(len(padding), bool)]),
                window.start_s + np.arange(count) / (spec.rate_hz or 1.0),
                spec.signal.unit,
            )
            tokenizer = self._checkpoint.tokenizer(spec.name)
            assert self._first is not None
            clip = replace(self._first, streams={tokenizer.stream: stream})
            if not is_valid.any():
                continue
            found[spec.name] = encode_given(tokenizer, clip, is_given_S)
        return found

    def add(self, window: Window, clip: AlignedClip, values: Mapping[str, Sequence[Part]]) -> None:
        """Join one window's streams to the sequences; values: the samples of every target."""
        self._first = self._first or clip
        for spec in self._specs:
            rate_hz, samples = spec.rate_hz or 1.0, values[spec.name]
            parts = {"": samples[0]}
            if len(samples) > 1 and spec.signal.is_relative:
                # Every sample is joined by itself: windows know their own world, and ranges grow along the way.
                parts |= {str(number): sample for number, sample in enumerate(samples) if number}
            elif len(samples) > 1:
                parts = summary(spec.signal, samples, self._stretch(spec))
            for part, window_values in parts.items():
                if (spec.name, part) not in self._made:
                    self._made[spec.name, part] = joined_stream(
                        spec.signal,
                        self._segment.num_samples(rate_hz),
                        self._stitching if part not in (LOW, HIGH) else _AS_IS,
                        errors=self._errors(spec),
                        folder=self._folder,
                    )
                self._made[spec.name, part].add(self._segment.first_sample(window, rate_hz), *window_values)
        for name in self._kept & set(clip.streams):
            stream = clip.streams[name]
            if stream.values.dtype.kind not in "fiub":
                continue  # captions: text has no clock to be joined on
            if name not in self._given:
                length = self._segment.num_samples(self._rate_hz(name))
                self._given[name] = joined_stream(quantity_of_stream(name), length, _AS_IS, folder=self._folder)
                self._units[name] = stream.unit
            start = self._segment.first_sample(window, self._rate_hz(name))
            self._given[name].add(start, stream.values, stream.is_valid)

    def result(self, tokens: Sequence[TokenClip], pixels: Sequence[str]) -> LongResult:
        """pixels: modalities that were shown and have no tokens"""
        assert self._first is not None
        streams = {
            name: self._at_rate(sequence.result(), self._rate_hz(name), self._units[name])
            for name, sequence in self._given.items()
        }
        for spec in self._specs:
            for part, values in self._results(spec).items():
                found = self._at_rate(values, spec.rate_hz or 1.0, spec.signal.unit)
                streams[self._streams[spec.name] + part] = found
        made = tuple(spec.name for spec in self._specs)
        shared = set.intersection(*(set(clip.tokens) for clip in tokens))
        stacked = {name: np.stack([clip.tokens[name] for clip in tokens]) for name in sorted(shared)}
        given = (*(name for name in stacked if name not in made), *pixels)
        ranges = {self._streams[name]: asdict(note) for name, note in self._ranges.items()}
        extra = dict(self._first.extra) | {"given": list(given), "made": list(made), "ranges": ranges}
        clip = replace(self._first, key=self._segment.key, streams=streams, extra=extra)
        return LongResult(
            Generated(
                clip,
                TokenClip(clip.key, stacked, tokens[0].fingerprints),
                given,
                made,
                tuple(self._streams[name] for name in made),
            ),
            overlaps={self._streams[name]: tuple(self._made[name, ""].reports) for name in made},
            windows_s=tuple(window.start_s for window in self._segment.windows),
        )

    def _results(self, spec: ModalitySpec) -> dict[str, Part]:
        """What is joined of a target, and the ends of its range."""
        sequences = {part: sequence for (name, part), sequence in self._made.items() if name == spec.name}
        parts = {part: sequence.result() for part, sequence in sequences.items()}
        if len(parts) > 1 and spec.signal.is_relative:
            return summary(spec.signal, list(parts.values()), self._stretch(spec))
        main = sequences[""]
        if isinstance(main, ScaledStream):  # the range follows what lies inside of it
            for part in parts.keys() - {""}:
                main.scale(parts[part][0])
        return parts

    def _stretch(self, spec: ModalitySpec) -> float | None:
        return self._ranges[spec.name].stretch if spec.name in self._ranges else None

    def _at_rate(self, part: Part, rate_hz: float, unit: str) -> Stream:
        values, is_valid = part
        return Stream(values, is_valid, self._segment.start_s + np.arange(len(values)) / rate_hz, unit)

    def _errors(self, spec: ModalitySpec) -> ErrorsOf:
        """How motions of the decoded windows err."""
        tokenizer = self._checkpoint.tokenizer(spec.name)
        return partial(motion_errors, tokenizer, rate_hz=spec.rate_hz or 1.0, num_samples=self._num_samples(spec))

    def _rate_hz(self, stream: str) -> float:
        config = self._segment.config
        return config.video_rate_hz if stream in PICTURE_STREAMS else config.track_rate_hz

    def _num_samples(self, spec: ModalitySpec) -> int:
        return round(self._segment.config.duration_s * (spec.rate_hz or 1.0))
