"""Things that move: a small toy that hovers ahead of the wearer, and others that play on patches of the floor.

T times.
"""

from dataclasses import dataclass

import numpy as np
import trimesh

from egom2p.config import Count, Natural, NotNegative, Positive, Range, strict
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.surfaces import MOVER_COLOURS, Paint, plain_paint
from egom2p.data.recordings.synthetic.walking import Walk, WalkMap

_COMPANION_NEAREST_M = 0.6  # from the eye to its surface


@strict
class MoversConfig:
    """How many things move, and how.

    companion: one mover hovers ahead of the wearer (a flying toy), swinging slowly left and right by up to
    `companion_bearing_deg` of the body's heading and up and down by `companion_elevation_deg` around
    `companion_elevation_mean_deg`; so something to look at is nearly always in the picture, anywhere in it. It keeps
    `companion_distance_m` and, like a car on a road, a headway of `companion_headway_s` more when the wearer walks:
    its size in the picture tells of the wearer's speed.
    num_companions: several of them, their middle bearings `companion_spread_deg` apart.
    distinct_colours: no two movers have the same colour, as far as there are colours.
    Patch movers go round and bounce inside discs of radius `patch_radius_m`, which the wearer does not enter.
    """

    companion: bool = True
    num_companions: Count = 1
    companion_spread_deg: NotNegative = 0.0
    distinct_colours: bool = False
    companion_radius_m: Range[Positive] = (0.2, 0.24)  # its size
    companion_distance_m: Range[Positive] = (0.95, 1.15)
    companion_headway_s: NotNegative = 0.8
    companion_bearing_deg: float = 56.0
    companion_elevation_deg: float = 42.0
    companion_elevation_mean_deg: float = -10.0
    companion_rate_hz: Range[NotNegative] = (0.05, 0.14)  # how often it swings
    num_patch_movers: Natural = 2  # things that move on their own patch of the floor
    patch_radius_m: NotNegative = 0.5
    patch_mover_radius_m: Range[Positive] = (0.15, 0.25)  # their size
    patch_rate_hz: Range[NotNegative] = (0.12, 0.3)  # rounds a second

    def __post_init__(self) -> None:
        if not self.companion and self.num_patch_movers < 1:
            raise ValueError("something must move: set companion or num_patch_movers")


@dataclass(frozen=True)
class Mover:
    """One moving thing: its mesh around the origin of its own frame.

    radius_m   of the sphere around it
    positions  (T, 3) metres, where its origin is in the world
    turns      (T,) radians, how far it has turned about the world's z axis
    """

    name: str
    mesh: trimesh.Trimesh
    paint: Paint
    radius_m: float
    positions: np.ndarray
    turns: np.ndarray


def patch_movers(
    walk_map: WalkMap,
    times_s: np.ndarray,
    rng: np.random.Generator,
    config: MoversConfig,
    *,
    walk_clearance_m: float,
    where: str,
) -> tuple[WalkMap, list[Mover]]:
    """Movers on their patches, and the walk map that keeps out of them; fewer where a patch would leave no room."""
    movers: list[Mover] = []
    for _ in range(config.num_patch_movers):
        if walk_map.clearance.max() < config.patch_radius_m + 0.05:
            break
        centre = walk_map.random_position(rng, clearance_m=config.patch_radius_m, where=where)
        walk_map_left = walk_map.without_disc(centre, config.patch_radius_m)
        if walk_map_left.clearance.max() < walk_clearance_m + 0.1:
            break
        radius = rng.uniform(*config.patch_mover_radius_m)
        name, mesh, paint = _build_body(rng, radius, used={mover.name for mover in movers}, config=config)
        positions, turns = _patch_track(times_s, centre, radius, walk_map.floor_m, rng, config)
        movers.append(Mover(name, mesh, paint, radius, positions, turns))
        walk_map = walk_map_left
    return walk_map, movers


