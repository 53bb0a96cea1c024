"""Streams of a plain folder that are tables: poses, gaze, further tracks, and clocks. T samples."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from egom2p.contracts import Intrinsics, Stream, check_shape
from egom2p.data.recordings.aria_mps import gaze_angles
from egom2p.data.recordings.recording_settings import (
    DEFAULT_RATE_HZ,
    SETTINGS_FILE,
    CameraSettings,
    DepthSettings,
    GazeSettings,
    PictureSettings,
    TrackSettings,
    transform_matrix,
)
from egom2p.data.recordings.track_files import (
    TABLE_SUFFIXES,
    VALID_NAMES,
    Table,
    clock_s,
    load_npz,
    named,
    read_times,
    read_track,
    stamps_in,
    valid_rows,
    validity_in,
)
from egom2p.geometry import (
    CLOCKWISE_TURN,
    TimeUnit,
    check_poses,
    gaze_from_pixels,
    gaze_from_yaw_pitch,
    inverse_poses,
    read_trajectory,
)

FORMAT_OF_SUFFIX = {".txt": "tum", ".tum": "tum", ".csv": "euroc", ".npz": "npz"}
_AXES = {"opencv": np.eye(4), "opengl": np.diag([1.0, -1.0, -1.0, 1.0]), "turned": CLOCKWISE_TURN}
_MIN_CONFIDENCE = 0.6  # what Pupil Labs advise for their own
_LARGEST_NORMALISED = 2.0
_ENOUGH = 10  # samples that nobody has all in the first pixel


def read_camera(folder: Path, path: Path | None, wanted: CameraSettings, rgb: Stream | None = None) -> Stream | None:
    """Poses of the camera, from those of a body where the settings say where the camera sits on it.

    Poses without times or a rate are those of the frames of RGB, where there is one for each.
    """
    if path is None:
        return None
    file_format = wanted.file_format or FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if file_format is None:
        raise ValueError(f"{path}: the suffix does not tell the format; say camera.file_format")
    if file_format == "npz":
        times_s, poses, is_valid = _read_pose_arrays(path, wanted.time_unit, wanted.offset_s)
    else:
        times_s, poses = read_trajectory(
            path, file_format, time_unit=wanted.time_unit, offset_s=wanted.offset_s, say="camera.time_unit"
        )
        is_valid = np.ones(len(poses), dtype=bool)
    if wanted.maps == "cam_from_world":
        poses = inverse_poses(poses)
    if wanted.body_from_camera is not None:
        where = f"{folder / SETTINGS_FILE}: camera.body_from_camera"
        poses = poses @ transform_matrix(wanted.body_from_camera, where=where)
    poses = poses @ _AXES[wanted.axes]
    if times_s is None and wanted.rate_hz is None and not named(folder, "trajectory_timestamps.txt").is_file():
        if rgb is None or len(rgb.times_s) != len(poses):
            frames = f"{len(rgb.times_s)} frames of rgb" if rgb is not None else "no rgb"
            raise ValueError(
                f"{path}: found {len(poses)} poses without times and {frames}; say camera.rate_hz, or the times in "
                "trajectory_timestamps.txt"
            )
        times_s = rgb.times_s + wanted.offset_s
    times_s = read_clock(
        folder, "trajectory", len(poses), wanted, path=path, own_times_s=times_s, stream="camera", is_own_in_unit=True
    )
    return Stream(poses, is_valid, times_s, "world_from_cam")


def _read_pose_arrays(
    path: Path, unit: TimeUnit | None, offset_s: float
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Times (T,) or None, poses (T, 4, 4) and validity (T,) of an npz; an invalid row may hold anything."""
    arrays = load_npz(path)
    name = next((name for name in ("world_from_camera", "world_from_cam", "poses", "arr_0") if name in arrays), None)
    if name is None:
        raise ValueError(
            f"{path}: found arrays {sorted(arrays)}, wanted `world_from_camera` (T, 4, 4) and `timestamps`"
        )
    poses = np.array(arrays[name], dtype=np.float64)
    check_shape(f"{path}: {name}", poses, "t 4 4")
    is_valid = validity_in(arrays, len(poses))
    stamps, unit = stamps_in(arrays, path, unit)
    check_shape(f"{path}: valid", is_valid, "t", t=len(poses))
    times_s = None
    if stamps is not None:
        check_shape(f"{path}: timestamps", stamps, "t", t=len(poses))
        times_s = clock_s(stamps, unit, path, offset_s=offset_s, stream="camera", say="camera.time_unit")
    poses[~is_valid] = np.eye(4)
    return times_s, check_poses(str(path), poses), is_valid


