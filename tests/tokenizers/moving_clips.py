"""Tiny clips whose signals depend on each other smoothly: a wall, a slow walk, a wandering gaze."""

import numpy as np

from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Stream

NUM_FRAMES, SIZE, NUM_SAMPLES = 16, 32, 60


def moving_clip(number: int, *, valid_share: float = 0.9) -> AlignedClip:
    rng = np.random.default_rng(number)
    frame_times, track_times = np.arange(NUM_FRAMES) / 8, np.arange(NUM_SAMPLES) / 30
    v, u = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    shift = rng.uniform(0.2, 1.0) * frame_times
    wave = np.sin(6 * (u[None] + shift[:, None, None]) + rng.uniform(0, 6)) * np.cos(4 * v[None])
    rgb = (127.5 + 100 * wave[..., None] * rng.uniform(0.3, 1, 3)).astype(np.uint8)
    depth = (rng.uniform(1, 3) + v[None] + 0.3 * wave).astype(np.float32)
    streams = {
        "rgb": Stream(rgb, np.ones(NUM_FRAMES, bool), frame_times, "uint8"),
        "depth": Stream(depth, np.ones(NUM_FRAMES, bool), frame_times, "m"),
        "gaze": Stream(_gaze(rng), rng.random(NUM_SAMPLES) < valid_share, track_times, "image"),
        "camera": Stream(_walk(rng), np.ones(NUM_SAMPLES, bool), track_times, "world_from_cam"),
    }
    intrinsics = Intrinsics(SIZE, SIZE, SIZE / 2, SIZE / 2, SIZE / 2 - 0.5, SIZE / 2 - 0.5)
    return AlignedClip(f"clip-{number:03d}", streams, intrinsics, Provenance("toy", f"recording-{number}"))


def moving_clips(count: int, *, first: int = 0) -> list[AlignedClip]:
    return [moving_clip(first + number) for number in range(count)]


def with_stream(clip: AlignedClip, name: str, **changes) -> AlignedClip:
    """The clip with some fields of one stream replaced."""
    old = clip.streams[name]
    fields = {"values": old.values, "is_valid": old.is_valid, "times_s": old.times_s, "unit": old.unit} | changes
    return AlignedClip(clip.key, {**clip.streams, name: Stream(**fields)}, clip.intrinsics, clip.provenance)


def _gaze(rng: np.random.Generator) -> np.ndarray:
    return np.clip(0.5 + 0.03 * rng.standard_normal((NUM_SAMPLES, 2)).cumsum(axis=0), 0, 1).astype(np.float32)


def _walk(rng: np.random.Generator) -> np.ndarray:
    angles = rng.uniform(0, 3) + np.cumsum(rng.normal(0, 0.01, NUM_SAMPLES) + rng.normal(0, 0.01))
    poses = np.tile(np.eye(4), (NUM_SAMPLES, 1, 1))
    poses[:, 0, 0], poses[:, 0, 2] = np.cos(angles), np.sin(angles)
    poses[:, 2, 0], poses[:, 2, 2] = -np.sin(angles), np.cos(angles)
    poses[:, :3, 3] = 0.03 * np.cumsum(poses[:, :3, 2], axis=0) + rng.normal(size=3)
    return poses
