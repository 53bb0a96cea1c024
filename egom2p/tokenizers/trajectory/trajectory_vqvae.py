"""Trajectory VQ-VAE: a track (gaze, camera, anything sampled) to a short row of codes and back.

B clips, S samples, C channels, L tokens, T time steps of the network, Q streams, Z latent width, D width.

Published design: strided convolution, transformer, cosine codebook with moving averages, mirrored decoder. Sizes,
stride and codes are a config, so that the same class is 180 M parameters at full size and a few hundred thousand in
a run that one CPU core trains in seconds. Beside the published design: other quantizers (`track_quantizers.py`, with Q
ids for each of the T time steps, L = T Q), camera motions instead of poses, code noise in training.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from egom2p.config import Count, NotNegative, Positive, Share, strict
from egom2p.contracts import QUANTITIES, AlignedClip, LossOutput, ModalitySpec, TokenGrid, check_shape
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer, check_rate
from egom2p.tokenizers.trajectory.track_quantizers import (
    ChosenCodes,
    FsqConfig,
    QuantizerConfig,
    ResidualCodes,
    ResidualVqConfig,
    VqConfig,
    build_track_quantizer,
    with_noise,
)
from egom2p.tokenizers.trajectory.track_representations import (
    CAMERA_CHANNELS,
    CameraChannels,
    Fill,
    TrackRepresentation,
    camera_clip_errors,
    gaze_clip_errors,
    remounted_motions,
)
from egom2p.tokenizers.trajectory.trajectory_network import TrackDecoder, TrackEncoder, TrackNetwork

# A channel that hardly moves in the training data is not blown up to unit variance; motions of a sample are small.
_SMALLEST_STD = {"pose": 0.02, "motion": 0.0005}
_LOGIT_OF_ONE = 4.0
# Thirty codebooks of 256 rows are 7,680 rows: of many more clips than that, or they know those clips by heart.
_NUM_FITTED = 120_000


@strict
class TrajectoryVqVaeConfig:
    """One track of fixed length; defaults are the published sizes."""

    architecture: Literal["trajectory_vqvae"] = "trajectory_vqvae"
    modality: str  # name of the modality it makes, e.g. tok_gaze
    quantity: str  # a track of `contracts.quantities`
    folder: str
    stream: str | None = None  # stream it reads; None: named like the quantity
    num_samples: Count = 60  # of a clip
    rate_hz: Positive = 30.0
    num_channels: Count | None = None  # only for generic tracks
    samples_per_token: Count = 2  # samples that one token describes
    dim: Count = 768
    encoder_depth: Count = 12
    decoder_depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: Positive = 4.0
    has_local_encoder: bool = False  # True: a code describes its own samples only, the same way at every position
    has_linear_path: bool = False  # the best linear codec of the training clips beside the network (needs one step)
    latent_dim: Count = 32  # channels of a code
    num_codes: Count = 256  # of each stream
    quantizer: QuantizerConfig = VqConfig()  # how latents become codes; `kind` says how
    # In training only: every clip's camera is turned on its body at random and moved by so much along each axis
    # (standard deviation, metres), since tracks of a few devices say little about others (camera_channels=motion).
    mount_noise_m: NotNegative | None = None
    code_noise: NotNegative = 0.0  # share of codes replaced at random before the decoder, in training only
    ema_decay: Share = 0.99  # of the moving averages of the codebook
    dead_code_threshold: NotNegative = 2.0  # codes with fewer (averaged) uses per step are replaced; 0 keeps all
    kmeans_init: bool = False  # codebook from k-means of the first batch
    reconstruction_weight: NotNegative = 1.0  # published gaze: 2, its mean runs over samples instead of values
    motion_weight: NotNegative = 0.0  # of the squared error of the motion between neighbouring samples
    camera_channels: CameraChannels = "pose"  # motion: from sample to sample, added up when decoded
    path_weight: NotNegative = (
        0.0  # of the squared error of motions added up from the first sample (camera_channels=motion)
    )
    commitment_weight: NotNegative = 1.0  # of the distance between latent and code
    reconstructs_validity: bool = True  # published gaze tokenizer: False, decoded samples are all valid
    validity_weight: NotNegative = 0.1  # of the error of whether samples are valid
    fill: Fill = "interpolate"  # published: zero
    mean: tuple[float, ...] | None = None  # normalisation; None: fitted from training data
    std: tuple[Positive, ...] | None = None  # likewise

    def __post_init__(self) -> None:
        tracks = [name for name, quantity in QUANTITIES.items() if quantity.layout == "track"]
        if self.quantity not in tracks:
            raise ValueError(f"quantity must be one of the tracks {tracks}, got {self.quantity!r}")
        if (QUANTITIES[self.quantity].sample_shape is None) != (self.num_channels is not None):
            raise ValueError(f"num_channels is for generic tracks only; quantity is {self.quantity!r}")
        if QUANTITIES[self.quantity].stream is None and self.stream is None:
            raise ValueError("a generic track needs the name of its stream")
        if self.num_samples % self.samples_per_token:
            raise ValueError(
                f"num_samples {self.num_samples} must be a multiple of samples_per_token {self.samples_per_token}"
            )
        if isinstance(self.quantizer, FsqConfig) and self.quantizer.num_codes != self.num_codes:
            raise ValueError(
                f"num_codes must be the product of the levels {list(self.quantizer.levels)}, "
                f"{self.quantizer.num_codes}, got {self.num_codes}"
            )
        if not 0 <= self.code_noise < 1:
            raise ValueError(f"code_noise must be in [0, 1), got {self.code_noise}")
        self._check_camera()
        if self.has_linear_path and (self.num_steps > 1 or not isinstance(self.quantizer, ResidualVqConfig)):
            raise ValueError(
                "has_linear_path describes whole clips by residual codes: it needs samples_per_token = num_samples "
                f"({self.num_samples}) and quantizer.kind residual_vq, got {self.samples_per_token} and "
                f"{self.quantizer.kind}"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} needs {self.channels} numbers, got {len(values)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither (then they are fitted)")

    def _check_camera(self) -> None:
        if self.camera_channels != "pose" and self.quantity != "camera":
            raise ValueError(f"camera_channels is for cameras only; quantity is {self.quantity!r}")
        if self.mount_noise_m is not None and self.camera_channels != "motion":
            raise ValueError("mount_noise_m turns motions; it needs camera_channels=motion")
        if self.path_weight and self.camera_channels != "motion":
            raise ValueError("path_weight adds motions up; it needs camera_channels=motion")

    @property
    def channels(self) -> int:
        if self.quantity == "camera":
            return CAMERA_CHANNELS[self.camera_channels]
        return self.num_channels or prod(QUANTITIES[self.quantity].sample_shape or ())

    @property
    def num_steps(self) -> int:
        """T: time steps of the network."""
        return self.num_samples // self.samples_per_token

    @property
    def num_tokens(self) -> int:
        """L: all streams of a time step, then those of the next."""
        return self.num_steps * self.quantizer.num_streams


class LinearPath(nn.Module):
    """The linear codec that loses least: principal components of whole clips, in units of the loss. I = S C inputs.

    Real motion is smooth: where a network needs an hour to find that out, one eigenvalue problem says it.
    """

    def __init__(self, num_inputs: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(num_inputs))
        self.register_buffer("to_latents", torch.zeros(num_inputs, latent_dim))
        self.register_buffer("to_inputs", torch.zeros(latent_dim, num_inputs))

    def fit(self, inputs_BSC: Tensor, weights_SS: Tensor) -> None:
        """Fit to clips; errors of a channel weigh e W e."""
        num_channels = inputs_BSC.shape[-1]
        inputs_BI = inputs_BSC.flatten(1).double().cpu()
        # W = R R': latents (x - centre) R V have squared distances in units of the loss.
        root_II = torch.kron(
            torch.linalg.cholesky(weights_SS).contiguous(), torch.eye(num_channels, dtype=torch.float64)
        )
        centre_I = inputs_BI.mean(0)
        weighted_BI = (inputs_BI - centre_I) @ root_II
        _, vectors_II = torch.linalg.eigh(weighted_BI.T @ weighted_BI)
        vectors_IZ = vectors_II.flip(1)[:, : self.to_latents.shape[1]]
        self.centre.copy_(centre_I)
        self.to_latents.copy_(root_II @ vectors_IZ)
        self.to_inputs.copy_(vectors_IZ.T @ torch.linalg.inv(root_II))

    def latents(self, inputs_BSC: Tensor) -> Tensor:
        """(B, Z)."""
        return (inputs_BSC.flatten(1) - self.centre) @ self.to_latents

    def inputs(self, latents_BZ: Tensor) -> Tensor:
        """(B, I)."""
        return latents_BZ @ self.to_inputs + self.centre


class TrajectoryVqVae(TrainableTokenizer):
    """Samples -> codes -> samples."""

    def __init__(self, config: TrajectoryVqVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.stream = config.stream or config.quantity
        self.representation = TrackRepresentation(
            quantity=config.quantity,
            stream=self.stream,
            num_samples=config.num_samples,
            num_channels=config.channels,
            fill=config.fill,
            camera_channels=config.camera_channels,
        )
        weights = {"reconstruction": config.reconstruction_weight}
        if not isinstance(config.quantizer, FsqConfig):  # rounding commits to nothing
            weights["commitment"] = config.commitment_weight
        if config.reconstructs_validity:
            weights["validity"] = config.validity_weight
        self.term_names, self.loss_weights = tuple(weights), tuple(weights.values())
        size = TrackNetwork(
            num_channels=config.channels + config.reconstructs_validity,
            num_tokens=config.num_steps,
            samples_per_token=config.samples_per_token,
            dim=config.dim,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
        )
        self.encoder = TrackEncoder(size, depth=config.encoder_depth, is_local=config.has_local_encoder)
        self.decoder = TrackDecoder(size, depth=config.decoder_depth)
        self.quant_proj = nn.Linear(config.dim, config.latent_dim)
        self.post_quant_proj = nn.Linear(config.latent_dim, config.dim)
        self.quantizer = build_track_quantizer(
            config.quantizer,
            dim=config.latent_dim,
            num_codes=config.num_codes,
            decay=config.ema_decay,
            threshold=config.dead_code_threshold,
            kmeans_init=config.kmeans_init,
        )
        # Published codebooks hold rows that are not of unit length; the row decides by its direction and is decoded
        # with its length.
        if isinstance(config.quantizer, VqConfig):
            self.register_buffer("code_scale", torch.ones(config.num_codes))
        if config.has_linear_path:
            width = config.num_samples * (config.channels + config.reconstructs_validity)
            self.linear = LinearPath(width, config.latent_dim)
            # The network begins with nothing to add.
            for layer in (self.quant_proj, self.decoder.out_proj):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
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
            num_streams=config.quantizer.num_streams,
        )

    # Network

    def latents(self, samples: Tensor, is_valid: Tensor) -> Tensor:
        """Normalised samples (B, S, C) and validity (B, S) -> latents before lookup (B, T, Z)."""
        inputs = self._inputs(samples, is_valid)
        latents = self.quant_proj(self.encoder(inputs))
        return latents + self.linear.latents(inputs)[:, None] if self.config.has_linear_path else latents

    def _inputs(self, samples: Tensor, is_valid: Tensor) -> Tensor:
        inputs = samples * is_valid[..., None] if self.config.fill == "zero" else samples
        if self.config.reconstructs_validity:
            inputs = torch.cat([inputs, is_valid[..., None].to(inputs)], dim=-1)
        return inputs

    def codes(self, ids: Tensor) -> Tensor:
        """Ids (B, L) -> code vectors (B, T, Z)."""
        if isinstance(self.config.quantizer, VqConfig):
            return self.quantizer.get_codes_from_indices(ids) * self.code_scale[ids][..., None]
        return self.quantizer.vectors(rearrange(ids, "b (t q) -> b t q", q=self.config.quantizer.num_streams))

    def restored(self, codes: Tensor) -> Tensor:
        """Code vectors (B, T, Z) -> normalised samples (B, S, C), and validity logits as a last channel if any."""
        restored = self.decoder(self.post_quant_proj(codes))
        if not self.config.has_linear_path:
            return restored
        linear = self.linear.inputs(codes[:, 0]).unflatten(-1, restored.shape[1:])
        if self.config.reconstructs_validity:  # 0 and 1 as logits
            linear = torch.cat([linear[..., :-1], _LOGIT_OF_ONE * (2 * linear[..., -1:] - 1)], dim=-1)
        return restored + linear

    # Training

    def fit_normalisation(self, clips: Sequence[AlignedClip]) -> None:
        """Mean and standard deviation of each channel over valid samples, unless the config fixes them; the linear
        path and its codebooks where there is one."""
        channels = [self.representation.channels(clip) for clip in clips]
        if self.config.mean is None:
            valid_NC = np.concatenate([values_SC[is_valid_S] for values_SC, is_valid_S in channels]).astype(np.float64)
            if not len(valid_NC):
                raise ValueError(f"none of {len(clips)} clips has a valid sample of {self.stream}")
            smallest = _SMALLEST_STD[self.config.camera_channels]
            self.mean.copy_(torch.from_numpy(valid_NC.mean(axis=0)))
            self.std.copy_(torch.from_numpy(np.maximum(valid_NC.std(axis=0), smallest)))
        if self.config.has_linear_path:
            samples_BSC = torch.from_numpy(np.stack([values for values, _ in channels]))
            is_valid_BS = torch.from_numpy(np.stack([is_valid for _, is_valid in channels]))
            if self.config.mount_noise_m is not None and len(clips) < _NUM_FITTED:
                repeats = -(-_NUM_FITTED // len(clips))
                samples_BSC, is_valid_BS = samples_BSC.repeat(repeats, 1, 1), is_valid_BS.repeat(repeats, 1)
                samples_BSC = remounted_motions(samples_BSC, self.config.mount_noise_m)
            inputs_BSC = self._inputs(
                (samples_BSC.to(self.mean) - self.mean) / self.std, is_valid_BS.to(self.mean.device)
            )
            self.linear.fit(inputs_BSC, self._sample_weights())
            assert isinstance(self.quantizer, ResidualCodes)
            self.quantizer.fit(self.linear.latents(inputs_BSC))

    def _sample_weights(self) -> Tensor:
        """What the loss counts of errors of a channel (S, S): e W e is the first term of `training_terms`."""
        count = self.config.num_samples
        weights_SS = torch.eye(count, dtype=torch.float64)
        for weight, linear_SS in (
            (self.config.motion_weight, weights_SS.diff(dim=0)),
            (self.config.path_weight, torch.ones_like(weights_SS).tril()),
        ):
            weights_SS = weights_SS + weight * linear_SS.T @ linear_SS
        return weights_SS

    def batch_from_clips(self, clips: Sequence[AlignedClip], rng: np.random.Generator | None) -> TokenizerBatch:
        """Samples in their own units and validity; nothing here is random."""
        check_rate(clips, self.stream, self.config.rate_hz)
        pairs = [self.representation.channels(clip) for clip in clips]
        is_valid_BS = torch.from_numpy(np.stack([is_valid for _, is_valid in pairs]))
        counts = {
            "reconstruction": int(is_valid_BS.sum()) * self.config.channels,
            "commitment": len(clips) * self.config.num_tokens * self.config.latent_dim,
            "validity": is_valid_BS.numel(),
        }
        samples_BSC = torch.from_numpy(np.stack([values for values, _ in pairs]))
        tensors = {"samples": samples_BSC, "is_valid": is_valid_BS}
        return TokenizerBatch(tensors, tuple(counts[name] for name in self.term_names), len(clips))

    def training_terms(self, batch: TokenizerBatch) -> LossOutput:
        """Squared error of valid samples (normalised), squared distance to the code, cross entropy of validity.

        With `motion_weight` the first term also holds the squared error of the motion from sample to sample, without
        which a low position error may hide a trembling path; with `path_weight` that of motions added up.

        In training mode the codebook's moving averages take a step.
        """
        samples, is_valid = batch.tensors["samples"], batch.tensors["is_valid"]
        if self.training and self.config.mount_noise_m is not None:
            samples = remounted_motions(samples, self.config.mount_noise_m)
        normalised = (samples - self.mean) / self.std
        chosen = self._choose(self.latents(normalised, is_valid))
        restored = self.restored(self._noisy(chosen) if self.training and self.config.code_noise else chosen.codes)
        error_BSC = (restored[..., : self.config.channels] - normalised) * is_valid[..., None]
        sums = {"reconstruction": self._track_error(error_BSC, is_valid), "commitment": chosen.commitment_sum}
        if self.config.reconstructs_validity:
            target = is_valid.to(restored)
            sums["validity"] = F.binary_cross_entropy_with_logits(restored[..., -1], target, reduction="sum")
        values = torch.stack([sums[name].float() for name in self.term_names])
        return LossOutput(sums=values, counts=batch.counts, names=self.term_names)

    def _choose(self, latents: Tensor) -> ChosenCodes:
        if not isinstance(self.config.quantizer, VqConfig):
            return self.quantizer(latents)
        quantised, ids, _ = self.quantizer(latents)
        # As they were when they were chosen: the call has moved the codebook since, and may have given a row away.
        codes = quantised.detach() * self.code_scale[ids][..., None]
        commitment = (latents - codes).square().sum()
        return ChosenCodes(ids[..., None], latents + (codes - latents).detach(), commitment)

    def _noisy(self, chosen: ChosenCodes) -> Tensor:
        """Codes (B, T, Z) of which a share of the ids was replaced at random; those steps teach the encoder nothing."""
        ids_BTQ, is_replaced_BTQ = with_noise(chosen.ids, self.config.code_noise, self.config.num_codes)
        replaced_BTZ = self.codes(rearrange(ids_BTQ, "b t q -> b (t q)"))
        return torch.where(is_replaced_BTQ.any(dim=-1, keepdim=True), replaced_BTZ, chosen.codes)

    def _track_error(self, error_BSC: Tensor, is_valid: Tensor) -> Tensor:
        total = error_BSC.square().sum()
        if self.config.motion_weight > 0:
            is_pair_BS = is_valid[:, 1:] & is_valid[:, :-1]
            motion = (error_BSC.diff(dim=1) * is_pair_BS[..., None]).square().sum()
            total = total + self.config.motion_weight * motion
        if self.config.path_weight > 0:
            total = total + self.config.path_weight * error_BSC.cumsum(dim=1).square().sum()
        return total

    # Ids

    @torch.no_grad()
    def encode_batch(self, batch: TokenizerBatch) -> Tensor:
        """Ids (B, L) of clips that `batch_from_clips` prepared, on the batch's device."""
        normalised = (batch.tensors["samples"] - self.mean) / self.std
        return self.lookup(self.latents(normalised, batch.tensors["is_valid"]))

    def lookup(self, latents: Tensor) -> Tensor:
        """Ids (B, L) of the codes nearest (of vq: in direction) to latents (B, T, Z); codebooks stay as they are."""
        if not isinstance(self.config.quantizer, VqConfig):
            return rearrange(self.quantizer.lookup(latents), "b t q -> b (t q)")
        # An average of weights over steps holds rows that are shorter than one; they too decide by direction.
        rows = F.normalize(self.quantizer.codebook, dim=-1)
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 cannot tell neighbouring codes apart
            return (F.normalize(latents.float(), dim=-1) @ rows.T).argmax(dim=-1)

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
        """`TrainableTokenizer.evaluate`, and how many codes are dead."""
        return super().evaluate(clips, batch_size=batch_size) | self._dead_codes()

    def clip_errors(self, clips: Sequence[AlignedClip], ids: np.ndarray) -> list[dict[str, float]]:
        """Of each clip: what decoding its ids (B, L) loses."""
        rows = zip(clips, *self.decode_ids(ids), strict=True)
        return [self._errors(clip, values, is_valid) for clip, values, is_valid in rows]

    def _dead_codes(self) -> dict[str, float]:
        """How many codes training uses so rarely that revival replaces them at the next step."""
        threshold, kind = self.config.dead_code_threshold, self.config.quantizer
        if not threshold or isinstance(kind, FsqConfig):
            return {}
        is_single = isinstance(kind, VqConfig)
        sizes = self.quantizer._codebook.cluster_size if is_single else self.quantizer.cluster_sizes()
        return {"dead_codes": float((sizes < threshold).sum())}

    def _errors(self, clip: AlignedClip, values: np.ndarray, is_valid: np.ndarray) -> dict[str, float]:
        if self.config.quantity == "gaze":
            return gaze_clip_errors(values, is_valid, clip, stream=self.stream)
        stream = clip.streams[self.stream]
        if self.config.quantity == "camera":
            return camera_clip_errors(values[stream.is_valid], stream.values[stream.is_valid])
        difference = (values - stream.values)[stream.is_valid]
        return {"rms_error": float(np.sqrt(np.square(difference).mean())) if len(difference) else np.nan}
