"""A model folder goes to the Hub as plain files with a README that tells what model.json knows."""

import pytest
import torch
from packing import TINY_SPECS

from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.push import model_readme, push_to_hub
from egom2p.models.weights import write_model_files

ABOUT = {
    "licence": "Apache-2.0",
    "training_data": {"world": 2.0, "walks": 0.5},
    "started_from": "me/earlier",
    "measured": [{"task": "mix", "modality": "tok_smell", "nats": 1.25, "unigram_baseline": 2.5}],
}


@pytest.fixture
def folder(tmp_path):
    model = EgoM2P(ModelConfig(dim=12, encoder_depth=1, decoder_depth=1, num_heads=2), TINY_SPECS)
    write_model_files(model, tmp_path, {"tok_smell": "tokenizers/tok_smell"}, about=ABOUT)
    return tmp_path


def test_readme_tells_what_the_card_knows(folder):
    text = model_readme(folder, "me/egom2p-tiny")
    assert text.startswith("---\nlicense: apache-2.0\n") and "# egom2p-tiny" in text
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
    assert "license: mit" in model_readme(folder, "me/tiny", licence="MIT")


def test_a_dry_run_names_the_files_and_needs_no_network(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert push_to_hub(folder, "me/tiny", dry_run=True) == ["README.md", "model.json", "model.safetensors"]
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        push_to_hub(folder, "me/tiny", dry_run=True)


def test_from_pretrained_reads_a_folder_and_asks_the_hub_for_ids(folder, monkeypatch):
    model = EgoM2P.from_pretrained(folder)
    assert not model.training and model.specs == TINY_SPECS
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    again = EgoM2P.from_pretrained("me/tiny")
    assert asked == ["me/tiny"]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        EgoM2P.from_pretrained("nowhere")
