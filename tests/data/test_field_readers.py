"""Readers of what the field records with: real files where there are some, else replicas with an independent oracle."""

import json
import struct

import numpy as np
import pytest
import yaml
from field_replicas import (
    depth_picture,
    numbered_picture,
    numbered_video,
    numbers_seen,
    quaternions,
    real,
    recognised_as,
    walk,
)
from scipy.spatial.transform import Rotation

from egom2p.data.recordings.euroc import EurocSource, _calibration
from egom2p.data.recordings.pupil_core import PupilCoreReader
from egom2p.data.recordings.reader_choice import AnySource, open_reader
from egom2p.geometry import inverse_poses

START_NS = 1403715274302142976


def test_euroc_gives_the_camera_where_t_bs_says_it_sits_on_the_body(tmp_path):
    mav, world_from_body = tmp_path / "mav0", walk(6)
    body_from_cam = walk(9)[8]
    stamps = START_NS + 50_000_000 * np.arange(6)
    for number, stamp in enumerate(stamps):
        numbered_picture(mav / f"cam0/data/{stamp}.png", number)
    lines = ["#timestamp [ns],filename", *(f"{stamp},{stamp}.png" for stamp in stamps)]
    (mav / "cam0/data.csv").write_text("\n".join(lines) + "\n")
    sensor = {
        "sensor_type": "camera",
        "T_BS": {"cols": 4, "rows": 4, "data": body_from_cam.ravel().tolist()},
        "resolution": [64, 48],
        "camera_model": "pinhole",
        "intrinsics": [50.0, 51.0, 31.0, 23.0],
        "distortion_model": "radial-tangential",
        "distortion_coefficients": [-0.28, 0.07, 0.0002, 0.00002],
    }
    (mav / "cam0/sensor.yaml").write_text("%YAML:1.0\n" + yaml.safe_dump(sensor))
    (mav / "state_groundtruth_estimate0").mkdir()
    xyzw = quaternions(world_from_body)
    header = "#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z []"
    header += ", v_RS_R_x [m s^-1], v_RS_R_y [m s^-1], v_RS_R_z [m s^-1]"
    rows = [
        ",".join(map(str, [stamp, *pose[:3, 3], quat[3], *quat[:3], 0.1, 0.2, 0.3]))
        for stamp, pose, quat in zip(stamps, world_from_body, xyzw, strict=True)
    ]
    (mav / "state_groundtruth_estimate0/data.csv").write_text("\n".join([header, *rows]) + "\n")
    (mav / "imu0").mkdir()
    imu = [f"{START_NS + 5_000_000 * n},0.1,0.2,{n},9.8,0,0.5" for n in range(40)]
    (mav / "imu0/data.csv").write_text("#timestamp [ns],w_RS_S_x [rad s^-1],...\n" + "\n".join(imu))
    (mav / "vicon0").mkdir()
    (mav / "vicon0/data.csv").write_text("#\n")
    numbered_picture(mav / "cam0/data/1.png", 0)
    trajectory = mav / "state_groundtruth_estimate0/data.csv"
    trajectory.write_text("\n".join([header, rows[0], rows[0], *rows[1:]]) + "\n")
    recording = recognised_as(tmp_path, "euroc")
    assert recording.notes == (
        "data.csv names 6 pictures, 1 more lie beside them and are left out",
        "state_groundtruth_estimate0/data.csv: 1 of 7 samples have the time of another and are left out",
    )
    np.testing.assert_allclose(recording.streams["camera"].values, world_from_body @ body_from_cam, atol=1e-9)
    np.testing.assert_array_equal(numbers_seen(recording.streams["rgb"].values.read(np.arange(6))), np.arange(6))
    np.testing.assert_allclose(recording.streams["rgb"].times_s, stamps / 1e9, atol=3e-7)
    np.testing.assert_allclose(recording.streams["imu"].values[3], [0.1, 0.2, 3, 9.8, 0, 0.5])
    assert recording.intrinsics.model == "opencv" and recording.intrinsics.fy == 51
    assert recording.unused == ("mav0/cam0/data/1.png", "mav0/vicon0/ (1 files)")
    (mav / "cam0/sensor.yaml").unlink()
    with pytest.raises(ValueError, match="holds poses of the body; wanted .*sensor.yaml with T_BS"):
        open_reader(EurocSource(kind="euroc", root=str(tmp_path))).read(0)


