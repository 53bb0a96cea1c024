"""Recordings of any length: overlapping windows, generated and joined into one result.

W windows, S samples of a window, n of an overlap, L tokens.

`stitch` generates every window by itself, in batches, and joins them. `condition` goes window by window: the part of
each target that the line already holds is encoded and given to the model, which continues it; then they are joined
alike. Tokens of a window cannot simply be moved to the next: its positions lie on another clock, a video's first token
is one frame alone, and camera poses are relative to the window's first one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, Stream, TokenClip
from egom2p.data.clips.clip_alignment import IMAGES, Window
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.clip_generation import (
    UNITS,
    Generated,
    Request,
    clip_seed,
    decode_targets,
    fill_tokens,
    stream_of,
)
from egom2p.generation.generation_memory import in_smaller_batches
from egom2p.generation.partial_prompts import encode_known
from egom2p.generation.recording_windows import Stretch
from egom2p.generation.stitching import JoinedStream, StitchConfig, joined_stream, seam_summary

Join = Literal["stitch", "condition", "none"]


class Store(Protocol):
    """Keeps tokens of windows by key."""

    def load(self, key: str) -> TokenClip | None: ...

    def save(self, clip: TokenClip) -> None: ...


_QUANTITY_OF_STREAM = {"rgb": "rgb", "depth": "depth", "camera": "camera"}
_AS_IS = StitchConfig(camera="none", depth="none")


@dataclass(frozen=True)
class LongResult:
    """A stretch of a recording as one clip, however long.

    generated   tokens are (W, L): one row per window
    seams       stream -> what joining said, one entry per seam
    windows_s   start of every window
    """

    generated: Generated
    seams: Mapping[str, Sequence[Mapping[str, float]]]
    windows_s: tuple[float, ...]

    def note(self) -> dict[str, Any]:
        """For clip.json."""
        seams = {name: {"mean": seam_summary(list(found)), "each": list(found)} for name, found in self.seams.items()}
        return {"windows_s": list(self.windows_s), "seams": seams}


def generate_stretch(
    checkpoint: Checkpoint,
    stretch: Stretch,
    request: Request,
    *,
    seeds: Sequence[int],
    join: Join = "stitch",
    stitching: StitchConfig | None = None,
    batch_size: int = 8,
    store: Store | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> LongResult:
    """Generate every window of a stretch and join them.

    seeds    one per window
    store    keeps the tokens of finished windows, so that an interrupted stretch goes on where it was
    """
    if request.hidden:
        raise ValueError("hidden parts belong to single clips; generate with join=none")
    specs = request.specs(checkpoint)
    lines = _Lines(checkpoint, stretch, specs, stitching or StitchConfig())
    tokens: list[TokenClip] = []
    size = 1 if join == "condition" else batch_size
    for first in range(0, len(stretch.windows), size):
        windows = stretch.windows[first : first + size]
        clips = [stretch.clip(window) for window in windows]
        known = [lines.known_tokens(windows[0])] if join == "condition" else None
        made = _made(checkpoint, clips, request, seeds[first : first + size], known, store)
        values = decode_targets(checkpoint, made, specs)
        for row, (window, clip) in enumerate(zip(windows, clips, strict=True)):
            lines.add(window, clip, {name: parts[row] for name, parts in values.items()})
        tokens += made
        advance(len(windows))
    return lines.result(tokens)


def window_seeds(seed: int, recording: int, stretch: Stretch) -> list[int]:
    """Seeds of the windows of recording number `recording`: the same whatever was made before."""
    return [clip_seed(seed, recording * 10_007 + window.index) for window in stretch.windows]


def _made(
    checkpoint: Checkpoint,
    clips: Sequence[AlignedClip],
    request: Request,
    seeds: Sequence[int],
    known: Sequence[Mapping[str, np.ndarray]] | None,
    store: Store | None,
) -> list[TokenClip]:
    """Tokens of some windows, from the store where it has them."""
    found = {clip.key: store.load(clip.key) if store else None for clip in clips}
    missing = [row for row, clip in enumerate(clips) if found[clip.key] is None]

    def fill(rows: Sequence[int]) -> list[TokenClip]:
        part = None if known is None else [known[row] for row in rows]
        return fill_tokens(checkpoint, [clips[row] for row in rows], request, [seeds[row] for row in rows], known=part)

    for made in in_smaller_batches(fill, missing):
        found[made.key] = made
        if store:
            store.save(made)
    return [found[clip.key] for clip in clips]


class _Lines:
    """The growing streams of a stretch: what was given, and what was made."""

    def __init__(
        self, checkpoint: Checkpoint, stretch: Stretch, specs: Sequence[ModalitySpec], stitching: StitchConfig
    ) -> None:
        self._checkpoint, self._stretch, self._specs, self._stitching = checkpoint, stretch, specs, stitching
        self._streams = {spec.name: stream_of(checkpoint, spec) for spec in specs}
        self._made: dict[str, JoinedStream] = {}
        self._given: dict[str, JoinedStream] = {}
        self._units: dict[str, str] = {}
        self._first: AlignedClip | None = None
        common = [set(window.streams) for window in stretch.windows]
        self._kept = set.intersection(*common) - set(self._streams.values())

    def known_tokens(self, window: Window) -> dict[str, np.ndarray]:
        """Target -> ids (L,), -1 where unknown, of what the lines hold of a window; nothing for the first one."""
        found = {}
        for spec in self._specs:
            line = self._made.get(spec.name)
            start = self._stretch.first_sample(window, spec.rate_hz or 1.0)
            if line is None or line.end <= start:
                continue
            values, is_valid = line.part(start, line.end)
            count = self._num_samples(spec)
            is_known_S = np.arange(count) < len(values)
            padding = np.repeat(values[-1:], count - len(values), axis=0)
            stream = Stream(
                np.concatenate([values, padding]),
                np.concatenate([is_valid, np.zeros(len(padding), bool)]),
                window.start_s + np.arange(count) / (spec.rate_hz or 1.0),
                UNITS.get(spec.quantity, ""),
            )
            tokenizer = self._checkpoint.tokenizer(spec.name)
            assert self._first is not None
            clip = replace(self._first, streams={tokenizer.stream: stream})
            if not is_valid.any():
                continue
            found[spec.name] = encode_known(tokenizer, clip, is_known_S)
        return found

    def add(self, window: Window, clip: AlignedClip, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Join one window's streams to the lines."""
        self._first = self._first or clip
        for spec in self._specs:
            rate_hz = spec.rate_hz or 1.0
            if spec.name not in self._made:
                length = self._stretch.num_samples(rate_hz)
                self._made[spec.name] = joined_stream(spec.quantity, length, self._stitching)
            self._made[spec.name].add(self._stretch.first_sample(window, rate_hz), *values[spec.name])
        for name in self._kept & set(clip.streams):
            stream = clip.streams[name]
            if stream.values.dtype.kind not in "fiub":
                continue  # captions: text has no clock to be joined on
            if name not in self._given:
                length = self._stretch.num_samples(self._rate_hz(name))
                self._given[name] = joined_stream(_QUANTITY_OF_STREAM.get(name, "track"), length, _AS_IS)
                self._units[name] = stream.unit
            start = self._stretch.first_sample(window, self._rate_hz(name))
            self._given[name].add(start, stream.values, stream.is_valid)

    def result(self, tokens: Sequence[TokenClip]) -> LongResult:
        assert self._first is not None
        streams = {
            name: self._stream(line, self._rate_hz(name), self._units[name]) for name, line in self._given.items()
        }
        for spec in self._specs:
            line = self._made[spec.name]
            streams[self._streams[spec.name]] = self._stream(line, spec.rate_hz or 1.0, UNITS.get(spec.quantity, ""))
        made = tuple(spec.name for spec in self._specs)
        shared = set.intersection(*(set(clip.tokens) for clip in tokens))
        stacked = {name: np.stack([clip.tokens[name] for clip in tokens]) for name in sorted(shared)}
        given = tuple(name for name in stacked if name not in made)
        extra = dict(self._first.extra) | {"given": list(given), "made": list(made)}
        clip = replace(self._first, key=self._stretch.key, streams=streams, extra=extra)
        return LongResult(
            Generated(
                clip,
                TokenClip(clip.key, stacked, tokens[0].fingerprints),
                given,
                made,
                tuple(self._streams[name] for name in made),
            ),
            seams={self._streams[name]: tuple(line.reports) for name, line in self._made.items()},
            windows_s=tuple(window.start_s for window in self._stretch.windows),
        )

    def _stream(self, line: JoinedStream, rate_hz: float, unit: str) -> Stream:
        values, is_valid = line.part(0, line.end)
        return Stream(values, is_valid, self._stretch.start_s + np.arange(len(values)) / rate_hz, unit)

    def _rate_hz(self, stream: str) -> float:
        config = self._stretch.config
        return config.video_rate_hz if stream in IMAGES else config.track_rate_hz

    def _num_samples(self, spec: ModalitySpec) -> int:
        return round(self._stretch.config.duration_s * (spec.rate_hz or 1.0))
