"""Published tokenizer weights under our names.

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

import torch
import torch.nn.functional as F
from torch import Tensor

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
