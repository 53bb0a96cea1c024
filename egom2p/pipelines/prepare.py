"""Recordings -> aligned clips on disk.

Everything is planned before anything is written, so most bad input is an error at once; then shards are made one by
one, each by one process, and a run that is interrupted continues with the shards that are not there yet. What only
shows when pictures are decoded stops the run, or leaves the recording out (`bad_recordings=skip`).
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from egom2p.config import Count, Natural, strict, to_plain
from egom2p.contracts import AlignedClip, Recording, plain_name
from egom2p.data.clips.clip_alignment import ClipConfig, KeptPictures, RecordingTooShort, Window, cut_clip, plan_clips
from egom2p.data.clips.clip_store import META, clip_folders, encode_clip
from egom2p.data.recordings.reader_choice import Reader, SourceConfig, identity, open_reader, outline, recognised
from egom2p.data.shards.shard_set import CARD_NAME
from egom2p.data.shards.shard_writer import finished_keys, write_shard
from egom2p.jobs.progress import listed, progress_bar, say, take_times, time_shares, timed
from egom2p.jobs.stages import PlaceConfig, run_stage
from egom2p.jobs.workers import made_ahead, tick
from egom2p.pipelines.prepare_plan import (
    PlannedRecording,
    Shard,
    StorePlan,
    known_recordings,
    load_plan,
    missing_shards,
    save_plan,
    signature_of,
    sizes_of,
)
from egom2p.pipelines.recording_inspection import InspectConfig, QualityConfig, inspect_recording
from egom2p.pipelines.recording_splits import SplitConfig, find_leaks, sides_of
from egom2p.storage import inside, load_json, only_writer, remove_unfinished, save_json

REPORT_NAME = "prepare_report.json"
SHEETS = "contact_sheets"
_MAX_LISTED = 20
_WAIT_S = 7 * 86400.0  # for the task that plans: it reads every recording


@strict
class PrepareConfig:
    """Where recordings come from, how they are cut, where the clips go."""

    source: SourceConfig  # which recordings; `kind` names their format
    clip: ClipConfig
    output: str
    dataset: str
    streams: tuple[str, ...] | None = None  # keep only these
    clips_per_shard: Count = 100
    num_workers: Natural = 0
    place: PlaceConfig = PlaceConfig()  # this machine, a Slurm array or Ray
    skip_short: bool = False  # recordings shorter than a clip: counted instead of an error
    bad_recordings: Literal["error", "skip"] = "error"  # unreadable recordings: `skip` counts and lists them
    split: SplitConfig | None = None  # data sets `<dataset>_<side>` instead of one
    quality: QualityConfig = field(default_factory=QualityConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1 or self.num_workers < 0:
            raise ValueError(f"clips_per_shard {self.clips_per_shard} and num_workers {self.num_workers}: too small")
        if "." in plain_name(self.dataset, "dataset"):
            raise ValueError(f"dataset is a name without dot, got {self.dataset!r}")


@dataclass(frozen=True)
class PrepareReport:
    """What a run wrote and what it left out.

    datasets    data set -> {"streams", "num_clips", "num_shards"}
    absent      stream -> {reason -> number of clips that lack it}; reasons without their numbers
    skipped     recording -> why it gave no clip
    unused_files    recording -> files in it that no stream was made from; the root -> what no recording has
    notes           recording -> what a person should know of its material
    faults          kind of fault -> number of clips whose first one it is, dropped or not
    fault_examples  kind of fault -> where one is and why
    coverage        recording -> stream -> share of its samples that are valid
    skew            recording -> stream -> how far it runs behind the camera
    splits          side -> {"recordings", "clips", "groups"}
    leaks           what two sides have in common, and what could not be looked at
    time_shares     what this run (of an array: this task) spent its time with: decode, crop, encode, write
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
    faults: dict[str, int] = field(default_factory=dict)
    fault_examples: dict[str, str] = field(default_factory=dict)
    coverage: dict[str, dict[str, float]] = field(default_factory=dict)
    skew: dict[str, dict[str, str]] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    time_shares: dict[str, float] = field(default_factory=dict, compare=False)  # not of what lies there


