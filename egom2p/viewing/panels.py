"""Pictures for videos: depth in colour, gaze dots, panels side by side.

F frames, H, W pixels, S samples of a track.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from egom2p.viewing.plots import DEPTH_MAP

_INVALID = np.array([40, 40, 40], np.uint8)
_GAP = 6


def coloured_depth(depth_m: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 of depth (F, H, W): logarithmic scale, invalid pixels dark grey."""
    share = np.log(np.maximum(depth_m, 1e-6) / near_m) / np.log(far_m / near_m)
    colours = matplotlib.colormaps[DEPTH_MAP](np.clip(share, 0, 1))[..., :3]
    return np.where((depth_m > 0)[..., None], np.round(colours * 255), _INVALID).astype(np.uint8)


def depth_range(depths_m: Sequence[np.ndarray]) -> tuple[float, float]:
    """Nearest and farthest metres of a common colour scale: 1 % and 99 % of all valid depths."""
    valid = np.concatenate([depth_m[depth_m > 0] for depth_m in depths_m])
    near_m, far_m = np.quantile(valid, [0.01, 0.99]) if len(valid) else (1.0, 2.0)
    return float(near_m), float(max(far_m, near_m * 1.1))


def enlarged(frames: np.ndarray, height: int) -> np.ndarray:
    """Frames (F, H, W, 3) resized to a height; the pixels of small clips stay visible as they are."""
    scale = height / frames.shape[1]
    size = (max(2, round(frames.shape[2] * scale)), height)
    kind = Image.Resampling.NEAREST if scale >= 2 and float(scale).is_integer() else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, kind)) for frame in frames])


def side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels (F, H, W, 3) of equal height in one row, with a white gap."""
    num_frames, height = min(len(panel) for panel in panels), panels[0].shape[1]
    gap = np.full((num_frames, height, _GAP, 3), 255, np.uint8)
    parts = [panels[0][:num_frames]]
    for panel in panels[1:]:
        parts += [gap, panel[:num_frames]]
    return np.concatenate(parts, axis=2)


def with_gaze(frames: np.ndarray, gaze: np.ndarray, is_valid: np.ndarray, colour: str, *, filled: bool) -> np.ndarray:
    """Frames with one gaze point per frame (F, 2) in [0, 1]: a filled dot, or a ring; nothing where invalid."""
    drawn = frames.copy()
    height, width = frames.shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    paint = np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)
    outer, inner = 0.034 * height, 0.022 * height
    for frame, (u, v), valid in zip(drawn, gaze, is_valid, strict=True):
        if not valid:
            continue
        distance = np.hypot(columns + 0.5 - u * width, rows + 0.5 - v * height)
        frame[distance <= outer * 1.35] = 255 if filled else 0
        frame[distance <= outer] = paint
        if not filled:
            is_hole = distance <= inner
            frame[is_hole] = 255
    return drawn


def samples_at_frames(times_s: np.ndarray, frame_times_s: np.ndarray) -> np.ndarray:
    """Index of the track sample nearest to each frame."""
    return np.abs(times_s[None] - frame_times_s[:, None]).argmin(axis=1)