def test_a_real_kalibr_camchain_is_the_inverse_of_t_bs_and_equidistant_is_kannala_brandt():
    path = real("formats/calib_kannala_brandt/tum_vi/kalibr_imucam_chain.yaml")
    intrinsics, body_from_cam = _calibration(path, "cam0")
    assert (intrinsics.model, intrinsics.width, intrinsics.height) == ("kannala_brandt", 512, 512)
    assert intrinsics.fx == 190.97847715128717 and intrinsics.distortion[0] == 0.0034823894022493434
    np.testing.assert_allclose(inverse_poses(body_from_cam)[:3, 3], [0.04727988, -0.04744323, -0.06819996], atol=1e-8)
    radtan, _ = _calibration(real("formats/calib_radtan/rpng_plane/kalibr_imucam_chain.yaml"), "cam0")
    assert radtan.model == "opencv" and len(radtan.distortion) == 4


def test_tum_rgbd_keeps_each_streams_clock_and_its_five_thousand_a_metre(tmp_path):
    world_from_cam = walk(8)
    listed = {"rgb": [], "depth": []}
    for number in range(5):
        time_s = 1305031102.1758 + number / 30
        numbered_picture(tmp_path / f"rgb/{time_s:.6f}.png", number)
        depth_picture(tmp_path / f"depth/{time_s - 0.015:.6f}.png", 10_000 + number)
        listed["rgb"].append(f"{time_s:.6f} rgb/{time_s:.6f}.png")
        listed["depth"].append(f"{time_s - 0.015:.6f} depth/{time_s - 0.015:.6f}.png")
    for name, lines in listed.items():
        (tmp_path / f"{name}.txt").write_text("# color images\n# file: x\n" + "\n".join(lines) + "\n")
    rows = np.column_stack([1305031102.1 + np.arange(8) / 10, world_from_cam[:, :3, 3], quaternions(world_from_cam)])
    np.savetxt(tmp_path / "groundtruth.txt", rows, fmt="%.9f", header="timestamp tx ty tz qx qy qz qw")
    (tmp_path / "accelerometer.txt").write_text("# timestamp ax ay az\n1305031102.1 0.1 -9.7 1.2\n1305031102.2 0 0 1\n")
    camera = {"width": 64, "height": 48, "fx": 52.0, "fy": 52.0, "cx": 31.5, "cy": 23.5}
    recording = recognised_as(tmp_path, "tum_rgbd", intrinsics=camera)
    assert not recording.unused and not recording.notes and recording.intrinsics.fx == 52
    np.testing.assert_allclose(recording.streams["camera"].values, world_from_cam, atol=1e-8)
    depth = recording.streams["depth"]
    np.testing.assert_allclose(depth.values.read(np.array([4]))[0, 0, 0], 10_004 / 5000, rtol=1e-6)
    np.testing.assert_allclose(recording.streams["rgb"].times_s - depth.times_s, 0.015, atol=2e-6)
    np.testing.assert_allclose(recording.streams["accelerometer"].values[0], [0.1, -9.7, 1.2])
    (tmp_path / listed["rgb"][2].split()[1]).unlink()
    with pytest.raises(ValueError, match="no such picture; rgb.txt names it"):
        recognised_as(tmp_path, "tum_rgbd")


def test_real_invisible_export_gives_gaze_worn_and_imu_in_si(tmp_path):
    folder = real("gaze/pupil_invisible/trampoline_01")
    recording = recognised_as(folder, "neon", picture_size=[1088, 1080])
    gaze, imu = recording.streams["gaze"], recording.streams["imu"]
    raw = np.genfromtxt(folder / "gaze.csv", delimiter=",", skip_header=1, usecols=(3, 4, 5))
    assert len(gaze.values) == len(raw)
    np.testing.assert_array_equal(gaze.is_valid, raw[:, 2] > 0)
    worn = gaze.is_valid
    np.testing.assert_allclose(gaze.values[worn], (raw[worn, :2] + 0.5) / [1088, 1080], rtol=1e-12)
    assert abs(gaze.times_s[0] - 1650316509.598345895) < 3e-7
    np.testing.assert_allclose(imu.values[0, 0], np.deg2rad(5.182927), rtol=1e-9)
    np.testing.assert_allclose(imu.values[0, 4], -0.797241 * 9.80665, rtol=1e-9)
    assert recording.unused == ("blinks.csv",)
    with pytest.raises(ValueError, match=r"source.picture_size"):
        recognised_as(folder, "neon")


