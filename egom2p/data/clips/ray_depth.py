"""Depth along the optical axis from distances along each pixel's ray. H, W pixels."""

import numpy as np

from egom2p.contracts import FrameSource, Intrinsics
from egom2p.geometry import pixel_grid, rays


class DepthAlongAxis:
    """A FrameSource of depth along the optical axis, made from distances along each pixel's ray."""

    def __init__(self, distances: FrameSource | np.ndarray, intrinsics: Intrinsics) -> None:
        self._distances = distances
        size = distances.shape[1:] if isinstance(distances, np.ndarray) else (distances.height, distances.width)
        self.height, self.width = size
        own = intrinsics.resized(self.width, self.height)
        directions, is_seen = rays(pixel_grid(own), own)
        unit_z = directions[..., 2] / np.linalg.norm(directions, axis=-1)
        self._z_per_metre = np.where(is_seen, unit_z, 0.0).reshape(self.height, self.width).astype(np.float32)

    def __len__(self) -> int:
        return len(self._distances)

    def read(self, indices: np.ndarray) -> np.ndarray:
        is_array = isinstance(self._distances, np.ndarray)
        return (self._distances[indices] if is_array else self._distances.read(indices)) * self._z_per_metre
