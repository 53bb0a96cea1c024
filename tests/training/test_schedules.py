"""The shapes of learning rate and weight decay over a run, in any unit, and what of them is refused."""

import math

import pytest
import torch
from toy_task import run_toy

from egom2p.config import ConfigError, from_plain
from egom2p.training.optim import OptimizerConfig, build_optimizer, set_weight_decay
from egom2p.training.schedule import LearningRate, Length, WeightDecay
from egom2p.training.training_config import TrainingConfig

PEAK, END = 1.0, 0.1


def course(shape, *, amount=1, total=100, warmup=10, **settings):
    """Learning rate of every step of a run of `total` equal steps, counted in units of `amount`."""
    in_units = {name: value * amount for name, value in settings.items()}
    rate = LearningRate(Length("token_budget", total * amount, warmup * amount), PEAK, end=END, shape=shape, **in_units)
    return [rate.at(step * amount, amount) for step in range(total)]


@pytest.mark.parametrize("amount", [1, 4096])
@pytest.mark.parametrize(
    "shape, settings",
    [
        ("inverse_sqrt", {"cooldown": 20}),
        ("inverse_sqrt", {"timescale": 40}),
        ("warmup_stable_decay", {"cooldown": 20}),
    ],
)
def test_units_change_nothing(amount, shape, settings):
    assert course(shape, amount=amount, **settings) == pytest.approx(course(shape, **settings), abs=1e-12)


def test_warmup_stable_decay():
    rates = course("warmup_stable_decay", cooldown=20)
    assert rates[:10] == pytest.approx([step / 9 for step in range(10)])
    assert rates[10:81] == pytest.approx([PEAK] * 71)
    assert rates[80:] == pytest.approx([PEAK + (END - PEAK) * step / 20 for step in range(20)])


def test_inverse_sqrt_with_cooldown():
    rates = course("inverse_sqrt", cooldown=20, timescale=30)
    assert rates[10:80] == pytest.approx([math.sqrt(30 / (30 + step)) for step in range(70)])
    begin = math.sqrt(30 / 100)
    assert rates[80:] == pytest.approx([begin + (END - begin) * step / 20 for step in range(20)])
    # Without a timescale of its own: that of the warm-up, so that the rate falls as 1 / sqrt(step) from there.
    assert course("inverse_sqrt")[10:] == pytest.approx([math.sqrt(10 / step) for step in range(10, 100)])


def test_weight_decay_ends_where_it_should(tmp_path):
    """timm's and 4M's half cosine over the whole run, without warm-up; norms and biases still do not decay."""
    decay = WeightDecay(Length("tokens", 1000, 100), 0.04, 0.4)
    found = [decay.at(done) for done in (0, 250, 500, 1000, 1100)]
    wanted = [0.4 - 0.18 * (1 + math.cos(math.pi * part)) for part in (0, 0.25, 0.5, 1, 1)]
    assert found == pytest.approx(wanted)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    for kind in ("adamw", "muon"):
        optimizer = build_optimizer(model, OptimizerConfig(kind=kind, weight_decay=0.0))
        set_weight_decay(optimizer, 0.3)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays == {id(p): 0.3 if p.ndim > 1 else 0.0 for p in model.parameters()}


def test_a_run_uses_its_end_value(tmp_path):
    """With rate 0.1 and no gradient worth mentioning, weights shrink by what the course of the decay says."""
    config = {"weight_decay": 0.0, "weight_decay_end": 1.0}
    results = {}
    for name, optimizer in (("rising", config), ("none", {"weight_decay": 0.0})):
        run_toy(tmp_path / name, num_steps=10, optimizer=optimizer)
        results[name] = run_norm(tmp_path / name)
    assert results["rising"] < 0.95 * results["none"]


def run_norm(folder):
    from egom2p.storage import load_tensors

    return load_tensors(folder / "final" / "model.safetensors")["trunk.weight"].norm().item()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"cooldown": 5}, "schedule cosine has no cooldown; choose inverse_sqrt or warmup_stable_decay"),
        ({"schedule": "warmup_stable_decay"}, "needs cooldown"),
        ({"timescale": 5}, "timescale is positive and belongs to inverse_sqrt"),
        ({"schedule": "linear"}, "schedule"),
    ],
)
def test_what_has_no_meaning_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(TrainingConfig, {"num_steps": 10, "lr": 0.1, **values})


def test_parts_longer_than_the_run_are_refused():
    with pytest.raises(ValueError, match="cooldown must lie within the 90 token budget after warm-up, got 95"):
        course("warmup_stable_decay", cooldown=95)
    with pytest.raises(ValueError, match="without warm-up needs a timescale"):
        course("inverse_sqrt", warmup=0)


def test_epochs_scale_everything_beside_them():
    config = TrainingConfig(
        epochs=10, epoch_clips=50, lr=1.0, warmup=2, schedule="inverse_sqrt", cooldown=3, timescale=1.5
    )
    length = config.length()
    rate = config.learning_rate(length, world_size=1)
    assert (length.total, length.warmup, rate.cooldown, rate.timescale) == (500, 100, 150, 75)
