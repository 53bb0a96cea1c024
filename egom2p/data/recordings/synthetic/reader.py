"""Recordings of the synthetic world: same interface as every other reader, made when asked for.

Recording i is a function of the configuration and i alone: the order and number of reads change nothing.
Captions are sentences made from the factors of the simulation. T samples at the rate of the simulation, M movers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from egom2p.config import Count, Natural, Positive, strict
from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.recordings.synthetic.carrying import Motions
from egom2p.data.recordings.synthetic.casting import Caster, tell_slow_casting
from egom2p.data.recordings.synthetic.furnishing import NaturalScene, dress, furnish
from egom2p.data.recordings.synthetic.looking import (
    AHEAD,
    AWAY,
    GazeConfig,
    Looking,
    Surroundings,
    camera_rotations,
    most_often,
    sentence,
    simulate_looking,
    tracks_of,
)
from egom2p.data.recordings.synthetic.movers import Mover, MoversConfig, companion, patch_movers
from egom2p.data.recordings.synthetic.natural import NaturalConfig, NaturalStory
from egom2p.data.recordings.synthetic.rendering import CameraConfig, LampConfig, render
from egom2p.data.recordings.synthetic.rooms import RoomConfig, Thing, build_room, load_scene
from egom2p.data.recordings.synthetic.surfaces import Paint
from egom2p.data.recordings.synthetic.walking import Walk, WalkConfig, WalkMap, build_walk_map, plan_walk

_SIMULATION_HZ = 60.0
_OF_BOTH_WORLDS = {"camera.height", "camera.width"} | {
    f"gaze.{key}" for key in ("saccade_s", "drift", "drift_lag_s", "jitter", "blinks_per_s", "blink_s")
}


@strict
class SyntheticWorldConfig:
    """Which rooms, and how they are walked, looked at and recorded.

    Rooms have the seeds first_seed ... first_seed + num_rooms - 1: keep those of training and evaluation apart.
    A scene file takes the place of all rooms; the seeds then only vary the walk and the movers.

    natural    another world: rooms, lights and a camera like real ones. `lamp`, `room`, `movers` and `walk` then have
               no part; of `camera` the size holds, of `gaze` saccades, noise and blinks
    motion     natural rooms only: a folder of clips with a camera to be moved by; none: random motion
    """

    num_rooms: Count  # how many
    first_seed: Natural = 0  # of the first room
    recordings_per_room: Count = 1  # walks through each
    duration_s: Positive = 8.0
    video_rate_hz: Positive = 8.0  # frames a second
    track_rate_hz: Positive = 30.0  # samples of camera and gaze a second
    caption_every_s: Positive = 2.0  # seconds from one caption to the next
    mover_views: bool = False  # also tell where in the picture every mover is
    dataset: str = "synthetic"
    scene_file: str | None = None  # a mesh that takes the place of all rooms
    scene_up_axis: Literal["y", "z"] = "z"  # of the scene file
    scene_metres_per_unit: Positive = 1.0  # of the scene file
    camera: CameraConfig = field(default_factory=CameraConfig)
    lamp: LampConfig = field(default_factory=LampConfig)
    room: RoomConfig = field(default_factory=RoomConfig)
    movers: MoversConfig = field(default_factory=MoversConfig)
    walk: WalkConfig = field(default_factory=WalkConfig)
    gaze: GazeConfig = field(default_factory=GazeConfig)
    natural: NaturalConfig | None = None
    motion: str | None = None

    def __post_init__(self) -> None:
        if not all(map(len, _clocks(self))) or self.caption_every_s < 1 / _SIMULATION_HZ:
            raise ValueError(
                f"found duration_s={self.duration_s:g}, video_rate_hz={self.video_rate_hz:g}, track_rate_hz="
                f"{self.track_rate_hz:g}, caption_every_s={self.caption_every_s:g}; wanted a frame and a sample at "
                f"least, and {1 / _SIMULATION_HZ:.3g} s or more to a caption"
            )
        if self.natural is None and self.motion is not None:
            raise ValueError("motion moves the camera of natural rooms only; found no `natural` beside it")
        if self.natural is not None:
            parts = {name: getattr(self, name) for name in ("camera", "gaze", "lamp", "room", "movers", "walk")}
            set_keys = [
                f"{name}.{key}"
                for name, part in parts.items()
                for key, value in vars(part).items()
                if value != getattr(type(part)(), key)
            ]
            if found := [key for key in set_keys if key not in _OF_BOTH_WORLDS]:
                raise ValueError(f"natural rooms know no {', '.join(found)}; what they have stands below `natural`")
            if self.mover_views:
                raise ValueError("mover_views: nothing moves in natural rooms but hands; leave it off")


@dataclass(frozen=True)
class _Stage:
    """A scene made ready for rays, and where one can walk in it."""

    name: str
    things: tuple[Thing, ...]
    paint: Paint
    caster: Caster
    walk_map: WalkMap


class SyntheticReader:
    """Recordings with the streams `rgb`, `depth`, `gaze`, `camera`, `caption`, and two tracks:

    gaze_law  (T, 2) where the law of `gaze` points, without lag, look-aways and noise
    factors   (T, 3) speed m/s, turn rad/s (left positive), index of the mover that is looked at (-1 ahead, -2 away);
              the movers' names stand in `provenance.source`, JSON, with the room's seed
    mover_views  (T, 3 M), only if asked for: of each mover where its middle is in the image (u, v), and 1 where it is
              in the picture with nothing that stands still in front of it, else 0
    """

    def __init__(self, config: SyntheticWorldConfig) -> None:
        tell_slow_casting()
        self.config = config
        self.names = [
            f"room{seed:06d}_{number:02d}"
            for seed in range(config.first_seed, config.first_seed + config.num_rooms)
            for number in range(config.recordings_per_room)
        ]
        # One room is kept: the recordings of a room are usually read one after the other.
        self._stage = lru_cache(maxsize=1)(self._build_stage)
        self._motions = None if config.natural is None else Motions(config.motion, config.duration_s)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Recording:
        """Simulate and render one recording; all streams are arrays."""
        return self._tell(index, is_rendered=True)

    def outline(self, index: int) -> Recording:
        """The same recording with black pictures and no depth: what can be known without casting their rays."""
        return self._tell(index, is_rendered=False)

    def _tell(self, index: int, *, is_rendered: bool) -> Recording:
        if not 0 <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        config, times_s = self.config, _simulated(self.config)
        video_s, track_s = _clocks(config)
        room, number = divmod(index, config.recordings_per_room)
        seed = config.first_seed + room
        stage = self._stage(0 if config.scene_file else seed)
        rng = np.random.default_rng((0x57616C6B, seed, number))
        if isinstance(stage, NaturalScene):
            settings = (config.natural, config.camera, config.gaze)
            story = NaturalStory.simulate(stage, self._motions, times_s, rng, settings)
            render_now = partial(story.pictures, stage, video_s, rng, config.natural)
        else:
            story = _Story.simulate(stage, times_s, rng, config)
            render_now = partial(story.pictures, stage, video_s, config.lamp)
        if is_rendered:
            rgb, depth = render_now()
        else:
            shape = (len(video_s), story.intrinsics.height, story.intrinsics.width)
            rgb, depth = np.broadcast_to(np.uint8(0), (*shape, 3)), np.broadcast_to(np.float32(0), shape)
        rows_T = np.minimum(np.round(track_s * _SIMULATION_HZ).astype(int), len(times_s) - 1)
        always = np.ones(len(video_s), dtype=bool)
        things = [thing.name for thing in stage.things]
        streams = {
            "rgb": Stream(rgb, always, video_s, "uint8"),
            "depth": Stream(depth, always, video_s, "m"),
            **story.tracks(track_s, rows_T),
            "caption": _captions(config, times_s, lambda during_T: story.caption(during_T, things)),
        }
        if config.mover_views:
            views, always = story.mover_views(rows_T), np.ones(len(track_s), dtype=bool)
            streams["mover_views"] = Stream(views, always, track_s, "image, seen")
        source = {"room_seed": seed, "scene": stage.name, "movers": story.mover_names, "things": things}
        return Recording(
            name=self.names[index],
            streams=streams,
            intrinsics=story.intrinsics,
            provenance=Provenance(config.dataset, self.names[index], source=json.dumps(source)),
        )

    def _build_stage(self, seed: int) -> "_Stage | NaturalScene":
        config = self.config
        if config.scene_file:
            scene = load_scene(
                config.scene_file, up_axis=config.scene_up_axis, metres_per_unit=config.scene_metres_per_unit
            )
            if config.natural is not None:
                floor_m = build_walk_map(scene, Caster(scene.mesh)).floor_m
                return dress(scene, floor_m, np.random.default_rng((0x4E617475, seed)))
        elif config.natural is not None:
            return furnish(seed, config.natural.room)
        else:
            scene = build_room(seed, config.room)
        caster = Caster(scene.mesh)
        return _Stage(scene.name, scene.things, scene.paint, caster, build_walk_map(scene, caster))


def _simulated(config: SyntheticWorldConfig) -> np.ndarray:
    return np.arange(int(np.ceil(config.duration_s * _SIMULATION_HZ)) + 1) / _SIMULATION_HZ


def _clocks(config: SyntheticWorldConfig) -> tuple[np.ndarray, np.ndarray]:
    """Times of frames and of samples of tracks."""
    rates_hz = (config.video_rate_hz, config.track_rate_hz)
    return tuple(np.arange(round(config.duration_s * rate_hz)) / rate_hz for rate_hz in rates_hz)


def _captions(config: SyntheticWorldConfig, times_s: np.ndarray, tell: Callable[[np.ndarray], str]) -> Stream:
    """What is told of the samples (T,) of each part of the recording."""
    starts_s = np.arange(0.0, config.duration_s, config.caption_every_s)
    captions = [tell((times_s >= start_s) & (times_s < start_s + config.caption_every_s)) for start_s in starts_s]
    return Stream(np.array(captions), np.ones(len(starts_s), dtype=bool), starts_s, "text")


@dataclass(frozen=True)
class _Story:
    """What happens in one recording, at the rate of the simulation."""

    times_s: np.ndarray
    walk: Walk
    eye: np.ndarray
    movers: list[Mover]
    looking: Looking
    is_unhidden: np.ndarray
    intrinsics: Intrinsics

    @classmethod
    def simulate(
        cls, stage: _Stage, times_s: np.ndarray, rng: np.random.Generator, config: SyntheticWorldConfig
    ) -> "_Story":
        """Walk first, then let the movers move, then look."""
        num_times, where, intrinsics = len(times_s), stage.name, config.camera.intrinsics()
        walk_map, movers = patch_movers(
            stage.walk_map, times_s, rng, config.movers, walk_clearance_m=config.walk.clearance_m, where=where
        )
        walk = plan_walk(walk_map, num_times, _SIMULATION_HZ, rng, config.walk, where=where)
        eye_T3 = np.c_[walk.position, np.full(num_times, walk_map.floor_m + rng.uniform(*config.walk.eye_height_m))]
        if config.movers.companion:
            for number in range(config.movers.num_companions):
                parts = (stage.caster, times_s, eye_T3, walk, movers)
                movers.append(companion(*parts, rng, config.movers, number=number))
        left_T2 = np.stack([-np.sin(walk.heading), np.cos(walk.heading)], axis=1)
        eye_T3 = eye_T3 + np.c_[walk.sway[:, 1:] * left_T2, walk.sway[:, 0]]
        seen = _surroundings(stage, eye_T3, movers, walk, intrinsics)
        looking = simulate_looking(seen, _SIMULATION_HZ, rng, config.gaze)
        return cls(times_s, walk, eye_T3, movers, looking, seen.is_unhidden, intrinsics)

    @property
    def mover_names(self) -> list[str]:
        return [mover.name for mover in self.movers]

    def at(self, times_s: np.ndarray, values_T: np.ndarray) -> np.ndarray:
        """Values (T, ...) of the simulation at other times, linear between samples."""
        flat_TC = values_T.reshape(len(values_T), -1)
        columns = [np.interp(times_s, self.times_s, column) for column in flat_TC.T]
        return np.stack(columns, axis=1).reshape(len(times_s), *values_T.shape[1:])

    def world_from_cam(self, times_s: np.ndarray) -> np.ndarray:
        """Poses (N, 4, 4) of the camera at N times."""
        poses = np.tile(np.eye(4), (len(times_s), 1, 1))
        angles = (self.looking.yaw, self.looking.pitch, self.walk.roll)
        poses[:, :3, :3] = camera_rotations(*(self.at(times_s, angle_T) for angle_T in angles))
        poses[:, :3, 3] = self.at(times_s, self.eye)
        return poses

    def pictures(self, stage: _Stage, video_s: np.ndarray, lamp: LampConfig) -> tuple[np.ndarray, np.ndarray]:
        """rgb and depth at the times of the frames."""
        movers = [
            replace(mover, positions=self.at(video_s, mover.positions), turns=self.at(video_s, mover.turns))
            for mover in self.movers
        ]
        return render((stage.caster, stage.paint), movers, self.world_from_cam(video_s), self.intrinsics, lamp)

    def tracks(self, track_s: np.ndarray, rows_T: np.ndarray) -> dict[str, Stream]:
        """At these times; rows_T: the nearest rows of the simulation."""
        factors_T3 = np.stack([self.walk.speed, self.walk.turn, self.looking.target], axis=1)[rows_T]
        gaze, law = self.at(track_s, self.looking.gaze), self.at(track_s, self.looking.law)
        return tracks_of(track_s, gaze, self.looking.is_valid[rows_T], law, self.world_from_cam(track_s), factors_T3)

    def mover_views(self, rows_T: np.ndarray) -> np.ndarray:
        """(T, 3 M) float32, u, v and whether it is seen, of every mover at rows of the simulation."""
        cam_from_world = np.linalg.inv(self.world_from_cam(self.times_s[rows_T]))
        positions_TM4 = np.stack([np.c_[m.positions[rows_T], np.ones(len(rows_T))] for m in self.movers], axis=1)
        x_TM, y_TM, z_TM = np.moveaxis(np.einsum("tij,tmj->tmi", cam_from_world, positions_TM4)[:, :, :3], -1, 0)
        ahead_TM = np.maximum(z_TM, 1e-3)
        u_TM = 0.5 + self.intrinsics.fx / self.intrinsics.width * x_TM / ahead_TM
        v_TM = 0.5 + self.intrinsics.fy / self.intrinsics.height * y_TM / ahead_TM
        is_inside_TM = (z_TM > 0) & (0 <= u_TM) & (u_TM < 1) & (0 <= v_TM) & (v_TM < 1)
        is_seen_TM = is_inside_TM & self.is_unhidden[rows_T]
        return np.stack([u_TM, v_TM, is_seen_TM], axis=-1).reshape(len(rows_T), -1).astype(np.float32)

    def caption(self, during_T: np.ndarray, things: list[str]) -> str:
        """For example "the wearer walks forward and turns left and looks at a red moving ball"."""
        target_T = self.looking.target[during_T]
        main = most_often(target_T[target_T != AWAY] if (target_T != AWAY).any() else target_T)
        looks = "ahead" if main == AHEAD else "around"
        if main not in (AHEAD, AWAY):
            colour, shape = self.movers[main].name.split()
            looks = f"at {'an' if colour[0] in 'aeiou' else 'a'} {colour} moving {shape}"
        return sentence(self.walk.speed[during_T], self.walk.turn[during_T], looks)


def _surroundings(
    stage: _Stage, eye_T3: np.ndarray, movers: list[Mover], walk: Walk, intrinsics: Intrinsics
) -> Surroundings:
    """What there is to see from the eye (T, 3)."""
    to_movers_TM3 = np.stack([mover.positions for mover in movers], axis=1) - eye_T3[:, None]
    radius_M = np.array([mover.radius_m for mover in movers])
    distance_TM = np.linalg.norm(to_movers_TM3, axis=2)
    is_unhidden_TM = np.ones(distance_TM.shape, dtype=bool)
    for index in range(len(movers)):
        unit_T3 = to_movers_TM3[:, index] / distance_TM[:, index, None]
        free_T = stage.caster.first_hits(eye_T3, unit_T3)[1]
        is_unhidden_TM[:, index] = free_T > distance_TM[:, index] - radius_M[index]
    things_K3 = np.array([thing.centre for thing in stage.things]).reshape(-1, 3)
    return Surroundings(
        to_movers=to_movers_TM3,
        mover_radius=radius_M,
        is_unhidden=is_unhidden_TM,
        to_things=things_K3[None] - eye_T3[:, None],
        heading=walk.heading,
        roll=walk.roll,
        focal=(intrinsics.fx / intrinsics.width, intrinsics.fy / intrinsics.height),
    )
