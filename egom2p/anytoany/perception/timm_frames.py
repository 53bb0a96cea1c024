"""A timm image tower on every frame of a clip, or on a picture; pixels travel as the cells of the tower's grid.

F frames of an item, P pictures that the tower sees (frames x tiles), H, W pixels of one, Y, X cells along its sides,
h, w pixels of a cell, N = P Y X feature rows, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from egom2p.anytoany.perception.source import Clip, FeatureRows, TimmFramesConfig, Tower
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.contracts import AlignedClip
from egom2p.layers.lora import attach_lora
from egom2p.storage import fingerprint_of, load_tensors

# Pictures that go through a tower at once where nothing is trained.
_AT_ONCE = 32


@dataclass(frozen=True)
class PictureGrid:
    """What a tower sees at once, and what it gives back for it.

    size    (H, W)      cells   (Y, X)      tiles   (rows, columns) of such pictures that a frame is cut into

    Where Y does not divide H, the last cells reach beyond the picture; what they hold there is 0 and unused.
    """

    size: tuple[int, int]
    cells: tuple[int, int]
    tiles: tuple[int, int] = (1, 1)

    @property
    def cell(self) -> tuple[int, int]:
        """(h, w)."""
        return -(-self.size[0] // self.cells[0]), -(-self.size[1] // self.cells[1])

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame: all its tiles."""
        return self.size[0] * self.tiles[0], self.size[1] * self.tiles[1]

    @property
    def row_width(self) -> int:
        """Numbers of a feature row."""
        return self.cell[0] * self.cell[1] * 3

    def rows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames (F, H', W', 3) uint8 of any size -> rows (N, h w 3) uint8, and position (N, 3): frame, row, column.

        Rows are ordered by frame, tile, cell; positions count cells of the whole frame.
        """
        (height, width), (rows, columns), (tile_rows, tile_columns) = self.size, self.cells, self.tiles
        whole = np.stack([resized(frame, self.frame_size) for frame in frames])
        tiles = rearrange(whole, "f (a h) (b w) c -> (f a b) h w c", a=tile_rows, b=tile_columns)
        beyond = (rows * self.cell[0] - height, columns * self.cell[1] - width)
        tiles = np.pad(tiles, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))
        cells = rearrange(tiles, "p (y h) (x w) c -> (p y x) (h w c)", y=rows, x=columns)
        position = np.stack(np.indices((len(frames), tile_rows * rows, tile_columns * columns)), axis=-1)
        pattern = "f (a y) (b x) n -> (f a b y x) n"
        return cells, rearrange(position, pattern, a=tile_rows, b=tile_columns).astype(np.int16)

    def pictures(self, rows: Tensor) -> Tensor:
        """Rows (N, h w 3), in their order -> pictures (P, 3, H, W), numbers as they are."""
        (num_rows, num_columns), (cell_height, cell_width) = self.cells, self.cell
        if rows.shape[1] != self.row_width or len(rows) % (num_rows * num_columns):
            raise ValueError(
                f"rows of pixels are {tuple(rows.shape)}, this tower sees {num_rows} x {num_columns} cells of "
                f"{cell_height} x {cell_width} pixels; the perception features were made with other settings"
            )
        pattern = "(p y x) (h w c) -> p c (y h) (x w)"
        whole = rearrange(rows, pattern, y=num_rows, x=num_columns, h=cell_height, w=cell_width, c=3)
        return whole[:, :, : self.size[0], : self.size[1]]


class PixelSource:
    """Pixels as features: each row is what one cell of the tower's grid covers, position (frame, row, column)."""

    def __init__(self, config: TimmFramesConfig) -> None:
        self.grid = picture_grid(config)
        self.names, self.width = (config.tower,), self.grid.row_width
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

    def __init__(self, config: TimmFramesConfig, *, with_weights: bool = True) -> None:
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


def plain_tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights and buffers of an image tower under timm's names, without adapters, out of its module's state."""
    return {
        name.removeprefix("tower.").replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.startswith("tower.") and "lora_" not in name
    }


def picture_grid(config: TimmFramesConfig) -> PictureGrid:
    """Size of the pictures that a tower sees, and its grid, without its weights."""
    size, cells, _ = _sizes(config.tower, config.layer, config.image_size)
    return PictureGrid(size, cells, config.tiles)


def tower_width(config: TimmFramesConfig) -> int:
    """D; ValueError where the config names another one."""
    width = _sizes(config.tower, config.layer, config.image_size)[2]
    if config.width not in (None, width):
        raise ValueError(f"perception.width is {config.width}, the tower {config.tower} has {width} features")
    return width


@lru_cache
def _sizes(name: str, layer: int | None, image_size: int | None) -> tuple[tuple[int, int], tuple[int, int], int]:
    """((H, W), (Y, X), D) of a tower, found by running it without numbers."""
    config = TimmFramesConfig(tower=name, layer=layer, image_size=image_size)
    with torch.device("meta"), torch.no_grad():
        tower = _open(config, with_weights=False).eval()
        size = (image_size, image_size) if image_size else tuple(_data_settings(tower)["input_size"][1:])
        features = _cell_features(tower, torch.empty(1, 3, *size), layer)
    return size, (features.shape[1], features.shape[2]), features.shape[3]


def _open(config: TimmFramesConfig, *, with_weights: bool) -> nn.Module:
    # Imported here: it brings torchvision along.
    import timm

    name = config.tower
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


def grid_of_patches(features: Tensor, *, width: int, size: Sequence[int], num_first: int | None) -> Tensor:
    """What a timm tower gives, with its patches in rows and columns: (P, Y, X, D); Y = X = 1 where it has none.

    features    (P, D, Y, X), (P, Y, X, D), (P, tokens, D) or (P, D)
    size        (H, W) of the pictures: a sequence of tokens is laid into a grid of that shape
    num_first   tokens before the patches; None: as many as are too many for a grid
    """
    if features.dim() == 4:
        is_last = features.shape[-1] == width and features.shape[1] != width
        return features if is_last else rearrange(features, "p d y x -> p y x d")
    if features.dim() == 2:
        return features[:, None, None]
    if num_first is None:
        num_first = features.shape[1] - _grid(features.shape[1], size, is_exact=False)[0]
    patches = features[:, num_first:]
    _, rows, columns = _grid(patches.shape[1], size, is_exact=True)
    return rearrange(patches, "p (y x) d -> p y x d", y=rows, x=columns)


def _grid(count: int, size: Sequence[int], *, is_exact: bool) -> tuple[int, int, int]:
    """Tokens in the largest grid in the shape of the picture, its rows and columns; a column where none fits."""
    rows = int((count * size[0] / size[1]) ** 0.5 + 1e-6)
    columns = count // rows if is_exact and rows and count % rows == 0 else rows * size[1] // size[0]
    if is_exact and rows * columns != count:
        return count, count, 1
    return rows * columns, rows, columns


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame (H', W', 3) uint8 squeezed to (H, W)."""
    if frame.shape[:2] == size:
        return frame
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
