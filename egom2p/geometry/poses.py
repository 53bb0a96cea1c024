"""Rotations and poses in time: matrices, quaternions, two columns, angles, means; trajectories.

Matrices are (..., 3, 3), quaternions (..., 4) in the order x, y, z, w; angles are radians. A pose is a 4x4 matrix that
maps points of the camera into the world (`world_from_cam`), metres, OpenCV camera axes. S poses, Q query times, K
trajectories. Everything is float64.
"""

import numpy as np

from egom2p.contracts import check_shape

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


# A query this close to a sample is that sample, however wide the gaps around it.
_SAME_TIME_S = 1e-6


def check_poses(name: str, poses: np.ndarray) -> np.ndarray:
    """Poses (S, 4, 4) as float64; ValueError when one has NaN, no rotation (to 1e-3) or a wrong last row."""
    poses = np.asarray(poses, dtype=np.float64)
    check_shape(name, poses, "s 4 4")
    _refuse(name, ~np.isfinite(poses).all(axis=(1, 2)), "has NaN or infinite numbers")
    _refuse(name, (poses[:, 3] != np.array([0.0, 0.0, 0.0, 1.0])).any(axis=1), "has a last row other than 0 0 0 1")
    rotations = poses[:, :3, :3]
    error = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
    _refuse(name, (error > 1e-3) | (np.linalg.det(rotations) < 0), "has no rotation matrix")
    return poses


def poses_from_parts(rotations: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Poses (..., 4, 4) from rotations (..., 3, 3) and positions (..., 3)."""
    rotations, positions = np.asarray(rotations, dtype=np.float64), np.asarray(positions, dtype=np.float64)
    poses = np.zeros((*positions.shape[:-1], 4, 4))
    poses[..., :3, :3] = rotations
    poses[..., :3, 3] = positions
    poses[..., 3, 3] = 1.0
    return poses


def inverse_poses(poses: np.ndarray) -> np.ndarray:
    """`a_from_b` (..., 4, 4) turned into `b_from_a`; uses that the rotation is one."""
    poses = np.asarray(poses, dtype=np.float64)
    transposed = np.swapaxes(poses[..., :3, :3], -1, -2)
    return poses_from_parts(transposed, -(transposed @ poses[..., :3, 3:])[..., 0])


def canonicalise(world_from_cam: np.ndarray) -> np.ndarray:
    """Poses (S, 4, 4) relative to the first one, which becomes exactly the identity: `first_cam_from_cam`."""
    poses = np.asarray(world_from_cam, dtype=np.float64)
    check_shape("world_from_cam", poses, "s 4 4")
    relative = inverse_poses(poses[0]) @ poses
    relative[0] = np.eye(4)
    return relative


def frame_to_frame(world_from_cam: np.ndarray, *, step: int = 1) -> np.ndarray:
    """Motions (S - step, 4, 4): pose i + step seen from pose i."""
    return inverse_poses(world_from_cam[:-step]) @ world_from_cam[step:]


def interpolate_poses(
    times_s: np.ndarray,
    world_from_cam: np.ndarray,
    query_times_s: np.ndarray,
    *,
    max_gap_s: float,
    is_valid: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Poses (Q, 4, 4) at `query_times_s` (Q,) and which of them are valid (Q,) bool.

    Rotation by slerp, position linear between the two samples around the query. A query outside the samples, or
    between two samples more than `max_gap_s` apart, is invalid and holds the nearest sample (no samples: identity).
    `times_s` (S,) must not go back; of samples at the same time the last counts. Samples with `is_valid` False are
    left out before gaps are measured.
    """
    times_s, query_times_s = np.asarray(times_s, dtype=np.float64), np.asarray(query_times_s, dtype=np.float64)
    poses = np.asarray(world_from_cam, dtype=np.float64)
    check_shape("world_from_cam", poses, "s 4 4", s=len(times_s))
    if is_valid is not None:
        times_s, poses = times_s[is_valid], poses[is_valid]
    if len(times_s) == 0:
        return np.tile(np.eye(4), (len(query_times_s), 1, 1)), np.zeros(len(query_times_s), dtype=bool)
    poses = check_poses("world_from_cam", poses)
    before, after, fraction, can_use = interpolation_weights(times_s, query_times_s, max_gap_s=max_gap_s)
    quaternions = quaternion_from_matrix(poses[:, :3, :3])
    rotations = matrix_from_quaternion(slerp(quaternions[before], quaternions[after], fraction))
    positions = poses[before, :3, 3] + fraction[:, None] * (poses[after, :3, 3] - poses[before, :3, 3])
    return poses_from_parts(rotations, positions), can_use


def interpolation_weights(
    times_s: np.ndarray, query_times_s: np.ndarray, *, max_gap_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Index before, index after, fraction between them and validity, each (Q,), for linear interpolation in time.

    Where invalid (outside, or in a gap wider than `max_gap_s`), the fraction is 0 or 1: the nearest sample.
    """
    if len(times_s) == 0 or not np.all(np.isfinite(times_s)) or not np.all(np.diff(times_s) >= 0):
        raise ValueError("sample times must be finite, at least one, and must not go back")
    after = np.clip(np.searchsorted(times_s, query_times_s, side="right"), 1, max(len(times_s) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times_s) - 1)
    gap_s = times_s[after] - times_s[before]
    fraction = np.where(gap_s > 0, (query_times_s - times_s[before]) / np.where(gap_s > 0, gap_s, 1.0), 1.0)
    is_inside = (query_times_s >= times_s[0]) & (query_times_s <= times_s[-1])
    nearest = np.round(np.clip(fraction, 0.0, 1.0))
    distance_s = np.abs(query_times_s - np.where(nearest > 0, times_s[after], times_s[before]))
    can_bridge = is_inside & (gap_s <= max_gap_s)
    return before, after, np.where(can_bridge, fraction, nearest), can_bridge | (distance_s <= _SAME_TIME_S)


def mean_poses(poses: np.ndarray) -> np.ndarray:
    """Mean (S, 4, 4) of K trajectories (K, S, 4, 4): chordal mean of the rotations, mean of the positions."""
    poses = np.asarray(poses, dtype=np.float64)
    check_shape("poses", poses, "k s 4 4")
    return poses_from_parts(mean_rotation(poses[..., :3, :3]), poses[..., :3, 3].mean(axis=0))


def match_times(
    times_a_s: np.ndarray, times_b_s: np.ndarray, *, max_difference_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,) into a and into b of samples at the same time: each of the shorter list with its nearest partner.

    Pairs further apart than `max_difference_s` are left out. Neither list may go back.
    """
    if len(times_a_s) > len(times_b_s):
        index_b, index_a = match_times(times_b_s, times_a_s, max_difference_s=max_difference_s)
        return index_a, index_b
    times_a_s, times_b_s = np.asarray(times_a_s, dtype=np.float64), np.asarray(times_b_s, dtype=np.float64)
    if len(times_a_s) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    right = np.clip(np.searchsorted(times_b_s, times_a_s), 0, len(times_b_s) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(times_a_s - times_b_s[left]) <= np.abs(times_b_s[right] - times_a_s), left, right)
    is_close = np.abs(times_b_s[nearest] - times_a_s) <= max_difference_s
    return np.flatnonzero(is_close), nearest[is_close]


def _refuse(name: str, is_bad_S: np.ndarray, why: str) -> None:
    if is_bad_S.any():
        count = int(is_bad_S.sum())
        raise ValueError(f"{name}: pose {int(np.argmax(is_bad_S))} {why} ({count} of {len(is_bad_S)} poses)")
