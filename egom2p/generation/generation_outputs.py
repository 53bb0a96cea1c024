"""Generated clips as files that other programs read.

F frames, S samples of a track, H, W pixels.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import AlignedClip, Stream, TokenClip
from egom2p.data.clips.cropping import depth_on_source, view_of_note
from egom2p.data.clips.resampling import nearest_index
from egom2p.data.clips.upright import CLOCKWISE
from egom2p.data.clips.video_files import write_video
from egom2p.generation.sample_ranges import HIGH, LOW
from egom2p.geometry import pixels_from_gaze, write_tum
from egom2p.storage import array_on_disk, atomic_directory, save_json

TRUTH_OF = "truth_"  # before the name of a stream that was made: what the input held of it
_MOST_PIXELS = 1 << 22  # that are looked at together
_OWN_FILES = ("rgb", "depth", "gaze", "camera")
_DOT = np.array([213, 94, 0], np.uint8)  # vermillion, visible to colour-blind eyes
_RING = np.array([255, 255, 255], np.uint8)


def write_generated(
    folder: Path,
    clip: AlignedClip,
    tokens: TokenClip,
    note: dict[str, Any],
    *,
    video: str,
    truth: Mapping[str, Stream] | None = None,
) -> list[str]:
    """Write one clip below `folder`, atomically; returns the names of the files.

    clip.npz       every stream: `<name>` in its unit, `<name>_is_valid`, `<name>_times_s`; and as `truth_<name>` what
                   the input held of a stream that was made
    tokens.npz     ids by modality
    rgb.<video>, depth.<video> (grey, near is bright, logarithmic between the metres noted in clip.json),
    gaze.<video> (the point drawn on rgb), gaze.csv, camera.tum (world_from_cam), <track>.csv of any other track that
    was made, <stream>.txt of a text, clip.json (what was given and made, and which part of the source's picture the
    clip shows)
    <stream>_range.csv  of gaze and camera (positions) that were sampled several times: the ends of the range, as
                      `<stream>_low` and `<stream>_high` in clip.npz, where those of depth are too; clip.json says what
                      is promised of it
    gaze_source.csv   gaze in pixels of the picture as the source's file shows it, (0, 0) the centre of its first pixel
    depth_source.npz  `depth_mm` (F, H', W') uint16 over the whole source picture, to be resized onto it; 0: not known
    """
    picture = clip.extra.get("picture")
    rates = {name: _rate_hz(stream.times_s) for name, stream in clip.streams.items()}
    with atomic_directory(folder) as unfinished:
        arrays: dict[str, np.ndarray] = {}
        known = {f"{TRUTH_OF}{name}": stream for name, stream in (truth or {}).items()}
        for name, stream in {**clip.streams, **known}.items():
            arrays |= {name: stream.values, f"{name}_is_valid": stream.is_valid, f"{name}_times_s": stream.times_s}
        np.savez_compressed(unfinished / "clip.npz", **arrays)
        np.savez_compressed(unfinished / "tokens.npz", **tokens.tokens)
        if "rgb" in clip:
            write_video(unfinished / f"rgb.{video}", clip.rgb, rates["rgb"])
        if "depth" in clip:
            near_m, far_m = near_and_far_m(clip.depth_m)
            grey = (grey_depth(frame_m, near_m, far_m) for frame_m in clip.depth_m)
            write_video(unfinished / f"depth.{video}", grey, rates["depth"])
            note = note | {"depth_video_m": {"white": near_m, "black": far_m}}
            if picture:
                depth_mm = _depth_mm_on_source(clip.depth_m, picture, unfinished)
                times_s = clip.streams["depth"].times_s
                np.savez_compressed(unfinished / "depth_source.npz", depth_mm=depth_mm, times_s=times_s)
        if "gaze" in clip:
            stream = clip.streams["gaze"]
            _write_gaze_csv(unfinished / "gaze.csv", stream, ("u", "v"))
            _write_range(unfinished, clip, "gaze", ("u", "v"))
            if picture:
                gaze, exists = view_of_note(picture).source_gaze(stream.values)
                back = CLOCKWISE[picture["rotated_deg"]].inverse
                size = back.size(picture["source_width"], picture["source_height"])
                pixels = pixels_from_gaze(back.points(gaze), *size)
                on_source = replace(stream, values=pixels, is_valid=stream.is_valid & exists)
                _write_gaze_csv(unfinished / "gaze_source.csv", on_source, ("x_px", "y_px"))
            if "rgb" in clip:
                write_video(unfinished / f"gaze.{video}", gaze_on_rgb(clip), rates["rgb"])
        if "camera" in clip:
            write_tum(unfinished / "camera.tum", clip.streams["camera"].times_s, clip.world_from_cam)
            _write_range(unfinished, clip, "camera", ("x_m", "y_m", "z_m"))
        for name, stream in clip.streams.items():
            if np.asarray(stream.values).dtype.kind == "U":
                (unfinished / f"{name}.txt").write_text("\n".join(stream.values) + "\n", encoding="utf-8")
            elif name in note.get("made_streams", ()) and name not in _OWN_FILES:
                _write_track_csv(unfinished / f"{name}.csv", stream)
        camera = None if clip.intrinsics is None else asdict(clip.intrinsics)
        save_json(unfinished / "clip.json", note | {"intrinsics": camera, "picture": picture})
        return sorted(path.name for path in unfinished.iterdir())


def near_and_far_m(depth_m: np.ndarray) -> tuple[float, float]:
    """Metres (0, 0 where there are none) that hold all but 1 % of the depth on either side; of a long result, of frames
    evenly apart."""
    sample = depth_m[:: math.ceil(depth_m.size / _MOST_PIXELS)]
    known = sample[sample > 0]
    if not len(known):
        return 0.0, 0.0
    near_m, far_m = (float(value) for value in np.quantile(known, [0.01, 0.99]))
    return near_m, max(far_m, near_m * 1.01)


def grey_depth(depth_m: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """A frame (H, W, 3) uint8 of depth (H, W): near bright, logarithmic."""
    is_valid = depth_m > 0
    if far_m <= 0:
        return np.zeros((*depth_m.shape, 3), np.uint8)
    height = np.log(far_m / np.where(is_valid, depth_m, far_m)) / np.log(far_m / near_m)
    grey = np.where(is_valid, np.clip(height, 0, 1) * 255, 0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def gaze_on_rgb(clip: AlignedClip) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 with the gaze sample nearest in time as a dot, where it is valid."""
    samples = nearest_index(clip.streams["gaze"].times_s, clip.streams["rgb"].times_s)
    for picture, sample in zip(clip.rgb, samples, strict=True):
        frame = picture.copy()
        if clip.gaze_is_valid[sample]:
            draw_dot(frame, clip.gaze[sample], _DOT)
        yield frame


