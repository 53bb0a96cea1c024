"""Benchmark tables: checkpoints, trivial baselines and tokenizer ceilings on the same held-out clips."""

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egom2p.config import deciding, to_plain
from egom2p.contracts import AlignedClip, quantity_of_stream
from egom2p.data.clips.clip_store import ClipStore, stored_streams
from egom2p.data.shards.folder_set import open_clips
from egom2p.data.shards.shard_files import expand_files, split_folders
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.evaluation.task_evaluation import (
    ShownArrays,
    TaskEvaluator,
    TrainingStatistics,
    check_task,
    training_statistics,
)
from egom2p.generation.checkpoints import checkpoint_directory, load_checkpoint, unfamiliar_input
from egom2p.geometry import canonicalise
from egom2p.jobs.progress import progress_bar, say
from egom2p.jobs.workers import Workers, choose_device
from egom2p.metrics.measurements import Measured, write_results
from egom2p.metrics.result_table import Results
from egom2p.storage import (
    atomic_directory,
    configure_remote,
    inside,
    is_remote,
    load_json,
    only_writer,
    remove_directory,
    remove_unfinished,
    save_json,
)

_FINISHED = "finished"


@dataclass(frozen=True)
class Evaluation:
    """What was found, as in results.json, and where it lies."""

    folder: Path
    results: Results


def run_evaluation(config: EvaluationConfig) -> Evaluation:
    """Evaluate and write results.json, results.md, per_clip.csv and shown/*.npz below `config.output`.

    Until all are done, each finished task is kept in `finished/`: an evaluation that was interrupted goes on with the
    others. One process writes to an output at a time.
    """
    configure_remote(config.remote)
    with only_writer(config.output):
        for folder in (Path(config.output), Path(config.output, _FINISHED)):
            remove_unfinished(folder)  # what a killed run left half-written
        return _run_evaluation(config)


def _run_evaluation(config: EvaluationConfig) -> Evaluation:
    seconds: dict[str, float] = {}
    folder = Path(config.output)
    _check_training_runs(config)
    _check_held_out(config)
    if config.train_tokens is not None:
        open_clips(config.train_tokens)
    checkpoints = {label: _describe(directory, config) for label, directory in config.checkpoints.items()}
    statistics = TrainingStatistics()
    if config.train_clips is not None:
        with _timed(seconds, "baselines from the training split"):
            store = ClipStore(config.train_clips.root, config.train_clips.dataset)
            statistics = training_statistics(store, max_clips=config.max_train_clips)
    shown = {clip.key: _truth_arrays(clip) for clip in _held_out_clips(config)[: config.num_shown_clips]}
    finished = FinishedTasks(folder / _FINISHED, _deciding(config, checkpoints))
    found = {task: finished.load(task) for task in config.tasks}
    missing = [task for task in config.tasks if found[task] is None]
    if len(missing) < len(config.tasks):
        say(f"{len(config.tasks) - len(missing)} of {len(config.tasks)} tasks are already there and are kept")
    with (
        progress_bar("evaluate tasks", len(config.tasks), is_shown=config.progress) as advance,
        Workers(config.num_workers, _prepare, (config, statistics)) as workers,
    ):
        advance(len(config.tasks) - len(missing))
        for task_found in workers.run(_evaluate, missing, on_tick=lambda _: None):
            finished.save(task_found)
            found[task_found.measured.task] = task_found
            advance(1)
    for task in config.tasks:
        seconds[task] = found[task].seconds
        for key, arrays in found[task].shown.items():
            shown.get(key, {}).update(arrays)
    about = {
        "config": to_plain(config),
        "hardware": _hardware(config),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "num_train_clips": statistics.num_clips,
        "checkpoints": checkpoints,
        "shown_clips": list(shown),
    }
    description = " ".join([config.description or "Held-out clips, the same for every row.", *_notes(config)])
    measured = [found[task].measured for task in config.tasks]
    results = write_results(folder, description, about, measured, seed=config.seed)
    _write_shown(folder / "shown", shown)
    finished.forget()
    return Evaluation(folder, results)


@dataclass(frozen=True)
class FinishedTask:
    """What was measured for a task, what the page shows of it, and the seconds it took."""

    measured: Measured
    shown: ShownArrays
    seconds: float


class FinishedTasks:
    """Tasks that are done, so that an interrupted evaluation goes on: an entry each, written whole or not at all.

    deciding   everything the numbers depend on; an entry made under anything else does not count
    """

    def __init__(self, folder: Path, deciding: Mapping[str, Any]) -> None:
        self._folder, self._deciding = folder, dict(deciding)

    def save(self, task: FinishedTask) -> None:
        with atomic_directory(self._folder_of(task.measured.task)) as unfinished:
            for key, arrays in task.shown.items():
                np.savez_compressed(inside(unfinished, f"{key}.npz"), **arrays)
            entry = {"deciding": self._deciding, "seconds": task.seconds, "shown": list(task.shown)}
            save_json(unfinished / "task.json", entry | {"measured": asdict(task.measured)})

    def load(self, task: str) -> FinishedTask | None:
        folder = self._folder_of(task)
        if not (folder / "task.json").is_file():
            return None
        entry = load_json(folder / "task.json")
        if entry["deciding"] != self._deciding:
            return None
        shown = {key: dict(np.load(inside(folder, f"{key}.npz"))) for key in entry["shown"]}
        return FinishedTask(Measured.from_plain(entry["measured"]), shown, entry["seconds"])

    def forget(self) -> None:
        """Remove all entries: the evaluation is complete, and one that is asked for again is to be measured again."""
        for entry in self._folder.glob("*") if self._folder.is_dir() else ():
            remove_directory(entry)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _folder_of(self, task: str) -> Path:
        """Names of tasks may hold any letter; the digest keeps them apart."""
        words = "".join(letter if letter.isalnum() else "_" for letter in task)
        return self._folder / f"{words}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


