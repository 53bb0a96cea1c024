"""Folders `tokenizer/<name>`, `cosmos/<name>` and what lies beside them: networks, representations, padding."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.geometry.poses import canonicalise, matrix_from_two_columns
from egom2p.metrics.camera import camera_errors
from egom2p.tokenizers.reference_weights import load_reference_codec, load_reference_trajectory
from egom2p.tokenizers.trajectory.track_representations import TrackRepresentation, camera_poses
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae, TrajectoryVqVaeConfig
from egom2p.tokenizers.video.causal_video_network import haar_patches, haar_video
from egom2p.tokenizers.video.video_codec import VideoCodec, VideoCodecConfig
from egom2p.tokenizers.video.video_representations import crop_padding, pad_video
from parity_checks.check import Check, Finding, Skipped, count, matched, read_json, read_tensors
from parity_checks.gaze_crop import gaze_crop_checks
from parity_checks.tokenizer_training import training_checks

_TIE = 1e-4  # two codes closer in cosine than this may change positions
_QUANTITIES = {"cam": "camera", "gaze": "gaze"}
_METRICS = {"ate_m": "ATE", "rpe_t_m": "RTE", "rpe_r_deg": "RRE_deg"}
_RECONSTRUCTION_TOLERANCE = 1e-4  # of the video codec: forty layers of convolutions in another order


@torch.no_grad()
def tokenizer_checks(folder: Path) -> Iterator[Finding]:
    """The track tokenizers below `tokenizer`, and the representations beside them."""
    numbers = read_json(folder / "representations.json")
    for network_folder in sorted(path.parent for path in folder.glob("*/info.json")):
        name = network_folder.name
        domain = read_json(network_folder / "info.json")["domain"]
        statistics = numbers[f"{domain}_mean"], numbers[f"{domain}_std"]
        for check in track_checks(network_folder, _QUANTITIES[domain], statistics):
            yield Check(f"{name}: {check.name}", check.error, check.tolerance)
        for check in training_checks(network_folder, load_track(network_folder, _QUANTITIES[domain], statistics)):
            yield Check(f"{name}: {check.name}", check.error, check.tolerance)
        yield Skipped(f"{name}: train_step*.codebook_embed", "our codebook keeps unit rows while it trains")
    yield from _camera_representation(folder)


def load_track(folder: Path, quantity: str, statistics: tuple[list[float], list[float]]) -> TrajectoryVqVae:
    """The network with the reference's weights; sizes are read off weights and info."""
    dims, weights = read_json(folder / "info.json")["dims"], read_tensors(folder / "state_dict.safetensors")
    stored = read_tensors(folder / "outputs.safetensors")
    num_codes, latent_dim = weights["quantize._codebook.embed"].shape
    num_samples, num_tokens = stored["input"].shape[1], stored["tokens"].shape[1]
    config = TrajectoryVqVaeConfig(
        modality="tok_track", quantity=quantity, folder="track", dim=dims["dim"], encoder_depth=dims["depth"],
        decoder_depth=dims["depth"], num_heads=dims["heads"], latent_dim=latent_dim, num_codes=num_codes,
        num_samples=num_samples, samples_per_token=num_samples // num_tokens, reconstructs_validity=False, fill="zero",
        mean=tuple(statistics[0]), std=tuple(statistics[1]),
    )  # fmt: skip
    network = TrajectoryVqVae(config).eval()
    load_reference_trajectory(network, weights)
    return network


@torch.no_grad()
def track_checks(folder: Path, quantity: str, statistics: tuple[list[float], list[float]]) -> Iterator[Check]:
    network, outputs = load_track(folder, quantity, statistics), read_tensors(folder / "outputs.safetensors")
    samples = outputs["input"][..., : network.config.channels]
    has_validity = outputs["input"].shape[-1] > network.config.channels
    is_valid = outputs["input"][..., -1] if has_validity else torch.ones(samples.shape[:2])
    latents = network.latents(samples, is_valid)
    yield matched("encoder_out", network.encoder(samples * is_valid[..., None]).mT, outputs["encoder_out"])
    yield matched("quant_proj_out", latents.mT, outputs["quant_proj_out"])
    margin = outputs["top2_cosine"][..., 0] - outputs["top2_cosine"][..., 1]
    is_wrong = (network.lookup(latents) != outputs["tokens"]) & (margin >= _TIE)
    yield count("tokens that differ, ties aside", int(is_wrong.sum()))
    codes = network.codes(outputs["tokens"])
    yield matched("quantised", codes.mT, outputs["quantised"])
    restored = network.restored(codes)
    yield matched("reconstruction", restored, outputs["reconstruction"])
    if "reconstruction_denormalised" in outputs:
        denormalised = restored * network.std + network.mean
        yield matched("reconstruction_denormalised", denormalised, outputs["reconstruction_denormalised"])


