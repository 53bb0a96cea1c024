"""Rays find the same triangles with and without embree."""

import numpy as np
import pytest
import trimesh

from egom2p.data.recordings.synthetic import CameraConfig, LampConfig, RoomConfig, casting
from egom2p.data.recordings.synthetic.casting import Caster, PlainIntersector, tell_slow_casting
from egom2p.data.recordings.synthetic.rendering import render
from egom2p.data.recordings.synthetic.rooms import build_room

needs_embree = pytest.mark.skipif(casting.RayMeshIntersector is None, reason="embreex is not installed")


@needs_embree
def test_a_picture_is_the_same_with_both_casters():
    room = build_room(3, RoomConfig())
    intrinsics = CameraConfig(height=16, width=16).intrinsics()
    world_from_cam = np.tile(np.eye(4), (2, 1, 1))
    world_from_cam[:, :3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # looks along x, z is up
    world_from_cam[:, :3, 3] = room.mesh.bounds.mean(axis=0) + [[0, 0, 0.2], [0.3, -0.2, 0.1]]
    pictures = {
        backend: render((Caster(room.mesh, backend=backend), room.paint), [], world_from_cam, intrinsics, LampConfig())
        for backend in ("embree", "numpy")
    }
    for rgb_or_depth, wanted in zip(pictures["numpy"], pictures["embree"], strict=True):
        np.testing.assert_allclose(rgb_or_depth, wanted, rtol=0, atol=1e-6)
    assert (pictures["numpy"][1] > 0).all()


@needs_embree
def test_scattered_rays_have_the_same_first_hits(rng):
    """From inside and outside of overlapping solids, to either side of a triangle, past them, and of any length."""
    solids = [trimesh.creation.icosphere(subdivisions=2, radius=0.7), trimesh.creation.box(extents=(1, 2, 0.5))]
    solids[1].apply_translation([0.9, 0.2, 0.3])
    mesh = trimesh.util.concatenate(solids)
    origins, directions = rng.uniform(-2, 2, (600, 3)), rng.normal(size=(600, 3)) * rng.uniform(0.1, 9, (600, 1))
    directions[::50] = 0.0
    directions[::50, 2] = 1.0
    (found, distance), (wanted, wanted_distance) = (
        Caster(mesh, backend=backend).first_hits(origins, directions) for backend in ("numpy", "embree")
    )
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(distance, wanted_distance, rtol=0, atol=1e-6)
    assert 0.1 < np.isfinite(distance).mean() < 0.9
    for backend in ("numpy", "embree"):
        is_blocked = Caster(mesh, backend=backend).is_blocked(origins, directions)
        np.testing.assert_array_equal(is_blocked, distance < 0.97)


def test_no_ray_slips_between_neighbours(rng):
    """From inside a closed body every ray hits, those through corners and edge middles too; each hit is the nearest."""
    ball = trimesh.creation.icosphere(subdivisions=2, radius=1.0)
    targets = np.concatenate([ball.vertices, ball.vertices[ball.edges_unique].mean(axis=1), rng.normal(size=(200, 3))])
    found, distance = Caster(ball, backend="numpy").first_hits(np.zeros(3), targets)
    assert (found >= 0).all()
    reached = np.linalg.norm(distance[:, None] * targets, axis=1)
    assert reached.max() <= 1 + 1e-9 and reached.min() > 0.95


def test_degenerate_triangles_and_an_empty_mesh_are_missed():
    point = np.zeros((3, 3, 3))
    point[1:, :, 0] = 1.0
    rays = np.array([[0.0, 0.0, 1.0]])
    assert PlainIntersector(point).intersects_first(-rays, rays).tolist() == [-1]
    assert PlainIntersector(np.zeros((0, 3, 3))).intersects_first(-rays, rays).tolist() == [-1]


def test_without_embree_numpy_takes_over_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(casting, "RayMeshIntersector", None)
    tell_slow_casting.cache_clear()
    tell_slow_casting()
    tell_slow_casting()
    assert caplog.text.count("embreex is not installed") == 1
    box = trimesh.creation.box(extents=(2, 2, 2))
    triangle, distance = Caster(box).first_hits(np.array([0.1, 0.2, -3.0]), np.array([0.0, 0.0, 2.0]))
    assert triangle[0] >= 0 and distance[0] == pytest.approx(1.0)
    tell_slow_casting.cache_clear()
