"""The two embedded worlds side by side: processor time per clip, and how they look beside real clips. Prints JSON.

    python benchmarks/world.py [--rooms 40] [--size 64] [--clips outputs/real/clips:kitchen ...] [--output world.json]

`ms_per_clip` is processor time of everything (room, simulation, pictures, depth) over clips of 2 s, one thread, rooms
of the two worlds in turn; `ratio` is natural over first. Looks are the 10th, 50th and 90th percentile over frames: of
brightness, its standard deviation, the mean gradient, the share of pixels with a gradient above 0.1, the slope of the
power spectrum, saturation, red minus blue (display values of 1); of depth its median (m), the standard deviation of
its logarithm, and its correlation with brightness. `heading`: R^2, out of sample, of a linear guess of the camera's
heading from the mean colour of a frame; `distance`: of the logarithm of its median depth. --clips: stores of clips.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from environment import environment

from egom2p.contracts import AlignedClip, Recording
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.recordings.synthetic import CameraConfig, NaturalConfig, SyntheticReader, SyntheticWorldConfig

CLIP_S = 2.0
EVERY = 5  # frames that are looked at
BANDS = ((1.5, 3), (3, 6), (6, 12), (12, 20), (20, 32))  # waves per 64 pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=40)
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument("--clips", nargs="*", default=[], metavar="ROOT:DATASET", help="real clips to compare with")
    parser.add_argument("--output", type=Path, default=None, help="also write the JSON here")
    arguments = parser.parse_args()
    result = environment() | {"pixels_per_side": arguments.size} | measure(arguments.rooms, arguments.size)
    for place in arguments.clips:
        root, _, dataset = place.rpartition(":")
        result[dataset] = looks(ClipStore(root, dataset))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


def measure(num_rooms: int, size: int) -> dict[str, object]:
    """Speed, looks and hints of both worlds."""
    camera = CameraConfig(height=size, width=size)
    readers = {
        name: SyntheticReader(
            SyntheticWorldConfig(num_rooms=num_rooms + 1, duration_s=CLIP_S, camera=camera, natural=natural)
        )
        for name, natural in (("first", None), ("natural", NaturalConfig()))
    }
    recordings: dict[str, list[Recording]] = {name: [] for name in readers}
    cpu_s = dict.fromkeys(readers, 0.0)
    for reader in readers.values():
        reader.read(num_rooms)  # imports and first allocations
    for index in range(num_rooms):
        for name, reader in readers.items():
            start_s = time.process_time()
            recordings[name].append(reader.read(index))
            cpu_s[name] += time.process_time() - start_s
    result: dict[str, object] = {
        name: {"ms_per_clip": round(1e3 * cpu_s[name] / num_rooms, 1)}
        | looks(recordings[name])
        | hints(recordings[name])
        for name in readers
    }
    return result | {"ratio": round(cpu_s["natural"] / cpu_s["first"], 2)}


def looks(clips: Iterable[Recording | AlignedClip]) -> dict[str, object]:
    """Percentiles over frames of what the module's docstring names."""
    values: dict[str, list[float]] = {}
    for clip in clips:
        rgb = np.asarray(clip.streams["rgb"].values)[::EVERY] / 255.0
        has_depth = "depth" in clip.streams
        depths = clip.streams["depth"].values[::EVERY] if has_depth else np.zeros(rgb.shape[:3])
        for picture, depth in zip(rgb, depths, strict=True):
            for name, value in _of_frame(picture, depth).items():
                values.setdefault(name, []).append(value)
    percentiles = {name: np.round(np.quantile(column, (0.1, 0.5, 0.9)), 3).tolist() for name, column in values.items()}
    return {"frames": len(values["brightness"])} | percentiles


def _of_frame(picture: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    grey = picture @ [0.299, 0.587, 0.114]
    gradient = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])
    brightest, darkest = picture.max(axis=2), picture.min(axis=2)
    window = np.hanning(len(grey))[:, None] * np.hanning(grey.shape[1])
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    waves = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size) * 64 for size in grey.shape), indexing="ij"))
    bands = [power[(waves >= low) & (waves < high)].mean() for low, high in BANDS]
    middles = [np.sqrt(low * high) for low, high in BANDS]
    result = {
        "brightness": grey.mean(),
        "contrast": grey.std(),
        "gradient": gradient.mean(),
        "edges": (gradient > 0.1).mean(),
        "spectrum": np.polyfit(np.log(middles), np.log(np.array(bands) + 1e-12), 1)[0],
        "saturation": ((brightest - darkest) / np.maximum(brightest, 1e-3)).mean(),
        "red_minus_blue": (picture[..., 0] - picture[..., 2]).mean(),
    }
    is_known = depth > 0
    if is_known.sum() > is_known.size // 10:
        logarithm = np.log(depth[is_known])
        result |= {"depth_m": np.exp(np.median(logarithm)), "depth_spread": logarithm.std()}
        result["depth_with_brightness"] = np.corrcoef(logarithm, grey[is_known])[0, 1]
    return {name: float(value) for name, value in result.items()}


def hints(recordings: list[Recording]) -> dict[str, float]:
    """What the mean colour of a recording's first frame tells."""
    colours = np.array([recording.streams["rgb"].values[0].mean(axis=(0, 1)) for recording in recordings])
    poses = np.array([recording.streams["camera"].values[0] for recording in recordings])
    distances = np.array([[np.log(np.median(recording.streams["depth"].values[0]))] for recording in recordings])
    headings = poses[:, :2, 2] / np.linalg.norm(poses[:, :2, 2], axis=1, keepdims=True)
    return {"heading": round(r_squared(colours, headings), 3), "distance": round(r_squared(colours, distances), 3)}


def r_squared(features: np.ndarray, targets: np.ndarray) -> float:
    """Of a linear guess, out of sample: five parts, each guessed from the others."""
    part, design = np.arange(len(targets)) % 5, np.c_[features, np.ones(len(features))]
    left = np.zeros(targets.shape)
    for held_out in range(5):
        rest = part != held_out
        weights = np.linalg.lstsq(design[rest], targets[rest], rcond=None)[0]
        left[~rest] = targets[~rest] - design[~rest] @ weights
    return float(1 - np.square(left).sum() / np.square(targets - targets.mean(axis=0)).sum())


if __name__ == "__main__":
    main()
