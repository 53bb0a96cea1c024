"""DDP, FSDP2 and accumulation do the same arithmetic as one process, and continue each other's runs.

All runs of two processes share one launch: starting Python twice costs more than training tiny models.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from spread_task import SpreadTask, run_spread
from test_several_processes import TORCHRUN, children, finish, start, wait_for_step
from toy_task import run_toy

from egom2p.models.egom2p_model import load_model
from egom2p.storage import load_tensors, save_json
from egom2p.training.distributed import Ranks

SCRIPT = str(Path(__file__).with_name("spread_task.py"))
FSDP = {"parallel": {"kind": "fsdp"}}
EMA = {"ema": {"decay": 0.7}}
ADAMW = {"optimizer": {"kind": "adamw", "skip_grad_norm": 50.0}, "lr": 0.01}
MUON = {"optimizer": {"kind": "muon", "muon_lr_scale": 2.0}, "lr": 0.01}

# One process does these with 4 clips; two processes in each of the ways below.
TASKS = {"plain": {}, "apart": {"apart": True}, "adamw": ADAMW | EMA, "broken": ADAMW | EMA | {"broken_step": 2}}
WAYS = {
    "ddp": {"batch_size": 2},
    "ddp_accumulated": {"batch_size": 1, "accumulation": 2},
    "fsdp": {"batch_size": 2} | FSDP,
    "fsdp_accumulated": {"batch_size": 1, "accumulation": 2} | FSDP,
}
SWITCHED = {"lr": 0.01} | ADAMW | EMA

pytestmark = pytest.mark.slow


def launch(folder: Path, jobs: dict, launcher: list[str] = TORCHRUN) -> None:
    save_json(folder / "jobs.json", jobs)
    code, output = finish(start([*launcher, SCRIPT, str(folder), str(folder / "jobs.json")]), timeout_s=600)
    assert code == 0, output[-6000:]


def state(folder: Path, step: int, part: str = "") -> dict[str, torch.Tensor]:
    tensors = load_tensors(folder / "checkpoints" / f"step-{step:08d}" / "training.safetensors")
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


def logged(folder: Path, kind: str = "train") -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def assert_close(found: dict, wanted: dict, *, to: float) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=to, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    for name, options in TASKS.items():
        run_spread(folder / name, ranks=Ranks(), **options)
    run_spread(folder / "whole", ranks=Ranks(), **SWITCHED | {"num_steps": 8})
    run_spread(folder / "switched", ranks=Ranks(), **SWITCHED | {"num_steps": 2})
    run_spread(folder / "muon", ranks=Ranks(), **MUON)
    jobs = {f"{name}_{way}": options | more for name, options in TASKS.items() for way, more in WAYS.items()}
    jobs |= {
        "switched@2": SWITCHED | WAYS["ddp"] | {"num_steps": 3},
        "switched@3": SWITCHED | WAYS["fsdp"] | {"num_steps": 5},
        "switched@4": SWITCHED | WAYS["ddp"] | {"num_steps": 6},
        "muon_fsdp": MUON | WAYS["fsdp"],
        "methods": WAYS["fsdp"] | {"evaluate_at_start": True, "evaluate_every": 1, "other_methods": True},
        "bf16_ddp": WAYS["ddp"] | {"dtype": "bf16"},
        "bf16_fsdp": WAYS["fsdp"] | {"dtype": "bf16"},
        "fp16_fsdp": WAYS["fsdp"] | {"dtype": "fp16"},
        "recomputed": WAYS["fsdp"] | {"activation_checkpointing": True},
        "toy": {"check": "toy"},
        "check_muon": {"check": "muon"},
        "check_no_wait": {"check": "no_wait"},
    }
    launch(folder, jobs)
    run_spread(folder / "switched", ranks=Ranks(), **SWITCHED | {"num_steps": 8})
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", ["plain", "apart"])
def test_loss_gradients_and_weights_are_those_of_one_process(runs, task, way):
    """Also when each rank holds another modality. Plain SGD, so the first step is the gradient."""
    one, several = runs / task, runs / f"{task}_{way}"
    start = SpreadTask(Ranks(), batch_size=4).model.state_dict()
    gradients = [
        {name: (start[name] - tensor) / 0.1 for name, tensor in state(folder, 1, "model/").items()}
        for folder in (several, one)
    ]
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients[1].values())
    assert_close(*gradients, to=1e-6)
    assert_close(state(several, 5, "model/"), state(one, 5, "model/"), to=1e-6)
    for found, wanted in zip(logged(several), logged(one), strict=True):
        for key in ("loss", "grad_norm", "clips", "tokens", "skipped_steps"):
            assert found[key] == pytest.approx(wanted[key], abs=1e-6, rel=1e-6), key


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", ["adamw", "broken"])
def test_moments_and_averages_are_those_of_one_process(runs, task, way):
    """AdamW divides by the size of a gradient, so tiny gradients show rounding; averages follow the weights."""
    one, several = state(runs / task, 5), state(runs / f"{task}_{way}", 5)
    assert any(name.startswith("ema/") for name in one) and any(name.startswith("optimizer/") for name in one)
    one.pop("unlogged/values", None), several.pop("unlogged/values", None)
    assert_close(several, one, to=1e-4)
    assert_close(
        *(load_tensors(runs / name / "final" / "model.safetensors") for name in (f"{task}_{way}", task)), to=1e-4
    )
    measured = [
        [entry["fixed/tok_smell"] for entry in logged(runs / name, "evaluation")] for name in (task, f"{task}_{way}")
    ]
    assert measured[0] == pytest.approx(measured[1], abs=1e-4)


@pytest.mark.parametrize("way", [None, *WAYS])
def test_a_broken_step_is_skipped_everywhere(runs, way):
    """One rank has an infinite loss in the third step: no rank moves, and the log counts one skipped step."""
    folder = runs / ("broken" if way is None else f"broken_{way}")
    assert_close(state(folder, 3, "model/"), state(folder, 2, "model/"), to=0)
    assert_close(state(folder, 3, "optimizer/"), state(folder, 2, "optimizer/"), to=0)
    assert [entry["skipped_steps"] for entry in logged(folder)] == [0, 0, 1, 0, 0]


def test_a_run_goes_on_with_other_processes_and_other_shards(runs):
    """1 process, 2 with DDP, 2 with FSDP, 2 with DDP, 1 again: weights, moments and averages of one process."""
    assert [entry["step"] for entry in logged(runs / "switched")] == list(range(1, 9))
    assert_close(state(runs / "switched", 8), state(runs / "whole", 8), to=1e-4)
    for found, wanted in zip(logged(runs / "switched"), logged(runs / "whole"), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-5)


def test_exports_of_sharded_runs_are_ordinary_models(runs):
    """With an average it is the average that is offered."""
    assert_close(
        dict(load_model(runs / "plain_fsdp" / "final").state_dict()), state(runs / "plain", 5, "model/"), to=1e-6
    )
    offered = load_tensors(runs / "adamw_fsdp" / "final" / "model.safetensors")
    assert_close(offered, state(runs / "adamw_fsdp", 5, "ema/"), to=0)
    assert not torch.equal(
        offered["encoder_norm.weight"], state(runs / "adamw_fsdp", 5, "model/")["encoder_norm.weight"]
    )


def test_methods_beside_forward_work_on_shards(runs):
    """Evaluation may call encode, decode, logits and row_losses; it changes nothing."""
    assert_close(state(runs / "methods", 5, "model/"), state(runs / "plain_fsdp", 5, "model/"), to=0)
    measured = logged(runs / "methods", "evaluation")
    assert len(measured) == 6 and all(0 < entry["other/row"] < 4 and entry["other/logit"] > 0 for entry in measured)
    assert measured[-1]["fixed/tok_smell"] == logged(runs / "plain_fsdp", "evaluation")[-1]["fixed/tok_smell"]


@pytest.mark.parametrize("name", ["bf16_ddp", "bf16_fsdp", "fp16_fsdp"])
def test_half_precision_computes_only(runs, name):
    """Weights stay float32; losses are those of float32 within what half precision can tell."""
    weights = state(runs / name, 5, "model/")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values() if tensor.is_floating_point())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights.values())
    losses = [[entry["loss"] for entry in logged(runs / run)] for run in (name, "plain")]
    assert losses[0] == pytest.approx(losses[1], abs=5e-3) and losses[0] != losses[1]


def test_recomputing_changes_nothing_on_shards(runs):
    assert_close(state(runs / "recomputed", 5, "model/"), state(runs / "plain", 5, "model/"), to=1e-6)


def test_sharded_muon_is_muon(runs):
    """Beside the check to the bit on equal gradients (in the launch): two steps of a run, whose gradients differ.

    Muon orthogonalises in bfloat16, so a gradient that differs in its last digit may move an update by 2^-8 of itself,
    and from then on runs part, sharded or not.
    """
    for step in (1, 2):
        assert_close(state(runs / "muon_fsdp", step, "model/"), state(runs / "muon", step, "model/"), to=1e-3)
    assert not torch.equal(*(state(runs / "muon", step, "model/")["encoder.0.attn.proj.weight"] for step in (1, 2)))


def test_shards_that_a_rank_does_not_use(runs):
    """The toy model has a head that some clips have no rows for: its gradient there is zero, not missing."""
    run_toy(runs / "toy_one", num_steps=5, batch_size=2)
    assert_close(state(runs / "toy", 5, "model/"), state(runs / "toy_one", 5, "model/"), to=1e-6)


def test_hybrid_shards(runs, tmp_path):
    """Four processes, two copies of two shards: one clip each."""
    hybrid = {"batch_size": 1, "parallel": {"kind": "fsdp", "shard_size": 2}}
    jobs = {"plain": hybrid, "apart": hybrid | {"apart": True}, "adamw": hybrid | TASKS["adamw"]}
    launch(tmp_path, jobs, launcher=[*TORCHRUN[:-1], "--nproc_per_node=4"])
    for name, to in (("plain", 1e-6), ("apart", 1e-6)):
        assert_close(state(tmp_path / name, 5, "model/"), state(runs / name, 5, "model/"), to=to)
    assert_close(state(tmp_path / "adamw", 5, "ema/"), state(runs / "adamw", 5, "ema/"), to=1e-4)


def test_killed_with_copies_stopped_with_shards_finished_by_one(runs, tmp_path):
    options = {"num_steps": 40, "checkpoint_every": 4, "delay_s": 0.05} | ADAMW
    command = [*TORCHRUN, SCRIPT, str(tmp_path), str(tmp_path / "jobs.json")]
    save_json(tmp_path / "jobs.json", {"run": options | WAYS["ddp"]})
    process = start(command)
    wait_for_step(process, tmp_path / "run", 9)
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    finish(process)
    killed_at = len(logged(tmp_path / "run"))

    save_json(tmp_path / "jobs.json", {"run": options | WAYS["fsdp"]})
    process = start(command)
    wait_for_step(process, tmp_path / "run", killed_at + 6)
    os.kill(process.pid, signal.SIGTERM)
    _, output = finish(process)
    assert "resuming from" in output and "with a checkpoint" in output, output
    assert killed_at < len(logged(tmp_path / "run")) < 40

    run_spread(tmp_path / "run", ranks=Ranks(), **options | {"delay_s": 0.0})
    run_spread(tmp_path / "whole", ranks=Ranks(), **options | {"delay_s": 0.0})
    assert [entry["step"] for entry in logged(tmp_path / "run")] == list(range(1, 41))
    for found, wanted in zip(logged(tmp_path / "run"), logged(tmp_path / "whole"), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-4), found["step"]
