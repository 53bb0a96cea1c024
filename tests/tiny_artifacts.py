"""The smallest whole thing: invented clips on disk, untrained tokenizers, their tokens, and an untrained model."""

from pathlib import Path

import numpy as np
import torch

from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Stream
from egom2p.data.clips.clip_store import write_clips
from egom2p.data.shards.shard_set import ShardWriter, encode_array
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.weights import save_model
from egom2p.tokenizers.pretrained import build_network, load_tokenizer, save_tokenizer
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVaeConfig
from egom2p.tokenizers.video.video_codec import VideoCodecConfig

NUM_FRAMES, NUM_SAMPLES, SIZE = 16, 60, 16
_VIDEO = {
    "num_frames": NUM_FRAMES,
    "height": SIZE,
    "width": SIZE,
    "rate_hz": 8.0,
    "channels": 8,
    "channel_multipliers": (1, 1),
    "num_blocks": 1,
    "attention": False,
    "latent_channels": 4,
    "spatial_compression": 8,
}
_TRACK = {
    "dim": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "latent_dim": 4,
    "num_samples": NUM_SAMPLES,
}
TOKENIZERS = {
    "rgb": VideoCodecConfig(modality="tok_rgb", quantity="rgb", folder="rgb", levels=(5, 5, 3), **_VIDEO),
    "depth": VideoCodecConfig(modality="tok_depth", quantity="depth", folder="depth", levels=(5, 4), **_VIDEO),
    "gaze": TrajectoryVqVaeConfig(modality="tok_gaze", quantity="gaze", folder="gaze", num_codes=8, **_TRACK),
    "cam": TrajectoryVqVaeConfig(modality="tok_cam", quantity="camera", folder="cam", num_codes=12, **_TRACK),
}


def invented_clip(number: int) -> AlignedClip:
    """A clip whose streams are smooth, valid for the most part, and different for every number."""
    rng = np.random.default_rng(number)
    frame_times_s, sample_times_s = np.arange(NUM_FRAMES) / 8, np.arange(NUM_SAMPLES) / 30
    ramp = np.linspace(0, 1, SIZE)
    phase = 4 * ramp[None, None, :] + 3 * ramp[None, :, None] + frame_times_s[:, None, None]
    wave = 0.5 + 0.5 * np.sin(phase + rng.uniform(0, 6))
    depth_m = (1.5 + 2 * wave * ramp[None, :, None] + rng.uniform(0, 1)).astype(np.float32)
    rgb = np.stack([wave * 255, 255 - 40 * depth_m, np.broadcast_to(ramp * 255, wave.shape)], axis=-1)
    gaze = 0.5 + 0.3 * np.stack([np.sin(sample_times_s + number), np.cos(2 * sample_times_s)], axis=1)
    poses = np.tile(np.eye(4), (NUM_SAMPLES, 1, 1))
    turn = sample_times_s * rng.uniform(-0.5, 0.5)
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(turn)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(turn), -np.sin(turn)
    poses[:, :3, 3] = sample_times_s[:, None] * rng.normal(0, 0.3, 3)
    is_seen = np.arange(NUM_SAMPLES) % 11 != 3
    all_frames, all_samples = np.ones(NUM_FRAMES, bool), np.ones(NUM_SAMPLES, bool)
    streams = {
        "rgb": Stream(np.clip(rgb, 0, 255).astype(np.uint8), all_frames, frame_times_s, "uint8"),
        "depth": Stream(depth_m, all_frames, frame_times_s, "m"),
        "gaze": Stream(gaze.astype(np.float32), is_seen, sample_times_s, "image"),
        "gaze_law": Stream((gaze + 0.02).astype(np.float32), all_samples, sample_times_s, "image"),
        "camera": Stream(poses, all_samples, sample_times_s, "world_from_cam"),
    }
    camera = Intrinsics(SIZE, SIZE, SIZE * 0.6, SIZE * 0.6, (SIZE - 1) / 2, (SIZE - 1) / 2)
    return AlignedClip(f"clip_{number:03d}", streams, camera, Provenance("tiny", f"recording{number}"))


def make_tiny_world(root: Path, *, num_train: int = 5, num_val: int = 4) -> Path:
    """Below `root`: clips/{train,val}, tokenizers/*, tokens/train, model. Same files every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        train = [invented_clip(number) for number in range(num_train)]
        write_clips(root / "clips" / "train", "tiny", train)
        write_clips(root / "clips" / "val", "tiny", [invented_clip(100 + number) for number in range(num_val)])
        for folder, config in TOKENIZERS.items():
            network = build_network(config)
            network.fit_normalisation(train)
            save_tokenizer(network, root / "tokenizers" / folder)
        tokenizers = {folder: load_tokenizer(root / "tokenizers" / folder) for folder in TOKENIZERS}
        _write_tokens(root / "tokens" / "train", train, tokenizers)
        specs = tuple(sorted((item.spec for item in tokenizers.values()), key=lambda spec: spec.name))
        model = EgoM2P(ModelConfig(dim=24, encoder_depth=1, decoder_depth=1, num_heads=2), specs)
        positions = {item.spec.name: f"../tokenizers/{folder}" for folder, item in tokenizers.items()}
        save_model(model, root / "model", positions)
    return root


def _write_tokens(root: Path, clips: list[AlignedClip], tokenizers: dict) -> None:
    with ShardWriter(root, "tiny", dict.fromkeys(tokenizers, "npy")) as writer:
        for clip in clips:
            writer.write(clip.key, {f: encode_array(item.encode([clip])[0]) for f, item in tokenizers.items()})
        for folder, item in tokenizers.items():
            writer.card(folder, item.spec.to_dict())
