"""Recordings of natural rooms: a room, a camera carried through it, hands, glances, photographs.

Nothing but the picture tells of depth or motion: no lamp at the camera, no colours that mean a direction, nothing that
leads the eye. T samples at the rate of the simulation, F frames.
"""

from dataclasses import dataclass, field

import numpy as np

from egom2p.config import strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.recordings.synthetic.carrying import CarryingConfig, Glances, Motions, glance, hand_poses, place
from egom2p.data.recordings.synthetic.furnishing import FurnishingConfig, NaturalScene, build_hand, dress_arms
from egom2p.data.recordings.synthetic.looking import GazeConfig, most_often, sentence, tracks_of
from egom2p.data.recordings.synthetic.photographs import (
    Body,
    LensConfig,
    LightsConfig,
    photograph,
    put_lights,
    shutter_times,
)
from egom2p.data.recordings.synthetic.rendering import CameraConfig
from egom2p.geometry import interpolate_poses


@strict
class NaturalConfig:
    """All that is drawn at random in natural rooms."""

    room: FurnishingConfig = field(default_factory=FurnishingConfig)
    lights: LightsConfig = field(default_factory=LightsConfig)
    carrying: CarryingConfig = field(default_factory=CarryingConfig)
    lens: LensConfig = field(default_factory=LensConfig)


@dataclass(frozen=True)
class NaturalStory:
    """What happens in one recording: camera (T, 4, 4), speed (T,) m/s, turn (T,) rad/s, left positive, glances, and
    of each hand that is there its name and world_from_hand (T, 4, 4)."""

    times_s: np.ndarray
    intrinsics: Intrinsics
    world_from_cam: np.ndarray
    hands: dict[str, np.ndarray]
    speed: np.ndarray
    turn: np.ndarray
    glances: Glances

    @classmethod
    def simulate(
        cls,
        scene: NaturalScene,
        motions: Motions,
        times_s: np.ndarray,
        rng: np.random.Generator,
        settings: tuple[NaturalConfig, CameraConfig, GazeConfig],
    ) -> "NaturalStory":
        config, camera, gaze = settings
        fov_deg = float(rng.uniform(*config.lens.fov_deg))
        intrinsics = CameraConfig(height=camera.height, width=camera.width, fov_deg=fov_deg).intrinsics()
        world_from_cam = place(scene, motions, times_s, rng, config.carrying)
        hands = {
            name: hand_poses(world_from_cam, times_s, rng, is_left=name == "left hand")
            for name in ("left hand", "right hand")
            if rng.random() < config.carrying.hands
        }
        targets = [world_from_hand[:, :3, 3] for world_from_hand in hands.values()]
        targets += [np.broadcast_to(thing.centre, (len(times_s), 3)) for thing in scene.things]
        targets_TK3 = np.stack([np.zeros((len(times_s), 3)), *targets], axis=1)[:, 1:]
        glances = glance(world_from_cam, targets_TK3, len(hands), (scene.caster, intrinsics), times_s, rng, gaze)
        rate_hz = 1 / (times_s[1] - times_s[0])
        speed = np.linalg.norm(np.gradient(world_from_cam[:, :2, 3], axis=0), axis=1) * rate_hz
        yaw = np.unwrap(np.arctan2(world_from_cam[:, 1, 2], world_from_cam[:, 0, 2]))
        return cls(times_s, intrinsics, world_from_cam, hands, speed, np.gradient(yaw) * rate_hz, glances)

    @property
    def mover_names(self) -> list[str]:
        return list(self.hands)

    def poses_at(self, times_s: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Poses (..., 4, 4) at times (...,); at the ends those of the ends."""
        held = np.clip(times_s.ravel(), self.times_s[0], self.times_s[-1])
        return interpolate_poses(self.times_s, poses, held, max_gap_s=1.0)[0].reshape(*times_s.shape, 4, 4)

    def pictures(
        self, scene: NaturalScene, video_s: np.ndarray, rng: np.random.Generator, config: NaturalConfig
    ) -> tuple[np.ndarray, np.ndarray]:
        """rgb and depth at the times of the frames."""
        times = shutter_times(video_s, rng.uniform(*config.lens.shutter_s), config.lens)
        bodies, materials = [], dress_arms(rng)
        for name, poses in self.hands.items():
            mesh, skin = build_hand(rng, materials, is_left=name == "left hand")
            bodies.append(Body(mesh, skin, self.poses_at(times, poses)))
        lights, world_from_cam = put_lights(scene, rng, config.lights), self.poses_at(times, self.world_from_cam)
        return photograph(scene, bodies, lights, world_from_cam, self.intrinsics, rng, config.lens)

    def tracks(self, track_s: np.ndarray, rows_T: np.ndarray) -> dict[str, Stream]:
        """Gaze, camera, gaze_law and factors at these times; rows_T: the nearest rows of the simulation.

        The mover of `factors` is the number of the hand that the eyes are on, -1 for anything else.
        """
        hand_T = np.where(self.glances.target < len(self.hands), self.glances.target, -1)
        factors_T3 = np.stack([self.speed, self.turn, hand_T], axis=1)[rows_T]
        eyes = (values[rows_T] for values in (self.glances.gaze, self.glances.is_valid, self.glances.law))
        return tracks_of(track_s, *eyes, self.poses_at(track_s, self.world_from_cam), factors_T3)

    def caption(self, during_T: np.ndarray, things: list[str]) -> str:
        """For example "the wearer stands still and looks at the left hand"."""
        main, names = most_often(self.glances.target[during_T]), [*self.hands, *things]
        looks = "around" if main < 0 else f"at {'the' if main < len(self.hands) else 'a'} {names[main]}"
        return sentence(self.speed[during_T], self.turn[during_T], looks)
