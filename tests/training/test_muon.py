"""Muon beside AdamW: torch's two optimizers in one, resumable to the bit, untouched by broken gradients."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_task import run_toy

from egom2p.config import ConfigError, from_plain
from egom2p.storage import load_tensors
from egom2p.training.optim import Muon, MuonWithAdamW, OptimizerConfig, build_optimizer
from egom2p.training.step import apply_gradients

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


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4])
def test_skipped_gradients_leave_no_trace(generator, bad, kind):
    """Not finite, or larger than allowed: weights, moments and step counts stay as they are, to the bit."""
    model = small_model()
    optimizer = build_optimizer(model, replace(CONFIG, kind=kind))
    rules = {"learning_rate": 0.01, "clip_grad_norm": 1.0, "skip_grad_norm": 1e3}
    for _ in range(2):
        give_gradients(model, generator)
        _, is_skipped = apply_gradients(optimizer, **rules)
        assert is_skipped == 0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    kept = [{key: t.clone() for key, t in optimizer.state[p].items()} for p in model.parameters()]
    give_gradients(model, generator)
    model.narrow.weight.grad[0, 0] = bad
    _, is_skipped = apply_gradients(optimizer, **rules)
    assert is_skipped == 1
    for moments, (name, parameter) in zip(kept, model.named_parameters(), strict=True):
        assert torch.equal(parameter, before[name]), name
        for key, moment in optimizer.state[parameter].items():
            assert torch.equal(moment, moments[key]), (name, key)
    give_gradients(model, generator)
    apply_gradients(optimizer, **rules)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


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


def test_moments_of_another_optimizer_are_refused(tmp_path):
    run_toy(tmp_path, num_steps=2, **MUON)
    with pytest.raises(ValueError, match="optimizer.kind: muon -> adamw"):
        run_toy(tmp_path, num_steps=4, optimizer={"kind": "adamw"})


def test_it_learns(tmp_path):
    run_toy(tmp_path, num_steps=60, **MUON)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


def test_groups_of_muon_keep_their_decay_and_rate():
    """`no_decay` and a model's own factors on the rate count for matrices too; no tables, no AdamW."""
    model = small_model()
    model.lr_multipliers = lambda: {"narrow.weight": 0.5, "table.weight": 3.0}
    optimizer = build_optimizer(model, replace(CONFIG, no_decay=("wide.*",)))
    found = {
        id(p): (group["weight_decay"], group["lr_scale"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert [found[id(p)] for p in (model.wide.weight, model.narrow.weight)] == [(0.0, 5.0), (0.1, 2.5)]
    assert [found[id(p)] for p in (model.table.weight, model.norm.weight)] == [(0.1, 3.0), (0.0, 1.0)]
    assert len(found) == len(list(model.parameters()))
    before = model.wide.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    apply_gradients(optimizer, learning_rate=0.01, clip_grad_norm=None)
    assert torch.equal(model.wide.weight, before)
    assert isinstance(build_optimizer(nn.Linear(3, 2, bias=False), CONFIG), Muon)


def test_what_muon_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="kind"):
        from_plain(OptimizerConfig, {"kind": "lion"})
    with pytest.raises(ConfigError, match="`skip_grad_norm`: must be positive"):
        from_plain(OptimizerConfig, {"skip_grad_norm": 0})
    with pytest.raises(ConfigError, match="`muon_lr_scale`: must be positive"):
        from_plain(OptimizerConfig, {"muon_lr_scale": 0})
    with pytest.raises(ValueError, match="no linear layer to train; choose adamw"):
        build_optimizer(nn.LayerNorm(3), CONFIG)
