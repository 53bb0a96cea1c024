"""Camera models: points of the camera (x right, y down, z forward, metres) to pixels and back; gaze points and rays.

Pixel (0, 0) is the centre of the first pixel, u right, v down; an image covers [-0.5, width - 0.5). Models, chosen
by `Intrinsics.model`, and their `distortion`:

    pinhole         none
    opencv          k1, k2, p1, p2[, k3[, k4, k5, k6]]: radial (rational with k4..k6) and tangential, OpenCV's order
                    (calib3d documentation; ROS calls it plumb_bob and rational_polynomial)
    kannala_brandt  k1..k4: a polynomial of the angle, as OpenCV's fisheye module (ROS: equidistant)
    fisheye624      k0..k5, p0, p1, s0..s3: Project Aria and Quest; radial, tangential and thin-prism terms (Project
                    Aria documentation, camera intrinsic models)

A gaze point is (u, v) in [0, 1] of the image, u right, v down, (0, 0) the outer corner of the first pixel.
A ray is a unit vector of the camera (x right, y down, z forward). The central pupil frame (CPF) of Aria lies between
the eyes: x left, y up, z forward; its gaze is yaw and pitch in radians.
"""

import numpy as np

from egom2p.contracts import Intrinsics
from egom2p.geometry.poses import angle_between

_NUM_PARAMETERS = {"pinhole": (0,), "opencv": (4, 5, 8), "kannala_brandt": (4,), "fisheye624": (12,)}
_LARGEST_RADIUS = 20.0  # of the plane z = 1: 87 degrees, beyond which no radial polynomial is a camera
_NEWTON_STEPS = 30
_LARGEST_BEND = 10.0
_NEWTON_TOLERANCE = 1e-12


