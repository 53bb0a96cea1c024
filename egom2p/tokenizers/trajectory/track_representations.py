"""What a trajectory tokenizer sees of a clip: tracks as channels, and back; errors in physical units.

B clips, S samples, C channels. A sample that is not valid carries no information: its value is replaced (`fill`) and
it weighs nothing in the loss. A camera's channels are

pose     nine numbers (published): two rotation columns and the translation of `first_cam_from_cam`.
motion   six numbers: rotation and translation of `previous_cam_from_cam`. The first sample has no motion. A rotation
         by the angle a is its axis times 2 sin(a / 2): the rotation vector if small, exact up to a half turn.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egom2p.contracts import QUANTITIES, AlignedClip
from egom2p.geometry import (
    angle_between,
    canonicalise,
    frame_to_frame,
    gaze_rays,
    matrix_from_quaternion,
    matrix_from_two_columns,
    poses_from_parts,
    quaternion_from_matrix,
    rotation_angle,
    two_columns_from_matrix,
)

Fill = Literal["zero", "interpolate"]
CameraChannels = Literal["pose", "motion"]
CAMERA_CHANNELS = {"pose": 9, "motion": 6}


@dataclass(frozen=True)
class TrackRepresentation:
    """Gaze: u, v of the image. Camera: as `camera_channels` says (above).

    A generic track passes as it is. `fill` says what stands at invalid samples: 0, or the line between neighbours.
    """

    quantity: str
    stream: str
    num_samples: int
    num_channels: int
    fill: Fill = "interpolate"
    camera_channels: CameraChannels = "pose"

    @property
    def conventions(self) -> dict[str, str]:
        return {"values": QUANTITIES[self.quantity].values or f"{self.num_channels} channels of {self.stream}"}

    def channels(self, clip: AlignedClip) -> tuple[np.ndarray, np.ndarray]:
        """Values (S, C) float32 and validity (S,) of a clip; ValueError names the clip when they cannot be used."""
        if self.stream not in clip:
            raise ValueError(f"clip {clip.key} has no {self.stream}; it has {sorted(clip.streams)}")
        stream = clip.streams[self.stream]
        values, is_valid_S = np.asarray(stream.values, dtype=np.float64), np.asarray(stream.is_valid, dtype=bool)
        trailing = QUANTITIES[self.quantity].sample_shape or (self.num_channels,)
        if values.shape != (self.num_samples, *trailing):
            raise ValueError(
                f"clip {clip.key}: {self.stream} has shape {values.shape}, "
                f"the tokenizer wants {(self.num_samples, *trailing)}"
            )
        is_finite_S = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not is_finite_S[is_valid_S].all():
            sample = int(np.argmax(is_valid_S & ~is_finite_S))
            raise ValueError(f"clip {clip.key}: {self.stream} is not finite at sample {sample}, which is marked valid")
        if self.quantity == "camera":
            if not is_valid_S.any():
                raise ValueError(f"clip {clip.key}: camera has no valid sample, so it has no first pose")
            if self.camera_channels == "motion":  # a sample without a pose stands still, nothing is to be filled
                return motion_channels(values, is_valid_S).astype(np.float32), is_valid_S
            values = pose_channels(values, is_valid_S)
        return _filled(values, is_valid_S, self.fill).astype(np.float32), is_valid_S

    def values(self, channels_BSC: np.ndarray) -> np.ndarray:
        """Channels back to the stream's own values: gaze float32 within [0, 1], camera (B, S, 4, 4) float64."""
        if self.quantity == "gaze":
            return np.clip(channels_BSC, 0.0, 1.0).astype(np.float32)
        if self.quantity == "camera":
            return camera_poses(channels_BSC, self.camera_channels)
        return channels_BSC.astype(np.float32)


