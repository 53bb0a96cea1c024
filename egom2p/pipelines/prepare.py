"""Recordings -> aligned clips on disk.

Everything is planned before anything is written, so bad input is an error at once; then shards are made one by one,
each by one process, and a run that is interrupted continues with the shards that are not there yet.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from egom2p.config import strict, to_plain
from egom2p.contracts import Recording, plain_name
from egom2p.data.clips.clip_alignment import (
    ClipConfig,
    KeptPictures,
    RecordingTooShort,
    Window,
    clip_key,
    cut_clip,
    plan_clips,
)
from egom2p.data.clips.clip_store import META, clip_folders, encode_clip
from egom2p.data.recordings.reader_choice import Reader, SourceConfig, identity, open_reader, outline
from egom2p.data.shards.shard_set import CARD_NAME
from egom2p.data.shards.shard_writer import check_finished, finished_keys, shard_path, write_shard
from egom2p.jobs.progress import progress_bar, say
from egom2p.jobs.workers import Workers, tick
from egom2p.storage import inside, load_json, only_writer, save_json

REPORT_NAME = "prepare_report.json"
_MAX_LISTED = 20


@strict
class PrepareConfig:
    """Where recordings come from, how they are cut, where the clips go."""

    source: SourceConfig
    clip: ClipConfig
    output: str
    dataset: str
    streams: tuple[str, ...] | None = None  # keep only these
    clips_per_shard: int = 100
    num_workers: int = 0
    skip_short: bool = False  # recordings shorter than a clip: counted instead of an error
    bad_recordings: Literal["error", "skip"] = "error"  # unreadable recordings: `skip` counts and lists them

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1 or self.num_workers < 0:
            raise ValueError(f"clips_per_shard {self.clips_per_shard} and num_workers {self.num_workers}: too small")
        if "." in plain_name(self.dataset, "dataset"):
            raise ValueError(f"dataset is a name without dot, got {self.dataset!r}")


@dataclass(frozen=True)
class PlannedRecording:
    """Clips of one recording, or why it gives none."""

    index: int
    name: str
    windows: tuple[Window, ...] = ()
    num_empty: int = 0
    unused_s: float = 0.0
    problem: str = ""
    is_too_short: bool = False
    unused_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrepareReport:
    """What a run wrote and what it left out.

    datasets    data set -> {"streams", "num_clips", "num_shards"}
    absent      stream -> {reason -> number of clips that lack it}; reasons without their numbers
    skipped     recording -> why it gave no clip
    unused_files    recording -> files in it that no stream was made from
    notes           recording -> what a person should know of its material
    """

    datasets: dict[str, dict[str, Any]]
    num_recordings: int
    num_clips: int
    num_empty_windows: int
    unused_s: float
    absent: dict[str, int] = field(default_factory=dict)
    absent_examples: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unused_files: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shard:
    """One shard to be: its data set, number, streams, and the (recording index, window) of its clips."""

    dataset: str
    number: int
    streams: tuple[str, ...]
    clips: tuple[tuple[int, Window], ...]


def prepare(config: PrepareConfig) -> PrepareReport:
    """Plan, write the clips that are missing, and write the report; returns it.

    Raises ValueError naming every unreadable or too short recording before anything is written, and when another
    process is preparing this data set.
    """
    with only_writer(inside(config.output, META, config.dataset)):
        return _prepare(config)


def _prepare(config: PrepareConfig) -> PrepareReport:
    reader = open_reader(config.source, dataset=config.dataset)
    with Workers(config.num_workers, _Desk.open, (config,)) as workers:
        plans = _plan_all(config, reader, workers)
        shards = _assign_shards(config, plans)
        report = _report(plans, shards)
        missing = _missing_shards(config, shards, reader.names)
        _write_cards(config, report)
        num_missing = sum(len(shard.clips) for shard in missing)
        if len(missing) < len(shards):
            say(f"{len(shards) - len(missing)} of {len(shards)} shards are there already")
        with progress_bar(f"clips -> {config.output}", num_missing, is_shown=num_missing > 0) as advance:
            list(workers.run(_write_planned_shard, missing, on_tick=advance))
    path = Path(config.output) / META / config.dataset / REPORT_NAME
    save_json(path, {"config": to_plain(config), "report": to_plain(report)})
    say(summary(report) + f"\nreport: {path}")
    return report


def read_report(output: str | Path, dataset: str) -> PrepareReport:
    """The report of an earlier run."""
    return PrepareReport(**load_json(Path(output) / META / dataset / REPORT_NAME)["report"])


def summary(report: PrepareReport) -> str:
    """The report in a few lines."""
    lines = [f"{report.num_clips} clips of {report.num_recordings} recordings"]
    for dataset, about in report.datasets.items():
        lines.append(f"  {dataset}: {about['num_clips']} clips, {about['num_shards']} shards, {about['streams']}")
    for stream, count in report.absent.items():
        lines.append(f"  {stream} is absent in {count} clips, e.g. {report.absent_examples[stream]}")
    if report.num_empty_windows:
        lines.append(f"  {report.num_empty_windows} windows left out: no usable stream")
    if report.unused_s > 0:
        lines.append(f"  {report.unused_s:.2f} s of recordings lie outside clips")
    for name, files in list(report.unused_files.items())[:_MAX_LISTED]:
        more = f" and {len(files) - _MAX_LISTED} more" if len(files) > _MAX_LISTED else ""
        lines.append(f"  not used of {name}: {', '.join(files[:_MAX_LISTED])}{more}")
    if len(report.unused_files) > _MAX_LISTED:
        lines.append(f"  ... files not used in {len(report.unused_files)} recordings in all (the report names them)")
    for name, notes in list(report.notes.items())[:_MAX_LISTED]:
        lines.append(f"  note on {name}: {'; '.join(notes)}")
    if len(report.notes) > _MAX_LISTED:
        lines.append(f"  ... notes on {len(report.notes)} recordings in all (the report has them)")
    for name, why in list(report.skipped.items())[:_MAX_LISTED]:
        lines.append(f"  skipped {name}: {why}")
    if len(report.skipped) > _MAX_LISTED:
        lines.append(f"  ... {len(report.skipped)} recordings skipped in all")
    return "\n".join(lines)


class _Desk:
    """What one process works with: config, reader, the recording it read last, and the pictures of its last clip."""

    config: PrepareConfig
    reader: Reader
    last: tuple[int, Recording] | None = None
    pictures: KeptPictures

    @classmethod
    def open(cls, config: PrepareConfig) -> None:
        cls.config, cls.reader, cls.last = config, open_reader(config.source, dataset=config.dataset), None

    @classmethod
    def recording(cls, index: int) -> Recording:
        if cls.last is None or cls.last[0] != index:
            cls.last, cls.pictures = (index, _kept(cls.reader.read(index), cls.config.streams)), {}
        return cls.last[1]


def _kept(recording: Recording, streams: Sequence[str] | None) -> Recording:
    if streams is None:
        return recording
    kept = {name: stream for name, stream in recording.streams.items() if name in streams}
    if not kept:
        raise ValueError(f"{recording.name}: found streams {sorted(recording.streams)}, wanted some of {list(streams)}")
    return replace(recording, streams=kept)


def _plan_all(config: PrepareConfig, reader: Reader, workers: Workers) -> list[PlannedRecording]:
    with progress_bar(f"reading {config.dataset}", len(reader)) as advance:
        plans = list(workers.run(_plan_one, range(len(reader)), on_tick=advance))
    fatal = [
        plan
        for plan in plans
        if plan.problem and not (config.skip_short if plan.is_too_short else config.bad_recordings == "skip")
    ]
    if fatal:
        lines = [plan.problem for plan in fatal[:_MAX_LISTED]]
        more = [f"... {len(fatal)} recordings in all"] if len(fatal) > _MAX_LISTED else []
        advice = "skip_short=true" if all(plan.is_too_short for plan in fatal) else "bad_recordings=skip"
        raise ValueError("\n".join([*lines, *more, f"nothing was written; {advice} leaves such recordings out"]))
    if not any(plan.windows for plan in plans):
        raise ValueError(f"{config.dataset}: none of {len(plans)} recordings gives a clip; first: {plans[0].problem}")
    return plans


def _plan_one(index: int) -> PlannedRecording:
    config, reader = _Desk.config, _Desk.reader
    name = reader.names[index]
    try:
        recording = _kept(outline(reader, index), config.streams)
        plan = plan_clips(recording, config.clip, has_pictures=not hasattr(reader, "outline"))
    except RecordingTooShort as error:
        return PlannedRecording(index, name, problem=str(error), is_too_short=True)
    except ValueError as error:
        return PlannedRecording(index, name, problem=str(error))
    finally:
        tick()
    return PlannedRecording(
        index, name, plan.windows, plan.num_empty, plan.unused_s, unused_files=recording.unused, notes=recording.notes
    )


def _assign_shards(config: PrepareConfig, plans: Sequence[PlannedRecording]) -> list[_Shard]:
    """Clips with the same streams go together; the commonest set of streams (ties: the larger) has the plain name."""
    groups: dict[tuple[str, ...], list[tuple[int, Window]]] = {}
    for plan in plans:
        for window in plan.windows:
            groups.setdefault(window.streams, []).append((plan.index, window))
    main = max(groups, key=lambda streams: (len(groups[streams]), len(streams), streams))
    shards = []
    for streams, clips in sorted(groups.items()):
        dataset = config.dataset if streams == main else "-".join([config.dataset, *streams])
        for number, first in enumerate(range(0, len(clips), config.clips_per_shard)):
            shards.append(_Shard(dataset, number, streams, tuple(clips[first : first + config.clips_per_shard])))
    return shards


def _missing_shards(config: PrepareConfig, shards: Sequence[_Shard], names: Sequence[str]) -> list[_Shard]:
    """Shards that are not complete on disk. Raises ValueError when what is there belongs to another configuration."""
    missing = []
    for shard in shards:
        folders = clip_folders(shard.streams)
        found = finished_keys(config.output, shard.dataset, shard.number, folders)
        if found is None:
            missing.append(shard)
            continue
        wanted = [clip_key(names[index], window.index) for index, window in shard.clips]
        check_finished(found, wanted, where=str(shard_path(config.output, META, shard.dataset, shard.number)))
    for dataset in {shard.dataset for shard in shards}:
        last = max(shard.number for shard in shards if shard.dataset == dataset)
        surplus = shard_path(config.output, META, dataset, last + 1)
        if surplus.is_file():
            raise ValueError(
                f"{surplus}: found more shards than the {last + 1} of this configuration; remove the others"
            )
    return missing


def _write_cards(config: PrepareConfig, report: PrepareReport) -> None:
    """Say beside the clips what they are cut from, and how. A store that was begun otherwise is not continued."""
    for dataset, about in report.datasets.items():
        path = Path(config.output) / META / dataset / CARD_NAME
        wanted = {"streams": about["streams"], "clip": to_plain(config.clip), "source": identity(config.source)}
        found = load_json(path) if path.is_file() else wanted
        if differing := [key for key in wanted if found.get(key) != wanted[key]]:
            words = "; ".join(f"{key}: found {found.get(key)}, wanted {wanted[key]}" for key in differing)
            raise ValueError(f"{path}: found clips made otherwise; choose another output. {words}")
        save_json(path, wanted)


def _write_planned_shard(shard: _Shard) -> int:
    return write_shard(
        _Desk.config.output, shard.dataset, shard.number, clip_folders(shard.streams), _encoded_clips(shard)
    )


def _encoded_clips(shard: _Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    for index, window in shard.clips:
        clip = cut_clip(_Desk.recording(index), window, _Desk.config.clip, kept=_Desk.pictures)
        yield clip.key, encode_clip(clip)
        tick()


def _report(plans: Sequence[PlannedRecording], shards: Sequence[_Shard]) -> PrepareReport:
    datasets: dict[str, dict[str, Any]] = {}
    for shard in shards:
        about = datasets.setdefault(shard.dataset, {"streams": list(shard.streams), "num_clips": 0, "num_shards": 0})
        about["num_clips"] += len(shard.clips)
        about["num_shards"] += 1
    absent: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for plan in plans:
        for window in plan.windows:
            for stream, why in window.absent.items():
                absent[stream] += 1
                examples.setdefault(stream, f"{plan.name} at {window.start_s:.2f} s: {why}")
    return PrepareReport(
        datasets=datasets,
        num_recordings=len(plans),
        num_clips=sum(about["num_clips"] for about in datasets.values()),
        num_empty_windows=sum(plan.num_empty for plan in plans),
        unused_s=round(sum(plan.unused_s for plan in plans), 6),
        absent=dict(sorted(absent.items())),
        absent_examples=examples,
        skipped={plan.name: plan.problem for plan in plans if plan.problem},
        unused_files={plan.name: list(plan.unused_files) for plan in plans if plan.unused_files},
        notes={plan.name: list(plan.notes) for plan in plans if plan.notes},
    )
