"""Output files of Project Aria's machine perception services (MPS): trajectory, online calibration, eye gaze.

Times in the files are microseconds of device time. Frames: device; camera-rgb as stored (x down, y left, z forward)
and upright (OpenCV axes); CPF, between the eyes (x left, y up, z forward). T poses, G gaze samples, K calibrations.
Formats: https://facebookresearch.github.io/projectaria_tools (MPS data formats).
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egom2p.contracts import Intrinsics
from egom2p.data.clips.resampling import nearest_index
from egom2p.data.recordings.track_files import read_text
from egom2p.geometry import (
    CLOCKWISE_TURN,
    fisheye624,
    gaze_from_yaw_pitch,
    inverse_poses,
    matrix_from_quaternion,
    nearest_rotation,
    poses_from_parts,
    turned_clockwise,
    yaw_of_both_eyes,
)

_TRAJECTORY = "closed_loop_trajectory.csv"
_CALIBRATION = "online_calibration.jsonl"
# Personal calibration first; then with vergence depth; then the older layouts.
GAZE_FILES = (
    "personalized_eye_gaze.csv",
    "general_eye_gaze.csv",
    "generalized_gaze.csv",
    "generalized_eye_gaze.csv",
    "eyegaze.csv",
)
_CAMERA = "camera-rgb"
_IMAGE_SIZES = (1408, 2880)  # the two modes of the Gen1 RGB camera; the calibration file does not say which
_LARGEST_OFF_CENTRE = 0.15  # Gen 1's square picture has its centre within a few per cent of the middle
_CUSTOMARY_GAZE_DEPTH_M = 1.0
_SECONDS = 1e-6
# Where the CPF sits in a Gen1 device, from the design (CAD); the exact one is only in the recording's VRS file.
_DEVICE_FROM_CPF_ROTATION = (
    (-0.03186, -0.99863, -0.041521),
    (0.793353, 0.0, -0.608761),
    (0.607927, -0.052336, 0.792266),
)
_DEVICE_FROM_CPF_POSITION = {"L": (0.004993, -0.05146, -0.04995), "S": (0.004953, -0.049148, -0.049185)}


@dataclass(frozen=True)
class MpsRecording:
    """world_from_cam (T, 4, 4) and gaze (G, 2) in [0, 1], both of the upright RGB camera; the files they are from."""

    pose_times_s: np.ndarray
    world_from_cam: np.ndarray
    gaze_times_s: np.ndarray | None
    gaze: np.ndarray | None
    gaze_is_valid: np.ndarray | None
    intrinsics: Intrinsics
    world_from_device: np.ndarray
    files: tuple[Path, ...]


@dataclass(frozen=True)
class AriaCalibration:
    """Online calibration of the RGB camera: times (K,), device_from_cam (K, 4, 4), 15 or 16 parameters each."""

    times_us: np.ndarray
    device_from_cam: np.ndarray
    parameters: list[list[float]]


def mps_sequences(source: Path) -> list[Path]:
    """Folders below a source (or itself) that hold one trajectory each: the highest that hold no other's."""
    trajectories = [path for path in sorted(source.rglob(_TRAJECTORY)) if not _is_hidden(path, source)]
    if len(trajectories) == 1:
        return [source]
    folders = []
    for path in trajectories:
        folder = path.parent
        while folder.parent != source and sum(folder.parent in other.parents for other in trajectories) == 1:
            folder = folder.parent
        folders.append(folder)
    return folders


