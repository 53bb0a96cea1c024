"""A training step never asks the device for a value: neither scalars nor shapes that depend on data."""

import pytest
import torch
from spy import Spy
from tiny_tokens import pretrain_values, write_tokens

from egom2p.config import from_plain
from egom2p.training.checkpoint import gradient_scaler
from egom2p.training.distributed import Ranks
from egom2p.training.ema import Ema, EmaConfig
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.step import StepSums, apply_gradients, forward_backward
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_does_not_wait(tmp_path, kind, dtype):
    """Clipping, skipping, loss scaling and averaging included."""
    write_tokens(tmp_path / "tokens", "train", 16, seed=0)
    write_tokens(tmp_path / "tokens", "val", 4, seed=1)
    config = from_plain(PretrainConfig, pretrain_values(tmp_path / "tokens", tmp_path / "run"))
    ranks = Ranks()
    task = PretrainTask(config, ranks)
    optimizer, sums = build_optimizer(task.model, OptimizerConfig(kind=kind)), StepSums(ranks)
    scaler, ema = gradient_scaler(ranks.device, dtype), Ema(task.model, EmaConfig(decay=0.9))
    batches = task.batches(0)
    for number in range(2):
        batch = next(batches)
        with Spy() as spy:
            step = forward_backward(
                task, task.model, [batch], task.counts(batch), ranks=ranks, dtype=dtype, scaler=scaler
            )
            sums.add(step)
            rules = {"clip_grad_norm": 1.0, "skip_grad_norm": 50.0}
            sums.add_norm(*apply_gradients(optimizer, learning_rate=1e-3, scaler=scaler, **rules))
            ema.update(task.model, number + 1)
        assert spy.num_calls > 100
        assert not spy.waiting
    assert sums.take()["loss"] > 0
