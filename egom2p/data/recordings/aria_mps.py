"""Output files of Project Aria's machine perception services (MPS): trajectory, online calibration, eye gaze.

Times in the files are microseconds of device time. Frames: device; camera-rgb as stored and upright (OpenCV axes); CPF,
between the eyes (x left, y up, z forward). Gen 1 stores its pictures turned (x down, y left, z forward), Gen 2 upright:
of Gen 2 that is public tools' word, so poses whose camera would lie on its side are refused (gravity is in the file).
Where Gen 2's eyes are is in the VRS file alone. T poses, G gaze samples, K calibrations, H samples of hands.
Formats: https://facebookresearch.github.io/projectaria_tools (MPS data formats).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.resampling import nearest_index
from egom2p.data.recordings.reader_parts import pose_stream, track_stream
from egom2p.data.recordings.track_files import Table, files_below, read_text
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
_MPS_FOLDERS = ("mps", "slam", "trajectory")
# Personal calibration first; then with vergence depth; then the older layouts.
GAZE_FILES = (
    "personalized_eye_gaze.csv",
    "general_eye_gaze.csv",
    "generalized_gaze.csv",
    "generalized_eye_gaze.csv",
    "eyegaze.csv",
)
HAND_FILES = ("hand_tracking_results.csv", "wrist_and_palm_poses.csv")
_CAMERA = "camera-rgb"
_NUM_LANDMARKS = 21  # tips thumb to little, wrist, 2 of the thumb, 3 of each finger, palm
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
    notes: tuple[str, ...] = ()

    def streams(self, where: Path) -> dict[str, Stream]:
        """`camera`, and `gaze` where there is some."""
        streams = {"camera": pose_stream(self.pose_times_s, self.world_from_cam, where=where)}
        if self.gaze is not None:
            streams["gaze"] = track_stream(
                self.gaze_times_s, self.gaze, "image", where=self.files[-1], is_valid=self.gaze_is_valid
            )
        return streams


@dataclass(frozen=True)
class AriaCalibration:
    """Online calibration of the RGB camera: times (K,), device_from_cam (K, 4, 4) of the picture as stored, 15 or 16
    parameters each, and width and height where the file or the device says them.
    """

    times_us: np.ndarray
    device_from_cam: np.ndarray
    parameters: list[list[float]]
    is_turned: bool = True
    size: tuple[int, int] | None = None

    @property
    def device_from_upright(self) -> np.ndarray:
        return self.device_from_cam @ CLOCKWISE_TURN if self.is_turned else self.device_from_cam

    def camera(self, row: int, size: tuple[int, int]) -> Intrinsics:
        """Of the upright picture, whose stored one has the width and height `size`."""
        stored = fisheye624(self.parameters[row], *size)
        return turned_clockwise(stored) if self.is_turned else stored


def mps_sequences(source: Path) -> list[Path]:
    """Folders below a source (or itself) that hold one recording each: those above the folders that MPS makes.

    Raises ValueError where one holds two trajectories.
    """
    folders: dict[Path, Path] = {}
    for path in files_below(source, (_TRAJECTORY,)):
        folder = path.parent
        while folder != source and folder.name.lower().startswith(_MPS_FOLDERS):
            folder = folder.parent
        if folder in folders:
            raise ValueError(f"{folder}: found trajectories {folders[folder]} and {path}, wanted one of a recording")
        folders[folder] = path
    return list(folders)


def read_mps(
    folder: Path,
    *,
    image_size: tuple[int, int] | int | None = None,
    device_size: str = "L",
    device_from_cpf: np.ndarray | None = None,
    calibration: AriaCalibration | None = None,
) -> MpsRecording:
    """Camera poses and gaze of one recording's MPS folder (files may lie in subfolders).

    Raises ValueError when a file is there twice, and when poses would have the camera lie on its side.

    image_size       width and height (or the side) of the stored picture; by default what the calibration says, of
                     Gen 1 the mode (1408 or 2880) whose centre it is nearest to
    device_size      "L" or "S": which frame of Gen 1 the design position of the eyes belongs to
    device_from_cpf  (4, 4), where the eyes are, as a VRS file says it; without it Gen 2 gives no gaze
    calibration      in place of the online one, which need not be there then
    """
    if device_size not in _DEVICE_FROM_CPF_POSITION:
        raise ValueError(f"device_size must be one of {sorted(_DEVICE_FROM_CPF_POSITION)}, got {device_size!r}")
    trajectory, calibration_path = find_file(folder, (_TRAJECTORY,)), find_file(folder, (_CALIBRATION,))
    if trajectory is None or (calibration is None and calibration_path is None):
        raise ValueError(f"{folder}: found no {_TRAJECTORY if trajectory is None else _CALIBRATION}")
    if calibration is None:
        calibration = read_calibration(calibration_path)
    else:
        calibration_path = None
    times_us, world_from_device = read_device_poses(trajectory)
    world_from_cam = world_from_device @ calibration.device_from_upright[nearest_index(calibration.times_us, times_us)]
    _check_upright(trajectory, world_from_cam)
    size = _stored_size(calibration_path or folder, calibration, image_size)
    gaze_path, notes = find_file(folder, GAZE_FILES), ()
    if device_from_cpf is None and calibration.is_turned:
        device_from_cpf = design_device_from_cpf(device_size)
    times_and_gaze = (None, None, None)
    if gaze_path is not None and device_from_cpf is None:
        notes = (f"{gaze_path.name} is left out: where the eyes of Gen 2 are is in the VRS file, which is not there",)
        gaze_path = None
    elif gaze_path is not None:
        times_and_gaze = read_gaze_angles(gaze_path, calibration, size, device_from_cpf)
    return MpsRecording(
        times_us * _SECONDS,
        world_from_cam,
        *times_and_gaze,
        intrinsics=calibration.camera(0, size),
        world_from_device=world_from_device,
        files=tuple(path for path in (trajectory, calibration_path, gaze_path) if path is not None),
        notes=notes,
    )


def read_hands(path: Path, device_from_cam: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Times (H,) seconds, and of each hand points (H, 21 x 3) metres in the upright camera with validity (H,).

    A file of older versions has wrists and palms alone, in that order: (H, 2 x 3). A confidence of -1 is a hand not
    seen.
    """
    header = read_text(path).partition("\n")[0].strip().split(",")
    hands = {}
    for side in ("left", "right"):
        names = [f"t{{}}_{side}_landmark_{number}_device" for number in range(_NUM_LANDMARKS)]
        if names[0].format("x") not in header:
            names = [f"t{{}}_{side}_wrist_device", f"t{{}}_{side}_palm_device"]
        wanted = [name.format(axis) for name in names for axis in "xyz"]
        columns = _read_columns(path, ["tracking_timestamp_us", f"{side}_tracking_confidence", *wanted])
        points = np.stack([columns[name] for name in wanted], axis=1).reshape(-1, len(names), 3)
        cam_from_device = inverse_poses(device_from_cam)
        in_cam = points @ cam_from_device[:3, :3].T + cam_from_device[:3, 3]
        hands[side] = in_cam.reshape(len(points), -1), columns[f"{side}_tracking_confidence"] >= 0
    return columns["tracking_timestamp_us"] * _SECONDS, hands


