"""Pictures as the cells of an image tower's grid, and back: what lets pixels travel as rows of an item.

F frames of an item, P pictures that the tower sees (frames x tiles), H, W pixels of one, Y, X cells along its sides,
h, w pixels of a cell, N = P Y X rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from PIL import Image
from torch import Tensor


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
