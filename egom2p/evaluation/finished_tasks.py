"""Tasks of an evaluation that are done, kept on disk so that an interrupted evaluation goes on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.evaluation.results import Method, Metric, TaskResult
from egom2p.evaluation.task_evaluation import ShownArrays
from egom2p.storage import atomic_directory, inside, load_json, remove_directory, save_json


@dataclass(frozen=True)
class FinishedTask:
    """Result of a task, what the page shows of it, and the seconds it took."""

    result: TaskResult
    shown: ShownArrays
    seconds: float


class FinishedTasks:
    """A folder with one entry per task, each written whole or not at all.

    deciding   everything the numbers depend on; an entry made under anything else does not count
    """

    def __init__(self, folder: Path, deciding: Mapping[str, Any]) -> None:
        self._folder, self._deciding = folder, dict(deciding)

    def save(self, task: FinishedTask) -> None:
        with atomic_directory(self._place(task.result.task)) as unfinished:
            for key, arrays in task.shown.items():
                np.savez_compressed(inside(unfinished, f"{key}.npz"), **arrays)
            entry = {"deciding": self._deciding, "seconds": task.seconds, "shown": list(task.shown)}
            save_json(unfinished / "task.json", entry | {"result": asdict(task.result)})

    def load(self, task: str) -> FinishedTask | None:
        folder = self._place(task)
        if not (folder / "task.json").is_file():
            return None
        entry = load_json(folder / "task.json")
        if entry["deciding"] != self._deciding:
            return None
        found = entry["result"]
        found["metrics"] = [Metric(**metric) for metric in found["metrics"]]
        found["methods"] = [Method(**method) for method in found["methods"]]
        shown = {key: dict(np.load(inside(folder, f"{key}.npz"))) for key in entry["shown"]}
        return FinishedTask(TaskResult(**found), shown, entry["seconds"])

    def forget(self) -> None:
        """Remove all entries: the evaluation is complete, and one that is asked for again is to be measured again."""
        for entry in self._folder.glob("*") if self._folder.is_dir() else ():
            remove_directory(entry)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _place(self, task: str) -> Path:
        """Names of tasks may hold any letter; the digest keeps them apart."""
        words = "".join(letter if letter.isalnum() else "_" for letter in task)
        return self._folder / f"{words}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"
