"""Where the wearer can walk, and how the body walks there.

The body turns and walks at commanded speeds that change every second or two; it walks where it heads. A command is
taken only if walking it and then braking keeps the wanted distance from everything, so the body can always stop.
T times, C candidate commands.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from egom2p.config import NotNegative, Positive, Range, Share, strict
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.rooms import Scene

_CELL_M = 0.1
_HEAD_ROOM_M = 2.0  # what hangs higher than this above the floor is not in the way
_FLOOR_STEP_M = 0.25  # what rises less than this above the floor is floor
_NUM_CANDIDATES = 48


@strict
class WalkConfig:
    """How the wearer walks; pairs are ranges drawn from uniformly.

    A command lasts `command_s`; with probability `stand_share` its speed is 0, else one of `speed_mps`; with
    probability `straight_share` it does not turn, else it turns left or right at one of `turn_deg_per_s`.
    Speed and turn follow the command with the time constants `speed_lag_s`, `turn_lag_s`.
    clearance_m is the distance the body's axis keeps from everything.
    """

    eye_height_m: Range[Positive] = (1.5, 1.7)  # above the floor
    clearance_m: Positive = 0.75
    command_s: Range[Positive] = (1.5, 3.5)
    stand_share: Share = 0.25
    speed_mps: Range[NotNegative] = (0.6, 1.3)
    straight_share: Share = 0.35
    turn_deg_per_s: Range[NotNegative] = (15.0, 45.0)
    speed_lag_s: Positive = 0.3
    turn_lag_s: Positive = 0.25
    bob_m: NotNegative = 0.03  # up and down at 1.3 m/s, proportional to speed; half of it to the sides
    roll_deg: NotNegative = 2.0  # likewise

    def __post_init__(self) -> None:
        if self.clearance_m < 0.6:
            raise ValueError(
                f"clearance_m must be at least 0.6 to keep the camera out of things, got {self.clearance_m}"
            )


@dataclass(frozen=True)
class WalkMap:
    """Clearance over the floor.

    clearance  (X, Y) metres from the middle of each cell to what is in the way, 0 there and outside
    origin     (2,) metres, the middle of cell (0, 0)
    floor_m    height of the floor
    """

    clearance: np.ndarray
    origin: np.ndarray
    floor_m: float

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Clearance (...,) at positions (..., 2); 0 off the map. Bilinear between cells."""
        cells = np.moveaxis((positions - self.origin) / _CELL_M, -1, 0)
        return ndimage.map_coordinates(self.clearance, cells, order=1, mode="constant", cval=0.0)

    def without_disc(self, centre: np.ndarray, radius_m: float) -> "WalkMap":
        """The map with a disc in the way as well."""
        grid = np.stack(np.meshgrid(*[np.arange(size) for size in self.clearance.shape], indexing="ij"), axis=-1)
        outside = np.linalg.norm(self.origin + grid * _CELL_M - centre, axis=-1) - radius_m
        return WalkMap(np.minimum(self.clearance, np.maximum(outside, 0.0)), self.origin, self.floor_m)

    def random_position(self, rng: np.random.Generator, *, clearance_m: float, where: str) -> np.ndarray:
        """A position (2,) with at least this clearance; ValueError naming the scene when there is none."""
        cells = np.argwhere(self.clearance >= clearance_m)
        if len(cells) == 0:
            raise ValueError(
                f"scene {where}: nowhere {clearance_m:.2f} m away from everything "
                f"(the most open position has {self.clearance.max():.2f} m); wanted room to walk"
            )
        return self.origin + cells[rng.integers(len(cells))] * _CELL_M


def build_walk_map(scene: Scene, caster: Caster) -> WalkMap:
    """Look down on every cell from head height, and across it at three heights.

    A cell is in the way when there is no floor below, when something stands between floor and head, when the view
    starts inside a solid (its lower side is seen), or when a thin wall crosses it.
    """
    low, high = scene.mesh.bounds
    num_cells = np.maximum(((high[:2] - low[:2]) / _CELL_M).astype(int), 1) + 2
    origin = low[:2] - 0.5 * _CELL_M
    cells_P2 = origin + np.stack(np.meshgrid(*map(np.arange, num_cells), indexing="ij"), -1).reshape(-1, 2) * _CELL_M
    # The floor: the lowest large horizontal level, seen by looking down from head height over the lowest point.
    floor_m = float(low[2])
    for _ in range(2):
        from_P3 = np.c_[cells_P2, np.full(len(cells_P2), floor_m + _HEAD_ROOM_M)]
        triangle_P, drop_P = caster.first_hits(from_P3, np.broadcast_to((0.0, 0.0, -1.0), from_P3.shape))
        if not np.isfinite(drop_P).any():
            raise ValueError(f"scene {scene.name}: found no floor below {floor_m + _HEAD_ROOM_M:.2f} m (is z up?)")
        height_P = floor_m + _HEAD_ROOM_M - drop_P
        floor_m = float(np.median(height_P[np.isfinite(drop_P)]))
    sees_lower_side_P = caster.unit_normals[triangle_P, 2] < -0.5
    is_free_P = (np.abs(height_P - floor_m) < _FLOOR_STEP_M) & ~sees_lower_side_P
    for level in (0.4, 1.0, 1.6):
        middle_P3 = np.c_[cells_P2, np.full(len(cells_P2), floor_m + level)]
        for axis in range(2):
            across = np.eye(3)[axis] * _CELL_M
            is_free_P &= caster.first_hits(middle_P3 - 0.5 * across, np.broadcast_to(across, middle_P3.shape))[1] > 1
    is_free = is_free_P.reshape(num_cells)
    is_free[[0, -1], :] = is_free[:, [0, -1]] = False
    return WalkMap(ndimage.distance_transform_edt(is_free) * _CELL_M, origin, floor_m)


