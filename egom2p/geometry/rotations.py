"""Rotations: matrices, quaternions, two columns, angles and means.

Matrices are (..., 3, 3), quaternions (..., 4) in the order x, y, z, w; angles are radians. Everything is float64.
"""

import numpy as np

_SMALLEST_LENGTH = 1e-12


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) xyzw of any length but zero."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    length = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    if not np.all(length > _SMALLEST_LENGTH):
        raise ValueError("a quaternion has length 0 (or is not a number), so it is no rotation")
    x, y, z, w = np.moveaxis(quaternion / length, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4) xyzw with w >= 0 of rotation matrices (..., 3, 3)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    xx, yy, zz = matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2]
    xy, xz, yz = (matrix[..., i, j] + matrix[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    wx, wy, wz = (matrix[..., i, j] - matrix[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    # Row k is 4 * q[k] * q: the row of the largest element divides by nothing small.
    outer = np.stack(
        [
            np.stack([1 + xx - yy - zz, xy, xz, wx], axis=-1),
            np.stack([xy, 1 - xx + yy - zz, yz, wy], axis=-1),
            np.stack([xz, yz, 1 - xx - yy + zz, wz], axis=-1),
            np.stack([wx, wy, wz, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    quaternion = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def matrix_from_two_columns(columns: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) from two free vectors (..., 6) = first column, second column (Gram-Schmidt).

    The first vector keeps its direction, the second is made perpendicular to it, the third is their cross product
    (Zhou et al., On the Continuity of Rotation Representations, 2019). Zero or parallel vectors raise ValueError.
    """
    columns = np.asarray(columns, dtype=np.float64)
    first = _unit(columns[..., :3], "the first column")
    second = _unit(columns[..., 3:], "the second column")
    second = _unit(second - np.sum(first * second, axis=-1, keepdims=True) * first, "the part beside the first column")
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def two_columns_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """First and second column, one after the other (..., 6), of matrices (..., 3, 3)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def rotation_angle(matrix: np.ndarray) -> np.ndarray:
    """Angle (...) in [0, pi] radians of rotation matrices (..., 3, 3), exact near 0 and near pi.

    From sine and cosine together: the arccos of the trace alone loses everything below 1e-8.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    twice_sine = np.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        axis=-1,
    )
    twice_cosine = np.trace(matrix, axis1=-2, axis2=-1) - 1
    return np.arctan2(np.linalg.norm(twice_sine, axis=-1), twice_cosine)


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle (...) in [0, pi] radians between vectors (..., 3) of any length but zero."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1))


def slerp(start: np.ndarray, end: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Quaternions (..., 4) at `fraction` (...) of the shorter way from `start` to `end` (..., 4), constant speed."""
    start = _unit(np.asarray(start, dtype=np.float64), "a quaternion")
    end = _unit(np.asarray(end, dtype=np.float64), "a quaternion")
    fraction = np.asarray(fraction, dtype=np.float64)[..., None]
    end = np.where(np.sum(start * end, axis=-1, keepdims=True) < 0, -end, end)
    half_chord = np.linalg.norm(end - start, axis=-1, keepdims=True) / 2
    angle = 2 * np.arcsin(np.clip(half_chord, 0.0, 1.0))
    is_wide = angle > 1e-8
    sine = np.where(is_wide, np.sin(angle), 1.0)
    weight_start = np.where(is_wide, np.sin((1 - fraction) * angle) / sine, 1 - fraction)
    weight_end = np.where(is_wide, np.sin(fraction * angle) / sine, fraction)
    return _unit(weight_start * start + weight_end * end, "the interpolated quaternion")


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Rotation (..., 3, 3) nearest to any matrix (..., 3, 3) in the Frobenius norm.

    Raises ValueError where several are equally near (rank below 2, or a balanced reflection).
    """
    left, singular, right = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    sign = np.where(np.linalg.det(left) * np.linalg.det(right) < 0, -1.0, 1.0)
    gap = singular[..., 1] + sign * singular[..., 2]
    if not np.all(gap > 1e-9 * np.maximum(singular[..., 0], _SMALLEST_LENGTH)):
        raise ValueError("a matrix has no single nearest rotation (rank below 2, or a balanced reflection)")
    flip = np.ones(singular.shape)
    flip[..., 2] = sign
    return (left * flip[..., None, :]) @ right


def mean_rotation(matrices: np.ndarray) -> np.ndarray:
    """Chordal mean (..., 3, 3) of rotations (K, ..., 3, 3): the rotation with the least summed squared difference.

    Raises ValueError when the rotations cancel (two that are half a turn apart have no mean).
    """
    return nearest_rotation(np.mean(np.asarray(matrices, dtype=np.float64), axis=0))


def _unit(vector: np.ndarray, what: str) -> np.ndarray:
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if not np.all(length > _SMALLEST_LENGTH):
        raise ValueError(f"{what} has length 0 (or is not a number), so it has no direction")
    return vector / length
