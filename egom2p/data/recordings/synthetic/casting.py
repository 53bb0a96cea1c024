"""First hits of rays on a mesh: embree finds the triangle, its plane gives the distance. P rays.

Where embree is not installed (it has no wheels for some machines) plain numpy finds the triangle, many times slower.
Its arithmetic is float64: every triangle of a group (A of them) is tried on every ray that passes the group's bounding
sphere. What is hit differs from embree's (float32) only for rays that graze an edge.
"""

import logging
import multiprocessing
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import trimesh

_MAX_GROUP = 48
_MAX_TRIALS = 1 << 19  # ray-triangle pairs in memory at a time
_EDGE = 1e-9  # in barycentric coordinates: neighbours overlap by this, so that no ray slips between them
_NEARLY = 0.97
Backend = Literal["auto", "embree", "numpy"]


@dataclass(frozen=True)
class _Group:
    """Triangles that lie near each other, with what a trial needs of them.

    triangles   (A,) their numbers
    planes      (3, A) normals n, and offsets (A,): n . x = offset in the plane
    u, v        (3, A) and (A,): u . x + u_offset is the first barycentric coordinate of a point x in the plane
    """

    triangles: np.ndarray
    centre: np.ndarray
    radius: float
    planes: np.ndarray
    offsets: np.ndarray
    u: np.ndarray
    u_offset: np.ndarray
    v: np.ndarray
    v_offset: np.ndarray

    @classmethod
    def of(cls, triangles: np.ndarray, corners: np.ndarray) -> "_Group":
        """From the numbers (A,) of its triangles and their corners (A, 3, 3)."""
        low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
        centre = (low + high) / 2
        radius = np.linalg.norm(corners - centre, axis=-1).max()
        first, along, across = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        normals = np.cross(along, across)
        area = np.maximum(np.einsum("ac,ac->a", normals, normals), 1e-300)[:, None]
        u, v = np.cross(across, normals) / area, np.cross(normals, along) / area
        offsets = [np.einsum("ac,ac->a", vectors, first) for vectors in (normals, u, v)]
        return cls(
            triangles, centre, float(radius) * (1 + 1e-9), normals.T, offsets[0], u.T, -offsets[1], v.T, -offsets[2]
        )