class _BadRecording(ValueError):
    """A recording that cannot be cut, by name."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem


def prepare(config: PrepareConfig) -> PrepareReport:
    """Plan, write the clips that are missing, and write the report; returns it.

    Raises ValueError naming every unreadable or too short recording before anything is written, and when another
    process is preparing this data set. Of several that share the work the last one to finish writes the report.
    """
    config = replace(config, source=recognised(config.source))
    meta = inside(config.output, META, config.dataset)
    number, count = config.place.share()
    if count == 1:
        with only_writer(meta):
            return _prepare(config, nullcontext)
    with only_writer(inside(meta, f".task-{number:04d}")):
        return _prepare(config, partial(only_writer, meta, wait_s=_WAIT_S))


def _prepare(config: PrepareConfig, hold: Callable[[], AbstractContextManager]) -> PrepareReport:
    """hold: for as long as the plan is read and changed, nobody else does."""
    reader = open_reader(config.source, dataset=config.dataset)
    place, is_shared = config.place, config.place.share()[1] > 1
    stage = partial(run_stage, place=place, num_workers=config.num_workers, prepare=_Desk.open, arguments=(config,))
    with hold():
        remove_unfinished(inside(config.output, META, config.dataset))  # what a killed run left half-written
        plan = _load_plan(config)
        known = known_recordings(plan, reader, is_accepted=lambda recording: _is_accepted(config, recording))
        try:
            planned, about_split = _split(config, reader, _plan_all(config, reader, stage, known), known)
        except BaseException:
            if not known:  # nothing is written before all is planned
                shutil.rmtree(inside(config.output, META, config.dataset, SHEETS), ignore_errors=True)
            raise
        plan = plan.with_recordings(planned, dataset=config.dataset)
        missing = _saved(config, plan)
    times: list[dict[str, float]] = []
    while True:
        absent = {(shard.dataset, shard.number) for shard in missing}
        mine = [shard for shard in place.mine(plan.shards) if (shard.dataset, shard.number) in absent]
        num_shards = sum(bool(shard.clips) for shard in plan.shards)
        if len(missing) < num_shards:
            say(f"{num_shards - len(missing)} of {num_shards} shards are there already")
        num_clips = sum(len(shard.clips) for shard in mine)
        problems: dict[str, str] = {}
        with progress_bar(f"clips -> {config.output}", num_clips, is_shown=num_clips > 0) as advance:
            for found, spent_s in stage(mine, _write_planned_shard, on_tick=advance):
                problems |= found
                times.append(spent_s)
        with hold():
            plan = _load_plan(config) if is_shared else plan  # others may have found bad recordings
            if problems:
                plan = plan.without_clips_of(problems)
                missing = _saved(config, plan)
                continue
            report = replace(_report(plan, reader.names, times), **about_split)
            if left := getattr(reader, "unused", None):
                report = replace(report, unused_files={str(reader.root): left, **report.unused_files})
            if is_shared and (left := missing_shards(plan, config.output)):
                say(f"{len(left)} of {num_shards} shards are not there yet; whoever ends last writes the report")
                return report
            sizes = {file: size for shard in plan.shards for file, size in sizes_of(shard, config.output).items()}
            save_plan(replace(plan, sizes=sizes), config.output, config.dataset)
            path = Path(config.output) / META / config.dataset / REPORT_NAME
            save_json(path, {"config": to_plain(config), "report": to_plain(report)})
        say(summary(report) + f"\nreport: {path}")
        return report


def _load_plan(config: PrepareConfig) -> StorePlan:
    plan = load_plan(config.output, config.dataset, clips_per_shard=config.clips_per_shard, kept_streams=config.streams)
    _check_cards(config, plan)
    return plan


def _saved(config: PrepareConfig, plan: StorePlan) -> list[Shard]:
    """Keep the plan; returns the shards that are missing."""
    _check_cards(config, plan)
    missing = missing_shards(plan, config.output)
    save_plan(plan, config.output, config.dataset)
    _write_cards(config, plan)
    return missing


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
    for kind, count in report.faults.items():
        lines.append(f"  {kind} in {count} clips, e.g. {report.fault_examples[kind]}")
    found = [f"{name}: {stream} is {how}" for name, by in report.skew.items() for stream, how in by.items()]
    off = [line for line in found if " is off: " in line]
    lines += _some([f"  {line}" for line in off], "streams are off in all (the report has them)")
    for side, about in report.splits.items():
        lines.append(f"  {side}: {about['recordings']} recordings, {about['clips']} clips")
    lines += _some([f"  sides: {leak}" for leak in report.leaks], "such lines in all (the report has them)")
    if report.time_shares:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report.time_shares.items())
        lines.append(f"  time: {shares}")
    unused = [f"  not used of {name}: {listed(files)}" for name, files in report.unused_files.items()]
    lines += _some(unused, "recordings with files not used in all (the report names them)")
    notes = [f"  note on {name}: {'; '.join(notes)}" for name, notes in report.notes.items()]
    lines += _some(notes, "recordings with notes in all (the report has them)")
    lines += _some([f"  skipped {name}: {why}" for name, why in report.skipped.items()], "recordings skipped in all")
    return "\n".join(lines)


def _some(lines: list[str], rest: str) -> list[str]:
    """The first lines, and how many there are where that is not all."""
    return lines[:_MAX_LISTED] + [f"  ... {len(lines)} {rest}"] * (len(lines) > _MAX_LISTED)


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


def _is_accepted(config: PrepareConfig, recording: PlannedRecording) -> bool:
    """Whether a recording has clips, or may go without them."""
    if not recording.problem:
        return True
    return config.skip_short if recording.is_too_short else config.bad_recordings == "skip"


def _plan_all(
    config: PrepareConfig, reader: Reader, stage: Callable, known: Mapping[str, PlannedRecording]
) -> list[PlannedRecording]:
    new = [index for index, name in enumerate(reader.names) if name not in known]
    with progress_bar(f"reading {config.dataset}", len(new), is_shown=bool(new)) as advance:
        planned = {plan.name: plan for plan in stage(new, _plan_one, on_tick=advance)}
    plans = [known.get(name) or planned[name] for name in reader.names]
    fatal = [plan for plan in plans if not _is_accepted(config, plan)]
    if fatal:
        lines = [plan.problem for plan in fatal[:_MAX_LISTED]]
        more = [f"... {len(fatal)} recordings in all"] if len(fatal) > _MAX_LISTED else []
        advice = "skip_short=true" if all(plan.is_too_short for plan in fatal) else "bad_recordings=skip"
        raise ValueError("\n".join([*lines, *more, f"nothing was written; {advice} leaves such recordings out"]))
    if not any(plan.windows for plan in plans):
        raise ValueError(f"{config.dataset}: none of {len(plans)} recordings gives a clip; first: {plans[0].problem}")
    seen = {stream for plan in plans for stream in plan.inspected.coverage}
    if nowhere := [stream for stream in config.streams or () if stream not in seen]:
        raise ValueError(f"streams: found no recording with {nowhere}, wanted some of {sorted(seen)}, which there are")
    return plans


def _plan_one(index: int) -> PlannedRecording:
    config, reader = _Desk.config, _Desk.reader
    name, signature = reader.names[index], signature_of(reader, index)
    try:
        recording = _kept(outline(reader, index), config.streams)
        has_pictures = not hasattr(reader, "outline")
        plan = plan_clips(recording, config.clip, has_pictures=has_pictures)
        inspected = inspect_recording(
            recording,
            plan.windows,
            clip=config.clip,
            quality=config.quality,
            looked_at=config.inspect,
            sheets=inside(config.output, META, config.dataset, SHEETS),
            has_pictures=has_pictures,
        )
    except RecordingTooShort as error:
        return PlannedRecording(name, problem=str(error), is_too_short=True, signature=signature)
    except Exception as error:  # noqa: BLE001  memory, codecs, pictures: no recording may cost the others
        return PlannedRecording(name, problem=_problem(name, error), signature=signature)
    finally:
        tick()
    is_dropped = config.quality.action == "drop"
    return PlannedRecording(
        name,
        tuple(window for window in plan.windows if not (is_dropped and str(window.index) in inspected.faults)),
        plan.num_empty,
        plan.unused_s,
        unused_files=recording.unused,
        notes=recording.notes,
        signature=signature,
        inspected=inspected,
    )


def _split(
    config: PrepareConfig, reader: Reader, planned: list[PlannedRecording], known: Mapping[str, PlannedRecording]
) -> tuple[list[PlannedRecording], dict[str, Any]]:
    """Recordings on their sides, and what the report says of it. Raises ValueError where two sides share a video."""
    if config.split is None:
        return planned, {}
    names, pattern = [recording.name for recording in planned], config.split.pattern or getattr(reader, "groups", "")
    by, groups, sides = sides_of(names, config.split, pattern)
    if known and (before := sides_of(list(known), config.split, pattern)[0]) != by:
        raise ValueError(
            f"recordings were split by {before}; with {min(set(names) - set(known))} they would be split by {by}: "
            "split.by says what a group is, whatever recordings there are"
        )
    if moved := [name for name in known if known[name].windows and known[name].split != sides[name]]:
        raise ValueError(
            f"{moved[0]} is on side {known[moved[0]].split} and, split by {by}, would now be on {sides[moved[0]]}; "
            "split.by says what a group is, whatever recordings there are"
        )
    same, shared = find_leaks(sides, pattern, {about.name: about.inspected.picture_hash for about in planned})
    if same and config.split.leaks == "error":
        listed = "\n".join(same[:_MAX_LISTED])
        raise ValueError(f"{listed}\nnothing was written; split.assign puts their groups on one side")
    splits = {
        side: {
            "recordings": sum(side == held for held in sides.values()),
            "clips": sum(len(about.windows) for about in planned if sides[about.name] == side),
            "by": by,
            "groups": sorted({groups[name] for name, held in sides.items() if held == side}),
        }
        for side in dict.fromkeys(["train", *config.split.fractions, *sides.values()])
    }
    leaks = same + shared
    unseen = [about.name for about in planned if about.windows and not about.inspected.picture_hash]
    if unseen and len(set(sides.values())) > 1:
        leaks.append(f"whether {unseen[0]} ({len(unseen)} recordings in all) is a copy of another was not looked at")
    if nobody := sorted(set(config.split.assign) - set(groups.values())):
        leaks.append(f"split.assign names {nobody}, which is no {by} here")
    return [replace(about, split=sides[about.name]) for about in planned], {"splits": splits, "leaks": leaks}


def _problem(name: str, error: Exception) -> str:
    """What is wrong, naming at least the recording; readers name the file in every ValueError of theirs."""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return str(error) if name in str(error) else f"{name}: {error}"
    return f"{name}: {type(error).__name__}: {error}"


def _check_cards(config: PrepareConfig, plan: StorePlan) -> None:
    """A store that was begun otherwise is not continued: its cards say what the clips are cut from, and how."""
    for dataset, wanted in _cards(config, plan).items():
        path = inside(config.output, META, dataset) / CARD_NAME
        found = load_json(path) if path.is_file() else wanted
        if differing := sorted(key for key in wanted | found if found.get(key) != wanted.get(key)):
            words = "; ".join(f"{key}: found {found.get(key)}, wanted {wanted.get(key)}" for key in differing)
            raise ValueError(f"{path}: found clips made otherwise; choose another output. {words}")


def _write_cards(config: PrepareConfig, plan: StorePlan) -> None:
    for dataset, card in _cards(config, plan).items():
        save_json(inside(config.output, META, dataset) / CARD_NAME, card)


def _cards(config: PrepareConfig, plan: StorePlan) -> dict[str, dict[str, Any]]:
    made_from = {"clip": to_plain(config.clip), "source": identity(config.source)}
    if config.split is not None:
        # Hashes of other numbers of pictures would find no copy.
        made_from["split"] = to_plain(config.split) | {"compared_pictures": config.inspect.sheet_pictures}
    if config.quality.action == "drop":
        made_from["quality"] = to_plain(config.quality)
    return {shard.dataset: {"streams": list(shard.streams), **made_from} for shard in plan.shards}


def _write_planned_shard(shard: Shard) -> tuple[dict[str, str], dict[str, float]]:
    """Write one shard, unless it is there.

    Returns the recordings whose clips it lacks since they cannot be cut (name -> why), and activity -> seconds.
    """
    problems: dict[str, str] = {}
    if finished_keys(_Desk.config.output, shard.dataset, shard.number, clip_folders(shard.streams)) == shard.keys:
        return problems, {}  # by a process that was lost before it could tell
    take_times()
    while True:
        clips = [clip for clip in shard.clips if clip[0] not in problems]
        try:
            write_shard(
                _Desk.config.output, shard.dataset, shard.number, clip_folders(shard.streams), _encoded_clips(clips)
            )
            return problems, take_times()
        except _BadRecording as bad:
            if _Desk.config.bad_recordings == "error":
                advice = "finished shards are kept; bad_recordings=skip leaves such recordings out"
                raise ValueError(f"{bad.problem}\n{advice}") from bad
            problems[bad.name] = bad.problem


def _encoded_clips(clips: Sequence[tuple[str, Window]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    indices = {name: index for index, name in enumerate(_Desk.reader.names)}

    def cut(planned: tuple[str, Window]) -> AlignedClip:
        name, window = planned
        try:
            return cut_clip(_Desk.recording(indices[name]), window, _Desk.config.clip, kept=_Desk.pictures)
        except Exception as error:  # as in planning
            raise _BadRecording(name, _problem(name, error)) from error

    # The next clips are decoded and cropped, in their order, while this one is compressed and written.
    for (name, _), clip in zip(clips, made_ahead(cut, clips, num_threads=1), strict=True):
        try:
            with timed("encode"):
                encoded = encode_clip(clip)
        except Exception as error:
            raise _BadRecording(name, _problem(name, error)) from error
        yield clip.key, encoded
        tick()


def _report(plan: StorePlan, names: Sequence[str], times: Sequence[Mapping[str, float]]) -> PrepareReport:
    datasets: dict[str, dict[str, Any]] = {}
    for shard in filter(lambda shard: shard.clips, plan.shards):
        about = datasets.setdefault(shard.dataset, {"streams": list(shard.streams), "num_clips": 0, "num_shards": 0})
        about["num_clips"] += len(shard.clips)
        about["num_shards"] += 1
    absent: Counter[str] = Counter()
    examples: dict[str, str] = {}
    faults: Counter[str] = Counter()
    fault_examples: dict[str, str] = {}
    recordings = [plan.recordings[name] for name in names]
    for recording in recordings:
        for window in recording.windows:
            for stream, why in window.absent.items():
                absent[stream] += 1
                examples.setdefault(stream, f"{recording.name} at {window.start_s:.2f} s: {why}")
        for index, why in recording.inspected.faults.items():
            kind = why.partition(":")[0]
            faults[kind] += 1
            fault_examples.setdefault(kind, f"{recording.name}, clip {index}: {why.partition(': ')[2]}")
    inspected = {recording.name: recording.inspected for recording in recordings if not recording.problem}
    return PrepareReport(
        datasets=datasets,
        num_recordings=len(recordings),
        num_clips=sum(about["num_clips"] for about in datasets.values()),
        num_empty_windows=sum(recording.num_empty for recording in recordings),
        unused_s=round(sum(recording.unused_s for recording in recordings), 6),
        absent=dict(sorted(absent.items())),
        absent_examples=examples,
        skipped={recording.name: recording.problem for recording in recordings if recording.problem},
        unused_files={
            recording.name: list(recording.unused_files) for recording in recordings if recording.unused_files
        },
        notes={recording.name: list(recording.notes) for recording in recordings if recording.notes},
        faults=dict(faults),
        fault_examples=fault_examples,
        coverage={name: dict(about.coverage) for name, about in inspected.items()},
        skew={name: dict(about.skew) for name, about in inspected.items() if about.skew},
        time_shares=time_shares(times),
    )
