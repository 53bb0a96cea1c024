"""Signals to ids and back."""

from egom2p.tokenizers.patches import PatchesConfig, PatchTokenizer
from egom2p.tokenizers.pretrained import (
    PretrainedTokenizer,
    TokenizerNetworkConfig,
    build_network,
    load_tokenizer,
    save_tokenizer,
)
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer
from egom2p.tokenizers.text import TextTokenizer, WordPieceConfig
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig
from egom2p.tokenizers.video.video_codec import VideoCodec, VideoCodecConfig

__all__ = [
    "PatchTokenizer",
    "PatchesConfig",
    "PretrainedTokenizer",
    "TextTokenizer",
    "TokenizerBatch",
    "TokenizerNetworkConfig",
    "TrainableTokenizer",
    "TrajectoryVqVae",
    "TrajectoryVqVaeConfig",
    "VideoCodec",
    "VideoCodecConfig",
    "WordPieceConfig",
    "build_network",
    "load_tokenizer",
    "save_tokenizer",
]
