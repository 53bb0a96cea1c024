"""Laying an estimated trajectory onto a reference: the choice that moves camera numbers most, so it has a name.

S poses. Modes (`ALIGNMENTS`):
  none        the estimate as it is
  first_pose  rigid, so that the first poses coincide
  se3         rigid, least squares over positions (metric systems)
  sim3        rigid and scale, least squares over positions (monocular systems; MonST3R and followers)
  rotation    as published with EgoM2P: rotation found on centred positions, applied to positions as they are, no
              translation and no scale; meant for trajectories relative to their first pose
Least squares after Umeyama 1991.
"""

from dataclasses import dataclass

import numpy as np

from egom2p.geometry.poses import check_poses, inverse_poses

ALIGNMENTS = ("none", "first_pose", "se3", "sim3", "rotation")

# Ten micrometres of spread and a ratio of a ten-thousandth are below what any tracker resolves.
_MIN_SPREAD_M = 1e-5
_MIN_SPREAD_RATIO = 1e-4


@dataclass(frozen=True)
class Alignment:
    """Similarity that maps the estimate's world onto the reference's: x -> scale * rotation @ x + translation.

    rotation (3, 3), translation (3,) metres. `problem` says what was not determined by the data (None: nothing);
    what was not determined is the identity, 1 or any of the equally good answers.
    """

    mode: str
    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    problem: str | None = None

    def apply(self, poses: np.ndarray) -> np.ndarray:
        """Poses (..., 4, 4) in the reference's world; scale acts on positions only."""
        aligned = np.array(poses, dtype=np.float64)
        aligned[..., :3, :3] = self.rotation @ aligned[..., :3, :3]
        aligned[..., :3, 3] = self.apply_to_points(np.asarray(poses, dtype=np.float64)[..., :3, 3])
        return aligned

    def apply_to_points(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in the reference's world."""
        return self.scale * np.asarray(points, dtype=np.float64) @ self.rotation.T + self.translation


def align_poses(estimate: np.ndarray, reference: np.ndarray, mode: str) -> Alignment:
    """Alignment of `estimate` (S, 4, 4) to `reference` (S, 4, 4) in one of ALIGNMENTS, poses paired by index."""
    estimate, reference = check_poses("estimate", estimate), check_poses("reference", reference)
    if len(estimate) != len(reference) or len(estimate) == 0:
        raise ValueError(f"found {len(estimate)} estimated and {len(reference)} reference poses, wanted as many, not 0")
    if mode == "none":
        return Alignment(mode, 1.0, np.eye(3), np.zeros(3))
    if mode == "first_pose":
        reference_from_estimate = reference[0] @ inverse_poses(estimate[0])
        return Alignment(mode, 1.0, reference_from_estimate[:3, :3], reference_from_estimate[:3, 3])
    if mode in ("se3", "sim3"):
        return align_points(estimate[:, :3, 3], reference[:, :3, 3], with_scale=mode == "sim3")
    if mode == "rotation":
        full = align_points(estimate[:, :3, 3], reference[:, :3, 3], with_scale=False)
        return Alignment(mode, 1.0, full.rotation, np.zeros(3), full.problem)
    raise ValueError(f"alignment must be one of {ALIGNMENTS}, got {mode!r}")


def align_points(estimate: np.ndarray, reference: np.ndarray, *, with_scale: bool) -> Alignment:
    """Rigid motion (and scale) that lays points (S, 3) onto points (S, 3) with the least summed squared distance."""
    mean_estimate, mean_reference = estimate.mean(axis=0), reference.mean(axis=0)
    centred_estimate_S3, centred_reference_S3 = estimate - mean_estimate, reference - mean_reference
    covariance = centred_reference_S3.T @ centred_estimate_S3 / len(estimate)
    left, singular, right = np.linalg.svd(covariance)
    sign = -1.0 if np.linalg.det(left) * np.linalg.det(right) < 0 else 1.0
    rotation = left @ np.diag([1.0, 1.0, sign]) @ right
    problems = [
        *_problems("estimate", estimate, centred_estimate_S3, smallest_m=0.0),
        *_problems("reference", reference, centred_reference_S3, smallest_m=_MIN_SPREAD_M),
    ]
    does_not_move = any("does not move" in problem for problem in problems)
    if does_not_move:
        rotation = np.eye(3)
    scale = 1.0
    if with_scale and not does_not_move:
        scale = float(
            (singular[0] + singular[1] + sign * singular[2]) / np.mean(np.sum(centred_estimate_S3**2, axis=1))
        )
    translation = mean_reference - scale * rotation @ mean_estimate
    mode = "sim3" if with_scale else "se3"
    return Alignment(mode, scale, rotation, translation, "; ".join(problems) or None)


def _problems(name: str, points_S3: np.ndarray, centred_S3: np.ndarray, *, smallest_m: float) -> list[str]:
    """What the shape of a trajectory leaves open."""
    spreads = np.linalg.svd(centred_S3, compute_uv=False) / np.sqrt(len(centred_S3))
    # Rounding of positions far from the origin must not pass for movement.
    rounding_m = 1e-12 * max(1.0, float(np.abs(points_S3).max()))
    if spreads[0] <= max(smallest_m, rounding_m):
        return [f"the {name} does not move (spread {spreads[0]:.2g} m): rotation and scale are not determined"]
    if len(spreads) < 2 or spreads[1] <= max(_MIN_SPREAD_RATIO * spreads[0], rounding_m):
        return [f"the {name} moves along a line: the rotation about it is not determined"]
    return []
