"""`--multirun` trains once per combination of values, each run in the folder it names and nothing anywhere else."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tokens import pretrain_values, write_tokens

from egom2p.storage import load_json, save_json

SCRIPT = Path(__file__).resolve().parents[2] / "run_training_egom2p.py"


@pytest.mark.slow
def test_a_sweep_of_two_runs(tmp_path):
    write_tokens(tmp_path / "tokens", "train", 16, seed=0)
    write_tokens(tmp_path / "tokens", "val", 4, seed=1)
    values = pretrain_values(tmp_path / "tokens", tmp_path / "unused", num_steps=1, log_every=1)
    save_json(tmp_path / "config.yaml", values)  # JSON is YAML
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, str(SCRIPT), "--config", str(tmp_path / "config.yaml"), "--multirun"]
    command += ["training.lr=0.01,0.02", "output_dir=sweep/lr_${training.lr}"]
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert [path.name for path in work.iterdir()] == ["sweep"]
    runs = sorted((work / "sweep").iterdir())
    assert [path.name for path in runs] == ["lr_0.01", "lr_0.02"]
    for run, rate in zip(runs, (0.01, 0.02), strict=True):
        assert load_json(run / "config.json")["training"]["lr"] == rate
        assert (run / "final" / "model.safetensors").is_file()
