"""The Slurm script on a real Slurm of two hosts: requeued, preempted and cancelled, its loss curve has no seam."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, why_not
from tiny_tokens import pretrain_values, write_tokens

from egom2p.config import from_plain, save_config
from egom2p.training.tasks.pretrain_config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train_slurm_script" / "clariden_main_500b_2048.slurm"
# Long enough that it can be interrupted three times, short enough to wait for.
NUM_STEPS, LOG_EVERY = 3000, 50

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    if reason := why_not():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """A tiny run in place of the released one."""
    root = tmp_path_factory.mktemp("tokens")
    write_tokens(root, "train", 48, seed=0)
    write_tokens(root, "val", 16, seed=1)
    training = {"num_steps": NUM_STEPS, "log_every": LOG_EVERY, "batch_size": 2, "checkpoint_minutes": None}
    save_config(from_plain(PretrainConfig, pretrain_values(root, root / "unused", **training)), root / "tiny.yaml")
    return root / "tiny.yaml"


class Run:
    """One sbatch of the script, with two processes on two hosts."""

    def __init__(self, cluster: SlurmCluster, config_file: Path, folder: Path, *options: str, **values: str) -> None:
        folder.mkdir()
        self.cluster, self.output_dir, self.folder = cluster, folder / "run", folder
        layout = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--gpus-per-node=2", "--time=30"]
        self.job = cluster.call(
            "sbatch", "--parsable", *layout, f"--output={folder}/slurm-%A_%a.log", *options, str(SCRIPT),
            PYTHON=sys.executable, REPOSITORY=str(ROOT), CONFIG=str(config_file), OUTPUT_DIR=str(self.output_dir),
            PYTHONPATH=str(ROOT), **values,
        ).strip()  # fmt: skip

    def curve(self) -> list[dict]:
        file = self.output_dir / "log.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry for entry in entries if entry["kind"] == "train"]

    def wait_for_step(self, step: int) -> None:
        self.cluster.wait_until(
            lambda: bool(self.curve()) and self.curve()[-1]["step"] >= step or self.fail_if_over(step),
            f"step {step}; {self.output()}",
            seconds=150,
        )

    def fail_if_over(self, step: int) -> bool:
        assert not (self.output_dir / "final").exists(), f"finished before step {step}\n{self.output()}"
        return False

    def wait_for_state(self, number: str, *states: str, seconds: float = 60) -> None:
        self.cluster.wait_until(
            lambda: self.cluster.job(number)["JobState"] in states, f"{states} of {number}", seconds=seconds
        )

    def wait_for_text(self, number: str, text: str, *, times: int = 1) -> None:
        self.cluster.wait_until(
            lambda: self.output(number).count(text) >= times, f"{text!r}; {self.output()}", seconds=90
        )

    def output(self, number: str = "*") -> str:
        """What the job wrote to its log; of an array, its task's."""
        return "\n".join(file.read_text() for file in sorted(self.folder.glob(f"slurm-{number}.log")))


def uninterrupted(config_file: Path, folder: Path) -> list[dict]:
    """The curve of the same two processes without Slurm."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "run_training_egom2p.py", "--config", str(config_file), f"output_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "train"]


def test_the_curve_continues_through_a_chain_of_interruptions(cluster, config_file, tmp_path):
    run = Run(cluster, config_file, tmp_path / "chain")
    first, second = f"{run.job}_1", f"{run.job}_2"

    run.wait_for_step(4 * LOG_EVERY)
    assert cluster.job(first)["NumNodes"] == "2"
    # What --signal=B:USR1 sends some minutes before the time limit: to the batch script only.
    cluster.call("scancel", "--batch", "--signal=USR1", first)
    run.wait_for_text(first, "with a checkpoint")
    run.wait_for_text(first, "back into the queue")

    # The chain goes on: whichever of its jobs starts next continues, one at a time.
    step = run.curve()[-1]["step"]
    run.wait_for_step(step + 3 * LOG_EVERY)
    running = next(n for n in (first, second) if cluster.job(n)["JobState"] == "RUNNING")
    cluster.call("scontrol", "requeue", running)
    cluster.wait_until(lambda: run.output().count("with a checkpoint") == 2, "checkpoint at requeue", seconds=60)

    step = run.curve()[-1]["step"]
    run.wait_for_step(step + 3 * LOG_EVERY)
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive",
                          "--output=/dev/null", "--wrap=srun hostname").strip()  # fmt: skip
    run.wait_for_state(urgent, "COMPLETED", seconds=90)
    assert run.output().count("with a checkpoint") == 3, run.output()

    for number in (first, second):
        run.wait_for_state(number, "COMPLETED", seconds=240)
    assert (run.output_dir / "final" / "model.safetensors").is_file(), run.output()
    assert "finished after" in run.output() and "nothing to do" in run.output()
    assert "Traceback" not in run.output(), run.output()
    found = run.curve()
    assert [entry["step"] for entry in found] == list(range(LOG_EVERY, NUM_STEPS + 1, LOG_EVERY))
    wanted = uninterrupted(config_file, tmp_path / "whole")
    for key in ("step", "clips", "tokens", "token_budget", "lr", "loss", "grad_norm"):
        assert [entry[key] for entry in found] == pytest.approx([entry[key] for entry in wanted], rel=1e-5), key


def test_sigterm_gives_a_checkpoint_and_a_cancelled_job_stays_away(cluster, config_file, tmp_path):
    run = Run(cluster, config_file, tmp_path / "cancelled", "--array=1")
    run.wait_for_step(2 * LOG_EVERY)
    cluster.call("scancel", run.job)
    run.wait_for_state(f"{run.job}_1", "CANCELLED")
    cluster.wait_until(lambda: "with a checkpoint" in run.output(), run.output(), seconds=40)
    assert [path.name for path in (run.output_dir / "checkpoints").iterdir()]
    assert not (run.output_dir / "final").exists()
    assert cluster.job(f"{run.job}_1")["Restarts"] == "0" and "back into the queue" not in run.output()


def test_a_container_command_and_errors_of_the_program_reach_slurm(cluster, config_file, tmp_path):
    """Options of srun are passed on, and a wrong config fails the job instead of requeueing it for ever."""
    run = Run(cluster, config_file, tmp_path / "wrong", "--array=1", EXTRA_ARGS="training.lerning_rate=1",
              CONTAINER_ARGS="--export=ALL,IN_CONTAINER=1")  # fmt: skip
    run.wait_for_state(f"{run.job}_1", "FAILED")
    assert "training.lr" in run.output() or "unknown key" in run.output()
    assert cluster.job(f"{run.job}_1")["ExitCode"] == "2:0"
