"""A tokenizer folder is the tokenizer: same ids after loading, and no other weights under its fingerprint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_clips import moving_clip, moving_clips
from tiny_tokenizers import tiny_codec, tiny_trajectory

from egom2p.config import strict
from egom2p.contracts import Tokenizer
from egom2p.storage import fingerprint_of, load_tensors, save_tensors
from egom2p.tokenizers import load_tokenizer, save_tokenizer
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig

MAKERS = {
    "gaze": tiny_trajectory,
    "camera": lambda: tiny_trajectory("camera"),
    "rgb": tiny_codec,
    "depth": lambda: tiny_codec("depth", has_linear_path=True),
}


@pytest.mark.parametrize("quantity", MAKERS)
def test_round_trip_through_a_folder(tmp_path, quantity):
    network, clips = MAKERS[quantity](), moving_clips(5)
    network.fit_normalisation(clips)
    fingerprint = save_tokenizer(network, tmp_path / "tok", training_data={"clips": 5}, metrics={"error": 0.5})
    loaded = load_tokenizer(tmp_path / "tok")
    assert isinstance(loaded, Tokenizer)
    assert loaded.fingerprint == loaded.spec.tokenizer_fingerprint == fingerprint
    assert loaded.stream == quantity and loaded.spec == network.spec.with_fingerprint(fingerprint)
    assert loaded.card["training_data"] == {"clips": 5} and loaded.card["metrics"] == {"error": 0.5}
    loaded.batch_size = 2
    network.eval()
    ids = loaded.encode(clips)
    np.testing.assert_array_equal(ids, network.encode_clips(clips))
    values, is_valid = loaded.decode(ids)
    assert len(values) == len(is_valid) == 5
    np.testing.assert_allclose(values, network.decode_ids(ids)[0], atol=1e-5)
    assert loaded.encode([]).shape == (0, loaded.spec.num_tokens)


def test_fingerprint_follows_weights_and_config(tmp_path):
    network = tiny_trajectory()
    first = save_tokenizer(network, tmp_path / "a")
    assert save_tokenizer(network, tmp_path / "b") == first
    with torch.no_grad():
        network.mean += 1e-3
    assert save_tokenizer(network, tmp_path / "c") != first


@strict
class LaterConfig(TrajectoryVqVaeConfig):
    """What a later version of the config might look like."""

    smooths_codes: bool = False


def test_a_setting_added_later_keeps_the_fingerprint(tmp_path):
    network = tiny_trajectory()
    first = save_tokenizer(network, tmp_path / "first")
    fields = json.loads((tmp_path / "first" / "tokenizer.json").read_text())["config"]
    for smooths_codes in (False, True):
        later = TrajectoryVqVae(LaterConfig(**fields, smooths_codes=smooths_codes))
        later.load_state_dict(network.state_dict())
        is_same = save_tokenizer(later, tmp_path / f"later-{smooths_codes}") == first
        assert is_same is not smooths_codes
    with pytest.raises(ValueError, match=r"tokenizer\.json: unknown key `smooths_codes`"):
        load_tokenizer(tmp_path / "later-False")


def test_folders_of_earlier_versions_load(tmp_path):
    """Written before `has_local_encoder` existed."""
    network = tiny_trajectory()
    save_tokenizer(network, tmp_path / "tok")
    file = tmp_path / "tok" / "tokenizer.json"
    card, tensors = json.loads(file.read_text()), load_tensors(tmp_path / "tok" / "model.safetensors")
    del card["config"]["has_local_encoder"]
    card["checksum"] = fingerprint_of(tensors, {"fingerprint": card["fingerprint"], "config": card["config"]})
    file.write_text(json.dumps(card))
    loaded, clips = load_tokenizer(tmp_path / "tok"), moving_clips(3)
    assert loaded.fingerprint == card["fingerprint"]
    np.testing.assert_array_equal(loaded.encode(clips), network.eval().encode_clips(clips))


def test_pretrained_tokenizers_load_with_the_fingerprints_of_their_model():
    pretrained = Path(__file__).resolve().parents[2] / "checkpoints" / "world_small"
    wanted = {
        spec["name"]: spec["tokenizer_fingerprint"]
        for spec in json.loads((pretrained / "model.json").read_text())["modalities"]
    }
    assert wanted
    for name, fingerprint in wanted.items():
        assert load_tokenizer(pretrained / "tokenizers" / name).fingerprint == fingerprint


def test_settings_changed_by_hand_are_refused(tmp_path):
    save_tokenizer(tiny_trajectory(), tmp_path / "tok")
    file = tmp_path / "tok" / "tokenizer.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"config": card["config"] | {"fill": "zero"}}))
    with pytest.raises(ValueError, match="weights and config have checksum"):
        load_tokenizer(tmp_path / "tok")


def test_other_weights_are_refused(tmp_path):
    save_tokenizer(tiny_trajectory(), tmp_path / "tok")
    weights = tmp_path / "tok" / "model.safetensors"
    tensors = load_tensors(weights)
    tensors["mean"] = tensors["mean"] + 1
    save_tensors(weights, tensors)
    with pytest.raises(ValueError, match=r"model\.safetensors.*checksum sha256:.*tokenizer\.json says"):
        load_tokenizer(tmp_path / "tok")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card["config"].update(architecture="os.system"), "known are"),
        (lambda card: card["config"].update(num_code=4), "num_codes"),
        (lambda card: card.pop("fingerprint"), "needs the keys"),
        (lambda card: card.pop("checksum"), "needs the keys"),
    ],
)
def test_broken_cards_are_refused(tmp_path, change, words):
    save_tokenizer(tiny_trajectory(), tmp_path / "tok")
    file = tmp_path / "tok" / "tokenizer.json"
    card = json.loads(file.read_text())
    change(card)
    file.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=words):
        load_tokenizer(tmp_path / "tok")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_ids_and_clips_are_checked(tmp_path):
    save_tokenizer(tiny_trajectory(), tmp_path / "tok")
    loaded = load_tokenizer(tmp_path / "tok")
    length = loaded.spec.num_tokens
    with pytest.raises(ValueError, match="vocabulary has 32"):
        loaded.decode(np.full((1, length), 32))
    with pytest.raises(ValueError, match="tok_gaze has shape"):
        loaded.decode(np.zeros((1, length + 1), int))
    clip = moving_clip(4)
    without = type(clip)(clip.key, {"rgb": clip.streams["rgb"]}, None, clip.provenance)
    with pytest.raises(ValueError, match="clip-004 has no gaze"):
        loaded.encode([moving_clip(1), without])
