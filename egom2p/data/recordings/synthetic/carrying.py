"""A camera carried through a natural room: its motion from real tracks or random motion, hands before it, and gaze.

A track says how a camera moves, not where, and not which way is up (its own frame may be that of any sensor). So many
cameras are tried: mounted on the body at random, begun at a plausible height and tilt; those whose way is level and
free of walls and furniture stay. T times, C candidates, K targets.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from egom2p.config import Count, NotNegative, Positive, Range, Share, strict
from egom2p.contracts import Intrinsics
from egom2p.data.clips.clip_store import ClipStore, stored_datasets, stored_streams
from egom2p.data.recordings.synthetic.casting import Caster
from egom2p.data.recordings.synthetic.furnishing import NaturalScene
from egom2p.data.recordings.synthetic.looking import GazeConfig, camera_rotations, chances
from egom2p.data.recordings.trajectories import RandomMotionReader, RandomMotionSource, smooth_noise
from egom2p.geometry import interpolate_poses, matrix_from_quaternion, poses_from_parts

_LONGEST_GAP_S = 0.2


@strict
class CarryingConfig:
    """How the camera is held; pairs are ranges drawn from uniformly.

    down_deg       how far it looks down at the middle of the recording; at no time more than `max_tilt_deg`
    near_share     of recordings are before a thing at half time, at `near_m` from its middle and facing it
    clearance_m    from everything in 26 directions, six times a second; in between nothing is crossed
    hands          how often each hand is there
    tries          of new motions; each later one may be slower, down to a tenth
    """

    height_m: Range[Positive] = (1.1, 1.8)  # of the camera above the floor
    down_deg: Range[NotNegative] = (5.0, 40.0)
    roll_deg: NotNegative = 5.0  # standard deviation
    max_tilt_deg: tuple[Positive, Positive] = (75.0, 35.0)  # down, up
    max_roll_deg: Positive = 30.0  # at any time
    near_share: Share = 0.7
    near_m: Range[Positive] = (0.4, 1.8)  # from the middle of the thing
    clearance_m: Positive = 0.25
    hands: Share = 0.45
    tries: Count = 24
    candidates: Count = 48  # cameras that each motion is tried with


class Motions:
    """Tracks to draw from: those of a folder of clips (all data sets that have a camera), or random motion."""

    def __init__(self, folder: str | None, duration_s: float) -> None:
        self._duration_s = duration_s
        self._stores: list[ClipStore] = []
        if folder is None:
            return
        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder of clips to take motion from (run_prepare_data.py writes them)")
        for name in stored_datasets(folder):
            store = ClipStore(folder, name, streams=["camera"]) if "camera" in stored_streams(folder, name) else []
            span_s = float(np.ptp(store[0].streams["camera"].times_s)) + 0.25 if len(store) else duration_s
            if span_s < duration_s:
                raise ValueError(
                    f"{folder}: {name} holds tracks of {span_s:.3g} s, wanted {duration_s:g} s: shorten "
                    "source.world.duration_s or cut longer clips (clip.duration_s)"
                )
            self._stores += [store] if len(store) else []
        if not self._stores:
            raise ValueError(f"{folder}: found no clips with a camera, wanted tracks to move cameras by")

    def draw(self, times_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Poses (T, 4, 4) of some body in some world; a track that ends a little early stands still there."""
        if not self._stores:
            source = RandomMotionSource(
                kind="random_motion",
                num_recordings=1,
                duration_s=self._duration_s + 0.5,
                seed=int(rng.integers(2**31)),
            )
            camera, where = RandomMotionReader(source).read(0).streams["camera"], ""
        else:
            store = self._stores[rng.integers(len(self._stores))]
            clip = store[int(rng.integers(len(store)))]
            camera, where = clip.streams["camera"], f"{store.root}: clip {clip.key} of {store.dataset}"
        clock_s = camera.times_s - camera.times_s[0]
        poses, is_known = interpolate_poses(
            clock_s,
            camera.values,
            np.clip(times_s, 0, clock_s[-1]),
            max_gap_s=_LONGEST_GAP_S,
            is_valid=camera.is_valid,
        )
        if not is_known.all():
            raise ValueError(
                f"{where}: found gaps of more than {_LONGEST_GAP_S} s in its camera, wanted none to move by"
            )
        return poses


