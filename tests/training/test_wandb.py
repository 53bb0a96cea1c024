"""The offline log of Weights & Biases: one run across restarts, nothing sent anywhere."""

import pytest
from toy_task import run_toy

from egom2p.storage import load_json


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_offline_log_keeps_its_run_across_restarts(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = {"mode": "offline", "project": "toy"}
    run_toy(tmp_path, num_steps=3, schedule="constant", wandb=wandb)
    first = load_json(tmp_path / "wandb.json")["id"]
    run_toy(tmp_path, num_steps=5, schedule="constant", wandb=wandb)
    assert load_json(tmp_path / "wandb.json")["id"] == first
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))
    assert len(files) == 2 and all(file.stat().st_size > 0 for file in files)
