"""Camera poses as channels of a track, and back.

B clips, S samples, C channels.

pose     nine numbers (published): two rotation columns and the translation of `first_cam_from_cam`.
motion   six numbers: rotation and translation of `previous_cam_from_cam`. The first sample has no motion. A rotation
         by the angle a is its axis times 2 sin(a / 2): the rotation vector if small, exact up to a half turn.
"""

from typing import Literal

import numpy as np

from egom2p.geometry import (
    canonicalise,
    frame_to_frame,
    matrix_from_quaternion,
    matrix_from_two_columns,
    poses_from_parts,
    quaternion_from_matrix,
    two_columns_from_matrix,
)

CameraChannels = Literal["pose", "motion"]
CAMERA_CHANNELS = {"pose": 9, "motion": 6}


def pose_channels(world_from_cam: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Channels (S, 9) of poses (S, 4, 4), relative to the first valid one; zero where there is no pose."""
    channels = np.zeros((len(world_from_cam), CAMERA_CHANNELS["pose"]))
    relative = canonicalise(world_from_cam[is_valid])
    channels[is_valid] = np.concatenate([two_columns_from_matrix(relative[:, :3, :3]), relative[:, :3, 3]], axis=1)
    return channels


def motion_channels(world_from_cam: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Channels (S, 6) of poses (S, 4, 4). A sample without a pose keeps the last one, so the next takes both steps."""
    last_valid_S = np.maximum.accumulate(np.where(is_valid, np.arange(len(is_valid)), 0))
    last_valid_S = np.maximum(last_valid_S, np.argmax(is_valid))
    motions = frame_to_frame(world_from_cam[last_valid_S])
    channels = np.zeros((len(world_from_cam), CAMERA_CHANNELS["motion"]))
    channels[1:, :3] = 2 * quaternion_from_matrix(motions[:, :3, :3])[:, :3]
    channels[1:, 3:] = motions[:, :3, 3]
    return channels


def camera_poses(channels: np.ndarray, kind: CameraChannels = "pose") -> np.ndarray:
    """Poses (..., 4, 4) of free numbers (..., C); motions (..., S, C) are added up from the first sample on."""
    if kind == "pose":
        return poses_from_parts(matrix_from_two_columns(channels[..., :6]), channels[..., 6:])
    half_sine = channels[..., :3] / 2
    half_sine = half_sine / np.maximum(np.linalg.norm(half_sine, axis=-1, keepdims=True), 1.0)
    cosine = np.sqrt(np.maximum(1.0 - np.square(half_sine).sum(axis=-1, keepdims=True), 0.0))
    motions = poses_from_parts(matrix_from_quaternion(np.concatenate([half_sine, cosine], axis=-1)), channels[..., 3:])
    poses = np.empty_like(motions)
    poses[..., 0, :, :] = np.eye(4)
    for sample in range(1, poses.shape[-3]):
        poses[..., sample, :, :] = poses[..., sample - 1, :, :] @ motions[..., sample, :, :]
    return poses
