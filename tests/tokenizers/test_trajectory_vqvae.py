"""One class for gaze, camera and any track: it learns, masks what is invalid, and keeps its codebook alive."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_clips import NUM_SAMPLES, moving_clip, moving_clips, with_stream
from tiny_tokenizers import TINY_TRACK, tiny_trajectory

from egom2p.config import ConfigError, from_plain
from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips
from egom2p.data.recordings.reader_choice import open_reader
from egom2p.data.recordings.trajectories import RandomMotionSource
from egom2p.geometry import canonicalise, rotation_angle
from egom2p.tokenizers import load_tokenizer
from egom2p.tokenizers.protocol import TrainableTokenizer
from egom2p.tokenizers.trajectory.track_quantizers import ResidualVqConfig
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig


def train(network: TrajectoryVqVae, clips, num_steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(num_steps):
        output = network(network.batch_from_clips(clips, None))
        terms = zip(network.loss_weights, output.sums, output.counts, strict=True)
        loss = sum(weight * total / count for weight, total, count in terms)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        network.after_step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("quantity", "error"), [("gaze", "gaze_error"), ("camera", "ate_m")])
@pytest.mark.parametrize("local", [False, True])
def test_training_lowers_the_error(quantity, error, local):
    clips, held_out = moving_clips(48), moving_clips(12, first=500)
    network = tiny_trajectory(quantity, has_local_encoder=local)
    network.fit_normalisation(clips)
    start = network.evaluate(held_out)
    train(network, clips, 60)
    end = network.evaluate(held_out)
    assert end[error] < 0.6 * start[error]
    assert end["codes_used"] > 8


def test_decoded_camera_is_made_of_rotations():
    network, clips = tiny_trajectory("camera"), moving_clips(3)
    network.fit_normalisation(clips)
    values, is_valid = network.decode_ids(network.encode_clips(clips))
    assert values.shape == (3, NUM_SAMPLES, 4, 4) and is_valid.shape == (3, NUM_SAMPLES)
    rotations = values[..., :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-9
    )


def test_a_static_camera_and_a_half_turn_are_legal():
    network = tiny_trajectory("camera")
    network.fit_normalisation(moving_clips(4))
    still = np.tile(np.eye(4), (NUM_SAMPLES, 1, 1))
    turn = still.copy()
    angles = np.linspace(0, np.pi, NUM_SAMPLES)
    turn[:, 0, 0], turn[:, 0, 2], turn[:, 2, 0], turn[:, 2, 2] = (
        np.cos(angles),
        np.sin(angles),
        -np.sin(angles),
        np.cos(angles),
    )
    clips = [with_stream(moving_clip(0), "camera", values=values) for values in (still, turn)]
    channels, _ = network.representation.channels(clips[1])
    restored = network.representation.values(channels[None])[0]
    assert np.degrees(rotation_angle(restored[:, :3, :3].swapaxes(-1, -2) @ turn[:, :3, :3])).max() < 1e-3
    assert np.isfinite(network.decode_ids(network.encode_clips(clips))[0]).all()


def test_the_world_frame_does_not_matter():
    network, clip = tiny_trajectory("camera"), moving_clip(1)
    network.fit_normalisation(moving_clips(4))
    moved = np.linalg.inv(moving_clip(9).world_from_cam[5]) @ clip.world_from_cam
    np.testing.assert_allclose(canonicalise(moved), canonicalise(clip.world_from_cam), atol=1e-9)
    ids = network.encode_clips([clip, with_stream(clip, "camera", values=moved)])
    np.testing.assert_array_equal(ids[0], ids[1])


@pytest.mark.parametrize("fill", ["zero", "interpolate"])
def test_what_stands_at_invalid_samples_does_not_matter(fill):
    network, clip = tiny_trajectory(fill=fill), moving_clip(2, valid_share=0.7)
    other = np.where(clip.gaze_is_valid[:, None], clip.gaze, np.nan).astype(np.float32)
    changed = with_stream(clip, "gaze", values=other)
    np.testing.assert_array_equal(network.encode_clips([clip]), network.encode_clips([changed]))
    sums = [network.eval()(network.batch_from_clips([which], None)).sums for which in (clip, changed)]
    torch.testing.assert_close(*sums)


def test_all_invalid_gaze_is_legal():
    network = tiny_trajectory()
    clip = with_stream(moving_clip(0), "gaze", is_valid=np.zeros(NUM_SAMPLES, bool))
    batch = network.batch_from_clips([clip], None)
    assert batch.counts[0] == 0 and torch.isfinite(network.eval()(batch).sums).all()
    assert np.isfinite(network.decode_ids(network.encode_clips([clip]))[0]).all()


def test_validity_is_learned_when_asked():
    clips = []
    for number in range(32):
        is_valid = np.ones(NUM_SAMPLES, bool)
        start = 4 * (number % 12)
        is_valid[start : start + 8] = False
        clips.append(with_stream(moving_clip(number), "gaze", is_valid=is_valid))
    network = tiny_trajectory(validity_weight=1.0)
    network.fit_normalisation(clips)
    train(network, clips, 150)
    assert network.evaluate(clips)["validity_accuracy"] > 0.95
    assert tiny_trajectory(reconstructs_validity=False).decode_ids(np.zeros((1, 15), np.int32))[1].all()


def test_bad_clips_are_named():
    poses = moving_clip(7).world_from_cam.copy()
    poses[4, 0, 0] = np.nan
    with pytest.raises(ValueError, match="clip-007.*sample 4"):
        tiny_trajectory("camera").encode_clips([with_stream(moving_clip(7), "camera", values=poses)])
    with pytest.raises(ValueError, match="clip-007.*no valid sample"):
        nowhere = with_stream(moving_clip(7), "camera", is_valid=np.zeros(NUM_SAMPLES, bool))
        tiny_trajectory("camera").encode_clips([nowhere])
    with pytest.raises(ValueError, match="clip-007.*wants"):
        tiny_trajectory(num_samples=40).encode_clips([moving_clip(7)])


def test_a_generic_track():
    network = tiny_trajectory("generic", stream="smell", num_channels=5)
    stream = moving_clip(0).streams["gaze"]
    clips = []
    for number in range(8):
        values = np.random.default_rng(number).normal(size=(NUM_SAMPLES, 5)).cumsum(axis=0)
        clip = moving_clip(number)
        smell = type(stream)(values, np.ones(NUM_SAMPLES, bool), stream.times_s, "ppm")
        clips.append(type(clip)(clip.key, {"smell": smell}, None, clip.provenance))
    network.fit_normalisation(clips)
    assert network.spec.quantity == "generic" and network.stream == "smell"
    assert network.decode_ids(network.encode_clips(clips))[0].shape == (8, NUM_SAMPLES, 5)
    assert np.isfinite(network.evaluate(clips)["rms_error"])


def test_dead_codes_are_revived():
    network, clips = tiny_trajectory(dead_code_threshold=1.0), moving_clips(32)
    network.fit_normalisation(clips)
    codebook = network.quantizer._codebook
    codebook.cluster_size[:, 5:] = 0.0
    before = codebook.embed.clone()
    network(network.batch_from_clips(clips, None))
    assert (codebook.cluster_size >= 1.0).all()
    assert not torch.equal(before[:, 5:], codebook.embed[:, 5:])


def test_state_dict_resumes_the_codebook():
    clips = moving_clips(16)
    network = tiny_trajectory(dead_code_threshold=0.0)
    network.fit_normalisation(clips)
    train(network, clips, 3)
    resumed = tiny_trajectory(dead_code_threshold=0.0)
    resumed.load_state_dict(copy.deepcopy(network.state_dict()))
    assert train(network, clips, 3) == train(resumed, clips, 3)


def test_evaluation_leaves_the_network_as_it_was():
    network, clips = tiny_trajectory(), moving_clips(4)
    before = copy.deepcopy(network.state_dict())
    network.evaluate(clips)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 61}, "samples_per_token"),
        ({"dim": 33}, "num_heads"),
        ({"mean": (0.5, 0.5)}, "both mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, "needs 2 numbers"),
        ({"quantity": "generic"}, "num_channels"),
        ({"num_code": 3}, "num_codes"),
    ],
)
def test_wrong_configs_say_what_is_wrong(changes, words):
    values = {"modality": "tok_gaze", "quantity": "gaze", "folder": "gaze"} | TINY_TRACK | changes
    with pytest.raises(ConfigError, match=words):
        from_plain(TrajectoryVqVaeConfig, values)


def test_is_trainable():
    assert isinstance(tiny_trajectory(), TrainableTokenizer)


def test_the_motion_term_counts_differences_between_valid_neighbours_only():
    """The network's own output, differenced by hand in NumPy, against the term."""
    clips = moving_clips(6)
    plain, weighted = tiny_trajectory("gaze"), tiny_trajectory("gaze", motion_weight=7.0)
    for network in (plain, weighted):
        network.fit_normalisation(clips)
        network.eval()
    batch = plain.batch_from_clips(clips, None)
    is_valid = batch.tensors["is_valid"].clone()
    is_valid[:, 10:13] = False
    batch.tensors["is_valid"].copy_(is_valid)
    with torch.no_grad():
        normalised = (batch.tensors["samples"] - plain.mean) / plain.std
        latents = plain.latents(normalised, is_valid)
        codes = plain.codes(plain.quantizer(latents)[1])
        restored = plain.restored(latents + (codes - latents))
        added = (weighted(batch).sums - plain(batch).sums).numpy()
    error, valid = (restored[..., :2] - normalised).numpy(), is_valid.numpy()
    wanted = 0.0
    for row in range(len(clips)):
        for sample in range(1, NUM_SAMPLES):
            if valid[row, sample] and valid[row, sample - 1]:
                wanted += float(((error[row, sample] - error[row, sample - 1]) ** 2).sum())
    assert added[0] == pytest.approx(7.0 * wanted, rel=1e-3) and not added[1:].any()


