"""Where a run lives: a local folder, mirrored into a bucket where `output_dir` is an S3 address.

The run itself only knows the local folder. After each checkpoint what is new goes to the bucket, complete or not at
all; before a run starts on a machine that knows nothing of it, the newest checkpoint comes from there.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from egom2p.storage import is_remote, load_json, save_json
from egom2p.storage.remote_folders import RemoteFolder
from egom2p.training.distributed import Ranks
from egom2p.training.task import Measurement

CHECKPOINTS, FINAL = "checkpoints", "final"
_BEST = "best.json"
_STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Retention:
    """keep_last >= 1 newest steps; multiples of keep_every; the best step, where one is known.

    doubtful   steps of checkpoints written while steps were skipped: they take the place of no other, so a run that
               goes wrong never loses the last that were right. Of those at least two stay: what the weights of the
               newest are worth shows in the loss after it
    """

    keep_last: int
    keep_every: int | None = None
    best: int | None = None
    doubtful: frozenset[int] = frozenset()

    def removable(self, steps: Sequence[int]) -> list[int]:
        """Of ascending steps those that need not stay."""
        good = [step for step in steps if step not in self.doubtful]
        kept = {*steps[-self.keep_last :], *good[-max(2, self.keep_last) :]}
        return [
            step
            for step in steps
            if step not in kept and step != self.best and (self.keep_every is None or step % self.keep_every)
        ]


class BestCheckpoint:
    """The lowest value so far of one measurement, and the step that had it; kept beside the checkpoints.

    name   `group/name` of a measurement, or `group`: the mean over what is measured in it
    """

    def __init__(self, name: str | None, folder: Path) -> None:
        self.name, self._file = name, folder / _BEST
        self.step: int | None = None
        self._value = float("inf")
        self._load()

    def _load(self) -> None:
        if self.name is None or not self._file.is_file():
            return
        note = load_json(self._file)
        wanted = {"name": str, "step": int, "value": int | float}
        if not isinstance(note, dict) or not all(isinstance(note.get(key), kind) for key, kind in wanted.items()):
            raise ValueError(f"{self._file}: found {note!r:.80}, wanted the keys {', '.join(wanted)} and their values")
        if note["name"] == self.name:  # else another measurement counts from now on
            self.step, self._value = note["step"], note["value"]

    def forget_after(self, step: int) -> None:
        """The run goes on from this step (-1: from its beginning); a best one after it is of steps that are gone."""
        if self.step is not None and self.step > step:
            self.step, self._value = None, float("inf")

    def is_better(self, measurements: Sequence[Measurement]) -> bool:
        """Whether these beat all before. ValueError when the configured name is not among them."""
        return self.name is not None and chosen_value(self.name, measurements) < self._value

    def note(self, step: int, measurements: Sequence[Measurement]) -> None:
        """The checkpoint of `step`, which is on the disk, is the best."""
        self.step, self._value = step, chosen_value(self.name, measurements)
        save_json(self._file, {"name": self.name, "step": self.step, "value": self._value})


def chosen_value(name: str, measurements: Sequence[Measurement]) -> float:
    """The measurement `group/name`, or the mean of a group."""
    values = [item.value for item in measurements if name in (item.group, f"{item.group}/{item.name}")]
    if not values:
        known = ", ".join(f"{item.group}/{item.name}" for item in measurements) or "nothing"
        raise ValueError(f"keep_best is {name!r}, but measured are {known}")
    return sum(values) / len(values)


def local_folder(output_dir: str | Path, scratch_dir: str) -> Path:
    """The local folder of a run: `output_dir` itself, or for `s3://bucket/path` `<scratch_dir>/bucket/path`."""
    return Path(scratch_dir, str(output_dir).removeprefix("s3://")) if is_remote(output_dir) else Path(output_dir)


class RunFolder:
    """The local folder of a run (`path`) and what of it lies in a bucket."""

    def __init__(self, output_dir: str | Path, scratch_dir: str) -> None:
        self.path = local_folder(output_dir, scratch_dir)
        self._remote = RemoteFolder(str(output_dir)) if is_remote(output_dir) else None

    def fetch(self, ranks: Ranks) -> None:
        """Get what a restart needs: on every machine the newest checkpoint, if it has none as new."""
        if self._remote is None:
            return
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            self._fetch_newest(self._remote)
        ranks.wait_for_all()

    def _fetch_newest(self, remote: RemoteFolder) -> None:
        there = _steps(remote.directories(CHECKPOINTS))
        here = sorted(step_folders(self.path / CHECKPOINTS))
        if there and (not here or here[-1] < there[-1]):
            name = step_name(there[-1])
            remote.download_directory(f"{CHECKPOINTS}/{name}", self.path / CHECKPOINTS / name)
            for file in ("config.json", "log.jsonl", "wandb.json", f"{CHECKPOINTS}/{_BEST}"):
                remote.download_file(file, self.path / file)
        if FINAL in remote.directories() and not (self.path / FINAL).is_dir():
            remote.download_directory(FINAL, self.path / FINAL)

    def mirror(self, retention: Retention) -> None:
        """Bring the bucket up to date: new checkpoints, then small files, then remove what need not stay.

        First rank only. What an earlier process of the run uploaded is not uploaded again. RemoteError where the bucket
        does not take it: the next call begins with what is missing.
        """
        if self._remote is None:
            return
        there = set(self._remote.directories(CHECKPOINTS))
        for entry in step_folders(self.path / CHECKPOINTS).values():
            if entry.name not in there:
                self._remote.upload_directory(entry, f"{CHECKPOINTS}/{entry.name}")
                there.add(entry.name)
        for file in [*sorted(self.path.glob("*.json*")), self.path / CHECKPOINTS / _BEST]:
            if file.is_file():
                self._remote.upload_file(file, file.relative_to(self.path).as_posix())
        if (self.path / FINAL).is_dir() and FINAL not in self._remote.directories():
            self._remote.upload_directory(self.path / FINAL, FINAL)
        for step in retention.removable(_steps(there)):
            self._remote.remove_directory(f"{CHECKPOINTS}/{step_name(step)}")


def has_checkpoint(output_dir: str | Path, scratch_dir: str) -> bool:
    """Whether a run in this folder would resume instead of start."""
    return bool(step_folders(local_folder(output_dir, scratch_dir) / CHECKPOINTS))


def step_folders(folder: Path) -> dict[int, Path]:
    """Step -> its complete checkpoint in a folder of checkpoints, oldest first."""
    entries = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return {step: folder / step_name(step) for step in _steps(entry.name for entry in entries)}


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(names: Iterable[str]) -> list[int]:
    return sorted(int(match.group(1)) for name in names if (match := _STEP.fullmatch(name)))
