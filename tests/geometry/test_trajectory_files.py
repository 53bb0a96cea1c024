"""Trajectory files: round trips, the real files, and how bad ones are refused."""

import re

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
        ("-1.0 0 0 0 0 0 0 1", "line 3: found time -1.0 after 0.0"),
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


_HEADERS = {
    "# timestamp tx ty tz qw qx qy qz": "t x y z w a b c",
    "#timestamp [ns],px,py,pz,qx,qy,qz,qw": "t,x,y,z,a,b,c,w",
    "timestamp,qx,qy,qz,qw,tx,ty,tz": "t,a,b,c,w,x,y,z",
    "#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z [], v_RS_R_x": (
        "t,x,y,z,w,a,b,c,9"
    ),
    "object_uid,timestamp[ns],t_wo_x[m],t_wo_y[m],t_wo_z[m],q_wo_w,q_wo_x,q_wo_y,q_wo_z": "head,t,x,y,z,w,a,b,c",
    "graph_uid,tracking_timestamp_us,tx_world_device,ty_world_device,tz_world_device,qx_world_device,qy_world_device,"
    "qz_world_device,qw_world_device,gravity_x_world": "g,t,x,y,z,a,b,c,w,9.8",
    "# format: time position_x position_y position_z orientation_w orientation_x orientation_y orientation_z": (
        "t x y z w a b c"
    ),
    "timestamp;posX;posY;posZ;rotX;rotY;rotZ;rotW": "t;x;y;z;a;b;c;w",
}


@pytest.mark.parametrize("file_format", ["tum", "euroc"])
@pytest.mark.parametrize("header", _HEADERS)
def test_a_header_that_names_the_columns_is_obeyed(tmp_path, rng, poses, header, file_format):
    path = tmp_path / "path.txt"
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    is_ns, is_us = "ns" in header or (file_format == "euroc" and "_us" not in header), "_us" in header
    lines = [header]
    for number, (pose, (a, b, c, w)) in enumerate(zip(poses, quaternions, strict=True)):
        stamp = number * 5_000_000 if is_ns else number * 5_000 if is_us else number * 0.005
        cells = dict(zip("xyzabcw", [*pose[:3, 3], a, b, c, w], strict=True)) | {"t": stamp}
        lines.append("".join(str(cells.get(mark, mark)) for mark in _split(_HEADERS[header])))
    path.write_text("\n".join(lines))
    times_s, found = read_trajectory(path, file_format)
    np.testing.assert_allclose(times_s, np.arange(len(poses)) * 0.005, atol=1e-12)
    np.testing.assert_allclose(found, poses, atol=1e-12)


def _split(row):
    return re.findall(r"[a-z]+|[0-9.]+|[ ,;]", row)


@pytest.mark.parametrize(
    "header",
    [
        "# timestamp tx ty tz qw qx qy",
        "# qw qx qy qz",
        "# timestamp tx ty tz qx qy qz qw extra",
        "# t x y z qw qx qx qz",
    ],
)
def test_a_header_that_does_not_name_every_column_is_refused(tmp_path, header):
    path = tmp_path / "path.txt"
    path.write_text(f"{header}\n{_GOOD}")
    with pytest.raises(ValueError, match=r"path\.txt: found a header of the columns .*each named once"):
        read_tum(path)


def test_a_comment_that_names_no_columns_changes_nothing(tmp_path):
    path = tmp_path / "path.txt"
    path.write_text("# ground truth trajectory\n# file: 'a.bag'\n# timestamp tx ty tz qx qy qz qw\n0 1 2 3 0 0 0 1\n")
    np.testing.assert_array_equal(read_tum(path)[1][0], poses_from_parts(np.eye(3), np.array([1.0, 2, 3])))


def test_times_have_a_unit(tmp_path):
    path = tmp_path / "path.txt"
    rows = [f"{1_560_004_890_349_546_240 + k * 33_333_333} {k} 0 0 0 0 0 1" for k in range(40)]
    path.write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"path\.txt: found times 1560004890349546240 .*likely ns"):
        read_tum(path)
    times_s, _ = read_tum(path, time_unit="ns", offset_s=-1_560_004_890.0)
    np.testing.assert_allclose(times_s, 0.34954624 + np.arange(40) * 0.033333333, atol=1e-12)
    path.write_text("".join(f"{k / 30},1,2,3,1,0,0,0\n" for k in range(40)))
    with pytest.raises(ValueError, match=r"path\.txt: .*likely s"):
        read_euroc(path)
    assert read_euroc(path, time_unit="s")[0][30] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("# timestamp frame tx ty tz roll pitch yaw", r"rotations as angles \(roll\), wanted a quaternion"),
        ("# timestamp [s] tx [mm] ty [mm] tz [mm] qx qy qz qw", r"'tx\[mm\]', wanted positions in metres"),
    ],
)
def test_headers_of_angles_and_of_other_lengths_are_refused(tmp_path, header, problem):
    (tmp_path / "poses.txt").write_text(f"{header}\n0.0 1 2 3 0 0 0 1\n0.1 1 2 3 0 0 0 1\n")
    with pytest.raises(ValueError, match=problem):
        read_tum(tmp_path / "poses.txt")
