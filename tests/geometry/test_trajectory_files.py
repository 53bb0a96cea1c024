"""Trajectory files: round trips, the real files, and what bad ones are told."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from egom2p.geometry import (
    poses_from_parts,
    read_euroc,
    read_kitti,
    read_kitti_times,
    read_trajectory,
    read_tum,
    write_euroc,
    write_kitti,
    write_tum,
)


@pytest.fixture
def poses(rng):
    return poses_from_parts(Rotation.random(12, rng=rng).as_matrix(), rng.normal(size=(12, 3)))


@pytest.mark.parametrize(("write", "read"), [(write_tum, read_tum), (write_euroc, read_euroc)])
def test_timed_files_read_back(tmp_path, poses, write, read):
    times_s = 1311868164.363181 + np.arange(12) / 30
    write(tmp_path / "path.txt", times_s, poses)
    found_s, found = read(tmp_path / "path.txt")
    np.testing.assert_allclose(found_s, times_s, rtol=0, atol=5e-7)
    np.testing.assert_allclose(found, poses, atol=1e-14)


def test_kitti_reads_back_and_has_no_times(tmp_path, poses):
    write_kitti(tmp_path / "path.txt", poses)
    times_s, found = read_trajectory(tmp_path / "path.txt", "kitti")
    assert times_s is None
    np.testing.assert_allclose(found, poses, atol=1e-14)


def test_files_of_evo_and_ours_are_the_same(tmp_path, poses):
    file_interface = pytest.importorskip("evo.tools.file_interface")
    trajectory = pytest.importorskip("evo.core.trajectory")
    times_s = np.arange(12) / 30
    write_tum(tmp_path / "ours.txt", times_s, poses)
    theirs = file_interface.read_tum_trajectory_file(tmp_path / "ours.txt")
    np.testing.assert_allclose(np.array(theirs.poses_se3), poses, atol=1e-12)
    path = trajectory.PoseTrajectory3D(poses_se3=list(poses), timestamps=times_s)
    file_interface.write_tum_trajectory_file(tmp_path / "theirs.txt", path)
    np.testing.assert_allclose(read_tum(tmp_path / "theirs.txt")[1], poses, atol=1e-8)


def test_real_files(real_data_dir):
    times_s, poses = read_tum(real_data_dir / "tum_fr2_desk" / "fr2_desk_ORB.txt")
    assert len(poses) == 2893 and times_s[0] == 1311868164.363181
    poses = read_kitti(real_data_dir / "kitti_00" / "KITTI_00_gt.txt")
    assert len(poses) == 4541
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum() == pytest.approx(3724.19, abs=0.01)
    assert read_kitti_times(real_data_dir / "kitti_00" / "KITTI_00_gt_times.txt")[-1] == pytest.approx(470.58, abs=0.01)


def test_comments_blank_lines_windows_ends_and_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "path.txt"
    path.write_bytes(b"\xef\xbb\xbf# head\r\n\r\n0.5 1 2 3 0 0 0 1\r\n  # more\r\n1.5 1 2 3 0 0 0 1\r\n")
    times_s, poses = read_tum(path)
    assert times_s.tolist() == [0.5, 1.5]
    np.testing.assert_array_equal(poses[0], poses_from_parts(np.eye(3), np.array([1.0, 2, 3])))


_GOOD = "0.0 0 0 0 0 0 0 1\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.0 0 0 nan 0 0 0 1", "line 3: .*nan.*wanted finite"),
        ("1.0 0 0 inf 0 0 0 1", "line 3: .*wanted finite"),
        ("1.0 0 0 0 0 0 1", "line 3: found 7 columns, wanted 8"),
        ("1.0 0 0 0 0 0 0 1 5", "line 3: found 9 columns, wanted 8"),
        ("1.0 a 0 0 0 0 0 1", "line 3: .*wanted numbers"),
        ("1.0 0 0 0 0 0 0 0", "line 3: found a quaternion of length 0"),
        ("1.0 0 0 0 3 0 0 1", "line 3: found a quaternion of length 3.162"),
        ("-1.0 0 0 0 0 0 0 1", "line 3: found time -1.0 s after 0.0 s"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "path.txt"
    path.write_text("# head\n" + _GOOD + line + "\n" + "2.0 0 0 0 0 0 0 1\n")
    with pytest.raises(ValueError, match=f"path.txt, {message}"):
        read_tum(path)


def test_other_bad_files_are_named(tmp_path, poses):
    path = tmp_path / "path.txt"
    path.write_text("# only a comment\n")
    with pytest.raises(ValueError, match="path.txt: found no poses"):
        read_euroc(path)
    path.write_bytes(b"\xff\xfe\x00\x93\x80")
    with pytest.raises(ValueError, match="path.txt: found a binary file"):
        read_tum(path)
    path.write_text("1 0 0 0 0 2 0 0 0 0 1 0\n")
    with pytest.raises(ValueError, match="path.txt, line 1: .*no rotation matrix"):
        read_kitti(path)
    path.write_text("100,1,2,3,1,0,0,0,9,9,9\n")
    assert read_euroc(path)[1].shape == (1, 4, 4)
    with pytest.raises(ValueError, match="format must be one of"):
        read_trajectory(path, "bag")
    with pytest.raises(ValueError, match="found 3 times for 12 poses"):
        write_tum(path, np.arange(3), poses)