class _GazeLayout(NamedTuple):
    """Columns of u and v in a header that is known, what they mean, and whose it is."""

    u: str
    v: str
    coordinates: Literal["normalised", "pixel"] = "normalised"
    origin: Literal["top_left", "bottom_left"] = "top_left"


_GAZE_LAYOUTS = (
    _GazeLayout("u", "v"),
    _GazeLayout("x", "y"),
    _GazeLayout("gaze x [px]", "gaze y [px]", "pixel"),  # Pupil Labs Neon and Invisible, from the Cloud
    _GazeLayout("norm_pos_x", "norm_pos_y", origin="bottom_left"),  # Pupil Core's export
    _GazeLayout("gaze point x [mcs px]", "gaze point y [mcs px]", "pixel"),  # Tobii Pro Lab, glasses
    _GazeLayout("gaze point x", "gaze point y", "pixel"),  # Tobii Pro Lab
    _GazeLayout("gazepointx (mcspx)", "gazepointy (mcspx)", "pixel"),  # Tobii Studio
    _GazeLayout("gaze2d_x", "gaze2d_y"),  # Tobii Glasses 3, flattened
    _GazeLayout("gaze2d x", "gaze2d y"),
)
# Samples are valid when one of the eyes is; Tobii Studio counts from 0 (certain) to 4 (not found).
_EYES_VALID = (("validity left", "validity right"), ("validityleft", "validityright"))
_ARIA_PITCH = "pitch_rads_cpf"


def read_gaze(
    folder: Path, path: Path | None, wanted: GazeSettings, rgb: Stream | None, intrinsics: Intrinsics | None
) -> Stream | None:
    """Gaze (T, 2) in [0, 1] of the picture; validity is that of its own columns, and of what the file says of them."""
    if path is None:
        return None
    if path.suffix.lower() == ".npz":
        track = read_track(path, stream="gaze", columns=wanted.columns, unit=wanted.time_unit, offset_s=wanted.offset_s)
        if track.values.shape[1:] != (2,):
            raise ValueError(f"{path}: found values {track.values.shape}, wanted (T, 2): `u` and `v`")
        _refuse_without_effect(path, wanted, ("min_confidence", "camera_from_eyes"), "an npz holds u, v and valid")
        gaze, is_valid, times_s, layout = track.values, track.is_valid, track.times_s, _GazeLayout("u", "v")
    else:
        table = Table(path)
        if "sensor" in table:  # Tobii Pro Lab: rows of the gyroscope between those of the eyes
            table.keep([name.lower() in ("", "eye tracker") for name in table.text("sensor")])
        times_s = table.times_s(
            column=wanted.time_column,
            unit=wanted.time_unit,
            offset_s=wanted.offset_s,
            stream="gaze",
            say="gaze.time_unit",
        )
        is_valid = _stated_validity(table, wanted)
        if _ARIA_PITCH in table and wanted.columns is None:
            gaze, is_seen = _gaze_from_angles(folder, table, wanted, intrinsics)
            return Stream(gaze, is_valid & is_seen, times_s, "image")
        layout = _layout(table, wanted)
        gaze = np.stack([table.numbers(layout.u), table.numbers(layout.v)], axis=1)
        is_valid &= np.isfinite(gaze).all(axis=1)
    _refuse_without_effect(path, wanted, ("camera_from_eyes",), "it turns gaze given as angles")
    is_pixel = (wanted.coordinates or layout.coordinates) == "pixel"
    if is_pixel and is_valid.sum() >= _ENOUGH and (most := np.abs(gaze[is_valid]).max()) <= 1:
        raise ValueError(
            f"{path}: found gaze of {most:.6g} at most, wanted pixels; for shares of the picture "
            "gaze.coordinates: normalised"
        )
    if (wanted.origin or layout.origin) == "bottom_left":
        height = _gaze_picture_size(folder, wanted, rgb, intrinsics)[1] - 1 if is_pixel else 1.0
        gaze = np.stack([gaze[:, 0], height - gaze[:, 1]], axis=1)
    if is_pixel:
        gaze = gaze_from_pixels(gaze, *_gaze_picture_size(folder, wanted, rgb, intrinsics))
    elif is_valid.any() and (usual := np.median(np.abs(gaze[is_valid]), axis=0).max()) > _LARGEST_NORMALISED:
        raise ValueError(
            f"{path}: found gaze of {usual:.6g} (median), wanted [0, 1]; for pixels gaze.coordinates: pixel"
        )
    return Stream(np.where(is_valid[:, None], gaze, 0.0), is_valid, times_s, "image")


