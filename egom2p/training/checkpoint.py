"""Checkpoints: folders that hold the loadable artifact and everything a run needs to go on.

`step-00000100/` has the files of `Task.export`, and beside them
    training.safetensors   all parameters and buffers, optimizer moments and moving averages by parameter name, sums
                           since the last log line
    training.json          progress (steps, clips, tokens, token budget), name of the optimizer, loss scale, launch
    checksums.json         of all of them; a restart compares them first
Written to a temporary sibling and renamed, so a folder with this name is complete. Tensors are whole, so a checkpoint
does not depend on the number of ranks or on what each of them holds.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.layers.attention import use_fastest_flash
from egom2p.storage import (
    atomic_directory,
    find_damage,
    load_json,
    remove_directory,
    remove_unfinished,
    save_json,
    save_tensors,
    stream_tensors,
    tensor_shapes,
    write_checksums,
)
from egom2p.training.distributed import Ranks
from egom2p.training.ema import Ema, shown_weights
from egom2p.training.optim import build_optimizer
from egom2p.training.parallel import (
    check_parallel,
    gathered,
    is_sharded,
    local_part,
    part_like,
    prepare_blocks,
    shard,
    sharded_like,
    wants_compiling,
)
from egom2p.training.run_folder import Retention, step_folders, step_name
from egom2p.training.schedule import Progress
from egom2p.training.task import Task, kept_state
from egom2p.training.training_config import TrainingConfig


@dataclass(frozen=True)
class TrainState:
    """What changes from step to step: weights (whole, or sharded over ranks) and what goes with them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`model/<name>`, `optimizer/<name>/<moment>` and `ema/<name>`, in their own memory."""
        for name, tensor in kept_state(self.model).items():
            yield f"model/{name}", tensor
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer/{name}/{key}", tensor
        if self.ema is not None:
            for name, tensor in self.ema.tensors(self.model).items():
                yield f"ema/{name}", tensor


def make_train_state(model: nn.Module, config: TrainingConfig, *, ranks: Ranks, dtype: torch.dtype) -> TrainState:
    """Move the model to its device, recompute or compile its blocks, shard it: all in place. No weights are read."""
    check_parallel(config.parallel, ranks.world_size)
    model.to(ranks.device)
    model.train()
    use_fastest_flash(ranks.device)
    compiles = config.compile == "blocks"
    if config.compile == "auto":
        compiles = wants_compiling(model, config.parallel, ranks=ranks)
    prepare_blocks(model, recompute=config.activation_checkpointing, compile_blocks=compiles)
    if config.parallel.kind == "fsdp" and ranks.world_size > 1:
        shard(model, config.parallel, ranks=ranks, dtype=dtype)
    return TrainState(
        model,
        build_optimizer(model, config.optimizer),
        ema=None if config.ema is None else Ema(model, config.ema),
        scaler=gradient_scaler(ranks.device, dtype),
    )


def run_summary(task: Task, config: TrainingConfig, ranks: Ranks, dtype: torch.dtype) -> str:
    """Sizes of the model and of a step, devices, precision."""
    model, unit = task.model, task.row_word if config.batching == "clips" else config.batching
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = (config.batch_size if config.batching == "clips" else config.batch_tokens) * config.accumulation
    where = f"{ranks.world_size} x {ranks.device.type}, {str(dtype).removeprefix('torch.')}"
    where += ", blocks compiled" if getattr(model, "compiles_loss", False) else ""
    return f"{num_parameters / 1e6:.2f} M parameters, {size * ranks.world_size} {unit} a step, {where}"


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """float16 loses small gradients unless the loss is scaled up; other precisions need none.

    The scale falls after steps whose gradients are not finite (they are skipped) and rises after many that are. It
    lives on the device; whether gradients are finite is agreed over the ranks that hold their parts.
    """
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None


_STATE, _TENSORS = "training.json", "training.safetensors"
_COUNTS = {field.name for field in fields(Progress)}
# Key of training.json -> kinds of its value.
_STATE_KEYS = {"progress": dict, "optimizer": str, "loss_scale": dict | None, "data": dict, "skipped_in_a_row": int}


class CheckpointFolder:
    """The checkpoints of one run; rank 0 writes, every rank reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> dict[int, Path]:
        """Step -> its complete checkpoint, oldest first."""
        return step_folders(self.folder)

    def latest(self) -> Path | None:
        return next(reversed(self.all().values()), None)

    def newest(self, resume: bool | str, ranks: Ranks) -> tuple[Path | None, list[str]]:
        """The checkpoint to go on from, every byte of it as it was saved, and lines about those that are set aside.

        With `newest_valid` damaged ones are renamed to `damaged-step-...` and the one before is taken; else they are a
        ValueError, on all ranks alike. Every machine looks at its own copy.
        """
        lines = []
        while (path := ranks.from_first(self.latest())) is not None:
            is_looking = int(os.environ.get("LOCAL_RANK", "0")) == 0
            damage = find_damage(path) if is_looking else None
            if not sum(ranks.sum_ints([damage is not None])):
                return path, lines
            said = f"{path}: this checkpoint is damaged: {damage or 'on another machine'}"
            if resume != "newest_valid":
                whole = [older.name for older in self.all().values() if older != path]
                way = f"training.resume=newest_valid goes on from {whole[-1]}" if whole else "no other one is here"
                raise ValueError(f"{said}; {way}. To begin anew choose another output_dir")
            target = next(new for number in count() if not (new := _aside(path, number)).exists())
            ranks.wait_for_all()
            if is_looking:
                with contextlib.suppress(FileNotFoundError):  # machines with one disk in common
                    path.rename(target)
            ranks.wait_for_all()
            lines.append(f"{said}; it is {target.name} now, and the one before is taken")
        return None, lines

    def save(
        self,
        task: Task,
        train_state: TrainState,
        *,
        ranks: Ranks,
        progress: Progress,
        unlogged: dict[str, Tensor],
        note: dict[str, Any],
    ) -> Path:
        """Write the checkpoint of this step; `unlogged` are the sums since the last log line, `note` free JSON.

        Every rank calls it: parts are brought together tensor by tensor on rank 0, which writes.
        """
        path = self.folder / step_name(progress.step)
        if ranks.from_first(path.is_dir()):
            return path  # the same step of the same run
        tensors = dict(gathered(dict(train_state.tensors()), keep=ranks.is_first))
        if ranks.is_first:
            remove_unfinished(self.folder)
            scale = None if train_state.scaler is None else train_state.scaler.state_dict()
            with atomic_directory(path) as unfinished:
                with _exported_weights(train_state, tensors):
                    task.export(unfinished)
                tensors |= {f"unlogged/{name}": tensor for name, tensor in unlogged.items()}
                save_tensors(unfinished / _TENSORS, tensors)
                kind = type(train_state.optimizer).__name__
                state = {"progress": asdict(progress), "optimizer": kind, "loss_scale": scale, **note}
                save_json(unfinished / _STATE, state)
                write_checksums(unfinished)
        return path

    def doubtful(self) -> frozenset[int]:
        """Steps of checkpoints written while steps were skipped."""
        return frozenset(step for step, path in self.all().items() if read_state(path)["skipped_in_a_row"])

    def prune(self, retention: Retention) -> None:
        """Remove the checkpoints that need not stay; ValueError for a folder of such a name that no run made."""
        found = self.all()
        for step in retention.removable(list(found)):
            remove_directory(found[step])


