"""The clocks of a run: what is due at a step, how fast it goes, how long it still takes.

Evaluation and saving are not training: while the throughput is paused its clocks stand still.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from egom2p.contracts import PackedBatch
from egom2p.models.egom2p_model import EgoM2P
from egom2p.training.schedule import Length, Progress
from egom2p.training.task import BatchSize
from egom2p.training.training_config import ProfileConfig, TrainingConfig

# Dense bf16/fp16 tensor-core peaks of the makers' data sheets, FLOP/s. The first name a device's own name holds counts.
_HALF_PRECISION_PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


_NOTHING = BatchSize(0)


class Throughput:
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


class ModelFlops:
    """Floating-point operations (two per multiply-add) of the matrix products that a model needs for a batch.

    Made when it is settled what of the model trains, adapters included. A product with a weight costs as much again
    for the gradient of its input, and once more for that of the weight where it trains; one of two activations
    (attention) costs three times its forward pass in any case. No padding, filler, recomputation, norms or lookups
    count. Attention counts every pair of rows of a segment, also where it is causal.
    """

    def __init__(self, model: EgoM2P) -> None:
        config = model.config
        self._width, self._vocab_sizes = config.dim, model.vocab_sizes
        self._depths = config.encoder_depth, config.decoder_depth
        linear = [(name, layer.weight) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        self._all = _per_row(linear)
        self._trained = _per_row([(name, weight) for name, weight in linear if weight.requires_grad])
        self._patch_values = [spec.num_values for spec in model.specs if spec.kind == "patches"]
        self._trains_heads = model.decoder_embeddings.head_table.requires_grad

    def forward(self, batch: PackedBatch) -> int:
        """Of one forward pass."""
        return self._products(batch, self._all) + self._heads(batch) + self._attention(batch) + self._patches(batch)

    def training(self, batch: PackedBatch) -> int:
        """The same with the backward pass."""
        weights = self._products(batch, self._trained) + (self._heads(batch) if self._trains_heads else 0)
        # Pixels have no gradient; that of their weights, as dear, stands in its place.
        return 2 * self.forward(batch) + self._attention(batch) + weights

    def _patches(self, batch: PackedBatch) -> int:
        counts = zip(batch.patch_counts, self._patch_values, strict=True)
        return 2 * self._width * sum(count * size for count, size in counts)

    def _products(self, batch: PackedBatch, per_row: tuple[int, int]) -> int:
        return 2 * sum(sum(lengths) * size for lengths, size in zip(batch.clip_lengths, per_row, strict=True))

    def _heads(self, batch: PackedBatch) -> int:
        rows = zip(batch.head_counts, self._vocab_sizes, strict=True)
        return 2 * self._width * sum(count * size for count, size in rows)

    def _attention(self, batch: PackedBatch) -> int:
        inputs, targets = batch.clip_lengths
        encoder_depth, decoder_depth = self._depths
        pairs = encoder_depth * sum(rows * rows for rows in inputs)
        pairs += decoder_depth * sum(rows * rows for rows in batch.modality_lengths)
        pairs += decoder_depth * sum(m * n for m, n in zip(targets, inputs, strict=True))
        return 4 * self._width * pairs


def _per_row(linear: Sequence[tuple[str, nn.Parameter]]) -> tuple[int, int]:
    """Numbers of the weights that each input row, and each target row, is multiplied with."""
    # Keys and values of cross-attention are made of input rows, as the context is.
    reads_targets = [name.startswith("decoder.") and ".cross_attn.kv" not in name for name, _ in linear]
    sizes = [weight.numel() for _, weight in linear]
    of_targets = sum(size for size, is_target in zip(sizes, reads_targets, strict=True) if is_target)
    return sum(sizes) - of_targets, of_targets


def peak_flops(device: torch.device, dtype: torch.dtype, *, given_tflops: float | None = None) -> float | None:
    """Peak FLOP/s of one device in a precision; None where it is neither given nor known (CPUs, float32)."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(device_name: str) -> float | None:
    """Peak in half precision of a device by the name its driver gives."""
    words = device_name.replace("-", " ")
    return next((peak for name, peak in _HALF_PRECISION_PEAKS.items() if name in words), None)


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
