"""Recordings of the synthetic world: same interface as every other reader, made when asked for.

Recording i is a function of the configuration and i alone: the order and number of reads change nothing.
Captions are sentences made from the factors of the simulation. T samples at the rate of the simulation, M movers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from egom2p.config import Count, Natural, Positive, strict
from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Recording, Stream
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
    simulate_looking,
)
from egom2p.data.recordings.synthetic.movers import Mover, MoversConfig, companion, patch_movers
from egom2p.data.recordings.synthetic.natural import NaturalConfig, NaturalStory
from egom2p.data.recordings.synthetic.rendering import CameraConfig, LampConfig, render
from egom2p.data.recordings.synthetic.rooms import RoomConfig, Scene, build_room, load_scene
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

    scene: Scene
    caster: Caster
    walk_map: WalkMap

    @property
    def name(self) -> str:
        return self.scene.name


class SyntheticReader:
    """Recordings with the streams `rgb`, `depth`, `gaze`, `camera`, `caption`, and two tracks:

    gaze_law  (T, 2) where the law of `gaze` points, without lag, look-aways and noise; see `best_gaze_error`
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
        config = self.config
        room, number = divmod(index, config.recordings_per_room)
        seed = config.first_seed + room
        stage = self._stage(0 if config.scene_file else seed)
        rng = np.random.default_rng((0x57616C6B, seed, number))
        if isinstance(stage, NaturalScene):
            times_s, settings = _simulated(config), (config.natural, config.camera, config.gaze)
            story = NaturalStory.simulate(stage, self._motions, times_s, rng, settings)
            intrinsics, things, movers = story.intrinsics, stage.things, list(story.hands)
            streams = self._natural_streams(story, stage, rng, is_rendered=is_rendered)
        else:
            story = _Story.simulate(stage, rng, config)
            intrinsics, things = config.camera.intrinsics(), stage.scene.things
            movers = [mover.name for mover in story.movers]
            streams = story.streams(stage, config, is_rendered=is_rendered)
        source = {"room_seed": seed, "scene": stage.name, "movers": movers, "things": [thing.name for thing in things]}
        return Recording(
            name=self.names[index],
            streams=streams,
            intrinsics=intrinsics,
            provenance=Provenance(config.dataset, self.names[index], source=json.dumps(source)),
        )

    def _natural_streams(
        self, story: NaturalStory, scene: NaturalScene, rng: np.random.Generator, *, is_rendered: bool
    ) -> dict[str, Stream]:
        config, video_s, track_s = self.config, *_clocks(self.config)
        if is_rendered:
            pictures = story.pictures(scene, video_s, rng, config.natural)
        else:
            pictures = _no_pictures(len(video_s), story.intrinsics)
        names = [*story.hands, *(thing.name for thing in scene.things)]
        rows_T = np.round(track_s * _SIMULATION_HZ).astype(int)
        captions = _captions(config, story.times_s, lambda during_T: _natural_caption(story, during_T, names))
        return {**_picture_streams(*pictures, video_s), **story.tracks(track_s, rows_T), "caption": captions}

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
        return _Stage(scene, caster, build_walk_map(scene, caster))


def _simulated(config: SyntheticWorldConfig) -> np.ndarray:
    return np.arange(int(np.ceil(config.duration_s * _SIMULATION_HZ)) + 1) / _SIMULATION_HZ


def _clocks(config: SyntheticWorldConfig) -> tuple[np.ndarray, np.ndarray]:
    """Times of frames and of samples of tracks."""
    rates_hz = (config.video_rate_hz, config.track_rate_hz)
    return tuple(np.arange(round(config.duration_s * rate_hz)) / rate_hz for rate_hz in rates_hz)


def _picture_streams(rgb: np.ndarray, depth: np.ndarray, video_s: np.ndarray) -> dict[str, Stream]:
    always = np.ones(len(video_s), dtype=bool)
    return {"rgb": Stream(rgb, always, video_s, "uint8"), "depth": Stream(depth, always, video_s, "m")}


