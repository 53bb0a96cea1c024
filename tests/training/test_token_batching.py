"""Runs whose batches hold a fixed number of tokens: resumable to the bit, the same on any number of processes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_several_processes import TORCHRUN, finish, start
from tiny_tokens import pretrain_values, write_sets

from egom2p.config import ConfigError, from_plain
from egom2p.storage import load_tensors, save_json
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain

SCRIPT = str(Path(__file__).resolve().parents[2] / "run_training_egom2p.py")
TOKENS = {"batching": "tokens", "batch_tokens": 200, "schedule": "constant"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("tokens"))


def log_of(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "train"]


def run(tokens: Path, folder: Path, **training):
    values = pretrain_values(tokens, folder, **(TOKENS | training))
    values["data"]["datasets"]["train"]["min_input_tokens"] = 2
    return pretrain(from_plain(PretrainConfig, values))


def test_a_resumed_run_is_the_uninterrupted_one(tokens, tmp_path):
    run(tokens, tmp_path / "whole", num_steps=6, num_workers=1, peak_tflops=1e-3)
    run(tokens, tmp_path / "parts", num_steps=3)
    (tmp_path / "parts" / "final").rename(tmp_path / "unused")
    run(tokens, tmp_path / "parts", num_steps=6)
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    for key in ("step", "clips", "tokens", "token_budget", "loss", "grad_norm", "fill", "trimmed"):
        assert [entry[key] for entry in whole] == [entry[key] for entry in parts], key
    wanted = load_tensors(tmp_path / "whole" / "final" / "model.safetensors")
    found = load_tensors(tmp_path / "parts" / "final" / "model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    steps = [b["clips"] - a["clips"] for a, b in zip(whole, whole[1:], strict=False)]
    assert len(set(steps)) > 1
    assert min(entry["fill"] for entry in whole) > 0.9 and max(entry["fill"] for entry in whole) <= 1
    assert all(0 <= entry["trimmed"] < 0.5 for entry in whole)
    # A peak of a thousandth of a TFLOP/s was given.
    assert all(entry["mfu"] == pytest.approx(1000 * entry["model_tflops_per_s"]) for entry in whole)
    assert all(entry["model_tflops_per_s"] > 0 and "mfu" not in entry for entry in parts)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batches(tokens, tmp_path):
    """In a frozen phase and after it; what is frozen does not move on any number of processes."""
    values = pretrain_values(tokens, tmp_path / "run", **(TOKENS | {"num_steps": 6, "lr": 1e-3, "checkpoint_every": 4}))
    values["model"]["drop_path"] = 0.0
    values["training"]["keep_last"] = 9
    values["frozen"] = {"until": 4, "train": ["tok_drift"]}
    save_json(tmp_path / "config.yaml", values)
    for name, launcher, accumulation in (("one", [sys.executable], 2), ("two", TORCHRUN, 1)):
        command = [*launcher, SCRIPT, "--config", str(tmp_path / "config.yaml"), f"output_dir={tmp_path / name}"]
        code, output = finish(start([*command, f"training.accumulation={accumulation}"]))
        assert code == 0, output
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for key in ("clips", "tokens", "token_budget"):
        assert [entry[key] for entry in one] == [entry[key] for entry in two]
    assert [entry["loss"] for entry in one] == pytest.approx([entry["loss"] for entry in two], abs=1e-6)
    states = [
        load_tensors(tmp_path / name / "checkpoints" / "step-00000004" / "model.safetensors") for name in ("one", "two")
    ]
    held = [name for name in states[0] if "table" not in name]
    assert all(torch.equal(states[0][name], states[1][name]) for name in held)
    final = load_tensors(tmp_path / "two" / "final" / "model.safetensors")
    assert not any(torch.equal(final[name], states[1][name]) for name in held if "norm" not in name)


@pytest.mark.parametrize(
    "training, message",
    [
        ({"batching": "tokens"}, "needs batch_tokens"),
        ({"batch_tokens": 100}, "needs batch_tokens"),
        ({**TOKENS, "lr": None, "blr": 1e-3}, "their number varies; say lr"),
    ],
)
def test_what_has_no_meaning_is_refused(tokens, tmp_path, training, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(PretrainConfig, pretrain_values(tokens, tmp_path, **training))
