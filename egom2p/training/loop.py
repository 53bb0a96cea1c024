"""The one training loop, for pretraining and tokenizers alike.

Each step: fetch the accumulation window, sum its counts over ranks (through host memory), then forward and backward
with the denominators of the whole step. The host waits for the device only when a line is logged.
K loss terms.
"""

import contextlib
import faulthandler
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from egom2p.config import to_plain
from egom2p.jobs.progress import say
from egom2p.jobs.workers import choose_dtype
from egom2p.storage import RemoteError, configure_remote, load_json, only_writer, parse_json, save_json
from egom2p.training.checkpoint import (
    CheckpointFolder,
    export,
    is_finite,
    make_train_state,
    read_state,
    restore,
    run_summary,
)
from egom2p.training.determinism import DIFFERS_CODE, DifferingRunError, StepTrace, check_determinism
from egom2p.training.distributed import (
    STOP_SIGNALS,
    Ranks,
    StopRequest,
    autocast,
    end_if_stopped,
    ranks_of_launch,
)
from egom2p.training.optim import set_weight_decay
from egom2p.training.parallel import is_sharded_model, local_part, share_gradients, with_whole_weights
from egom2p.training.run_folder import CHECKPOINTS, FINAL, BestCheckpoint, Retention, RunFolder
from egom2p.training.run_log import RunLog, WandbConfig, changed_settings, check_same_run
from egom2p.training.schedule import LearningRate, Length, Progress, WeightDecay
from egom2p.training.step import StepSums, apply_gradients, forward_backward
from egom2p.training.task import BatchSize, Measurement, Task, seeded
from egom2p.training.throughput import StepProfiler, Throughput, peak_flops
from egom2p.training.training_config import TrainingConfig
from egom2p.training.watchdog import BUSY, activity


@dataclass(frozen=True)
class FitResult:
    """How a run ended. `stopped_by`: number of the signal that ended it early, 0 when it reached its length."""

    progress: Progress
    stopped_by: int
    measurements: tuple[Measurement, ...]


DEAD_CODE = 3


class DeadRunError(ValueError):
    """A run that cannot learn any more: its loss or weights are no numbers, or every step is skipped."""


