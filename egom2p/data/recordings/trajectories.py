"""Trajectory files alone: every TUM, EuRoC or matrix file below a root is a recording of a camera and nothing else.

What a tracker or a motion capture system wrote, to train and to measure track tokenizers on. Tracks of one body say
little about other cameras: with `mounts` every file becomes several recordings, each with its own world (gravity and
heading turned at random), its own camera on the body (turned and offset at random, fixed) and its own speed.
"""

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np

from egom2p.config import Count, Natural, NotNegative, Positive, Range, strict
from egom2p.contracts import Provenance, Recording
from egom2p.data.recordings.reader_parts import pose_stream, poses_from_rows, table_of_numbers
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, called_by_path
from egom2p.data.recordings.track_files import TABLE_SUFFIXES, distinct_samples, files_below, read_text
from egom2p.geometry import (
    TimeUnit,
    check_clock,
    matrix_from_quaternion,
    nearest_rotation,
    poses_from_parts,
    read_trajectory,
    seconds_from_stamps,
)

_SUFFIXES = (*TABLE_SUFFIXES, ".txt", ".tum")


@strict
class TrajectoriesSource(FolderSource):
    """A folder of trajectory files; what they do not say is the same for all.

    file_format    by default EuRoC where commas stand between numbers, else TUM; `matrix`: a time and the
                   12 numbers of a row-major 3x4 matrix
    columns        of other tables: where time, x, y, z, qx, qy, qz and qw stand, counted from 0
    rate_hz        rows come at this rate, whatever their first column says (7-Scenes: frame numbers)
    mounts         recordings made of each file, with a random camera each; 0: the body as it is
    max_turn_deg   of such a camera against the body; null: any rotation
    offset_m       standard deviation of its position on the body, along each axis
    speeds         slowest and fastest factor of its speed, drawn evenly in the logarithm
    """

    kind: Literal["trajectories"]
    file_format: Literal["tum", "euroc", "matrix"] | None = None
    columns: tuple[Natural, ...] | None = None
    time_unit: TimeUnit | None = None  # of the first column; null: as the format says
    rate_hz: Positive | None = None
    mounts: Natural = 0
    max_turn_deg: NotNegative | None = None
    offset_m: NotNegative = 0.07
    speeds: Range[Positive] = (1.0, 1.0)
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.columns is not None and (self.file_format is not None or len(self.columns) != 8):
            raise ValueError("columns are eight numbers (time x y z qx qy qz qw), in place of a file_format")


@strict
class RandomMotionSource:
    """Smooth random motion, for as many recordings as wanted: nobody's data, of every speed.

    median_deg_s, median_m_s   of recordings; their own speeds spread by a factor of 2.2 (one standard deviation)
    """

    kind: Literal["random_motion"]
    num_recordings: Count  # how many
    duration_s: Positive = 20.0
    median_deg_s: NotNegative = 25.0
    median_m_s: NotNegative = 0.4
    seed: Natural = 0


class RandomMotionReader:
    """Body rates and velocities are noise below a corner frequency (0.2 to 2 Hz) that falls off as a power of the
    frequency (1.5 to 3.5), stronger along some axes than others.
    """

    rate_hz = 60.0

    def __init__(self, config: RandomMotionSource, *, dataset: str = "") -> None:
        self.config, self.dataset = config, dataset
        self.names = tuple(f"motion_{number:06d}" for number in range(config.num_recordings))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Recording:
        rng = np.random.default_rng([self.config.seed, index])
        count = round(self.config.duration_s * self.rate_hz)
        turned = smooth_noise(rng, count, self.rate_hz) * np.radians(self.config.median_deg_s) / self.rate_hz
        moved = smooth_noise(rng, count, self.rate_hz) * self.config.median_m_s / self.rate_hz
        angles = np.linalg.norm(turned, axis=1, keepdims=True)
        axes = turned / np.maximum(angles, 1e-12)
        quaternions = np.concatenate([np.sin(angles / 2) * axes, np.cos(angles / 2)], axis=1)
        motions = poses_from_parts(matrix_from_quaternion(quaternions), moved)
        world_from_cam = np.stack(list(accumulate(motions, np.matmul)))
        times_s = np.arange(count) / self.rate_hz
        name = self.names[index]
        camera = pose_stream(times_s, world_from_cam, where=name)
        return Recording(name, {"camera": camera}, None, Provenance(self.dataset, name))