class _Local:
    """What a process evaluates with."""

    evaluator: TaskEvaluator | None = None


def _prepare(config: EvaluationConfig, statistics: TrainingStatistics) -> None:
    checkpoints = {
        label: load_checkpoint(directory, device=config.device, dtype=config.dtype)
        for label, directory in config.checkpoints.items()
    }
    _Local.evaluator = TaskEvaluator(config, checkpoints, _held_out_clips(config), statistics)


def _evaluate(task: str) -> FinishedTask:
    assert _Local.evaluator is not None
    start = time.perf_counter()
    measured, shown = _Local.evaluator.evaluate(task)
    return FinishedTask(measured, shown, time.perf_counter() - start)


def _deciding(config: EvaluationConfig, checkpoints: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a task depend on; a task evaluated under anything else is evaluated again."""
    marks = {label: found["fingerprint"] for label, found in checkpoints.items()}
    folders = [config.clips.root, *([config.train_clips.root] if config.train_clips else [])]
    files = {folder: _stamp(Path(folder).rglob("*.tar")) for folder in folders}
    if config.train_tokens is not None and not is_remote(config.train_tokens):
        shards = [file for part in split_folders(config.train_tokens).values() for file in expand_files(part)]
        files[config.train_tokens] = _stamp(map(Path, shards))
    return deciding(config) | {"checkpoints": marks, "clip_files": files}


def _stamp(files: Iterable[Path]) -> str:
    """Changes when one of these files was written again; of a folder among them, a file inside."""
    inside = [path for file in files for path in (file.rglob("*") if file.is_dir() else [file])]
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(inside)]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _check_training_runs(config: EvaluationConfig) -> None:
    """A page without its curves should fail before the evaluation, not after it."""
    for folder in (config.training_runs or {}).values():
        if not (Path(folder) / "log.jsonl").is_file():
            raise ValueError(f"{folder}/log.jsonl: no training log there (training_runs=null leaves the curves out)")


def _check_held_out(config: EvaluationConfig) -> None:
    """Numbers on clips that the training split also holds would say nothing."""
    if config.train_clips is None:
        return
    # Without streams only keys and provenance are read.
    held_out = ClipStore(config.clips.root, config.clips.dataset, streams=())
    train = ClipStore(config.train_clips.root, config.train_clips.dataset, streams=())
    train_rows = {key: row for row, key in enumerate(train.keys)}
    shared = [
        key
        for row, key in enumerate(held_out.keys)
        if key in train_rows and held_out[row].provenance == train[train_rows[key]].provenance
    ]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(held_out)} clips of {config.clips.root}, {config.clips.dataset} are also in the "
            f"training split {config.train_clips.root}, {config.train_clips.dataset}, the first is {shared[0]}; "
            "evaluate on recordings that were not trained on"
        )


def _held_out_clips(config: EvaluationConfig) -> list[AlignedClip]:
    store = ClipStore(config.clips.root, config.clips.dataset)
    count = len(store) if config.num_clips is None else min(config.num_clips, len(store))
    return [store[int(index)] for index in np.linspace(0, len(store) - 1, count).astype(int)]


def _notes(config: EvaluationConfig) -> list[str]:
    """What a reader of the numbers should know of the checkpoints; said on the terminal too."""
    held_out = ClipStore(config.clips.root, config.clips.dataset, streams=())
    datasets = {held_out[row].provenance.dataset for row in (0, len(held_out) - 1)}
    notes = []
    for label, directory in config.checkpoints.items():
        if note := unfamiliar_input(checkpoint_directory(directory), datasets, label=label):
            notes.append(f"{note}.")
            say(f"note: {note}")
    return notes


def _write_shown(folder: Path, shown: ShownArrays) -> None:
    with atomic_directory(folder) as unfinished:
        for key, arrays in shown.items():
            np.savez_compressed(inside(unfinished, f"{key}.npz"), **arrays)


def _truth_arrays(clip: AlignedClip) -> dict[str, np.ndarray]:
    arrays = {}
    for name, stream in clip.streams.items():
        arrays[f"truth|{name}"] = (
            canonicalise(stream.values) if quantity_of_stream(name).is_relative else np.asarray(stream.values)
        )
        arrays[f"valid|{name}"] = stream.is_valid
        arrays[f"times_s|{name}"] = stream.times_s - stream.times_s[0]
    if clip.intrinsics is not None:
        arrays["intrinsics"] = np.array(json.dumps(asdict(clip.intrinsics)))
    return arrays


def _describe(directory: str, config: EvaluationConfig) -> dict[str, Any]:
    """What the page says about a checkpoint; also the check that it loads and knows the tasks, before any work."""
    # Not the same numbers in another precision: what a GPU makes of it is by default another result.
    dtype = config.dtype
    if dtype == "auto" and choose_device(config.device).type == "cuda":
        dtype = "bf16"
    checkpoint = load_checkpoint(directory, device="cpu", dtype=dtype)
    streams = stored_streams(config.clips.root, config.clips.dataset)
    for task in config.tasks:
        check_task(task, checkpoint, streams, where=f"{config.clips.root}, {config.clips.dataset}")
    return {
        "directory": directory,
        "fingerprint": checkpoint.fingerprint,
        "num_parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "modalities": [spec.to_dict() for spec in checkpoint.specs],
    }


def _hardware(config: EvaluationConfig) -> dict[str, Any]:
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() and config.device != "cpu" else None
    return {
        "accelerator": accelerator,
        "machine": platform.machine(),
        "threads": config.num_workers if config.num_workers > 1 else torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds of a block."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
