"""Causal video codec with finite scalar codes: RGB or depth video to a grid of ids and back.

B clips, C channels, F frames, H, W pixels, T, h, w token grid, L = T * h * w tokens.

Design: Cosmos DV (NVIDIA, 2024): Haar patches, a causal factorised convolutional network, FSQ. The published size is
a config; a few channels and attention switched off give a codec that one CPU core trains in minutes.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from egom2p.config import Count, Positive, strict
from egom2p.contracts import AlignedClip, LossOutput, ModalitySpec, TokenGrid, check_shape
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer, check_rate
from egom2p.tokenizers.video.causal_video_network import (
    CausalVideoDecoder,
    CausalVideoEncoder,
    CausalVideoNetwork,
    LinearCodec,
    pointwise,
    start_as_zero,
)
from egom2p.tokenizers.video.video_representations import (
    DepthKind,
    DepthRepresentation,
    VideoRepresentation,
    crop_padding,
    depth_frames,
    pad_video,
    padded_frames,
    padded_pixels,
    rgb_frames,
)

# Enough blocks for a stable covariance, and little memory.
_LINEAR_CLIPS = 64


@strict
class VideoCodecConfig:
    """A codec for clips of one size. Compression is patch size times the halvings inside the network."""

    architecture: Literal["video_codec"] = "video_codec"
    modality: str  # name of the modality it makes, e.g. tok_depth
    quantity: Literal["rgb", "depth"]
    folder: str
    num_frames: Count  # of a clip
    height: Count
    width: Count
    rate_hz: Positive
    levels: tuple[Count, ...] = (8, 8, 8, 5, 5, 5)  # FSQ levels; the vocabulary is their product
    temporal_compression: Count = 4  # frames of one token
    spatial_compression: Count = 8  # pixels along each side of one token
    patch_size: Count = 4  # pixels along each side that enter the network as one
    video_channels: Count = 3  # depth as published is copied onto three
    channels: Count = 128  # of the first level
    channel_multipliers: tuple[Count, ...] = (2, 4, 4)  # channels of every level, in channels
    num_blocks: Count = 2  # residual blocks per level of the encoder
    num_decoder_blocks: Count = 3  # residual blocks per level of the decoder
    num_middle_blocks: Count = 2  # residual blocks between encoder levels and codes
    attention: bool = True  # after the first middle block
    latent_channels: Count = 16  # before they become codes
    frame_multiple: Count = 4  # frames are padded to 1 + n * frame_multiple
    pixel_multiple: Count = 16  # height and width are padded to a multiple of this
    depth_representation: DepthKind = "log_metric"  # published: inverse_per_sequence
    depth_range_m: tuple[Positive, Positive] = (0.1, 20.0)  # log-metric depth: these become -1 and 1
    loss: Literal["l1", "mse"] = "l1"  # of the reconstruction
    has_linear_path: bool = False  # beside the network, started as the best linear codec of training clips
    window_frames: Count | None = None  # frames of a random training window; None: whole clips
    windows_per_clip: Count = 1  # drawn from a clip once it is read

    def __post_init__(self) -> None:
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers must name at least one level, got none")
        halvings = len(self.channel_multipliers) - 1
        for name, compression in (("temporal", self.temporal_compression), ("spatial", self.spatial_compression)):
            if compression not in {self.patch_size << power for power in range(halvings + 1)}:
                raise ValueError(
                    f"{name}_compression must be patch_size {self.patch_size} times a power of two of at most "
                    f"{2**halvings} ({halvings} halvings between {halvings + 1} levels), got {compression}"
                )
        if self.frame_multiple % self.temporal_compression or self.pixel_multiple % self.spatial_compression:
            raise ValueError(
                f"frame_multiple {self.frame_multiple} and pixel_multiple {self.pixel_multiple} must be multiples of "
                f"the compressions {self.temporal_compression} and {self.spatial_compression}"
            )
        if min(self.levels, default=0) < 3:
            raise ValueError(f"levels must be at least 3 each, got {self.levels}")
        if self.window_frames is not None and self.window_frames > self.num_frames:
            raise ValueError(f"window_frames must lie in 1 ... {self.num_frames}, got {self.window_frames}")
        if self.quantity == "rgb" and self.video_channels != 3:
            raise ValueError(f"rgb has 3 video_channels, got {self.video_channels}")
        if not 0 < self.depth_range_m[0] < self.depth_range_m[1]:
            raise ValueError(f"depth_range_m must be 0 < nearest < farthest, got {self.depth_range_m}")

    @property
    def token_grid(self) -> TokenGrid:
        """The first frame alone, then one step per temporal_compression frames."""
        steps = (padded_frames(self.num_frames, self.frame_multiple) - 1) // self.temporal_compression + 1
        height, width = (padded_pixels(size, self.pixel_multiple) for size in (self.height, self.width))
        return TokenGrid((steps, height // self.spatial_compression, width // self.spatial_compression))


class VideoCodec(TrainableTokenizer):
    """Frames -> ids (T, h, w) -> frames; a change in late frames leaves earlier ids as they are."""

    term_names = ("reconstruction",)
    loss_weights = (1.0,)

    def __init__(self, config: VideoCodecConfig) -> None:
        # Imported here: it brings torch's compiler along, which takes seconds, also for those who only ask for help.
        from vector_quantize_pytorch import FSQ

        super().__init__()
        self.config = config
        self.stream = config.quantity
        network = CausalVideoNetwork(
            video_channels=config.video_channels,
            patch_size=config.patch_size,
            channels=config.channels,
            channel_multipliers=config.channel_multipliers,
            num_blocks=config.num_blocks,
            num_decoder_blocks=config.num_decoder_blocks,
            num_middle_blocks=config.num_middle_blocks,
            attention=config.attention,
            latent_channels=config.latent_channels,
            num_space_halvings=_num_halvings(config.spatial_compression, config.patch_size),
            num_time_halvings=_num_halvings(config.temporal_compression, config.patch_size),
        )
        self.encoder = CausalVideoEncoder(network)
        self.decoder = CausalVideoDecoder(network)
        self.quant_conv = pointwise(config.latent_channels, len(config.levels))
        self.post_quant_conv = pointwise(len(config.levels), config.latent_channels)
        self.quantizer = FSQ(list(config.levels))
        self.linear = None
        if config.has_linear_path:
            block = (config.temporal_compression, config.spatial_compression)
            self.linear = LinearCodec(video_channels=config.video_channels, block=block, num_codes=len(config.levels))
            start_as_zero(self.quant_conv.conv3d)
            start_as_zero(self.decoder.conv_out[1].conv3d)
        self.representation = VideoRepresentation(
            quantity=config.quantity,
            channels=config.video_channels,
            depth=DepthRepresentation(config.depth_representation, config.depth_range_m),
        )

    @property
    def spec(self) -> ModalitySpec:
        config = self.config
        return ModalitySpec(
            name=config.modality,
            kind="grid",
            quantity=config.quantity,
            grid=config.token_grid,
            vocab_size=prod(config.levels),
            folder=config.folder,
            rate_hz=config.rate_hz,
            conventions=self.representation.conventions,
        )

    # Network

    def encode_video(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video (B, C, F, H, W) in [-1, 1] -> codes (B, levels, T, h, w) with gradient, ids (B, T, h, w) int32."""
        return self.quantizer(self.pre_quantised(video))

    def pre_quantised(self, video: Tensor) -> Tensor:
        """What FSQ bounds and rounds, (B, levels, T, h, w)."""
        latents = self.quant_conv(self.encoder(video))
        return latents if self.linear is None else latents + self.linear.encode(video)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, levels, T, h, w) -> video (B, C, F, H, W), not clamped."""
        video = self.decoder(self.post_quant_conv(codes))
        return video if self.linear is None else video + self.linear.decode(codes)

    # Training

    def fit_normalisation(self, clips: Sequence[AlignedClip]) -> None:
        """Start the linear path from training clips; the range of the representation is part of the config."""
        if self.linear is None:
            return
        video = self.batch_from_clips(clips[:_LINEAR_CLIPS], None).tensors["video"].to(self._device)
        padded = pad_video(video, self.config.frame_multiple, self.config.pixel_multiple)
        self.linear.fit(padded, lambda latents: self.quantizer(latents)[0])

    def batch_from_clips(self, clips: Sequence[AlignedClip], rng: np.random.Generator | None) -> TokenizerBatch:
        """Video in [-1, 1] and where it is known. With a generator windows are drawn, without whole clips are given."""
        check_rate(clips, self.stream, self.config.rate_hz)
        frames = [self._frames(clip) for clip in clips]
        if rng is not None and self.config.window_frames is not None:
            frames = [window for clip in frames for window in self._windows(clip, rng)]
        video_BCFHW = torch.stack([self.representation.to_video(window) for window in frames])
        is_known_B1FHW = torch.stack([self.representation.is_known(window) for window in frames])
        count = int(is_known_B1FHW.sum()) * self.config.video_channels
        return TokenizerBatch({"video": video_BCFHW, "is_known": is_known_B1FHW}, (count,), len(clips))

    def training_terms(self, batch: TokenizerBatch) -> LossOutput:
        """Absolute or squared error over known pixels."""
        error = self.reconstruction_error(self.reconstructed(batch.tensors["video"]), batch)
        return LossOutput(sums=error[None].float(), counts=batch.counts, names=self.term_names)

    def reconstructed(self, video: Tensor) -> Tensor:
        """Video (B, C, F, H, W) of any size -> what its codes restore, with gradient, not clamped."""
        padded = pad_video(video, self.config.frame_multiple, self.config.pixel_multiple)
        codes, _ = self.encode_video(padded)
        return crop_padding(self.decode_codes(codes), tuple(video.shape[2:]))

    def reconstruction_error(self, restored: Tensor, batch: TokenizerBatch) -> Tensor:
        """Sum over the known values of a batch."""
        difference = (restored - batch.tensors["video"]) * batch.tensors["is_known"]
        return (difference.abs() if self.config.loss == "l1" else difference.square()).sum()

    def _windows(self, frames: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        length = self.config.window_frames
        starts = rng.integers(0, len(frames) - length + 1, size=self.config.windows_per_clip)
        return [frames[start : start + length] for start in starts]

    # Ids

    @torch.no_grad()
    def encode_batch(self, batch: TokenizerBatch) -> Tensor:
        """Ids (B, L) of whole clips that `batch_from_clips` prepared, on the batch's device."""
        padded = pad_video(batch.tensors["video"], self.config.frame_multiple, self.config.pixel_multiple)
        return rearrange(self.encode_video(padded)[1], "b t h w -> b (t h w)")

    @torch.no_grad()
    def decode_ids(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RGB (B, F, H, W, 3) uint8 or depth (B, F, H, W) float32 metres, and validity (B, F)."""
        steps, height, width = self.spec.grid.shape
        check_shape("ids", ids, "b l", l=self.spec.num_tokens)
        ids_BThw = rearrange(torch.as_tensor(ids, dtype=torch.int64), "b (t h w) -> b t h w", t=steps, h=height)
        assert ids_BThw.shape[3] == width
        codes = self.quantizer.indices_to_codes(ids_BThw.to(self._device))
        size = (self.config.num_frames, self.config.height, self.config.width)
        video = crop_padding(self.decode_codes(codes), size)
        values = self.representation.from_video(video.float().cpu())
        return values, np.ones(values.shape[:2], dtype=bool)

    def _frames(self, clip: AlignedClip) -> np.ndarray:
        config = self.config
        read = rgb_frames if config.quantity == "rgb" else depth_frames
        return read(clip, num_frames=config.num_frames, height=config.height, width=config.width)

    @property
    def _device(self) -> torch.device:
        return self.quant_conv.conv3d.weight.device

    # Evaluation

    def clip_errors(self, clips: Sequence[AlignedClip], ids: np.ndarray) -> list[dict[str, float]]:
        """Of each clip: rgb `psnr_db`; depth `abs_rel`, `delta1`, `rmse_m`, and `representation_...`, those of the
        representation alone.
        """
        wanted = [self._frames(clip) for clip in clips]
        found = self.decode_ids(ids)[0]
        return [
            self.representation.errors(*pair) | self.representation.own_errors(pair[1])
            for pair in zip(found, wanted, strict=True)
        ]


def _num_halvings(compression: int, patch_size: int) -> int:
    return (compression // patch_size).bit_length() - 1
