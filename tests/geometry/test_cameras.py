"""Cameras: pixel conventions, the fisheye model against Aria's own numbers, and the way back."""

import json

import numpy as np
import pytest
from scipy.optimize import fsolve

from egom2p.contracts import Intrinsics
from egom2p.geometry import (
    CLOCKWISE_TURN,
    fisheye624,
    gaze_from_yaw_pitch,
    inverse_poses,
    is_inside,
    pixel_grid,
    pixels_from_gaze,
    project,
    rays,
    turned_clockwise,
    unproject,
)

PINHOLE = Intrinsics(width=64, height=48, fx=50.0, fy=52.0, cx=31.5, cy=23.5)


@pytest.fixture(scope="session")
def aria(real_data_dir):
    return json.loads((real_data_dir / "aria_adt_sample" / "reference.json").read_text())


@pytest.fixture(scope="session")
def aria_camera(aria):
    return fisheye624(aria["projection_params"], *aria["image_size_wh"])


def test_the_axis_falls_on_the_principal_point_and_axes_point_right_and_down():
    pixels, is_in_front = project(np.array([[0, 0, 2.0], [1, 0, 2], [0, 1, 2], [0, 0, -1]]), PINHOLE)
    assert is_in_front.tolist() == [True, True, True, False]
    np.testing.assert_allclose(pixels[:3], [[31.5, 23.5], [56.5, 23.5], [31.5, 49.5]])
    assert is_inside(pixels[:3], PINHOLE).tolist() == [True, True, False]


def test_pinhole_round_trip(rng):
    depth_m = rng.uniform(0.1, 10, size=(48, 64))
    points, is_valid = unproject(pixel_grid(PINHOLE), depth_m, PINHOLE)
    assert is_valid.all()
    np.testing.assert_allclose(points[..., 2], depth_m)
    np.testing.assert_allclose(project(points, PINHOLE)[0], pixel_grid(PINHOLE), atol=1e-12)


def test_resizing_the_camera_resizes_the_picture(rng):
    """A pixel of the small image covers the same rays as its block of the large one."""
    points = rng.uniform([-0.5, -0.5, 1], [0.5, 0.5, 3], size=(50, 3))
    small = PINHOLE.resized(16, 24)
    large_pixels, small_pixels = project(points, PINHOLE)[0], project(points, small)[0]
    np.testing.assert_allclose((small_pixels + 0.5) / [16, 24], (large_pixels + 0.5) / [64, 48], atol=1e-12)


def test_invalid_depth_gives_invalid_points():
    points, is_valid = unproject(np.zeros((5, 2)), np.array([1.0, 0.0, -1.0, np.nan, np.inf]), PINHOLE)
    assert is_valid.tolist() == [True, False, False, False, False]
    assert np.isfinite(points).all()


def test_aria_gaze_lands_on_aria_pixels(aria, aria_camera):
    """Gaze of the real recording through the real lens: pixels of the vendor's library to 1e-3 px, turned or not."""
    device_from_cam, device_from_cpf = np.array(aria["T_device_camera_rgb"]), np.array(aria["T_device_cpf_CAD"])
    upright_camera = turned_clockwise(aria_camera)
    for row in aria["gaze_projected_at_1m"]:
        for device_from_this, camera, wanted in (
            (device_from_cam, aria_camera, row["gaze_px_raw"]),
            (device_from_cam @ CLOCKWISE_TURN, upright_camera, row["gaze_px_upright"]),
        ):
            cam_from_cpf = inverse_poses(device_from_this) @ device_from_cpf
            gaze, is_in_front = gaze_from_yaw_pitch(
                np.array(row["yaw"]),
                np.array(row["pitch"]),
                np.array(1.0),
                cam_from_cpf=cam_from_cpf,
                intrinsics=camera,
            )
            assert is_in_front
            np.testing.assert_allclose(pixels_from_gaze(gaze, camera.width, camera.height), wanted, atol=1e-3)


def test_the_turned_camera_is_opencv(aria):
    for pose in aria["poses"]:
        found = np.array(pose["T_world_camera_raw"]) @ CLOCKWISE_TURN
        np.testing.assert_allclose(found, np.array(pose["T_world_camera_opencv"]), atol=1e-12)


@pytest.mark.parametrize("turn", [False, True])
def test_fisheye_way_back_is_exact_over_the_whole_lens(aria_camera, turn):
    camera = turned_clockwise(aria_camera) if turn else aria_camera
    pixels = pixel_grid(camera)[::16, ::16]
    direction, exists = rays(pixels, camera)
    radius_px = np.linalg.norm(pixels - [camera.cx, camera.cy], axis=-1)
    assert exists[radius_px < 700].all()
    found, _ = project(direction[exists], camera)
    np.testing.assert_allclose(found, pixels[exists], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(direction, axis=-1), 1.0)


def test_fisheye_way_back_agrees_with_a_general_solver(aria_camera, rng):
    pixels = rng.uniform(300, 1100, size=(10, 2))
    direction, _ = rays(pixels, aria_camera)
    for pixel, ray in zip(pixels, direction, strict=True):
        solved = fsolve(
            lambda xy, pixel=pixel: project(np.append(xy, 1.0), aria_camera)[0] - pixel, np.zeros(2), xtol=1e-12
        )
        np.testing.assert_allclose(ray[:2] / ray[2], solved, atol=1e-8)


def test_pixels_without_a_ray_say_so(aria_camera):
    pixels = np.array([[1e9, -1e9], [np.nan, 3.0], [np.inf, 3.0], [700.0, 700.0]])
    direction, exists = rays(pixels, aria_camera)
    assert exists.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(direction[:3], [[0, 0, 1]] * 3)


def test_quest_cameras_invert_themselves(real_data_dir):
    """The sixteen-parameter form, both cameras of a Quest 3."""
    folder = real_data_dir / "hot3d_quest3_sample"
    for camera in json.loads((folder / "camera_models.json").read_text()):
        intrinsics = fisheye624(camera["projectionParams"], camera["imageWidth"], camera["imageHeight"])
        pixels = pixel_grid(intrinsics)[100:900:50, 200:1000:50]
        direction, exists = rays(pixels, intrinsics)
        assert exists.all()
        np.testing.assert_allclose(project(direction, intrinsics)[0], pixels, atol=1e-6)


def test_unknown_models_are_refused():
    strange = Intrinsics(10, 10, 5.0, 5.0, 4.5, 4.5, model="kannala")
    with pytest.raises(ValueError, match="kannala.*wanted 'pinhole'"):
        project(np.ones((1, 3)), strange)
    with pytest.raises(ValueError, match="15 or 16"):
        fisheye624([1.0] * 9, 10, 10)
