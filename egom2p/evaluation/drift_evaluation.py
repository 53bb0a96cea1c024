"""The drift table: what becomes of long recordings when windows are joined, and which way of joining is best.

    python -m egom2p.evaluation.drift_evaluation --config cfgs/default/egom2p/evaluation/drift.yaml

Every row makes the same recordings from the same conditions; rows differ in windows and joining. The truth that went
through the tokenizers window by window is joined as well: what the model could reach at best.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.config import Count, Natural, NotNegative, Positive, run_main, strict, to_plain
from egom2p.contracts import QUANTITIES, Recording, TokenClip, quantity_of_stream
from egom2p.contracts.quantities import PICTURE_STREAMS
from egom2p.data.recordings.reader_choice import SourceConfig, open_reader
from egom2p.evaluation.quantities import SCORING
from egom2p.evaluation.scoring import Scores
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.generation.generation_inputs import clip_config_of, kind_of_input, read_recordings
from egom2p.generation.long_generation import (
    LongResult,
    Segment,
    generate_segment,
    overlap_of,
    plan_segments,
    window_seeds,
)
from egom2p.generation.request import Join, Request
from egom2p.generation.stitching import StitchConfig, joined_stream, overlap_summary
from egom2p.geometry import canonicalise
from egom2p.jobs.progress import progress_bar, say
from egom2p.metrics.drift import path_length_m
from egom2p.metrics.measurements import Measured, Method, write_results
from egom2p.metrics.result_table import MethodKind
from egom2p.models.sampling import SamplingConfig
from egom2p.storage import RemoteConfig, configure_remote, only_writer


@strict
class RecordingsConfig:
    """Long recordings with truth.

    source, input   a reader, or a path of recordings
    rate_hz         of pictures without times
    segments_m      lengths over which relative camera errors are measured
    """

    source: SourceConfig | None = None
    input: str | None = None
    rate_hz: Positive | None = None
    segments_m: tuple[Positive, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        if (self.input is None) == (self.source is None):
            raise ValueError("recordings come either from a source or from an input")


@strict
class DriftRow:
    """One way to make a long recording; is_ceiling: of the truth, through the tokenizers, instead of by the model."""

    join: Join = "stitch"  # how sequences become one
    overlap_s: NotNegative = 1.0  # seconds that two sequences share
    stitching: StitchConfig = StitchConfig()
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    is_ceiling: bool = False


@strict
class DriftConfig:
    """One drift table.

    recordings   label -> recordings; one group of tables each
    rows         label -> way of making them
    max_recordings   of each label
    """

    checkpoint: str | None = None  # model directory; null: the first pretrained one
    output: str
    recordings: dict[str, RecordingsConfig]
    rows: dict[str, DriftRow]
    conditions: tuple[str, ...] = ("rgb",)  # quantities that are given
    targets: tuple[str, ...] = ("depth", "camera", "gaze")  # quantities that are generated
    max_recordings: Count | None = None
    batch_size: Count = 16
    seed: Natural = 0
    device: str = "auto"
    remote: RemoteConfig = RemoteConfig()  # waiting for and asking of S3
    progress: bool = True
    description: str = ""


_DRIFT = {name: scoring.drift for name, scoring in SCORING.items() if scoring.drift is not None}
_STREAMS = {QUANTITIES[name].stream: name for name in _DRIFT}
_AS_IS = StitchConfig(camera="none", depth="none")
Truth = dict[str, tuple[np.ndarray, np.ndarray]]
"""Quantity -> values and validity of a whole recording."""


@dataclass
class _Tables:
    """Values of one group of recordings: quantity -> row -> metric -> one value per recording."""

    segments_m: Sequence[float]
    names: dict[str, list[str]] = field(default_factory=dict)  # quantity -> recordings that have its truth
    values: dict[str, dict[str, dict[str, list[float | None]]]] = field(default_factory=dict)
    kinds: dict[str, MethodKind] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    travelled_m: list[float] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)

    def begin(self, recording: str, quantities: Iterable[str]) -> None:
        for quantity in quantities:
            self.names.setdefault(quantity, []).append(recording)

    def add(self, quantity: str, row: str, kind: MethodKind, found: Scores) -> None:
        self.kinds[row] = kind
        columns = self.values.setdefault(quantity, {}).setdefault(row, {})
        for metric in _DRIFT[quantity].metrics:
            columns.setdefault(metric.key, []).append(found.get(metric.key))


class _Kept:
    """Tokens of windows in memory: rows that differ in joining alone share them."""

    def __init__(self) -> None:
        self._tokens: dict[str, TokenClip] = {}

    def load(self, key: str) -> TokenClip | None:
        return self._tokens.get(key)

    def save(self, clip: TokenClip) -> None:
        self._tokens[clip.key] = clip


def run_drift(config: DriftConfig) -> Path:
    """Make every row of every recording; writes results.json, results.md and per_clip.csv; returns the folder."""
    configure_remote(config.remote)
    with only_writer(config.output):
        return _run_drift(config)


def _run_drift(config: DriftConfig) -> Path:
    checkpoint = load_checkpoint(config.checkpoint, device=config.device)
    folder, measured, about = Path(config.output), [], {}
    for label, source in config.recordings.items():
        tables = _Tables(source.segments_m)
        for number, recording in enumerate(_recordings(source, config.max_recordings)):
            _measure(checkpoint, recording, number, config, tables)
        if not tables.names:
            raise ValueError(f"{label}: found no recording that holds the conditions and the truth of a target")
        measured += _measured(label, tables)
        about[label] = {
            "segments_m": list(source.segments_m),
            "num_recordings": len(tables.duration_s),
            "duration_s": tables.duration_s,
            "travelled_m": tables.travelled_m,
            "seconds": {row: round(value, 2) for row, value in tables.seconds.items()},
        }
    words = [
        f"{label}: {note['num_recordings']} recordings, {np.mean(note['duration_s']):.1f} s and "
        f"{np.mean(note['travelled_m']):.1f} m on average, camera segments of "
        f"{', '.join(f'{length:g}' for length in note['segments_m'])} m"
        for label, note in about.items()
    ]
    description = f"{config.description} {'; '.join(words)}.".strip()
    further = {"config": to_plain(config), "checkpoint": str(checkpoint.directory), "recordings": about}
    write_results(folder, description, further, measured, seed=config.seed)
    say(f"wrote {folder}/results.md, results.json, per_clip.csv")
    return folder


def _recordings(config: RecordingsConfig, limit: int | None) -> Iterator[Recording]:
    if config.source is not None:
        reader = open_reader(config.source)
        count = len(reader) if limit is None else min(limit, len(reader))
        yield from (reader.read(index) for index in range(count))
    elif config.input is not None:
        found = read_recordings(config.input, kind_of_input(config.input), rate_hz=config.rate_hz)
        for number, recording in enumerate(found):
            if limit is not None and number >= limit:
                return
            yield recording


def _measure(checkpoint: Checkpoint, recording: Recording, number: int, config: DriftConfig, tables: _Tables) -> None:
    clip_config = clip_config_of(checkpoint, span="common")
    targets = tuple(
        word for word in config.targets if checkpoint.tokenizer(checkpoint.spec(word).name).stream in recording.streams
    )
    if not targets:
        say(f"left out {recording.name}: it has {sorted(recording.streams)}, no truth of {list(config.targets)}")
        return
    quantities = [name for name in (checkpoint.spec(word).quantity for word in targets) if name in _DRIFT]
    tables.begin(recording.name, quantities)
    kept: dict[Any, _Kept] = {}
    truth: Truth = {}
    with progress_bar(f"drift of {recording.name}", len(config.rows), is_shown=config.progress) as advance:
        for label, row in config.rows.items():
            overlap_s = overlap_of(clip_config, row.overlap_s, join=row.join)
            (segment, *rest) = plan_segments(recording, clip_config, overlap_s=overlap_s)
            if rest:
                raise ValueError(f"{recording.name}: streams miss for a while; drift wants recordings without a hole")
            if not truth:
                truth = _truth(segment)
                tables.duration_s.append(segment.duration_s)
                camera = truth.get("camera")
                tables.travelled_m.append(path_length_m(camera[0]) if camera else 0.0)
                rate_hz = clip_config.video_rate_hz
                for quantity in quantities:
                    if quantity in truth:
                        for name, estimate in _DRIFT[quantity].baselines(truth[quantity][0]).items():
                            found = _DRIFT[quantity].score(estimate, *truth[quantity], tables.segments_m, rate_hz)
                            tables.add(quantity, name, "baseline", found)
            request = Request(
                targets=targets, conditions=config.conditions, sampling=row.sampling, num_samples=1, chain=True,
                join=row.join, stitching=row.stitching, seed=config.seed, batch_size=config.batch_size,
            )  # fmt: skip
            # Windows that were conditioned depend on how those before them were joined.
            shared = (row.join, overlap_s, repr(row.sampling), row.stitching if row.join == "condition" else None)
            store = kept.setdefault((*shared, row.is_ceiling), _Kept())
            if row.is_ceiling:
                _tokenize_truth(checkpoint, segment, request, store)
            start = time.perf_counter()
            result = generate_segment(
                checkpoint,
                segment,
                request,
                seeds=window_seeds(config.seed, number, segment),
                store=store,
            )
            tables.seconds[label] = tables.seconds.get(label, 0.0) + time.perf_counter() - start
            for quantity, found in _scores(result, truth, tables.segments_m, clip_config.video_rate_hz).items():
                tables.add(quantity, label, "ceiling" if row.is_ceiling else "model", found)
            advance(1)


def _scores(result: LongResult, truth: Truth, segments_m: Sequence[float], rate_hz: float) -> dict[str, Scores]:
    """Quantity -> metric -> value, of the targets that have a truth; rate_hz: of its pictures."""
    found = {}
    for stream in result.generated.made_streams:
        quantity = _STREAMS.get(stream)
        if quantity in truth:
            wanted, is_valid = truth[quantity]
            values = result.generated.clip.streams[stream].values
            count = min(len(values), len(wanted))  # rows end where their windows do
            own = _DRIFT[quantity].score(values[:count], wanted[:count], is_valid[:count], segments_m, rate_hz)
            found[quantity] = own | overlap_summary(list(result.overlaps[stream]))
    return found


def _truth(segment: Segment) -> Truth:
    """Of the whole segment; poses relative to the first."""
    sequences = {}
    for window in segment.windows:
        clip = segment.clip(window)
        for name in set(_STREAMS) & set(clip.streams):
            config = segment.config
            rate_hz = config.video_rate_hz if name in PICTURE_STREAMS else config.track_rate_hz
            if name not in sequences:
                sequences[name] = joined_stream(quantity_of_stream(name), segment.num_samples(rate_hz), _AS_IS)
            stream = clip.streams[name]
            sequences[name].add(segment.first_sample(window, rate_hz), stream.values, stream.is_valid)
    found = {_STREAMS[name]: sequence.part(0, sequence.end) for name, sequence in sequences.items()}
    return {
        name: (canonicalise(values) if QUANTITIES[name].is_relative else values, is_valid)
        for name, (values, is_valid) in found.items()
    }


def _tokenize_truth(checkpoint: Checkpoint, segment: Segment, request: Request, store: _Kept) -> None:
    names = [spec.name for spec in request.specs(checkpoint)]
    names += [spec.name for word in request.conditions or () for spec in checkpoint.inputs(word)]
    for window in segment.windows:
        clip = segment.clip(window)
        if store.load(clip.key) is None:
            store.save(checkpoint.tokenize([clip], names)[0])


def _measured(label: str, tables: _Tables) -> list[Measured]:
    measured = []
    for quantity, rows in tables.values.items():
        methods = [Method(row, tables.kinds[row], values) for row, values in rows.items()]
        names = tables.names[quantity]
        metrics = _DRIFT[quantity].metrics
        measured.append(Measured(f"{label}, {quantity}", quantity, names, names, metrics, methods))
    return measured


if __name__ == "__main__":
    run_main(
        DriftConfig,
        run_drift,
        default_config="default/egom2p/evaluation/drift.yaml",
        description="Compare ways of joining the windows of long recordings.",
    )