def read_mps(folder: Path, *, image_size: int | None = None, device_size: str = "L") -> MpsRecording:
    """Camera poses and gaze of one sequence's MPS folder (files may lie in subfolders), of a Gen 1 device.

    Raises ValueError when a file is there twice, and for another generation, whose eyes and pictures lie elsewhere.

    image_size    side of the square RGB picture; by default the mode (1408 or 2880) whose centre the calibration is
                  nearest to
    device_size   "L" or "S": which frame the design position of the eyes belongs to
    """
    if device_size not in _DEVICE_FROM_CPF_POSITION:
        raise ValueError(f"device_size must be one of {sorted(_DEVICE_FROM_CPF_POSITION)}, got {device_size!r}")
    trajectory, calibration_path = find_file(folder, (_TRAJECTORY,)), find_file(folder, (_CALIBRATION,))
    if trajectory is None or calibration_path is None:
        raise ValueError(f"{folder}: found no {_TRAJECTORY if trajectory is None else _CALIBRATION}")
    calibration = read_calibration(calibration_path)
    times_us, world_from_device = read_device_poses(trajectory)
    device_from_cam = calibration.device_from_cam[nearest_index(calibration.times_us, times_us)]
    size = image_size or _nearest_size(calibration.parameters[0])
    gaze_path = find_file(folder, GAZE_FILES)
    times_and_gaze = (None, None, None)
    if gaze_path is not None:
        times_and_gaze = read_gaze_angles(gaze_path, calibration, size, design_device_from_cpf(device_size))
    return MpsRecording(
        times_us * _SECONDS,
        world_from_device @ device_from_cam @ CLOCKWISE_TURN,
        *times_and_gaze,
        intrinsics=turned_clockwise(fisheye624(calibration.parameters[0], size, size)),
        world_from_device=world_from_device,
        files=tuple(path for path in (trajectory, calibration_path, gaze_path) if path is not None),
    )


def read_device_poses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) and world_from_device (T, 4, 4)."""
    position = [f"t{axis}_world_device" for axis in "xyz"]
    quaternion = [f"q{axis}_world_device" for axis in "xyzw"]
    columns = _read_columns(path, ["tracking_timestamp_us", *position, *quaternion])
    values = np.stack([columns[name] for name in position + quaternion], axis=1)
    is_bad = ~np.isfinite(values).all(axis=1)
    if is_bad.any():
        raise ValueError(f"{path}, line {int(np.argmax(is_bad)) + 2}: found nan in the pose, wanted numbers")
    return columns["tracking_timestamp_us"], poses_from_parts(matrix_from_quaternion(values[:, 3:]), values[:, :3])


def read_calibration(path: Path) -> AriaCalibration:
    times_us, rotations, positions, parameters = [], [], [], []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
            camera = next(camera for camera in entry["CameraCalibrations"] if camera["Label"] == _CAMERA)
            labels = [camera["Label"] for camera in entry["CameraCalibrations"]]
            pose = camera["T_Device_Camera"]
            w, xyz = pose["UnitQuaternion"]
            times_us.append(float(entry["tracking_timestamp_us"]))
            positions.append(pose["Translation"])
            rotations.append([*xyz, w])
            parameters.append(list(camera["Projection"]["Params"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, StopIteration) as error:
            raise ValueError(f"{path}, line {line}: not a calibration of {_CAMERA}: {error!r}") from error
    if not times_us:
        raise ValueError(f"{path}: found no calibration of {_CAMERA}, wanted at least one line")
    _refuse_other_generations(path, labels, parameters[0])
    poses = poses_from_parts(matrix_from_quaternion(np.array(rotations)), np.array(positions))
    return AriaCalibration(np.array(times_us), poses, parameters)


def _refuse_other_generations(path: Path, labels: list[str], parameters: list[float]) -> None:
    centre = parameters[1:3] if len(parameters) == 15 else parameters[2:4]
    if any("front" in label or "side" in label for label in labels):
        why = f"cameras {labels}"
    elif abs(centre[0] - centre[1]) > _LARGEST_OFF_CENTRE * max(centre):
        why = f"the centre of {_CAMERA} at ({centre[0]:.0f}, {centre[1]:.0f}), so its pictures are not square"
    else:
        return
    raise ValueError(f"{path}: found {why}: a device of another generation; wanted Aria Gen 1")


def read_gaze_angles(
    path: Path, calibration: AriaCalibration, size: int, device_from_cpf: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (G,) seconds, gaze (G, 2) and validity (G,); a missing depth counts as 1 m, as in Aria's own tools."""
    wanted = ["tracking_timestamp_us", "pitch_rads_cpf"]
    columns = _read_columns(
        path,
        wanted,
        optional=[
            *("yaw_rads_cpf", "left_yaw_rads_cpf", "right_yaw_rads_cpf", "depth_m"),
            *("left_pitch_rads_cpf", "right_pitch_rads_cpf"),
        ],
    )
    if {"left_pitch_rads_cpf", "right_pitch_rads_cpf"} <= set(columns):
        raise ValueError(f"{path}: found a pitch of each eye: gaze of Aria Gen 2; wanted that of Gen 1")
    if "yaw_rads_cpf" in columns:
        yaw = columns["yaw_rads_cpf"]
    elif "left_yaw_rads_cpf" in columns and "right_yaw_rads_cpf" in columns:
        yaw = yaw_of_both_eyes(columns["left_yaw_rads_cpf"], columns["right_yaw_rads_cpf"])
    else:
        raise ValueError(f"{path}: found columns {sorted(columns)}, wanted yaw_rads_cpf or that of both eyes")
    times_us, pitch = columns["tracking_timestamp_us"], columns["pitch_rads_cpf"]
    depth_m = np.nan_to_num(columns.get("depth_m", np.zeros(len(yaw))), nan=0.0)
    depth_m = np.where(depth_m > 0, depth_m, _CUSTOMARY_GAZE_DEPTH_M)
    is_known = np.isfinite(yaw) & np.isfinite(pitch)
    gaze, is_valid = np.zeros((len(yaw), 2)), np.zeros(len(yaw), dtype=bool)
    nearest = nearest_index(calibration.times_us, times_us)
    for row in np.unique(nearest[is_known]):  # one camera per calibration, the gaze samples of a calibration together
        mine = is_known & (nearest == row)
        cam_from_cpf = inverse_poses(calibration.device_from_cam[row] @ CLOCKWISE_TURN) @ device_from_cpf
        camera = turned_clockwise(fisheye624(calibration.parameters[row], size, size))
        gaze[mine], is_valid[mine] = gaze_from_yaw_pitch(
            yaw[mine], pitch[mine], depth_m[mine], cam_from_cpf=cam_from_cpf, intrinsics=camera
        )
    return times_us * _SECONDS, gaze, is_valid


