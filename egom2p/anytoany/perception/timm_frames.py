"""A timm image tower on every frame of a clip, or on a picture.

P pictures, N feature rows (cells of pictures), D width, H, W pixels.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from egom2p.anytoany.perception.picture_cells import PictureGrid, grid_of_patches
from egom2p.anytoany.perception.source import Clip, PerceptionConfig
from egom2p.anytoany.perception.tower import EncodedSource, FeatureRows, Tower, plain_tower_state
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.contracts import AlignedClip
from egom2p.layers.lora import attach_lora
from egom2p.storage import fingerprint_of, load_tensors

# Pictures that go through a tower at once where nothing is trained.
_AT_ONCE = 32


class PixelSource:
    """Pixels as features: each row is what one cell of the tower's grid covers, position (frame, row, column)."""

    def __init__(self, config: PerceptionConfig) -> None:
        self.grid = picture_grid(config)
        self.names, self.width = (str(config.tower),), self.grid.row_width
        settings = {"source": "pixels", "size": self.grid.size, "cells": self.grid.cells, "tiles": self.grid.tiles}
        self.fingerprint = fingerprint_of({}, settings)
        self._num_frames = config.num_frames

    def perceive(self, clips: Sequence[Clip]) -> list[PerceptionFeatures]:
        return [self._features(clip) for clip in clips]

    def _features(self, clip: Clip) -> PerceptionFeatures:
        if not isinstance(clip, AlignedClip) or "rgb" not in clip:
            found = sorted(clip.streams) if isinstance(clip, AlignedClip) else "tokens"
            raise ValueError(f"clip {clip.key}: an image tower needs pictures, found {found}")
        frames = clip.rgb
        if len(frames) > self._num_frames:
            middles = (np.arange(self._num_frames) + 0.5) * len(frames) / self._num_frames
            frames = frames[middles.astype(np.int64)]
        rows, position = self.grid.rows(frames)
        return PerceptionFeatures(rows, position, np.zeros(len(rows), np.int16))


