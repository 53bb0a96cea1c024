"""A released tokenizer becomes a tokenizer directory by one command."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from egom2p.storage import load_tensors
from egom2p.tokenizers.convert_tokenizer import ConvertTokenizerConfig, convert_tokenizer
from egom2p.tokenizers.pretrained import load_tokenizer
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVaeConfig
from egom2p.tokenizers.video.video_codec import VideoCodecConfig


def released(folder, tmp_path):
    """The file as the published trainer writes it."""
    file = tmp_path / "released.pth"
    weights = load_tensors(folder / "state_dict.safetensors")
    torch.save({"model": weights, "args": argparse.Namespace(quantizer="lucid"), "epoch": 199}, file)
    return str(file)


def test_track(parity_dir, tmp_path):
    folder = parity_dir / "tokenizer" / "cam"
    dims = json.loads((folder / "info.json").read_text())["dims"]
    numbers = json.loads((parity_dir / "tokenizer" / "representations.json").read_text())
    network = TrajectoryVqVaeConfig(
        modality="tok_cam", quantity="camera", folder="cam", dim=dims["dim"], encoder_depth=dims["depth"],
        decoder_depth=dims["depth"], num_heads=dims["heads"], reconstructs_validity=False, fill="zero",
        mean=tuple(numbers["cam_mean"]), std=tuple(numbers["cam_std"]),
    )  # fmt: skip
    config = ConvertTokenizerConfig(
        checkpoint=released(folder, tmp_path), output=str(tmp_path / "out"), network=network, licence="as released"
    )
    fingerprint = convert_tokenizer(config)
    tokenizer = load_tokenizer(config.output)
    assert tokenizer.fingerprint == fingerprint and tokenizer.card["licence"] == "as released"
    outputs = load_tensors(folder / "outputs.safetensors")
    restored = tokenizer.network.restored(tokenizer.network.codes(outputs["tokens"]))
    assert torch.allclose(restored, outputs["reconstruction"], atol=1e-4)
    with pytest.raises(ValueError, match=r"released\.pth: .*do not fit.*found \(.*48.*\), wanted"):
        convert_tokenizer(replace(config, network=replace(network, dim=96), output=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"network\.mean"):
        convert_tokenizer(replace(config, network=replace(network, mean=None, std=None)))
    assert not (tmp_path / "other").exists()


def test_video(parity_dir, tmp_path):
    folder = parity_dir / "cosmos" / "tiny"
    info = json.loads((folder / "info.json").read_text())["config"]
    network = VideoCodecConfig(
        modality="tok_rgb", quantity="rgb", folder="rgb", num_frames=17, height=32, width=32, rate_hz=8,
        channels=info["channels"], channel_multipliers=info["channels_mult"], num_blocks=info["num_res_blocks"],
        num_decoder_blocks=info["num_res_blocks"] + 1, latent_channels=info["z_channels"],
    )  # fmt: skip
    config = ConvertTokenizerConfig(
        checkpoint=released(folder, tmp_path), output=str(tmp_path / "out"), network=network
    )
    convert_tokenizer(config)
    codec = load_tokenizer(config.output).network
    outputs = load_tensors(folder / "outputs.safetensors")
    assert torch.equal(codec.encode_video(outputs["17x32x32.input"])[1], outputs["17x32x32.indices"])
