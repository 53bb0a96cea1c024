"""Rotations against scipy, and at the corners where formulas lose digits."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation, Slerp

from egom2p.geometry import (
    angle_between,
    matrix_from_quaternion,
    matrix_from_two_columns,
    mean_rotation,
    nearest_rotation,
    quaternion_from_matrix,
    rotation_angle,
    slerp,
    two_columns_from_matrix,
)


def test_quaternions_and_matrices_agree_with_scipy_and_invert_each_other(rng):
    rotations = Rotation.random(500, rng=rng)
    np.testing.assert_allclose(matrix_from_quaternion(rotations.as_quat()), rotations.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(
        quaternion_from_matrix(rotations.as_matrix()), rotations.as_quat(canonical=True), atol=1e-14
    )


def test_half_turns_keep_their_axis(rng):
    axes = rng.normal(size=(200, 3))
    axes = np.concatenate([axes / np.linalg.norm(axes, axis=1, keepdims=True), np.eye(3), -np.eye(3)])
    matrices = Rotation.from_rotvec(np.pi * axes).as_matrix()
    np.testing.assert_allclose(matrix_from_quaternion(quaternion_from_matrix(matrices)), matrices, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-3, 1.0, np.pi - 1e-8, np.pi])
def test_angle_is_exact_at_both_ends(angle, rng):
    axis = rng.normal(size=3)
    matrix = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    assert rotation_angle(matrix) == pytest.approx(angle, rel=1e-6, abs=1e-15)


def test_angle_between_vectors_ignores_length_and_keeps_small_angles():
    assert angle_between(np.array([2.0, 0, 0]), np.array([5.0, 5e-10, 0])) == pytest.approx(1e-10)
    assert angle_between(np.array([1.0, 0, 0]), np.array([-3.0, 0, 0])) == pytest.approx(np.pi)


def test_slerp_agrees_with_scipy_and_takes_the_shorter_way(rng):
    start, end = Rotation.random(50, rng=rng), Rotation.random(50, rng=rng)
    fractions = rng.random(50)
    found = slerp(start.as_quat(), -end.as_quat(), fractions)
    for index in range(50):
        wanted = Slerp([0, 1], Rotation.concatenate([start[index], end[index]]))(fractions[index])
        assert (wanted.inv() * Rotation.from_quat(found[index])).magnitude() < 1e-7
    np.testing.assert_allclose(slerp(start.as_quat(), start.as_quat(), fractions), start.as_quat(), atol=1e-15)


def test_two_columns_round_trip_and_survive_scale_and_shear(rng):
    matrices = Rotation.random(100, rng=rng).as_matrix()
    columns = two_columns_from_matrix(matrices)
    np.testing.assert_allclose(matrix_from_two_columns(columns), matrices, atol=1e-14)
    sheared = columns.copy()
    sheared[:, 3:] = 3 * sheared[:, 3:] + 0.7 * sheared[:, :3]
    sheared[:, :3] *= 0.01
    np.testing.assert_allclose(matrix_from_two_columns(sheared), matrices, atol=1e-12)


@pytest.mark.parametrize("columns", [[0, 0, 0, 0, 1, 0], [1, 0, 0, 2, 0, 0], [np.nan, 0, 0, 0, 1, 0]])
def test_two_columns_without_direction_are_refused(columns):
    with pytest.raises(ValueError, match="no direction"):
        matrix_from_two_columns(np.array(columns, dtype=float))


def test_two_columns_match_the_published_conversion(parity_dir):
    known = load_file(parity_dir / "tokenizer" / "representations.safetensors")
    found = matrix_from_two_columns(known["cam.rot6d_to_rotmat_in"])
    np.testing.assert_allclose(found, known["cam.rot6d_to_rotmat_out"], atol=1e-12)


def test_mean_rotation_agrees_with_scipy_and_turns_with_its_input(rng):
    rotations = Rotation.random(rng=rng) * Rotation.from_rotvec(0.4 * rng.normal(size=(7, 3)))
    mean = mean_rotation(rotations.as_matrix())
    np.testing.assert_allclose(mean, rotations.mean().as_matrix(), atol=1e-12)
    turn = Rotation.random(rng=rng)
    np.testing.assert_allclose(mean_rotation((turn * rotations).as_matrix()), turn.as_matrix() @ mean, atol=1e-12)


def test_rotations_that_cancel_have_no_mean():
    half_turn = Rotation.from_rotvec([0, 0, np.pi]).as_matrix()
    with pytest.raises(ValueError, match="no single nearest rotation"):
        mean_rotation(np.stack([np.eye(3), half_turn]))


def test_nearest_rotation_is_a_rotation_even_for_reflections(rng):
    found = nearest_rotation(rng.normal(size=(200, 3, 3)))
    np.testing.assert_allclose(found @ np.swapaxes(found, 1, 2), np.tile(np.eye(3), (200, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(found), 1.0)


def test_a_zero_quaternion_is_refused():
    with pytest.raises(ValueError, match="length 0"):
        matrix_from_quaternion(np.zeros(4))
