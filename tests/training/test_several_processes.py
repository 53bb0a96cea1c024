"""Under torchrun: killed and resumed runs equal an uninterrupted one; ranks add up to one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_tokens import pretrain_values, write_tokens

from egom2p.storage import save_json

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TOY = str(Path(__file__).with_name("toy_task.py"))

pytestmark = pytest.mark.slow


def start(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen, timeout_s: float = 240) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output.decode()


def wait_for_step(process: subprocess.Popen, folder: Path, step: int, timeout_s: float = 120) -> None:
    log = folder / "log.jsonl"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if log.is_file() and len(log.read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {finish(process)}")


def children(pid: int) -> list[int]:
    """The launcher's workers: each has a session of its own, so killing a process group would miss them."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def curve(folder: Path) -> dict[int, tuple[float, ...]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    train = [entry for entry in entries if entry["kind"] == "train"]
    steps = [entry["step"] for entry in train]
    assert steps == sorted(set(steps)), "a step was logged twice"
    return {entry["step"]: (entry["loss"], entry["grad_norm"], entry["clips"], entry["tokens"]) for entry in train}


def assert_same(one: dict[int, tuple[float, ...]], two: dict[int, tuple[float, ...]], *, to: float) -> None:
    assert one.keys() == two.keys()
    for step in one:
        assert one[step] == pytest.approx(two[step], abs=to), step


def test_killed_and_resumed_under_torchrun(tmp_path):
    options = {"num_steps": 60, "checkpoint_every": 4, "dropout": 0.2, "delay_s": 0.05, "batch_size": 2}
    save_json(tmp_path / "options.json", options)
    command = [*TORCHRUN, TOY, str(tmp_path / "parts"), str(tmp_path / "options.json")]

    process = start(command)
    wait_for_step(process, tmp_path / "parts", 10)
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    finish(process)
    before = curve(tmp_path / "parts")
    assert 0 < max(before) < 60

    process = start(command)
    wait_for_step(process, tmp_path / "parts", max(before) + 12)
    os.kill(process.pid, signal.SIGTERM)  # as a scheduler does: to the launcher only
    code, output = finish(process)
    assert code != 0 and "with a checkpoint" in output, output
    assert max(curve(tmp_path / "parts")) < 60

    code, output = finish(start(command))
    assert code == 0 and "resuming from" in output, output
    code, output = finish(start([*TORCHRUN, TOY, str(tmp_path / "whole"), str(tmp_path / "options.json")]))
    assert code == 0, output
    assert_same(curve(tmp_path / "parts"), curve(tmp_path / "whole"), to=1e-9)


def test_two_processes_equal_one_and_accumulation(tmp_path):
    """The real command on tiny token shards: 1 x 4 clips, 2 x 2, and 2 x 1 x accumulation 2."""
    write_tokens(tmp_path / "tokens", "train", 32, seed=0)
    write_tokens(tmp_path / "tokens", "val", 8, seed=1)
    values = pretrain_values(tmp_path / "tokens", tmp_path / "run", num_steps=5, lr=1e-3)
    values["model"]["drop_path"] = 0.0
    save_json(tmp_path / "config.yaml", values)  # JSON is YAML
    script = str(ROOT / "run_training_egom2p.py")
    curves = {}
    for name, launcher, batch_size, accumulation in (
        ("one", [sys.executable], 4, 1),
        ("two", TORCHRUN, 2, 1),
        ("accumulated", TORCHRUN, 1, 2),
    ):
        overrides = [f"training.batch_size={batch_size}", f"training.accumulation={accumulation}"]
        command = [*launcher, script, "--config", str(tmp_path / "config.yaml"), f"output_dir={tmp_path / name}"]
        code, output = finish(start([*command, *overrides]))
        assert code == 0, output
        curves[name] = curve(tmp_path / name)
        assert (tmp_path / name / "final" / "model.safetensors").is_file()
    assert_same(curves["one"], curves["two"], to=1e-6)
    assert_same(curves["one"], curves["accumulated"], to=1e-6)


def test_wrong_key_ends_with_a_suggestion(tmp_path):
    save_json(tmp_path / "config.yaml", pretrain_values(tmp_path / "tokens", tmp_path / "run"))
    script = str(ROOT / "run_training_egom2p.py")
    command = [sys.executable, script, "--config", str(tmp_path / "config.yaml"), "training.nun_steps=3"]
    code, output = finish(start(command))
    assert code == 2 and "training.num_steps" in output, output
