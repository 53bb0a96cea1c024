"""Pupil Labs Neon and Invisible: what Cloud exports (csv), and Neon's own files (`gaze ps1.raw`, `.time`, ...).

Times are nanoseconds since 1970. Gaze is pixels of the scene camera from the top left (outside it they may be
negative), invalid where the glasses were not worn. Frame i of the video is row i of the times.
Cloud: gaze.csv, world_timestamps.csv, one video, scene_camera.json, imu.csv (deg/s and g, here rad/s and m/s^2;
orientation is left), 3d_eye_states.csv (mm). Its quaternions are left.
Native: parts `psN` by number; gaze at 200 Hz is preferred; `worn` has the times of `gaze`; calibration.bin holds the
scene camera. IMU in Neon's own files is read where an `.dtype` file says its fields, else left.
Formats: Pupil Labs' documentation and pl-neon-recording; real Invisible exports confirm gaze and IMU, a replica the
rest.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Count, strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.video_files import VIDEO_SUFFIXES
from egom2p.data.recordings.reader_parts import lens, read_json, track_stream, video_with_times
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.recording_settings import SETTINGS_FILE
from egom2p.data.recordings.track_files import Table, check_times, visible
from egom2p.geometry import gaze_from_pixels, seconds_from_stamps

_STANDARD_GRAVITY = 9.80665  # m/s^2 in a g
_SCENE, _NEON_SIZE = "Neon Scene Camera v1", (1600, 1200)  # width, height of every Neon's
_CALIBRATION = np.dtype(
    [
        ("version", "u1"),
        ("serial", "S6"),
        ("scene_matrix", "<f8", (3, 3)),
        ("scene_distortion", "<f8", 8),
        ("scene_extrinsics", "<f8", (4, 4)),
    ]
)
_IMU_UNIT = "gyroscope rad/s xyz, accelerometer m/s^2 xyz; axes of the IMU (x right, y forward, z up)"


@strict
class NeonSource(FolderSource):
    """Pupil Labs Neon and Invisible."""

    kind: Literal["neon"]
    picture_size: tuple[Count, Count] | None = None  # width, height of the scene camera, where no video lies there


class NeonReader(FormatReader):
    source, what = NeonSource, "Pupil Labs Neon or Invisible recordings"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        native = folders_with(root, "gaze ps*.raw", depth=2)
        cloud = folders_with(root, "gaze.csv", depth=2)
        return native or {name: path for name, path in cloud.items() if _is_export(path)}

    def open(self, name: str, path: Path) -> Opened:
        return self._open_cloud(path) if (path / "gaze.csv").is_file() else self._open_native(path)

    def _open_cloud(self, path: Path) -> Opened:
        streams, used = {}, [path / "gaze.csv"]
        if (clock := path / "world_timestamps.csv").is_file():
            videos = [file for file in visible(path) if file.suffix.lower() in VIDEO_SUFFIXES]
            if len(videos) > 1:
                raise ValueError(f"{path}: found videos {[file.name for file in videos]}, wanted the scene's alone")
            if videos:
                streams["rgb"] = video_with_times(videos, [_table_times(Table(clock))])
                used += [clock, *videos]
        table = Table(path / "gaze.csv")
        is_valid = np.nan_to_num(table.numbers("worn"), nan=1.0) > 0 if "worn" in table else None
        pixels = np.stack([table.numbers("gaze x [px]"), table.numbers("gaze y [px]")], axis=1)
        size = self._size(path, streams)
        streams["gaze"] = track_stream(
            _table_times(table), gaze_from_pixels(pixels, *size), "image", where=table.path, is_valid=is_valid
        )
        if (imu := path / "imu.csv").is_file():
            table = Table(imu)
            turns = [np.radians(table.numbers(f"gyro {axis} [deg/s]")) for axis in "xyz"]
            pulls = [_STANDARD_GRAVITY * table.numbers(f"acceleration {axis} [g]") for axis in "xyz"]
            streams["imu"] = track_stream(_table_times(table), np.stack([*turns, *pulls], axis=1), _IMU_UNIT, where=imu)
            used.append(imu)
        if (eyes := path / "3d_eye_states.csv").is_file():
            table = Table(eyes)
            names = [column for column in table.header if "id" not in column.split() and column != table.time_name]
            values = np.stack([table.numbers(column) for column in names], axis=1)
            streams["eye_state"] = track_stream(_table_times(table), values, "; ".join(names), where=eyes)
            used.append(eyes)
        if (camera := path / "scene_camera.json").is_file():
            return Opened(streams, _scene_camera(camera, size), [*used, camera])
        return Opened(streams, None, used)

    def _open_native(self, path: Path) -> Opened:
        streams, used, notes, intrinsics = {}, [], [], None
        if videos := _parts(path, _SCENE, ".mp4"):
            clocks = [video.with_suffix(".time") for video in videos]
            streams["rgb"] = video_with_times(videos, [_stamps_s(clock) for clock in clocks])
            used += [*videos, *clocks]
        name = "gaze_200hz" if _parts(path, "gaze_200hz", ".raw") else "gaze"
        times_s, values, files, cut = _read_parts(path, name, "<f4", 2)
        is_valid = np.ones(len(times_s), bool)
        used += files
        notes += cut
        if _parts(path, "worn", ".raw"):
            worn_s, worn, files, cut = _read_parts(path, "worn", "u1", 1, clock="gaze")
            nearest = np.clip(np.searchsorted((worn_s[1:] + worn_s[:-1]) / 2, times_s), 0, len(worn_s) - 1)
            is_valid = worn[nearest, 0] > 0
            used += files
            notes += cut
        size = self._size(path, streams, usual=_NEON_SIZE)
        streams["gaze"] = track_stream(times_s, gaze_from_pixels(values, *size), "image", where=path, is_valid=is_valid)
        if _parts(path, "eye_state", ".raw"):
            times_s, values, files, cut = _read_parts(path, "eye_state", "<f4", 14)
            unit = f"mm and directions of both eyes, {values.shape[1]} numbers of Neon's"
            streams["eye_state"] = track_stream(times_s, values, unit, where=path)
            used += files
            notes += cut
        if (path / "imu.dtype").is_file():
            dtype = _stated_dtype(path / "imu.dtype")
            wanted = [f"gyro_{axis}" for axis in "xyz"] + [f"accel_{axis}" for axis in "xyz"]
            if dtype.names and set(wanted) <= set(dtype.names):
                times_s, rows, files, cut = _read_parts(path, "imu", dtype, None)
                values = np.stack([rows[column].astype(np.float64) for column in wanted], axis=1)
                values *= [np.pi / 180] * 3 + [_STANDARD_GRAVITY] * 3
                streams["imu"] = track_stream(times_s, values, _IMU_UNIT, where=path)
                used += [path / "imu.dtype", *files]
                notes += cut
        if (calibration := path / "calibration.bin").is_file():
            content = calibration.read_bytes()
            if len(content) < _CALIBRATION.itemsize:
                raise ValueError(f"{calibration}: found {len(content)} bytes, wanted {_CALIBRATION.itemsize} or more")
            held = np.frombuffer(content, _CALIBRATION, count=1)[0]
            distortion = held["scene_distortion"].tolist()
            intrinsics = lens(calibration, "opencv", distortion, size, held["scene_matrix"])
            used.append(calibration)
        return Opened(streams, intrinsics, used, notes)

    def _size(
        self, path: Path, streams: Mapping[str, Stream], *, usual: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        if "rgb" in streams:
            return streams["rgb"].values.width, streams["rgb"].values.height
        if self.config.picture_size is None and usual is not None:
            return usual
        if self.config.picture_size is None:
            raise ValueError(f"{path}: found no video, so gaze in pixels needs source.picture_size: [width, height]")
        return self.config.picture_size


def _is_export(path: Path) -> bool:
    """Whether a folder is a whole export: their gaze, and its clock for the video if one is there."""
    has_video = any(file.suffix.lower() in VIDEO_SUFFIXES for file in visible(path))
    is_plain = (path / SETTINGS_FILE).is_file() or (has_video and not (path / "world_timestamps.csv").is_file())
    return not is_plain and "gaze x [px]" in _first_line(path / "gaze.csv")


def _first_line(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        return ""
    with open(path, "rb") as opened:
        return opened.readline(4096).decode("utf-8", "replace").lower()


def _table_times(table: Table) -> np.ndarray:
    return table.times_s(column="timestamp [ns]", unit="ns", offset_s=0.0, stream="", say="")


def _scene_camera(path: Path, size: tuple[int, int]) -> Intrinsics:
    held = read_json(path)
    key = next((name for name in ("dist_coefs", "distortion_coefficients") if name in held), None)
    if "camera_matrix" not in held or key is None:
        raise ValueError(f"{path}: found {sorted(held)}, wanted camera_matrix and dist_coefs")
    matrix, distortion = np.array(held["camera_matrix"], np.float64), np.array(held[key], np.float64).ravel()
    return lens(path, "opencv", distortion.tolist(), size, matrix)


def _parts(path: Path, name: str, suffix: str) -> list[Path]:
    """Files `<name> psN<suffix>` in order of N."""
    pattern = re.compile(re.escape(name) + r" ps(\d+)" + re.escape(suffix))
    found = [(int(match[1]), file) for file in visible(path) if (match := pattern.fullmatch(file.name))]
    return [file for _, file in sorted(found)]


def _stated_dtype(path: Path) -> np.dtype:
    """The record type that a `.dtype` file writes down, a literal of Python; nothing is run."""
    try:
        return np.dtype(ast.literal_eval(path.read_text(encoding="utf-8").strip()))
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path}: not a type of records: {error}") from error


def _read_parts(
    path: Path, name: str, dtype: str | np.dtype, columns: int | None, *, clock: str | None = None
) -> tuple[np.ndarray, np.ndarray, list[Path], list[str]]:
    """Times (T,), values (T, columns or more) (or records) and the files of all parts; each is cut to its shorter file.

    Also notes of the parts that were cut.
    """
    raws = _parts(path, name, ".raw")
    if not raws:
        raise ValueError(f"{path}: found no {name} ps*.raw, wanted at least one part")
    if (stated := path / f"{name}.dtype").is_file() and columns is not None:
        dtype = _stated_dtype(stated)
    times_s, values, used, notes = [], [], [], []
    for raw in raws:
        stamps = raw.with_name(raw.name.replace(name, clock or name, 1)).with_suffix(".time")
        content, size = raw.read_bytes(), np.dtype(dtype).itemsize
        rows = np.frombuffer(content[: len(content) // size * size], dtype)
        if columns is not None and (fields := rows.dtype.names):
            # Later eye states hold those of the lids behind the 14; gaze is two numbers.
            if len(fields) < columns or (len(fields) > columns and name != "eye_state"):
                raise ValueError(f"{stated}: found the fields {list(fields)}, wanted {columns} of {name}")
            rows = np.stack([rows[field].astype(np.float64) for field in fields], axis=1)
        elif columns is not None:
            rows = rows[: len(rows) // columns * columns].reshape(-1, columns)
        own_s = _stamps_s(stamps)
        count = min(len(own_s), len(rows))
        if len(own_s) != len(rows):
            notes.append(f"{raw.name}: {len(rows)} samples and {len(own_s)} times, the first {count} are read")
        times_s.append(own_s[:count])
        values.append(rows[:count])
        used += [raw, stamps]
    joined_s = np.concatenate(times_s)
    check_times(joined_s, f"{path}: {name}", "sample")
    return joined_s, np.concatenate(values), used, notes


def _stamps_s(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path}: no such file of times")
    content = path.read_bytes()
    return seconds_from_stamps(np.frombuffer(content[: len(content) // 8 * 8], "<i8"), "ns")