def companion(
    caster: Caster,
    times_s: np.ndarray,
    eye_T3: np.ndarray,
    walk: Walk,
    others: list[Mover],
    rng: np.random.Generator,
    config: MoversConfig,
    *,
    number: int = 0,
) -> Mover:
    """The mover that hovers ahead of the wearer, in front of whatever stands there; `number` of `num_companions`."""
    rate_hz = 1.0 / (times_s[1] - times_s[0])
    radius = rng.uniform(*config.companion_radius_m)
    name, mesh, paint = _build_body(rng, radius, used={mover.name for mover in others}, config=config)
    bearing_T, elevation_T = _companion_directions(times_s, rng, config).T
    bearing_T = bearing_T + np.radians(config.companion_spread_deg) * (number - (config.num_companions - 1) / 2)
    flat_T = np.cos(elevation_T)
    yaw_T = walk.heading + bearing_T
    toward_T3 = np.stack([flat_T * np.cos(yaw_T), flat_T * np.sin(yaw_T), np.sin(elevation_T)], axis=1)
    nearest_m = _COMPANION_NEAREST_M + radius
    wish_T = rng.uniform(*config.companion_distance_m) + config.companion_headway_s * walk.speed
    free_T = np.minimum(caster.first_hits(eye_T3, toward_T3)[1] - 0.6 * radius, wish_T)
    distance_T = np.maximum(_smooth_minimum(free_T, round(0.3 * rate_hz)), nearest_m)
    return Mover(name, mesh, paint, radius, eye_T3 + distance_T[:, None] * toward_T3, 0.8 * times_s)


def _smooth_minimum(values_T: np.ndarray, reach: int) -> np.ndarray:
    """The minimum over 2 reach + 1 samples, smoothed over as many: below the values, and without jumps."""
    padded = np.pad(values_T, 2 * reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).min(axis=1)
    return np.lib.stride_tricks.sliding_window_view(windows, 2 * reach + 1).mean(axis=1)


def _build_body(
    rng: np.random.Generator, radius_m: float, *, used: set[str], config: MoversConfig
) -> tuple[str, trimesh.Trimesh, Paint]:
    """Name, mesh and paint of a mover inside a sphere of this radius; its name is not among `used`."""
    used_colours = {name.split()[0] for name in used} if config.distinct_colours else set()
    colours = [colour for colour in MOVER_COLOURS if colour not in used_colours] or list(MOVER_COLOURS)
    names = [f"{colour} {shape}" for colour in colours for shape in ("ball", "box", "barrel")]
    names = [name for name in names if name not in used]
    name = names[rng.integers(len(names))]
    colour, shape = name.split()
    if shape == "ball":
        mesh = trimesh.creation.icosphere(subdivisions=2, radius=radius_m)
    elif shape == "box":
        mesh = trimesh.creation.box(extents=[2 * radius_m / np.sqrt(3)] * 3)
    else:
        mesh = trimesh.creation.cylinder(radius=0.75 * radius_m, height=1.3 * radius_m, sections=20)
    return name, mesh, plain_paint(len(mesh.faces), MOVER_COLOURS[colour], glow=1.0)


def _patch_track(
    times_s: np.ndarray,
    centre: np.ndarray,
    radius_m: float,
    floor_m: float,
    rng: np.random.Generator,
    config: MoversConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, 3) and turns (T,) of a mover that circles and bounces on its patch around `centre` (2,)."""
    rate = rng.uniform(*config.patch_rate_hz) * rng.choice([-1.0, 1.0])
    angle_T = 2 * np.pi * rate * times_s + rng.uniform(0, 2 * np.pi)
    reach = config.patch_radius_m - radius_m
    bounce_T = np.abs(np.sin(np.pi * rng.uniform(0.4, 0.9) * times_s + rng.uniform(0, np.pi)))
    height_T = floor_m + radius_m + rng.uniform(0.3, 1.2) * bounce_T
    positions = np.stack([centre[0] + reach * np.cos(angle_T), centre[1] + reach * np.sin(angle_T), height_T], axis=1)
    return positions, angle_T


def _companion_directions(times_s: np.ndarray, rng: np.random.Generator, config: MoversConfig) -> np.ndarray:
    """Bearing (left positive) and elevation, radians (T, 2), of the companion as seen from the wearer's body."""

    def swing() -> np.ndarray:
        rate, phase = rng.uniform(*config.companion_rate_hz), rng.uniform(0, 2 * np.pi, size=2)
        slow = np.sin(2 * np.pi * rate * times_s + phase[0])
        return 0.85 * slow + 0.15 * np.sin(2 * np.pi * 2.3 * rate * times_s + phase[1])

    bearing = np.radians(config.companion_bearing_deg) * swing()
    mean, reach = np.radians([config.companion_elevation_mean_deg, config.companion_elevation_deg])
    return np.stack([bearing, mean + reach * swing()], axis=1)
