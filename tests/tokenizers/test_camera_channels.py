"""Camera poses as channels: nothing is lost, and the world frame and missing samples do not matter."""

import numpy as np
import pytest
import torch
from moving_clips import NUM_SAMPLES, moving_clip, moving_clips, with_stream
from scipy.spatial.transform import Rotation
from tiny_tokenizers import tiny_trajectory

from egom2p.geometry import canonicalise, matrix_from_quaternion, poses_from_parts, read_kitti, read_tum
from egom2p.tokenizers.trajectory.track_representations import (
    camera_clip_errors,
    camera_poses,
    motion_channels,
    pose_channels,
    remounted_motions,
)


def wild_path(rng, num_samples=20, largest_deg=170.0):
    """Any poses, with turns of up to nearly half a turn from one to the next."""
    poses = np.tile(np.eye(4), (num_samples, 1, 1))
    axes = rng.normal(size=(num_samples, 3))
    turns = (
        axes / np.linalg.norm(axes, axis=1, keepdims=True) * np.radians(rng.uniform(0, largest_deg, (num_samples, 1)))
    )
    rotation = Rotation.identity()
    for sample in range(num_samples):
        rotation = rotation * Rotation.from_rotvec(turns[sample])
        poses[sample, :3, :3] = rotation.as_matrix()
    poses[:, :3, 3] = rng.normal(size=(num_samples, 3)) * 3
    return poses


@pytest.mark.parametrize("kind", ["pose", "motion"])
def test_there_and_back(rng, kind):
    poses, is_valid = wild_path(rng), np.ones(20, bool)
    channels = (pose_channels if kind == "pose" else motion_channels)(poses, is_valid)
    np.testing.assert_allclose(camera_poses(channels[None], kind)[0], canonicalise(poses), atol=1e-9)


@pytest.mark.parametrize("name", ["tum_fr2_desk/fr2_desk_groundtruth.txt", "kitti_00/KITTI_00_gt.txt"])
def test_real_tracks_come_back_from_single_precision(real_data_dir, name):
    """What the network sees is float32: 60 motions added up lose less than 0.1 mm, of a car 1 mm."""
    poses = read_tum(real_data_dir / name)[1][:6000:10] if "tum" in name else read_kitti(real_data_dir / name)[:600]
    for first in range(0, 600, 60):
        window = poses[first : first + 60]
        channels = motion_channels(window, np.ones(60, bool)).astype(np.float32)
        restored = camera_poses(channels[None].astype(np.float64), "motion")[0]
        errors = camera_clip_errors(restored, window)
        assert errors["ate_m"] < (1e-4 if "tum" in name else 1e-3) and errors["rotation_deg"] < 1e-3


def test_small_motions_are_rotation_vectors(rng):
    poses = wild_path(rng, largest_deg=2.0)
    channels = motion_channels(poses, np.ones(20, bool))
    turns = Rotation.from_matrix(poses[:-1, :3, :3]).inv() * Rotation.from_matrix(poses[1:, :3, :3])
    np.testing.assert_allclose(channels[1:, :3], turns.as_rotvec(), atol=1e-5)
    assert not channels[0].any()


def test_free_numbers_always_make_poses(rng):
    poses = camera_poses(rng.normal(size=(3, 30, 6)) * 5, "motion")
    rotations = poses[..., :3, :3]
    np.testing.assert_allclose(
        rotations.swapaxes(-1, -2) @ rotations, np.broadcast_to(np.eye(3), rotations.shape), atol=1e-9
    )


def test_a_gap_is_one_long_motion(rng):
    poses = wild_path(rng, num_samples=8, largest_deg=20.0)
    is_valid = np.array([False, True, True, False, False, True, True, False])
    lost = np.where(is_valid[:, None, None], poses, np.nan)
    restored = camera_poses(motion_channels(lost, is_valid)[None], "motion")[0]
    np.testing.assert_allclose(restored[is_valid], canonicalise(poses[is_valid]), atol=1e-9)


def test_a_network_of_motions_learns_and_ignores_the_world_frame():
    clips, held_out = moving_clips(48), moving_clips(12, first=500)
    network = tiny_trajectory("camera", camera_channels="motion", path_weight=0.02)
    network.fit_normalisation(clips)
    start = network.evaluate(held_out)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    batch = network.batch_from_clips(clips, None)
    for _ in range(80):
        output = network(batch)
        (output.sums[:2] / torch.tensor(output.counts[:2])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert network.evaluate(held_out)["ate_m"] < 0.7 * start["ate_m"]
    clip, other = held_out[0], np.linalg.inv(moving_clip(9).world_from_cam[5])
    moved = with_stream(clip, "camera", values=other @ clip.world_from_cam)
    np.testing.assert_array_equal(network.encode_clips([clip]), network.encode_clips([moved]))


def test_the_path_term_is_the_error_of_motions_added_up():
    clips = moving_clips(4)
    plain = tiny_trajectory("camera", camera_channels="motion")
    weighted = tiny_trajectory("camera", camera_channels="motion", path_weight=3.0)
    for network in (plain, weighted):
        network.fit_normalisation(clips)
        network.eval()
    batch = plain.batch_from_clips(clips, None)
    with torch.no_grad():
        normalised = (batch.tensors["samples"] - plain.mean) / plain.std
        codes = plain.codes(plain.lookup(plain.latents(normalised, batch.tensors["is_valid"])))
        error = (plain.restored(codes)[..., :6] - normalised).double().numpy()
        added = (weighted(batch).sums - plain(batch).sums)[0]
    path = np.zeros_like(error)
    for sample in range(NUM_SAMPLES):
        path[:, sample] = error[:, : sample + 1].sum(axis=1)
    assert float(added) == pytest.approx(3.0 * (path**2).sum(), rel=1e-3)


def test_remounted_motions_are_those_of_a_camera_fixed_on_the_body():
    clips = [moving_clip(number).streams["camera"].values for number in range(3)]
    is_valid = np.ones(len(clips[0]), bool)
    channels = torch.from_numpy(np.stack([motion_channels(poses, is_valid) for poses in clips]))
    torch.manual_seed(5)
    found = remounted_motions(channels, 0.2).numpy()
    torch.manual_seed(5)
    quaternions = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1).numpy()
    body_from_cam = poses_from_parts(matrix_from_quaternion(quaternions), 0.2 * torch.randn(3, 1, 3).numpy()[:, 0])
    wanted = [motion_channels(poses @ mount, is_valid) for poses, mount in zip(clips, body_from_cam, strict=True)]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-9)