LINEAR = {
    "samples_per_token": NUM_SAMPLES, "quantizer": ResidualVqConfig(kind="residual_vq", num_streams=8, search_width=4),
    "has_linear_path": True, "latent_dim": 24, "dead_code_threshold": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("quantity", "error", "changes"),
    [
        ("gaze", "gaze_error", {}),
        ("camera", "ate_m", {"camera_channels": "motion", "path_weight": 0.02, "reconstructs_validity": False}),
    ],
)
def test_the_linear_path_is_good_before_any_step_and_training_makes_it_better(quantity, error, changes):
    clips, held_out = moving_clips(400), moving_clips(40, first=5000)
    network = tiny_trajectory(quantity, **LINEAR | changes)
    network.fit_normalisation(clips)
    found = network.evaluate(held_out)
    still = {"gaze_error": 0.17, "ate_m": 0.9}[error]  # of the middle of the image, and of standing still
    assert found[error] < 0.3 * still
    if quantity == "gaze":
        assert found["validity_accuracy"] > 0.85
    losses = train(network, clips, 30)
    assert min(losses[-3:]) < losses[0]


def test_the_linear_path_wants_one_step_of_residual_codes():
    with pytest.raises(ValueError, match="samples_per_token = num_samples"):
        tiny_trajectory("gaze", has_linear_path=True)
    with pytest.raises(ValueError, match="mount_noise_m turns motions"):
        tiny_trajectory("camera", mount_noise_m=0.1)