def fit(
    task: Task,
    config: TrainingConfig,
    *,
    output_dir: str | Path,
    ranks: Ranks,
    seed: int,
    settings: Mapping[str, Any],
    trace: StepTrace | None = None,
) -> FitResult:
    """Train until the configured length is reached or a signal asks to stop; resume if `output_dir` has checkpoints.

    Writes `config.json` (`settings`, plain values), `log.jsonl`, `checkpoints/` and, at the end, `final/`.
    `output_dir` may be an S3 address: the run then lives below `config.scratch_dir` and is mirrored.
    Same seed, config and machine give the same numbers, interrupted or not: bitwise on the CPU. On a GPU kernels that
    add with atomics (the backward pass of attention and of embedding tables) may differ in the last bits between two
    runs, interrupted or not. DeadRunError when the run diverged: the last good checkpoint stays, nothing is exported.
    """
    config = config.shared_by(ranks.world_size)
    configure_remote(config.remote)
    folder = RunFolder(output_dir, config.scratch_dir)
    folder.fetch(ranks)
    run = _Run(task, config, folder, ranks, seed, trace)
    # The workers of a launcher that was killed live on; a second run must not write into their folder.
    with only_writer(folder.path) if ranks.is_first else contextlib.nullcontext():
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
        self,
        task: Task,
        config: TrainingConfig,
        folder: RunFolder,
        ranks: Ranks,
        seed: int,
        trace: StepTrace | None = None,
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.task, self.config, self.ranks, self.seed, self.trace = task, config, ranks, seed, trace
        self.run_folder, self.folder, self.frozen = folder, folder.path, task.frozen
        self.length: Length = config.length(task.num_train_clips)
        self.learning_rate: LearningRate = config.learning_rate(self.length, ranks.world_size)
        self.weight_decay: WeightDecay | None = config.weight_decay(self.length)
        self.data = parse_json(json.dumps(task.data_identity()), "data of the task")  # plain, as a checkpoint has it
        self.dtype = choose_dtype(config.dtype, ranks.device)
        self.checkpoints = CheckpointFolder(self.folder / CHECKPOINTS)
        self.best = BestCheckpoint(config.keep_best, self.checkpoints.folder)
        self.profiler = StepProfiler(config.profile if ranks.is_first else None, self.folder / "profile")
        peak = peak_flops(ranks.device, self.dtype, given_tflops=config.peak_tflops)
        self.throughput = Throughput(config, self.length, world_size=ranks.world_size, peak_flops=peak)
        self.progress = Progress()
        self.measurements: tuple[Measurement, ...] = ()
        self.log: RunLog | None = None

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Move the model and spread it over ranks, restore what is there, open the log."""
        task, ranks = self.task, self.ranks
        self.train_state = make_train_state(task.model, self.config, ranks=ranks, dtype=self.dtype)
        self.sums = StepSums(ranks)
        latest, changes = ranks.from_first(self.checkpoints.latest()), []
        aside: list[str] = []
        if latest is not None and self.config.resume:
            latest, aside = self.checkpoints.newest(self.config.resume, ranks)
        if latest is not None and not self.config.resume:
            raise ValueError(
                f"{self.folder} already holds {latest.name}, and resume is false; choose another output_dir"
            )
        if latest is not None:
            task.check_checkpoint(latest)
            changes = ranks.from_first(self._changes(settings))
            if not self.config.allow_changes:
                check_same_run(self.folder, changes)
            before = ranks.from_first(read_state(latest)["data"])
            changes += changed_settings(before, self.data, "data on the disk")
            self.progress, unlogged = restore(latest, self.train_state)
            self.sums.load(unlogged)
        self.best.forget_after(self.progress.step if latest is not None else -1)
        is_finished = latest is not None and self.length.is_reached(self.progress) and (self.folder / FINAL).is_dir()
        is_shared = ranks.world_size > 1 and not is_sharded_model(task.model)
        self.model: nn.Module = share_gradients(task.model) if is_shared else task.model
        if ranks.is_first:
            self.log = RunLog(
                self.folder,
                length=self.length,
                wandb_config=self.config.wandb,
                settings=settings,
                clip_word=task.clip_word,
            )
            self.log.forget_after(self.progress.step if latest is not None else -1)
            begin = "starting" if latest is None else f"resuming from {latest}"
            details = f"{self.length.total:g} {self.length.unit}, lr {self.learning_rate.peak:.2e}, into {self.folder}"
            how = run_summary(task, self.config, ranks, self.dtype)
            for line in (*aside, f"{begin}: {how}, {details}", *task.notes):
                self.log.say(line)
            for change in changes:
                self.log.say(f"  changed since the run began: {change}")
            if not is_finished:  # else it says what the weights beside it were made by
                save_json(self.folder / "config.json", settings)

    def _changes(self, settings: Mapping[str, Any]) -> list[str]:
        file = self.folder / "config.json"
        return changed_settings(load_json(file), settings) if file.is_file() else []

    def train(self, stop: StopRequest) -> FitResult:
        if self.config.evaluate_at_start and self.progress.step == 0:
            self.evaluate()
        final = self.folder / FINAL
        if self.length.is_reached(self.progress) and self.ranks.from_first(final.is_dir()):
            self.say(f"nothing to do: {final} is finished, with {self.progress.step} steps")
            self._mirror(is_last=True)
            return FitResult(self.progress, 0, ())
        stopped_by = 0
        if not self.length.is_reached(self.progress):
            with contextlib.closing(self.task.batches(self.progress.clips)) as batches:
                stopped_by = self._steps(batches, stop)
            if not stopped_by and not self.sums.is_empty:
                unlogged = self.sums.state()
                self._check_alive(self.sums.take())  # steps since the last line, of which none is written
                self.sums.load(unlogged)
            self.save_checkpoint()
        if stopped_by:
            self.say(f"stopped at step {self.progress.step} with a checkpoint; the same command continues")
            return FitResult(self.progress, stopped_by, ())
        self._check_weights()
        self.evaluate()
        with activity.doing(BUSY):
            export(self.task, self.train_state, final, ranks=self.ranks)
        self._mirror(is_last=True)
        self.say(f"finished after {self.progress.step} steps, {self.progress.clips} {self.task.clip_word}: {final}")
        return FitResult(self.progress, 0, self.measurements)

    def _steps(self, batches: Iterator[Any], stop: StopRequest) -> int:
        """Optimizer steps until the length is reached (0) or some rank was asked to stop (the signal's number)."""
        self.throughput.begin(self.progress)
        while not self.length.is_reached(self.progress):
            window = [next(batches) for _ in range(self.config.accumulation)]
            counts, size, stopped_by, is_save_time = self._agree(window, stop)
            if stopped_by:
                return stopped_by
            before = self.progress
            after = before.advanced(clips=size.clips, tokens=size.tokens, token_budget=size.token_budget)
            unit = self.length.unit
            rate = self.learning_rate.at(before.amount(unit), after.amount(unit) - before.amount(unit))
            self.profiler.before_step(before.step)
            self._step(window, counts, rate)
            if (trace := self.profiler.after_step(before.step)) is not None:
                self.say(f"profile: {trace}")
            self.progress = self.throughput.counted(after, size)
            if self.throughput.is_log_due(self.progress):
                self._log_line(rate)
            if self.throughput.is_evaluation_due(self.progress):
                self.evaluate()
            is_save_time = is_save_time and not self.length.is_reached(self.progress)
            if is_save_time or self.throughput.is_checkpoint_due(self.progress):
                self.save_checkpoint()
        return 0

    def _agree(self, window: Sequence[Any], stop: StopRequest) -> tuple[tuple[int, ...], BatchSize, int, int]:
        """Counts and size of the step over all ranks, the signal that one of them got (0: none), whether to save."""
        counts = [sum(column) for column in zip(*(self.task.counts(batch) for batch in window), strict=True)]
        size = sum((self.task.size(batch) for batch in window), BatchSize(0))
        got = [int(stop.signal_number == number) for number in STOP_SIGNALS]
        is_save_time = int(self.ranks.is_first and self.throughput.is_save_time())
        total = self.ranks.sum_ints([*counts, *astuple(size), is_save_time, *got])
        # One signal for all: ranks that ended with different codes would look like a failure to the launcher.
        got = total[-len(got) :]
        stopped_by = next((int(number) for number, times in zip(STOP_SIGNALS, got, strict=True) if times), 0)
        size = BatchSize(*total[len(counts) : -len(got) - 1])
        return tuple(total[: len(counts)]), size, stopped_by, total[-len(got) - 1]

    def _step(self, window: Sequence[Any], counts: tuple[int, ...], rate: float) -> None:
        with seeded(self.seed, self.progress.step, self.ranks.rank, device=self.ranks.device):
            losses = forward_backward(
                self.task,
                self.model,
                window,
                counts,
                ranks=self.ranks,
                dtype=self.dtype,
                reference_denominator=self.config.reference_denominator,
                scaler=self.train_state.scaler,
            )
            self.sums.add(losses)
            if self.trace is not None:
                self.trace.gradients(self.progress.step, window, losses.sums, self.task.model)
            if self.weight_decay is not None:
                set_weight_decay(
                    self.train_state.optimizer, self.weight_decay.at(self.progress.amount(self.length.unit))
                )
            is_frozen = self._is_frozen()
            if is_frozen:
                self.frozen.hold_gradients(self.task.model)
            norm, is_skipped = apply_gradients(
                self.train_state.optimizer,
                learning_rate=rate,
                clip_grad_norm=self.config.optimizer.clip_grad_norm,
                skip_grad_norm=self.config.optimizer.skip_grad_norm,
                scaler=self.train_state.scaler,
            )
            if is_frozen:
                self.frozen.restore(self.task.model)
            self.sums.add_norm(norm, is_skipped)
            self.task.after_step()
        if self.train_state.ema is not None:
            self.train_state.ema.update(self.task.model, self.progress.step + 1)
        if self.trace is not None:
            self.trace.end_of_step(self.progress.step, self.train_state.tensors(), self.ranks)

    def _is_frozen(self) -> bool:
        if self.frozen is None:
            return False
        if self.progress.amount(self.length.unit) < self.frozen.until:
            return True
        self.say(f"step {self.progress.step}: everything trains")
        self.frozen.forget()
        self.frozen = None
        return False

    def _log_line(self, rate: float) -> None:
        values = self.sums.take()
        self.progress = self.throughput.counted(self.progress)  # take() waited for the device
        rates, seconds_left = self.throughput.since_last_line(self.progress)
        values |= {"lr": rate} | rates
        if self.train_state.scaler is not None:
            values["loss_scale"] = self.train_state.scaler.get_scale()
        if self.ranks.device.type == "cuda":
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.ranks.device) / 1e9
        if self.log is not None:
            self.log.train(self.progress, values, seconds_left=seconds_left)
        self._check_alive(values)

    def _check_alive(self, values: Mapping[str, float]) -> None:
        """DeadRunError, on all ranks alike, where a log line shows a run that cannot learn any more."""
        most = self.config.max_skipped_steps
        if most is None:
            return
        # One bad batch that has a line for itself is no divergence: the next one may do.
        if not math.isfinite(values["loss"]) and values["skipped_in_a_row"] > 1:
            self._give_up(f"of the {values['num_steps']} steps up to {self.progress.step} none has a finite loss")
        if values["skipped_in_a_row"] >= most:
            self._give_up(
                f"up to step {self.progress.step}, {values['skipped_in_a_row']} steps in a row were skipped, for their "
                f"gradients are not finite or above optimizer.skip_grad_norm (training.max_skipped_steps is {most})"
            )

    def _check_weights(self) -> None:
        """DeadRunError, on all ranks alike, for weights that are not finite: they are neither kept nor offered."""
        wrong = [name for name, tensor in self.train_state.tensors() if not is_finite(local_part(tensor))]
        (num_wrong,) = self.ranks.sum_ints([len(wrong)])
        if num_wrong:
            where = f": {wrong[0]}" if wrong else ""
            self._give_up(
                f"after step {self.progress.step}, {num_wrong} tensors hold numbers that are not finite{where}"
            )

    def _give_up(self, what: str) -> NoReturn:
        doubtful = self._retention().doubtful
        sound = [path for step, path in self.checkpoints.all().items() if step not in doubtful]
        kept = f"The last good checkpoint is {sound[-1]}" if sound else "There is no checkpoint from before"
        raise DeadRunError(
            f"{self.folder}: the run is dead: {what}. {kept}; nothing was exported. Go on from it with a lower "
            "learning rate (training.allow_changes=true; remove newer checkpoints first), or look at the data of these "
            "steps; training.max_skipped_steps=null goes on whatever the loss is"
        )

    def evaluate(self) -> None:
        """Measure on held-out data in evaluation mode, the average of weights where there is one.

        Does not count as training time.
        """
        model, device, ema = self.task.model, self.ranks.device, self.train_state.ema
        wants_average = ema is not None and ema.config.evaluate
        model.eval()
        with (
            activity.doing(BUSY),
            self.throughput.paused(),
            ema.put_into(model) if wants_average else contextlib.nullcontext(),
            torch.no_grad(),
            seeded(self.seed, 1, device=device),
            autocast(device, self.dtype),
        ):
            self.measurements = with_whole_weights(model, lambda: tuple(self.task.evaluate(model)))
        model.train()
        if self.log is not None:
            self.log.evaluation(self.progress, self.measurements)
        # The first rank knows the best so far; the others may have no disk in common with it.
        if self.progress.step and self.ranks.from_first(self.best.is_better(self.measurements)):
            self.save_checkpoint(is_best=True)

    def save_checkpoint(self, *, is_best: bool = False) -> None:
        """Does not count as training time either."""
        with activity.doing(BUSY), self.throughput.paused():
            self._check_weights()
            unlogged = self.sums.state()
            note = {"world_size": self.ranks.world_size, "seed": self.seed, "data": self.data}
            note["skipped_in_a_row"] = self.sums.skipped_in_a_row()
            self.checkpoints.save(
                self.task, self.train_state, ranks=self.ranks, progress=self.progress, unlogged=unlogged, note=note
            )
            if self.ranks.is_first:
                if is_best:
                    self.best.note(self.progress.step, self.measurements)
                self.checkpoints.prune(self._retention())
            self._mirror()
        self.throughput.saved()

    def _mirror(self, *, is_last: bool = False) -> None:
        """Bring the bucket of the run up to date. What it does not take now it is offered at the next checkpoint."""
        if not self.ranks.is_first:
            return
        try:
            self.run_folder.mirror(self._retention())
        except RemoteError as error:
            if is_last:
                raise RemoteError(f"{error}. The run is whole in {self.folder}; the same command uploads it") from error
            self.say(f"not uploaded, training goes on and the next checkpoint is uploaded with this one: {error}")

    def _retention(self) -> Retention:
        return Retention(self.config.keep_last, self.config.keep_every, self.best.step, self.checkpoints.doubtful())

    def say(self, text: str) -> None:
        if self.log is not None:
            self.log.say(text)

    def log_close(self, *, failed: bool) -> None:
        self.profiler.close()
        if self.log is not None:
            self.log.close(failed=failed)


