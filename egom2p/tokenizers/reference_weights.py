"""Published tokenizer weights under our names.

Trajectory VQ-VAE of EgoM2P: place codes are computed, the codebook is split into unit rows and their lengths.
Cosmos video codec: same names; it also stores layers that its compression never runs.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from egom2p.tokenizers.trajectory_vqvae import TrajectoryVqVae
from egom2p.tokenizers.video_codec import VideoCodec

_TRUNK = re.compile(r"^(encoder|decoder)\.(blocks|norm_mlp|post_mlp)\.")
_COMPUTED = ("position_embeddings", "_codebook.initted")
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
            # The library keeps sums, not means: a row times how often it was used.
            renamed["quantizer._codebook.embed_avg"] = (
                rows * reference["quantize._codebook.cluster_size"][None, :, None]
            )
        elif name == "quantize._codebook.cluster_size":
            renamed["quantizer._codebook.cluster_size"] = tensor[None]
        elif name in ("quant_proj.weight", "post_quant_proj.weight"):
            renamed[name] = tensor.squeeze(-1)
        else:
            renamed[_TRUNK.sub(r"\1.trunk.\2.", name)] = tensor
    kept = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name in ("mean", "std", "quantizer._codebook.initted")
    }
    kept["quantizer._codebook.initted"] = torch.ones_like(kept["quantizer._codebook.initted"])
    _load(network, {**renamed, **kept})


def load_reference_codec(network: VideoCodec, reference: Mapping[str, Tensor]) -> None:
    """Fill a codec from a published state dict; resampling layers that this compression never runs are left out."""
    known = network.state_dict()
    used = {name: tensor for name, tensor in reference.items() if name in known or not _RESAMPLING.search(name)}
    _load(network, used)


def _load(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        lines = [f"{name}: found {found.get(name)}, wanted {wanted.get(name)}" for name in differing[:5]]
        raise ValueError(f"{len(differing)} weights do not fit this network: " + "; ".join(lines))
    network.load_state_dict(dict(tensors))