@dataclass(frozen=True)
class Walk:
    """The body over time: position (T, 2) metres, heading (T,) radians (0 east, left positive), speed (T,) m/s, turn
    (T,) rad/s, and the steps' sway: up and left (T, 2) metres and roll (T,) radians of the head."""

    position: np.ndarray
    heading: np.ndarray
    speed: np.ndarray
    turn: np.ndarray
    sway: np.ndarray
    roll: np.ndarray


def plan_walk(
    walk_map: WalkMap, num_times: int, rate_hz: float, rng: np.random.Generator, config: WalkConfig, *, where: str
) -> Walk:
    """Walk for `num_times` samples at `rate_hz`."""
    position = walk_map.random_position(rng, clearance_m=config.clearance_m, where=where)
    state = np.array([*position, rng.uniform(0, 2 * np.pi), 0.0, 0.0])  # x, y, heading, speed, turn
    pieces: list[np.ndarray] = []
    total = 0
    while total < num_times:
        num_command = round(rng.uniform(*config.command_s) * rate_hz)
        commands_C2 = _draw_commands(rng, config)
        starts_C5 = np.tile(state, (len(commands_C2), 1))
        if not pieces:
            # The recording starts in the middle of the first command, so that not all begin standing.
            starts_C5[:, 3:] = commands_C2
        walked_CT5 = _roll_out(starts_C5, commands_C2, num_command, rate_hz, config)
        num_brake = round(1.5 * rate_hz)
        braked_CT5 = _roll_out(walked_CT5[:, -1], np.zeros_like(commands_C2), num_brake, rate_hz, config)
        positions_CT2 = np.concatenate([walked_CT5, braked_CT5], axis=1)[:, ::3, :2]
        is_clear_C = (walk_map.at(positions_CT2) >= config.clearance_m - 0.02).all(axis=1)
        # The last candidate stands: it only goes on braking, which the last command was checked for.
        chosen = int(np.argmax(is_clear_C)) if is_clear_C.any() else len(commands_C2) - 1
        pieces.append(walked_CT5[chosen])
        state = walked_CT5[chosen, -1]
        total += num_command
    walked_T5 = np.concatenate(pieces)[:num_times]
    sway_T2, roll_T = _steps(walked_T5[:, 3], rate_hz, rng, config)
    return Walk(walked_T5[:, :2], walked_T5[:, 2], walked_T5[:, 3], walked_T5[:, 4], sway_T2, roll_T)


def _draw_commands(rng: np.random.Generator, config: WalkConfig) -> np.ndarray:
    """Candidate speeds and turns (C, 2) in the order of preference; the last ones stand and turn, or stand."""
    count = _NUM_CANDIDATES
    speed_C = rng.uniform(*config.speed_mps, size=count) * (rng.random() >= config.stand_share)
    turn_C = np.radians(rng.uniform(*config.turn_deg_per_s, size=count)) * rng.choice([-1.0, 1.0], size=count)
    # One draw for all candidates: a wall ahead should not turn standing or straight walking into something else.
    turn_C[: count // 2] *= rng.random() >= config.straight_share
    # Where there is little room, walk slowly; where there is none, turn on the spot.
    speed_C[count // 2 :] *= 0.6
    speed_C[-count // 8 :] = 0.0
    speed_C[-1] = turn_C[-1] = 0.0
    return np.stack([speed_C, turn_C], axis=1)


def _roll_out(
    starts_C5: np.ndarray, commands_C2: np.ndarray, num_times: int, rate_hz: float, config: WalkConfig
) -> np.ndarray:
    """States (C, T, 5) after 1 ... T samples of each command."""
    times_T = np.arange(1, num_times + 1) / rate_hz
    lags_2 = np.array([config.speed_lag_s, config.turn_lag_s])
    decay_T2 = np.exp(-times_T[:, None] / lags_2)
    rates_CT2 = commands_C2[:, None] + (starts_C5[:, 3:] - commands_C2)[:, None] * decay_T2
    heading_CT = starts_C5[:, None, 2] + np.cumsum(rates_CT2[..., 1], axis=1) / rate_hz
    steps_CT2 = rates_CT2[..., :1] * np.stack([np.cos(heading_CT), np.sin(heading_CT)], axis=-1)
    position_CT2 = starts_C5[:, None, :2] + np.cumsum(steps_CT2, axis=1) / rate_hz
    return np.concatenate([position_CT2, heading_CT[..., None], rates_CT2], axis=-1)


def _steps(
    speed_T: np.ndarray, rate_hz: float, rng: np.random.Generator, config: WalkConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Up and left sway (T, 2) metres and roll (T,) radians: two bobs up for one sway to the left and back."""
    strength_T = speed_T / 1.3
    phase_T = 2 * np.pi * np.cumsum((0.6 + 0.35 * strength_T) / rate_hz) + rng.uniform(0, 2 * np.pi)
    up_T = config.bob_m * strength_T * np.sin(2 * phase_T)
    left_T = 0.5 * config.bob_m * strength_T * np.sin(phase_T)
    return np.stack([up_T, left_T], axis=1), np.radians(config.roll_deg) * strength_T * np.sin(phase_T)
