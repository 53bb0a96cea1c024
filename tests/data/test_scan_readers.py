"""Phones, structure from motion and KITTI: real files where there are some, else replicas with their own oracle."""

import io
import json
import shutil
import struct
import zipfile

import cv2
import numpy as np
import pytest
from field_replicas import numbered_frames, numbered_picture, numbers_seen, quaternions, real, recognised_as, walk
from PIL import Image

from egom2p.geometry import inverse_poses, project

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def test_record3d_turns_opengl_axes_and_reads_k_by_columns(tmp_path):
    liblzfse = pytest.importorskip("liblzfse", reason="extra [formats]")
    world_from_cam = walk(12)
    stored = world_from_cam @ FLIP
    metadata = {
        **{"w": 64, "h": 48, "dw": 8, "dh": 6, "fps": 30},
        "K": [50.0, 0, 0, 0, 51.0, 0, 31.0, 23.0, 1.0],
        "poses": np.column_stack([quaternions(stored), stored[:, :3, 3]]).tolist(),
        "frameTimestamps": (100.5 + np.arange(12) / 30).tolist(),
    }
    with zipfile.ZipFile(tmp_path / "walk.r3d", "w") as held:
        held.writestr("metadata", json.dumps(metadata))
        for number in range(12):
            jpg = io.BytesIO()
            Image.fromarray(numbered_frames(1, first=number)[0]).save(jpg, "JPEG")
            held.writestr(f"rgbd/{number}.jpg", jpg.getvalue())
            depth = np.full((6, 8), 1 + number / 10, "<f4")
            depth[0, 0] = np.nan
            held.writestr(f"rgbd/{number}.depth", liblzfse.compress(depth.tobytes()))
            held.writestr(f"rgbd/{number}.conf", liblzfse.compress(np.tile([0, 2], 24).astype("u1").tobytes()))
    recording = recognised_as(tmp_path, "record3d", min_confidence=1)
    np.testing.assert_allclose(recording.streams["camera"].values, world_from_cam, atol=1e-9)
    np.testing.assert_array_equal(numbers_seen(recording.streams["rgb"].values.read(np.arange(12))), np.arange(12))
    depth = recording.streams["depth"].values.read(np.array([10]))[0]
    np.testing.assert_allclose(depth[2], [0, 2] * 4, rtol=1e-6)
    assert (recording.intrinsics.fy, recording.intrinsics.cx, recording.intrinsics.cy) == (51, 31, 23)


def _nerfstudio(folder, world_from_cam, applied=None):
    stored = world_from_cam @ FLIP
    held = {"w": 64, "h": 48, "fl_x": 50, "fl_y": 50, "cx": 32, "cy": 24, "k1": 0.1, "camera_model": "OPENCV"}
    if applied is not None:
        held["applied_transform"] = applied[:3].tolist()
        stored = applied @ stored
    held["frames"] = [
        {"file_path": f"images/frame_{n:05d}.png", "transform_matrix": pose.tolist()}
        for n, pose in reversed(list(enumerate(stored, start=1)))
    ]
    (folder / "transforms.json").write_text(json.dumps(held))
    for number in range(len(stored)):
        numbered_picture(folder / f"images/frame_{number + 1:05d}.png", number)


def test_nerfstudio_undoes_the_applied_transform_and_refuses_metres_it_does_not_know(tmp_path):
    world_from_cam, applied = walk(5), np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    _nerfstudio(tmp_path, world_from_cam, applied)
    with pytest.raises(ValueError, match=r"have no times, wanted source.rate_hz"):
        recognised_as(tmp_path, "nerfstudio")
    unscaled = recognised_as(tmp_path, "nerfstudio", rate_hz=10)
    assert "camera" not in unscaled.streams and "say source.metres_per_unit" in unscaled.notes[0]
    np.testing.assert_allclose(
        unscaled.streams["camera_unscaled"].values, world_from_cam[:, :3].reshape(-1, 12), atol=1e-9
    )
    recording = recognised_as(tmp_path, "nerfstudio", rate_hz=10, metres_per_unit=2.0)
    world_from_cam[:, :3, 3] *= 2
    np.testing.assert_allclose(recording.streams["camera"].values, world_from_cam, atol=1e-9)
    np.testing.assert_array_equal(numbers_seen(recording.streams["rgb"].values.read(np.arange(5))), np.arange(5))
    assert recording.intrinsics.distortion == (0.1, 0, 0, 0, 0) and not recording.notes
    assert (recording.intrinsics.cx, recording.intrinsics.cy) == (31.5, 23.5)  # of 64x48, centre stated as (32, 24)
    held = json.loads((tmp_path / "transforms.json").read_text())
    held["frames"][1]["fl_x"] = 52  # a phone's lens breathes
    (tmp_path / "transforms.json").write_text(json.dumps(held))
    (note,) = recognised_as(tmp_path, "nerfstudio", rate_hz=10, metres_per_unit=2.0).notes
    assert note.startswith("1 of 5 frames have intrinsics of their own")


