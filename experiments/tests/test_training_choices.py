"""Choices of a run compared: what a table says of given curves, and one tiny study from training to page."""

import json

import numpy as np
import pytest
import yaml
from tiny_tokens import pretrain_values, write_tokens

from egom2p.config import from_plain, load_config
from egom2p.training.tasks.pretrain_config import PretrainConfig
from experiments.training_choices.compare_choices import ChoicesConfig, compare_choices, table, units_to

SLOW = {"clips": [0, 10, 20], "tokens": [0, 100, 200], "seconds": [0.0, 1.0, 2.0], "loss": [4.0, 3.0, 2.0]}
FAST = {"clips": [0, 10, 20], "tokens": [0, 100, 200], "seconds": [0.0, 2.0, 4.0], "loss": [4.0, 2.0, 1.0]}


def test_units_to_a_loss_lie_between_measurements():
    assert units_to(SLOW, "clips", 2.5) == pytest.approx(15)
    assert units_to(FAST, "seconds", 3.0) == pytest.approx(1.0)
    assert units_to(SLOW, "clips", 4.0) == 0
    assert np.isinf(units_to(SLOW, "clips", 1.9))


def test_a_table_compares_at_equal_tokens_and_seconds():
    text = table({"slow": [SLOW, SLOW], "fast": [FAST], "none": []})
    slow, fast = text.splitlines()[2:]
    assert "slow (2) | 20 | 200 | 2 | 2.000 | 2.000 | 2.000 | 1.00 times | 1.00 times" in slow
    # After 2 seconds it has the loss that the other has at its end: after half the clips, and the same seconds.
    assert "fast (1) | 20 | 200 | 4 | 1.000 | 1.000 | 2.000 | 0.50 times | 1.00 times" in fast
    assert "never" in table({"fast": [FAST], "slow": [SLOW]})


def test_a_study_from_runs_to_page(tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        write_tokens(tmp_path / "tokens", split, 32, seed=seed)
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(pretrain_values(tmp_path / "tokens", tmp_path / "unused", num_steps=4)))
    values = {
        "output": str(tmp_path / "study"),
        "base": str(base),
        "settings": ["training.evaluate_every=2"],
        "studies": {"rate": {"seeds": 2, "choices": {"slow one": ["training.lr=1e-4"], "fast": ["training.lr=1e-2"]}}},
        "max_runs": 3,
    }
    page = compare_choices(from_plain(ChoicesConfig, values)).read_text()
    assert "slow one (2)" in page and "fast (1)" in page
    page = compare_choices(from_plain(ChoicesConfig, values)).read_text()
    assert "fast (2)" in page
    curve = json.loads((tmp_path / "study" / "rate" / "slow_one" / "seed0" / "curve.json").read_text())
    assert curve["clips"] == [0, 8, 16] and len(curve["loss"]) == 3
    assert curve["seconds"][0] == 0 and curve["seconds"] == sorted(curve["seconds"])
    assert not (tmp_path / "unused").exists()


def test_every_choice_of_the_study_is_a_run():
    study = load_config(ChoicesConfig, "experiments/training_choices/compare_choices.yaml")
    runs = {
        (name, label): load_config(PretrainConfig, study.base, [*study.settings, *part.settings, *settings])
        for name, part in study.studies.items()
        for label, settings in part.choices.items()
    }
    assert runs["optimizer", "adamw"].training.optimizer.kind == "adamw"
    assert runs["head width", "2 heads of 128"].model.dim // runs["head width", "2 heads of 128"].model.num_heads == 128
    budgets = [runs["budgets", label].data.datasets["world"] for label in ("clamp", "waterfill", "packed")]
    assert [part.policy for part in budgets] == ["clamp", "waterfill", "clamp"]
    assert all(len(part.alphas.alphas_mixture) == 4 and not part.alphas.transfers for part in budgets)
