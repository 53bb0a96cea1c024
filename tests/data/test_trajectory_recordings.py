"""Trajectory files as recordings: every layout says the same motion, gaps split, random cameras stay fixed ones."""

import numpy as np
import pytest

from egom2p.config import from_plain
from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips
from egom2p.data.recordings.reader_choice import identity, open_reader
from egom2p.data.recordings.trajectories import RandomMotionSource, TrajectoriesSource
from egom2p.geometry import (
    frame_to_frame,
    inverse_poses,
    matrix_from_quaternion,
    poses_from_parts,
    quaternion_from_matrix,
    rotation_angle,
    write_euroc,
    write_tum,
)

_CLIPS = ClipConfig(height=8, width=8)


def motion(count=400, rate_hz=100.0):
    times_s = 50.0 + np.arange(count) / rate_hz
    phase = np.stack([np.sin(times_s * speed) for speed in (0.5, 0.7, 0.9, 0.3)], axis=1) + [0, 0, 0, 2]
    quaternions = phase / np.linalg.norm(phase, axis=1, keepdims=True)
    positions = np.stack([np.cos(times_s), np.sin(2 * times_s), 0.2 * times_s], axis=1)
    return times_s, poses_from_parts(matrix_from_quaternion(quaternions), positions)


def source(root, **changes):
    return from_plain(TrajectoriesSource, {"kind": "trajectories", "root": str(root)} | changes, where="test")


def first_camera(root, **changes):
    return open_reader(source(root, **changes)).read(0).streams["camera"]


def test_every_layout_says_the_same_motion(tmp_path):
    times_s, poses = motion()
    for name in ("tum", "euroc", "matrix", "other"):
        (tmp_path / name).mkdir()
    write_tum(tmp_path / "tum" / "a.csv", times_s, poses)  # blanks in a csv, as one published set has it
    write_euroc(tmp_path / "euroc" / "a.txt", times_s, poses)
    np.savetxt(tmp_path / "matrix" / "a.txt", np.column_stack([times_s * 1e3, poses[:, :3].reshape(-1, 12)]))
    quaternions = quaternion_from_matrix(poses[:, :3, :3])
    rows = np.column_stack([np.zeros(len(poses)), quaternions[:, 3], quaternions[:, :3], poses[:, :3, 3], times_s])
    np.savetxt(tmp_path / "other" / "a.csv", rows, delimiter=",", header="button,w,x,y,z,px,py,pz,time", comments="")
    found = [
        first_camera(tmp_path / "tum"),
        first_camera(tmp_path / "euroc"),
        first_camera(tmp_path / "matrix", file_format="matrix", time_unit="ms"),
        first_camera(tmp_path / "other", columns=[8, 5, 6, 7, 2, 3, 4, 1]),
    ]
    for stream in found:
        np.testing.assert_allclose(stream.values, poses, atol=1e-8)
        np.testing.assert_allclose(stream.times_s, times_s, atol=1e-6)


def test_rows_at_a_rate_and_repeated_times(tmp_path):
    times_s, poses = motion(60)
    write_tum(tmp_path / "frames.txt", np.arange(60.0), poses)
    np.testing.assert_allclose(first_camera(tmp_path, rate_hz=30).times_s, np.arange(60) / 30)
    times_s[5] = times_s[4]
    write_tum(tmp_path / "frames.txt", times_s, poses)
    stream = first_camera(tmp_path)
    assert len(stream.times_s) == 59
    np.testing.assert_allclose(stream.values[4], poses[4], atol=1e-9)  # the first of the two lines


def test_a_hole_splits_the_clips(tmp_path):
    times_s, poses = motion(1000)
    keep = (times_s < 54.5) | (times_s > 55.5)
    write_tum(tmp_path / "a.txt", times_s[keep], poses[keep])
    starts_s = [clip.provenance.start_s for clip in cut_clips(open_reader(source(tmp_path)).read(0), _CLIPS)]
    assert starts_s == [50.0, 52.0, 56.0, 58.0]


