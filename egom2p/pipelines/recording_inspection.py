"""What a recording is like before it is cut: coverage, faults of its clips, streams that are off, a contact sheet.

Nothing here changes a sample. Faults are counted with their reason, and their clips left out where that is asked for;
skew is an estimate from motion that streams share, reported and never corrected. N pictures looked at, S samples.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from egom2p.config import Natural, NotNegative, Positive, Share, strict
from egom2p.contracts import Recording, Stream
from egom2p.data.clips.clip_alignment import ClipConfig, Window, clip_key
from egom2p.data.clips.resampling import nearest_frames, nearest_index, poses_at, sample_period_s, track_at
from egom2p.geometry import rotation_angle
from egom2p.storage import atomic_file

_SHEET_COLUMNS, _SHEET_WIDTH_PX, _DOT_PX = 4, 160, 3
_MOVED_M, _TURNED_RAD = 0.005, 0.01  # of a camera whose picture must have changed
_LAG_RATE_HZ, _LARGEST_LAG_S, _SMOOTHED_S, _LEAST_CORRELATION = 120.0, 0.5, 1.0, 0.5
_SMALL_PX, _READ_AT_ONCE = 48, 16


@strict
class QualityConfig:
    """Faults of clips. `drop` leaves such clips out, `report` counts them; both name reasons in the report."""

    action: Literal["report", "drop"] = "report"  # what becomes of such clips
    min_coverage: dict[str, Share] = field(default_factory=dict)  # stream -> share of a recording's samples valid
    max_speed_m_s: Positive = 10.0  # of the camera between two samples of a clip: a jump
    max_turn_deg_s: Positive = 1500.0  # of the camera, likewise
    pictures_per_clip: Natural = 4  # looked at for blank and frozen ones; 0: none, which saves their decoding
    min_contrast: Natural = 8  # levels of 255 between the darkest and the brightest pixel; below, a picture is blank


@strict
class InspectConfig:
    """What is looked at beside faults; 0 leaves it out and saves the decoding."""

    sheet_pictures: Natural = 8  # on the contact sheet; two recordings that agree in all of them are the same video
    skew_s: NotNegative = 10.0  # seconds from the middle of a recording by which streams are compared


@dataclass(frozen=True)
class Inspection:
    """faults: number of a window -> why; coverage: stream -> share of valid samples; skew: stream -> what was found."""

    faults: Mapping[str, str] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    skew: Mapping[str, str] = field(default_factory=dict)
    picture_hash: str = ""


def inspect_recording(
    recording: Recording,
    windows: Sequence[Window],
    *,
    clip: ClipConfig,
    quality: QualityConfig,
    looked_at: InspectConfig,
    sheets: Path,
    has_pictures: bool,
) -> Inspection:
    """Look at one recording, and write its contact sheet below `sheets`. has_pictures: False for an outline."""
    coverage = {name: round(float(np.mean(stream.is_valid)), 4) for name, stream in recording.streams.items()}
    thin = [
        f"coverage: {name} is valid in {coverage.get(name, 0.0):.0%} of the recording, wanted {least:.0%}"
        for name, least in quality.min_coverage.items()
        if coverage.get(name, 0.0) < least
    ]
    faults = {}
    for window in windows:
        why = thin or [*_pose_faults(recording, window, clip, quality)]
        if has_pictures and not why and quality.pictures_per_clip > 1:
            why = [*_picture_faults(recording, window, clip, quality)]
        if why:
            faults[str(window.index)] = why[0]
    has_pictures = has_pictures and "rgb" in recording.streams
    skew = stream_skew(recording, looked_at.skew_s) if has_pictures and looked_at.skew_s > 0 else {}
    shown = _contact_sheet(recording, looked_at, sheets) if has_pictures and looked_at.sheet_pictures > 0 else ""
    return Inspection(faults, coverage, skew, shown)


def _pose_faults(recording: Recording, window: Window, clip: ClipConfig, quality: QualityConfig) -> list[str]:
    if "camera" not in window.streams:
        return []
    times_s = window.start_s + np.arange(clip.num_samples) / clip.track_rate_hz
    poses, _ = poses_at(recording.streams["camera"], times_s, max_gap_s=clip.max_pose_gap_s)
    if len(poses) < 2:
        return []
    if np.ptp(poses.reshape(len(poses), 16), axis=0).max() == 0:
        return [f"identical poses: {len(poses)} valid poses are one and the same"]
    speed_m_s = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) * clip.track_rate_hz
    turn_deg_s = np.rad2deg(_turns(poses[:-1], poses[1:])) * clip.track_rate_hz
    if speed_m_s.max() > quality.max_speed_m_s:
        return [f"jump: the camera moves at {speed_m_s.max():.1f} m/s, wanted at most {quality.max_speed_m_s:g}"]
    if turn_deg_s.max() > quality.max_turn_deg_s:
        return [f"jump: the camera turns at {turn_deg_s.max():.0f} deg/s, wanted at most {quality.max_turn_deg_s:g}"]
    return []


def _picture_faults(recording: Recording, window: Window, clip: ClipConfig, quality: QualityConfig) -> list[str]:
    if "rgb" not in window.streams:
        return []
    times_s = window.start_s + np.arange(quality.pictures_per_clip) * clip.duration_s / quality.pictures_per_clip
    indices, _ = nearest_frames(recording.streams["rgb"], times_s, max_offset_s=np.inf)
    pictures = recording.streams["rgb"].rows(indices)
    contrast = np.ptp(pictures[:, ::4, ::4].reshape(len(pictures), -1), axis=1)
    if contrast.min() < quality.min_contrast:
        return [f"blank: a picture has {contrast.min()} levels of contrast, wanted {quality.min_contrast}"]
    moved = np.diff(indices) > 0
    if "camera" in recording.streams:
        camera = recording.streams["camera"]
        poses, is_known = poses_at(camera, recording.streams["rgb"].times_s[indices], max_gap_s=clip.max_pose_gap_s)
        still = (np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) < _MOVED_M) & (
            _turns(poses[:-1], poses[1:]) < _TURNED_RAD
        )
        moved &= ~(still & is_known[:-1] & is_known[1:])
    same = (pictures[:-1] == pictures[1:]).reshape(len(moved), -1).all(axis=1) & moved
    if same.any():
        return [f"frozen: pictures {clip.duration_s / quality.pictures_per_clip:.2f} s apart are one and the same"]
    return []


def stream_skew(recording: Recording, span_s: float) -> dict[str, str]:
    """How far the motion seen in other streams runs behind the camera's (or RGB's where there are no poses).

    Motion: the angular speed of poses and of gyroscopes, the mean change between pictures of RGB and of depth. It is
    compared over `span_s` in the middle; where less than half of it agrees at any lag, nothing can be told.
    """
    rgb = recording.streams["rgb"]
    start_s = max(stream.times_s[0] for name, stream in recording.streams.items() if name != "caption")
    end_s = min(stream.times_s[-1] for name, stream in recording.streams.items() if name != "caption")
    middle_s, period_s = (start_s + end_s) / 2, sample_period_s(rgb.times_s)
    start_s, end_s = max(start_s, middle_s - span_s / 2), min(end_s, middle_s + span_s / 2)
    if end_s - start_s < 2 * _SMOOTHED_S or period_s <= 0:
        return {}
    grid_s = np.arange(start_s + period_s, end_s - period_s, 1 / _LAG_RATE_HZ)
    if len(grid_s) < 3 * _LARGEST_LAG_S * _LAG_RATE_HZ:
        return {}
    motion = {}
    for name, stream in recording.streams.items():
        if name == "camera":
            poses, is_known = poses_at(
                stream, np.concatenate([grid_s - period_s / 2, grid_s + period_s / 2]), max_gap_s=0.2
            )
            first, second = np.split(poses, 2)
            motion[name] = np.where(np.logical_and(*np.split(is_known, 2)), _turns(first, second), np.nan)
        elif name in ("rgb", "depth"):
            motion[name] = _picture_motion(stream, grid_s)
        elif stream.unit.startswith("gyroscope"):
            values, is_known = track_at(stream, grid_s, max_gap_s=0.2)
            motion[name] = np.where(is_known, np.linalg.norm(values[:, :3], axis=1), np.nan)
    reference = "camera" if "camera" in motion else "rgb"
    found = {}
    for name in sorted(motion.keys() - {reference}):
        lag_s, correlation = _lag(motion[name], motion[reference])
        if correlation < _LEAST_CORRELATION:
            found[name] = f"cannot be told against {reference} (correlation {correlation:.2f})"
        else:
            is_off = abs(lag_s) > 0.75 * period_s
            found[name] = (
                f"{'off: ' if is_off else ''}{lag_s:+.3f} s behind {reference}, {lag_s / period_s:+.1f} frames "
                f"(correlation {correlation:.2f})"
            )
    return found


def _picture_motion(stream: Stream, grid_s: np.ndarray) -> np.ndarray:
    """Mean change between neighbouring pictures at times (S,); nan outside of them."""
    rows = np.flatnonzero((stream.times_s >= grid_s[0] - 0.1) & (stream.times_s <= grid_s[-1] + 0.1))
    if len(rows) < 4:
        return np.full(len(grid_s), np.nan)
    small = []
    for first in range(0, len(rows), _READ_AT_ONCE):
        pictures = stream.rows(rows[first : first + _READ_AT_ONCE])
        step_y, step_x = (max(1, side // _SMALL_PX) for side in pictures.shape[1:3])
        pictures = pictures.astype(np.float32).mean(axis=3) if pictures.ndim == 4 else pictures
        height, width = pictures.shape[1] // step_y, pictures.shape[2] // step_x
        blocks = pictures[:, : height * step_y, : width * step_x].reshape(-1, height, step_y, width, step_x)
        small.append(blocks.mean(axis=(2, 4)))
    change = np.abs(np.diff(np.concatenate(small), axis=0)).mean(axis=(1, 2)) / np.diff(stream.times_s[rows])
    return np.interp(
        grid_s, (stream.times_s[rows][1:] + stream.times_s[rows][:-1]) / 2, change, left=np.nan, right=np.nan
    )


def _lag(later: np.ndarray, earlier: np.ndarray) -> tuple[float, float]:
    """Seconds (and correlation) by which one motion (S,) follows another, of even steps; slow changes are taken out."""

    def ready(values: np.ndarray) -> np.ndarray:
        known = np.isfinite(values)
        if known.sum() < 2 or (mean := values[known].mean()) == 0:  # nothing moves
            return np.zeros(len(values))
        values = np.log1p(np.interp(np.arange(len(values)), np.flatnonzero(known), values[known]) / mean)
        window = np.ones(int(_SMOOTHED_S * _LAG_RATE_HZ))
        return values - np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")

    later, earlier = ready(later), ready(earlier)
    steps = np.arange(-int(_LARGEST_LAG_S * _LAG_RATE_HZ), int(_LARGEST_LAG_S * _LAG_RATE_HZ) + 1)
    inner = slice(steps[-1], len(later) - steps[-1])
    scores = []
    for step in steps:
        a, b = later[inner.start + step : inner.stop + step], earlier[inner]
        scale = np.sqrt((a * a).sum() * (b * b).sum())
        scores.append(float((a * b).sum() / scale) if scale > 0 else 0.0)
    best = int(np.argmax(scores))
    return float(steps[best]) / _LAG_RATE_HZ, scores[best]


def _contact_sheet(recording: Recording, looked_at: InspectConfig, sheets: Path) -> str:
    """Pictures spread over a recording, gaze and depth with them, as one JPEG; returns the hash of the pictures."""
    rgb = recording.streams["rgb"]
    rows = np.unique(np.linspace(0, len(rgb.times_s) - 1, looked_at.sheet_pictures + 2).astype(int)[1:-1])
    pictures = rgb.rows(rows)
    height = max(1, round(_SHEET_WIDTH_PX * pictures.shape[1] / pictures.shape[2]))
    depth = recording.streams.get("depth")
    lines = -(-len(rows) // _SHEET_COLUMNS)
    step = height * (1 if depth is None else 2)
    sheet = Image.new("RGB", (_SHEET_COLUMNS * _SHEET_WIDTH_PX, lines * step))
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        small = Image.fromarray(picture).resize((_SHEET_WIDTH_PX, height))
        draw, time_s = ImageDraw.Draw(small), rgb.times_s[row]
        if "gaze" in recording.streams:
            gaze, is_valid = track_at(recording.streams["gaze"], np.array([time_s]), max_gap_s=0.2)
            if is_valid[0]:
                x, y = gaze[0, 0] * _SHEET_WIDTH_PX, gaze[0, 1] * height
                draw.ellipse((x - _DOT_PX, y - _DOT_PX, x + _DOT_PX, y + _DOT_PX), fill="red", outline="white")
        draw.text((3, 2), f"{time_s - rgb.times_s[0]:.1f} s", fill="yellow", stroke_width=1, stroke_fill="black")
        place = number % _SHEET_COLUMNS * _SHEET_WIDTH_PX, number // _SHEET_COLUMNS * step
        sheet.paste(small, place)
        if depth is not None:
            depth_m = depth.rows(nearest_index(depth.times_s, np.array([time_s])))[0]
            grey = np.where(depth_m > 0, 255 / (1 + depth_m), 0).astype(np.uint8)  # near is bright
            sheet.paste(Image.fromarray(grey).resize((_SHEET_WIDTH_PX, height)), (place[0], place[1] + height))
    sheets.mkdir(parents=True, exist_ok=True)
    with atomic_file(sheets / f"{clip_key(recording.name, 0)[:-7]}.jpg") as path:
        sheet.save(path, "JPEG", quality=85)
    return hashlib.sha256(f"{len(rgb.times_s)} {pictures.shape}".encode() + pictures.tobytes()).hexdigest()[:32]


def _turns(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles (N,) radians between poses (N, 4, 4)."""
    return rotation_angle(np.swapaxes(first[:, :3, :3], 1, 2) @ second[:, :3, :3])
