"""Muon beside AdamW: torch's two optimizers in one, resumable to the bit, untouched by broken gradients."""

import json

import pytest
import torch
from torch import nn
from toy_task import run_toy

from egom2p.config import ConfigError, from_plain
from egom2p.storage import load_tensors
from egom2p.training.optim import MuonWithAdamW, OptimizerConfig, apply_gradients, build_optimizer

CONFIG = OptimizerConfig(kind="muon", weight_decay=0.1, muon_lr_scale=5.0, muon_momentum=0.9)
MUON = {"optimizer": {"kind": "muon", "muon_lr_scale": 2.0}}


class Small(nn.Module):
    """Two matrices for Muon; a table, a norm and biases for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)
        self.wide = nn.Linear(6, 9)
        self.norm = nn.LayerNorm(9)
        self.narrow = nn.Linear(9, 4, bias=False)


def small_model() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def give_gradients(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_steps_are_those_of_torchs_muon_and_adamw(generator):
    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(ours, CONFIG)
    assert isinstance(optimizer, MuonWithAdamW)
    matrices = [theirs.wide.weight, theirs.narrow.weight]
    muon = torch.optim.Muon(matrices, lr=0.05, weight_decay=0.1, momentum=0.9)
    decayed = {"params": [theirs.table.weight], "weight_decay": 0.1}
    others = {"params": [theirs.wide.bias, *theirs.norm.parameters()], "weight_decay": 0.0}
    adamw = torch.optim.AdamW([decayed, others], lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        give_gradients(ours, generator)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = mine.grad.clone()
        apply_gradients(optimizer, learning_rate=0.01, clip_grad_norm=None)
        muon.step()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)
    assert not torch.equal(ours.wide.weight, small_model().wide.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_leave_no_trace(generator, bad):
    """AdamW's parameters and moments stay as they are; Muon's matrices move as after a gradient of zero."""
    model, twin = small_model(), small_model()
    optimizers = [build_optimizer(one, CONFIG) for one in (model, twin)]
    give_gradients(model, generator)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = mine.grad.clone()
    for optimizer in optimizers:
        apply_gradients(optimizer, learning_rate=0.01, clip_grad_norm=1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    kept = {id(p): {key: t.clone() for key, t in optimizers[0].state[p].items()} for p in model.parameters()}
    give_gradients(model, generator)
    model.narrow.weight.grad[0, 0] = bad
    norm = apply_gradients(optimizers[0], learning_rate=0.01, clip_grad_norm=1.0)
    assert not torch.isfinite(norm)
    matrices = {"wide.weight", "narrow.weight"}
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert all(torch.isfinite(moment).all() for moment in optimizers[0].state[parameter].values()), name
        if name not in matrices:
            assert torch.equal(parameter, before[name]), name
            for key, moment in optimizers[0].state[parameter].items():
                assert torch.equal(moment, kept[id(parameter)][key]), (name, key)
    for name, parameter in twin.named_parameters():
        parameter.grad = torch.zeros_like(parameter) if name in matrices else None
    apply_gradients(optimizers[1], learning_rate=0.01, clip_grad_norm=1.0)
    for name in matrices:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), msg=name)


def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path):
    common = {"dropout": 0.3, "schedule": "constant", "keep_last": 10} | MUON
    run_toy(tmp_path / "whole", num_steps=12, **common)
    run_toy(tmp_path / "parts", num_steps=7, **common)
    (tmp_path / "parts" / "final").rename(tmp_path / "unused")
    run_toy(tmp_path / "parts", num_steps=12, **common)
    last = "checkpoints/step-00000012/training.safetensors"
    found, wanted = load_tensors(tmp_path / "parts" / last), load_tensors(tmp_path / "whole" / last)
    assert found.keys() == wanted.keys() and "optimizer/trunk.weight/momentum_buffer" in wanted
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_it_learns(tmp_path):
    run_toy(tmp_path, num_steps=60, **MUON)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


def test_what_muon_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="kind"):
        from_plain(OptimizerConfig, {"kind": "sgd"})
    with pytest.raises(ConfigError, match="muon_lr_scale must be positive, got 0"):
        from_plain(OptimizerConfig, {"muon_lr_scale": 0})
    with pytest.raises(ValueError, match="no linear layer to train; choose adamw"):
        build_optimizer(nn.LayerNorm(3), CONFIG)