def export(task: Task, train_state: TrainState, directory: Path, *, ranks: Ranks) -> None:
    """Write the artifact atomically; every rank calls it, rank 0 writes."""
    name = "model" if train_state.ema is None or not train_state.ema.config.export else "ema"
    offered = {key: tensor for key, tensor in train_state.tensors() if key.startswith(f"{name}/")}
    tensors = dict(gathered(offered, keep=ranks.is_first))
    if ranks.is_first:
        remove_unfinished(directory.parent, [directory.name])  # a run killed in the middle of this left its half
        with atomic_directory(directory) as unfinished, _exported_weights(train_state, tensors):
            task.export(unfinished)
    ranks.wait_for_all()


def read_state(path: Path) -> dict[str, Any]:
    """`training.json` of a checkpoint; ValueError names the file and the key that is missing or of another kind."""
    file = path / _STATE
    note = load_json(file)
    for key, kind in _STATE_KEYS.items():
        if not isinstance(note, dict) or key not in note or not isinstance(note[key], kind):
            found = repr(note.get(key)) if isinstance(note, dict) else repr(note)
            raise ValueError(f"{file}: `{key}` is missing or of another kind, found {found:.80}")
    progress = note["progress"]
    if progress.keys() != _COUNTS or not all(isinstance(value, int | float) for value in progress.values()):
        raise ValueError(f"{file}: `progress` is {progress!r:.120}, wanted numbers of {', '.join(sorted(_COUNTS))}")
    return note