class TrainerConfig(Protocol):
    """What every trainer's root schema has."""

    output_dir: str
    seed: int
    training: TrainingConfig


def train(config: TrainerConfig, make_task: Callable[[Any, Ranks], Task]) -> FitResult:
    """Train `make_task(config, ranks)` on the ranks of this launch, evaluate it and write `<output_dir>/final`.

    Ends the process with a code when a signal stopped it (128 + its number), the run is dead (3), or
    `training.check_determinism` found other numbers the second time (5).
    """
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError):  # no file behind stderr
            faulthandler.enable()  # a crash in C shows where Python was
    try:
        result = _train(config, make_task)
    except DeadRunError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            sys.stderr.write(f"error: {error}\n")
        raise SystemExit(DEAD_CODE) from error
    except DifferingRunError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(DIFFERS_CODE) from error
    end_if_stopped(result.stopped_by)
    return result


def _train(config: TrainerConfig, make_task: Callable[[Any, Ranks], Task]) -> FitResult:
    training = config.training
    watching = {"timeout_s": training.collective_timeout_s, "watchdog_s": training.watchdog_s}
    with ranks_of_launch(training.device, **watching) as ranks:
        if training.check_determinism is not None:
            line = check_determinism(partial(_traced, config, make_task, ranks), training.check_determinism, ranks)
            if ranks.is_first:
                say(line)
            return FitResult(Progress(training.check_determinism), 0, ())
        return _fit(config, make_task, ranks)


def _fit(
    config: TrainerConfig, make_task: Callable[[Any, Ranks], Task], ranks: Ranks, trace: StepTrace | None = None
) -> FitResult:
    # A task may start otherwise where there is a checkpoint.
    RunFolder(config.output_dir, config.training.scratch_dir).fetch(ranks)
    return fit(
        make_task(config, ranks),
        config.training,
        output_dir=config.output_dir,
        ranks=ranks,
        seed=config.seed,
        settings=to_plain(config),
        trace=trace,
    )


def _traced(
    config: TrainerConfig, make_task: Callable[[Any, Ranks], Task], ranks: Ranks, folder: Path, trace: StepTrace
) -> FitResult:
    """The run from its beginning, elsewhere, with nothing but steps."""
    off = {"evaluate_at_start": False, "evaluate_every": None, "checkpoint_every": None, "checkpoint_minutes": None}
    training = replace(config.training, **off, wandb=WandbConfig(), profile=None)
    return _fit(replace(config, output_dir=str(folder), training=training), make_task, ranks, trace)
