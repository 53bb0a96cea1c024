"""Numbers of the published tokenizers: same weights, same ids, same reconstruction."""

import json

import numpy as np
import pytest
import torch

from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.storage import load_tensors
from egom2p.tokenizers.haar import haar_patches, haar_video
from egom2p.tokenizers.reference_weights import load_reference_codec, load_reference_trajectory
from egom2p.tokenizers.track_representations import TrackRepresentation, camera_poses
from egom2p.tokenizers.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig
from egom2p.tokenizers.video_codec import VideoCodec, VideoCodecConfig
from egom2p.tokenizers.video_padding import crop_padding, pad_video


def assert_matches(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))


def trajectory(folder, quantity, statistics):
    info = json.loads((folder / "info.json").read_text())["dims"]
    config = TrajectoryVqVaeConfig(
        modality="tok_track", quantity=quantity, folder="track", dim=info["dim"], encoder_depth=info["depth"],
        decoder_depth=info["depth"], num_heads=info["heads"], reconstructs_validity=False, fill="zero",
        mean=tuple(statistics[0]), std=tuple(statistics[1]),
    )  # fmt: skip
    network = TrajectoryVqVae(config).eval()
    load_reference_trajectory(network, load_tensors(folder / "state_dict.safetensors"))
    return network, load_tensors(folder / "outputs.safetensors")


@pytest.mark.parametrize(("name", "quantity"), [("cam", "camera"), ("gaze", "gaze")])
@torch.no_grad()
def test_trajectory_vqvae(parity_dir, name, quantity):
    numbers = json.loads((parity_dir / "tokenizer" / "representations.json").read_text())
    statistics = numbers[f"{name}_mean"], numbers[f"{name}_std"]
    network, outputs = trajectory(parity_dir / "tokenizer" / name, quantity, statistics)
    channels = network.config.channels
    samples = outputs["input"][..., :channels]
    is_valid = outputs["input"][..., -1] if quantity == "gaze" else torch.ones(samples.shape[:2])
    latents = network.latents(samples, is_valid)
    assert_matches(network.encoder(samples * is_valid[..., None]).mT, outputs["encoder_out"])
    assert_matches(latents.mT, outputs["quant_proj_out"])
    margin = outputs["top2_cosine"][..., 0] - outputs["top2_cosine"][..., 1]
    ids = network.lookup(latents)
    assert ((ids == outputs["tokens"]) | (margin < 1e-4)).all()
    assert_matches(network.codes(outputs["tokens"]).mT, outputs["quantised"])
    restored = network.restored(network.codes(outputs["tokens"]))
    assert_matches(restored, outputs["reconstruction"])
    assert_matches(restored * network.std + network.mean, outputs["reconstruction_denormalised"])


@torch.no_grad()
def test_codebook_rows_that_are_not_of_unit_length(parity_dir):
    """Rows decide by direction and are decoded with their length."""
    folder = parity_dir / "tokenizer" / "cam"
    network, outputs = trajectory(folder, "camera", ([0.0] * 9, [1.0] * 9))
    reference = load_tensors(folder / "state_dict.safetensors")
    lengths = torch.linspace(0.5, 1.0, network.config.num_codes)
    rows = reference["quantize._codebook.embed"] * lengths[:, None]
    load_reference_trajectory(network, reference | {"quantize._codebook.embed": rows})
    ids = network.lookup(outputs["quant_proj_out"].mT)
    margin = outputs["top2_cosine"][..., 0] - outputs["top2_cosine"][..., 1]
    assert ((ids == outputs["tokens"]) | (margin < 1e-4)).all()
    assert_matches(network.codes(ids), rows[ids])


def test_camera_representation(parity_dir):
    numbers = load_tensors(parity_dir / "tokenizer" / "representations.safetensors")
    poses = numbers["cam.poses_c2w_4x4_f64"].numpy()
    representation = TrackRepresentation("camera", "camera", poses.shape[1], 9)
    for world_from_cam, wanted in zip(poses, numbers["cam.nine_d_f64"].numpy(), strict=True):
        times = np.arange(len(world_from_cam)) / 30
        stream = Stream(world_from_cam, np.ones(len(times), bool), times, "world_from_cam")
        clip = AlignedClip("clip", {"camera": stream}, None, Provenance("toy", "one"))
        np.testing.assert_allclose(representation.channels(clip)[0], wanted, atol=1e-6)
    noisy = camera_poses(numbers["cam.nine_d_noisy_f64"].numpy())
    np.testing.assert_allclose(noisy, numbers["cam.noisy_as_4x4_f64"].numpy(), atol=1e-9)