def restore(path: Path, train_state: TrainState) -> tuple[Progress, dict[str, Tensor]]:
    """Load weights, moments and averages in place; return the progress and the sums that were not logged yet.

    Every rank reads the file tensor by tensor and keeps its part. An average that the checkpoint does not have begins
    with the restored weights. ValueError names the checkpoint and the first names or shapes that do not fit.
    """
    note = read_state(path)
    found, wanted = note["optimizer"], type(train_state.optimizer).__name__
    if found != wanted:
        raise ValueError(
            f"{path}: the checkpoint holds the state of {found}, the config trains with {wanted}. Choose another "
            f"output_dir, or the optimizer.kind this run was started with"
        )
    shapes = tensor_shapes(path / _TENSORS)
    held = dict(train_state.tensors())
    held_shapes = {name: tuple(tensor.shape) for name, tensor in _named(held, "model/").items()}
    _check_fits(path, _named(shapes, "model/"), held_shapes)
    parameters = dict(train_state.model.named_parameters())
    unlogged: dict[str, Tensor] = {}
    for name, tensor in stream_tensors(path / _TENSORS):
        part, _, rest = name.partition("/")
        if part == "unlogged":
            unlogged[rest] = tensor.clone()
        elif part == "optimizer":
            _load_moment(path, parameters, train_state.optimizer, rest, tensor)
        elif name in held:  # an average that is not asked for any more is left out
            _fill(held[name], tensor)
    if train_state.ema is not None and not _named(shapes, "ema/"):
        train_state.ema.restart(train_state.model)
    if train_state.scaler is not None and note["loss_scale"]:
        train_state.scaler.load_state_dict(note["loss_scale"])
    return Progress(**note["progress"]), unlogged


@contextlib.contextmanager
def _exported_weights(train_state: TrainState, tensors: dict[str, Tensor]) -> Iterator[None]:
    """What `Task.export` sees as the weights: the average where it is to be offered, whole tensors in any case."""
    wants_average = train_state.ema is not None and train_state.ema.config.export
    is_whole = not any(is_sharded(parameter) for parameter in train_state.model.parameters())
    if is_whole and not wants_average:
        yield
        return
    with shown_weights(train_state.model, _named(tensors, "ema/" if wants_average else "model/")):
        yield


def _named(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


@torch.no_grad()
def _fill(tensor: Tensor, whole: Tensor) -> None:
    local_part(tensor).copy_(part_like(whole.to(tensor.device), tensor))


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is one; waits for the device."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"damaged-{path.name}" + (f"-{number}" if number else ""))


def _check_fits(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown to the model" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name]}, the model wants {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(
            f"{path}: the checkpoint does not fit the configured model: {shown}. Choose another output_dir, or the "
            f"config this run was started with (config.json beside the checkpoints)"
        )


def _load_moment(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, full_name: str, whole: Tensor
) -> None:
    name, _, key = full_name.rpartition("/")
    if name not in parameters:
        raise ValueError(f"{path}: optimizer state of {name}, which the model does not train")
    parameter = parameters[name]
    # A copy: a tensor out of a file may be a view of memory that other tensors share.
    moment = whole.to(parameter.device, copy=True)
    if is_sharded(parameter) and moment.shape == parameter.shape:
        moment = sharded_like(part_like(moment, parameter).clone(), parameter)
    optimizer.state[parameter][key] = moment
