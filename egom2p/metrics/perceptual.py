"""Perceptual likeness of colour video: LPIPS and FVD, from weights that lie on the local disk.

Neither set of weights comes with the project; both are named by the user. F frames, H, W pixels, N videos,
D features.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor, nn
from torch.nn import functional

from egom2p.config import strict
from egom2p.contracts import check_shape
from egom2p.storage import load_tensors
from egom2p.storage.foreign_checkpoints import foreign_weights
from egom2p.storage.torchscript_archives import load_torchscript

# Of LPIPS: inputs in [-1, 1] are shifted and scaled like this before AlexNet sees them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_ALEXNET = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1))
_POOLED_BEFORE = (3, 6)  # indices of the convolutions that a 3x3 maximum with stride 2 stands before
_SMALLEST = 31  # pixels; of smaller pictures AlexNet leaves nothing to compare
_FRAMES_AT_ONCE = 32
_VIDEOS_AT_ONCE = 8
STABLE_VIDEOS = 256  # with fewer videos FVD moves more by chance than by quality


@strict
class LpipsConfig:
    """LPIPS with AlexNet, version 0.1 (Zhang et al., CVPR 2018).

    backbone  torchvision's AlexNet (`alexnet-owt-7be5be79.pth`, or its tensors as safetensors)
    heads     the linear heads (`lpips/weights/v0.1/alex.pth` of the package lpips, or as safetensors)
    """

    backbone: str
    heads: str


@strict
class FvdConfig:
    """Fréchet video distance on the features of an I3D network given as TorchScript.

    network   file called as network(videos (N, 3, F, H, W) in 0 ... 255, rescale=True, resize=True,
              return_features=True) -> (N, D), as the port of StyleGAN-V is
    sha256    of that file; it holds code, so it runs only with allow_torchscript=true and this hash
    """

    network: str
    sha256: str
    allow_torchscript: bool = False  # whether the network, which is a program, may be run


class Lpips(nn.Module):
    """Distance of two pictures by the features of AlexNet; 0 for equal ones."""

    def __init__(self, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Tensors by the names of their files, e.g. `features.0.weight` and `lin0.model.1.weight`."""
        super().__init__()
        convolutions, weights, width = [], [], 3
        for position, (index, channels, kernel, stride, padding) in enumerate(_ALEXNET):
            layer = nn.Conv2d(width, channels, kernel, stride, padding)
            names = {"weight": f"features.{index}.weight", "bias": f"features.{index}.bias"}
            layer.load_state_dict({key: _found(backbone, name, "the backbone") for key, name in names.items()})
            convolutions.append(layer)
            weights.append(_found(heads, f"lin{position}.model.1.weight", "the heads").reshape(1, channels, 1, 1))
            width = channels
        self.convolutions = nn.ModuleList(convolutions)
        self.heads = nn.ParameterList(weights)
        self.requires_grad_(False).eval()

    @classmethod
    def from_files(cls, config: LpipsConfig) -> "Lpips":
        return cls(_tensors_of(config.backbone), _tensors_of(config.heads))

    @torch.no_grad()
    def __call__(self, estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Distances (F,) of frames (F, H, W, 3) uint8."""
        check_shape("estimate", estimate, "f h w c", **check_shape("reference", reference, "f h w c"))
        if min(reference.shape[1:3]) < _SMALLEST:
            size = "x".join(map(str, reference.shape[1:3]))
            raise ValueError(f"LPIPS wants pictures of at least {_SMALLEST}x{_SMALLEST} pixels, found {size}")
        found = [np.zeros(0)]
        for start in range(0, len(reference), _FRAMES_AT_ONCE):
            part = slice(start, start + _FRAMES_AT_ONCE)
            found.append(self._distances(_as_input(estimate[part]), _as_input(reference[part])).numpy())
        return np.concatenate(found)

    def _distances(self, a_F3HW: Tensor, b_F3HW: Tensor) -> Tensor:
        total_F = torch.zeros(len(a_F3HW))
        for (index, *_), layer, head in zip(_ALEXNET, self.convolutions, self.heads, strict=True):
            if index in _POOLED_BEFORE:
                a_F3HW, b_F3HW = (functional.max_pool2d(x, 3, 2) for x in (a_F3HW, b_F3HW))
            a_F3HW, b_F3HW = functional.relu(layer(a_F3HW)), functional.relu(layer(b_F3HW))
            difference = (_unit_length(a_F3HW) - _unit_length(b_F3HW)) ** 2
            total_F = total_F + (difference * head).sum(1).mean((1, 2))
        return total_F


class VideoFeatures:
    """Features of whole videos by a network that is given as TorchScript."""

    def __init__(self, config: FvdConfig) -> None:
        self._network = load_torchscript(
            config.network, allow_torchscript=config.allow_torchscript, sha256=config.sha256
        ).eval()

    @torch.no_grad()
    def __call__(self, videos: Iterable[np.ndarray]) -> np.ndarray:
        """Features (N, D) of videos (F, H, W, 3) uint8, all of one size."""
        videos, found = list(videos), []
        for start in range(0, len(videos), _VIDEOS_AT_ONCE):
            batch_NFHWC = torch.from_numpy(np.stack(videos[start : start + _VIDEOS_AT_ONCE])).float()
            batch = batch_NFHWC.permute(0, 4, 1, 2, 3)
            found.append(self._network(batch, rescale=True, resize=True, return_features=True).double().numpy())
        return np.concatenate(found)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the normal laws with the means and covariances of features (N, D) and (M, D)."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 features of one width expected, found {a.shape} and {b.shape}")
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values_D, vectors_DD = eigh(cov_a)
    root_a = vectors_DD * np.sqrt(np.maximum(values_D, 0)) @ vectors_DD.T
    # tr sqrt(A B) through the symmetric sqrt(A) B sqrt(A), whose eigenvalues are real also when A is singular.
    cross = np.sqrt(np.maximum(eigh(root_a @ cov_b @ root_a, eigvals_only=True), 0)).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(max(distance, 0.0))


def _as_input(frames_FHW3: np.ndarray) -> Tensor:
    if frames_FHW3.dtype != np.uint8:
        raise ValueError(f"LPIPS wants uint8 frames, found {frames_FHW3.dtype}")
    unit = torch.from_numpy(np.ascontiguousarray(frames_FHW3)).float().permute(0, 3, 1, 2) / 127.5 - 1
    return (unit - torch.tensor(_SHIFT).reshape(1, 3, 1, 1)) / torch.tensor(_SCALE).reshape(1, 3, 1, 1)


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _found(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"LPIPS: {where} have no {name}; found {sorted(tensors)[:6]} ...")
    return tensors[name].float()


def _tensors_of(path: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `.pth` through the reader that runs nothing."""
    return load_tensors(path) if Path(path).suffix == ".safetensors" else foreign_weights(path)[0]