def test_a_mount_is_one_fixed_camera_in_a_world_of_its_own(tmp_path):
    times_s, poses = motion()
    write_tum(tmp_path / "a.txt", times_s, poses)
    reader = open_reader(source(tmp_path, mounts=3, offset_m=0.1))
    assert reader.names == ("a_mount000", "a_mount001", "a_mount002")
    first, second = (reader.read(index).streams["camera"].values for index in (0, 1))
    angles = [rotation_angle(frame_to_frame(found)[:, :3, :3]) for found in (poses, first, second)]
    np.testing.assert_allclose(angles[1], angles[0], atol=1e-6)
    np.testing.assert_allclose(angles[2], angles[0], atol=1e-6)
    # The camera is fixed on the body: its motions are the body's, seen through one turn and one offset.
    wanted, found = inverse_poses(poses[:1]) @ poses, inverse_poses(first[:1]) @ first
    turn = _turn_between(frame_to_frame(wanted)[:, :3, :3], frame_to_frame(found)[:, :3, :3])
    np.testing.assert_allclose(found[:, :3, :3], turn.T @ wanted[:, :3, :3] @ turn, atol=1e-6)
    lever = found[:, :3, 3] - wanted[:, :3, 3] @ turn  # of an offset o: turn' (R - 1) o
    design = np.concatenate([turn.T @ (rotation - np.eye(3)) for rotation in wanted[:, :3, :3]])
    offset, *_ = np.linalg.lstsq(design, lever.ravel(), rcond=None)
    np.testing.assert_allclose(design @ offset, lever.ravel(), atol=1e-6)
    assert 0.01 < np.linalg.norm(offset) < 0.5
    assert np.abs(first - second).max() > 0.1
    again = open_reader(source(tmp_path, mounts=3, offset_m=0.1)).read(1).streams["camera"].values
    np.testing.assert_array_equal(again, second)


def _turn_between(wanted, found):
    """R with found = R' wanted R: turns the axes of all rotations onto each other (Kabsch)."""
    axes = [quaternion_from_matrix(part)[:, :3] for part in (wanted, found)]
    u, _, vt = np.linalg.svd(axes[0].T @ axes[1])
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def test_speed_changes_time_and_nothing_else(tmp_path):
    times_s, poses = motion()
    write_tum(tmp_path / "a.txt", times_s, poses)
    slow, fast = (first_camera(tmp_path, mounts=1, speeds=[speed, speed]) for speed in (1.0, 2.0))
    np.testing.assert_array_equal(slow.values, fast.values)
    np.testing.assert_allclose(fast.times_s - 50, (slow.times_s - 50) / 2, atol=1e-9)


def test_a_turn_within_degrees(tmp_path):
    times_s, poses = motion(10)
    write_tum(tmp_path / "a.txt", times_s, poses)
    reader = open_reader(source(tmp_path, mounts=20, max_turn_deg=10, offset_m=0.0))
    for index in range(20):
        found = frame_to_frame(reader.read(index).streams["camera"].values)[:, :3, :3]
        wanted = frame_to_frame(poses)[:, :3, :3]
        axes = [quaternion_from_matrix(part)[:, :3] for part in (found, wanted)]
        cosines = np.sum(axes[0] * axes[1], axis=1) / np.prod([np.linalg.norm(axis, axis=1) for axis in axes], axis=0)
        assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 10.1


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("1 2 3\n", {"file_format": "matrix"}, "found 3 columns, wanted a time and the 12"),
        ("1 2 3\n4 5\n", {"columns": [0, 1, 2, 0, 1, 2, 0, 1]}, "sample 2: found .*, wanted 3 numbers"),
        ("1 2 3\n", {"columns": [0, 1, 2, 3, 4, 5, 6, 7]}, "found 3 columns, wanted column 7"),
        ("1 2\n1 b\n", {"columns": [0, 0, 0, 0, 0, 0, 0, 0]}, "sample 2: found .*'b'.*, wanted 2 numbers"),
        ("2 1 0 0 0 1 0 0 0 0 0 2 0\n", {"file_format": "matrix"}, "no rotations"),
        ("# nothing\n", {"file_format": "matrix"}, "found no rows of numbers"),
    ],
)
def test_what_is_no_trajectory_is_named(tmp_path, text, changes, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as found:
        first_camera(tmp_path, **changes)
    assert "a.txt" in str(found.value)


def test_random_motion_is_smooth_of_many_speeds_and_the_same_again():
    config = RandomMotionSource(kind="random_motion", num_recordings=12, duration_s=6.0)
    reader = open_reader(config, dataset="noise")
    speeds = []
    for index in range(len(reader)):
        poses = reader.read(index).streams["camera"].values
        steps = np.diff(poses[:, :3, 3], axis=0)
        speeds.append(np.linalg.norm(steps, axis=1).mean() * reader.rate_hz)
        assert np.linalg.norm(np.diff(steps, axis=0), axis=1).mean() < 0.5 * np.linalg.norm(steps, axis=1).mean()
    assert max(speeds) > 3 * min(speeds)
    np.testing.assert_array_equal(
        reader.read(3).streams["camera"].values, open_reader(config).read(3).streams["camera"].values
    )
    assert "num_recordings" not in identity(config)
    assert len(list(cut_clips(reader.read(0), _CLIPS))) == 3
