"""A dry run lists every problem at once, says what a run would cost, and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_artifacts
import torch
from tiny_tokens import pretrain_values, write_tokens

from egom2p.config import cfgs_root, from_plain, load_config, save_config
from egom2p.data.clips.clip_store import write_clips
from egom2p.storage import load_json, save_json
from egom2p.training.planning.plan import dry_run, plan_pretraining, plan_tokenizer
from egom2p.training.planning.plan_report import Plan
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RELEASED = "default/egom2p/models/main/ego-b_mod4_500b_clariden_2048_camcv_depthdenoise.yaml"


@pytest.fixture
def tokens(tmp_path) -> Path:
    write_tokens(tmp_path / "tokens", "train", 48, seed=0)
    write_tokens(tmp_path / "tokens", "val", 16, seed=1)
    return tmp_path / "tokens"


def planned(tokens: Path, folder: Path, *, plan: dict | None = None, **training) -> Plan:
    values = pretrain_values(tokens, folder / "run", **training) | {
        "dry_run": True,
        "plan": {"memory_gb": []} | (plan or {}),
    }
    return plan_pretraining(from_plain(PretrainConfig, values))


def fact(plan: Plan, name: str) -> str:
    return dict(plan.facts)[name]


def test_a_sound_plan(tokens, tmp_path):
    plan = planned(tokens, tmp_path, plan={"num_gpus": 2})
    assert plan.problems == []
    assert [(facts.name, facts.num_shards, facts.num_clips) for facts in plan.datasets] == [
        ("train", 3, 48),
        ("validation val", 1, 16),
    ]
    assert fact(plan, "the run").startswith("6 steps") and fact(plan, "a step").startswith("8 clips")
    assert not (tmp_path / "run").exists()


def test_the_plan_is_what_the_run_then_does(tokens, tmp_path):
    """Steps exactly; tokens and FLOPs are means of drawn masks, here within a tenth."""
    training = {"num_steps": None, "total_token_budget": 36 * 4 * 30, "log_every": 30}
    plan = planned(tokens, tmp_path, **training)
    values = pretrain_values(tokens, tmp_path / "run", **training)
    pretrain(from_plain(PretrainConfig, values))
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    last = [entry for entry in entries if entry["kind"] == "train"][-1]
    assert fact(plan, "the run").startswith(f"{last['step']} steps")
    num_tokens = float(fact(plan, "the run").split(", ")[2].split()[0])
    assert num_tokens == pytest.approx(last["tokens"], rel=0.1)


def test_room_for_checkpoints_is_looked_at(tokens, tmp_path, monkeypatch):
    """Against what a run of the same settings writes."""
    plan = planned(tokens, tmp_path)
    pretrain(from_plain(PretrainConfig, pretrain_values(tokens, tmp_path / "run")))
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    written_gb = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) / 1e9
    assert float(fact(plan, "checkpoints").split()[0]) == pytest.approx(written_gb, rel=0.3) and plan.problems == []
    full = shutil.disk_usage(tmp_path)._replace(free=int(1.5e9 * written_gb))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    (problem,) = planned(tokens, tmp_path / "deep").problems
    assert "a checkpoint takes" in problem and "two must have room" in problem


def test_hours_follow_from_the_assumptions(tokens, tmp_path):
    hours = [
        float(fact(planned(tokens, tmp_path, plan=assumed, num_steps=10**12), "hours").split()[0].replace(",", ""))
        for assumed in ({}, {"mfu": 0.6}, {"peak_tflops": 989.0 / 4})
    ]
    assert hours[1] == pytest.approx(hours[0] / 2, rel=0.1) and hours[2] == pytest.approx(hours[0] * 4, rel=0.1)


def test_every_problem_at_once(tokens, tmp_path):
    """Shards gone or with other keys, tokenizers gone or others, no model to start from, ranks that do not fit."""
    (tokens / "drift" / "val" / "shard-000000.tar").unlink()
    shards = [tokens / "drift" / "train" / f"shard-00000{number}.tar" for number in (0, 1)]
    one, two = (shard.read_bytes() for shard in shards)
    shards[0].write_bytes(two)
    shards[1].write_bytes(one)
    values = pretrain_values(tokens, tmp_path / "run", parallel={"kind": "fsdp", "shard_size": 4})
    spec = load_json(tokens / "smell" / "train" / "card.json")
    save_json(tmp_path / "tokenizer" / "tokenizer.json", {"spec": spec, "fingerprint": "sha256:other"})
    values |= {
        "finetune": str(tmp_path / "a" / "b" / "nothing"),
        "dry_run": True,
        "plan": {"num_gpus": 6, "memory_gb": []},
    }
    values["tokenizers"] = {"tok_smell": str(tmp_path / "tokenizer"), "tok_drift": str(tmp_path / "gone")}
    config = from_plain(PretrainConfig, values)
    problems = plan_pretraining(config).problems
    for words in (
        "val",
        "same keys in the same order",
        "sha256:other",
        str(tmp_path / "gone"),
        "nothing",
        "shard_size",
    ):
        assert any(words in problem for problem in problems), (words, problems)
    with pytest.raises(ValueError) as raised:
        dry_run(config)
    assert all(problem in str(raised.value) for problem in problems)


def test_weights_to_start_from_are_compared(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path / "first", num_steps=1)
    pretrain(from_plain(PretrainConfig, values))
    values = pretrain_values(tokens, tmp_path / "second") | {
        "finetune": str(tmp_path / "first"),
        "dry_run": True,
        "plan": {"memory_gb": []},
    }
    same = plan_pretraining(from_plain(PretrainConfig, values))
    assert not same.problems and any("keys loaded" in note for note in same.notes)
    adapters = plan_pretraining(from_plain(PretrainConfig, values | {"lora": {"rank": 1}}))
    flops = [float(fact(plan, "FLOPs").split()[0]) for plan in (same, adapters)]
    assert flops[1] < flops[0], "frozen weights need no gradient"
    values["model"] = values["model"] | {"dim": 2 * values["model"]["dim"]}
    other = plan_pretraining(from_plain(PretrainConfig, values))
    assert any("does not fit" in problem and "shape" in problem for problem in other.problems)
    assert not (tmp_path / "second").exists()


def test_the_released_recipe_without_its_data(tmp_path, monkeypatch):
    """All missing files are named; what needs no data is reported all the same."""
    monkeypatch.chdir(tmp_path)
    config = load_config(PretrainConfig, cfgs_root() / RELEASED, ["plan.num_gpus=256", "plan.memory_gb=[]"])
    plan = plan_pretraining(config)
    for name in [*config.data.datasets, *config.tokenizers]:
        assert any(name in problem for problem in plan.problems), name
    assert any("train/depth/h2o/shard-000000.tar" in problem for problem in plan.problems)
    assert fact(plan, "the run").startswith("119,210 steps, a token budget of 5e+11")
    assert fact(plan, "learning rate").startswith("0.0004")
    assert fact(plan, "parameters") == "396.2 M"


def test_what_fits_where(tmp_path, monkeypatch):
    """More memory, recomputation and shards never fit less, and a larger model never fits more; nor do compiled
    blocks, which shards do not have."""
    monkeypatch.chdir(tmp_path)
    options = ["plan.num_gpus=8"]
    compiled = plan_pretraining(load_config(PretrainConfig, cfgs_root() / RELEASED, options)).memory
    options.append("training.compile=false")
    memory = plan_pretraining(load_config(PretrainConfig, cfgs_root() / RELEASED, options)).memory
    for size, by_device in memory.items():
        for gigabytes, fits in by_device.items():
            assert compiled[size][gigabytes]["DDP"] >= fits["DDP"]
            assert compiled[size][gigabytes]["DDP, MLP recomputed"] >= compiled[size][gigabytes]["DDP"]
    sizes = ["tiny", "small", "base", "large", "xlarge"]
    assert memory["this run"] == memory["base"]
    for size in sizes:
        by_device = list(memory[size].values())
        for way in by_device[0]:
            counts = [fits[way] for fits in by_device]
            assert counts == sorted(counts)
        for plain, recomputed, shards, both in (tuple(fits.values()) for fits in by_device):
            assert recomputed >= plain and both >= shards and shards >= plain
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        for gigabytes, fits in memory[larger].items():
            assert all(fits[way] <= memory[smaller][gigabytes][way] for way in fits)


def test_tokenizers_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = cfgs_root() / "default" / "tokenization" / "vqvae" / "gaze" / "quickstart.yaml"
    plan = plan_tokenizer(load_config(TokenizerTrainingConfig, file))
    assert len(plan.problems) == 2 and all("wanted at outputs/quickstart/clips" in line for line in plan.problems)
    assert "steps" in fact(plan, "the run")


def test_room_for_checkpoints_of_a_tokenizer_is_looked_at(tmp_path, monkeypatch):
    for name in ("train", "val"):
        write_clips(tmp_path / "clips", name, [tiny_artifacts.invented_clip(number) for number in range(4)])
    values = {
        "output_dir": str(tmp_path / "run"), "network": tiny_artifacts.TOKENIZERS["gaze"],
        "train": {"root": str(tmp_path / "clips"), "datasets": ["train"]},
        "validation": {"root": str(tmp_path / "clips"), "datasets": ["val"]},
        "training": {"num_steps": 1, "lr": 0.01, "checkpoint_every": 1, "batch_size": 2, "device": "cpu"},
    }  # fmt: skip
    config = from_plain(TokenizerTrainingConfig, values)
    train_tokenizer(config)
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    written_gb = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) / 1e9
    elsewhere = replace(config, output_dir=str(tmp_path / "other"), dry_run=True)
    assert float(fact(plan_tokenizer(elsewhere), "checkpoints").split()[0]) == pytest.approx(written_gb, rel=0.5)
    full = shutil.disk_usage(tmp_path)._replace(free=int(written_gb * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match="a checkpoint takes .* two must have room"):
        train_tokenizer(elsewhere)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_on_the_command_line(tokens, tmp_path):
    """Exit code 0 or 2, and no device is touched: torch is not even asked for one."""
    config = from_plain(PretrainConfig, pretrain_values(tokens, tmp_path / "run", device="cuda"))
    save_config(config, tmp_path / "run.yaml")
    command = [sys.executable, "run_training_egom2p.py", "--config", str(tmp_path / "run.yaml"), "dry_run=true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    codes, outputs = [], []
    for more in ([], ["training.parallel.kind=fsdp", "training.parallel.shard_size=4", "plan.num_gpus=6"]):
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        codes.append(done.returncode)
        outputs.append(done.stdout + done.stderr)
    assert codes == [0, 2], outputs
    assert "nothing keeps this run from starting" in outputs[0] and "shard_size" in outputs[1]
    assert not (tmp_path / "run").exists() and not torch.cuda.is_initialized()
