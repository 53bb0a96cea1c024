"""The clocks of a run: what is due at a step, how fast it goes, how long it still takes.

Evaluation and saving are not training: while the pace is paused its clocks stand still.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from egom2p.training.schedule import Length, Progress
from egom2p.training.task import BatchSize
from egom2p.training.training_config import TrainingConfig

_NOTHING = BatchSize(0)


class Pace:
    """Of the steps since `begin`, and of those since the last line of the log.

    peak_flops   per second of one device; None: not known
    """

    def __init__(
        self,
        config: TrainingConfig,
        length: Length,
        *,
        world_size: int = 1,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config, self._length, self._world_size, self._peak_flops = config, length, world_size, peak_flops
        self._now_s = clock
        self.begin(Progress())

    def begin(self, progress: Progress) -> None:
        """The first step is about to start."""
        self._clock = self._logged_clock = self._saved_clock = self._now_s()
        self._logged_at, self._unlogged = progress, _NOTHING

    def counted(self, progress: Progress, size: BatchSize = _NOTHING) -> Progress:
        """Progress with the seconds since the last call; `size` is what was trained on in them."""
        now = self._now_s()
        seconds, self._clock = progress.seconds + now - self._clock, now
        self._unlogged += size
        return replace(progress, seconds=seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        started = self._now_s()
        yield
        passed = self._now_s() - started
        self._clock += passed
        self._logged_clock += passed

    def is_log_due(self, progress: Progress) -> bool:
        return progress.step % self._config.log_every == 0 or self._length.is_reached(progress)

    def is_evaluation_due(self, progress: Progress) -> bool:
        """Not at the end, where everything is measured anyway; the same holds for checkpoints."""
        return self._is_due(self._config.evaluate_every, progress)

    def is_checkpoint_due(self, progress: Progress) -> bool:
        """By steps; see `is_save_time`."""
        return self._is_due(self._config.checkpoint_every, progress)

    def is_save_time(self) -> bool:
        """Whether the minutes between two checkpoints are over, by this process's clock."""
        minutes = self._config.checkpoint_minutes
        return minutes is not None and self._now_s() - self._saved_clock > 60 * minutes

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved_clock = self._now_s()

    def since_last_line(self, progress: Progress) -> tuple[dict[str, float], float]:
        """Rates since the last call, and the seconds that are left. What no task tells the size of has no rate."""
        before, size, now = self._logged_at, self._unlogged, self._now_s()
        seconds = max(now - self._logged_clock, 1e-9)
        self._logged_at, self._unlogged, self._logged_clock = progress, _NOTHING, now
        values = {
            "tokens_per_s": (progress.tokens - before.tokens) / seconds,
            "clips_per_s": (progress.clips - before.clips) / seconds,
        }
        if size.flops:
            flops_per_s = size.flops / seconds / self._world_size
            values["model_tflops_per_s"] = flops_per_s / 1e12
            if self._peak_flops is not None:
                values["mfu"] = flops_per_s / self._peak_flops
        if size.rows:
            values["fill"] = size.tokens / size.rows
            values["trimmed"] = size.trimmed / (size.tokens + size.trimmed)
        unit = self._length.unit
        done, left = progress.amount(unit) - before.amount(unit), self._length.total - progress.amount(unit)
        return values, max(0.0, left * seconds / max(done, 1))

    def _is_due(self, every: int | None, progress: Progress) -> bool:
        return every is not None and progress.step % every == 0 and not self._length.is_reached(progress)
