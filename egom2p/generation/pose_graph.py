"""Poses of overlapping windows laid onto each other all at once, instead of each onto what is there.

W windows, E pairs of windows that overlap, T samples of the whole. Where windows are closer together than half their
length, each overlaps several; a pair of them says how one lies in the other. Placements agree with all pairs in least
squares; a pair that disagrees with the rest counts less (Huber). Every pair reaches a few windows ahead, so the normal
equations are a band, and Gauss-Newton with a banded Cholesky factor solves them without inner iterations. (An iterative
sparse solver, scipy's least_squares, was not tried.)
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import solveh_banded
from scipy.spatial.transform import Rotation

from egom2p.geometry import matrix_from_quaternion, mean_rotation, poses_from_parts, quaternion_from_matrix

_SMALLEST_OVERLAP, _ROUNDS, _HUBER = 4, 20, 2.0
_SMALLEST_DEG, _SMALLEST_M = 1e-3, 1e-5  # of typical residuals: windows that agree exactly must not divide by 0


def placed_windows(
    starts: Sequence[int], windows_WSCC: np.ndarray, is_valid_WS: np.ndarray, first_guess_WCC: np.ndarray
) -> np.ndarray:
    """Placements (W, 4, 4): poses of window w in the common world are `placement @ windows[w]`.

    starts        number of each window's first sample; increasing
    first_guess   placements to begin at; the first one stays
    """
    firsts, seconds, weights, turns, shifts, centres = _pairs(starts, windows_WSCC, is_valid_WS)
    placed = first_guess_WCC.copy()
    if not len(firsts) or (seconds - firsts).max() < 2:
        return placed  # a chain without a loop: the first guess agrees with every pair
    num_windows, reach = len(starts), int((seconds - firsts).max())
    for _ in range(_ROUNDS):
        turned, moved = _residuals(placed, firsts, seconds, turns, shifts, centres)
        sizes_deg, sizes_m = (np.linalg.norm(part, axis=1) for part in (turned, moved))
        # In units of what is usual: neighbours overlap more, agree better, and count as much more.
        scale_r = max(np.median(sizes_deg * np.sqrt(weights)), np.radians(_SMALLEST_DEG))
        scale_m = max(np.median(sizes_m * np.sqrt(weights)), _SMALLEST_M)
        sizes = np.sqrt(weights * ((sizes_deg / scale_r) ** 2 + (sizes_m / scale_m) ** 2))
        trust_E = weights * np.minimum(1.0, _HUBER / np.maximum(sizes, 1e-12))
        residual_E6 = np.concatenate([turned / scale_r, moved / scale_m], axis=1)
        of_first, of_second = _jacobians(placed, firsts, seconds, turns, shifts, centres, scale_r, scale_m)
        band = np.zeros((6 * (reach + 1), 6 * num_windows))
        right = np.zeros((num_windows, 6))
        for rows, left in ((firsts, of_first), (seconds, of_second)):
            np.add.at(right, rows, np.einsum("e,eka,ek->ea", trust_E, left, residual_E6))
            for columns, other in ((firsts, of_first), (seconds, of_second)):
                _add_blocks(band, rows, columns, np.einsum("e,eka,ekb->eab", trust_E, left, other))
        band[0] += 1e-9 * band[0].max()
        band[0, :6] += 1e6 * band[0].max()  # the first window stays
        step_W6 = -solveh_banded(band, right.ravel(), lower=True).reshape(num_windows, 6)
        placed = poses_from_parts(
            Rotation.from_rotvec(step_W6[:, :3]).as_matrix() @ placed[:, :3, :3], placed[:, :3, 3] + step_W6[:, 3:]
        )
        if np.abs(step_W6).max() < 1e-7:
            break
    return placed


def fused_poses(
    starts: Sequence[int], placed_WSCC: np.ndarray, is_valid_WS: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Poses (T, 4, 4) and validity (T,) of all windows together, each the surer the farther from its ends."""
    count = placed_WSCC.shape[1]
    from_end_S = np.minimum(np.arange(1, count + 1), np.arange(count, 0, -1)).astype(float)
    positions, weights, spread = np.zeros((length, 3)), np.zeros(length), np.zeros((length, 4, 4))
    is_valid = np.zeros(length, bool)
    for start, poses, own_is_valid in zip(starts, placed_WSCC, is_valid_WS, strict=True):
        rows, weight_S = slice(start, start + count), from_end_S * np.where(own_is_valid, 1.0, 1e-6)
        quaternions = quaternion_from_matrix(poses[:, :3, :3])
        positions[rows] += weight_S[:, None] * poses[:, :3, 3]
        spread[rows] += weight_S[:, None, None] * quaternions[:, :, None] * quaternions[:, None, :]
        weights[rows] += weight_S
        is_valid[rows] |= own_is_valid
    # The mean of quaternions without their signs: the largest eigenvector of their outer products.
    rotations = matrix_from_quaternion(np.linalg.eigh(spread)[1][:, :, -1])
    return poses_from_parts(rotations, positions / weights[:, None]), is_valid


