"""Camera models: points of the camera (x right, y down, z forward, metres) to pixels and back.

Pixel (0, 0) is the centre of the first pixel, u right, v down; an image covers [-0.5, width - 0.5). Models, chosen
by `Intrinsics.model`: `pinhole` (no distortion) and `fisheye624` (Project Aria and Quest: radial, tangential and
thin-prism terms; `distortion` = k0..k5, p0, p1, s0..s3; Project Aria documentation, camera intrinsic models).
"""

import numpy as np

from egom2p.contracts import Intrinsics

_NUM_FISHEYE624 = 12
_NEWTON_STEPS = 30
_LARGEST_BEND = 10.0
_NEWTON_TOLERANCE = 1e-12


def project(points: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (..., 2) of points (..., 3), and which points lie in front of the camera (...) bool.

    A pixel may lie outside the image (`is_inside` tells). Points not in front get pixel (0, 0).
    """
    points = np.asarray(points, dtype=np.float64)
    is_in_front = np.isfinite(points).all(axis=-1) & (points[..., 2] > 0)
    usable = np.where(is_in_front[..., None], points, np.array([0.0, 0.0, 1.0]))
    plane = usable[..., :2] / usable[..., 2:]
    if _model(intrinsics) == "fisheye624":
        plane = _fisheye624_distort(plane, np.array(intrinsics.distortion))
    pixels = plane * [intrinsics.fx, intrinsics.fy] + [intrinsics.cx, intrinsics.cy]
    return np.where(is_in_front[..., None], pixels, 0.0), is_in_front


def rays(pixels: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Unit rays (..., 3) through pixels (..., 2), and which of them exist (...) bool.

    No ray: the pixel is not finite, or the fisheye model has no point in front that falls there (far corners);
    such rays are (0, 0, 1).
    """
    pixels = np.asarray(pixels, dtype=np.float64)
    exists = np.isfinite(pixels).all(axis=-1)
    plane = (np.where(exists[..., None], pixels, 0.0) - [intrinsics.cx, intrinsics.cy]) / [intrinsics.fx, intrinsics.fy]
    if _model(intrinsics) == "fisheye624":
        plane, converged = _fisheye624_undistort(plane, np.array(intrinsics.distortion))
        exists = exists & converged
    direction = np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], axis=-1)
    direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    return np.where(exists[..., None], direction, np.array([0.0, 0.0, 1.0])), exists


def unproject(pixels: np.ndarray, depth_m: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 3) metres at `depth_m` (...) along the camera's z axis through pixels (..., 2), and which are valid.

    Depth that is 0, negative or not finite, and pixels without a ray, give an invalid point (0, 0, 0).
    """
    depth_m = np.asarray(depth_m, dtype=np.float64)
    direction, exists = rays(pixels, intrinsics)
    is_valid = exists & np.isfinite(depth_m) & (depth_m > 0)
    points = direction / direction[..., 2:] * np.where(is_valid, depth_m, 0.0)[..., None]
    return np.where(is_valid[..., None], points, 0.0), is_valid


def is_inside(pixels: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Which pixels (..., 2) lie on the image (...) bool."""
    u, v = np.moveaxis(np.asarray(pixels, dtype=np.float64), -1, 0)
    return (u >= -0.5) & (u < intrinsics.width - 0.5) & (v >= -0.5) & (v < intrinsics.height - 0.5)


def pixel_grid(intrinsics: Intrinsics) -> np.ndarray:
    """Pixel centres (height, width, 2) as (u, v)."""
    return np.stack(np.meshgrid(np.arange(intrinsics.width), np.arange(intrinsics.height)), axis=-1).astype(np.float64)


def fisheye624(parameters: tuple[float, ...] | list[float], width: int, height: int) -> Intrinsics:
    """Intrinsics from the 15 (f, cu, cv, ...) or 16 (fx, fy, cu, cv, ...) parameters of a FISHEYE624 calibration."""
    values = [float(value) for value in parameters]
    if len(values) == 15:
        values = [values[0], *values]
    if len(values) != 16:
        raise ValueError(f"FISHEYE624 has 15 or 16 parameters, found {len(values)}")
    fx, fy, cx, cy, *distortion = values
    return Intrinsics(width, height, fx, fy, cx, cy, model="fisheye624", distortion=tuple(distortion))


def turned_clockwise(intrinsics: Intrinsics) -> Intrinsics:
    """Intrinsics of the image turned by 90 degrees clockwise (u, v) -> (height - 1 - v, u); Aria images need one turn.

    The camera turns with its image: `world_from_turned = world_from_cam @ CLOCKWISE_TURN`.
    """
    distortion = intrinsics.distortion
    if _model(intrinsics) == "fisheye624":
        *radial, p0, p1, s0, s1, s2, s3 = distortion
        distortion = (*radial, -p1, p0, -s2, -s3, s0, s1)
    return Intrinsics(
        width=intrinsics.height,
        height=intrinsics.width,
        fx=intrinsics.fy,
        fy=intrinsics.fx,
        cx=intrinsics.height - 1 - intrinsics.cy,
        cy=intrinsics.cx,
        model=intrinsics.model,
        distortion=distortion,
    )


