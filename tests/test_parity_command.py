"""`benchmarks/parity.py` reads what a folder describes, and its exit code says whether the numbers match."""

import json
import shutil

import parity
import pytest
from safetensors.torch import load_file, save_file

NAMES = {"tok_cam": "tok_turn", "tok_depth": "tok_warmth", "tok_gaze": "tok_wind", "tok_rgb": "tok_smell"}


def renamed(text: str) -> str:
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return text


@pytest.fixture
def unseen(parity_dir, tmp_path):
    """A folder of the same format with other names."""
    source, folder = parity_dir / "model" / "swiglu_nobias_registers", tmp_path / "model" / "never_seen"
    folder.mkdir(parents=True)
    info = json.loads(renamed((source / "info.json").read_text()))
    (folder / "info.json").write_text(json.dumps(info))
    for file in source.glob("*.safetensors"):
        save_file({renamed(name): tensor for name, tensor in load_file(file).items()}, folder / file.name)
    return folder


def test_a_folder_it_has_not_seen(unseen, capsys):
    assert parity.main(["--fixtures", str(unseen.parents[1]), "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert "model/never_seen" in shown and "logits.tok_smell" in shown and " 0 exceed" in shown


def test_a_changed_number_is_found(unseen, capsys):
    weights = load_file(unseen / "state_dict.safetensors")
    weights["encoder.1.mlp.fc2.weight"][3, 5] += 0.1
    save_file(weights, unseen / "state_dict.safetensors")
    assert parity.main(["--fixtures", str(unseen.parents[1])]) == 1
    shown = capsys.readouterr().out
    assert "encoder_out" in shown and "EXCEEDS" in shown


def test_a_part_that_cannot_be_read_fails(unseen, capsys):
    (unseen / "state_dict.safetensors").unlink()
    assert parity.main(["--fixtures", str(unseen.parents[1])]) == 1
    assert "stopped by" in capsys.readouterr().out


def test_nothing_to_compare(unseen, tmp_path, capsys):
    shutil.rmtree(unseen)
    assert parity.main(["--fixtures", str(tmp_path)]) == 2
    assert "nothing to compare" in capsys.readouterr().out