def smooth_noise(rng: np.random.Generator, count: int, rate_hz: float) -> np.ndarray:
    """(count, 3) of root mean square length around 1."""
    frequencies_hz = np.fft.rfftfreq(2 * count, 1 / rate_hz)
    corner_hz, power = np.exp(rng.uniform(np.log(0.2), np.log(2.0))), rng.uniform(1.5, 3.5)
    spectrum = (rng.normal(size=(2, len(frequencies_hz), 3)) * np.array([1, 1j])[:, None, None]).sum(0)
    spectrum = spectrum / (1 + (frequencies_hz / corner_hz)[:, None] ** 2) ** (power / 2)
    noise = np.fft.irfft(spectrum, n=2 * count, axis=0)[:count] * np.exp(rng.normal(scale=0.7, size=3))
    return noise / np.sqrt(np.square(noise).sum(1).mean()) * np.exp(rng.normal(scale=0.8))


class TrajectoriesReader(FormatReader):
    source, what = TrajectoriesSource, "trajectory files"

    def __init__(self, config: Any, *, dataset: str = "") -> None:
        super().__init__(config, dataset=dataset)
        if config.mounts:
            several = {f"{name}_mount{k:03d}": self.paths[name] for name in self.names for k in range(config.mounts)}
            self.paths, self.names = several, tuple(several)

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return called_by_path(root, [path for path in files_below(root) if path.suffix.lower() in _SUFFIXES])

    def open(self, name: str, path: Path) -> Opened:
        times_s, world_from_body = self._read(path)
        rows, notes = distinct_samples(times_s, where=path.name)
        times_s, world_from_cam = times_s[rows], world_from_body[rows]
        if self.config.mounts:
            rng = np.random.default_rng([self.config.seed, crc32(name.encode())])
            world, body_from_cam = _turn(rng, None), _turn(rng, self.config.max_turn_deg)
            body_from_cam[:3, 3] = rng.normal(scale=self.config.offset_m, size=3)
            world_from_cam = world @ world_from_cam @ body_from_cam
            # Faster is the same way in less time; seconds stay where they begin.
            speed = np.exp(rng.uniform(*np.log(self.config.speeds)))
            times_s = times_s[0] + (times_s - times_s[0]) / speed
        return Opened({"camera": pose_stream(times_s, world_from_cam, where=path)}, None, [path], notes)

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        file_format = config.file_format or ("euroc" if "," in read_text(path)[-200:] else "tum")
        if config.columns is None and file_format != "matrix":
            times_s, world_from_body = read_trajectory(path, file_format, time_unit=config.time_unit)
        else:
            rows = table_of_numbers(path)
            if config.columns is None:
                if rows.shape[1] != 13:
                    raise ValueError(f"{path}: found {rows.shape[1]} columns, wanted a time and the 12 of a 3x4 matrix")
                stamps, parts = rows[:, 0], rows[:, 1:].reshape(-1, 3, 4)
                off = np.abs(np.swapaxes(parts[:, :, :3], 1, 2) @ parts[:, :, :3] - np.eye(3)).max()
                if off > 1e-2 or (np.linalg.det(parts[:, :, :3]) < 0).any():
                    raise ValueError(f"{path}: found 3x3 parts that are no rotations (off by {off:.2g}), wanted those")
                world_from_body = poses_from_parts(nearest_rotation(parts[:, :, :3]), parts[:, :, 3])
            else:
                if max(config.columns) >= rows.shape[1]:
                    raise ValueError(f"{path}: found {rows.shape[1]} columns, wanted column {max(config.columns)}")
                chosen = rows[:, list(config.columns)]
                stamps = chosen[:, 0]
                world_from_body = poses_from_rows(str(path), chosen[:, 1:4], chosen[:, 4:])
            if not (np.isfinite(stamps).all() and (np.diff(stamps) >= 0).all()):
                raise ValueError(f"{path}: found times that go back or are no numbers, wanted them in order")
            if config.rate_hz is None:
                check_clock(stamps, config.time_unit or "s", where=str(path), say="source.time_unit")
            times_s = seconds_from_stamps(stamps, config.time_unit or "s")
        if config.rate_hz is not None:
            times_s = np.arange(len(world_from_body)) / config.rate_hz
        return times_s, world_from_body


def _turn(rng: np.random.Generator, max_deg: float | None) -> np.ndarray:
    """A random rotation (4, 4): any, or about any axis by at most so many degrees."""
    quaternion = rng.normal(size=4)
    if max_deg is not None:
        half = np.radians(rng.uniform(0, max_deg)) / 2
        axis = quaternion[:3] / np.linalg.norm(quaternion[:3])
        quaternion = np.array([*(np.sin(half) * axis), np.cos(half)])
    return poses_from_parts(matrix_from_quaternion(quaternion / np.linalg.norm(quaternion)), np.zeros(3))