def test_a_real_transforms_json_with_dead_paths_is_refused_by_name():
    folder = real("formats/nerfstudio_transforms")
    with pytest.raises(ValueError, match=r"\.jpg: no such picture"):
        recognised_as(folder, "nerfstudio", rate_hz=2)


def test_a_real_colmap_model_projects_its_points_where_they_were_seen(tmp_path):
    folder = real("formats/colmap_binary/sparse/0")
    points, seen = {}, []
    content = (folder / "points3D.bin").read_bytes()
    (count,), at = struct.unpack_from("<Q", content), 8
    for _ in range(count):
        identity, x, y, z = struct.unpack_from("<Q3d", content, at)
        (length,) = struct.unpack_from("<Q", content, at + 43)
        points[identity] = x, y, z
        at += 51 + 8 * length
    content, at = (folder / "images.bin").read_bytes(), 8
    for _ in range(struct.unpack_from("<Q", content)[0]):
        camera = struct.unpack_from("<I7dI", content, at)[-1]
        end = content.index(b"\0", at + 64)
        name = content[at + 64 : end].decode()
        (length,) = struct.unpack_from("<Q", content, end + 1)
        rows = np.frombuffer(content, np.dtype([("uv", "<f8", 2), ("id", "<i8")]), length, end + 9)
        seen.append((name, camera, rows[rows["id"] >= 0]))
        at = end + 9 + 24 * length
    shutil.copytree(folder, tmp_path / "sparse/0")
    name, camera, rows = seen[0]
    for other, other_camera, _ in seen:
        if other_camera == camera:
            numbered_picture(tmp_path / "images" / other, 1)
    recording = recognised_as(tmp_path, "colmap", rate_hz=1, metres_per_unit=1.0, camera_id=camera)
    index = [path.name for path in recording.streams["rgb"].values.paths].index(name)
    cam_from_world = inverse_poses(recording.streams["camera"].values[index])
    xyz = np.array([points[identity] for identity in rows["id"]])
    pixels, in_front = project(xyz @ cam_from_world[:3, :3].T + cam_from_world[:3, 3], recording.intrinsics)
    errors = np.linalg.norm(pixels + 0.5 - rows["uv"], axis=1)[in_front]
    assert in_front.mean() > 0.99 and np.median(errors) < 1.0 and len(errors) > 50


def test_colmap_text_and_a_lens_that_is_not_known(tmp_path):
    world_from_cam = walk(4)
    cam_from_world = inverse_poses(world_from_cam)
    xyzw, t = quaternions(cam_from_world), cam_from_world[:, :3, 3]
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse/cameras.txt").write_text("# x\n3 SIMPLE_RADIAL 64 48 50 32 24 0.05\n")
    lines = []
    for n in range(4):
        numbers = " ".join(map(repr, [float(v) for v in (xyzw[n, 3], *xyzw[n, :3], *t[n])]))
        lines += [f"{9 - n} {numbers} 3 {n}.png", ""]
        numbered_picture(tmp_path / f"images/{n}.png", n)
    (tmp_path / "sparse/images.txt").write_text("# x\n" + "\n".join(lines) + "\n\n\n")
    recording = recognised_as(tmp_path, "colmap", rate_hz=5, metres_per_unit=1.0)
    np.testing.assert_allclose(recording.streams["camera"].values, world_from_cam, atol=1e-9)
    point = np.array([[0.3, -0.2, 1.0]])
    pixel, _ = cv2.projectPoints(
        point, np.zeros(3), np.zeros(3), np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]), np.array([0.05, 0, 0, 0])
    )
    np.testing.assert_allclose(project(point, recording.intrinsics)[0][0] + 0.5, pixel.ravel(), atol=1e-9)
    (tmp_path / "sparse/cameras.txt").write_text("3 FOV 64 48 50 50 32 24 0.05\n")
    with pytest.raises(ValueError, match="found camera model FOV"):
        recognised_as(tmp_path, "colmap", rate_hz=5)


