"""Networks small enough to train in a test."""

import torch
from moving_clips import SIZE

from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig
from egom2p.tokenizers.video.video_codec import VideoCodec, VideoCodecConfig

TINY_CODEC = {
    "num_frames": 16, "height": SIZE, "width": SIZE, "rate_hz": 8.0, "levels": (8, 4, 4), "channels": 8,
    "channel_multipliers": (1, 2), "num_blocks": 1, "num_decoder_blocks": 1, "num_middle_blocks": 1,
    "attention": False, "latent_channels": 8,
}  # fmt: skip


TINY_TRACK = {
    "samples_per_token": 4, "dim": 32, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "latent_dim": 8,
    "num_codes": 32,
}  # fmt: skip


def tiny_codec(quantity="rgb", **changes) -> VideoCodec:
    torch.manual_seed(0)
    channels = 3 if quantity == "rgb" else 1
    values = {"modality": f"tok_{quantity}", "quantity": quantity, "folder": quantity, "video_channels": channels}
    return VideoCodec(VideoCodecConfig(**(values | TINY_CODEC | changes)))


def tiny_trajectory(quantity="gaze", **changes) -> TrajectoryVqVae:
    torch.manual_seed(0)
    values = {"modality": f"tok_{quantity}", "quantity": quantity, "folder": quantity}
    return TrajectoryVqVae(TrajectoryVqVaeConfig(**(values | TINY_TRACK | changes)))
