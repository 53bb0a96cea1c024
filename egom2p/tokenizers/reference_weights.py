"""Published tokenizer weights under our names, and a converted codec against the released program it came from.

Trajectory VQ-VAE of EgoM2P: position codes are computed, the codebook is split into unit rows and their lengths.

Cosmos video codec: `encoder.jit`, `decoder.jit` (or `autoencoder.jit`) of nvidia/Cosmos-0.1-Tokenizer-DV4x8x8:

    released name                                        ours
    encoder.*, quant_conv.*                              the same            (encoder.jit)
    post_quant_conv.*, decoder.*                         the same            (decoder.jit)
    *.downsample.conv[123].*, *.upsample.conv[123].*     the same, where this compression runs them; else left out
    quantizer.*, inv_quant.*                             left out: levels and their products, checked with the config
    *.wavelets, *._arange                                left out: the Haar patches are computed
Stored in bfloat16, kept in float32.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from egom2p.config import strict
from egom2p.storage.torchscript_archives import load_torchscript
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae
from egom2p.tokenizers.video.video_codec import VideoCodec

_TRUNK = re.compile(r"^(encoder|decoder)\.(blocks|norm_mlp|post_mlp)\.")
_COMPUTED = ("position_embeddings", "_codebook.initted")
_CODEC_COMPUTED = re.compile(r"^(quantizer|inv_quant)\.|\.(wavelets|_arange)$")
_RESAMPLING = re.compile(r"\.(downsample|upsample)\.conv[123]\.")


def load_reference_trajectory(network: TrajectoryVqVae, reference: Mapping[str, Tensor]) -> None:
    """Fill a network (all but its normalisation) from a published state dict; ValueError lists names that differ."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in reference.items():
        if name.endswith(_COMPUTED):
            continue
        if name == "quantize._codebook.embed":
            renamed["code_scale"] = tensor.norm(dim=-1)
            rows = F.normalize(tensor, dim=-1)[None]
            renamed["quantizer._codebook.embed"] = rows
            # The library keeps sums, not means: a row times how often it was used. A row that was never used has the
            # sum that a new codebook has, itself; a sum of nothing would erase it at the next step.
            uses = reference["quantize._codebook.cluster_size"]
            renamed["quantizer._codebook.embed_avg"] = rows * torch.where(uses > 0, uses, 1.0)[None, :, None]
        elif name == "quantize._codebook.cluster_size":
            renamed["quantizer._codebook.cluster_size"] = tensor[None]
        elif name in ("quant_proj.weight", "post_quant_proj.weight"):
            renamed[name] = tensor.squeeze(-1)
        else:
            renamed[our_name(name)] = tensor
    kept = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name in ("mean", "std", "quantizer._codebook.initted")
    }
    kept["quantizer._codebook.initted"] = torch.ones_like(kept["quantizer._codebook.initted"])
    _load(network, {**renamed, **kept})


def our_name(name: str) -> str:
    """Our name of a parameter of the published trajectory VQ-VAE."""
    return _TRUNK.sub(r"\1.trunk.\2.", name)


def load_reference_codec(network: VideoCodec, reference: Mapping[str, Tensor]) -> None:
    """Fill a codec from published weights; ValueError lists names that differ, or other levels than the network's."""
    levels = next((tensor for name, tensor in reference.items() if name.endswith("._levels")), None)
    if levels is not None and levels.flatten().tolist() != list(network.config.levels):
        raise ValueError(f"its levels are {levels.flatten().tolist()}, the network's are {list(network.config.levels)}")
    known = network.state_dict()
    used = {
        name: tensor.float()
        for name, tensor in reference.items()
        if name in known or not (_RESAMPLING.search(name) or _CODEC_COMPUTED.search(name))
    }
    _load(network, used)


def _load(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        lines = [f"{name}: found {found.get(name)}, wanted {wanted.get(name)}" for name in differing[:5]]
        raise ValueError(f"{len(differing)} weights do not fit this network: " + "; ".join(lines))
    network.load_state_dict(dict(tensors))


@strict
class TorchScriptConfig:
    """Permission to run a TorchScript file. It is a program: only files whose hash is known are run."""

    allow_torchscript: bool = False  # whether they may be run at all
    sha256: dict[str, str] | None = None  # name of the file -> its hash

    def __post_init__(self) -> None:
        if self.allow_torchscript and not self.sha256:
            raise ValueError("allow_torchscript needs sha256: {encoder.jit: ..., decoder.jit: ...}")


@torch.no_grad()
def compare_with_torchscript(codec: VideoCodec, files: list[Path], config: TorchScriptConfig) -> dict[str, float]:
    """Share of ids on which both agree, and the largest difference of what they decode from the same ids.

    The program computes in the type of its weights (the released ones: bfloat16), so ids at the edge of a level differ.
    ValueError when a file may not be run or is no encoder and decoder.
    """
    known: Mapping[str, str] = config.sha256 or {}
    programs = {
        file.stem: load_torchscript(
            file, allow_torchscript=config.allow_torchscript, sha256=known.get(file.name)
        ).eval()
        for file in files
    }
    if programs.keys() != {"encoder", "decoder"}:
        raise ValueError(f"compared with encoder.jit and decoder.jit, found {sorted(programs)}")
    dtype = next((tensor.dtype for tensor in programs["encoder"].parameters()), torch.float32)
    video = _moving_waves(codec)
    ids_BThw = codec.eval().encode_video(video)[1]
    found = programs["encoder"](video.to(dtype))
    their_ids_BThw = next(output for output in _flat(found) if not output.is_floating_point())
    ours = codec.decode_codes(codec.quantizer.indices_to_codes(their_ids_BThw.long()))
    theirs = next(output for output in _flat(programs["decoder"](their_ids_BThw)) if output.is_floating_point())
    return {
        "torchscript_equal_ids": float((ids_BThw == their_ids_BThw).float().mean()),
        "torchscript_largest_difference": float((ours - theirs.float()).abs().max()),
    }


def _moving_waves(codec: VideoCodec) -> Tensor:
    """Video (1, C, F, H, W) in [-1, 1], smooth in space and time, of the codec's size."""
    config, (steps, height, width) = codec.config, codec.spec.grid.shape
    frames = 1 + (steps - 1) * config.temporal_compression
    f, v, u = torch.meshgrid(
        torch.arange(frames) / 8.0,
        torch.linspace(0, 1, height * config.spatial_compression),
        torch.linspace(0, 1, width * config.spatial_compression),
        indexing="ij",
    )
    phases = torch.linspace(0, 2, config.video_channels)[:, None, None, None]
    return (torch.sin(9 * u + 2 * f + phases) * torch.cos(7 * v - f))[None]


def _flat(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs if isinstance(output, Tensor | tuple | list) for tensor in _flat(output)]
