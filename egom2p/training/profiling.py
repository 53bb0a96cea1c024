"""A window of steps under torch's profiler, as a trace for chrome://tracing or Perfetto."""

from pathlib import Path

import torch

from egom2p.config import strict


@strict
class ProfileConfig:
    """Which steps are profiled, counted from the beginning of the run: `steps` of them from `start` on."""

    start: int = 10
    steps: int = 3

    def __post_init__(self) -> None:
        if self.start < 0 or self.steps < 1:
            raise ValueError(f"start must not be negative and steps at least 1, got {self.start} and {self.steps}")


class StepProfiler:
    """Profiles the configured steps and writes `steps-<first>-<last>.json.gz`; does nothing without a config."""

    def __init__(self, config: ProfileConfig | None, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._profile: torch.profiler.profile | None = None
        self._first = 0

    def before_step(self, step: int) -> None:
        """`step` is about to run (the first of a run is 0). A run that resumes inside the window profiles its rest."""
        if self._config is None or self._profile is not None:
            return
        if self._config.start <= step < self._config.start + self._config.steps:
            self._first = step
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after_step(self, step: int) -> Path | None:
        """`step` has run; returns the trace when it was the last of the window."""
        if self._profile is None or step + 1 < self._config.start + self._config.steps:
            return None
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps-{self._first:08d}-{step:08d}.json.gz"
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        return path

    def close(self) -> None:
        """A run that ends inside the window leaves no trace and no profiler running."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
