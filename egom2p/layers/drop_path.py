"""Stochastic depth, drawn once per clip: all rows of a clip keep or drop a branch together."""

import torch
from torch import Tensor


def draw_branch_scale(
    num_clips: int,
    num_branches: int,
    rate: float,
    *,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(num_clips, num_branches) float32: 0 with probability `rate`, else 1 / (1 - rate): the mean stays 1.

    Without a generator torch's own state of the device is drawn from.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a drop rate is in [0, 1), got {rate}")
    draws = torch.rand(num_clips, num_branches, device=device, generator=generator)
    return (draws >= rate).float() / (1 - rate)


def spread_over_rows(values: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """(B, C), one line per clip -> (num_rows, C), one line per row; `offsets` (B+1,) say where clips begin."""
    return torch.repeat_interleave(values, offsets.diff(), dim=0, output_size=num_rows)
