"""Drawing the positions of inputs and targets: at random (published), or with connected targets.

Every function returns disjoint ascending positions (inputs, targets), int32, with exactly the counts asked for.
"""

from typing import Literal

import numpy as np

GridPositions = Literal["random", "block", "tube"]
TrackPositions = Literal["random", "span"]


def draw_split(
    num_tokens: int, *, num_input: int, num_target: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Independent random positions. Raises ValueError if the counts do not fit."""
    total = num_input + num_target
    if total > num_tokens:
        raise ValueError(f"{num_input} inputs and {num_target} targets do not fit {num_tokens} positions")
    if total == num_tokens and (num_input == 0 or num_target == 0):
        positions = np.arange(num_tokens, dtype=np.int32)
        return (positions, positions[:0]) if num_target == 0 else (positions[:0], positions)
    drawn = rng.choice(num_tokens, total, replace=False, shuffle=num_input > 0 and num_target > 0)
    return _ascending(drawn[:num_input], num_tokens), _ascending(drawn[num_input:], num_tokens)


def draw_connected(
    shape: tuple[int, ...],
    *,
    num_input: int,
    num_target: int,
    positions: GridPositions | TrackPositions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Targets that hang together, inputs at random among all other positions.

    `block`, `span`   the positions nearest to a random centre, each axis measured in its own length
    `tube`            spatial cells at all times, the last cell perhaps at some times only
    """
    num_tokens = int(np.prod(shape))
    if num_input + num_target > num_tokens:
        raise ValueError(f"{num_input} inputs and {num_target} targets do not fit {num_tokens} positions")
    if positions == "tube":
        num_cells = num_tokens // shape[0]
        rank = (rng.permutation(num_cells)[None] * shape[0] + np.arange(shape[0])[:, None]).reshape(-1)
        order = np.argsort(rank)
    else:
        centre = rng.random(len(shape))
        axes = np.meshgrid(*[(np.arange(size) + 0.5) / size for size in shape], indexing="ij")
        distance = np.max([np.abs(axis - at) for axis, at in zip(axes, centre, strict=True)], axis=0)
        order = np.argsort(distance.reshape(-1), kind="stable")
    targets, others = order[:num_target], order[num_target:]
    inputs = rng.choice(others, num_input, replace=False) if num_input else others[:0]
    return _ascending(inputs, num_tokens), _ascending(targets, num_tokens)


def _ascending(positions: np.ndarray, num_tokens: int) -> np.ndarray:
    # Sorting int16 takes a third of the time of int64, and sorting is half of the masking of a large grid.
    return np.sort(positions.astype(np.int16 if num_tokens <= 32768 else np.int32)).astype(np.int32)