def test_neon_native_parts_go_by_number_and_worn_by_its_own_clock(tmp_path):
    first_ns = 1_700_000_000_000_000_000
    numbered_video(tmp_path / "Neon Scene Camera v1 ps1.mp4", 10)
    (tmp_path / "Neon Scene Camera v1 ps1.time").write_bytes(
        (first_ns + 33_333_333 * np.arange(11)).astype("<i8").tobytes()
    )
    stamps = {2: first_ns + 5_000_000 * np.arange(20), 10: first_ns + 10**9 + 5_000_000 * np.arange(20)}
    for part, own in stamps.items():
        pixels = np.stack([np.full(20, float(part)), np.arange(20.0)], 1).astype("<f4")
        (tmp_path / f"gaze_200hz ps{part}.raw").write_bytes(pixels.tobytes() + b"\0" * 3)  # cut short
        (tmp_path / f"gaze_200hz ps{part}.time").write_bytes(own.astype("<i8").tobytes())
        (tmp_path / f"gaze ps{part}.raw").write_bytes(pixels[::4].tobytes())
        (tmp_path / f"gaze ps{part}.time").write_bytes(own[::4].astype("<i8").tobytes())
        (tmp_path / f"worn ps{part}.raw").write_bytes(bytes([255 if part == 2 else 0] * 5))
    camera = [100.0, 0, 31.0, 0, 101.0, 23.0, 0, 0, 1.0]
    distortion, extrinsics = [-0.1, 0.1, 0, 0, 0.01, 0.2, 0, 0], np.eye(4).ravel().tolist()
    content = struct.pack("<B6s33d", 1, b"123456", *camera, *distortion, *extrinsics)
    (tmp_path / "calibration.bin").write_bytes(content + struct.pack("<66dI", *[0.0] * 66, 7))
    recording = recognised_as(tmp_path, "neon")
    gaze = recording.streams["gaze"]
    np.testing.assert_allclose(gaze.values[:20, 0], (2 + 0.5) / 64)
    assert gaze.is_valid[:20].all() and not gaze.is_valid[20:].any() and len(gaze.values) == 40
    assert recording.intrinsics.fy == 101 and recording.intrinsics.distortion[5] == 0.2
    assert len(recording.streams["rgb"].values) == 10 and "1 times at the end have no frame" in recording.notes[0]
    fields = [(f"field_{n}", "<f4") for n in range(20)]  # of later files: lids behind the eyes
    for part, own in stamps.items():
        rows = np.arange(20, dtype="<f4")[:, None] * 100 + np.arange(20, dtype="<f4")
        (tmp_path / f"eye_state ps{part}.raw").write_bytes(rows.astype("<f4").tobytes())
        (tmp_path / f"eye_state ps{part}.time").write_bytes(own.astype("<i8").tobytes())
    (tmp_path / "eye_state.dtype").write_text(str(fields))
    values = recognised_as(tmp_path, "neon").streams["eye_state"].values
    assert values.shape == (40, 20) and values[3].tolist() == [300 + n for n in range(20)]
    (tmp_path / "gaze_200hz.dtype").write_text(str(fields[:3]))
    with pytest.raises(ValueError, match=r"gaze_200hz\.dtype: found the fields \['field_0', .*wanted 2 of gaze"):
        recognised_as(tmp_path, "neon")


def test_exports_of_one_name_are_not_one_recording(tmp_path):
    rows = "gaze_timestamp,confidence,norm_pos_x,norm_pos_y\n0.0,1,0.5,0.5\n0.1,1,0.5,0.5\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/gaze_positions.csv").write_text(rows)
    (tmp_path / "a_gaze_positions.csv").write_text(rows)
    with pytest.raises(ValueError, match="found a second recording called a beside"):
        PupilCoreReader.find(tmp_path)