def test_the_pretrained_tokenizer_of_real_gaze_loads_and_says_whose_data_it_saw():
    tokenizer = load_tokenizer(Path(__file__).resolve().parents[2] / "checkpoints" / "real_tracks" / "tok_gaze")
    assert tokenizer.spec.quantity == "gaze" and tokenizer.spec.num_tokens == 30
    assert "MIT" in tokenizer.card["licence"] and tokenizer.card["metrics"]["gaze_error"] < 0.02


def test_the_pretrained_tokenizer_of_real_motion_holds_motion_it_has_not_seen():
    tokenizer = load_tokenizer(Path(__file__).resolve().parents[2] / "checkpoints" / "real_tracks" / "tok_cam")
    assert tokenizer.spec.num_tokens == 30 and tokenizer.spec.vocab_size == 256
    assert "CC BY 4.0" in tokenizer.card["licence"]
    reader = open_reader(RandomMotionSource(kind="random_motion", num_recordings=24, duration_s=4.0, seed=77))
    config = ClipConfig(height=8, width=8)
    clips = [clip for index in range(24) for clip in cut_clips(reader.read(index), config)]
    errors = tokenizer.network.clip_errors(clips, tokenizer.network.encode_clips(clips))
    assert np.median([found["ate_m"] for found in errors]) < 0.04
    assert np.median([found["rpe_deg"] for found in errors]) < 0.35