@torch.no_grad()
def test_haar_patches(parity_dir):
    numbers = load_tensors(parity_dir / "cosmos" / "units.safetensors")
    assert_matches(haar_patches(numbers["haar4.video"], 4), numbers["haar4.patched"])
    assert_matches(haar_video(numbers["haar4.patched"], 4), numbers["haar4.unpatched"])


@pytest.fixture(scope="module")
def codec(parity_dir) -> VideoCodec:
    info = json.loads((parity_dir / "cosmos" / "tiny" / "info.json").read_text())["config"]
    config = VideoCodecConfig(
        modality="tok_rgb", quantity="rgb", folder="rgb", num_frames=17, height=32, width=32, rate_hz=8,
        levels=info["levels"], channels=info["channels"], channel_multipliers=info["channels_mult"],
        num_blocks=info["num_res_blocks"], num_decoder_blocks=info["num_res_blocks"] + 1,
        latent_channels=info["z_channels"],
    )  # fmt: skip
    network = VideoCodec(config).eval()
    load_reference_codec(network, load_tensors(parity_dir / "cosmos" / "tiny" / "state_dict.safetensors"))
    return network


@pytest.mark.parametrize("case", ["1x32x32", "9x32x32", "17x32x32"])
@torch.no_grad()
def test_video_codec(parity_dir, codec, case):
    outputs = load_tensors(parity_dir / "cosmos" / "tiny" / "outputs.safetensors")
    video = outputs[f"{case}.input"]
    assert_matches(codec.encoder(video), outputs[f"{case}.encoder_out"])
    assert_matches(codec.pre_quantised(video), outputs[f"{case}.pre_quant"])
    codes, ids = codec.encode_video(video)
    assert torch.equal(ids, outputs[f"{case}.indices"])
    assert_matches(codes, outputs[f"{case}.codes"])
    assert_matches(codec.decode_codes(codes), outputs[f"{case}.reconstruction"], 1e-4)


def test_fsq(parity_dir, codec):
    numbers = load_tensors(parity_dir / "cosmos" / "units.safetensors")
    codes, ids = codec.quantizer(numbers["fsq.z"])
    assert torch.equal(ids, numbers["fsq.indices"])
    assert_matches(codes, numbers["fsq.codes"])
    assert_matches(codec.quantizer.indices_to_codes(numbers["fsq.some_indices"]), numbers["fsq.some_codes"])


def test_padding(parity_dir):
    for case, wanted in json.loads((parity_dir / "cosmos" / "padding.json").read_text()).items():
        size = tuple(int(number) for number in case.split("x"))
        frame_numbers = torch.arange(size[0], dtype=torch.float32)
        video = frame_numbers[None, None, :, None, None].expand(1, 1, *size)
        padded = pad_video(video, 8, 16)
        assert list(padded.shape[2:]) == wanted["padded_shape"]
        assert padded[0, 0, :, 0, 0].int().tolist() == wanted["frame_source"]
        assert torch.equal(crop_padding(padded, size), video)


def test_names_of_the_full_size_networks(parity_dir):
    """Every published weight has a place in ours, at the published sizes."""
    config = VideoCodecConfig(
        modality="tok_rgb", quantity="rgb", folder="rgb", num_frames=16, height=256, width=256, rate_hz=8
    )
    codec = VideoCodec(config)
    ours = {name: list(tensor.shape) for name, tensor in codec.state_dict().items()}
    published = {}
    for line in (parity_dir / "cosmos_dv4x8x8_state_dict_keys.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, shape = line.split("\t")[:2]
            published[name] = json.loads(shape)
    assert {name: published.get(name) for name in ours} == ours
    assert all("sample.conv" in name for name in published.keys() - ours.keys())
    assert codec.spec.grid.shape == (5, 32, 32) and codec.spec.vocab_size == 64000
