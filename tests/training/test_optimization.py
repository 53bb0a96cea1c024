"""Schedules are the published ones, weight decay falls on the published parameters, seeds stay in their block."""

import numpy as np
import pytest
import torch
from tiny_tokens import DRIFT, SMELL

from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.storage import load_tensors
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.schedule import LearningRate, Length, Progress
from egom2p.training.step import apply_gradients
from egom2p.training.task import mixed_seed, seeded
from egom2p.training.training_config import TrainingConfig


@pytest.mark.parametrize("amount", [1, 4096])
def test_cosine_with_warmup_is_the_published_one(parity_dir, amount):
    """25 warm-up steps of 120, to 4e-4; counted in steps or in token budgets of equal steps."""
    wanted = load_tensors(parity_dir / "misc" / "schedules_and_posemb.safetensors")["cosine_warmup_steps"].numpy()
    rate = LearningRate(Length("token_budget", 120 * amount, 25 * amount), 4e-4)
    found = [rate.at(step * amount, amount) for step in range(120)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_cosine_with_ends_is_the_published_one(parity_dir):
    wanted = load_tensors(parity_dir / "misc" / "schedules_and_posemb.safetensors")["cosine_warmup_epochs1_min"].numpy()
    rate = LearningRate(Length("steps", 120, 40), 4e-4, start=1e-6, end=4e-5)
    np.testing.assert_allclose([rate.at(step, 1) for step in range(120)], wanted, rtol=0, atol=1e-12)


def test_learning_rate_per_256_clips():
    config = TrainingConfig(total_token_budget=500_000_000_000, warmup=10e9, blr=1e-4, batch_size=4)
    length = config.length()
    assert length == Length("token_budget", 500e9, 10e9)
    assert config.learning_rate(length, world_size=256).peak == pytest.approx(4e-4)


def test_lengths():
    assert Length("steps", 3).is_reached(Progress(step=3))
    assert not Length("tokens", 100).is_reached(Progress(step=3, tokens=99))
    with pytest.raises(ValueError, match="warmup must lie within the 10 steps"):
        Length("steps", 10, 11)


def test_weight_decay_falls_on_the_published_parameters():
    """Matrices, the mask token and the modality embeddings decay; norms and biases do not."""
    config = ModelConfig(
        dim=12, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_ratio=2.0, activation="gelu", use_bias=True,
        qk_norm=True, num_registers=2,
    )  # fmt: skip
    model = EgoM2P(config, (DRIFT, SMELL))
    optimizer = build_optimizer(model, OptimizerConfig())
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert {"decoder_embeddings.mask_token", "positions.modality_table", "encoder_embeddings.register_tokens"} <= names
    for name, parameter in model.named_parameters():
        assert (name in names) == (parameter.ndim > 1), name
    total = sum(len(group["params"]) for group in optimizer.param_groups)
    assert total == len(list(model.parameters()))


def test_one_step_is_torchs_clipped_adamw(generator):
    one, two = (torch.nn.Linear(3, 2) for _ in range(2))
    two.load_state_dict(one.state_dict())
    gradients = [torch.randn(parameter.shape, generator=generator) * 5 for parameter in one.parameters()]
    ours = build_optimizer(one, OptimizerConfig(weight_decay=0.1))
    groups = [{"params": [two.bias], "weight_decay": 0.0}, {"params": [two.weight], "weight_decay": 0.1}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        for parameters in (one.parameters(), two.parameters()):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        norm, _ = apply_gradients(ours, learning_rate=0.01, clip_grad_norm=1.0)
        assert norm.item() == pytest.approx(torch.nn.utils.clip_grad_norm_(two.parameters(), 1.0).item())
        theirs.step()
    torch.testing.assert_close(one.weight, two.weight)
    torch.testing.assert_close(one.bias, two.bias)


def test_seeded_blocks_repeat_and_leave_no_trace():
    before = torch.get_rng_state()
    with seeded(1, 2):
        first = torch.rand(3)
        with seeded(1, 3):
            other = torch.rand(3)
    with seeded(1, 2):
        again = torch.rand(3)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({mixed_seed(a, b) for a in range(20) for b in range(20)}) == 400