def _check_upright(path: Path, world_from_cam: np.ndarray) -> None:
    """Raise ValueError where gravity, on the mean, lies more along the picture's x axis than down along y."""
    gravity_xyz = [f"gravity_{axis}_world" for axis in "xyz"]
    columns = _read_columns(path, ["tracking_timestamp_us"], optional=gravity_xyz)
    if not set(gravity_xyz) <= set(columns):
        return
    gravity = np.stack([columns[name] for name in gravity_xyz], axis=1)
    x, y, _ = (np.einsum("tji,tj->ti", world_from_cam[:, :3, :3], gravity) / 9.81).mean(axis=0)
    if max(abs(x), -y) > max(y, 0.0) + 0.2:  # a glance to the floor has neither
        raise ValueError(
            f"{path}: gravity lies at ({x:.2f}, {y:.2f}) g along x and y of the picture, wanted mostly down (y): the "
            "camera would lie on its side, or its poses are another device's"
        )


def _stored_size(path: Path, calibration: AriaCalibration, image_size: tuple[int, int] | int | None) -> tuple[int, int]:
    if image_size is not None:
        return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if calibration.size is not None:
        return calibration.size
    if not calibration.is_turned:
        raise ValueError(f"{path}: says no size of the pictures of Aria Gen 2; wanted source.image_size=[width,height]")
    centre = calibration.parameters[0][1 if len(calibration.parameters[0]) == 15 else 2]
    return (min(_IMAGE_SIZES, key=lambda size: abs(size / 2 - centre)),) * 2


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
    """Raises ValueError naming the line."""
    times_us, rotations, positions, parameters, size = [], [], [], [], None
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
            camera = next(camera for camera in entry["CameraCalibrations"] if camera["Label"] == _CAMERA)
            labels = [camera["Label"] for camera in entry["CameraCalibrations"]]
            size = size or _size_in(entry, labels)
            pose = camera["T_Device_Camera"]
            w, xyz = pose["UnitQuaternion"]
            times_us.append(float(entry["tracking_timestamp_us"]))
            positions.append(pose["Translation"])
            rotations.append([*xyz, w])
            parameters.append([float(value) for value in camera["Projection"]["Params"]])
            if len(parameters[-1]) not in (15, 16):
                raise ValueError(f"{len(parameters[-1])} parameters, wanted 15 or 16")
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, StopIteration) as error:
            raise ValueError(f"{path}, line {line}: not a calibration of {_CAMERA}: {error!r}") from error
    if not times_us:
        raise ValueError(f"{path}: found no calibration of {_CAMERA}, wanted at least one line")
    poses = poses_from_parts(matrix_from_quaternion(np.array(rotations)), np.array(positions))
    return AriaCalibration(np.array(times_us), poses, parameters, _is_gen1(labels, parameters[0]), size)


