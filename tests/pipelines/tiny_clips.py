"""Tiny clips of four streams, and tokenizers for three of them."""

from pathlib import Path

import numpy as np
import torch

from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.data.clips.clip_store import write_clips
from egom2p.pipelines.tokenization import TokenizeConfig
from egom2p.tokenizers import TrajectoryVqVaeConfig, VideoCodecConfig, build_network, save_tokenizer

TRACK = {"num_samples": 12, "dim": 8, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "num_codes": 13}
CODEC = {
    "num_frames": 5, "height": 16, "width": 16, "rate_hz": 8.0, "levels": (3, 5), "spatial_compression": 4,
    "channels": 8, "channel_multipliers": (1,), "num_blocks": 1, "attention": False, "latent_channels": 4,
}  # fmt: skip
FOLDERS = ("rgb", "gaze", "cam")


def tiny_clip(key, rng, streams=("rgb", "gaze", "camera", "heart")):
    frames_s, samples_s = np.arange(5) / 8, np.arange(12) / 30
    poses = np.tile(np.eye(4), (12, 1, 1))
    poses[:, :3, 3] = rng.normal(size=3) * samples_s[:, None]
    made = {
        "rgb": Stream(rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8), np.ones(5, bool), frames_s, "uint8"),
        "gaze": Stream(rng.uniform(size=(12, 2)).astype(np.float32), np.ones(12, bool), samples_s, "image"),
        "camera": Stream(poses, np.ones(12, bool), samples_s, "world_from_cam"),
        "heart": Stream(rng.normal(size=(12, 1)).astype(np.float32), np.ones(12, bool), samples_s, "bpm"),
    }
    return AlignedClip(key, {name: made[name] for name in streams}, None, Provenance("d", "r"))


def write_tokenizers(root, clips) -> None:
    torch.manual_seed(0)
    networks = {
        "rgb": VideoCodecConfig(modality="tok_rgb", quantity="rgb", folder="rgb", **CODEC),
        "gaze": TrajectoryVqVaeConfig(modality="tok_gaze", quantity="gaze", folder="gaze", **TRACK),
        "cam": TrajectoryVqVaeConfig(modality="tok_cam", quantity="camera", folder="cam", **TRACK),
    }
    for name, config in networks.items():
        network = build_network(config)
        network.fit_normalisation(clips)
        save_tokenizer(network, root / name)


def tiny_config(root: Path, rng) -> TokenizeConfig:
    """Seven clips in shards of three, their tokenizers, and the config that names them."""
    clips = [tiny_clip(f"c{i}", rng) for i in range(7)]
    write_clips(root / "clips", "full", clips, clips_per_shard=3)
    write_tokenizers(root / "tokenizers", clips)
    return TokenizeConfig(
        clips=str(root / "clips"),
        tokenizers_root=str(root / "tokenizers"),
        tokenizers={"tok_rgb": "rgb", "tok_gaze": "gaze", "tok_cam": "cam"},
        output=str(root / "tokens"),
        batch_size=2,
        device="cpu",
    )
