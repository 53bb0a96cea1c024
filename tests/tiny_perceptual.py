"""Random weights in the shapes of LPIPS, and a program in the position of FVD's network."""

import hashlib
import math
import warnings
from pathlib import Path

import torch
from torch import nn


def lpips_weights() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Backbone and heads."""
    generator = torch.Generator().manual_seed(0)
    backbone, heads, width = {}, {}, 3
    shapes = ((0, 64, 11), (3, 192, 5), (6, 384, 3), (8, 256, 3), (10, 256, 3))
    for position, (index, channels, kernel) in enumerate(shapes):
        scale = math.sqrt(2 / (width * kernel**2))
        backbone[f"features.{index}.weight"] = scale * torch.randn(channels, width, kernel, kernel, generator=generator)
        backbone[f"features.{index}.bias"] = 0.1 * torch.randn(channels, generator=generator)
        heads[f"lin{position}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
        width = channels
    return backbone, heads


class MeanColour(nn.Module):
    """Features (N, 3) of videos (N, 3, F, H, W)."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return video.mean(dim=(2, 3, 4))


def write_program(path: Path) -> str:
    """Write the program and return its sha256."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch discourage TorchScript
        torch.jit.script(MeanColour()).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()
