"""A trained model goes to the Hub as one commit of plain files, and comes back the same."""

import json
from pathlib import Path

import pytest
import torch
from model_toys import toy_batch, toy_model

from egom2p.anytoany.language.packaged_model import Origin, save_origin
from egom2p.anytoany.saving import load_anytoany, save_anytoany
from egom2p.pipelines.publish import find_checkpoint, publish, upload
from egom2p.storage import load_json, save_json

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "README.md",
    "anytoany.json",
    "codebooks.json",
    "language_model/config.json",
    "language_model/generation_config.json",
    "language_model/model.safetensors",
    "parts.safetensors",
    "tokenizer/chat_template.jinja",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_model(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def run(tmp_path, model):
    """A run of two epochs: a checkpoint after the first, and the end."""
    folder = tmp_path / "run"
    captions = {"kind": "captions", "files": [str(folder / "a.jsonl")]}
    datasets = {"seen": captions, "unseen": {"kind": "captions", "files": [str(folder / "b.jsonl")]}}
    of_run = {"data": {"datasets": {"captions": captions}}, "evaluation": {"datasets": datasets}}
    save_json(folder / "config.json", {"training": {"epochs": 2}, **of_run})
    for name in ("checkpoints/step-00000010", "checkpoints/step-00000020", "final"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_anytoany(model, folder / name)
    for step in (10, 20):
        state = folder / f"checkpoints/step-{step:08d}"
        save_json(state / "training.json", {"progress": {"step": step, "clips": step * 10}})
        (state / "training.safetensors").write_bytes((state / "parts.safetensors").read_bytes())
    rows = [
        {
            "kind": "evaluation",
            "step": step,
            "seconds": 1.0,
            "seen/loss": 0.5,
            "unseen/loss": 1.0 / step,
            "unseen/exact_match": step / 40,
            "seen, zero features/loss": 0.75,
        }
        for step in (10, 20)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class FakeApi:
    """The two calls that a push makes; what is committed is kept as a folder."""

    commits: list = []

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.commits.append({"repo": repo_id, "private": private, "files": {}})

    def create_commit(self, repo_id, operations, *, commit_message):
        for operation in operations:
            with operation.as_file() as opened:
                self.commits[-1]["files"][operation.path_in_repo] = opened.read()
        self.commits[-1]["count"] = self.commits[-1].get("count", 0) + 1


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    FakeApi.commits = []
    return FakeApi.commits


def test_what_is_pushed_loads_as_the_model_that_was_trained(run, hub, tmp_path, model, capsys):
    upload(["--ckpt_dir", str(run), "--epoch", "1", "--hf_repo_id", "me/captions"])
    assert len(hub) == 1 and hub[0]["count"] == 1 and hub[0]["private"] and hub[0]["repo"] == "me/captions"
    assert sorted(hub[0]["files"]) == FILES
    for name, content in hub[0]["files"].items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    back = load_anytoany(tmp_path / "back")
    batch = toy_batch(model)
    assert torch.equal(back.token_losses(batch), model.token_losses(batch))
    assert capsys.readouterr().out.startswith("pushed to me/captions: README.md")
    assert not list(run.glob(".push-*"))


def test_an_epoch_chooses_its_checkpoint(run):
    assert find_checkpoint(run, None) == find_checkpoint(run, 1) == run / "final"
    assert find_checkpoint(run, 0) == run / "checkpoints/step-00000010"
    with pytest.raises(ValueError, match=r"no checkpoint at the end of epoch 5 .* after 1.00, 2.00 epochs"):
        find_checkpoint(run, 5)
    assert find_checkpoint(run / "final", None) == run / "final"
    with pytest.raises(ValueError, match="is a folder of weights itself"):
        find_checkpoint(run / "final", 0)
    with pytest.raises(ValueError, match="no finished run"):
        find_checkpoint(run.parent, 0)
    save_json(run / "config.json", {"training": {"epochs": None}})
    assert find_checkpoint(run, 0) == run / "final", "a run that counts steps is one epoch"


def test_a_dry_run_says_the_files_and_the_measurements_without_network_or_login(run, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert upload(["--ckpt_dir", str(run), "--epoch", "0", "--hf_repo_id", "me/captions", "--dry_run"]) == FILES
    shown = capsys.readouterr().out
    assert "| unseen | held out | 0.1000 | 0.2500 |" in shown, "the evaluation of this checkpoint, not of the end"
    assert "| seen | training rows | 0.5000 |" in shown and "| seen, zero features | training rows | 0.7500 |" in shown
    assert "| connector | resampler, 3 tokens per media item |" in shown and "would push to me/captions" in shown
    assert "training.safetensors" not in shown
    with pytest.raises(SystemExit):
        upload(["--ckpt_dir", str(run), "--epoch", "0", "--hf_repo_id", "me/captions"])
    assert "needs a login: run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err


def test_the_card_names_the_base_its_licence_and_a_stand_in(run, capsys):
    """From what the folder of the base said when the model was trained, not from a local path."""
    shown = {}
    for stand_in in (False, True):
        save_origin(run / "final", Origin("owner/base-8B", "Base Community License", stand_in=stand_in))
        shown[stand_in] = publish(run / "final", "me/captions", dry_run=True).readme
    assert "base_model: owner/base-8B" in shown[False]
    assert "that of the base, owner/base-8B: Base Community License" in shown[False]
    assert "owner/base-8B" not in shown[True] and "on a stand-in: random weights" in shown[True]
    assert "not stated" in shown[True] and "stand-in" not in shown[False]


def test_a_broken_or_foreign_folder_is_refused(run):
    with pytest.raises(ValueError, match="found none of anytoany.json"):
        publish(run, "me/captions", dry_run=True)
    (run / "final/notes.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickles and programs are not pushed"):
        publish(run / "final", "me/captions", dry_run=True)
    (run / "final/notes.bin").unlink()
    (run / "final/parts.safetensors").unlink()
    with pytest.raises(ValueError, match="parts.safetensors is missing"):
        publish(run / "final", "me/captions", dry_run=True)


def test_the_merged_model_and_the_name_of_the_base_go_along(run, hub, model):
    publish(run / "final", "me/captions", merge=True, base_model="meta/base", private=False)
    files = hub[0]["files"]
    assert {"merged/model.safetensors", "merged/config.json", "merged/tokenizer.json"} <= set(files)
    assert (
        not hub[0]["private"] and b"subfolder=" in files["README.md"] and b"base_model: meta/base" in files["README.md"]
    )
    assert json.loads(files["anytoany.json"])["config"]["language_model"]["pretrained"] == "meta/base"
    assert load_json(run / "final/anytoany.json")["config"]["language_model"]["pretrained"] is None