def _depth_mm_on_source(depth_m: np.ndarray, picture: Mapping[str, Any], folder: Path) -> np.ndarray:
    """(F, H', W') uint16 on disk."""
    view, back = view_of_note(picture), CLOCKWISE[picture["rotated_deg"]].inverse
    found = None
    for row in range(len(depth_m)):
        # Back to how the file shows it: `rgb.rotate` turned its pictures clockwise.
        on_source_m = back.frames(depth_on_source(depth_m[row : row + 1], view))
        if found is None:
            found = array_on_disk(folder, (len(depth_m), *on_source_m.shape[1:]), np.uint16)
        found[row] = np.clip(np.rint(on_source_m[0] * 1000), 0, 65535)
    return found


def draw_dot(frame: np.ndarray, gaze: np.ndarray, colour: np.ndarray) -> None:
    """Draw a ringed dot into a frame (H, W, 3) at gaze (u, v) in [0, 1]."""
    height, width = frame.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(columns + 0.5 - gaze[0] * width, rows + 0.5 - gaze[1] * height)
    radius = max(1.5, 0.022 * height)
    frame[distance <= radius * 1.6] = _RING
    frame[distance <= radius] = colour


def _write_gaze_csv(path: Path, stream: Stream, names: tuple[str, str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time_s", *names, "is_valid"])
        for time_s, (u, v), is_valid in zip(stream.times_s, stream.values, stream.is_valid, strict=True):
            writer.writerow([f"{time_s:.6f}", f"{u:.6f}", f"{v:.6f}", int(is_valid)])


def _write_range(folder: Path, clip: AlignedClip, name: str, channels: Sequence[str]) -> None:
    """The two ends beside each other, channel by channel."""
    if name + LOW not in clip:
        return
    low, high = clip.streams[name + LOW], clip.streams[name + HIGH]
    with open(folder / f"{name}_range.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["time_s", *(f"{channel}_{end}" for channel in channels for end in ("low", "high")), "is_valid"]
        )
        ends = np.stack([low.values, high.values], axis=-1).reshape(len(low.values), -1)
        for time_s, row, is_valid in zip(low.times_s, ends, low.is_valid, strict=True):
            writer.writerow([f"{time_s:.6f}", *(f"{value:.6f}" for value in row), int(is_valid)])


def _write_track_csv(path: Path, stream: Stream) -> None:
    """A table that the plain folder reads."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamps", *(f"channel_{number}" for number in range(stream.values.shape[1])), "valid"])
        for time_s, values, is_valid in zip(stream.times_s, stream.values, stream.is_valid, strict=True):
            writer.writerow([f"{time_s:.6f}", *(f"{value:.6g}" for value in values), int(is_valid)])


def _rate_hz(times_s: np.ndarray) -> float:
    return (len(times_s) - 1) / float(times_s[-1] - times_s[0]) if len(times_s) > 1 else 1.0