def test_kitti_colour_camera_sits_where_its_projection_says(tmp_path):
    world_from_cam0, folder = walk(5), tmp_path / "sequences/00"
    k = np.array([[70.0, 0, 32], [0, 70, 24], [0, 0, 1]])
    offset = np.array([0.06, -0.001, 0.003])
    p2 = k @ np.column_stack([np.eye(3), offset])
    for number in range(5):
        numbered_picture(folder / f"image_2/{number:06d}.png", number)
    (folder / "times.txt").write_text("".join(f"{n * 0.1:.6e}\n" for n in range(5)))
    projections = {"P0": np.column_stack([k, np.zeros(3)]), "P2": p2}
    lines = [f"{name}: " + " ".join(map(str, matrix.ravel())) for name, matrix in projections.items()]
    (folder / "calib.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "poses").mkdir()
    np.savetxt(tmp_path / "poses/00.txt", world_from_cam0[:, :3].reshape(-1, 12))
    recording = recognised_as(tmp_path, "kitti")
    point = np.array([0.4, 0.3, 5.0, 1.0])  # of camera 0
    in_world = world_from_cam0[3] @ point
    in_cam2 = np.linalg.inv(recording.streams["camera"].values[3]) @ in_world
    expected = p2 @ point
    np.testing.assert_allclose(project(in_cam2[:3], recording.intrinsics)[0], expected[:2] / expected[2], atol=1e-6)
    assert not recording.unused


def test_real_rgbd_frames_are_read_as_they_lie(real_data_dir, tmp_path):
    root = tmp_path / "scènes" / "red kitchen"
    shutil.copytree(real_data_dir / "rgbd_7scenes_redkitchen", root, copy_function=shutil.copyfile)
    for folder in (root.parent, root):
        folder.chmod(0o755)
    with pytest.raises(ValueError, match="hold no times, wanted source.rate_hz"):
        recognised_as(root.parent, "rgbd_frames")
    recording = recognised_as(root.parent, "rgbd_frames", rate_hz=30.0)
    assert recording.name == "red kitchen" and recording.unused == ()
    streams = recording.streams
    assert {name: len(stream.times_s) for name, stream in streams.items()} == {"rgb": 60, "depth": 60, "camera": 60}
    assert (recording.intrinsics.fx, recording.intrinsics.cx) == (585.0, 320.0)
    depth = streams["depth"].values.read(np.array([0]))[0]
    stored = np.asarray(Image.open(root / "frame-000000.depth.png"))
    np.testing.assert_allclose(depth, np.where(np.isin(stored, (0, 65535)), 0, stored / 1000), atol=1e-6)
    np.testing.assert_allclose(streams["camera"].values[30], np.loadtxt(root / "frame-000030.pose.txt"), atol=1e-6)
    assert streams["rgb"].times_s[59] == pytest.approx(59 / 30)
    (root / "frame-000030.pose.txt").unlink()
    (root / "frame-000010.color.jpg").unlink()
    streams = recognised_as(root.parent, "rgbd_frames", rate_hz=30.0).streams
    assert len(streams["camera"].times_s) == 58 and streams["rgb"].times_s[10] == pytest.approx(11 / 30)
    # Poses of the other direction are seen by their depth.
    for path in root.glob("*.pose.txt"):
        np.savetxt(path, np.linalg.inv(np.loadtxt(path)))
    with pytest.raises(ValueError, match="with their inverse; wanted poses in the direction its format documents"):
        recognised_as(root.parent, "rgbd_frames", rate_hz=30.0)
