"""One view of everything that lives in the picture: RGB, depth, gaze and intrinsics stay in step.

A view is a centred crop, or the picture a pinhole camera in the lens's place would have taken. F frames, S samples,
H, W pixels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from egom2p.contracts import Intrinsics
from egom2p.data.clips.upright import CLOCKWISE
from egom2p.geometry import gaze_from_pixels, gaze_rays, pixel_grid, project, rays, turned_clockwise

_ASPECT_TOLERANCE = 0.02
# Where inside a target pixel depth is looked up, in target pixels from its centre, nearest first.
_PROBES = sorted(
    ((y, x) for y in (0.0, -1 / 3, 1 / 3) for x in (0.0, -1 / 3, 1 / 3)), key=lambda p: p[0] ** 2 + p[1] ** 2
)


@dataclass(frozen=True)
class Crop:
    """A box in whole pixels of a picture of `source_width` x `source_height`."""

    source_width: int
    source_height: int
    left: int
    top: int
    width: int
    height: int

    def rgb(self, frames: np.ndarray, *, width: int, height: int) -> np.ndarray:
        return crop_rgb(frames, self, width=width, height=height)

    def depth(self, depth_m: np.ndarray, *, width: int, height: int) -> np.ndarray:
        """Depth of a picture of any size and the same aspect as the source's, in this view."""
        own = centre_crop(depth_m.shape[2], depth_m.shape[1], aspect=width / height)
        return crop_depth(depth_m, own, width=width, height=height)

    def gaze(self, gaze: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gaze (S, 2) of the source as that of the view, and which of it has a place in the view's plane (S,)."""
        return crop_gaze(gaze, self), np.ones(len(gaze), bool)

    def source_gaze(self, gaze: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gaze (S, 2) of the view as that of the source, and where it has one (S,)."""
        offset, size = np.array([self.left, self.top]), np.array([self.width, self.height])
        return (gaze * size + offset) / [self.source_width, self.source_height], np.ones(len(gaze), bool)

    def intrinsics(self, source: Intrinsics, *, width: int, height: int) -> Intrinsics:
        return crop_intrinsics(source, self, width=width, height=height)

    def note(self) -> dict[str, Any]:
        """Plain values that `view_of_note` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Rectification:
    """The picture that a pinhole camera in the place of a lens would have taken; what it did not see is black, 0.

    source   the lens, of a picture of `source.width` x `source.height`
    target   the pinhole, of the view's size; it shares centre and axes, so depth along z stays what it is
    """

    source: Intrinsics
    target: Intrinsics

    @property
    def source_width(self) -> int:
        return self.source.width

    @property
    def source_height(self) -> int:
        return self.source.height

    def rgb(self, frames: np.ndarray, *, width: int, height: int) -> np.ndarray:
        """Bilinear at twice the target's sampling, from the picture shrunk to that sampling: antialiased."""
        shrink, rows, columns, is_seen = self._sampling
        result = []
        for frame in frames:
            small = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).reduce(shrink), np.float32)
            picture = _bilinear(small, rows, columns) * is_seen[..., None]
            picture = picture.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
            result.append(np.rint(picture).astype(np.uint8))
        return np.stack(result)

    def depth(self, depth_m: np.ndarray, *, width: int, height: int) -> np.ndarray:
        own = self.source.resized(depth_m.shape[2], depth_m.shape[1])
        result = np.zeros((len(depth_m), height, width), np.float32)
        for probe_y, probe_x in _PROBES:
            pixels, is_seen = _seen(pixel_grid(self.target) + [probe_x, probe_y], self.target, own)
            columns, rows = np.moveaxis(np.where(is_seen[..., None], np.rint(pixels), 0).astype(np.int64), -1, 0)
            values = np.where(is_seen, depth_m[:, rows, columns], 0.0)
            is_empty = result <= 0
            if not is_empty.any():
                break
            result = np.where(is_empty & np.isfinite(values) & (values > 0), values, result)
        return result.astype(np.float32)

    def gaze(self, gaze: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _gaze_through(gaze, self.source, self.target)

    def source_gaze(self, gaze: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _gaze_through(gaze, self.target, self.source)

    def intrinsics(self, source: Intrinsics, *, width: int, height: int) -> Intrinsics:
        return self.target

    @cached_property
    def seen_fraction(self) -> float:
        """Share of the view's pixels that the source saw."""
        return float(_seen(pixel_grid(self.target), self.target, self.source)[1].mean())

    def note(self) -> dict[str, Any]:
        return {
            "source_width": self.source.width,
            "source_height": self.source.height,
            "rectified": {"source": asdict(self.source), "target": asdict(self.target)},
            "seen_fraction": round(self.seen_fraction, 6),
        }

    @cached_property
    def _sampling(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """By how much the source is shrunk; rows and columns of it for twice the view's pixels (2 H, 2 W)."""
        fine = self.target.resized(2 * self.target.width, 2 * self.target.height)
        pixels, is_seen = _seen(pixel_grid(fine), fine, self.source)
        shrink = max(1, int(min(self.source.fx / fine.fx, self.source.fy / fine.fy)))
        columns, rows = np.moveaxis((np.where(is_seen[..., None], pixels, 0.0) + 0.5) / shrink - 0.5, -1, 0)
        return shrink, rows, columns, is_seen


def view_of_note(note: Mapping[str, Any]) -> Crop | Rectification:
    """The view a clip's note (`extra["picture"]`) speaks of."""
    if "rectified" not in note:
        return Crop(**{name: note[name] for name in Crop.__dataclass_fields__})
    cameras = {
        name: Intrinsics(**{**values, "distortion": tuple(values["distortion"])})
        for name, values in note["rectified"].items()
    }
    return Rectification(**cameras)


def depth_on_source(depth_m: np.ndarray, view: Crop | Rectification) -> np.ndarray:
    """Depth (F, H, W) of a view over the whole source picture, at the view's sampling; 0 where the view does not reach.

    Resized to the source's size it lies on the source.
    """
    height, width = depth_m.shape[1:]
    if isinstance(view, Crop):
        scale = width / view.width, height / view.height
    else:
        scale = view.target.fx / view.source.fx, view.target.fy / view.source.fy
    columns = max(1, round(view.source_width * scale[0]))
    rows = max(1, round(view.source_height * scale[1]))
    places = np.stack(np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows), axis=-1)
    seen, exists = view.gaze(places.reshape(-1, 2))
    exists = exists & ((seen >= 0) & (seen < 1)).all(axis=1)
    column, row = np.where(exists[:, None], seen * [width, height], 0).astype(np.int64).T
    return (depth_m[:, row, column] * exists).reshape(len(depth_m), rows, columns)


def pinhole_view(source: Intrinsics, *, fov_deg: float, width: int, height: int) -> Rectification:
    """The view of `fov_deg` from the left to the right edge of the picture."""
    focal = width / 2 / np.tan(np.radians(fov_deg) / 2)
    return Rectification(source, Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2))


def centre_crop(source_width: int, source_height: int, *, aspect: float) -> Crop:
    """The largest centred box of a picture whose width is `aspect` times its height (to a pixel)."""
    width = max(1, min(source_width, round(source_height * aspect)))
    height = max(1, min(source_height, round(source_width / aspect)))
    return Crop(source_width, source_height, (source_width - width) // 2, (source_height - height) // 2, width, height)


def crop_rgb(frames: np.ndarray, crop: Crop, *, width: int, height: int) -> np.ndarray:
    """Pictures (F, H, W, 3) uint8 cropped and resized (bicubic, antialiased when shrinking)."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    if (crop.width, crop.height) == (width, height):
        return np.ascontiguousarray(frames[:, box[1] : box[3], box[0] : box[2]])
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))
        for frame in np.ascontiguousarray(frames)
    ]
    return np.stack(resized)


def crop_depth(depth_m: np.ndarray, crop: Crop, *, width: int, height: int) -> np.ndarray:
    """Depth (F, H, W) metres, 0 = invalid, cropped and looked up at the nearest pixel; never averaged over an edge.

    Where that pixel is invalid, other pixels under the same target pixel are tried before it stays invalid.
    """
    result = np.zeros((len(depth_m), height, width), np.float32)
    for probe_y, probe_x in _PROBES:
        rows = crop.top + _positions(height, crop.height, probe_y)
        columns = crop.left + _positions(width, crop.width, probe_x)
        values = depth_m[:, rows[:, None], columns[None, :]]
        is_empty = result <= 0
        if not is_empty.any():
            break
        result = np.where(is_empty & np.isfinite(values) & (values > 0), values, result)
    return result.astype(np.float32)


def crop_gaze(gaze: np.ndarray, crop: Crop) -> np.ndarray:
    """Gaze (S, 2) in [0, 1] of the picture as gaze in [0, 1] of the box; outside the box it leaves that range."""
    u = (gaze[:, 0] * crop.source_width - crop.left) / crop.width
    v = (gaze[:, 1] * crop.source_height - crop.top) / crop.height
    return np.stack([u, v], axis=1)


def crop_intrinsics(intrinsics: Intrinsics, crop: Crop, *, width: int, height: int) -> Intrinsics:
    """Intrinsics of the cropped and resized picture."""
    if (intrinsics.width, intrinsics.height) != (crop.source_width, crop.source_height):
        check_same_aspect((intrinsics.width, intrinsics.height), (crop.source_width, crop.source_height), "intrinsics")
        intrinsics = intrinsics.resized(crop.source_width, crop.source_height)
    return intrinsics.cropped(crop.left, crop.top, crop.width, crop.height).resized(width, height)


def upright_intrinsics(intrinsics: Intrinsics, video: Any) -> Intrinsics:
    """Intrinsics of a video's upright picture, whether they were given for it or for the picture as it is stored.

    A phone's calibration is that of its sensor, while the file says how its picture is turned; pixels that are not
    square are scaled. Intrinsics of neither picture, and of frames that know no `turn`, are returned as they are.
    """
    size = intrinsics.width, intrinsics.height
    if not hasattr(video, "turn") or _is_same_aspect(size, (video.width, video.height)):
        return intrinsics
    degrees = next((degrees for degrees, turn in CLOCKWISE.items() if turn == video.turn), None)
    # A mirrored picture has no camera that sees it.
    if degrees is None or not _is_same_aspect(size, (video.stored_width, video.stored_height)):
        return intrinsics
    square = (video.height, video.width) if video.turn.swaps else (video.width, video.height)
    intrinsics = intrinsics.resized(*square)
    for _ in range(degrees // 90):
        intrinsics = turned_clockwise(intrinsics)
    return intrinsics


def _is_same_aspect(size: tuple[int, int], picture: tuple[int, int]) -> bool:
    return abs(size[0] / size[1] / (picture[0] / picture[1]) - 1) <= _ASPECT_TOLERANCE


def check_same_aspect(size: tuple[int, int], picture: tuple[int, int], what: str) -> None:
    """Raise ValueError naming both sizes (width, height) when one is not the other at another scale."""
    if not _is_same_aspect(size, picture):
        raise ValueError(
            f"found {what} of {size[0]}x{size[1]} pixels for a picture of {picture[0]}x{picture[1]}, wanted the same "
            "picture at any scale"
        )


def _seen(pixels: np.ndarray, camera: Intrinsics, other: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels (..., 2) of one camera lie in the picture of another in its place, and which it sees (...)."""
    found, is_seen = project(rays(pixels, camera)[0], other)
    is_inside = ((found >= -0.5) & (found < [other.width - 0.5, other.height - 0.5])).all(axis=-1)
    return found, is_seen & is_inside


def _gaze_through(gaze: np.ndarray, camera: Intrinsics, other: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    directions, exists = gaze_rays(gaze, camera)
    pixels, is_seen = project(directions, other)
    return gaze_from_pixels(pixels, other.width, other.height), exists & is_seen


def _bilinear(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) at fractional rows and columns (...), held at its edges."""
    rows, columns = np.clip(rows, 0, picture.shape[0] - 1), np.clip(columns, 0, picture.shape[1] - 1)
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    bottom, right = np.minimum(top + 1, picture.shape[0] - 1), np.minimum(left + 1, picture.shape[1] - 1)
    down, across = (rows - top)[..., None].astype(np.float32), (columns - left)[..., None].astype(np.float32)
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return upper * (1 - down) + lower * down


def _positions(num_target: int, num_source: int, probe: float) -> np.ndarray:
    centres = (np.arange(num_target) + 0.5 + probe) * num_source / num_target
    return np.clip(np.floor(centres), 0, num_source - 1).astype(np.int64)
