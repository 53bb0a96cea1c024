"""The one training loop, for pretraining and tokenizers alike.

Each step: fetch the accumulation window, sum its counts over ranks (through host memory), then forward and backward
with the denominators of the whole step. The host waits for the device only when a line is logged.
K loss terms.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from egom2p.storage import atomic_directory, load_json, only_writer, save_json
from egom2p.training.checkpoint import CheckpointFolder, restore
from egom2p.training.distributed import Ranks, share_gradients
from egom2p.training.interruption import StopRequest
from egom2p.training.optim import apply_gradients, build_optimizer
from egom2p.training.randomness import seeded
from egom2p.training.run_log import RunLog
from egom2p.training.schedule import LearningRate, Length, Progress
from egom2p.training.step import StepSums, forward_backward
from egom2p.training.task import Measurement, Task
from egom2p.training.training_config import TrainingConfig


@dataclass(frozen=True)
class FitResult:
    """How a run ended. `stopped_by`: number of the signal that ended it early, 0 when it reached its length."""

    progress: Progress
    stopped_by: int
    measurements: tuple[Measurement, ...]


def fit(
    task: Task,
    config: TrainingConfig,
    *,
    output_dir: str | Path,
    ranks: Ranks,
    seed: int,
    settings: Mapping[str, Any],
    num_train_clips: int | None = None,
) -> FitResult:
    """Train until the configured length is reached or a signal asks to stop; resume if `output_dir` has checkpoints.

    Writes `config.json` (`settings`, plain values), `log.jsonl`, `checkpoints/` and, at the end, `final/`.
    Same seed, config and machine give the same numbers, interrupted or not (bitwise on one process).
    """
    run = _Run(task, config, Path(output_dir), ranks, seed, num_train_clips)
    # The workers of a launcher that was killed live on; a second run must not write into their folder.
    with only_writer(output_dir) if ranks.is_first else contextlib.nullcontext():
        run.prepare(settings)
        try:
            with StopRequest() as stop:
                result = run.train(stop)
        except BaseException:
            run.log_close(failed=True)
            raise
        run.log_close(failed=False)
    return result


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(
        self, task: Task, config: TrainingConfig, folder: Path, ranks: Ranks, seed: int, num_train_clips: int | None
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.task, self.config, self.folder, self.ranks, self.seed = task, config, folder, ranks, seed
        self.length: Length = config.length(num_train_clips)
        self.learning_rate: LearningRate = config.learning_rate(self.length, ranks.world_size)
        self.dtype = _choose_dtype(config.dtype, ranks.device)
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.progress = Progress()
        self.measurements: tuple[Measurement, ...] = ()
        self.log: RunLog | None = None
        self.clock = self.logged_clock = self.saved_clock = time.perf_counter()
        self.logged_at = self.progress

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Move the model, restore what is there, wrap for several ranks, open the log."""
        task, ranks = self.task, self.ranks
        task.model.to(ranks.device)
        task.model.train()
        self.optimizer = build_optimizer(task.model, self.config.optimizer)
        self.sums = StepSums(ranks)
        latest = ranks.from_first(self.checkpoints.latest())
        if latest is not None and not self.config.resume:
            raise ValueError(
                f"{self.folder} already holds {latest.name}, and resume is false; choose another output_dir"
            )
        if latest is not None:
            task.check_checkpoint(latest)
            self.progress, unlogged = restore(latest, task.model, self.optimizer)
            self.sums.load(unlogged)
        self.model: nn.Module = task.model
        if ranks.world_size > 1:
            self.model = share_gradients(task.model)
        if ranks.is_first:
            self.log = RunLog(self.folder, length=self.length, wandb_config=self.config.wandb, settings=settings)
            self.log.forget_after(self.progress.step if latest is not None else -1)
            self.log.say(self._opening(latest))
            if latest is not None and (self.folder / "config.json").is_file():
                for change in changed_settings(load_json(self.folder / "config.json"), settings):
                    self.log.say(f"  changed since the run began: {change}")
            save_json(self.folder / "config.json", settings)

    def train(self, stop: StopRequest) -> FitResult:
        if self.config.evaluate_at_start and self.progress.step == 0:
            self.evaluate()
        final = self.folder / "final"
        if self.length.is_reached(self.progress) and self.ranks.from_first(final.is_dir()):
            self.say(f"nothing to do: {final} is finished, with {self.progress.step} steps")
            return FitResult(self.progress, 0, ())
        is_stopping = False
        if not self.length.is_reached(self.progress):
            with contextlib.closing(self.task.batches(self.progress.clips)) as batches:
                is_stopping = self._steps(batches, stop)
            self.save_checkpoint()
        if is_stopping:
            stopped_by = max(1, stop.signal_number)
            self.say(f"stopped at step {self.progress.step} with a checkpoint; the same command continues")
            return FitResult(self.progress, stopped_by, ())
        self.evaluate()
        if self.ranks.is_first:
            with atomic_directory(final) as unfinished:
                self.task.export(unfinished)
        self.ranks.wait_for_all()
        self.say(f"finished after {self.progress.step} steps, {self.progress.clips} clips: {final}")
        return FitResult(self.progress, 0, self.measurements)

    def _steps(self, batches: Iterator[Any], stop: StopRequest) -> bool:
        """Optimizer steps until the length is reached (False) or some rank was asked to stop (True)."""
        self.clock = self.logged_clock = self.saved_clock = time.perf_counter()
        self.logged_at = self.progress
        while not self.length.is_reached(self.progress):
            window = [next(batches) for _ in range(self.config.accumulation)]
            counts, clips, tokens, slots, num_stopping, is_save_time = self._agree(window, stop)
            if num_stopping:
                return True
            before, after = self.progress, self.progress.advanced(clips=clips, tokens=tokens, slots=slots)
            unit = self.length.unit
            rate = self.learning_rate.at(before.amount(unit), after.amount(unit) - before.amount(unit))
            self._step(window, counts, rate)
            now = time.perf_counter()
            self.progress = replace(after, seconds=before.seconds + now - self.clock)
            self.clock = now
            if after.step % self.config.log_every == 0 or self.length.is_reached(after):
                self._log_line(rate)
            is_last = self.length.is_reached(self.progress)
            if _is_due(self.config.evaluate_every, after.step) and not is_last:
                self.evaluate()
            if (_is_due(self.config.checkpoint_every, after.step) or is_save_time) and not is_last:
                self.save_checkpoint()
                self.saved_clock = time.perf_counter()
        return False

    def _agree(self, window: Sequence[Any], stop: StopRequest) -> tuple[tuple[int, ...], int, int, int, int, int]:
        """Counts and sizes of the step over all ranks, and whether any rank wants to stop or rank 0 to save."""
        counts = [sum(column) for column in zip(*(self.task.counts(batch) for batch in window), strict=True)]
        sizes = [self.task.size(batch) for batch in window]
        minutes = self.config.checkpoint_minutes
        is_save_time = minutes is not None and time.perf_counter() - self.saved_clock > 60 * minutes
        amounts = (sum(s.clips for s in sizes), sum(s.tokens for s in sizes), sum(s.slots for s in sizes))
        flags = (int(stop.signal_number > 0), int(is_save_time and self.ranks.is_first))
        total = self.ranks.sum_ints([*counts, *amounts, *flags])
        return tuple(total[: len(counts)]), *total[len(counts) :]

    def _step(self, window: Sequence[Any], counts: tuple[int, ...], rate: float) -> None:
        with seeded(self.seed, self.progress.step, self.ranks.rank, device=self.ranks.device):
            self.sums.add(
                forward_backward(
                    self.task,
                    self.model,
                    window,
                    counts,
                    ranks=self.ranks,
                    dtype=self.dtype,
                    reference_denominator=self.config.reference_denominator,
                )
            )
            norm = apply_gradients(
                self.optimizer, learning_rate=rate, clip_grad_norm=self.config.optimizer.clip_grad_norm
            )
            self.sums.add_norm(norm)
            self.task.after_step()

    def _log_line(self, rate: float) -> None:
        values = self.sums.take()
        self.clock = now = time.perf_counter()  # take() waited for the device
        seconds = max(now - self.logged_clock, 1e-9)
        tokens = self.progress.tokens - self.logged_at.tokens
        values["lr"] = rate
        values["tokens_per_s"] = tokens / seconds
        values["clips_per_s"] = (self.progress.clips - self.logged_at.clips) / seconds
        if self.ranks.device.type == "cuda":
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.ranks.device) / 1e9
        unit = self.length.unit
        done = self.progress.amount(unit) - self.logged_at.amount(unit)
        left = self.length.total - self.progress.amount(unit)
        self.logged_at, self.logged_clock = self.progress, now
        if self.log is not None:
            self.log.train(self.progress, values, seconds_left=max(0.0, left * seconds / max(done, 1)))

    def evaluate(self) -> None:
        """Measure on held-out data in evaluation mode; does not count as training time."""
        started = time.perf_counter()
        self.task.model.eval()
        with torch.no_grad(), seeded(self.seed, 1, device=self.ranks.device), _autocast(self.ranks.device, self.dtype):
            self.measurements = tuple(self.task.evaluate(self.task.model))
        self.task.model.train()
        if self.log is not None:
            self.log.evaluation(self.progress, self.measurements)
        self._forget_time(started)

    def save_checkpoint(self) -> None:
        started = time.perf_counter()
        unlogged = self.sums.state()
        if self.ranks.is_first:
            note = {"world_size": self.ranks.world_size, "seed": self.seed}
            self.checkpoints.save(self.task, self.optimizer, progress=self.progress, unlogged=unlogged, note=note)
            self.checkpoints.prune(keep_last=self.config.keep_last, keep_every=self.config.keep_every)
        self._forget_time(started)

    def say(self, text: str) -> None:
        if self.log is not None:
            self.log.say(text)

    def log_close(self, *, failed: bool) -> None:
        if self.log is not None:
            self.log.close(failed=failed)

    def _forget_time(self, started: float) -> None:
        """Evaluation and saving are not part of the training rate."""
        passed = time.perf_counter() - started
        self.clock += passed
        self.logged_clock += passed

    def _opening(self, latest: Path | None) -> str:
        num_parameters = sum(parameter.numel() for parameter in self.task.model.parameters() if parameter.requires_grad)
        clips = self.config.batch_size * self.config.accumulation * self.ranks.world_size
        where = f"{self.ranks.world_size} x {self.ranks.device.type}, {str(self.dtype).removeprefix('torch.')}"
        begin = f"resuming from {latest}" if latest is not None else "starting"
        return (
            f"{begin}: {num_parameters / 1e6:.2f} M parameters, {clips} clips a step, {where}, "
            f"{self.length.total:g} {self.length.unit}, lr {self.learning_rate.peak:.2e}, into {self.folder}"
        )


def changed_settings(old: Any, new: Any, name: str = "") -> list[str]:
    """Lines `key: old -> new` for every value in which two nested settings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        changes = [changed_settings(old.get(key), new.get(key), f"{name}.{key}" if name else key) for key in keys]
        return [line for lines in changes for line in lines]
    return [] if old == new else [f"{name}: {old} -> {new}"]


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
