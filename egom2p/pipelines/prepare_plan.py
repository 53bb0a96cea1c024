"""What a store of clips is to hold: the windows of every recording and their shards, kept beside the clips.

The plan is what lets a store grow. Recordings that come later get shards after those that are there, wherever they
sort, so no clip changes its shard; and a recording that has not changed is not read again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from egom2p.config import to_plain
from egom2p.data.clips.clip_alignment import Window, clip_key
from egom2p.data.clips.clip_store import META, PLAN_NAME, clip_folders
from egom2p.data.recordings.reader_choice import Reader
from egom2p.data.shards.shard_writer import check_finished, finished_keys, shard_path
from egom2p.pipelines.recording_inspection import Inspection
from egom2p.storage import inside, load_json, save_json


@dataclass(frozen=True)
class PlannedRecording:
    """Clips of one recording, or why it gives none.

    signature       of its files as they were planned (`Reader.signature`)
    unused_files    of which no stream was made
    notes           what a person should know of its files
    split           side it is on; empty where nothing is split
    inspected       what was found in it
    """

    name: str
    windows: tuple[Window, ...] = ()
    num_empty: int = 0
    unused_s: float = 0.0
    problem: str = ""
    is_too_short: bool = False
    unused_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    signature: Mapping[str, str] = field(default_factory=dict)
    split: str = ""
    inspected: Inspection = field(default_factory=Inspection)


@dataclass(frozen=True)
class Shard:
    """One shard: its data set, number, streams, the (recording, window) of its clips, and the side they are on."""

    dataset: str
    number: int
    streams: tuple[str, ...]
    clips: tuple[tuple[str, Window], ...]
    split: str = ""

    @property
    def keys(self) -> list[str]:
        return [clip_key(name, window.index) for name, window in self.clips]


@dataclass(frozen=True)
class StorePlan:
    """Recordings by name, shards in order of streams and number, and bytes of finished ones (`<folder>/<file>`).

    kept_streams   the only ones taken of the recordings; None: all
    """

    clips_per_shard: int
    kept_streams: tuple[str, ...] | None = None
    recordings: Mapping[str, PlannedRecording] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def with_recordings(self, planned: Sequence[PlannedRecording], *, dataset: str) -> "StorePlan":
        """Clips of recordings that are not yet in it go into shards of their own, after the others.

        Clips of one side of a split with the same streams go together; the commonest set of streams (ties: the larger)
        of a side's first ones has the plain name, `<dataset>` or `<dataset>_<side>`.
        """
        new = [recording for recording in planned if not self._has_clips(recording.name)]
        groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, Window]]] = {}
        for recording in new:
            for window in recording.windows:
                groups.setdefault((recording.split, window.streams), []).append((recording.name, window))
        named = {(shard.split, shard.streams): shard.dataset for shard in self.shards}
        for split in {split for split, _ in groups} - {split for split, _ in named}:
            sets = [streams for side, streams in groups if side == split]
            commonest = max(sets, key=lambda streams: (len(groups[split, streams]), len(streams), streams))
            named[split, commonest] = _base_name(dataset, split)
        shards = list(self.shards)
        for (split, streams), clips in sorted(groups.items()):
            name = named.get((split, streams)) or "-".join([_base_name(dataset, split), *streams])
            first_number = 1 + max((shard.number for shard in self.shards if shard.dataset == name), default=-1)
            for number, first in enumerate(range(0, len(clips), self.clips_per_shard), start=first_number):
                shards.append(Shard(name, number, streams, tuple(clips[first : first + self.clips_per_shard]), split))
        shards.sort(key=lambda shard: (shard.split, shard.streams, shard.number))
        recordings = {**self.recordings, **{recording.name: recording for recording in planned}}
        return replace(self, recordings=recordings, shards=tuple(shards))

    def without_clips_of(self, problems: Mapping[str, str]) -> "StorePlan":
        """The plan when recordings turned out to be bad (name -> why) while they were cut."""
        recordings = dict(self.recordings)
        for name, problem in problems.items():
            recordings[name] = replace(recordings[name], windows=(), problem=problem)
        shards = tuple(
            replace(shard, clips=tuple(clip for clip in shard.clips if clip[0] not in problems))
            for shard in self.shards
        )
        return replace(self, recordings=recordings, shards=shards)

    def _has_clips(self, name: str) -> bool:
        return name in self.recordings and bool(self.recordings[name].windows)


def known_recordings(
    plan: StorePlan, reader: Reader, *, is_accepted: Callable[[PlannedRecording], bool]
) -> dict[str, PlannedRecording]:
    """Recordings of the plan that are as they were, so need no reading; what is not accepted is tried again.

    Raises ValueError when clips of the plan are of recordings that changed or are not there any more.
    """
    known = {}
    gone = sorted(set(plan.recordings) - set(reader.names))
    if gone := [name for name in gone if plan.recordings[name].windows]:
        raise ValueError(
            f"found clips of recordings {gone[:10]}, which are not among the source's {list(reader.names[:10])}: the "
            "store is another run's; choose another output, or remove it"
        )
    for index, name in enumerate(reader.names):
        recording = plan.recordings.get(name)
        if recording is None or not is_accepted(recording):
            continue
        stamp = _signature(reader, index, is_whole=False)
        if stamp != {key: recording.signature[key] for key in stamp}:
            whole = _signature(reader, index, is_whole=True)
            if whole["content"] == recording.signature["content"]:
                recording = replace(recording, signature=whole)  # copied or touched
            elif recording.windows:
                raise ValueError(
                    f"{name}: its files have changed since its clips were cut; choose another output, or remove "
                    "the store"
                )
            else:
                continue  # it gave no clip; perhaps it does now
        known[name] = recording
    return known


def signature_of(reader: Reader, index: int) -> dict[str, str]:
    """What tells whether a recording's files are what they were: by their stamps, and by what they hold."""
    return _signature(reader, index, is_whole=True)


