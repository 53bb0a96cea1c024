"""Fixed sin-cos codes of token positions, for grids of any size and any width.

L tokens of one modality, D width.

One axis: half the width sines, then half cosines. Three axes (t, h, w): a third of the width each, sines and cosines
interleaved. Both are the published codes; a width that does not divide evenly leaves zeros at the end.
"""

import torch
from einops import rearrange
from torch import Tensor

from egom2p.contracts import TokenGrid


def sincos_positions(grid: TokenGrid, dim: int, *, period: float = 10000.0, scale: float = 1.0) -> Tensor:
    """Codes (L, D) float32 of all positions of a grid, row-major.

    period   longest wavelength / 2 pi: angles run from position to position / period
    scale    positions are multiplied by this first (above 1: neighbours differ more)
    """
    if len(grid.shape) == 1:
        angles_LE = _angles(grid.shape[0], dim // 2, period=period, scale=scale)
        codes_LD = torch.cat([angles_LE.sin(), angles_LE.cos()], dim=-1)
    else:
        codes_LD = _codes_of_grid(grid, dim // 6, period=period, scale=scale)
    padded_LD = torch.zeros(grid.num_tokens, dim)
    padded_LD[:, : codes_LD.shape[1]] = codes_LD
    return padded_LD


def _codes_of_grid(grid: TokenGrid, num_angles: int, *, period: float, scale: float) -> Tensor:
    per_axis = []
    for axis, size in enumerate(grid.shape):
        angles_SE = _angles(size, num_angles, period=period, scale=scale)
        codes_SC = rearrange([angles_SE.sin(), angles_SE.cos()], "two s e -> s (e two)")
        shape = [1, 1, 1, 2 * num_angles]
        shape[axis] = size
        per_axis.append(codes_SC.view(shape).expand(*grid.shape, -1))
    return rearrange(torch.cat(per_axis, dim=-1), "t h w d -> (t h w) d")


def _angles(num_positions: int, num_angles: int, *, period: float, scale: float) -> Tensor:
    """(num_positions, num_angles) float64."""
    exponents_E = torch.arange(num_angles, dtype=torch.float64) / max(num_angles, 1)
    positions_S = torch.arange(num_positions, dtype=torch.float64) * scale
    return positions_S[:, None] / period**exponents_E