def _captions(config: SyntheticWorldConfig, times_s: np.ndarray, tell: Callable[[np.ndarray], str]) -> Stream:
    """What is told of the samples (T,) of each part of the recording."""
    starts_s = np.arange(0.0, config.duration_s, config.caption_every_s)
    captions = [tell((times_s >= start_s) & (times_s < start_s + config.caption_every_s)) for start_s in starts_s]
    return Stream(np.array(captions), np.ones(len(starts_s), dtype=bool), starts_s, "text")


def _no_pictures(num_frames: int, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    shape = (num_frames, intrinsics.height, intrinsics.width)
    return np.broadcast_to(np.uint8(0), (*shape, 3)), np.broadcast_to(np.float32(0), shape)


def best_gaze_error(recording: Recording | AlignedClip) -> float:
    """Mean distance, in image sizes, between the gaze and where its law points, over valid samples.

    It is the error of a predictor that knows the law and sees exactly where the movers are at every instant, but not
    the past, the look-aways and the noise: about the best that can be reached from the picture. NaN without any valid
    sample. Meant for pictures as rendered: a crop moves `gaze` and not `gaze_law`.
    """
    gaze, law = recording.streams["gaze"], recording.streams["gaze_law"]
    is_valid_T = gaze.is_valid & law.is_valid
    if not is_valid_T.any():
        return float("nan")
    return float(np.linalg.norm(gaze.values[is_valid_T] - law.values[is_valid_T], axis=1).mean())


@dataclass(frozen=True)
class _Story:
    """What happens in one recording, at the rate of the simulation."""

    times_s: np.ndarray
    walk: Walk
    eye: np.ndarray
    movers: list[Mover]
    looking: Looking
    is_unhidden: np.ndarray

    @classmethod
    def simulate(cls, stage: _Stage, rng: np.random.Generator, config: SyntheticWorldConfig) -> "_Story":
        """Walk first, then let the movers move, then look."""
        times_s = _simulated(config)
        num_times = len(times_s)
        where = stage.scene.name
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
        seen = _surroundings(stage, eye_T3, movers, walk, config.camera)
        looking = simulate_looking(seen, _SIMULATION_HZ, rng, config.gaze)
        return cls(times_s, walk, eye_T3, movers, looking, seen.is_unhidden)

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

    def streams(self, stage: _Stage, config: SyntheticWorldConfig, *, is_rendered: bool) -> dict[str, Stream]:
        video_s, track_s = _clocks(config)
        movers = [
            replace(mover, positions=self.at(video_s, mover.positions), turns=self.at(video_s, mover.turns))
            for mover in self.movers
        ]
        intrinsics = config.camera.intrinsics()
        if is_rendered:
            static = (stage.caster, stage.scene.paint)
            pictures = render(static, movers, self.world_from_cam(video_s), intrinsics, config.lamp)
        else:
            pictures = _no_pictures(len(video_s), intrinsics)
        nearest_T = np.minimum(np.round(track_s * _SIMULATION_HZ).astype(int), len(self.times_s) - 1)
        target_T = self.looking.target[nearest_T]
        factors_T3 = np.stack([self.walk.speed[nearest_T], self.walk.turn[nearest_T], target_T], axis=1)
        always = np.ones(len(track_s), dtype=bool)
        gaze = self.at(track_s, self.looking.gaze).astype(np.float32)
        law = self.at(track_s, self.looking.law).astype(np.float32)
        views = {}
        if config.mover_views:
            views["mover_views"] = Stream(self._mover_views(nearest_T, config), always, track_s, "image, seen")
        return {
            **views,
            **_picture_streams(*pictures, video_s),
            "gaze": Stream(gaze, self.looking.is_valid[nearest_T], track_s, "image"),
            "camera": Stream(self.world_from_cam(track_s), always, track_s, "world_from_cam"),
            "gaze_law": Stream(law, always, track_s, "image"),
            "factors": Stream(factors_T3.astype(np.float32), always, track_s, "m/s, rad/s, mover"),
            "caption": _captions(config, self.times_s, self._caption),
        }

    def _mover_views(self, rows_T: np.ndarray, config: SyntheticWorldConfig) -> np.ndarray:
        """(T, 3 M) float32, u, v and whether it is seen, of every mover at rows of the simulation."""
        cam_from_world = np.linalg.inv(self.world_from_cam(self.times_s[rows_T]))
        positions_TM4 = np.stack([np.c_[m.positions[rows_T], np.ones(len(rows_T))] for m in self.movers], axis=1)
        x_TM, y_TM, z_TM = np.moveaxis(np.einsum("tij,tmj->tmi", cam_from_world, positions_TM4)[:, :, :3], -1, 0)
        intrinsics = config.camera.intrinsics()
        ahead_TM = np.maximum(z_TM, 1e-3)
        u_TM = 0.5 + intrinsics.fx / intrinsics.width * x_TM / ahead_TM
        v_TM = 0.5 + intrinsics.fy / intrinsics.height * y_TM / ahead_TM
        is_inside_TM = (z_TM > 0) & (0 <= u_TM) & (u_TM < 1) & (0 <= v_TM) & (v_TM < 1)
        is_seen_TM = is_inside_TM & self.is_unhidden[rows_T]
        return np.stack([u_TM, v_TM, is_seen_TM], axis=-1).reshape(len(rows_T), -1).astype(np.float32)

    def _caption(self, during_T: np.ndarray) -> str:
        parts = (self.walk.speed[during_T], self.walk.turn[during_T], self.looking.target[during_T])
        return caption_of(*parts, [mover.name for mover in self.movers])


def _surroundings(
    stage: _Stage, eye_T3: np.ndarray, movers: list[Mover], walk: Walk, camera: CameraConfig
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
    things_K3 = np.array([thing.centre for thing in stage.scene.things]).reshape(-1, 3)
    intrinsics = camera.intrinsics()
    return Surroundings(
        to_movers=to_movers_TM3,
        mover_radius=radius_M,
        is_unhidden=is_unhidden_TM,
        to_things=things_K3[None] - eye_T3[:, None],
        heading=walk.heading,
        roll=walk.roll,
        focal=(intrinsics.fx / intrinsics.width, intrinsics.fy / intrinsics.height),
    )


def caption_of(speed: np.ndarray, turn: np.ndarray, target: np.ndarray, mover_names: list[str]) -> str:
    """One sentence about a segment of time: speed (T,) m/s, turn (T,) rad/s, left positive, target (T,) of `looking`.

    For example "the wearer walks forward and turns left, looking at a red moving ball".
    """
    targets, counts = np.unique(target[target != AWAY] if (target != AWAY).any() else target, return_counts=True)
    main = int(targets[np.argmax(counts)])
    if main in (AHEAD, AWAY):
        looks = "looks ahead" if main == AHEAD else "looks around"
    else:
        colour, shape = mover_names[main].split()
        looks = f"looks at {'an' if colour[0] in 'aeiou' else 'a'} {colour} moving {shape}"
    return f"the wearer {_motion(float(np.mean(speed)), float(np.mean(turn)))} and {looks}"


def _natural_caption(story: NaturalStory, during_T: np.ndarray, names: list[str]) -> str:
    targets, counts = np.unique(story.glances.target[during_T], return_counts=True)
    main = int(targets[np.argmax(counts)])
    moves = _motion(float(np.mean(story.speed[during_T])), float(np.mean(story.turn[during_T])))
    if main < 0:
        return f"the wearer {moves} and looks around"
    article = "the" if main < len(story.hands) else "a"
    return f"the wearer {moves} and looks at {article} {names[main]}"


def _motion(speed_mps: float, turn_rad_per_s: float) -> str:
    side = "left" if turn_rad_per_s > 0 else "right"
    turns = abs(turn_rad_per_s) > np.radians(10)
    if speed_mps < 0.2:
        return f"turns {side} on the spot" if turns else "stands still"
    gait = "walks" if speed_mps < 0.9 else "walks fast"
    return f"{gait} and turns {side}" if turns else f"{gait} forward"
