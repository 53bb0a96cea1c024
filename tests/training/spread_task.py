"""EgoM2P on clips made of numbers, for tests of several processes; as a script under torchrun it does many runs.

`spread_task.py FOLDER jobs.json`: jobs.json maps names to options of `run_spread`; each run lands in FOLDER/name.
Even clips hold the first modality only and odd ones the second where `apart` is set, so that two ranks never see the
same modality.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from spy import Spy
from tiny_tokens import DRIFT, SMELL
from torch import Tensor
from toy_task import run_toy

from egom2p.config import from_plain
from egom2p.contracts import LossOutput, MaskedClip, PackedBatch
from egom2p.data.collate import collate
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import combine_losses
from egom2p.models.weights import write_model_files
from egom2p.storage import load_json
from egom2p.training.checkpoint import gradient_scaler
from egom2p.training.distributed import Ranks, ranks_of_launch
from egom2p.training.ema import Ema, EmaConfig
from egom2p.training.loop import FitResult, fit
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.parallel import ParallelConfig, part_like, shard, sharded_like, whole_tensor
from egom2p.training.step import StepSums, apply_gradients, forward_backward
from egom2p.training.task import BatchSize, Measurement, Task, seeded
from egom2p.training.training_config import TrainingConfig

SPECS = (DRIFT, SMELL)
MODEL = {"dim": 16, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "num_registers": 1}


class SpreadTask(Task):
    def __init__(
        self,
        ranks: Ranks,
        *,
        batch_size: int,
        apart: bool = False,
        broken_step: int = -1,
        model: dict | None = None,
        other_methods: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        with seeded(5):
            self.model = EgoM2P(from_plain(ModelConfig, MODEL | (model or {})), SPECS)
        self.ranks, self.batch_size, self.apart, self.broken_step = ranks, batch_size, apart, broken_step
        self.other_methods, self.delay_s, self.steps_done = other_methods, delay_s, 0

    def batches(self, first_clip: int) -> Iterator[PackedBatch]:
        start, world_size = first_clip, self.ranks.world_size
        while True:
            numbers = range(start + self.ranks.rank, start + self.batch_size * world_size, world_size)
            time.sleep(self.delay_s)
            yield make_batch(list(numbers), apart=self.apart)
            start += self.batch_size * world_size

    def counts(self, batch: PackedBatch) -> tuple[int, ...]:
        return batch.head_counts

    def size(self, batch: PackedBatch) -> BatchSize:
        return BatchSize(clips=batch.num_clips, tokens=batch.num_tokens, token_budget=batch.token_budget)

    def loss(self, model: torch.nn.Module, batch: PackedBatch) -> LossOutput:
        output = model(batch)
        is_broken = self.steps_done == self.broken_step and self.ranks.is_first
        return LossOutput(output.sums * float("inf"), output.counts, output.names) if is_broken else output

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        return combine_losses(sums, denominators)

    def after_step(self) -> None:
        self.steps_done += 1

    def evaluate(self, model: torch.nn.Module) -> Iterable[Measurement]:
        batch = make_batch([1000, 1001, 1002])
        if self.other_methods:
            for _ in range(self.ranks.rank):  # ranks need not do the same
                model.encoder_output(batch)
            hidden_MD = model.decode(batch, model.encode(batch))  # by themselves, and before the first forward
            assert torch.isfinite(model.encoder[0].mlp.fc1(hidden_MD)).all()
            yield Measurement("other", "logit", model.logits(hidden_MD, 1).abs().mean().item())
            yield Measurement("other", "row", model.row_losses(batch).mean().item())
        output = model(batch)
        for name, total, count in zip(output.names, output.sums.tolist(), output.counts, strict=True):
            yield Measurement("fixed", name, total / count)

    def check_checkpoint(self, directory: Path) -> None:
        pass

    def export(self, directory: Path) -> None:
        write_model_files(self.model, directory)


def make_batch(numbers: list[int], *, apart: bool = False) -> PackedBatch:
    """Clips of every kind: few and many tokens, a modality only as input, only as target, or (apart) not at all."""
    clips = []
    for number in numbers:
        rng = np.random.default_rng(number)
        given = {name: {} for name in ("input_ids", "input_positions", "target_ids", "target_positions", "query_ids")}
        for index, spec in enumerate(SPECS):
            if apart and number % 2 != index:
                continue
            positions = rng.permutation(spec.num_tokens)
            num_inputs = int(rng.integers(1, spec.num_tokens - 1))
            num_targets = int(rng.integers(1, spec.num_tokens - num_inputs))
            for side, chosen in (("input", positions[:num_inputs]), ("target", positions[-num_targets:])):
                ids = rng.integers(0, spec.vocab_size, len(chosen)).astype(np.int32)
                given[f"{side}_ids"][spec.name], given[f"{side}_positions"][spec.name] = ids, np.sort(chosen)
            given["query_ids"][spec.name] = np.full(num_targets, -1, np.int32)
        clips.append(MaskedClip(key=str(number), **given))
    return collate(clips, SPECS, num_registers=1, token_budget=40 * len(clips))


def run_spread(
    folder: Path,
    *,
    ranks: Ranks,
    apart: bool = False,
    broken_step: int = -1,
    model: dict | None = None,
    other_methods: bool = False,
    delay_s: float = 0.0,
    **training,
) -> FitResult:
    values = {
        "num_steps": 5, "lr": 0.1, "batch_size": 4, "log_every": 1, "schedule": "constant", "device": "cpu",
        "checkpoint_every": 1, "keep_last": 99, "optimizer": {"kind": "sgd", "clip_grad_norm": None},
    } | training  # fmt: skip
    config = from_plain(TrainingConfig, values)
    task = SpreadTask(
        ranks,
        batch_size=config.batch_size,
        apart=apart,
        broken_step=broken_step,
        model=model,
        other_methods=other_methods,
        delay_s=delay_s,
    )
    return fit(task, config, output_dir=folder, ranks=ranks, seed=3, settings=values)


def check_muon(folder: Path, ranks: Ranks) -> None:
    """The same gradients move whole and sharded matrices to the same values, bit by bit; a skipped step moves none."""
    whole, sharded = (torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Linear(9, 3)) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
        one.data.normal_(generator=generator)
        other.data.copy_(one.data)
    shard(sharded, ParallelConfig(kind="fsdp"), ranks=ranks, dtype=torch.float32)
    config = OptimizerConfig(kind="muon")
    optimizers = [build_optimizer(model, config) for model in (whole, sharded)]
    for step in range(4):
        for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
            gradient = torch.randn(one.shape, generator=generator) * (float("inf") if step == 2 else 1.0)
            one.grad = gradient
            other.grad = sharded_like(part_like(gradient, other).clone(), other)
        skipped = [
            apply_gradients(optimizer, learning_rate=0.1, clip_grad_norm=None)[1].item() for optimizer in optimizers
        ]
        assert skipped == [float(step == 2)] * 2, skipped
        for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
            assert torch.equal(one, whole_tensor(other)), (step, (one - whole_tensor(other)).abs().max())


def check_no_wait(folder: Path, ranks: Ranks) -> None:
    """A sharded step, averaging included, never asks the device for a value."""
    task = SpreadTask(ranks, batch_size=2)
    shard(task.model, ParallelConfig(kind="fsdp"), ranks=ranks, dtype=torch.float16)
    optimizer, sums = build_optimizer(task.model, OptimizerConfig(kind="muon")), StepSums(ranks)
    scaler, ema = gradient_scaler(ranks.device, torch.float16), Ema(task.model, EmaConfig(decay=0.9))
    batches = task.batches(0)
    for number in range(2):
        batch = next(batches)
        counts = tuple(ranks.sum_ints(task.counts(batch)))
        with Spy() as spy:
            step = forward_backward(
                task, task.model, [batch], counts, ranks=ranks, dtype=torch.float16, scaler=scaler
            )  # fmt: skip
            sums.add(step)
            rules = {"clip_grad_norm": 1.0, "skip_grad_norm": 50.0}
            sums.add_norm(*apply_gradients(optimizer, learning_rate=1e-3, scaler=scaler, **rules))
            ema.update(task.model, number + 1)
        assert spy.num_calls > 100
        assert not spy.waiting, spy.waiting
    assert sums.take()["loss"] > 0


def check_toy(folder: Path, ranks: Ranks) -> None:
    run_toy(folder, num_steps=5, batch_size=1, parallel={"kind": "fsdp"})


CHECKS = {"muon": check_muon, "no_wait": check_no_wait, "toy": check_toy}

if __name__ == "__main__":
    with ranks_of_launch("cpu") as launched:
        for job, options in load_json(sys.argv[2]).items():
            if options.get("check"):
                CHECKS[options["check"]](Path(sys.argv[1]) / job, launched)
            else:
                run_spread(Path(sys.argv[1]) / job.split("@")[0], ranks=launched, **options)
