"""Where the wearer looks, and how the head follows.

The law. Let the salience of a mover be its apparent size (radius over distance) if its middle is in the picture and
nothing stands in front of it, else 0. The eyes go to the mover of highest salience, `latency_s` after another one
became `switch_ratio` times as salient as the present one (or the present one was lost), and then stay on it,
following its motion exactly (smooth pursuit). When no mover is visible they look ahead, `ahead_elevation_deg` from
the horizon in the direction of the body. Exceptions: about `look_aways_per_s` times a second they leave for a random
position in the picture (another mover or a thing, when one is visible) for `look_away_s`. On top come a slow drift and
the jitter of an eye tracker, and blinks, during which the gaze is invalid. Saccades take a few hundredths of a second.

The head turns after the eyes: its yaw and pitch relative to the body approach `head_gain` times the direction of the
gaze with the lag `head_lag_s`. As the gain is below 1, the gaze spreads over the picture.

T times, M movers. Angles in radians, left and up positive.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from egom2p.config import NotNegative, Positive, Range, strict
from egom2p.contracts import Stream

Vector = tuple[float, float, float] | list[float]


class View:
    """A camera with this yaw, pitch, roll and focal length over image (width, height), in plain floats: gaze is
    simulated sample by sample, where arrays are slow.

    Angles in radians: yaw 0 east and left positive, pitch up positive, roll clockwise positive. Vectors are in the
    world.
    """

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


@strict
class GazeConfig:
    """Parameters of the law above; pairs are ranges drawn from uniformly.

    attention  `random` is another law: the eyes choose among the visible movers by chance, and choose again after
               `hold_s` (or when they lose the mover). The picture then does not tell what is looked at; with
               `head_gain` 0 neither does the way the head turns
    """

    attention: Literal["salient", "random"] = "salient"
    hold_s: Range[NotNegative] = (2.0, 4.0)  # attention=random: until they choose again
    latency_s: NotNegative = 0.1
    switch_ratio: Positive = 1.15
    ahead_elevation_deg: float = -12.0
    look_aways_per_s: NotNegative = 0.12
    look_away_s: Range[NotNegative] = (0.25, 0.6)
    saccade_s: Positive = 0.015  # time constant with which a jump of the eyes dies away
    drift: NotNegative = 0.012  # standard deviation, in image sizes
    drift_lag_s: Positive = 0.4  # time constant of the drift
    jitter: NotNegative = 0.004  # standard deviation, in image sizes
    blinks_per_s: NotNegative = 0.25  # how often the eyes close
    blink_s: Range[NotNegative] = (0.1, 0.25)  # how long
    head_gain: NotNegative = 0.3
    head_lag_s: Positive = 0.4
    head_pitch_deg: float = -8.0  # of the head where the eyes look straight ahead

    def __post_init__(self) -> None:
        if not 0 <= self.head_gain < 1:
            raise ValueError(f"head_gain must be in [0, 1), got {self.head_gain}")


@dataclass(frozen=True)
class Surroundings:
    """What there is to see, seen from the wearer's eye, and how wide the picture is.

    to_movers        (T, M, 3) metres from the eye to the middle of each mover, in the world
    mover_radius     (M,) metres
    is_unhidden      (T, M) nothing that stands still is in front of the mover
    to_things        (T, K, 3) the same for the things that stand still, K may be 0
    heading, roll    (T,) of the body and of the head
    focal            (2,) focal length over image width and height
    """

    to_movers: np.ndarray
    mover_radius: np.ndarray
    is_unhidden: np.ndarray
    to_things: np.ndarray
    heading: np.ndarray
    roll: np.ndarray
    focal: tuple[float, float]


@dataclass(frozen=True)
class Looking:
    """Eyes and head over time.

    gaze      (T, 2) in the image, u right, v down
    is_valid  (T,) eyes open and gaze inside the picture
    law       (T, 2) where the law points without lag, look-aways, drift and jitter
    target    (T,) mover that is looked at, -1 ahead, -2 looking away
    yaw       (T,) of the head in the world
    pitch     (T,)
    """

    gaze: np.ndarray
    is_valid: np.ndarray
    law: np.ndarray
    target: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray


AHEAD, AWAY = -1, -2


def simulate_looking(seen: Surroundings, rate_hz: float, rng: np.random.Generator, config: GazeConfig) -> Looking:
    """Run the law through time."""
    away_T, drift_T2, is_open_T = chances(len(seen.heading), rate_hz, rng, config)
    step_s = 1.0 / rate_hz
    follow, rest_pitch = 1 - math.exp(-step_s / config.head_lag_s), math.radians(config.head_pitch_deg)
    attention, head_yaw, head_pitch = _Attention(step_s, rng, config), 0.0, rest_pitch
    whim = _Whim(step_s, rng, config) if config.attention == "random" else None
    salience_TM = seen.mover_radius / np.linalg.norm(seen.to_movers, axis=2) * seen.is_unhidden
    rows = []
    for t, heading in enumerate(seen.heading.tolist()):
        view = View(heading + head_yaw, head_pitch, float(seen.roll[t]), seen.focal)
        movers = seen.to_movers[t].tolist()
        ahead = direction(heading, math.radians(config.ahead_elevation_deg))
        salience_M = [
            salience if salience > 0 and view.contains(mover) else 0.0
            for salience, mover in zip(salience_TM[t].tolist(), movers, strict=True)
        ]
        best = whim.choose(salience_M) if whim else max(range(len(movers)), key=salience_M.__getitem__)
        best = best if best >= 0 and salience_M[best] > 0 else AHEAD
        vectors = {AHEAD: ahead, **dict(enumerate(movers))}
        if away_T[t] > 0:
            attention.leave(_somewhere(view, movers, seen.to_things[t].tolist(), best, rng), float(away_T[t]))
        uv, vector = attention.follow(best, salience_M, vectors, view)
        rows.append((*uv, *view.image(vectors[best]), attention.target, heading + head_yaw, head_pitch))
        bearing, elevation = bearing_and_elevation(vector, heading)
        gain = config.head_gain
        # The first sample finds the head where it belongs, not on its way from straight ahead.
        share = follow if t else 1.0
        head_yaw += share * (gain * bearing - head_yaw)
        head_pitch += share * (rest_pitch + gain * (elevation - rest_pitch) - head_pitch)
    table = np.array(rows)
    gaze_T2 = table[:, :2] + drift_T2
    is_valid_T = is_open_T & (gaze_T2 >= 0).all(axis=1) & (gaze_T2 < 1).all(axis=1)
    return Looking(gaze_T2, is_valid_T, table[:, 2:4], table[:, 4].astype(int), table[:, 5], table[:, 6])


class _Whim:
    """Which mover is chosen by chance, and for how long."""

    def __init__(self, step_s: float, rng: np.random.Generator, config: GazeConfig) -> None:
        self._step_s, self._rng, self._config = step_s, rng, config
        self._chosen, self._left_s = AHEAD, 0.0

    def choose(self, salience_M: list[float]) -> int:
        self._left_s -= self._step_s
        is_lost = self._chosen < 0 or salience_M[self._chosen] <= 0
        visible = [index for index, salience in enumerate(salience_M) if salience > 0]
        if visible and (is_lost or self._left_s <= 0):
            self._chosen = visible[int(self._rng.integers(len(visible)))]
            self._left_s = float(self._rng.uniform(*self._config.hold_s))
        return self._chosen if visible else AHEAD


class _Attention:
    """What the eyes are on, and the saccade that brings them there."""

    def __init__(self, step_s: float, rng: np.random.Generator, config: GazeConfig) -> None:
        self.target: int | None = None
        self._step_s, self._config = step_s, config
        self._keep = math.exp(-step_s / config.saccade_s)
        self._waited_s = self._away_s = 0.0
        self._away: Vector = (1.0, 0.0, 0.0)
        self._offset = self._last_uv = (0.0, 0.0)

    def leave(self, vector: Vector, duration_s: float) -> None:
        """Look away along a vector for a while."""
        self._away, self._away_s = vector, duration_s

    def follow(
        self, best: int, salience_M: list[float], vectors: dict[int, Vector], view: View
    ) -> tuple[tuple[float, float], Vector]:
        """One sample on: gaze in the image, without noise, and the vector to what the eyes are on."""
        before, self.target = self.target, self._next(best, salience_M)
        vector = self._away if self.target == AWAY else vectors[self.target]
        u, v = view.image(vector)
        if before is None:
            self._offset = (0.0, 0.0)
        elif before != self.target:
            self._offset = (self._last_uv[0] - u, self._last_uv[1] - v)
        self._offset = (self._offset[0] * self._keep, self._offset[1] * self._keep)
        self._last_uv = (u + self._offset[0], v + self._offset[1])
        return self._last_uv, vector

    def _next(self, best: int, salience_M: list[float]) -> int:
        if self._away_s > 0:
            self._away_s -= self._step_s
            return AWAY
        if self.target is None or self.target == AWAY:
            return best
        if best == self.target:
            self._waited_s = 0.0
            return best
        present = salience_M[self.target] if self.target >= 0 else 0.0
        is_better = self._config.attention == "random" or salience_M[best] > self._config.switch_ratio * present
        wants = best == AHEAD or is_better
        self._waited_s = self._waited_s + self._step_s if wants else 0.0
        if self._waited_s < self._config.latency_s:
            return self.target
        self._waited_s = 0.0
        return best


def _somewhere(view: View, movers: list[Vector], things: list[Vector], best: int, rng: np.random.Generator) -> Vector:
    """Another visible mover or thing, else a random position in the picture."""
    others = [mover for index, mover in enumerate(movers) if index != best] + things
    visible = [vector for vector in others if view.contains(vector)]
    if visible and rng.random() < 0.7:
        return visible[rng.integers(len(visible))]
    return view.vector(*rng.uniform(0.1, 0.9, size=2))


def chances(
    num_times: int, rate_hz: float, rng: np.random.Generator, config: GazeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is drawn: look-aways starting (T,) seconds long (0: none), noise (T, 2), eyes open (T,)."""
    starts_T = rng.random(num_times) < config.look_aways_per_s / rate_hz
    away_T = np.where(starts_T, rng.uniform(*config.look_away_s, size=num_times), 0.0)
    keep = math.exp(-1 / (rate_hz * config.drift_lag_s))
    kicks_T2 = rng.normal(size=(num_times, 2)) * config.drift * math.sqrt(1 - keep**2)
    drift_T2 = np.empty((num_times, 2))
    value_2 = rng.normal(size=2) * config.drift
    for t in range(num_times):
        value_2 = keep * value_2 + kicks_T2[t]
        drift_T2[t] = value_2
    noise_T2 = drift_T2 + rng.normal(size=(num_times, 2)) * config.jitter
    is_open_T = np.ones(num_times, dtype=bool)
    for start in np.flatnonzero(rng.random(num_times) < config.blinks_per_s / rate_hz):
        is_open_T[start : start + round(rng.uniform(*config.blink_s) * rate_hz)] = False
    return away_T, noise_T2, is_open_T


