"""A small training job with two loss terms, for tests of the loop and as a script under torchrun.

Clips are drawn from their global index; every third has no rows of the second term, so that ranks and micro-batches
hold different numbers of rows.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from egom2p.config import from_plain
from egom2p.contracts import LossOutput
from egom2p.storage import load_json, save_tensors
from egom2p.training.distributed import Ranks, ranks_of_launch
from egom2p.training.loop import FitResult, fit
from egom2p.training.task import BatchSize, Measurement, Task, seeded
from egom2p.training.training_config import TrainingConfig

CHANNELS, CLASSES = 6, 5


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    targets: Tensor
    terms: Tensor
    counts: tuple[int, int]
    num_clips: int

    def to(self, device, *, non_blocking=True):
        return ToyBatch(
            self.inputs.to(device), self.targets.to(device), self.terms.to(device), self.counts, self.num_clips
        )


class ToyModel(nn.Module):
    """Dropout uses torch's default generator, so it shows whether the loop sets it per step."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = nn.Linear(CHANNELS, 16)
        self.heads = nn.ModuleList([nn.Linear(16, CLASSES) for _ in range(2)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: ToyBatch) -> LossOutput:
        hidden = self.dropout(torch.tanh(self.trunk(batch.inputs)))
        sums = []
        for term, head in enumerate(self.heads):
            rows = batch.terms == term
            if batch.counts[term]:
                sums.append(nn.functional.cross_entropy(head(hidden[rows]), batch.targets[rows], reduction="sum"))
            else:
                sums.append(torch.zeros((), device=batch.inputs.device))
        return LossOutput(torch.stack(sums), batch.counts, ("first", "second"))


class ToyTask(Task):
    def __init__(
        self, ranks: Ranks, *, batch_size: int, dropout: float = 0.0, delay_s: float = 0.0, nan_step: int = -1
    ) -> None:
        with seeded(7):
            self.model = ToyModel(dropout)
        self.ranks, self.batch_size, self.delay_s, self.nan_step = ranks, batch_size, delay_s, nan_step
        self.steps_done = 0
        self.first_clips: list[int] = []

    def batches(self, first_clip: int) -> Iterator[ToyBatch]:
        self.first_clips.append(first_clip)
        start = first_clip
        while True:
            indices = range(
                start + self.ranks.rank, start + self.batch_size * self.ranks.world_size, self.ranks.world_size
            )
            yield make_batch(list(indices), nan=start // self.batch_size == self.nan_step)
            time.sleep(self.delay_s)
            start += self.batch_size * self.ranks.world_size

    def counts(self, batch: ToyBatch) -> tuple[int, ...]:
        return batch.counts

    def size(self, batch: ToyBatch) -> BatchSize:
        return BatchSize(clips=batch.num_clips, tokens=len(batch.targets), token_budget=10 * batch.num_clips)

    def loss(self, model: nn.Module, batch: ToyBatch) -> LossOutput:
        return model(batch)

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        present = [sums[k] / count for k, count in enumerate(denominators) if count]
        return torch.stack(present).mean() if present else sums.sum()

    def after_step(self) -> None:
        self.steps_done += 1

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        assert not model.training
        output = model(make_batch(list(range(10_000, 10_016))))
        for name, total, count in zip(output.names, output.sums.tolist(), output.counts, strict=True):
            yield Measurement("toy", name, total / count, unigram_baseline=1.6)

    def check_checkpoint(self, directory: Path) -> None:
        pass

    def export(self, directory: Path) -> None:
        save_tensors(directory / "model.safetensors", self.model.state_dict())


def make_batch(indices: list[int], *, nan: bool = False) -> ToyBatch:
    inputs, targets, terms = [], [], []
    for index in indices:
        generator = torch.Generator().manual_seed(index)
        num_rows = (3 + index % 3, 0 if index % 3 == 0 else 2)
        x = torch.randn(sum(num_rows), CHANNELS, generator=generator)
        inputs.append(x * float("nan") if nan else x)
        targets.append(x[:, :CLASSES].argmax(-1))
        terms.append(torch.tensor([0] * num_rows[0] + [1] * num_rows[1]))
    term = torch.cat(terms)
    counts = (int((term == 0).sum()), int((term == 1).sum()))
    return ToyBatch(torch.cat(inputs), torch.cat(targets), term, counts, len(indices))


def run_toy(folder: Path, *, dropout: float = 0.0, delay_s: float = 0.0, nan_step: int = -1, **training) -> FitResult:
    values = {"num_steps": 20, "lr": 0.05, "batch_size": 4, "log_every": 1, "warmup": 2, "device": "cpu"} | training
    config = from_plain(TrainingConfig, values)
    with ranks_of_launch(config.device, watchdog_s=config.watchdog_s) as ranks:
        task = ToyTask(ranks, batch_size=config.batch_size, dropout=dropout, delay_s=delay_s, nan_step=nan_step)
        return fit(task, config, output_dir=folder, ranks=ranks, seed=3, settings=values)


if __name__ == "__main__":
    # toy_task.py FOLDER options.json: one run; exit code 75 when a signal stopped it
    result = run_toy(Path(sys.argv[1]), **load_json(sys.argv[2]))
    raise SystemExit(75 if result.stopped_by else 0)
