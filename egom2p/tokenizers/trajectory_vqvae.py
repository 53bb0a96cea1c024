"""Trajectory VQ-VAE: a track (gaze, camera, anything sampled) to a short row of codes and back.

B clips, S samples, C channels, L tokens, Z latent width, D width.

Published design: strided convolution, transformer, cosine codebook with moving averages, mirrored decoder. Sizes,
stride and codes are a config, so that the same class is 180 M parameters at full size and a few hundred thousand in
a run that one CPU core trains in seconds.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.config import strict
from egom2p.contracts import AlignedClip, LossOutput, ModalitySpec, TokenGrid, check_shape
from egom2p.tokenizers.protocol import TokenizerBatch
from egom2p.tokenizers.reconstruction_summary import code_usage, mean_errors
from egom2p.tokenizers.track_representations import TrackRepresentation, camera_clip_errors, gaze_clip_errors
from egom2p.tokenizers.trajectory_network import TrackDecoder, TrackEncoder, TrackNetwork

_CHANNELS = {"gaze": 2, "camera": 9}
# A channel that hardly moves in the training data is not blown up to unit variance.
_SMALLEST_STD = 0.02


@strict
class TrajectoryVqVaeConfig:
    """One track of fixed length; defaults are the published sizes."""

    architecture: Literal["trajectory_vqvae"] = "trajectory_vqvae"
    modality: str  # name of the modality it makes, e.g. tok_gaze
    quantity: Literal["gaze", "camera", "generic"]
    folder: str
    stream: str | None = None  # stream it reads; None: named like the quantity
    num_samples: int = 60
    rate_hz: float = 30.0
    num_channels: int | None = None  # only for generic tracks
    samples_per_token: int = 2
    dim: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    has_local_encoder: bool = False  # True: a code describes its own samples only, the same way at every place
    latent_dim: int = 32
    num_codes: int = 256
    ema_decay: float = 0.99
    dead_code_threshold: float = 2.0  # codes with fewer (averaged) uses per step are replaced; 0 keeps all
    kmeans_init: bool = False
    reconstruction_weight: float = 1.0  # published gaze: 2, its mean runs over samples instead of values
    motion_weight: float = 0.0  # of the squared error of the motion between neighbouring samples
    commitment_weight: float = 1.0
    reconstructs_validity: bool = True  # published gaze tokenizer: False, decoded samples are all valid
    validity_weight: float = 0.1
    fill: Literal["zero", "interpolate"] = "interpolate"  # published: zero
    mean: tuple[float, ...] | None = None  # normalisation; None: fitted from training data
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.quantity == "generic") != (self.num_channels is not None):
            raise ValueError(f"num_channels is for generic tracks only; quantity is {self.quantity!r}")
        if self.quantity == "generic" and self.stream is None:
            raise ValueError("a generic track needs the name of its stream")
        if self.num_samples % self.samples_per_token:
            raise ValueError(
                f"num_samples {self.num_samples} must be a multiple of samples_per_token {self.samples_per_token}"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} needs {self.channels} numbers, got {len(values)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither (then they are fitted)")

    @property
    def channels(self) -> int:
        return _CHANNELS.get(self.quantity, self.num_channels or 0)

    @property
    def num_tokens(self) -> int:
        return self.num_samples // self.samples_per_token


class TrajectoryVqVae(nn.Module):
    """Samples -> codes -> samples."""

    def __init__(self, config: TrajectoryVqVaeConfig) -> None:
        # Imported here: it brings torch's compiler along, which takes seconds, also for those who only ask for help.
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.config = config
        self.stream = config.stream or config.quantity
        self.representation = TrackRepresentation(
            quantity=config.quantity,
            stream=self.stream,
            num_samples=config.num_samples,
            num_channels=config.channels,
            fill=config.fill,
        )
        self.term_names = ("reconstruction", "commitment") + (("validity",) if config.reconstructs_validity else ())
        weights = (config.reconstruction_weight, config.commitment_weight, config.validity_weight)
        self.loss_weights = weights[: len(self.term_names)]
        size = TrackNetwork(
            num_channels=config.channels + config.reconstructs_validity,
            num_tokens=config.num_tokens,
            samples_per_token=config.samples_per_token,
            dim=config.dim,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
        )
        self.encoder = TrackEncoder(size, depth=config.encoder_depth, is_local=config.has_local_encoder)
        self.decoder = TrackDecoder(size, depth=config.decoder_depth)
        self.quant_proj = nn.Linear(config.dim, config.latent_dim)
        self.post_quant_proj = nn.Linear(config.latent_dim, config.dim)
        self.quantizer = VectorQuantize(
            dim=config.latent_dim,
            codebook_size=config.num_codes,
            decay=config.ema_decay,
            use_cosine_sim=True,
            threshold_ema_dead_code=config.dead_code_threshold,
            kmeans_init=config.kmeans_init,
            commitment_weight=0.0,
            rotation_trick=False,
        )
        # Published codebooks hold rows that are not of unit length; the row decides by its direction and is decoded
        # with its length.
        self.register_buffer("code_scale", torch.ones(config.num_codes))
        self.register_buffer("mean", torch.tensor(config.mean or [0.0] * config.channels))
        self.register_buffer("std", torch.tensor(config.std or [1.0] * config.channels))

    @property
    def spec(self) -> ModalitySpec:
        config = self.config
        return ModalitySpec(
            name=config.modality,
            kind="track",
            quantity=config.quantity,
            grid=TokenGrid((config.num_tokens,)),
            vocab_size=config.num_codes,
            folder=config.folder,
            rate_hz=config.rate_hz,
            conventions=self.representation.conventions,
        )

    # Network

    def latents(self, samples: Tensor, is_valid: Tensor) -> Tensor:
        """Normalised samples (B, S, C) and validity (B, S) -> latents before lookup (B, L, Z)."""
        inputs = samples * is_valid[..., None] if self.config.fill == "zero" else samples
        if self.config.reconstructs_validity:
            inputs = torch.cat([inputs, is_valid[..., None].to(inputs)], dim=-1)
        return self.quant_proj(self.encoder(inputs))

    def codes(self, ids: Tensor) -> Tensor:
        """Ids (B, L) -> code vectors (B, L, Z)."""
        return self.quantizer.get_codes_from_indices(ids) * self.code_scale[ids][..., None]

    def restored(self, codes: Tensor) -> Tensor:
        """Code vectors (B, L, Z) -> normalised samples (B, S, C), and validity logits as a last channel if any."""
        return self.decoder(self.post_quant_proj(codes))

    def forward(self, batch: TokenizerBatch) -> LossOutput:
        return self.training_terms(batch)

    # Training

    def fit_normalisation(self, clips: Sequence[AlignedClip]) -> None:
        """Mean and standard deviation of each channel over valid samples, unless the config fixes them."""
        if self.config.mean is not None:
            return
        channels = [self.representation.channels(clip) for clip in clips]
        valid_NC = np.concatenate([values_SC[is_valid_S] for values_SC, is_valid_S in channels]).astype(np.float64)
        if not len(valid_NC):
            raise ValueError(f"none of {len(clips)} clips has a valid sample of {self.stream}")
        self.mean.copy_(torch.from_numpy(valid_NC.mean(axis=0)))
        self.std.copy_(torch.from_numpy(np.maximum(valid_NC.std(axis=0), _SMALLEST_STD)))

    def batch_from_clips(self, clips: Sequence[AlignedClip], rng: np.random.Generator | None) -> TokenizerBatch:
        """Samples in their own units and validity; nothing here is random."""
        pairs = [self.representation.channels(clip) for clip in clips]
        is_valid_BS = torch.from_numpy(np.stack([is_valid for _, is_valid in pairs]))
        counts = (
            int(is_valid_BS.sum()) * self.config.channels,
            len(clips) * self.config.num_tokens * self.config.latent_dim,
            is_valid_BS.numel(),
        )
        samples_BSC = torch.from_numpy(np.stack([values for values, _ in pairs]))
        tensors = {"samples": samples_BSC, "is_valid": is_valid_BS}
        return TokenizerBatch(tensors, counts[: len(self.term_names)], len(clips))

    def training_terms(self, batch: TokenizerBatch) -> LossOutput:
        """Squared error of valid samples (normalised), squared distance to the code, cross entropy of validity.

        With `motion_weight` the first term also holds the squared error of the motion from sample to sample, without
        which a low position error may hide a trembling path.

        In training mode the codebook's moving averages take a step.
        """
        samples, is_valid = batch.tensors["samples"], batch.tensors["is_valid"]
        normalised = (samples - self.mean) / self.std
        latents = self.latents(normalised, is_valid)
        _, ids, _ = self.quantizer(latents)
        codes = self.codes(ids).detach()
        restored = self.restored(latents + (codes - latents).detach())
        error_BSC = (restored[..., : self.config.channels] - normalised) * is_valid[..., None]
        reconstruction = error_BSC.square().sum()
        if self.config.motion_weight > 0:
            is_pair_BS = is_valid[:, 1:] & is_valid[:, :-1]
            motion = (error_BSC.diff(dim=1) * is_pair_BS[..., None]).square().sum()
            reconstruction = reconstruction + self.config.motion_weight * motion
        sums = [reconstruction, (latents - codes).square().sum()]
        if self.config.reconstructs_validity:
            target = is_valid.to(restored)
            sums.append(F.binary_cross_entropy_with_logits(restored[..., -1], target, reduction="sum"))
        return LossOutput(sums=torch.stack(sums).float(), counts=batch.counts, names=self.term_names)

    def after_step(self) -> None:
        """Nothing: moving averages and the revival of dead codes happen in the forward pass of training."""

    # Ids

    @torch.no_grad()
    def encode_clips(self, clips: Sequence[AlignedClip]) -> np.ndarray:
        """Ids (B, L) int32."""
        tensors = self.batch_from_clips(clips, None).to(self.mean.device).tensors
        normalised = (tensors["samples"] - self.mean) / self.std
        return self.lookup(self.latents(normalised, tensors["is_valid"])).to("cpu", torch.int32).numpy()

    def lookup(self, latents: Tensor) -> Tensor:
        """Ids (B, L) of the codes nearest in direction to latents (B, L, Z); the codebook stays as it is."""
        return (F.normalize(latents, dim=-1) @ self.quantizer.codebook.T).argmax(dim=-1)

    @torch.no_grad()
    def decode_ids(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values in the stream's unit (gaze (B, S, 2), camera (B, S, 4, 4)) and validity (B, S)."""
        check_shape("ids", ids, "b l", l=self.config.num_tokens)
        restored = self.restored(self.codes(torch.as_tensor(ids, dtype=torch.int64, device=self.mean.device)))
        channels_BSC = restored[..., : self.config.channels] * self.std + self.mean
        values = self.representation.values(channels_BSC.double().cpu().numpy())
        if not self.config.reconstructs_validity:
            return values, np.ones(values.shape[:2], dtype=bool)
        return values, (restored[..., -1] > 0).cpu().numpy()

    # Evaluation

    def evaluate(self, clips: Sequence[AlignedClip], *, batch_size: int = 256) -> dict[str, float]:
        """Mean encode-decode errors over clips in physical units, and the use of the codes."""
        was_training = self.training
        self.eval()
        ids, per_clip = [], []
        for first in range(0, len(clips), batch_size):
            group = clips[first : first + batch_size]
            ids.append(self.encode_clips(group))
            for clip, values, is_valid in zip(group, *self.decode_ids(ids[-1]), strict=True):
                per_clip.append(self._errors(clip, values, is_valid))
        self.train(was_training)
        return mean_errors(per_clip) | code_usage(np.concatenate(ids), self.config.num_codes)

    def _errors(self, clip: AlignedClip, values: np.ndarray, is_valid: np.ndarray) -> dict[str, float]:
        if self.config.quantity == "gaze":
            return gaze_clip_errors(values, is_valid, clip, stream=self.stream)
        stream = clip.streams[self.stream]
        if self.config.quantity == "camera":
            return camera_clip_errors(values[stream.is_valid], stream.values[stream.is_valid])
        difference = (values - stream.values)[stream.is_valid]
        return {"rms_error": float(np.sqrt(np.square(difference).mean())) if len(difference) else np.nan}