# Maps points of the camera of the turned image into the camera of the image as stored: `cam_from_turned`.
CLOCKWISE_TURN = np.array([[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
CLOCKWISE_TURN.flags.writeable = False


def _model(intrinsics: Intrinsics) -> str:
    name = intrinsics.model.lower()
    if name == "pinhole" and not any(intrinsics.distortion):
        return name
    if name == "fisheye624" and len(intrinsics.distortion) == _NUM_FISHEYE624:
        return name
    raise ValueError(
        f"found camera model {intrinsics.model!r} with {len(intrinsics.distortion)} distortion parameters, "
        f"wanted 'pinhole' without distortion or 'fisheye624' with {_NUM_FISHEYE624}"
    )


def _fisheye624_distort(plane: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the plane z = 1 to distorted ones."""
    radius = np.linalg.norm(plane, axis=-1, keepdims=True)
    bent = _bent_angle(np.arctan(radius), distortion[:6])
    return _add_tangential(plane * np.where(radius > 0, bent / np.where(radius > 0, radius, 1.0), 1.0), distortion)


def _bent_angle(angle: np.ndarray, radial: np.ndarray) -> np.ndarray:
    squared = angle * angle
    factor = np.zeros_like(angle)
    for coefficient in radial[::-1]:
        factor = (factor + coefficient) * squared
    return angle * (1 + factor)


def _bent_angle_slope(angle: np.ndarray, radial: np.ndarray) -> np.ndarray:
    squared = angle * angle
    slope = np.zeros_like(angle)
    for power, coefficient in reversed(list(enumerate(radial, start=1))):
        slope = (slope + (2 * power + 1) * coefficient) * squared
    return 1 + slope


def _add_tangential(bent: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    p, s = distortion[6:8], distortion[8:12]
    n = np.sum(bent * bent, axis=-1, keepdims=True)
    prism = np.concatenate([s[0] * n + s[1] * n * n, s[2] * n + s[3] * n * n], axis=-1)
    return bent + 2 * np.sum(bent * p, axis=-1, keepdims=True) * bent + n * p + prism


def _tangential_newton_step(bent: np.ndarray, residual: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Inverse Jacobian of `_add_tangential` at `bent` times the residual (..., 2)."""
    p, s = distortion[6:8], distortion[8:12]
    n = np.sum(bent * bent, axis=-1)
    along = 1 + 2 * np.sum(bent * p, axis=-1)
    slope_x, slope_y = p[0] + s[0] + 2 * s[1] * n, p[1] + s[2] + 2 * s[3] * n
    x, y = bent[..., 0], bent[..., 1]
    xx, xy = along + 2 * x * p[0] + 2 * slope_x * x, 2 * x * p[1] + 2 * slope_x * y
    yx, yy = 2 * y * p[0] + 2 * slope_y * x, along + 2 * y * p[1] + 2 * slope_y * y
    determinant = xx * yy - xy * yx
    # Far outside the lens the terms fold back; whatever comes of a bounded step there fails the final check.
    determinant = np.where(np.abs(determinant) > 1e-3, determinant, 1.0)
    step_x = (yy * residual[..., 0] - xy * residual[..., 1]) / determinant
    step_y = (xx * residual[..., 1] - yx * residual[..., 0]) / determinant
    return np.stack([step_x, step_y], axis=-1)


def _fisheye624_undistort(distorted: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 2) of the plane z = 1 whose distortion is `distorted`, and which were found (Newton, two stages)."""
    # No lens bends a ray beyond 10 focal lengths: the bound keeps absurd pixels from overflowing.
    bent = np.clip(distorted, -_LARGEST_BEND, _LARGEST_BEND)
    for _ in range(_NEWTON_STEPS):
        residual = _add_tangential(bent, distortion) - distorted
        if np.abs(residual).max(initial=0.0) < _NEWTON_TOLERANCE:
            break
        bent = np.clip(bent - _tangential_newton_step(bent, residual, distortion), -_LARGEST_BEND, _LARGEST_BEND)
    length = np.linalg.norm(bent, axis=-1, keepdims=True)
    angle = np.minimum(length, np.pi / 2)
    for _ in range(_NEWTON_STEPS):
        error = _bent_angle(angle, distortion[:6]) - length
        if np.abs(error).max(initial=0.0) < _NEWTON_TOLERANCE:
            break
        slope = _bent_angle_slope(angle, distortion[:6])
        angle = np.clip(angle - error / np.where(slope > 0.05, slope, 1.0), 0.0, np.pi / 2)
    angle = np.minimum(angle, np.pi / 2 - 1e-9)
    plane = bent * np.where(length > 0, np.tan(angle) / np.where(length > 0, length, 1.0), 1.0)
    error = np.abs(_fisheye624_distort(plane, distortion) - distorted).max(axis=-1)
    return plane, error < 1e-9