def _read_columns(path: Path, wanted: list[str], optional: list[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a csv by name; an empty cell is nan. Raises ValueError naming file, line and column."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error
    header = rows[0] if rows else []
    missing = [name for name in wanted if name not in header]
    if missing or len(rows) < 2:
        raise ValueError(
            f"{path}: found columns {header[:12]} and {max(len(rows) - 1, 0)} rows, wanted {missing or wanted}"
        )
    names = [*wanted, *(name for name in optional or () if name in header)]
    positions = [header.index(name) for name in names]
    table = np.empty((len(rows) - 1, len(names)))
    for line, row in enumerate(rows[1:], start=2):
        try:
            table[line - 2] = [float(row[position]) if row[position].strip() else np.nan for position in positions]
        except (ValueError, IndexError):
            raise ValueError(f"{path}, line {line}: found {row[:8]}, wanted numbers in {names}") from None
    return {name: table[:, i] for i, name in enumerate(names)}


def design_device_from_cpf(device_size: str) -> np.ndarray:
    rotation = nearest_rotation(np.array(_DEVICE_FROM_CPF_ROTATION))
    return poses_from_parts(rotation, np.array(_DEVICE_FROM_CPF_POSITION[device_size]))


def _nearest_size(parameters: list[float]) -> int:
    centre = parameters[1] if len(parameters) == 15 else parameters[2]
    return min(_IMAGE_SIZES, key=lambda size: abs(size / 2 - centre))


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that lies anywhere below a folder. Raises ValueError when it lies there twice."""
    for name in names:
        found = [path for path in sorted(folder.rglob(name)) if not _is_hidden(path, folder)]
        if len(found) > 1:
            listed = [str(path.relative_to(folder)) for path in found[:10]]
            raise ValueError(f"{folder}: found {name} of several sequences {listed}, wanted one")
        if found:
            return found[0]
    return None


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