def tracks_of(
    track_s: np.ndarray,
    gaze: np.ndarray,
    is_valid: np.ndarray,
    law: np.ndarray,
    world_from_cam: np.ndarray,
    factors: np.ndarray,
) -> dict[str, Stream]:
    """Streams of a recording, whose rows are at the times (N,)."""
    always = np.ones(len(track_s), dtype=bool)
    return {
        "gaze": Stream(gaze.astype(np.float32), is_valid, track_s, "image"),
        "camera": Stream(world_from_cam, always, track_s, "world_from_cam"),
        "gaze_law": Stream(law.astype(np.float32), always, track_s, "image"),
        "factors": Stream(factors.astype(np.float32), always, track_s, "m/s, rad/s, mover"),
    }


def most_often(target: np.ndarray) -> int:
    """Of targets (T,), the least of equals."""
    targets, counts = np.unique(target, return_counts=True)
    return int(targets[np.argmax(counts)])


def sentence(speed: np.ndarray, turn: np.ndarray, looks: str) -> str:
    """One sentence about a segment of time: speed (T,) m/s, turn (T,) rad/s, left positive."""
    speed_mps, turn_rad_per_s = float(np.mean(speed)), float(np.mean(turn))
    side = "left" if turn_rad_per_s > 0 else "right"
    turns = abs(turn_rad_per_s) > np.radians(10)
    if speed_mps < 0.2:
        moves = f"turns {side} on the spot" if turns else "stands still"
    else:
        moves = f"{'walks' if speed_mps < 0.9 else 'walks fast'} {f'and turns {side}' if turns else 'forward'}"
    return f"the wearer {moves} and looks {looks}"