def _layout(table: Table, wanted: GazeSettings) -> _GazeLayout:
    if wanted.columns:
        return _GazeLayout(*(name.lower() for name in wanted.columns))
    found = next((layout for layout in _GAZE_LAYOUTS if layout.u in table and layout.v in table), None)
    if found is None:
        raise ValueError(
            f"{table.path}: found columns {table.header}, wanted `u` and `v`, or those of a known header; "
            "gaze.columns names others (rays in the world's frame must be projected first)"
        )
    return found


def _stated_validity(table: Table, wanted: GazeSettings) -> np.ndarray:
    """What columns of validity, wear and confidence say of the rows (T,).

    Raises ValueError for a column that says it in another way, unless gaze.columns chooses the columns.
    """
    known = {*VALID_NAMES, "validity", "worn", "confidence"}.union(*_EYES_VALID)
    unknown = [name for name in table.header if re.search("valid|confidence", name) and name not in known]
    if unknown and wanted.columns is None:
        raise ValueError(
            f"{table.path}: column {unknown[0]!r} may say which samples are valid, wanted it as `valid` (1 or 0) or "
            "`confidence` (0 to 1); gaze.columns: [u, v] passes over it"
        )
    is_valid = valid_rows(table)
    if "validity" in table:
        is_valid &= np.nan_to_num(table.numbers("validity")) > 0
    for eyes in _EYES_VALID:
        if set(eyes) <= set(table.header):
            is_valid &= np.logical_or(*(_is_eye_valid(table, eye) for eye in eyes))
    if "worn" in table:
        is_valid &= np.nan_to_num(table.numbers("worn"), nan=1.0) > 0
    if "confidence" in table:
        least = _MIN_CONFIDENCE if wanted.min_confidence is None else wanted.min_confidence
        confidence = np.nan_to_num(table.numbers("confidence"))
        if len(confidence) and confidence.max() > 1 and least <= 1:
            raise ValueError(
                f"{table.path}: found confidence up to {confidence.max():.6g}, wanted 0 to 1; say gaze.min_confidence "
                "in the unit of the column"
            )
        is_valid &= confidence >= least
    else:
        _refuse_without_effect(table.path, wanted, ("min_confidence",), "there is no column `confidence`")
    return is_valid


def _is_eye_valid(table: Table, name: str) -> np.ndarray:
    cells = table.text(name)
    if any(cell.lower() in ("valid", "invalid") for cell in cells):
        return np.array([cell.lower() == "valid" for cell in cells])
    return np.nan_to_num(table.numbers(name), nan=4.0) <= 1


