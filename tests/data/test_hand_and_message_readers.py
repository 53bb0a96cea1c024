"""EgoDex, tars of clips and MCAP: replicas of the documented layouts with oracles of their own."""

import io
import json
import pickle
import tarfile

import cv2
import numpy as np
import pytest
from field_replicas import numbered_video, numbers_seen, quaternions, recognised_as, walk

from egom2p.data.recordings.egodex import HAND_JOINTS
from egom2p.data.recordings.reader_choice import AnySource, open_reader
from egom2p.geometry import project


@pytest.mark.parametrize("is_old", [False, True])
def test_egodex_puts_hands_into_the_camera_and_takes_the_constant_for_an_empty_lens(tmp_path, is_old):
    h5py = pytest.importorskip("h5py", reason="extra [formats]")
    world_from_cam, generator = walk(40), np.random.default_rng(0)
    numbered_video(tmp_path / "fold_towel/7.mp4", 40)
    in_cam = generator.normal(size=(40, 50, 3)) * 0.1 + [0, 0, 0.6]
    names = [f"{side}{joint}" for side in ("left", "right") for joint in HAND_JOINTS]
    assert len(HAND_JOINTS) == 25
    with h5py.File(tmp_path / "fold_towel/7.hdf5", "w") as held:
        held["transforms/camera"] = world_from_cam.astype("f4")
        for number, name in enumerate(names):
            pose = np.tile(np.eye(4), (40, 1, 1))
            pose[:, :3, 3] = [w[:3, :3] @ p + w[:3, 3] for w, p in zip(world_from_cam, in_cam[:, number], strict=True)]
            held[f"transforms/{name}"] = pose.astype("f4")
            if not is_old:
                held[f"confidences/{name}"] = np.linspace(0, 1, 40)
        held["transforms/hip"] = np.tile(np.eye(4), (40, 1, 1)).astype("f4")
        matrix = np.array([[30.0, 0, 32], [0, 30, 24], [0, 0, 1]])
        held["camera/intrinsic"] = np.zeros((0, 3)) if is_old else matrix
        held.attrs["llm_description"], held.attrs["llm_description2"] = "fold", "unfold"
        held.attrs["which_llm_description"] = "2"
    recording = recognised_as(tmp_path, "egodex", min_confidence=0.5)
    assert recording.name == "fold_towel_7" and list(recording.streams["caption"].values) == ["unfold"]
    hands = recording.streams["hands"]
    seen = hands.is_valid
    np.testing.assert_array_equal(seen, np.ones(40, bool) if is_old else np.linspace(0, 1, 40) >= 0.5)
    np.testing.assert_allclose(hands.values[seen], in_cam.reshape(40, -1)[seen], atol=1e-5)
    expected = 736.6339 * 64 / 1920 if is_old else 30
    assert recording.intrinsics.fx == pytest.approx(expected)
    assert recording.streams["body"].values.shape == (40, 51 * 3) and "world" in recording.streams["body"].unit
    numbered_video(tmp_path / "fold_towel/7.mp4", 39)
    with pytest.raises(ValueError, match="wanted a `camera` and 39 rows"):
        recognised_as(tmp_path, "egodex")


def _tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as held:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            held.addfile(info, io.BytesIO(content))


def test_tars_of_clips_take_the_lens_of_their_worker(tmp_path):
    video = numbered_video(tmp_path / "x.mp4", 20).read_bytes()
    (tmp_path / "x.mp4").unlink()
    for part in range(2):
        keys = [f"factory_001_worker_001_{2 * part + n:04d}" for n in range(2)]
        members = {f"{key}.{suffix}": content for key in keys for suffix, content in (("mp4", video), ("json", b"{}"))}
        _tar(tmp_path / f"factory001/worker001/part{part:03d}.tar", members)
    k = dict(zip(("k1", "k2", "k3", "k4"), (0.3948, 0.1798, -0.2753, 0.0793), strict=True))
    camera = {"model": "fisheye", "image_width": 128, "image_height": 96, "fx": 40, "fy": 41, "cx": 63.5, "cy": 47.5}
    (tmp_path / "factory001/worker001/intrinsics.json").write_text(json.dumps(camera | k))
    reader = open_reader(AnySource(kind="any", root=str(tmp_path)))
    assert len(reader) == 4 and reader.names[3] == "factory_001_worker_001_0003"
    recording = reader.read(3)
    np.testing.assert_array_equal(numbers_seen(recording.streams["rgb"].values.read(np.arange(20))), np.arange(20))
    point = np.array([[[0.3, -0.4, 1.0]]])
    matrix = np.array([[40.0, 0, 63.5], [0, 41, 47.5], [0, 0, 1]])
    pixel, _ = cv2.fisheye.projectPoints(point, np.zeros(3), np.zeros(3), matrix, np.array(list(k.values())))
    found, _ = project(point[0, 0], recording.intrinsics)
    np.testing.assert_allclose((found + 0.5) * 2 - 0.5, pixel.ravel(), atol=1e-9)  # half the lens' size
    assert not reader.unused


