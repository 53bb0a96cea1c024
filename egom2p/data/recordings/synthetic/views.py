"""One look through the head camera, in plain floats: the gaze is simulated sample by sample, where arrays are slow.

Angles in radians: yaw 0 east and left positive, pitch up positive, roll clockwise positive. Vectors are in the world.
"""

import math

import numpy as np

Vector = tuple[float, float, float] | list[float]


class View:
    """A camera with this yaw, pitch, roll and focal length over image (width, height)."""

    def __init__(self, yaw: float, pitch: float, roll: float, focal: tuple[float, float]) -> None:
        self._cos_yaw, self._sin_yaw = math.cos(yaw), math.sin(yaw)
        self._cos_pitch, self._sin_pitch = math.cos(pitch), math.sin(pitch)
        self._cos_roll, self._sin_roll = math.cos(roll), math.sin(roll)
        self._focal = focal

    def image(self, vector: Vector) -> tuple[float, float]:
        """Where a vector from the eye meets the picture (u, v); far outside for what lies behind."""
        x, y, z = vector
        level = x * self._cos_yaw + y * self._sin_yaw
        forward = level * self._cos_pitch + z * self._sin_pitch
        up = z * self._cos_pitch - level * self._sin_pitch
        right = x * self._sin_yaw - y * self._cos_yaw
        right, down = right * self._cos_roll - up * self._sin_roll, -up * self._cos_roll - right * self._sin_roll
        forward = max(forward, 1e-3)
        return 0.5 + self._focal[0] * right / forward, 0.5 + self._focal[1] * down / forward

    def contains(self, vector: Vector) -> bool:
        u, v = self.image(vector)
        return 0.0 <= u < 1.0 and 0.0 <= v < 1.0

    def vector(self, u: float, v: float) -> Vector:
        """The vector from the eye through a position of the picture: the inverse of `image`."""
        right, down = (u - 0.5) / self._focal[0], (v - 0.5) / self._focal[1]
        right, up = right * self._cos_roll - down * self._sin_roll, -down * self._cos_roll - right * self._sin_roll
        level = self._cos_pitch - up * self._sin_pitch
        z = self._sin_pitch + up * self._cos_pitch
        return (
            level * self._cos_yaw + right * self._sin_yaw,
            level * self._sin_yaw - right * self._cos_yaw,
            z,
        )


def direction(bearing: float, elevation: float) -> Vector:
    """Unit vector of a bearing and an elevation."""
    flat = math.cos(elevation)
    return flat * math.cos(bearing), flat * math.sin(bearing), math.sin(elevation)


def bearing_and_elevation(vector: Vector, heading: float) -> tuple[float, float]:
    """Bearing relative to a heading, in (-pi, pi], and elevation."""
    x, y, z = vector
    bearing = math.remainder(math.atan2(y, x) - heading, 2 * math.pi)
    return bearing, math.atan2(z, math.hypot(x, y))


def camera_rotations(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) world_from_cam, camera axes x right, y down, z forward, of angles (T,)."""
    zero_T = np.zeros_like(yaw)
    forward_T3 = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], axis=-1)
    level_right_T3 = np.stack([np.sin(yaw), -np.cos(yaw), zero_T], axis=-1)
    level_down_T3 = np.cross(forward_T3, level_right_T3)
    cos_T1, sin_T1 = np.cos(roll)[:, None], np.sin(roll)[:, None]
    right_T3 = cos_T1 * level_right_T3 + sin_T1 * level_down_T3
    down_T3 = cos_T1 * level_down_T3 - sin_T1 * level_right_T3
    return np.stack([right_T3, down_T3, forward_T3], axis=-1)
