"""Trajectories: relative poses, interpolation, means, pairing by time."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation, Slerp

from egom2p.geometry import (
    canonicalise,
    check_poses,
    frame_to_frame,
    interpolate_poses,
    inverse_poses,
    match_times,
    mean_poses,
    poses_from_parts,
    rotation_angle,
    two_columns_from_matrix,
)


def random_walk(rng, num_poses=20):
    turns = Rotation.from_rotvec(np.cumsum(0.1 * rng.normal(size=(num_poses, 3)), axis=0))
    return poses_from_parts(turns.as_matrix(), np.cumsum(0.1 * rng.normal(size=(num_poses, 3)), axis=0))


def test_inverse_poses_invert(rng):
    poses = random_walk(rng)
    np.testing.assert_allclose(inverse_poses(poses) @ poses, np.tile(np.eye(4), (20, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(inverse_poses(poses), np.linalg.inv(poses), atol=1e-14)


def test_canonicalise_does_not_feel_the_choice_of_world(rng):
    poses = random_walk(rng)
    world = random_walk(rng)[-1]
    np.testing.assert_allclose(canonicalise(world @ poses), canonicalise(poses), atol=1e-13)
    np.testing.assert_array_equal(canonicalise(poses)[0], np.eye(4))
    np.testing.assert_allclose(frame_to_frame(canonicalise(poses)), frame_to_frame(poses), atol=1e-13)


def test_canonical_poses_match_the_published_nine_numbers(parity_dir):
    known = load_file(parity_dir / "tokenizer" / "representations.safetensors")
    for poses, nine in zip(known["cam.poses_c2w_4x4_f64"], known["cam.nine_d_f64"], strict=True):
        found = canonicalise(poses)
        columns = two_columns_from_matrix(found[:, :3, :3])
        np.testing.assert_allclose(np.concatenate([columns, found[:, :3, 3]], axis=1), nine, atol=1e-10)


def test_interpolation_agrees_with_scipy(rng):
    poses, times_s = random_walk(rng), np.cumsum(0.01 + rng.random(20))
    queries_s = rng.uniform(times_s[0], times_s[-1], size=200)
    found, is_valid = interpolate_poses(times_s, poses, queries_s, max_gap_s=10.0)
    assert is_valid.all()
    wanted = Slerp(times_s, Rotation.from_matrix(poses[:, :3, :3]))(queries_s).as_matrix()
    np.testing.assert_allclose(found[:, :3, :3], wanted, atol=1e-12)
    for axis in range(3):
        np.testing.assert_allclose(found[:, axis, 3], np.interp(queries_s, times_s, poses[:, axis, 3]), atol=1e-12)


def test_interpolation_at_the_samples_gives_the_samples(rng):
    poses, times_s = random_walk(rng), np.arange(20.0)
    found, is_valid = interpolate_poses(times_s, poses, times_s, max_gap_s=0.1)
    assert is_valid.all()
    np.testing.assert_allclose(found, poses, atol=1e-12)


def test_gaps_and_ends_are_invalid_and_never_bridged(rng):
    poses, times_s = random_walk(rng, 4), np.array([0.0, 0.1, 1.0, 1.1])
    queries_s = np.array([-0.1, 0.0, 0.05, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2])
    found, is_valid = interpolate_poses(times_s, poses, queries_s, max_gap_s=0.2)
    assert is_valid.tolist() == [False, True, True, True, False, False, True, True, False]
    np.testing.assert_allclose(found[[0, 4, 5, 8]], poses[[0, 1, 2, 3]], atol=1e-12)


def test_invalid_samples_are_left_out_and_none_at_all_is_legal(rng):
    poses, times_s = random_walk(rng, 5), np.arange(5.0)
    poses[2] = np.nan
    is_valid = np.arange(5) != 2
    _, can_use = interpolate_poses(times_s, poses, np.array([0.5, 1.5, 2.0]), max_gap_s=1.0, is_valid=is_valid)
    assert can_use.tolist() == [True, False, False]
    with pytest.raises(ValueError, match="pose 2 has NaN"):
        interpolate_poses(times_s, poses, times_s, max_gap_s=1.0)
    found, can_use = interpolate_poses(times_s, poses, times_s, max_gap_s=1.0, is_valid=np.zeros(5, dtype=bool))
    assert not can_use.any() and np.isfinite(found).all()
    _, can_use = interpolate_poses(times_s[:1], poses[:1], np.array([0.0, 0.1]), max_gap_s=1.0)
    assert can_use.tolist() == [True, False]


def test_repeated_times_use_the_last_and_times_that_go_back_are_refused(rng):
    poses = random_walk(rng, 3)
    found, is_valid = interpolate_poses(np.array([0.0, 1.0, 1.0]), poses, np.array([1.0]), max_gap_s=2.0)
    assert is_valid.all()
    np.testing.assert_allclose(found[0], poses[2], atol=1e-12)
    with pytest.raises(ValueError, match="must not go back"):
        interpolate_poses(np.array([0.0, 2.0, 1.0]), poses, np.array([1.0]), max_gap_s=2.0)


def test_interpolated_device_poses_match_the_real_recording(real_data_dir):
    """Aria closed-loop trajectory (1 kHz) put on a 30 Hz clock, as computed independently beside the sample."""
    folder = real_data_dir / "aria_mps_sample"
    rows = np.genfromtxt(folder / "trajectory" / "closed_loop_trajectory.csv", delimiter=",", names=True, dtype=None)
    positions = np.stack([rows[f"t{axis}_world_device"] for axis in "xyz"], axis=1)
    quaternions = np.stack([rows[f"q{axis}_world_device"] for axis in "xyzw"], axis=1)
    poses = poses_from_parts(Rotation.from_quat(quaternions).as_matrix(), positions)
    known = np.load(folder / "reference_cam2world_30fps.npz")
    found, is_valid = interpolate_poses(
        rows["tracking_timestamp_us"] * 1e-6, poses, known["grid_us"] * 1e-6, max_gap_s=0.05
    )
    assert is_valid.all()
    np.testing.assert_allclose(found, known["T_world_device"], atol=1e-7)


def test_mean_of_copies_is_the_copy_and_of_mirrored_errors_the_truth(rng):
    poses = random_walk(rng)
    np.testing.assert_allclose(mean_poses(np.stack([poses] * 3)), poses, atol=1e-12)
    shift = poses_from_parts(Rotation.from_rotvec(0.2 * rng.normal(size=(20, 3))).as_matrix(), np.zeros((20, 3)))
    np.testing.assert_allclose(mean_poses(np.stack([poses @ shift, poses @ inverse_poses(shift)])), poses, atol=1e-12)


def test_poses_that_are_none_are_refused(rng):
    poses = random_walk(rng)
    for index, value, match in ((3, np.nan, "pose 3 has NaN"), (4, 2.0, "pose 4 has no rotation")):
        broken = poses.copy()
        broken[index, 0, 0] = value
        with pytest.raises(ValueError, match=match):
            check_poses("estimate", broken)
    with pytest.raises(ValueError, match="last row"):
        check_poses("estimate", poses + np.eye(4)[3])
    with pytest.raises(ValueError, match="shape"):
        check_poses("estimate", poses[:, :3])


def test_pairs_are_the_nearest_within_the_tolerance_whichever_side_is_shorter():
    a_s, b_s = np.array([0.0, 1.0, 2.0, 9.0]), np.array([0.004, 0.9, 0.996, 1.5, 2.2, 5.0])
    index_a, index_b = match_times(a_s, b_s, max_difference_s=0.01)
    assert index_a.tolist() == [0, 1] and index_b.tolist() == [0, 2]
    index_b, index_a = match_times(b_s, a_s, max_difference_s=0.01)
    assert index_a.tolist() == [0, 1] and index_b.tolist() == [0, 2]
    assert match_times(np.zeros(0), b_s, max_difference_s=1.0)[0].size == 0


def test_relative_rotation_of_a_turning_camera_is_its_speed():
    turns = Rotation.from_euler("y", 3.0 * np.arange(10)[:, None], degrees=True).as_matrix()
    motion = frame_to_frame(poses_from_parts(turns, np.zeros((10, 3))))
    np.testing.assert_allclose(np.degrees(rotation_angle(motion[:, :3, :3])), 3.0, atol=1e-12)