def project(points: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (..., 2) of points (..., 3), and which points lie in front of the camera and within its lens (...) bool.

    A pixel may lie outside the image (`is_inside` tells). Points not in front get pixel (0, 0).
    """
    points = np.asarray(points, dtype=np.float64)
    is_in_front = np.isfinite(points).all(axis=-1) & (points[..., 2] > 0)
    usable = np.where(is_in_front[..., None], points, np.array([0.0, 0.0, 1.0]))
    plane = usable[..., :2] / usable[..., 2:]
    model, distortion = check_camera_model(intrinsics), _parameters(intrinsics)
    if model == "opencv":
        # Beyond the radius where its polynomial turns back, it folds what lies outside into the picture.
        is_in_front = is_in_front & (np.linalg.norm(plane, axis=-1) < _fold_radius(distortion))
        plane = _opencv_distort(np.where(is_in_front[..., None], plane, 0.0), distortion)
    elif model != "pinhole":
        plane = _fisheye624_distort(plane, distortion)
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
    model, distortion = check_camera_model(intrinsics), _parameters(intrinsics)
    if model != "pinhole":
        undistort = _opencv_undistort if model == "opencv" else _fisheye624_undistort
        plane, converged = undistort(plane, distortion)
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
    model = check_camera_model(intrinsics)
    if model == "opencv":  # (p2, p1) is a vector of the picture and turns with it
        k1, k2, p1, p2, *more = distortion
        distortion = (k1, k2, p2, -p1, *more)
    elif model == "fisheye624":
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


def check_camera_model(intrinsics: Intrinsics) -> str:
    """The model of a camera. Raises ValueError when it is unknown or has another number of parameters."""
    name = intrinsics.model.lower()
    if len(intrinsics.distortion) in _NUM_PARAMETERS.get(name, ()):
        return name
    if name == "pinhole" and not any(intrinsics.distortion):
        return name
    known = ", ".join(f"'{model}' ({' or '.join(map(str, counts))})" for model, counts in _NUM_PARAMETERS.items())
    raise ValueError(
        f"found camera model {intrinsics.model!r} with {len(intrinsics.distortion)} distortion parameters, "
        f"wanted {known}"
    )


def check_whole_picture(intrinsics: Intrinsics) -> None:
    """Raise ValueError where a lens cannot be that of a whole picture of its size.

    The centre lies in the middle half of a picture nobody cropped, and no camera sees 3 degrees or 170: numbers of
    another resolution, in millimetres, or in shares of the picture do not.
    """
    fx, fy, cx, cy = intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy
    for size, focal, centre in ((intrinsics.width, fx, cx), (intrinsics.height, fy, cy)):
        if not (0.05 * size <= focal <= 20 * size and 0.25 * size < centre + 0.5 < 0.75 * size):
            raise ValueError(
                f"found the focal lengths ({fx:g}, {fy:g}) and the principal point ({cx:g}, {cy:g}), wanted those of "
                f"the whole {intrinsics.width}x{intrinsics.height} picture, in its pixels"
            )


def _parameters(intrinsics: Intrinsics) -> np.ndarray:
    """Distortion with every term its formula knows: 8 of OpenCV's, 12 of FISHEYE624, of which Kannala-Brandt has 4."""
    count = 8 if intrinsics.model.lower() == "opencv" else 12
    return np.array([*intrinsics.distortion, *[0.0] * (count - len(intrinsics.distortion))])


def _opencv_radial(squared: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radial factor at squared radii (...), and its slope over the squared radius."""
    k1, k2, _, _, k3, k4, k5, k6 = distortion
    above, below = (
        1 + squared * (k1 + squared * (k2 + squared * k3)),
        1 + squared * (k4 + squared * (k5 + squared * k6)),
    )
    slope_above = k1 + squared * (2 * k2 + squared * 3 * k3)
    slope_below = k4 + squared * (2 * k5 + squared * 3 * k6)
    return above / below, (slope_above * below - above * slope_below) / below**2


def _opencv_distort(plane: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the plane z = 1 to distorted ones."""
    p = distortion[[3, 2]]
    squared = np.sum(plane * plane, axis=-1, keepdims=True)
    factor, _ = _opencv_radial(squared, distortion)
    return plane * factor + 2 * np.sum(plane * p, axis=-1, keepdims=True) * plane + squared * p


def _fold_radius(distortion: np.ndarray) -> float:
    """Radius (plane z = 1) at which the radial part of OpenCV's model stops growing."""
    radius = np.linspace(0.0, _LARGEST_RADIUS, 4001)
    factor, slope = _opencv_radial(radius**2, distortion)
    turns_back = np.flatnonzero(~(factor + 2 * radius**2 * slope > 0))
    return float(radius[turns_back[0]]) if len(turns_back) else _LARGEST_RADIUS


def _opencv_undistort(distorted: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 2) of the plane z = 1 whose distortion is `distorted`, and which were found (Newton)."""
    p, largest = distortion[[3, 2]], _fold_radius(distortion)
    plane = np.clip(distorted, -_LARGEST_BEND, _LARGEST_BEND)
    for _ in range(_NEWTON_STEPS):
        # A step that leaves the lens is taken back to its rim, from where the next one returns.
        radius = np.linalg.norm(plane, axis=-1, keepdims=True)
        plane = plane * np.minimum(1.0, largest / np.maximum(radius, 1e-12))
        residual = _opencv_distort(plane, distortion) - distorted
        if np.abs(residual).max(initial=0.0) < _NEWTON_TOLERANCE:
            break
        x, y = plane[..., 0], plane[..., 1]
        factor, slope = _opencv_radial(x * x + y * y, distortion)
        along = factor + 2 * (x * p[0] + y * p[1])
        xx, yy = along + 2 * x * (slope * x + 2 * p[0]), along + 2 * y * (slope * y + 2 * p[1])
        xy = 2 * x * slope * y + 2 * p[1] * x + 2 * y * p[0]
        yx = 2 * y * slope * x + 2 * p[0] * y + 2 * x * p[1]
        determinant = xx * yy - xy * yx
        determinant = np.where(np.abs(determinant) > 1e-3, determinant, 1.0)
        step_x = (yy * residual[..., 0] - xy * residual[..., 1]) / determinant
        step_y = (xx * residual[..., 1] - yx * residual[..., 0]) / determinant
        plane = np.clip(plane - np.stack([step_x, step_y], axis=-1), -_LARGEST_RADIUS, _LARGEST_RADIUS)
    error = np.abs(_opencv_distort(plane, distortion) - distorted).max(axis=-1)
    return plane, (error < 1e-9) & (np.linalg.norm(plane, axis=-1) < largest)


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