def _pairs(starts: Sequence[int], windows: np.ndarray, is_valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pairs: windows (E,), (E,), share of a window they have in common (E,), and how the second lies in the first:
    rotation (E, 3, 3), translation (E, 3), and the middle of the overlap in the second (E, 3)."""
    count, found = windows.shape[1], []
    for first, start in enumerate(starts):
        for second in range(first + 1, len(starts)):
            offset = starts[second] - start
            if count - offset < _SMALLEST_OVERLAP:
                break
            both = is_valid[first, offset:] & is_valid[second, : count - offset]
            if both.sum() < _SMALLEST_OVERLAP:
                continue
            a, b = windows[first, offset:][both], windows[second, : count - offset][both]
            turn = mean_rotation(a[:, :3, :3] @ np.swapaxes(b[:, :3, :3], 1, 2))
            centre = b[:, :3, 3].mean(axis=0)
            found.append((first, second, both.sum() / count, turn, a[:, :3, 3].mean(axis=0) - turn @ centre, centre))
    columns = zip(*found, strict=True) if found else [()] * 6
    return tuple(np.array(column) for column in columns)


def _residuals(
    placed: np.ndarray,
    firsts: np.ndarray,
    seconds: np.ndarray,
    turns: np.ndarray,
    shifts: np.ndarray,
    centres: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What a pair disagrees about: rotation vector (E, 3), and metres (E, 3) between the two places of its middle."""
    a, b = placed[firsts], placed[seconds]
    predicted = a[:, :3, :3] @ turns
    turned = Rotation.from_matrix(np.swapaxes(predicted, 1, 2) @ b[:, :3, :3]).as_rotvec()
    here = np.einsum("eij,ej->ei", a[:, :3, :3], np.einsum("eij,ej->ei", turns, centres) + shifts) + a[:, :3, 3]
    there = np.einsum("eij,ej->ei", b[:, :3, :3], centres) + b[:, :3, 3]
    return turned, there - here


def _jacobians(
    placed: np.ndarray, firsts: np.ndarray, seconds: np.ndarray, turns: np.ndarray, shifts: np.ndarray,
    centres: np.ndarray, scale_r: float, scale_m: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Derivatives (E, 6, 6) of the scaled residuals by (turn, move) of the first and of the second window."""
    a, b = placed[firsts], placed[seconds]
    arm_a = np.einsum("eij,ej->ei", a[:, :3, :3], np.einsum("eij,ej->ei", turns, centres) + shifts)
    arm_b = np.einsum("eij,ej->ei", b[:, :3, :3], centres)
    found = []
    for sign, arm in ((-1.0, arm_a), (1.0, arm_b)):
        block = np.zeros((len(firsts), 6, 6))
        block[:, :3, :3] = sign * np.swapaxes(b[:, :3, :3], 1, 2) / scale_r
        block[:, 3:, :3] = -sign * _cross(arm) / scale_m
        block[:, 3:, 3:] = sign * np.eye(3) / scale_m
        found.append(block)
    return found[0], found[1]


def _add_blocks(band: np.ndarray, rows: np.ndarray, columns: np.ndarray, blocks_E66: np.ndarray) -> None:
    """Add blocks of a symmetric matrix to its lower band, entry (i - j, j)."""
    i, j = (6 * rows[:, None, None] + np.arange(6)[:, None], 6 * columns[:, None, None] + np.arange(6))
    i, j = np.broadcast_arrays(i, j)
    is_lower = i >= j
    np.add.at(band, ((i - j)[is_lower], j[is_lower]), blocks_E66[is_lower])


def _cross(vectors: np.ndarray) -> np.ndarray:
    x, y, z = vectors.T
    nothing = np.zeros_like(x)
    return np.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], axis=1).reshape(-1, 3, 3)