def place(
    scene: NaturalScene,
    motions: Motions,
    times_s: np.ndarray,
    rng: np.random.Generator,
    config: CarryingConfig,
) -> np.ndarray:
    """Poses world_from_cam (T, 4, 4) of a camera that stays in free space.

    Raises ValueError naming the scene when no try fits.
    """
    middle = len(times_s) // 2
    for attempt in range(config.tries):
        motion_T44 = motions.draw(times_s, rng)
        shrink = 1.0 if attempt < config.tries // 2 else max(0.1, 2 - 2 * (attempt + 1) / config.tries)
        moved_T44 = _shrunk(np.linalg.inv(motion_T44[middle]) @ motion_T44, shrink)
        count = config.candidates
        mount_C33 = matrix_from_quaternion(_unit(rng.normal(size=(count, 4))))
        start_C33, start_C3 = _starts(scene, count, rng, config)
        world_from_body_C33 = start_C33 @ np.swapaxes(mount_C33, 1, 2)
        rotation_CT33 = world_from_body_C33[:, None] @ moved_T44[:, :3, :3] @ mount_C33[:, None]
        path_CT3 = moved_T44[:, :3, 3] @ np.swapaxes(world_from_body_C33, 1, 2) + start_C3[:, None]
        order = _plausible(rotation_CT33, path_CT3 - [0, 0, scene.floor_m], config)
        few = np.linspace(0, len(times_s) - 1, max(int(times_s[-1] * 6), 4)).astype(int)
        for some in np.split(order, range(8, len(order), 8)):
            is_free_C = _stay_free(scene.caster, path_CT3[some][:, few], config.clearance_m)
            if is_free_C.any():
                chosen = some[np.argmax(is_free_C)]
                return poses_from_parts(rotation_CT33[chosen], path_CT3[chosen])
    raise ValueError(
        f"scene {scene.name}: {config.tries} motions of {config.candidates} cameras each go through something "
        f"or leave it; wanted room for a camera with {config.clearance_m:g} m around it"
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _shrunk(moved_T44: np.ndarray, share: float) -> np.ndarray:
    """The same way, shorter and turning less."""
    if share == 1.0:
        return moved_T44
    turns = Rotation.from_matrix(moved_T44[:, :3, :3]).as_rotvec()
    return poses_from_parts(Rotation.from_rotvec(share * turns).as_matrix(), share * moved_T44[:, :3, 3])


def _starts(
    scene: NaturalScene, count: int, rng: np.random.Generator, config: CarryingConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (C, 3, 3) and positions (C, 3) of cameras in the middle of the recording."""
    low, high = scene.mesh.bounds
    position_C3 = rng.uniform(low, high, size=(count, 3))
    yaw_C = rng.uniform(0, 2 * np.pi, count)
    down_C = np.radians(rng.uniform(*config.down_deg, count))
    things = np.array([thing.centre for thing in scene.things]).reshape(-1, 3)
    if len(things) and rng.random() < config.near_share:
        thing_C3 = things[rng.integers(len(things), size=count)]
        away_C = rng.uniform(*config.near_m, count)
        position_C3[:, 0] = thing_C3[:, 0] - away_C * np.cos(yaw_C)
        position_C3[:, 1] = thing_C3[:, 1] - away_C * np.sin(yaw_C)
        yaw_C = yaw_C + rng.normal(scale=0.25, size=count)
    position_C3[:, 2] = np.minimum(scene.floor_m + rng.uniform(*config.height_m, count), high[2] - 0.3)
    rotation_C33 = camera_rotations(yaw_C, -down_C, np.radians(config.roll_deg) * rng.normal(size=count))
    return rotation_C33, position_C3


def _plausible(rotation_CT33: np.ndarray, path_CT3: np.ndarray, config: CarryingConfig) -> np.ndarray:
    """Candidates that are never tilted too far nor too low or high, the most level way first."""
    pitch_CT = np.degrees(np.arcsin(np.clip(rotation_CT33[..., 2, 2], -1, 1)))
    roll_CT = np.degrees(np.arctan2(-rotation_CT33[..., 2, 0], -rotation_CT33[..., 2, 1]))
    height_CT = path_CT3[..., 2]
    is_fine_C = (pitch_CT > -config.max_tilt_deg[0]).all(1) & (pitch_CT < config.max_tilt_deg[1]).all(1)
    is_fine_C &= (np.abs(roll_CT) < config.max_roll_deg).all(1)
    is_fine_C &= (height_CT > 0.5 * config.height_m[0]).all(1) & (height_CT < 1.3 * config.height_m[1]).all(1)
    # Bodies rather go where they look than backwards.
    forward_C = ((path_CT3[:, -1] - path_CT3[:, 0]) * rotation_CT33[:, rotation_CT33.shape[1] // 2, :, 2]).sum(axis=1)
    unrest_C = np.ptp(height_CT, axis=1) + 0.02 * roll_CT.std(axis=1) - 0.15 * forward_C
    return np.flatnonzero(is_fine_C)[np.argsort(unrest_C[is_fine_C], kind="stable")]


_AROUND = _unit(np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z], float))


def _stay_free(caster: Caster, path_CT3: np.ndarray, clearance_m: float) -> np.ndarray:
    """(C,): nothing nearer than this on the whole way, nothing crossed, and never inside a solid.

    Inside, most of what is seen from there turns its back.
    """
    num_candidates, num_times = path_CT3.shape[:2]
    if not num_candidates:
        return np.zeros(0, dtype=bool)
    origins = np.repeat(path_CT3.reshape(-1, 3), len(_AROUND), axis=0)
    directions = np.tile(_AROUND, (num_candidates * num_times, 1))
    triangle, distance = caster.first_hits(origins, directions)
    is_back = (np.einsum("pc,pc->p", caster.unit_normals[triangle], directions) > 0) & (triangle >= 0)
    shape = (num_candidates, -1, len(_AROUND))
    is_free_C = (distance.reshape(shape) > clearance_m).all(axis=(1, 2))
    is_free_C &= (is_back.reshape(shape).mean(axis=2) < 0.3).all(axis=1)
    # What is nearly all miss lies outside of everything.
    is_free_C &= ((triangle >= 0).reshape(shape).mean(axis=2) > 0.4).all(axis=1)
    step_CT3 = np.diff(path_CT3, axis=1)
    crossed = caster.first_hits(path_CT3[:, :-1].reshape(-1, 3), step_CT3.reshape(-1, 3))[1] < 1
    return is_free_C & ~crossed.reshape(num_candidates, -1).any(axis=1)


def hand_poses(
    world_from_cam: np.ndarray, times_s: np.ndarray, rng: np.random.Generator, *, is_left: bool
) -> np.ndarray:
    """Poses world_from_hand (T, 4, 4): before the camera, mostly low, moving and turning smoothly at random."""
    rate_hz = 1 / (times_s[1] - times_s[0])
    side = -1 if is_left else 1
    swing_T3 = np.cumsum(smooth_noise(rng, len(times_s), rate_hz), axis=0) / rate_hz * rng.uniform(0.03, 0.25)
    rest = np.array([side * rng.uniform(0.02, 0.25), rng.uniform(0.05, 0.32), rng.uniform(0.28, 0.6)])
    centre_T3 = rest + swing_T3 - swing_T3.mean(axis=0)
    centre_T3[:, 2] = np.maximum(centre_T3[:, 2], 0.22)
    # The elbow stays near the body, below and beside the camera; the hand's z axis points to it.
    elbow = np.array([side * rng.uniform(0.15, 0.4), rng.uniform(0.4, 0.7), rng.uniform(-0.05, 0.3)])
    back_T3 = _unit(elbow - centre_T3)
    roll_T = rng.uniform(-1.2, 1.2) + 0.6 * np.cumsum(smooth_noise(rng, len(times_s), rate_hz)[:, 0]) / rate_hz
    level_T3 = _unit(np.cross([0.0, 1.0, 0.2], back_T3))
    up_T3 = np.cross(back_T3, level_T3)
    x_T3 = np.cos(roll_T)[:, None] * level_T3 + np.sin(roll_T)[:, None] * up_T3
    return world_from_cam @ poses_from_parts(np.stack([x_T3, np.cross(back_T3, x_T3), back_T3], axis=2), centre_T3)


@dataclass(frozen=True)
class Glances:
    """Gaze (T, 2) in the image, whether it is valid (T,), where its target is exactly (T, 2), and which (T,): a number
    of the targets, or -1 for a point of a surface that has no name."""

    gaze: np.ndarray
    is_valid: np.ndarray
    law: np.ndarray
    target: np.ndarray


def glance(
    world_from_cam: np.ndarray,
    targets_TK3: np.ndarray,
    num_hands: int,
    view: tuple[Caster, Intrinsics],
    times_s: np.ndarray,
    rng: np.random.Generator,
    config: GazeConfig,
) -> Glances:
    """Eyes that rest on one target after another for 0.25 to 1.5 s, following it exactly; the first are the hands.

    A target is chosen among those that are in the picture with nothing that stands still before them: the nearer to
    the middle, the nearer to the eye, and hands more often; one time in four any surface near the middle.
    """
    caster, intrinsics = view
    focal = np.array([intrinsics.fx / intrinsics.width, intrinsics.fy / intrinsics.height])
    cam_from_world = np.linalg.inv(world_from_cam)

    def image(points_T3: np.ndarray) -> np.ndarray:
        """(T, 3): u, v and the depth of points at the T times."""
        x_T3 = np.einsum("tij,t...j->t...i", cam_from_world[:, :3, :3], points_T3)
        x_T3 += cam_from_world[:, :3, 3].reshape(-1, *[1] * (points_T3.ndim - 2), 3)
        depth = np.maximum(x_T3[..., 2:], 1e-3)
        return np.concatenate([0.5 + focal * x_T3[..., :2] / depth, x_T3[..., 2:]], axis=-1)

    seen_TK3 = image(targets_TK3)
    rate_hz = 1 / (times_s[1] - times_s[0])
    law_T2, target_T = np.zeros((len(times_s), 2)), np.full(len(times_s), -1)
    gaze_T2, last, start = np.zeros((len(times_s), 2)), None, 0
    while start < len(times_s):
        end = min(start + max(round(np.clip(rng.lognormal(-0.7, 0.5), 0.25, 1.5) * rate_hz), 1), len(times_s))
        eye = world_from_cam[start, :3, 3]
        uvz_K3 = seen_TK3[start]
        weight_K = np.exp(-np.square((uvz_K3[:, :2] - 0.5) / 0.25).sum(axis=1) / 2) / np.maximum(uvz_K3[:, 2], 0.3)
        weight_K[:num_hands] *= 3
        is_inside_K = (uvz_K3[:, 2] > 0.1) & (np.abs(uvz_K3[:, :2] - 0.5) < 0.48).all(axis=1)
        to_K3 = targets_TK3[start] - eye
        ray_K3, away_K = _unit(to_K3), np.linalg.norm(to_K3, axis=1)
        reach_K = caster.first_hits(eye, ray_K3)[1]
        weight_K = weight_K * is_inside_K * (reach_K > away_K - 0.15)
        if weight_K.sum() > 0 and rng.random() < 0.75:
            chosen = int(rng.choice(len(weight_K), p=weight_K / weight_K.sum()))
            ray, reach = ray_K3[chosen], reach_K[chosen]
            if chosen >= num_hands and reach > away_K[chosen] + 0.15:
                chosen = -1  # the middle of a table is air: the eyes rest on what is behind it
        else:
            chosen = -1
            uv = np.clip(rng.normal(0.5, 0.15, size=2), 0.05, 0.95)
            ray = world_from_cam[start, :3, :3] @ np.append((uv - 0.5) / focal, 1.0)
            reach = caster.first_hits(eye, ray)[1][0]
        point = eye + (reach if np.isfinite(reach) else 5.0) * ray
        fixed_T3 = np.broadcast_to(point, (len(times_s), 3))
        law = (image(fixed_T3) if chosen < 0 else seen_TK3[:, chosen])[start:end, :2]
        # The eyes leave what leaves the picture.
        is_out = (np.abs(law - 0.5) > 0.48).any(axis=1)
        if is_out[1:].any():
            end = start + 1 + int(np.argmax(is_out[1:]))
            law = law[: end - start]
        law_T2[start:end], target_T[start:end] = law, chosen
        offset = np.zeros(2) if last is None else last - law[0]
        gaze_T2[start:end] = law + offset * np.exp(-np.arange(1, end - start + 1)[:, None] / rate_hz / config.saccade_s)
        last, start = gaze_T2[end - 1], end
    _, noise_T2, is_open_T = chances(len(times_s), rate_hz, rng, config)
    gaze_T2 = gaze_T2 + noise_T2
    is_valid_T = is_open_T & (gaze_T2 >= 0).all(axis=1) & (gaze_T2 < 1).all(axis=1)
    return Glances(gaze_T2, is_valid_T, law_T2, target_T)
