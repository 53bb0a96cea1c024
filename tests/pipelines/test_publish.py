"""A folder of weights goes to the Hub as plain files with a README that tells what its card knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_artifacts import make_tiny_world

from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.weights import write_model_files
from egom2p.pipelines.publish import find_checkpoint, publish, upload
from egom2p.storage import load_json, save_json

ROOT = Path(__file__).resolve().parents[2]
SPECS = (
    ModalitySpec("tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell"),
    ModalitySpec("tok_motion", "track", "generic", TokenGrid((6,)), 7, "motion"),
)
ABOUT = {
    "licence": "Apache-2.0",
    "training_data": {"world": 2.0, "walks": 0.5},
    "started_from": "me/earlier",
    "measured": [{"task": "mix", "modality": "tok_smell", "nats": 1.25, "unigram_baseline": 2.5}],
}
FILES = ["README.md", "model.json", "model.safetensors"]


@pytest.fixture
def folder(tmp_path):
    model = EgoM2P(ModelConfig(dim=12, encoder_depth=1, decoder_depth=1, num_heads=2), SPECS)
    write_model_files(model, tmp_path / "run" / "final", {"tok_smell": "tokenizers/tok_smell"}, about=ABOUT)
    return tmp_path / "run" / "final"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("world"), num_val=1)


def test_readme_of_a_model_tells_what_its_card_knows(folder):
    text = publish(folder, "me/egom2p-tiny", dry_run=True).readme
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: egom2p\ntags:\n") and "\n# egom2p-tiny\n" in text
    for words in (
        "| tok_smell | generic | 3 x 2 x 4 | 13 | `not known` | tokenizers/tok_smell |",
        "| tok_motion | generic | 6 | 7 | `not known` | not included |",
        "1 encoder and 1 decoder blocks, width 12",
        "| world | 2 |",
        "Started from me/earlier.",
        "| mix | tok_smell | 1.250 | 2.500 |",
        'EgoM2P.from_pretrained("me/egom2p-tiny")',
    ):
        assert words in text
    assert "license: mit" in publish(folder, "me/tiny", licence="MIT", dry_run=True).readme


def test_a_tokenizer_is_checked_and_described_by_its_card(world):
    tokenizer = world / "tokenizers" / "cam"
    done = publish(tokenizer, "me/cam", dry_run=True)
    assert done.files == ["README.md", "model.safetensors", "tokenizer.json"]
    card = load_json(tokenizer / "tokenizer.json")
    assert "- tokenizer\n- camera\n---\n\n# cam\n" in done.readme and f"`{card['fingerprint']}`" in done.readme
    assert (
        "not stated" in done.readme
        and "license: mit" in publish(tokenizer, "me/cam", licence="MIT", dry_run=True).readme
    )


def test_the_state_of_training_stays_at_home(folder):
    (folder / "training.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    save_json(folder / "training.json", {"progress": {"step": 1, "clips": 1}})
    assert publish(folder, "me/tiny", dry_run=True).files == FILES


def test_broken_and_foreign_folders_and_foreign_settings_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"found none of anytoany.json, model.json, tokenizer.json"):
        publish(tmp_path, "me/tiny", dry_run=True)
    with pytest.raises(ValueError, match=r"merge and base_model are for any-to-any .* found model.json"):
        publish(folder, "me/tiny", dry_run=True, merge=True)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        publish(folder, "me/tiny", dry_run=True)


def test_a_run_is_as_good_as_its_end_and_epochs_are_of_every_kind_of_run(folder):
    run = folder.parent
    assert find_checkpoint(run) == find_checkpoint(folder) == folder
    save_json(run / "config.json", {"training": {"epochs": None, "total_tokens": 100}})
    assert find_checkpoint(run, 0) == folder, "a run that counts tokens is one epoch"
    with pytest.raises(ValueError, match="no checkpoint at the end of epoch 1"):
        find_checkpoint(run, 1)


def test_one_command_line_knows_every_kind_and_a_dry_run_needs_no_network(folder, world, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert upload(["--ckpt_dir", str(folder.parent), "--hf_repo_id", "me/tiny", "--dry_run"]) == FILES
    shown = capsys.readouterr().out
    assert "# tiny" in shown and "would push to me/tiny: README.md, model.json, model.safetensors" in shown
    assert upload(["--ckpt_dir", str(world / "tokenizers" / "gaze"), "--hf_repo_id", "me/gaze", "--dry_run"])

    def call(*arguments):
        command = [sys.executable, str(ROOT / "upload_ckpt_hf.py"), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)

    help_text = call("--help").stdout
    flags = ("ckpt_dir", "epoch", "hf_repo_id", "no-private", "dry_run", "licence", "merge", "base_model")
    assert all(f"--{flag}" in help_text for flag in flags)
    bad = call("--ckpt_dir", str(folder.parents[1]), "--hf_repo_id", "me/tiny", "--epoch", "1", "--dry_run")
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and "no finished run" in bad.stderr
    other = call("directory=nowhere", "repo_id=me/x")
    assert other.returncode == 2 and "--ckpt_dir" in other.stderr


def test_from_pretrained_reads_a_folder_and_asks_the_hub_for_ids(folder, monkeypatch):
    model = EgoM2P.from_pretrained(folder)
    assert not model.training and model.specs == SPECS
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    again = EgoM2P.from_pretrained("me/tiny")
    assert asked == ["me/tiny"]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        EgoM2P.from_pretrained("nowhere")
