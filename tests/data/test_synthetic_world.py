"""Promises of the synthetic world's recordings."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

from egom2p.data.recordings.synthetic import (
    CameraConfig,
    GazeConfig,
    MoversConfig,
    SyntheticReader,
    SyntheticWorldConfig,
)

SMALL = SyntheticWorldConfig(num_rooms=6, first_seed=40, duration_s=4.0, camera=CameraConfig(height=24, width=24))


@pytest.fixture(scope="module")
def recordings():
    reader = SyntheticReader(SMALL)
    return [reader.read(index) for index in range(len(reader))]


def test_streams_have_their_shapes_units_and_clocks(recordings):
    recording = recordings[0]
    shapes = {name: stream.values.shape for name, stream in recording.streams.items()}
    assert shapes["rgb"] == (32, 24, 24, 3)
    assert shapes["depth"] == (32, 24, 24)
    assert shapes["gaze"] == shapes["gaze_law"] == (120, 2)
    assert shapes["camera"] == (120, 4, 4)
    assert shapes["factors"] == (120, 3)
    assert shapes["caption"] == (2,)
    assert recording.streams["rgb"].values.dtype == np.uint8
    assert recording.streams["depth"].values.dtype == np.float32
    np.testing.assert_allclose(np.diff(recording.streams["rgb"].times_s), 1 / 8)
    np.testing.assert_allclose(np.diff(recording.streams["gaze"].times_s), 1 / 30)
    assert (recording.intrinsics.width, recording.intrinsics.height) == (24, 24)


def test_the_order_of_reading_changes_no_bit(recordings):
    reader = SyntheticReader(SMALL)
    for index in (3, 0, 3):
        again = reader.read(index)
        assert again.name == recordings[index].name == reader.names[index]
        for name, stream in recordings[index].streams.items():
            np.testing.assert_array_equal(again.streams[name].values, stream.values, strict=True)
            np.testing.assert_array_equal(again.streams[name].is_valid, stream.is_valid)


def test_a_room_is_the_same_in_any_range_of_seeds(recordings):
    later = SyntheticReader(dataclasses.replace(SMALL, num_rooms=1, first_seed=42)).read(0)
    np.testing.assert_array_equal(later.streams["rgb"].values, recordings[2].streams["rgb"].values)
    assert later.name == recordings[2].name
    assert not np.array_equal(recordings[1].streams["rgb"].values, recordings[2].streams["rgb"].values)


def test_recordings_of_one_room_differ():
    reader = SyntheticReader(dataclasses.replace(SMALL, num_rooms=1, recordings_per_room=2))
    first, second = reader.read(0), reader.read(1)
    assert not np.array_equal(first.streams["camera"].values, second.streams["camera"].values)
    assert json.loads(first.provenance.source)["things"] == json.loads(second.provenance.source)["things"]


def test_the_camera_stays_out_of_everything():
    # Depth alone would miss a thing behind the camera, so the walk looks in every direction as it turns.
    config = SyntheticWorldConfig(num_rooms=25, first_seed=900, camera=CameraConfig(height=16, width=16, fov_deg=100))
    reader = SyntheticReader(config)
    for index in range(len(reader)):
        depth = reader.read(index).streams["depth"].values
        assert depth.min() >= 0.35, reader.names[index]


def test_poses_are_rigid_and_depth_agrees_between_frames(recordings):
    """A point seen in one frame lies, in most pixels, on the surface seen in the next frame."""
    recording = recordings[1]
    camera, depth = recording.streams["camera"].values, recording.streams["depth"].values
    rotation = camera[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    k = recording.intrinsics
    rows, columns = np.mgrid[: k.height, : k.width]
    rays = np.stack([(columns - k.cx) / k.fx, (rows - k.cy) / k.fy, np.ones_like(rows)], axis=-1)
    # Frames 0 and 4 are half a second apart and coincide with track samples 0 and 15.
    other_from_first = np.linalg.inv(camera[15]) @ camera[0]
    points = (rays * depth[0][..., None]) @ other_from_first[:3, :3].T + other_from_first[:3, 3]
    pixel_u = np.round(points[..., 0] / points[..., 2] * k.fx + k.cx).astype(int)
    pixel_v = np.round(points[..., 1] / points[..., 2] * k.fy + k.cy).astype(int)
    is_inside = (points[..., 2] > 0) & (pixel_u >= 0) & (pixel_u < k.width) & (pixel_v >= 0) & (pixel_v < k.height)
    assert is_inside.sum() > 50
    error = np.abs(depth[4][pixel_v[is_inside], pixel_u[is_inside]] / points[..., 2][is_inside] - 1)
    assert np.median(error) < 0.05


def test_walls_are_where_the_pose_and_the_depth_say(recordings):
    """All points of all frames, put in the world, lie inside the room: floor at 0, ceiling below 3.2 m."""
    for recording in recordings[:3]:
        k, depth = recording.intrinsics, recording.streams["depth"].values
        rows, columns = np.mgrid[: k.height, : k.width]
        rays = np.stack([(columns - k.cx) / k.fx, (rows - k.cy) / k.fy, np.ones_like(rows)], axis=-1)
        pose = recording.streams["camera"].values[0]
        points = (rays * depth[0][..., None]) @ pose[:3, :3].T + pose[:3, 3]
        assert points[..., 2].min() > -1e-3 and points[..., 2].max() < 3.2 + 1e-3
        assert np.isclose(points[..., 2], 0.0, atol=1e-3).mean() > 0.02


def best_gaze_error(recording):
    """Mean distance of the gaze from where its law points, in image sizes, over valid samples."""
    gaze, law = recording.streams["gaze"], recording.streams["gaze_law"]
    return np.linalg.norm((gaze.values - law.values)[gaze.is_valid & law.is_valid], axis=1).mean()


def test_gaze_follows_its_law_up_to_noise(recordings):
    errors = [best_gaze_error(recording) for recording in recordings]
    assert np.mean(errors) < 0.1
    quiet = GazeConfig(look_aways_per_s=0.0, drift=0.0, jitter=0.0, switch_ratio=1.0, latency_s=0.0, saccade_s=1e-4)
    still = dataclasses.replace(SMALL, num_rooms=2, gaze=quiet)
    assert best_gaze_error(SyntheticReader(still).read(0)) < 1e-3


def test_gaze_is_spread_with_blinks_and_lies_on_the_mover():
    reader = SyntheticReader(dataclasses.replace(SMALL, num_rooms=20, duration_s=8.0))
    gaze, is_valid, on_mover = [], [], []
    for index in range(len(reader)):
        streams = reader.read(index).streams
        gaze.append(streams["gaze"].values[streams["gaze"].is_valid])
        is_valid.append(streams["gaze"].is_valid)
        # Every fourth frame coincides with every fifteenth sample of a track.
        for frame, sample in enumerate(range(0, 240, 15)):
            if streams["gaze"].is_valid[sample] and streams["factors"].values[sample, 2] >= 0:
                column, row = (streams["gaze"].values[sample] * 24).astype(int)
                colour = streams["rgb"].values[4 * frame, row, column].astype(int)
                on_mover.append(colour[0] > 150 and colour[2] < 0.8 * colour[0] and colour[1] < 0.6 * colour[0])
    gaze = np.concatenate(gaze)
    assert (gaze >= 0).all() and (gaze < 1).all()
    assert (gaze.std(axis=0) > 0.17).all()
    assert 0.85 < np.mean(is_valid) < 0.99
    assert np.mean(on_mover) > 0.85


def test_walking_varies(recordings):
    reader = SyntheticReader(dataclasses.replace(SMALL, num_rooms=20))
    factors = np.concatenate([reader.read(index).streams["factors"].values for index in range(len(reader))])
    speed, turn = factors[:, 0], np.degrees(factors[:, 1])
    assert 0.15 < (speed < 0.1).mean() < 0.6 and (speed > 0.8).mean() > 0.15
    assert speed.max() <= 1.31 and (turn > 20).mean() > 0.1 and (turn < -20).mean() > 0.1


def test_a_caption_names_motion_and_target(recordings):
    for recording in recordings:
        names = json.loads(recording.provenance.source)["movers"]
        shapes = {f"{name.split()[0]} moving {name.split()[1]}" for name in names} | {"looks ahead", "looks around"}
        for caption in recording.streams["caption"].values:
            assert str(caption).startswith("the wearer ")
            assert any(shape in str(caption) for shape in shapes)


def test_a_scene_file_takes_the_position_of_the_rooms(tmp_path):
    room = trimesh.creation.box(extents=(6, 6, 3))
    room.apply_translation((0, 0, 1.5))
    room.invert()
    table = trimesh.creation.box(extents=(1, 1, 0.8))
    table.apply_translation((2, 2, 0.4))
    for mesh, colour in ((room, (120, 140, 160, 255)), (table, (200, 60, 40, 255))):
        mesh.visual.face_colors = colour
    trimesh.Scene({"room": room, "table": table}).export(tmp_path / "scene.glb")
    config = dataclasses.replace(SMALL, num_rooms=2, scene_file=str(tmp_path / "scene.glb"))
    reader = SyntheticReader(config)
    first, second = reader.read(0), reader.read(1)
    for recording in (first, second):
        position = recording.streams["camera"].values[:, :3, 3]
        assert (np.abs(position[:, :2]) < 2.4).all()
        assert not ((position[:, 0] > 1.0) & (position[:, 1] > 1.0)).any()
        assert recording.streams["depth"].values.min() >= 0.35
    assert not np.array_equal(first.streams["camera"].values, second.streams["camera"].values)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such scene file"):
        SyntheticReader(dataclasses.replace(SMALL, scene_file=str(tmp_path / "absent.glb"))).read(0)
    (tmp_path / "broken.glb").write_bytes(b"not a scene")
    with pytest.raises(ValueError, match="broken.glb"):
        SyntheticReader(dataclasses.replace(SMALL, scene_file=str(tmp_path / "broken.glb"))).read(0)
    trimesh.creation.box(extents=(1, 1, 1)).export(tmp_path / "tiny.ply")
    with pytest.raises(ValueError, match="tiny"):
        SyntheticReader(dataclasses.replace(SMALL, scene_file=str(tmp_path / "tiny.ply"))).read(0)
    with pytest.raises(ValueError, match="num_rooms"):
        SyntheticWorldConfig(num_rooms=0)
    with pytest.raises(ValueError, match="something must move"):
        MoversConfig(companion=False, num_patch_movers=0)
    with pytest.raises(IndexError):
        SyntheticReader(SMALL).read(6)


def test_movers_only_on_patches_work():
    config = dataclasses.replace(SMALL, num_rooms=1, movers=MoversConfig(companion=False))
    assert len(json.loads(SyntheticReader(config).read(0).provenance.source)["movers"]) == 2