class PlainIntersector:
    """Triangles (A, 3, 3) made ready for rays; the same question as trimesh's intersectors answer."""

    def __init__(self, corners: np.ndarray) -> None:
        corners = np.asarray(corners, dtype=np.float64)
        centres = corners.mean(axis=1)
        self._groups = [_Group.of(part, corners[part]) for part in _split(np.arange(len(corners)), centres)]

    def intersects_first(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Number (P,) of the first triangle that rays (P, 3), (P, 3) hit from either side, -1 for none."""
        lengths_P = np.linalg.norm(directions, axis=1)
        unit_P3 = directions / np.maximum(lengths_P, 1e-300)[:, None]
        nearest_P = np.full(len(directions), np.inf)
        found_P = np.full(len(directions), -1)
        middle = origins.mean(axis=0)
        # Near groups first: what they hide need not be tried.
        for group in sorted(self._groups, key=lambda group: np.linalg.norm(group.centre - middle) - group.radius):
            to_centre_P3 = group.centre - origins
            along_P = np.einsum("pc,pc->p", to_centre_P3, unit_P3)
            aside_P = np.einsum("pc,pc->p", to_centre_P3, to_centre_P3) - along_P**2
            may_hit_P = (aside_P <= group.radius**2) & (along_P >= -group.radius)
            may_hit_P &= along_P - group.radius <= nearest_P
            rays = np.flatnonzero(may_hit_P)
            chunk = max(_MAX_TRIALS // len(group.triangles), 1)
            for start in range(0, len(rays), chunk):
                part = rays[start : start + chunk]
                row, distance = _nearest(group, origins[part], unit_P3[part])
                is_nearer = distance < nearest_P[part]
                part, row = part[is_nearer], row[is_nearer]
                nearest_P[part], found_P[part] = distance[is_nearer], group.triangles[row]
        return found_P


def _nearest(group: _Group, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row (P,) in the group and distance (P,) of the nearest hit, inf for none."""
    along_PA = directions @ group.planes
    with np.errstate(divide="ignore", invalid="ignore"):
        distance_PA = (group.offsets - origins @ group.planes) / along_PA
        u_PA = origins @ group.u + group.u_offset + distance_PA * (directions @ group.u)
        v_PA = origins @ group.v + group.v_offset + distance_PA * (directions @ group.v)
        is_hit_PA = (u_PA >= -_EDGE) & (v_PA >= -_EDGE) & (u_PA + v_PA <= 1 + _EDGE) & (distance_PA > 0)
    distance_PA = np.where(is_hit_PA & np.isfinite(distance_PA), distance_PA, np.inf)
    row_P = distance_PA.argmin(axis=1)
    return row_P, distance_PA[np.arange(len(row_P)), row_P]


def _split(triangles: np.ndarray, centres: np.ndarray) -> list[np.ndarray]:
    """Groups of near triangles: halves along the longest axis until they are small."""
    if len(triangles) <= _MAX_GROUP:
        return [triangles] if len(triangles) else []
    axis = np.ptp(centres[triangles], axis=0).argmax()
    order = triangles[np.argsort(centres[triangles, axis], kind="stable")]
    half = len(order) // 2
    return _split(order[:half], centres) + _split(order[half:], centres)


try:
    from trimesh.ray.ray_pyembree import RayMeshIntersector
except ImportError:
    RayMeshIntersector = None


class Caster:
    """A mesh made ready for many rays (the search tree is built once).

    backend   "auto" is embree where it is installed
    """

    def __init__(self, mesh: trimesh.Trimesh, *, backend: Backend = "auto") -> None:
        if backend == "embree" or (backend == "auto" and RayMeshIntersector is not None):
            self._intersector = RayMeshIntersector(mesh, scale_to_box=False)
            self._embree = self._intersector._scene  # kept: asked for anew it hashes the mesh
        else:
            self._intersector, self._embree = PlainIntersector(mesh.triangles), None
        corners = np.asarray(mesh.triangles, dtype=np.float64)
        self._normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self._offsets = np.einsum("ac,ac->a", self._normals, corners[:, 0])
        self.unit_normals = self._normals / np.maximum(np.linalg.norm(self._normals, axis=1, keepdims=True), 1e-12)

    def first_hits(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Triangle (P,) int, -1 for a miss, and distance (P,) in lengths of the direction, inf for a miss.

        Origins and directions (P, 3) or (3,) float64, in the frame of the mesh; directions need no unit length.
        """
        directions = np.atleast_2d(directions)
        origins = np.broadcast_to(origins, directions.shape)
        triangle_P = self._intersector.intersects_first(origins, directions)
        is_hit_P = triangle_P >= 0
        normal_P3 = self._normals[triangle_P]
        along_P = np.einsum("pc,pc->p", normal_P3, directions)
        towards_P = self._offsets[triangle_P] - np.einsum("pc,pc->p", normal_P3, origins)
        is_hit_P &= np.abs(along_P) > 1e-12
        distance_P = np.full(len(directions), np.inf)
        np.divide(towards_P, along_P, out=distance_P, where=is_hit_P)
        is_hit_P &= distance_P > 0
        return np.where(is_hit_P, triangle_P, -1), np.where(is_hit_P, distance_P, np.inf)

    def is_blocked(self, origins: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """(P,) whether something is between origins (P, 3) and 0.97 of the steps (P, 3) from there: for shadows.

        Half the time of `first_hits`: embree may stop at any hit and need not say which.
        """
        if self._embree is None:
            return self.first_hits(origins, steps)[1] < _NEARLY
        reach_P = np.full(len(steps), _NEARLY, np.float32)
        return self._embree.run(origins, steps, dists=reach_P, query="OCCLUDED") >= 0


@lru_cache
def tell_slow_casting() -> None:
    """Say once, in the first process only, that pictures of the world will take long."""
    if RayMeshIntersector is None and multiprocessing.parent_process() is None:
        logging.getLogger(__name__).warning(
            "embreex is not installed; rays are cast by numpy, with the same hits but many times slower"
        )
