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


# Distortion of real cameras: a phone (5), a wide rational one (8), EuRoC's (4), fisheyes of TUM-VI and Egocentric-100K.
_OPENCV = {
    "opencv": [
        (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05),
        (0.1, -0.25, 0.001, -0.002, 0.15),
        (0.6, 0.02, 0.0004, -0.0007, -0.002, 0.95, 0.12, -0.004),
    ],
    "kannala_brandt": [(0.0034823894, 0.0007150348, -0.0020532361, 0.00020293673), (0.3948, 0.1798, -0.2753, 0.0793)],
}


@pytest.mark.parametrize(("model", "distortion"), [(m, d) for m, several in _OPENCV.items() for d in several])
def test_distortion_is_opencvs(rng, model, distortion):
    cv2 = pytest.importorskip("cv2")
    camera = Intrinsics(752, 480, 458.654, 457.296, 367.215, 248.375, model, distortion)
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    points = rng.uniform([-0.7, -0.5, 0.8], [0.7, 0.5, 1.2], (400, 3))
    zero, values = np.zeros(3), np.array(distortion)
    if model == "opencv":
        wanted = cv2.projectPoints(points, zero, zero, matrix, values)[0][:, 0]
    else:
        wanted = cv2.fisheye.projectPoints(points[:, None], zero, zero, matrix, values)[0][:, 0]
    pixels, is_seen = project(points, camera)
    assert is_seen.all()
    np.testing.assert_allclose(pixels, wanted, atol=1e-6)
    back, exists = rays(pixels, camera)
    assert exists.all()
    np.testing.assert_allclose(back, points / np.linalg.norm(points, axis=1, keepdims=True), atol=1e-9)


@pytest.mark.parametrize(("model", "distortion"), [(m, several[-1]) for m, several in _OPENCV.items()])
def test_a_turned_lens_sees_the_turned_points(rng, model, distortion):
    camera = Intrinsics(752, 480, 458.654, 457.296, 367.215, 248.375, model, distortion)
    points = rng.uniform([-0.5, -0.4, 0.8], [0.5, 0.4, 1.2], (100, 3))
    u, v = np.moveaxis(project(points, camera)[0], -1, 0)
    turned, _ = project(points @ CLOCKWISE_TURN[:3, :3], turned_clockwise(camera))
    np.testing.assert_allclose(turned, np.stack([camera.height - 1 - v, u], axis=1), atol=1e-9)


def test_what_lies_beyond_the_fold_of_a_radial_polynomial_is_not_in_the_picture():
    """k1 < 0 alone: beyond r = sqrt(1 / 0.9) the picture would hold what lies outside of it a second time."""
    camera = Intrinsics(640, 480, 400, 400, 319.5, 239.5, "opencv", (-0.3, 0.0, 0.0, 0.0))
    fold = np.sqrt(1 / 0.9)
    points = np.array([[fold * 0.99, 0, 1], [fold * 1.02, 0, 1], [3.0, 0, 1]])
    assert project(points, camera)[1].tolist() == [True, False, False]
    outside = 319.5 + 400 * (fold * (1 - 0.3 * fold**2)) + 5
    assert rays(np.array([[outside, 239.5], [400, 239.5]]), camera)[1].tolist() == [False, True]


@pytest.mark.parametrize(
    ("model", "count"), [("opencv", 3), ("kannala_brandt", 5), ("fisheye624", 4), ("pinhole", 4), ("double_sphere", 2)]
)
def test_models_that_are_not_known_are_refused(model, count):
    with pytest.raises(ValueError, match=f"found camera model '{model}' with {count} .*'opencv' .4 or 5 or 8"):
        project(np.ones((1, 3)), Intrinsics(4, 4, 1, 1, 0, 0, model, (0.1,) * count))
