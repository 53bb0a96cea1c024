"""Alignment of trajectories: it finds what was done, and says what it cannot know."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from egom2p.geometry import ALIGNMENTS, align_points, align_poses, canonicalise, poses_from_parts


def walk(rng, num_poses=30):
    turns = Rotation.from_rotvec(np.cumsum(0.1 * rng.normal(size=(num_poses, 3)), axis=0)).as_matrix()
    return poses_from_parts(turns, np.cumsum(0.1 * rng.normal(size=(num_poses, 3)), axis=0))


def similarity(rng, scale=1.0):
    rotation, translation = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)

    def apply(poses):
        return poses_from_parts(rotation @ poses[:, :3, :3], scale * poses[:, :3, 3] @ rotation.T + translation)

    return apply


@pytest.mark.parametrize(("mode", "scale"), [("first_pose", 1.0), ("se3", 1.0), ("sim3", 3.7), ("sim3", 0.02)])
def test_a_known_motion_is_found(mode, scale, rng):
    estimate = walk(rng)
    reference = similarity(rng, scale)(estimate)
    found = align_poses(estimate, reference, mode)
    assert found.scale == pytest.approx(scale) and found.problem is None
    np.testing.assert_allclose(found.apply(estimate), reference, atol=1e-12)


def test_rotation_mode_turns_about_the_origin(rng):
    reference = canonicalise(walk(rng))
    turn = poses_from_parts(Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix(), np.zeros(3))
    found = align_poses(turn @ reference, reference, "rotation")
    np.testing.assert_allclose(found.rotation, turn[:3, :3].T, atol=1e-12)
    np.testing.assert_array_equal(found.translation, np.zeros(3))


def test_a_mirrored_path_gets_a_rotation_not_a_reflection(rng):
    points = rng.normal(size=(40, 3))
    found = align_points(points * [1, 1, -1], points, with_scale=True)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


def test_the_answer_is_the_best_of_many(rng):
    estimate, reference = rng.normal(size=(2, 15, 3))
    found = align_points(estimate, reference, with_scale=True)
    best = np.sum((found.apply_to_points(estimate) - reference) ** 2)
    for _ in range(200):
        nudge = Rotation.from_rotvec(0.05 * rng.normal(size=3)).as_matrix()
        scale = found.scale * np.exp(0.05 * rng.normal())
        moved = scale * estimate @ (nudge @ found.rotation).T
        moved = moved + (reference - moved).mean(axis=0)
        assert np.sum((moved - reference) ** 2) >= best - 1e-12


def test_what_cannot_be_known_is_said(rng):
    moving = walk(rng)
    still = np.tile(moving[:1], (30, 1, 1))
    line = moving.copy()
    line[:, :3, 3] = np.linspace(0, 1, 30)[:, None] * [1.0, 2.0, 3.0] + 5.0
    for estimate, reference, words in (
        (moving, still, "the reference does not move"),
        (still, moving, "the estimate does not move"),
        (line, moving, "the estimate moves along a line"),
        (moving, line, "the reference moves along a line"),
        (moving[:1], moving[:1], "the estimate does not move"),
    ):
        for mode in ("se3", "sim3", "rotation"):
            found = align_poses(estimate, reference, mode)
            assert words in found.problem
            assert np.isfinite(found.apply(estimate)).all()
            assert np.linalg.det(found.rotation) == pytest.approx(1.0)
    assert align_poses(line, 2 * line[:, :, :] - line, "none").problem is None


def test_a_still_estimate_is_laid_on_the_middle_of_the_reference(rng):
    reference = walk(rng)
    found = align_poses(np.tile(np.eye(4), (30, 1, 1)), reference, "sim3")
    assert found.scale == 1.0
    np.testing.assert_allclose(found.apply(np.eye(4))[:3, 3], reference[:, :3, 3].mean(axis=0))


def test_wrong_requests_are_refused(rng):
    poses = walk(rng)
    with pytest.raises(ValueError, match=f"one of .*{ALIGNMENTS[-1]}"):
        align_poses(poses, poses, "prefix")
    with pytest.raises(ValueError, match="found 29 estimated and 30"):
        align_poses(poses[1:], poses, "se3")
