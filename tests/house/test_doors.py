"""A stranger who follows one training step opens few files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tokens import pretrain_values, write_tokens

from egom2p.config import from_plain, save_config
from egom2p.training.tasks.pretrain_config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def doors(tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("doors")
    for name, seed in (("train", 0), ("val", 1)):
        write_tokens(folder / "tokens", name, 16, seed=seed)
    values = pretrain_values(folder / "tokens", folder / "run", num_steps=3, log_every=1000)
    save_config(from_plain(PretrainConfig, values), folder / "run.yaml")
    command = [sys.executable, "tests/house/count_doors.py", "run_training_egom2p.py", "--config", folder / "run.yaml"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_one_training_step(doors):
    assert "training/step.py" in doors["step"] and len(doors["step"]) <= 24, doors["step"]


def test_from_the_command_to_the_first_update_of_weights(doors):
    assert "training/loop.py" in doors["command"] and len(doors["command"]) <= 45, doors["command"]
