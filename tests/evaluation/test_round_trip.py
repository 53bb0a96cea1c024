"""The round trip of track tokenizers: trivial rows, classes of speed, and fewer codes lose more."""

import csv

import numpy as np
import pytest

from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.data.clips.clip_store import write_clips
from egom2p.evaluation.round_trip import RoundTripConfig, going_on, run_round_trip
from egom2p.geometry import canonicalise, matrix_from_quaternion, poses_from_parts
from egom2p.tokenizers import save_tokenizer
from egom2p.tokenizers.trajectory.track_quantizers import ResidualVqConfig
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig


def screw(speed_m_s, turn_deg_s, count=60):
    """A body that goes on as it does."""
    seconds = np.arange(count) / 30
    half = np.radians(turn_deg_s * seconds) / 2
    zeros = np.zeros(count)
    rotations = matrix_from_quaternion(np.stack([zeros, np.sin(half), zeros, np.cos(half)], axis=1))
    return poses_from_parts(rotations, np.stack([zeros, seconds * speed_m_s, zeros], axis=1))


def clip(number, poses):
    stream = Stream(poses, np.ones(len(poses), bool), np.arange(len(poses)) / 30, "world_from_cam")
    return AlignedClip(f"clip_{number:03d}", {"camera": stream}, None, Provenance("set", f"recording_{number // 4}"))


@pytest.mark.parametrize("turn_deg_s", [0.0, 40.0])
def test_constant_velocity_goes_on_exactly(turn_deg_s):
    poses = screw(0.7, turn_deg_s)
    world = screw(3.0, 100.0)[7]
    np.testing.assert_allclose(going_on(world @ poses, 3), canonicalise(poses), atol=1e-9)


def test_tables_by_set_and_speed_and_the_curve_of_bits(tmp_path):
    rng = np.random.default_rng(0)
    clips = [
        clip(number, screw(rng.choice([0.05, 1.0]) * rng.uniform(0.8, 1.2), rng.uniform(-60, 60)))
        for number in range(160)
    ]
    write_clips(tmp_path / "clips", "screws", clips[:80])
    config = TrajectoryVqVaeConfig(
        modality="tok_cam", quantity="camera", folder="cam", samples_per_token=60, dim=16, encoder_depth=1,
        decoder_depth=1, num_heads=2, latent_dim=12, num_codes=16, has_linear_path=True, camera_channels="motion",
        path_weight=0.02, reconstructs_validity=False, quantizer=ResidualVqConfig(kind="residual_vq", num_streams=4),
    )  # fmt: skip
    network = TrajectoryVqVae(config)
    network.fit_normalisation(clips[80:])
    save_tokenizer(network, tmp_path / "tokenizer")
    wanted = RoundTripConfig(
        clips=str(tmp_path / "clips"), sets=("screws",), tokenizers={"linear": str(tmp_path / "tokenizer")},
        output=str(tmp_path / "out"), streams=(1, 2), speeds_m_s=(0.4,),
    )  # fmt: skip
    folder = run_round_trip(wanted)
    with open(folder / "per_clip.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"screws", "speed below 0.4 m/s", "speed from 0.4 m/s"}

    def median(method, metric="ate_m", task="screws"):
        return np.median(
            [
                float(row["value"])
                for row in rows
                if (row["task"], row["method"], row["metric"]) == (task, method, metric)
            ]
        )

    assert median("constant velocity") < 1e-6 < median("linear, 16 bits")
    assert median("linear, 16 bits") < median("linear, 8 bits") < median("linear, 4 bits")
    assert (
        median("standing still", task="speed below 0.4 m/s")
        < 0.15
        < median("standing still", task="speed from 0.4 m/s")
    )
    assert "linear, 16 bits" in (folder / "results.md").read_text()