def test_real_pupil_core_exports_are_sorted_turned_over_and_judged_by_confidence():
    folder = real("gaze/pupil_core_bonnen")
    reader = open_reader(AnySource(kind="any", root=str(folder)))
    assert reader.names == ("Saccade", "VOR")
    gaze = reader.read(0).streams["gaze"]
    raw = np.genfromtxt(folder / "Saccade_gaze_positions.csv", delimiter=",", skip_header=1, usecols=(0, 2, 3, 4))
    assert (np.diff(gaze.times_s) > 0).all()
    assert len(gaze.values) == len(np.unique(raw[:, 0]))
    for row in raw[:: len(raw) // 50]:
        same = raw[raw[:, 0] == row[0]]
        best = same[np.argmax(same[:, 1])]
        at = int(np.searchsorted(gaze.times_s, row[0]))
        assert gaze.is_valid[at] == (best[1] >= 0.6)
        if gaze.is_valid[at]:
            np.testing.assert_allclose(gaze.values[at], [best[2], 1 - best[3]])


def test_pupil_core_recording_reads_what_capture_packed_twice(tmp_path):
    msgpack = pytest.importorskip("msgpack", reason="extra [formats]")
    numbered_video(tmp_path / "world.mp4", 10)
    np.save(tmp_path / "world_timestamps.npy", 500.3 + np.arange(10) / 30)
    (tmp_path / "info.player.json").write_text(json.dumps({"recording_name": "x"}))
    times_s = 500.0 + np.array([0, 2, 1, 3, 3]) / 200
    samples = [
        {"timestamp": t, "norm_pos": [0.25, 0.1 * n], "confidence": c}
        for n, (t, c) in enumerate(zip(times_s, [1, 0.9, 0.2, 0.7, 0.8], strict=True))
    ]
    packed = [msgpack.packb(("gaze.3d.01.", msgpack.packb(sample))) for sample in samples]
    (tmp_path / "gaze.pldata").write_bytes(b"".join(packed))
    np.save(tmp_path / "gaze_timestamps.npy", times_s)
    camera = {"camera_matrix": [[40, 0, 32], [0, 41, 24], [0, 0, 1]], "dist_coefs": [[0.1], [0], [0], [0]]}
    held = {"version": 1, "(64, 48)": {**camera, "cam_type": "fisheye", "resolution": [64, 48]}}
    (tmp_path / "world.intrinsics").write_bytes(msgpack.packb(held))
    recording = recognised_as(tmp_path, "pupil_core")
    gaze = recording.streams["gaze"]
    assert recording.notes == ("gaze.pldata: 1 of 5 samples have the time of another and are left out",)
    np.testing.assert_allclose(gaze.times_s, 500.0 + np.arange(4) / 200)
    np.testing.assert_allclose(gaze.values[[0, 2, 3]], [[0.25, 1.0], [0.25, 0.9], [0.25, 0.6]])
    np.testing.assert_array_equal(gaze.is_valid, [True, False, True, True])
    assert recording.intrinsics.model == "kannala_brandt" and recording.unused == ("info.player.json",)
    np.save(tmp_path / "world_timestamps.npy", 500.3 + np.arange(9) / 30)
    with pytest.raises(ValueError, match="found 10 frames, wanted 9"):
        recognised_as(tmp_path, "pupil_core")


def test_stray_scanner_real_rows_and_depth_by_frame_number(tmp_path):
    rows = real("formats/stray_scanner_excerpt/odometry_excerpt_last_rows.csv").read_text().splitlines()
    matrix = real("formats/stray_scanner_excerpt/camera_matrix.csv").read_text()
    (tmp_path / "camera_matrix.csv").write_text(matrix)
    kept = [row.replace(f" {1704 + n:06d},", f" {n:06d},") for n, row in enumerate(row for row in rows if "," in row)]
    header = "timestamp, frame, x, y, z, qx, qy, qz, qw, fx, fy, cx, cy, , "
    (tmp_path / "odometry.csv").write_text("\n".join([header, *kept]))
    numbered_video(tmp_path / "rgb.mp4", len(kept), width=1920, height=1440)
    for number in range(len(kept) - 1):
        depth_picture(tmp_path / f"depth/{number:06d}.png", 1000 + number, (192, 256))
        depth_picture(tmp_path / f"confidence/{number:06d}.png", 0, (192, 256))
    recording = recognised_as(tmp_path, "stray_scanner")
    cells = [float(cell) for cell in kept[2].split(",")[:9]]
    pose = recording.streams["camera"].values[2]
    np.testing.assert_allclose(pose[:3, 3], cells[2:5])
    np.testing.assert_allclose(pose[:3, :3], Rotation.from_quat(cells[5:9]).as_matrix(), atol=1e-6)
    times_s = recording.streams["rgb"].times_s
    assert times_s[0] == cells[0] - (cells[0] - times_s[0]) and np.diff(times_s).max() > 0.03 > np.diff(times_s).min()
    np.testing.assert_allclose(recording.streams["intrinsics"].values[0, 0], 1599.6957)
    assert recording.intrinsics.cx == pytest.approx(955.5105, abs=1e-3)
    depth = recording.streams["depth"]
    assert depth.values.read(np.array([3]))[0, 5, 5] == np.float32(1.003) and depth.times_s[3] == times_s[3]
    assert len(depth.values) == len(kept) - 1


def test_a_folder_of_videos_has_a_recording_each(tmp_path):
    for name, count in (("a.mp4", 30), ("b ü.mp4", 45)):
        numbered_video(tmp_path / name, count)
    (tmp_path / "notes.txt").write_text("x")
    reader = open_reader(AnySource(kind="any", root=str(tmp_path)))
    assert reader.names == ("a", "b ü") and reader.unused == ["notes.txt"]
    assert len(reader.read(1).streams["rgb"].values) == 45
    (tmp_path / "gaze.csv").write_text("timestamps,u,v\n0,0.5,0.5\n")
    with pytest.raises(ValueError, match="wanted one video"):
        open_reader(AnySource(kind="any", root=str(tmp_path))).read(0)