def camera_clip_errors(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Errors of poses (S, 4, 4) that share their first frame: no alignment but that.

    ate_m: RMS distance of positions; rotation_deg: mean angle; rpe_m, rpe_deg: RMS of sample-to-sample motion.
    """
    relative = canonicalise(wanted)
    ate_m = np.sqrt(np.square(found[:, :3, 3] - relative[:, :3, 3]).sum(axis=1).mean())
    angles = rotation_angle(np.swapaxes(found[:, :3, :3], 1, 2) @ relative[:, :3, :3])
    motion_found, motion_wanted = frame_to_frame(found), frame_to_frame(relative)
    step_m = np.linalg.norm(motion_found[:, :3, 3] - motion_wanted[:, :3, 3], axis=1)
    step_angles = rotation_angle(np.swapaxes(motion_found[:, :3, :3], 1, 2) @ motion_wanted[:, :3, :3])
    return {
        "ate_m": float(ate_m),
        "rotation_deg": float(np.degrees(angles.mean())),
        "rpe_m": float(np.sqrt(np.square(step_m).mean())),
        "rpe_deg": float(np.degrees(np.sqrt(np.square(step_angles).mean()))),
    }


def gaze_clip_errors(
    found: np.ndarray, found_is_valid: np.ndarray, clip: AlignedClip, *, stream: str = "gaze"
) -> dict[str, float]:
    """gaze_error: mean distance in image units of valid samples (NaN: none); gaze_px, gaze_deg with intrinsics."""
    wanted, is_valid_S = np.asarray(clip.streams[stream].values), clip.streams[stream].is_valid
    errors = {"validity_accuracy": float((found_is_valid == is_valid_S).mean()), "gaze_error": np.nan}
    if is_valid_S.any():
        difference = found[is_valid_S] - wanted[is_valid_S]
        errors["gaze_error"] = float(np.linalg.norm(difference, axis=1).mean())
    if clip.intrinsics is not None:
        size = np.array([clip.intrinsics.width, clip.intrinsics.height])
        errors |= {"gaze_px": np.nan, "gaze_deg": np.nan}
        if is_valid_S.any():
            errors["gaze_px"] = float(np.linalg.norm(difference * size, axis=1).mean())
            errors["gaze_deg"] = _mean_angle_deg(found[is_valid_S], wanted[is_valid_S], clip)
    return errors


def _mean_angle_deg(found: np.ndarray, wanted: np.ndarray, clip: AlignedClip) -> float:
    """Mean angle between the rays through gaze points (S, 2); points beyond what the lens sees have none."""
    rays_found, exists_found = gaze_rays(found, clip.intrinsics)
    rays_wanted, exists_wanted = gaze_rays(wanted, clip.intrinsics)
    exists_S = exists_found & exists_wanted
    return float(np.degrees(angle_between(rays_found, rays_wanted)[exists_S].mean())) if exists_S.any() else np.nan


def _filled(values_SC: np.ndarray, is_valid_S: np.ndarray, fill: Fill) -> np.ndarray:
    """Replace what stands at invalid samples; a track without any valid sample becomes zeros."""
    filled = np.where(is_valid_S[:, None], values_SC, 0.0)
    if fill == "interpolate" and is_valid_S.any() and not is_valid_S.all():
        samples = np.arange(len(filled))
        for channel in range(filled.shape[1]):
            filled[:, channel] = np.interp(samples, samples[is_valid_S], filled[is_valid_S, channel])
    return filled


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


def remounted_motions(channels_BSC: Tensor, offset_m: float) -> Tensor:
    """The motions (B, S, 6) of other cameras on the same bodies: of each clip turned at random, and moved by a normal
    distribution of standard deviation `offset_m` along each axis; torch's default generator.

    body_from_cam = (turn, offset); a motion becomes its inverse, the motion, it again.
    """
    quaternion_B4 = torch.randn(len(channels_BSC), 4, dtype=torch.float64)
    turn_BCC = torch.from_numpy(matrix_from_quaternion(F.normalize(quaternion_B4, dim=-1).numpy())).to(channels_BSC)
    offset_BSC = offset_m * torch.randn(len(channels_BSC), 1, 3).to(channels_BSC).expand(-1, channels_BSC.shape[1], -1)
    # A rotation by a about an axis: channels hold 2 sin(a / 2) axis, so (R - 1) o = cos(a / 2) s x o + s x (s x o) / 2.
    sine_BSC, moved_BSC = channels_BSC.split(3, dim=-1)
    cosine_BS1 = (1 - sine_BSC.square().sum(-1, keepdim=True) / 4).clamp(min=0).sqrt()
    across_BSC = torch.linalg.cross(sine_BSC, offset_BSC)
    moved_BSC = moved_BSC + cosine_BS1 * across_BSC + torch.linalg.cross(sine_BSC, across_BSC) / 2
    return torch.cat([sine_BSC @ turn_BCC, moved_BSC @ turn_BCC], dim=-1)
