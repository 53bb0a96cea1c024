"""Gaze points and rays."""

import numpy as np
import pytest

from egom2p.contracts import Intrinsics
from egom2p.geometry import (
    gaze_angle_deg,
    gaze_from_pixels,
    gaze_rays,
    pixels_from_gaze,
    ray_from_yaw_pitch,
    yaw_of_both_eyes,
)

CAMERA = Intrinsics(width=100, height=80, fx=50.0, fy=50.0, cx=49.5, cy=39.5)


def test_gaze_zero_is_the_outer_corner_and_one_half_the_middle():
    np.testing.assert_allclose(
        pixels_from_gaze(np.array([[0, 0], [0.5, 0.5], [1, 1]]), 100, 80), [[-0.5, -0.5], [49.5, 39.5], [99.5, 79.5]]
    )


def test_pixels_and_gaze_invert_each_other(rng):
    gaze = rng.random((30, 2))
    np.testing.assert_allclose(gaze_from_pixels(pixels_from_gaze(gaze, 64, 48), 64, 48), gaze, atol=1e-15)


def test_the_middle_looks_ahead_and_the_edge_by_the_field_of_view():
    ray, exists = gaze_rays(np.array([0.5, 0.5]), CAMERA)
    assert exists
    np.testing.assert_allclose(ray, [0, 0, 1], atol=1e-15)
    assert gaze_angle_deg(np.array([0.5, 0.5]), np.array([1.0, 0.5]), CAMERA) == pytest.approx(45.0)


def test_angle_is_symmetric_zero_on_itself_and_obeys_the_triangle(rng):
    a, b, c = rng.random((3, 200, 2))
    ab = gaze_angle_deg(a, b, CAMERA)
    np.testing.assert_allclose(ab, gaze_angle_deg(b, a, CAMERA), atol=1e-12)
    np.testing.assert_allclose(gaze_angle_deg(a, a, CAMERA), 0.0, atol=1e-12)
    assert (gaze_angle_deg(a, c, CAMERA) <= ab + gaze_angle_deg(b, c, CAMERA) + 1e-9).all()


def test_angle_does_not_feel_the_size_of_the_image(rng):
    a, b = rng.random((2, 50, 2))
    np.testing.assert_allclose(gaze_angle_deg(a, b, CAMERA.resized(25, 20)), gaze_angle_deg(a, b, CAMERA), atol=1e-10)


def test_a_point_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="1 of 2 gaze points"):
        gaze_angle_deg(np.array([[0.5, 0.5], [np.nan, 0.5]]), np.full((2, 2), 0.5), CAMERA)


def test_yaw_turns_left_and_pitch_up():
    np.testing.assert_allclose(ray_from_yaw_pitch(0.0, 0.0), [0, 0, 1])
    np.testing.assert_allclose(ray_from_yaw_pitch(np.pi / 4, 0.0), [np.sqrt(0.5), 0, np.sqrt(0.5)])
    np.testing.assert_allclose(ray_from_yaw_pitch(0.0, np.pi / 4), [0, np.sqrt(0.5), np.sqrt(0.5)])
    assert ray_from_yaw_pitch(np.zeros(7), np.zeros(7)).shape == (7, 3)


def test_eyes_that_look_at_a_near_point_meet_between_them():
    assert yaw_of_both_eyes(-0.1, 0.1) == pytest.approx(0.0)
    assert yaw_of_both_eyes(0.2, 0.2) == pytest.approx(0.2)


def test_both_gaze_layouts_of_a_real_recording_agree(real_data_dir):
    """Vergence files give a yaw per eye; the classic file of the same recording gives one."""
    folder = real_data_dir / "aria_mps_sample"
    both = np.genfromtxt(
        folder / "eye_gaze_vergence" / "generalized_gaze.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    one = np.genfromtxt(folder / "eye_gaze" / "eyegaze.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert len(both) == len(one)
    ours = ray_from_yaw_pitch(
        yaw_of_both_eyes(both["left_yaw_rads_cpf"], both["right_yaw_rads_cpf"]), both["pitch_rads_cpf"]
    )
    theirs = ray_from_yaw_pitch(one["yaw_rads_cpf"], one["pitch_rads_cpf"])
    # Two models of the vendor on the same eyes: close, not equal.
    assert np.degrees(np.arccos(np.clip(np.sum(ours * theirs, axis=1), -1, 1))).mean() < 5