def test_a_tar_with_imu_has_a_row_a_frame(tmp_path):
    video = numbered_video(tmp_path / "x.mp4", 20).read_bytes()
    (tmp_path / "x.mp4").unlink()
    buffer = io.BytesIO()
    np.save(buffer, np.arange(120, dtype=np.float32).reshape(20, 6))
    _tar(tmp_path / "shard-000001.tar", {"000001.mp4": video, "000001.imu.npy": buffer.getvalue()})
    recording = recognised_as(tmp_path, "egocentric_tar")
    assert recording.name == "shard-000001_000001" and recording.intrinsics is None
    np.testing.assert_array_equal(recording.streams["imu"].values[2], np.arange(12, 18))


def test_xperience_poses_are_of_the_camera_and_what_is_missing_is_invalid(tmp_path):
    h5py = pytest.importorskip("h5py", reason="extra [formats]")
    folder, count = tmp_path / "day 1" / "kitchen", 30
    numbered_video(folder / "stereo_left.mp4", count)
    world_from_cam, cam_from_body = walk(count), walk(9)[8]
    body_from_world = np.linalg.inv(world_from_cam @ cam_from_body)
    xyzw = quaternions(body_from_world)
    hands = np.random.default_rng(0).normal(size=(count, 21, 3))
    hands[4], hands[5] = 0.0, np.nan
    stamps = [5_000_000_000 + 50_000_000 * row for row in range(count)]
    with h5py.File(folder / "annotation.hdf5", "w") as held:
        wxyz, position = xyzw[:, [3, 0, 1, 2]], body_from_world[:, :3, 3].copy()
        wxyz[3], position[7], wxyz[9], position[9] = np.nan, np.nan, 0, 0
        held["slam/quat_wxyz"], held["slam/trans_xyz"] = wxyz, position
        held["calibration/cam01/K"], held["calibration/cam01/T_c0_b"] = [50.0, 51.0, 31.0, 23.0], cam_from_body
        held["hand_mocap/left_joints_3d"] = hands
        held["full_body_mocap/keypoints"] = np.ones((count, 52, 3))
        held["imu/device_timestamp_ns"] = np.arange(100) * 10_000_000 + 5_000_000_000
        held["imu/gyro_xyz"], held["imu/accel_xyz"] = np.ones((100, 3)), np.full((100, 3), 9.8)
        held["video/device_timestamp"] = [str(stamp).encode() for stamp in stamps]
        held["depth/depth"] = np.full((count, 24, 32), 1.5, np.float32)
    recording = recognised_as(tmp_path, "xperience")
    assert recording.name == "day 1_kitchen" and "depth is left out" in recording.notes[0]
    camera = recording.streams["camera"]
    assert list(np.flatnonzero(~camera.is_valid)) == [3, 7, 9]
    np.testing.assert_allclose(camera.values[camera.is_valid], world_from_cam[camera.is_valid], atol=1e-9)
    np.testing.assert_allclose(camera.times_s, np.array(stamps) / 1e9, atol=1e-9)
    assert list(np.flatnonzero(~recording.streams["hand_left"].is_valid)) == [4, 5]
    np.testing.assert_allclose(recording.streams["hand_left"].values[8], hands[8].ravel())
    assert recording.streams["imu"].times_s[1] == pytest.approx(5.01) and recording.intrinsics.fy == 51
    numbers = numbers_seen(recording.streams["rgb"].values.read(np.array([0, 29])))
    np.testing.assert_array_equal(numbers, [0, 29])
    depth = recognised_as(tmp_path, "xperience", depth_metres_per_unit=1.0).streams["depth"]
    assert (depth.values.read(np.array([3])) == 1.5).all()
    assert len(pickle.dumps(depth.values)) < 1000, "depth lies in its file until it is asked for"
    with h5py.File(folder / "annotation.hdf5", "a") as held:
        del held["slam"]
    recording = recognised_as(tmp_path, "xperience")
    assert "camera" not in recording.streams and "there are no poses" in recording.notes[0]