def _signature(reader: Reader, index: int, *, is_whole: bool) -> dict[str, str]:
    if not hasattr(reader, "signature"):
        return {"stamps": "", "content": ""} if is_whole else {"stamps": ""}
    return reader.signature(index, is_whole=is_whole)


def missing_shards(plan: StorePlan, output: str) -> list[Shard]:
    """Shards that are not complete on disk. Raises ValueError when what is there belongs to another configuration.

    A shard that also holds clips of recordings that turned out to be bad is made again without them.
    """
    missing = []
    bad = {clip_key(name, 0)[:-7] for name, recording in plan.recordings.items() if recording.problem}
    for shard in plan.shards:
        folders = clip_folders(shard.streams)
        sizes = sizes_of(shard, output)
        if sizes and sizes.items() <= plan.sizes.items() and shard.clips:
            continue
        found = finished_keys(output, shard.dataset, shard.number, folders)
        if found is None:
            missing += [shard] if shard.clips else []
            continue
        where = shard_path(output, META, shard.dataset, shard.number)
        check_finished([key for key in found if key[:-7] not in bad], shard.keys, where=str(where))
        if len(found) > len(shard.clips):
            for folder in folders:
                shard_path(output, folder, shard.dataset, shard.number).unlink()
            missing += [shard] if shard.clips else []
    for dataset in {shard.dataset for shard in plan.shards}:
        last = max(shard.number for shard in plan.shards if shard.dataset == dataset)
        surplus = shard_path(output, META, dataset, last + 1)
        if surplus.is_file():
            raise ValueError(
                f"{surplus}: found more shards than the {last + 1} of this configuration; remove the others"
            )
    return missing


def sizes_of(shard: Shard, output: str) -> dict[str, int]:
    """Bytes of a shard's files; empty when one is not there."""
    paths = {folder: shard_path(output, folder, shard.dataset, shard.number) for folder in clip_folders(shard.streams)}
    if not all(path.is_file() for path in paths.values()):
        return {}
    return {f"{folder}/{shard.dataset}/{path.name}": path.stat().st_size for folder, path in paths.items()}


def load_plan(output: str, dataset: str, *, clips_per_shard: int, kept_streams: tuple[str, ...] | None) -> StorePlan:
    """The plan beside a store's clips; empty where there is none. Raises ValueError when it is another run's."""
    path = inside(output, META, dataset, PLAN_NAME)
    if not path.is_file():
        return StorePlan(clips_per_shard, kept_streams)
    values = load_json(path)
    found = values["clips_per_shard"], values["kept_streams"]
    wanted = clips_per_shard, None if kept_streams is None else list(kept_streams)
    if found != wanted:
        raise ValueError(
            f"{path}: found (clips_per_shard, streams) {found}, wanted {wanted}; the store is another run's: choose "
            "another output, or remove it"
        )
    recordings = {name: _recording(name, about) for name, about in values["recordings"].items()}
    windows = {name: {window.index: window for window in about.windows} for name, about in recordings.items()}
    shards = tuple(
        Shard(
            about["dataset"],
            about["number"],
            tuple(about["streams"]),
            tuple((name, windows[name][index]) for name, indices in about["clips"] for index in indices),
            about["split"],
        )
        for about in values["shards"]
    )
    return StorePlan(clips_per_shard, kept_streams, recordings, shards, values["sizes"])


def save_plan(plan: StorePlan, output: str, dataset: str) -> None:
    recordings = {}
    for name, about in plan.recordings.items():
        recordings[name] = {key: value for key, value in to_plain(about).items() if key not in ("name", "windows")}
        # Most windows of a recording have the same streams and reasons: each kind once.
        kinds = list({(window.streams, tuple(window.absent.items())): None for window in about.windows})
        rows = [
            [window.index, window.start_s, kinds.index((window.streams, tuple(window.absent.items())))]
            for window in about.windows
        ]
        recordings[name] |= {"kinds": [[list(streams), dict(absent)] for streams, absent in kinds], "windows": rows}
    shards = [
        {
            "dataset": shard.dataset,
            "number": shard.number,
            "streams": list(shard.streams),
            "split": shard.split,
            "clips": [
                [name, [window.index for _, window in clips]]
                for name, clips in groupby(shard.clips, key=lambda clip: clip[0])
            ],
        }
        for shard in plan.shards
    ]
    kept = None if plan.kept_streams is None else list(plan.kept_streams)
    values: dict[str, Any] = {"clips_per_shard": plan.clips_per_shard, "kept_streams": kept}
    values |= {"recordings": recordings, "shards": shards, "sizes": dict(plan.sizes)}
    path = Path(inside(output, META, dataset, PLAN_NAME))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, values)


def _recording(name: str, values: dict[str, Any]) -> PlannedRecording:
    kinds, rows = values.pop("kinds"), values.pop("windows")
    windows = tuple(Window(index, start_s, tuple(kinds[kind][0]), kinds[kind][1]) for index, start_s, kind in rows)
    held = {key: tuple(values.pop(key)) for key in ("unused_files", "notes")}
    return PlannedRecording(name, windows, inspected=Inspection(**values.pop("inspected")), **held, **values)


def _base_name(dataset: str, split: str) -> str:
    return f"{dataset}_{split}" if split else dataset