def _gaze_from_angles(
    folder: Path, table: Table, wanted: GazeSettings, intrinsics: Intrinsics | None
) -> tuple[np.ndarray, np.ndarray]:
    """Gaze (T, 2) and where it is seen (T,) of Aria's angles about the point between the eyes."""
    if wanted.camera_from_eyes is None or intrinsics is None:
        raise ValueError(
            f"{table.path}: found Aria's gaze as angles; wanted gaze.camera_from_eyes and intrinsics in "
            f"{SETTINGS_FILE}, or the whole MPS folder given to convert_samples, which knows them"
        )
    yaw, pitch, depth_m = gaze_angles(table)
    is_known = np.isfinite(yaw) & np.isfinite(pitch)
    cam_from_eyes = transform_matrix(wanted.camera_from_eyes, where=f"{folder / SETTINGS_FILE}: gaze.camera_from_eyes")
    gaze, is_seen = gaze_from_yaw_pitch(
        np.where(is_known, yaw, 0.0),
        np.where(is_known, pitch, 0.0),
        depth_m,
        cam_from_cpf=cam_from_eyes,
        intrinsics=intrinsics,
    )
    is_seen &= is_known
    return np.where(is_seen[:, None], gaze, 0.0), is_seen


def _gaze_picture_size(
    folder: Path, wanted: GazeSettings, rgb: Stream | None, intrinsics: Intrinsics | None
) -> tuple[int, int]:
    """Width and height of the picture that gaze in pixels belongs to."""
    if wanted.width and wanted.height:
        return wanted.width, wanted.height
    if intrinsics is not None:
        return intrinsics.width, intrinsics.height
    if rgb is not None:
        return rgb.values.width, rgb.values.height
    raise ValueError(f"{folder / SETTINGS_FILE}: gaze in pixels needs gaze.width and gaze.height, found neither")


def _refuse_without_effect(path: Path, wanted: Any, keys: tuple[str, ...], why: str) -> None:
    for key in keys:
        if getattr(wanted, key) is not None:
            raise ValueError(f"{path}: {key} of {SETTINGS_FILE} has no effect here: {why}")


def read_further_track(name: str, path: Path, wanted: TrackSettings) -> Stream:
    if path.suffix.lower() not in (*TABLE_SUFFIXES, ".npz"):
        raise ValueError(f"{path}: found suffix {path.suffix!r}, wanted one of {[*TABLE_SUFFIXES, '.npz']}")
    track = read_track(
        path,
        stream=f"tracks.{name}",
        columns=wanted.columns,
        time_column=wanted.time_column,
        unit=wanted.time_unit,
        offset_s=wanted.offset_s,
    )
    return Stream(track.values, track.is_valid, track.times_s, wanted.unit)


def read_clock(
    folder: Path,
    name: str,
    count: int,
    wanted: PictureSettings | DepthSettings | CameraSettings,
    *,
    path: Path,
    own_times_s: np.ndarray | None = None,
    stream: str | None = None,
    is_own_in_unit: bool = False,
    ticks: np.ndarray | None = None,
) -> np.ndarray:
    """Times (T,), offset included: `<name>_timestamps.txt`, else the stated rate, else the file's own, else 30 Hz.

    own_times_s      the file's own, with the offset; is_own_in_unit: read in the stated unit
    stream           its key in the settings, by default `name`
    ticks            (T,) where frames are missing: how many periods of the rate each is after the first
    """
    stream = stream or name
    stamps = named(folder, f"{name}_timestamps.txt")
    if stamps.is_file():
        if wanted.rate_hz is not None:
            raise ValueError(f"{stamps}: {stream}.rate_hz has no effect beside it; remove one of them")
        times_s = read_times(stamps, wanted.time_unit, stream=stream, offset_s=wanted.offset_s)
        if len(times_s) != count:
            raise ValueError(f"{stamps}: found {len(times_s)} times, wanted {count} as {path} has frames")
        return times_s
    is_own = wanted.rate_hz is None and own_times_s is not None
    if wanted.time_unit is not None and not (is_own and is_own_in_unit):
        raise ValueError(f"{path}: {stream}.time_unit has no effect: there is no {stamps.name}")
    if is_own:
        return np.asarray(own_times_s, dtype=np.float64)
    ticks = np.arange(count) if ticks is None else ticks
    return ticks / (wanted.rate_hz or DEFAULT_RATE_HZ) + wanted.offset_s
