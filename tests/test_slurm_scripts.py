"""The Slurm scripts, with stand-ins for Slurm's commands: what is started, and what happens after a signal."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from egom2p.config import load_config
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "train_slurm_script").glob("*.slurm"))
SCHEMAS = {"run_training_egom2p.py": PretrainConfig, "run_training_tokenizer.py": TokenizerTrainingConfig}
# Runs its task once, in this process, as srun would on one node.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$RECORD/scontrol"
[[ "$1 $2" == "show hostnames" ]] && printf 'node7\\nnode8\\n'
[[ "$1 $2" == "show job" ]] && echo "JobId=$SLURM_JOB_ID JobState=$JOB_STATE"
exit 0
"""
# Stands for the training: notes how it was called, then waits for a signal or ends with a code.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" > "$RECORD/arguments"
echo "$RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $MASTER_PORT" > "$RECORD/ranks"
trap 'echo saved > "$RECORD/checkpoint"; exit 138' USR1
touch "$RECORD/started"
[[ -n "$EXIT_CODE" ]] && exit "$EXIT_CODE"
while true; do sleep 0.05; done
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts need bash")


@pytest.fixture
def slurm(tmp_path):
    """Starts a script as Slurm would; `record` shows what was called."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    started = []

    def start(script: Path, **environment: str) -> subprocess.Popen:
        known = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "RECORD": str(tmp_path),
            "PYTHON": str(tmp_path / "python"),
            "REPOSITORY": str(ROOT),
            "OUTPUT_DIR": str(tmp_path / "run"),
            "DATASETS": "[a,b]",
            "JOB_STATE": "RUNNING",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "70123",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": "1",
        }
        process = subprocess.Popen(
            ["bash", str(script)], env=known | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(file: Path) -> None:
    end = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_starts_a_training_that_the_program_accepts(slurm, tmp_path, script):
    process = slurm(script, EXIT_CODE="0")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    program, flag, config, *overrides = (tmp_path / "arguments").read_text().splitlines()
    assert flag == "--config"
    loaded = load_config(SCHEMAS[program], ROOT / config, overrides)
    assert loaded.output_dir == str(tmp_path / "run")
    assert (tmp_path / "ranks").read_text().split() == ["0", "1", "0", "node7", "30123"]
    assert "requeue" not in (tmp_path / "scontrol").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_gives_a_checkpoint_and_a_position_in_the_queue(slurm, tmp_path, number):
    process = slurm(SCRIPTS[0])
    wait_for(tmp_path / "started")
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert (tmp_path / "checkpoint").exists()
    assert "requeue 70123" in (tmp_path / "scontrol").read_text().splitlines()


def test_a_job_that_slurm_ends_is_left_to_slurm(slurm, tmp_path):
    """Cancelled, preempted or requeued by somebody: all are COMPLETING as long as the script runs."""
    process = slurm(SCRIPTS[0], JOB_STATE="COMPLETING")
    wait_for(tmp_path / "started")
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 138 and "Slurm has ended" in output
    assert "requeue" not in (tmp_path / "scontrol").read_text()


def test_an_error_is_an_error(slurm, tmp_path):
    process = slurm(SCRIPTS[0], EXIT_CODE="2")
    process.communicate(timeout=20)
    assert process.returncode == 2 and "requeue" not in (tmp_path / "scontrol").read_text()


def test_a_site_without_requeue_is_told(slurm, tmp_path):
    (tmp_path / "scontrol").write_text(SCONTROL.replace("exit 0", '[[ "$1" != requeue ]]'))
    process = slurm(SCRIPTS[0])
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 138 and "sbatch the same script again" in output


@pytest.mark.parametrize(("visible", "local_rank"), [("2", "0"), ("0,1,2,3", "3"), ("", "3")])
def test_a_task_that_sees_one_gpu_takes_it(slurm, tmp_path, visible, local_rank):
    """Sites differ: every task sees all GPUs of its node, or its own only."""
    (tmp_path / "srun").write_text(SRUN.replace("SLURM_LOCALID=0", f"SLURM_LOCALID=3 CUDA_VISIBLE_DEVICES={visible}"))
    process = slurm(SCRIPTS[0], EXIT_CODE="0", SLURM_CPUS_PER_TASK="16")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    rank, world_size, found, *_ = (tmp_path / "ranks").read_text().split()
    assert (rank, world_size, found) == ("0", "1", local_rank)


def test_every_process_gets_its_cores(slurm, tmp_path):
    """Since Slurm 22.05 srun forgets --cpus-per-task of sbatch."""
    (tmp_path / "python").write_text('#!/bin/bash\necho "$SRUN_CPUS_PER_TASK" > "$RECORD/cores"\n')
    slurm(SCRIPTS[0], SLURM_CPUS_PER_TASK="16").communicate(timeout=20)
    assert (tmp_path / "cores").read_text() == "16\n"


def test_no_host_is_an_error(slurm, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/bash\nexit 0\n")
    process = slurm(SCRIPTS[0])
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and "no host" in output


def test_a_finished_run_is_not_started_again(slurm, tmp_path):
    (tmp_path / "run" / "final").mkdir(parents=True)
    process = slurm(SCRIPTS[0])
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "nothing to do" in output and not (tmp_path / "started").exists()


def test_the_error_of_one_task_is_not_taken_for_a_preemption_of_the_others(slurm, tmp_path):
    """srun ends the other tasks by TERM (143) and reports the largest code: an error must be larger."""
    (tmp_path / "srun").write_text(SRUN.replace('exec "$@"', '"$@"; code=$?; exit $((code > 143 ? code : 143))'))
    process = slurm(SCRIPTS[0], EXIT_CODE="2")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2 and "requeue" not in (tmp_path / "scontrol").read_text(), output