def _camera_representation(folder: Path) -> Iterator[Finding]:
    stored = read_tensors(folder / "representations.safetensors")
    errors = [0.0]
    for world_from_cam, wanted in zip(stored["cam.poses_c2w_4x4_f64"], stored["cam.nine_d_f64"], strict=True):
        times_s = np.arange(len(world_from_cam)) / 30
        stream = Stream(world_from_cam.numpy(), np.ones(len(times_s), bool), times_s, "world_from_cam")
        clip = AlignedClip("clip", {"camera": stream}, None, Provenance("parity", "fixture"))
        representation = TrackRepresentation("camera", "camera", len(times_s), 9)
        errors.append(matched("", torch.from_numpy(representation.channels(clip)[0]), wanted).error)
    yield Check("nine numbers of a pose", max(errors), 1e-6)
    noisy = torch.from_numpy(camera_poses(stored["cam.nine_d_noisy_f64"].numpy()))
    yield matched("poses from nine noisy numbers", noisy, stored["cam.noisy_as_4x4_f64"], 1e-9)
    rotations = torch.from_numpy(matrix_from_two_columns(stored["cam.rot6d_to_rotmat_in"].numpy()))
    yield matched("rotations from two columns", rotations, stored["cam.rot6d_to_rotmat_out"], 1e-6)
    errors = [0.0]
    for index, wanted in enumerate(read_json(folder / "representations.json")["trajectory_metrics_noisy_vs_clean"]):
        reference = canonicalise(stored["cam.poses_c2w_4x4_f64"][index].numpy())
        found = camera_errors(stored["cam.noisy_as_4x4_f64"][index].numpy(), reference, "rotation")
        errors += [abs(found[ours] - wanted[theirs]) for ours, theirs in _METRICS.items()]
    yield Check("trajectory metrics, absolute", max(errors), 1e-6)
    yield from gaze_crop_checks(stored)


@torch.no_grad()
def cosmos_checks(folder: Path) -> Iterator[Finding]:
    """The video codecs below `cosmos`, single layers, padding."""
    codec = None
    for network_folder in sorted(path.parent for path in folder.glob("*/info.json")):
        codec = load_codec(network_folder)
        for check in codec_checks(network_folder, codec):
            yield Check(f"{network_folder.name}: {check.name}", check.error, check.tolerance)
    units = read_tensors(folder / "units.safetensors")
    if "haar4.video" in units:
        yield matched("haar patches", haar_patches(units["haar4.video"], 4), units["haar4.patched"])
        yield matched("haar patches, inverse", haar_video(units["haar4.patched"], 4), units["haar4.unpatched"])
    if codec is not None and "fsq.z" in units:
        codes, ids = codec.quantizer(units["fsq.z"])
        yield count("FSQ ids that differ", int((ids != units["fsq.indices"]).sum()))
        yield matched("FSQ codes", codes, units["fsq.codes"])
        yield matched(
            "FSQ codes of ids", codec.quantizer.indices_to_codes(units["fsq.some_indices"]), units["fsq.some_codes"]
        )
    if (folder / "padding.json").is_file():
        yield from _padding(folder / "padding.json")


def load_codec(folder: Path) -> VideoCodec:
    """The network with the reference's weights; compressions are those of its longest case."""
    info, outputs = read_json(folder / "info.json")["config"], read_tensors(folder / "outputs.safetensors")
    inputs = [tensor for name, tensor in outputs.items() if name.endswith(".input")]
    ids = [outputs[name.replace(".input", ".indices")] for name in outputs if name.endswith(".input")]
    video, grid = max(zip(inputs, ids, strict=True), key=lambda pair: pair[0].shape[2])
    config = VideoCodecConfig(
        modality="tok_video", quantity="rgb", folder="video", num_frames=video.shape[2], height=video.shape[3],
        width=video.shape[4], rate_hz=8, temporal_compression=(video.shape[2] - 1) // (grid.shape[1] - 1),
        spatial_compression=video.shape[3] // grid.shape[2], patch_size=info["patch_size"], channels=info["channels"],
        channel_multipliers=info["channels_mult"], num_blocks=info["num_res_blocks"],
        num_decoder_blocks=info["num_res_blocks"] + 1, latent_channels=info["z_channels"],
    )  # fmt: skip
    network = VideoCodec(config).eval()
    load_reference_codec(network, read_tensors(folder / "state_dict.safetensors"))
    return network


@torch.no_grad()
def codec_checks(folder: Path, codec: VideoCodec) -> Iterator[Check]:
    outputs = read_tensors(folder / "outputs.safetensors")
    for case in sorted(name.removesuffix(".input") for name in outputs if name.endswith(".input")):
        video = outputs[f"{case}.input"]
        yield matched(f"{case} encoder_out", codec.encoder(video), outputs[f"{case}.encoder_out"])
        yield matched(f"{case} pre_quant", codec.pre_quantised(video), outputs[f"{case}.pre_quant"])
        codes, ids = codec.encode_video(video)
        is_tie = outputs[f"{case}.rounding_margin"] < _TIE
        yield count(f"{case} ids that differ, ties aside", int(((ids != outputs[f"{case}.indices"]) & ~is_tie).sum()))
        yield matched(
            f"{case} codes", codec.quantizer.indices_to_codes(outputs[f"{case}.indices"]), outputs[f"{case}.codes"]
        )
        found = codec.decode_codes(outputs[f"{case}.codes"])
        yield matched(f"{case} reconstruction", found, outputs[f"{case}.reconstruction"], _RECONSTRUCTION_TOLERANCE)


def _padding(file: Path) -> Iterator[Check]:
    wrong = 0
    for case, wanted in read_json(file).items():
        size = tuple(int(number) for number in case.split("x"))
        video = torch.arange(size[0], dtype=torch.float32)[None, None, :, None, None].expand(1, 1, *size)
        padded = pad_video(video, 8, 16)
        is_right = list(padded.shape[2:]) == wanted["padded_shape"]
        is_right = is_right and padded[0, 0, :, 0, 0].int().tolist() == wanted["frame_source"]
        wrong += not (is_right and torch.equal(crop_padding(padded, size), video))
    yield count("sizes padded otherwise", wrong)
