"""Checkpoints: folders that hold the loadable artifact and everything a run needs to go on.

`step-00000100/` has the files of `Task.export`, and beside them
    training.safetensors   all parameters and buffers, optimizer moments by parameter name, sums since the last log line
    training.json          progress (steps, clips, tokens, slots), optimizer steps per parameter group, launch
Written to a temporary sibling and renamed, so a folder with this name is complete. Independent of the number of ranks.
"""

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.storage import atomic_directory, load_json, load_tensors, remove_unfinished, save_json, save_tensors
from egom2p.training.schedule import Progress
from egom2p.training.task import Task

_STEP = re.compile(r"step-(\d+)")


class CheckpointFolder:
    """The checkpoints of one run; rank 0 writes, every rank reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [entry for entry in self.folder.iterdir() if _STEP.fullmatch(entry.name)]
        return sorted(found, key=_step_of)

    def latest(self) -> Path | None:
        return self.all()[-1] if self.all() else None

    def save(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        *,
        progress: Progress,
        unlogged: dict[str, Tensor],
        note: dict[str, Any],
    ) -> Path:
        """Write the checkpoint of this step; `unlogged` are the sums since the last log line, `note` free JSON."""
        remove_unfinished(self.folder)
        path = self.folder / f"step-{progress.step:08d}"
        if path.is_dir():
            return path  # the same step of the same run
        with atomic_directory(path) as unfinished:
            task.export(unfinished)
            tensors = {f"model/{name}": tensor for name, tensor in task.model.state_dict().items()}
            tensors |= {f"optimizer/{name}": tensor for name, tensor in _moments(task.model, optimizer).items()}
            tensors |= {f"unlogged/{name}": tensor for name, tensor in unlogged.items()}
            save_tensors(unfinished / "training.safetensors", tensors)
            save_json(unfinished / "training.json", {"progress": asdict(progress), **note})
        return path

    def prune(self, *, keep_last: int, keep_every: int | None) -> None:
        """Remove old checkpoints but the newest `keep_last` and those at multiples of `keep_every` steps."""
        for path in self.all()[:-keep_last]:
            if keep_every is None or _step_of(path) % keep_every:
                shutil.rmtree(path)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Tensor]]:
    """Load weights and moments in place; return the progress and the sums that were not logged yet.

    ValueError names the checkpoint and the first names or shapes that do not fit this model.
    """
    note = load_json(path / "training.json")
    tensors = load_tensors(path / "training.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "unlogged": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    _check_fits(path, parts["model"], model.state_dict())
    model.load_state_dict(parts["model"])
    _load_moments(path, model, optimizer, parts["optimizer"])
    return Progress(**note["progress"]), parts["unlogged"]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _check_fits(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown to the model" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, the model wants {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(
            f"{path}: the checkpoint does not fit the configured model: {shown}. Choose another output_dir, or the "
            f"config this run was started with (config.json beside the checkpoints)"
        )


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    named = {}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            named[f"{name}/{key}"] = tensor
    return named


def _load_moments(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise ValueError(f"{path}: optimizer state of {name}, which the model does not train")
        # A copy: a tensor out of a file may be a view of memory that other tensors share.
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device, copy=True)