class TimmTower(Tower):
    """Pixels of cells (N, h w 3), 0 ... 255 -> patch features (N, D). A frozen tower stays in evaluation mode."""

    def __init__(self, config: PerceptionConfig, *, with_weights: bool = True) -> None:
        super().__init__()
        self.tower = _open(config, with_weights=with_weights)
        self.grid = picture_grid(config)
        self.width, self.row_width, self.num_sources = tower_width(config), self.grid.row_width, 1
        self.is_trained = config.train != "frozen"
        self._layer = config.layer
        settings = _data_settings(self.tower)
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(settings[name]).view(3, 1, 1), persistent=False)
        self.tower.requires_grad_(self.is_trained)
        if config.lora is not None:
            attach_lora(self.tower, config.lora)

    def train(self, mode: bool = True) -> "TimmTower":
        super().train(mode)
        self.tower.train(mode and self.is_trained)
        return self

    def forward(self, rows: FeatureRows) -> Tensor:
        pictures = (self.grid.pictures(rows.features.float()) - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            # A trained tower sees all at once: batch norms look at the batch.
            parts = [pictures] if self.tower.training else pictures.split(_AT_ONCE)
            return torch.cat([_cell_features(self.tower, part, self._layer) for part in parts]).flatten(0, 2)


def encoded_frames(config: PerceptionConfig, *, device: str = "cpu") -> EncodedSource:
    """Features of a tower, to be computed once and stored."""
    raw, tower = PixelSource(config), TimmTower(config)
    settings = {"tower": config.tower, "layer": config.layer, "pixels": raw.fingerprint}
    return EncodedSource(
        raw, tower, fingerprint=fingerprint_of(plain_tower_state(tower.state_dict()), settings), device=device
    )


def picture_grid(config: PerceptionConfig) -> PictureGrid:
    """Size of the pictures that a tower sees, and its grid, without its weights."""
    size, cells, _ = _sizes(str(config.tower), config.layer, config.image_size)
    return PictureGrid(size, cells, config.tiles)


def tower_width(config: PerceptionConfig) -> int:
    """D; ValueError where the config names another one."""
    width = _sizes(str(config.tower), config.layer, config.image_size)[2]
    if config.width not in (None, width):
        raise ValueError(f"perception.width is {config.width}, the tower {config.tower} has {width} features")
    return width


@lru_cache
def _sizes(name: str, layer: int | None, image_size: int | None) -> tuple[tuple[int, int], tuple[int, int], int]:
    """((H, W), (Y, X), D) of a tower, found by running it without numbers."""
    config = PerceptionConfig(source="timm_frames", tower=name, layer=layer, image_size=image_size)
    with torch.device("meta"), torch.no_grad():
        tower = _open(config, with_weights=False).eval()
        size = (image_size, image_size) if image_size else tuple(_data_settings(tower)["input_size"][1:])
        features = _cell_features(tower, torch.empty(1, 3, *size), layer)
    return size, (features.shape[1], features.shape[2]), features.shape[3]


def _open(config: PerceptionConfig, *, with_weights: bool) -> nn.Module:
    # Imported here: it brings torchvision along.
    import timm

    name = str(config.tower)
    if not timm.is_model(name):
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        raise ValueError(f"perception.tower: timm {timm.__version__} has no model {name!r}; near: {', '.join(near)}")
    settings: dict[str, Any] = {"num_classes": 0}
    if config.image_size is not None and timm.get_pretrained_cfg(name).fixed_input_size:
        settings["img_size"] = config.image_size
    is_downloaded = with_weights and config.tower_weights is None
    try:
        tower = timm.create_model(name, pretrained=is_downloaded, **settings)
    except OSError as error:  # no network, offline, no such repository
        raise ValueError(
            f"perception.tower: the weights of {name} are not here and could not be downloaded "
            f"({type(error).__name__}); name their safetensors in tower_weights, or say tower_weights: random"
        ) from error
    if config.layer is not None:
        _cut(tower, config.layer, name)
    if with_weights and config.tower_weights not in (None, "random"):
        _load(tower, Path(str(config.tower_weights)), name)
    return tower


def _cut(tower: nn.Module, layer: int, name: str) -> None:
    """Leave out what comes after the chosen layer."""
    if not hasattr(tower, "forward_intermediates"):
        raise ValueError(f"perception.layer: {name} has no intermediate features in timm; leave `layer` out")
    try:
        if layer < 1:
            raise AssertionError
        tower.prune_intermediate_layers([layer - 1], prune_norm=True, prune_head=True)
    except (AssertionError, IndexError) as error:
        raise ValueError(f"perception.layer: {name} has no layer {layer}; they count from 1") from error


def _load(tower: nn.Module, file: Path, name: str) -> None:
    """Weights of a file; what it has beyond the tower (a classifier, later layers) is left out."""
    state, own = load_tensors(file), tower.state_dict()
    for key, wanted in own.items():
        found = tuple(state[key].shape) if key in state else "nothing"
        if found != tuple(wanted.shape):
            raise ValueError(f"{file}: {key} of {name} should be {tuple(wanted.shape)}, found {found}")
    tower.load_state_dict({key: state[key] for key in own})


def _data_settings(tower: nn.Module) -> dict[str, Any]:
    """timm's `input_size`, `mean` and `std`."""
    from timm.data import resolve_model_data_config

    return dict(resolve_model_data_config(tower))


def _cell_features(tower: nn.Module, pictures: Tensor, layer: int | None) -> Tensor:
    """(P, 3, H, W) -> (P, Y, X, D)."""
    if layer is not None:
        found = tower.forward_intermediates(
            pictures, indices=[layer - 1], stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return rearrange(found[-1], "p d y x -> p y x d")
    found = tower.forward_features(pictures)
    if not isinstance(found, Tensor):
        raise ValueError(f"{type(tower).__name__} gives features of several sizes, which are no grid; try `layer`")
    num_first = getattr(tower, "num_prefix_tokens", None)
    return grid_of_patches(found, width=int(tower.num_features), size=pictures.shape[2:], num_first=num_first)