def _is_gen1(labels: list[str], parameters: list[float]) -> bool:
    """By the names of the other cameras, and by Gen 1's square picture."""
    centre = parameters[1:3] if len(parameters) == 15 else parameters[2:4]
    is_square = abs(centre[0] - centre[1]) <= _LARGEST_OFF_CENTRE * max(centre)
    return is_square and not any("front" in label or "side" in label for label in labels)


def _size_in(entry: dict, labels: list[str]) -> tuple[int, int] | None:
    """Width and height of camera-rgb in a line of MPS 1.1: by name, or in the order of its cameras."""
    sizes = entry.get("ImageSizes")
    found = sizes.get(_CAMERA) if isinstance(sizes, dict) else sizes
    if isinstance(sizes, list) and len(sizes) == len(labels):
        found = sizes[labels.index(_CAMERA)]
    is_size = isinstance(found, list) and len(found) == 2 and all(isinstance(side, int | float) for side in found)
    return (int(found[0]), int(found[1])) if is_size else None


def read_gaze_angles(
    path: Path, calibration: AriaCalibration, size: tuple[int, int], device_from_cpf: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (G,) seconds, gaze (G, 2) and validity (G,); a missing depth counts as 1 m, as in Aria's own tools.

    size: of the stored picture.
    """
    table = Table(path)
    if "left_pitch_rads_cpf" in table and calibration.is_turned:
        raise ValueError(f"{path}: found a pitch of each eye: gaze of Aria Gen 2; wanted that of Gen 1, as its cameras")
    times_us, (yaw, pitch, depth_m) = table.numbers("tracking_timestamp_us"), gaze_angles(table)
    is_known = np.isfinite(yaw) & np.isfinite(pitch)
    gaze, is_valid = np.zeros((len(yaw), 2)), np.zeros(len(yaw), dtype=bool)
    nearest = nearest_index(calibration.times_us, times_us)
    for row in np.unique(nearest[is_known]):  # one camera per calibration, the gaze samples of a calibration together
        mine = is_known & (nearest == row)
        cam_from_cpf = inverse_poses(calibration.device_from_upright[row]) @ device_from_cpf
        camera = calibration.camera(row, size)
        gaze[mine], is_valid[mine] = gaze_from_yaw_pitch(
            yaw[mine], pitch[mine], depth_m[mine], cam_from_cpf=cam_from_cpf, intrinsics=camera
        )
    return times_us * _SECONDS, gaze, is_valid


def gaze_angles(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Yaw and pitch (G,) in radians about the point between the eyes (nan: unknown), and metres along them (G,)."""
    if "yaw_rads_cpf" in table:
        yaw = table.numbers("yaw_rads_cpf")
    else:
        yaw = yaw_of_both_eyes(table.numbers("left_yaw_rads_cpf"), table.numbers("right_yaw_rads_cpf"))
    depth_m = np.nan_to_num(table.numbers("depth_m")) if "depth_m" in table else np.zeros(len(table))
    return yaw, table.numbers("pitch_rads_cpf"), np.where(depth_m > 0, depth_m, _CUSTOMARY_GAZE_DEPTH_M)


def _read_columns(path: Path, wanted: list[str], optional: list[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a csv by name; an empty cell is nan. Raises ValueError naming file, line and column."""
    table = Table(path)
    missing = [name for name in wanted if name not in table]
    if missing or not len(table):
        raise ValueError(f"{path}: found columns {table.header[:12]} and {len(table)} rows, wanted {missing or wanted}")
    return {name: table.numbers(name) for name in (*wanted, *(optional or ())) if name in table}


def design_device_from_cpf(device_size: str) -> np.ndarray:
    rotation = nearest_rotation(np.array(_DEVICE_FROM_CPF_ROTATION))
    return poses_from_parts(rotation, np.array(_DEVICE_FROM_CPF_POSITION[device_size]))


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that lies anywhere below a folder. Raises ValueError when it lies there twice."""
    for name in names:
        found = list(files_below(folder, (name,)))
        if len(found) > 1:
            listed = [str(path.relative_to(folder)) for path in found[:10]]
            raise ValueError(f"{folder}: found {name} of several sequences {listed}, wanted one")
        if found:
            return found[0]
    return None
