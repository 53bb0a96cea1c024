"""One centred crop of everything that lives in the picture: RGB, depth, gaze and intrinsics stay in step.

F frames, S samples, H, W pixels.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from egom2p.contracts import Intrinsics

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
        intrinsics = intrinsics.resized(crop.source_width, crop.source_height)
    return intrinsics.cropped(crop.left, crop.top, crop.width, crop.height).resized(width, height)


def _positions(num_target: int, num_source: int, probe: float) -> np.ndarray:
    centres = (np.arange(num_target) + 0.5 + probe) * num_source / num_target
    return np.clip(np.floor(centres), 0, num_source - 1).astype(np.int64)
