"""Promises of natural rooms: exact truth, nothing that leads the eye, and a first world that stays as it was."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

from egom2p.config import from_plain
from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips
from egom2p.data.clips.clip_store import write_clips
from egom2p.data.recordings.synthetic import (
    CameraConfig,
    GazeConfig,
    NaturalConfig,
    RoomConfig,
    SyntheticReader,
    SyntheticWorldConfig,
)
from egom2p.data.recordings.synthetic.carrying import CarryingConfig, Motions, glance
from egom2p.data.recordings.synthetic.casting import Caster, PlainIntersector
from egom2p.data.recordings.synthetic.furnishing import furnish
from egom2p.data.recordings.synthetic.natural import NaturalStory
from egom2p.data.recordings.synthetic.rendering import near_rays
from egom2p.data.recordings.trajectories import RandomMotionReader, RandomMotionSource

SMALL = SyntheticWorldConfig(
    num_rooms=3,
    first_seed=70,
    recordings_per_room=2,
    duration_s=2.0,
    camera=CameraConfig(height=24, width=24),
    natural=NaturalConfig(),
)
FIRST_WORLD = {"rgb": 6324784.0, "depth": 119621.08128595352, "gaze": 19.951284930109978, "camera": 292.23494243944356}
BARE = NaturalConfig(carrying=CarryingConfig(hands=0.0))


@pytest.fixture(scope="module")
def recordings():
    reader = SyntheticReader(SMALL)
    return [reader.read(index) for index in range(len(reader))]


def rays_of(k, columns=None, rows=None):
    if columns is None:
        rows, columns = np.mgrid[: k.height, : k.width]
    return np.stack([(columns - k.cx) / k.fx, (rows - k.cy) / k.fy, np.ones(np.shape(rows))], axis=-1)


def test_the_first_world_is_what_it_was():
    """Sums over a recording, noted before the natural rooms were built; a rounding of another machine may pass."""
    streams = SyntheticReader(SyntheticWorldConfig(num_rooms=1, first_seed=3, duration_s=1.0)).read(0).streams
    sums = {
        name: float(np.abs(streams[name].values.astype(float)).sum()) for name in ("rgb", "depth", "gaze", "camera")
    }
    assert sums == pytest.approx(FIRST_WORLD, rel=1e-6)


def test_a_seed_gives_the_same_bytes_in_any_order(recordings):
    reader = SyntheticReader(SMALL)
    for index in (3, 0):
        again = reader.read(index)
        assert again.intrinsics == recordings[index].intrinsics
        for name, stream in recordings[index].streams.items():
            np.testing.assert_array_equal(again.streams[name].values, stream.values, strict=True)
    outline = reader.outline(3)
    for name in ("camera", "gaze", "factors", "caption"):
        np.testing.assert_array_equal(outline.streams[name].values, recordings[3].streams[name].values)
    assert outline.streams["rgb"].values.shape == recordings[3].streams["rgb"].values.shape


def test_depth_is_what_another_caster_finds():
    reader = SyntheticReader(dataclasses.replace(SMALL, natural=BARE))
    rng = np.random.default_rng(0)
    for index in range(3):
        recording = reader.read(index)
        corners = reader._stage(SMALL.first_seed + index // 2).mesh.triangles
        frame, k = 8, recording.intrinsics
        pose = recording.streams["camera"].values[30]
        rows, columns = rng.integers(24, size=(2, 60))
        directions = rays_of(k, columns, rows) @ pose[:3, :3].T
        origins = np.broadcast_to(pose[:3, 3], directions.shape)
        found = PlainIntersector(corners).intersects_first(origins, directions)
        normals = np.cross(corners[found, 1] - corners[found, 0], corners[found, 2] - corners[found, 0])
        towards = np.einsum("pc,pc->p", normals, corners[found, 0] - origins)
        expected = towards / np.einsum("pc,pc->p", normals, directions)
        error = np.abs(recording.streams["depth"].values[frame, rows, columns] / expected - 1)
        assert (found >= 0).all() and (error < 1e-4).mean() > 0.97  # a ray in sixty may graze an edge


def test_what_stands_still_stays_where_it_is():
    """Points of one frame, put into the next by the poses, lie on its depth, but for what comes into view."""
    reader = SyntheticReader(dataclasses.replace(SMALL, natural=BARE, camera=CameraConfig(height=48, width=48)))
    for index in range(4):
        recording = reader.read(index)
        camera, depth, k = recording.streams["camera"].values, recording.streams["depth"].values, recording.intrinsics
        other_from_first = np.linalg.inv(camera[15]) @ camera[0]  # frames 0 and 4
        points = (rays_of(k) * depth[0][..., None]) @ other_from_first[:3, :3].T + other_from_first[:3, 3]
        u, v = (
            np.round(points[..., i] / points[..., 2] * f + c).astype(int)
            for i, f, c in ((0, k.fx, k.cx), (1, k.fy, k.cy))
        )
        is_inside = (points[..., 2] > 0.1) & (u >= 0) & (u < 48) & (v >= 0) & (v < 48)
        if is_inside.sum() > 100:
            error = np.abs(depth[4][v[is_inside], u[is_inside]] / points[..., 2][is_inside] - 1)
            assert np.median(error) < 0.03, recording.name


def test_the_camera_stays_out_of_everything():
    """At every pose: nothing near in any direction, and what is seen turns its face, not its back."""
    reader = SyntheticReader(dataclasses.replace(SMALL, num_rooms=8, recordings_per_room=3))
    around = np.random.default_rng(1).normal(size=(40, 3))
    around /= np.linalg.norm(around, axis=1, keepdims=True)
    for index in range(len(reader)):
        caster = reader._stage(SMALL.first_seed + index // 3).caster
        position = reader.outline(index).streams["camera"].values[:, :3, 3]
        directions = np.tile(around, (len(position), 1))
        triangle, distance = caster.first_hits(np.repeat(position, len(around), axis=0), directions)
        is_back = np.einsum("pc,pc->p", caster.unit_normals[triangle], directions) > 0
        assert distance.min() > 0.08 and np.isfinite(distance).all(), reader.names[index]
        assert is_back.reshape(len(position), -1).mean(axis=1).max() < 0.4, reader.names[index]


def test_gaze_rests_on_things_and_hands_exactly():
    scene, times_s = furnish(5, SMALL.natural.room), np.arange(121) / 60
    is_named_T = np.zeros(0, dtype=bool)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        story = NaturalStory.simulate(
            scene, Motions(None, 2.0), times_s, rng, (SMALL.natural, SMALL.camera, SMALL.gaze)
        )
        hands, k = len(story.hands), story.intrinsics
        is_named_T = np.append(is_named_T, story.glances.target >= 0)
        for t in np.flatnonzero(story.glances.target >= 0):
            number = story.glances.target[t]
            is_hand = number < hands
            point = list(story.hands.values())[number][t, :3, 3] if is_hand else scene.things[number - hands].centre
            x, y, z = np.linalg.inv(story.world_from_cam[t])[:3] @ np.append(point, 1)
            expected = (k.fx * x / z + k.cx + 0.5) / k.width, (k.fy * y / z + k.cy + 0.5) / k.height
            np.testing.assert_allclose(story.glances.law[t], expected, atol=1e-6)
        off = np.linalg.norm(story.glances.gaze - story.glances.law, axis=1)[story.glances.is_valid]
        assert np.median(off) < 0.03
    assert is_named_T.mean() > 0.2


def test_eyes_look_through_the_middle_of_a_table_at_what_is_behind():
    """A thing whose middle is air is no target: the gaze stays on the point of the wall that is seen through it."""
    legs = [trimesh.creation.box(extents=(0.05, 0.05, 0.7)).apply_translation((x, y, 0.35))
            for x in (-0.6, 0.6) for y in (-0.6, 0.6)]  # fmt: skip
    room = trimesh.creation.box(extents=(6, 6, 3)).apply_translation((0, 0, 1.5))
    room.invert()
    caster, middle = Caster(trimesh.util.concatenate([room, *legs])), np.array([0.0, 0.0, 0.35])
    times_s = np.arange(121) / 60
    poses = np.tile(np.eye(4), (len(times_s), 1, 1))
    poses[:, :3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # towards +x
    poses[:, :3, 3] = np.c_[np.full(121, -2.0), np.linspace(-0.1, 0.1, 121), np.full(121, 0.4)]
    targets_TK3 = np.broadcast_to(middle, (len(times_s), 1, 3))
    view = (caster, CameraConfig(fov_deg=60).intrinsics())
    found = [glance(poses, targets_TK3, 0, view, times_s, np.random.default_rng(seed), GazeConfig()) for seed in (0, 1)]
    assert all((glances.target == -1).all() for glances in found)
    # They follow what is 5 m away, not what would be 2 m away.
    focal, law = 0.5 / np.tan(np.radians(30)), np.concatenate([glances.law for glances in found])
    step = np.abs(np.diff(law[:, 0]))
    assert np.median(step) == pytest.approx(focal * (0.2 / 120) / 5, rel=0.2)
    # A solid there is a target.
    solid = Caster(trimesh.util.concatenate([room, trimesh.creation.box(extents=[0.2] * 3).apply_translation(middle)]))
    found = glance(poses, targets_TK3, 0, (solid, view[1]), times_s, np.random.default_rng(0), GazeConfig())
    assert (found.target == 0).any()


def test_rays_that_lead_away_from_the_middle_of_what_one_is_inside_of_may_meet_it():
    rays = np.random.default_rng(0).normal(size=(500, 3))
    assert len(near_rays(rays, np.array([0.1, 0.2, 0.2]), 0.5)) == 500
    outside = np.array([0.0, 0.0, 3.0])
    is_hit = PlainIntersector(trimesh.creation.icosphere(4, 1.0).apply_translation(outside).triangles)
    is_hit = is_hit.intersects_first(np.zeros((500, 3)), rays) >= 0
    near = near_rays(rays, outside, 1.0)
    assert set(np.flatnonzero(is_hit)) <= set(near) and len(near) <= is_hit.sum() + 3


def test_captions_and_provenance_say_what_there_is(recordings):
    for recording in recordings:
        source = json.loads(recording.provenance.source)
        assert set(source["movers"]) <= {"left hand", "right hand"} and source["things"]
        (caption,) = recording.streams["caption"].values
        looked_at = str(caption).partition(" looks ")[2].split(" ", 2)
        assert looked_at == ["around"] or looked_at[2] in source["things"] + source["movers"]


def test_intrinsics_are_those_of_the_pictures(recordings):
    fields = {2 * np.degrees(np.arctan(12 / recording.intrinsics.fx)) for recording in recordings}
    assert len(fields) == len(recordings) and 50 <= min(fields) and max(fields) <= 110


def r_squared(features, target):
    """Of a linear guess, out of sample: five parts, each guessed from the others."""
    part = np.arange(len(target)) % 5
    design = np.c_[features, np.ones(len(features))]
    left = np.zeros(target.shape)
    for k in range(5):
        weights = np.linalg.lstsq(design[part != k], target[part != k], rcond=None)[0]
        left[part == k] = target[part == k] - design[part == k] @ weights
    return 1 - np.square(left).sum() / np.square(target - target.mean(axis=0)).sum()


def test_colours_do_not_tell_where_one_looks():
    """Mean colour says nothing of the heading, and brightness little of depth; both do in the first world."""
    size = CameraConfig(height=16, width=16)
    natural = dataclasses.replace(SMALL, num_rooms=40, duration_s=0.5, video_rate_hz=2.0, camera=size)
    first = SyntheticWorldConfig(num_rooms=36, duration_s=0.5, video_rate_hz=2.0, camera=size)
    r2, correlation = {}, {}
    for name, config in (("natural", natural), ("first", first)):
        reader = SyntheticReader(config)
        colours, headings, with_depth = [], [], []
        for index in range(len(reader)):
            streams = reader.read(index).streams
            picture, pose = streams["rgb"].values[0].astype(float), streams["camera"].values[0]
            colours.append(picture.mean(axis=(0, 1)))
            headings.append(pose[:2, 2] / np.linalg.norm(pose[:2, 2]))
            with_depth.append(
                np.corrcoef(picture.sum(axis=2).ravel(), np.log(streams["depth"].values[0]).ravel())[0, 1]
            )
        r2[name], correlation[name] = r_squared(np.array(colours), np.array(headings)), np.mean(with_depth)
    assert r2["natural"] < 0.1 < 0.2 < r2["first"]
    assert abs(correlation["natural"]) < 0.35 and correlation["first"] < -0.5


def test_motion_comes_from_clips(tmp_path):
    walk = RandomMotionReader(
        RandomMotionSource(kind="random_motion", num_recordings=1, duration_s=4.0), dataset="walk"
    )
    clips = cut_clips(walk.read(0), ClipConfig(height=8, width=8))
    write_clips(tmp_path / "clips", "walk", clips)
    config = dataclasses.replace(SMALL, num_rooms=1, motion=str(tmp_path / "clips"))
    recording = SyntheticReader(config).read(0)
    camera = recording.streams["camera"].values
    turns = np.linalg.inv(camera[:-1]) @ camera[1:]
    assert np.allclose(np.linalg.det(camera[:, :3, :3]), 1) and np.abs(turns[:, :3, 3]).max() > 1e-4
    with pytest.raises(ValueError, match="walk holds tracks of .* wanted 9 s"):
        SyntheticReader(dataclasses.replace(config, duration_s=9.0))
    # One data set that is long enough does not vouch for the others, whose ends would stand still.
    write_clips(tmp_path / "clips", "zshort", cut_clips(walk.read(0), ClipConfig(height=8, width=8, duration_s=1.0)))
    with pytest.raises(ValueError, match="zshort holds tracks of"):
        SyntheticReader(config)
    gappy = next(iter(cut_clips(walk.read(0), ClipConfig(height=8, width=8))))
    gappy.streams["camera"].is_valid[20:40] = False
    write_clips(tmp_path / "gaps", "walk", [gappy])
    with pytest.raises(ValueError, match=r"clip .* of walk: found gaps of more than 0.2 s"):
        SyntheticReader(dataclasses.replace(config, motion=str(tmp_path / "gaps"))).read(0)
    with pytest.raises(ValueError, match="no such folder"):
        SyntheticReader(dataclasses.replace(config, motion=str(tmp_path / "none")))


def test_a_scene_file_takes_the_new_look(tmp_path):
    room = trimesh.creation.box(extents=(6, 6, 3))
    room.apply_translation((0, 0, 1.5))
    room.invert()
    table = trimesh.creation.box(extents=(1, 1, 0.8))
    table.apply_translation((2, 2, 0.4))
    for mesh, colour in ((room, (120, 140, 160, 255)), (table, (200, 60, 40, 255))):
        mesh.visual.face_colors = colour
    trimesh.Scene({"room": room, "table": table}).export(tmp_path / "scene.glb")
    reader = SyntheticReader(dataclasses.replace(SMALL, scene_file=str(tmp_path / "scene.glb")))
    for index in (0, 1):
        position = reader.read(index).streams["camera"].values[:, :3, 3]
        assert (np.abs(position[:, :2]) < 2.9).all() and (position[:, 2] > 0.4).all()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="no `natural`"):
        SyntheticWorldConfig(num_rooms=1, motion="tracks")
    with pytest.raises(ValueError, match="natural rooms know no room"):
        SyntheticWorldConfig(num_rooms=1, natural=NaturalConfig(), room=RoomConfig(compass_palette=False))
    for wrong, words in (
        ({"natural": {}, "camera": {"fov_deg": 60.0}}, "natural rooms know no camera.fov_deg; what"),
        ({"natural": {}, "gaze": {"head_gain": 0.0, "jitter": 0.0}}, "natural rooms know no gaze.head_gain; what"),
        ({"natural": {"lens": {"fov_deg": [10.0, 60.0]}}}, "fov_deg.0`: must be at least 20, found 10"),
        ({"natural": {"lens": {"quality": [60, 101]}}}, "quality.1`: must be at most 100, found 101"),
        ({"natural": {"lens": {"brightness": [0.05, 0.5]}}}, "brightness must lie above black and below bright"),
        ({"natural": {"room": {"num_clutter": [9, 3]}}}, r"num_clutter`: a range must not fall, found \[9, 3\]"),
        ({"room": {"side_m": [9.0, 8.0]}}, r"room.side_m`: a range must not fall"),
        ({"gaze": {"saccade_s": 0}}, "gaze.saccade_s`: must be positive, found 0"),
        ({"duration_s": 0.05}, "found duration_s=0.05, video_rate_hz=8"),
        ({"caption_every_s": 0.01}, "caption_every_s=0.01; wanted"),
    ):
        with pytest.raises(ValueError, match=words):
            from_plain(SyntheticWorldConfig, {"num_rooms": 1, **wrong})
    crowded = dataclasses.replace(SMALL, natural=NaturalConfig(carrying=CarryingConfig(clearance_m=3.0, tries=2)))
    with pytest.raises(ValueError, match="natural000070: 2 motions"):
        SyntheticReader(crowded).read(0)
