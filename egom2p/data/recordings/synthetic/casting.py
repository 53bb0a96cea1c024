"""First hits of rays on a mesh: embree finds the triangle, its plane gives the distance. P rays.

Where embree is not installed (it has no wheels for some machines) plain numpy finds the triangle, many times slower.
"""

import logging
import multiprocessing
from functools import lru_cache
from typing import Literal

import numpy as np
import trimesh

from egom2p.data.recordings.synthetic.plain_casting import PlainIntersector

try:
    from trimesh.ray.ray_pyembree import RayMeshIntersector
except ImportError:
    RayMeshIntersector = None

Backend = Literal["auto", "embree", "numpy"]


class Caster:
    """A mesh made ready for many rays (the search tree is built once).

    backend   "auto" is embree where it is installed
    """

    def __init__(self, mesh: trimesh.Trimesh, *, backend: Backend = "auto") -> None:
        if backend == "embree" or (backend == "auto" and RayMeshIntersector is not None):
            self._intersector = RayMeshIntersector(mesh, scale_to_box=False)
        else:
            self._intersector = PlainIntersector(mesh.triangles)
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


@lru_cache
def tell_slow_casting() -> None:
    """Say once, in the first process only, that pictures of the world will take long."""
    if RayMeshIntersector is None and multiprocessing.parent_process() is None:
        logging.getLogger(__name__).warning(
            "embreex is not installed; rays are cast by numpy, with the same hits but many times slower"
        )
