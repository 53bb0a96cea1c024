"""A training step never asks the device for a value: neither scalars nor shapes that depend on data."""

import functools

import pytest
import torch
import torch._dynamo
from packing import TINY_SPECS, pack, random_clips
from spy import BlockingCopies, Spy
from tiny_tokens import pretrain_values, write_tokens

from egom2p.config import from_plain
from egom2p.layers.blocks import compile_block, transformer_blocks
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
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
        with BlockingCopies() as copies, Spy() as spy:
            step = forward_backward(
                task, task.model, [batch], task.counts(batch), ranks=ranks, dtype=dtype, scaler=scaler
            )
            sums.add(step)
            rules = {"clip_grad_norm": 1.0, "skip_grad_norm": 50.0}
            sums.add_norm(*apply_gradients(optimizer, learning_rate=1e-3, scaler=scaler, **rules))
            ema.update(task.model, number + 1)
        assert spy.num_calls > 100
        assert not spy.waiting
        assert copies.num_sent > 5 and not copies.blocking
    assert sums.take()["loss"] > 0


def test_a_blocking_copy_would_be_seen():
    values = torch.ones(2)
    with BlockingCopies() as copies:
        values.to("cpu", non_blocking=True)
        values.to(torch.float64)
        assert not copies.blocking
        values.to(torch.device("cpu"))
        torch.tensor([1.0], device="cpu")
        float(values.sum())
    assert len(copies.blocking) >= 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own look at its inputs
def test_compiled_blocks_add_no_graphs_for_other_lengths(rng, monkeypatch):
    """Ragged batches, one with a clip that has no inputs: what two of them needed serves all others."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = EgoM2P(ModelConfig(dim=24, encoder_depth=2, decoder_depth=2, num_heads=2), TINY_SPECS)
    for block in transformer_blocks(model):
        compile_block(block)
    graphs = []
    for number in range(8):
        clips = random_clips(rng, TINY_SPECS, 3 + number % 3)
        if number == 1:
            clips[0] = ({}, clips[0][1])
        output = model(pack(clips, TINY_SPECS))
        output.sums.sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] > 0 and len(set(graphs[2:])) == 1
    torch._dynamo.reset()
