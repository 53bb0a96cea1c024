"""Gaze points, pixels and rays.

A gaze point is (u, v) in [0, 1] of the image, u right, v down, (0, 0) the outer corner of the first pixel.
A ray is a unit vector of the camera (x right, y down, z forward). The central pupil frame (CPF) of Aria lies between
the eyes: x left, y up, z forward; its gaze is yaw and pitch in radians.
"""

import numpy as np

from egom2p.contracts import Intrinsics
from egom2p.geometry.cameras import project, rays
from egom2p.geometry.rotations import angle_between


def pixels_from_gaze(gaze: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels (..., 2), (0, 0) the centre of the first pixel, of gaze points (..., 2) of an image of this size."""
    return np.asarray(gaze, dtype=np.float64) * [width, height] - 0.5


def gaze_from_pixels(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Gaze points (..., 2) of pixels (..., 2); inverse of `pixels_from_gaze`."""
    return (np.asarray(pixels, dtype=np.float64) + 0.5) / [width, height]


def gaze_rays(gaze: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Unit rays (..., 3) of the camera through gaze points (..., 2), and which exist (see `cameras.rays`)."""
    return rays(pixels_from_gaze(gaze, intrinsics.width, intrinsics.height), intrinsics)


def gaze_angle_deg(a: np.ndarray, b: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Angle (...) in degrees between the rays through gaze points a and b (..., 2) of the same image.

    Raises ValueError where a point has no ray: not finite, or beyond what the lens sees.
    """
    ray_a, exists_a = gaze_rays(a, intrinsics)
    ray_b, exists_b = gaze_rays(b, intrinsics)
    num_missing = int((~(exists_a & exists_b)).sum())
    if num_missing:
        raise ValueError(f"{num_missing} of {exists_a.size} gaze points have no ray (not finite, or beyond the lens)")
    return np.degrees(angle_between(ray_a, ray_b))


def ray_from_yaw_pitch(yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Unit rays (..., 3) of the CPF from yaw (left positive) and pitch (up positive), radians within +-pi/2."""
    yaw, pitch = np.asarray(yaw, dtype=np.float64), np.asarray(pitch, dtype=np.float64)
    direction = np.stack([np.tan(yaw), np.tan(pitch), np.ones(np.broadcast(yaw, pitch).shape)], axis=-1)
    return direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def yaw_of_both_eyes(left_yaw: np.ndarray, right_yaw: np.ndarray) -> np.ndarray:
    """One yaw (...) from the yaws of the two eyes, radians: the mean direction on the plane z = 1."""
    return np.arctan((np.tan(left_yaw) + np.tan(right_yaw)) / 2)


def gaze_from_yaw_pitch(
    yaw: np.ndarray,
    pitch: np.ndarray,
    distance_m: np.ndarray,
    *,
    cam_from_cpf: np.ndarray,
    intrinsics: Intrinsics,
) -> tuple[np.ndarray, np.ndarray]:
    """Gaze points (..., 2) of the image at `distance_m` (...) along the CPF ray, and which are in front of the camera.

    `cam_from_cpf` (4, 4) maps points of the CPF into the camera. Eyes and camera stand apart, so the distance
    matters: where a source has none, 1 m is the custom.
    """
    points = ray_from_yaw_pitch(yaw, pitch) * np.asarray(distance_m, dtype=np.float64)[..., None]
    points_cam = points @ cam_from_cpf[:3, :3].T + cam_from_cpf[:3, 3]
    pixels, is_in_front = project(points_cam, intrinsics)
    return gaze_from_pixels(pixels, intrinsics.width, intrinsics.height), is_in_front
