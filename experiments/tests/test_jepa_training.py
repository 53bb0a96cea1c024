"""Training with features as a second objective: it resumes, exports the model, and shows a collapse."""

import json
from pathlib import Path

import pytest
import torch
from tiny_tokens import pretrain_values, write_sets

from egom2p.config import ConfigError, from_plain
from egom2p.models.egom2p_model import load_model
from egom2p.storage import load_tensors
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from experiments.jepa.train import JepaTrainingConfig, train_jepa


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("tokens"))


def run(tokens: Path, folder: Path, *, jepa: dict | None, **training):
    """The study's run; without `jepa` the product's."""
    values = pretrain_values(tokens, folder, **training)
    if jepa is None:
        return pretrain(from_plain(PretrainConfig, values))
    return train_jepa(from_plain(JepaTrainingConfig, values | {"jepa": jepa, "feature_spread": ["tok_smell"]}))


def entries(folder: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "time", "tokens_per_s", "clips_per_s", "model_tflops_per_s")
    return [
        {key: value for key, value in entry.items() if key not in timed} for entry in found if entry["kind"] == kind
    ]


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "final" / "model.safetensors")


def test_weight_zero_trains_the_same_model_to_the_bit(tokens, tmp_path):
    run(tokens, tmp_path / "without", jepa=None)
    run(tokens, tmp_path / "zero", jepa={"weight": 0.0})
    run(tokens, tmp_path / "with", jepa={"weight": 1.0})
    assert entries(tmp_path / "zero", "train") == entries(tmp_path / "without", "train")
    wanted = exported(tmp_path / "without")
    assert exported(tmp_path / "zero").keys() == wanted.keys() == exported(tmp_path / "with").keys()
    assert all(torch.equal(exported(tmp_path / "zero")[name], wanted[name]) for name in wanted)
    assert not torch.equal(exported(tmp_path / "with")["encoder_norm.weight"], wanted["encoder_norm.weight"])
    assert load_model(tmp_path / "with" / "final").config == load_model(tmp_path / "without" / "final").config


@pytest.mark.parametrize("ema", [None, {"decay": 0.6}])
def test_resume_is_bitwise(tokens, tmp_path, ema):
    common = {"jepa": {"weight": 1.0, "decay": 0.8}, "schedule": "constant", "checkpoint_every": 3, "ema": ema}
    run(tokens, tmp_path / "whole", num_steps=6, **common)
    run(tokens, tmp_path / "parts", num_steps=3, **common)
    run(tokens, tmp_path / "parts", num_steps=6, **common)
    assert entries(tmp_path / "parts", "train") == entries(tmp_path / "whole", "train")
    names = [f"checkpoints/step-00000006/{name}.safetensors" for name in ("training", "model")]
    for name in (*names, "final/model.safetensors"):
        found, wanted = (load_tensors(tmp_path / part / name) for part in ("parts", "whole"))
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted), name
    state = load_tensors(tmp_path / "whole" / names[0])
    part = "model" if ema is None else "ema"
    assert torch.equal(exported(tmp_path / "whole")["encoder_norm.weight"], state[f"{part}/model.encoder_norm.weight"])
    teacher = state["model/teacher.encoder_norm.weight"]
    assert not torch.equal(teacher, state["model/model.encoder_norm.weight"])
    assert not torch.equal(teacher, torch.ones_like(teacher))


def test_both_losses_and_the_spread_are_logged_and_features_are_learned(tokens, tmp_path):
    result = run(tokens, tmp_path, jepa={"weight": 1.0}, num_steps=30, log_every=10)
    logged = entries(tmp_path, "train")
    for name in ("tok_drift", "features/tok_drift", "features/tok_smell"):
        assert logged[-1][f"loss/{name}"] < logged[0][f"loss/{name}"], name
    spread = {item.name: item.value for item in result.measurements if item.group == "features of tok_smell"}
    assert 0 < spread["std_share"] < 1 and 1 < spread["effective_rank"] < 24
    assert entries(tmp_path, "evaluation")[-1]["features of tok_smell/std_share"] == spread["std_share"]


def test_what_does_not_go_together_is_refused(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path) | {"jepa": {"weight": 1.0}}
    with pytest.raises(ConfigError, match="jepa does not go together with frozen"):
        from_plain(JepaTrainingConfig, values | {"frozen": {"until": 2}})
    values["training"] |= {"parallel": {"kind": "fsdp"}}
    with pytest.raises(ConfigError, match=r"jepa does not go together with training.parallel.kind=fsdp"):
        from_plain(JepaTrainingConfig, values)
    plain = pretrain_values(tokens, tmp_path) | {"jepa": {"weight": 1.0}, "feature_spread": ["tok_smell"]}
    plain["data"].pop("validation")
    plain["evaluation"] = {}
    with pytest.raises(ValueError, match="feature_spread of .'tok_smell'. needs data.validation"):
        train_jepa(from_plain(JepaTrainingConfig, plain))


def test_a_dry_run_says_what_it_leaves_out(tokens, tmp_path, capsys):
    values = pretrain_values(tokens, tmp_path / "run") | {"jepa": {"weight": 1.0}, "dry_run": True}
    train_jepa(from_plain(JepaTrainingConfig, values))
    assert "without jepa" in capsys.readouterr().out and not (tmp_path / "run").exists()
