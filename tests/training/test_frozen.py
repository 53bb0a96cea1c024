"""A first phase that trains new parts only: the rest stands still to the bit, under every optimizer."""

import pytest
import torch
from tiny_tokens import DRIFT, SMELL

from egom2p.config import ConfigError, from_plain
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.training.frozen import FrozenConfig, FrozenPhase, trained_lines
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.step import apply_gradients

SPECS = (DRIFT, SMELL)
TABLES = {
    "encoder_embeddings.token_table": slice(7, 20),
    "decoder_embeddings.head_table": slice(7, 20),
    "positions.modality_table": slice(1, 2),
}


def small_model() -> EgoM2P:
    config = ModelConfig(dim=12, encoder_depth=1, decoder_depth=1, num_heads=2, use_bias=True, num_registers=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EgoM2P(config, SPECS)


def train(model: EgoM2P, optimizer, phase: FrozenPhase | None, *, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if phase is not None:
            phase.hold_gradients(model)
        apply_gradients(optimizer, learning_rate=0.01, clip_grad_norm=1.0)
        if phase is not None:
            phase.restore(model)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_the_lines_of_the_new_modality_move(kind):
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind, weight_decay=0.5))
    phase = FrozenPhase(trained_lines(model, SPECS, ["tok_smell"]), until=4)
    train(model, optimizer, phase, steps=4, seed=0)
    for name, tensor in model.state_dict().items():
        is_trained = torch.zeros(len(tensor), dtype=torch.bool)
        is_trained[TABLES.get(name, slice(0, 0))] = True
        assert torch.equal(tensor[~is_trained], before[name][~is_trained]), name
        assert (tensor[is_trained] != before[name][is_trained]).all(), name
    assert {id(p) for p in optimizer.state} == {id(model.get_parameter(name)) for name in TABLES}
    train(model, optimizer, None, steps=1, seed=1)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == list(before)


def test_embeddings_of_all_modalities():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerConfig())
    train(model, optimizer, FrozenPhase(trained_lines(model, SPECS, "embeddings"), until=1), steps=2, seed=0)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "embeddings" in name or "positions" in name}


def test_gradients_that_are_not_finite_do_not_reach_what_stands_still():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerConfig())
    phase = FrozenPhase(trained_lines(model, SPECS, ["tok_drift"]), until=1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    phase.hold_gradients(model)
    apply_gradients(optimizer, learning_rate=0.01, clip_grad_norm=1.0)
    phase.restore(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_held_is_refused():
    with pytest.raises(ValueError, match=r"frozen.train names \['tok_imu'\], the modalities are"):
        trained_lines(small_model(), SPECS, ["tok_imu"])
    with pytest.raises(ConfigError, match="`until`: must be positive"):
        from_plain(FrozenConfig, {"until": 0})
    with pytest.raises(ConfigError, match="names no modality"):
        from_plain(FrozenConfig, {"until": 1, "train": []})
