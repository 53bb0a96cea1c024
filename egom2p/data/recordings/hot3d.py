"""HOT3D: recordings of Aria and Quest 3 headsets over objects, with hands.

    <recording>/ metadata.json  recording.vrs  headset_trajectory.csv  masks/  mano_hand_pose_trajectory.jsonl
        Aria: mps/slam/{closed_loop_trajectory.csv, online_calibration.jsonl}  mps/eye_gaze/*.csv
        Quest: camera_models.json  images/<stream>/ (pictures taken out of the VRS file, in order)

`headset_trajectory.csv` is world_from_device, quaternions w first, at TIME_CODE nanoseconds. MPS (world z up) is in
device microseconds. Aria's clock here is the device's, its poses those of MPS, of which the headset trajectory repeats
a row each: that tells how far the two clocks are apart, for the hands. Quest's world is y up, its clock TIME_CODE, and
its recording.vrs is not one of Aria's, so that only pictures taken out of it are read. Both cameras are stored turned.

Conventions of headset, cameras and objects are confirmed on a real Quest recording (objects fall into their boxes), MPS
on real files. Not confirmed: the layout of mano_hand_pose_trajectory.jsonl (keys, hand 0 the left one, quaternions w
first, wrists in the world, TIME_CODE). Without `source.hands` it is left out, with a note; with it, `hands` (T, 18) is
per hand, left then right, the wrist's position and the first two columns of its rotation, in the camera (OpenCV axes,
metres), valid where both are known. Format: github.com/facebookresearch/hot3d.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.image_files import RgbImages, list_images
from egom2p.data.clips.upright import CLOCKWISE, TurnedFrames
from egom2p.data.recordings.aria_mps import read_mps
from egom2p.data.recordings.aria_vrs import RGB_STREAM, VrsFrames, read_vrs_camera
from egom2p.data.recordings.reader_parts import frame_stream, pose_stream, read_json, track_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import Table, read_text
from egom2p.geometry import (
    CLOCKWISE_TURN,
    fisheye624,
    interpolate_poses,
    inverse_poses,
    matrix_from_quaternion,
    poses_from_parts,
    seconds_from_stamps,
    stamps_from_text,
    turned_clockwise,
)

_HANDS = "mano_hand_pose_trajectory.jsonl"
_TRAJECTORY = "headset_trajectory.csv"
_MAX_POSE_GAP_S = 0.2
_SAME_POSE_M = 1e-4
_CLOCK_SPREAD_S = 2e-3


@strict
class Hot3dAriaSource(FolderSource):
    """pictures: RGB out of recording.vrs. hands: read them as this file has their layout, which is not confirmed.

    device_size: see `aria_mps.read_mps`.
    """

    kind: Literal["hot3d_aria"]
    pictures: bool = True
    hands: bool = False
    device_size: Literal["L", "S"] = "L"


@strict
class Hot3dQuestSource(FolderSource):
    """camera: stream of the picture, camera-slam-left or camera-slam-right. hands: as for Aria."""

    kind: Literal["hot3d_quest"]
    hands: bool = False
    camera: Literal["1201-1", "1201-2"] = "1201-1"


class Hot3dAriaReader(FormatReader):
    source, what = Hot3dAriaSource, "HOT3D, Aria headset"
    groups = r"(?P<participant>P\d+)_"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = folders_with(root, "metadata.json", "mps/slam/closed_loop_trajectory.csv")
        return {name: path for name, path in found.items() if _headset(path) == "Aria"}

    def open(self, name: str, path: Path) -> Opened:
        vrs = path / "recording.vrs"
        has_vrs = self.config.pictures and vrs.is_file()
        eyes = read_vrs_camera(vrs).device_from_cpf if has_vrs else None
        mps = read_mps(path / "mps", device_size=self.config.device_size, device_from_cpf=eyes)
        streams = mps.streams(path / "mps")
        used = [*mps.files, path / "metadata.json"]
        if has_vrs:
            frames = VrsFrames(vrs, RGB_STREAM)
            streams["rgb"] = frame_stream(frames, frames.times_s, "uint8", where=frames.path)
            used.append(frames.path)
        if self.config.hands and (path / _HANDS).is_file() and (path / _TRAJECTORY).is_file():
            times_s, world_from_device = _headset_poses(path / _TRAJECTORY)
            device_times_s, device_poses = mps.pose_times_s, mps.world_from_device
            offset_s = _clock_offset(path / _TRAJECTORY, times_s, world_from_device, device_times_s, device_poses)
            streams["hands"] = _hands(path / _HANDS, streams["camera"], offset_s=offset_s)
            used += [path / _HANDS, path / _TRAJECTORY]
        return Opened(streams, mps.intrinsics, used, _hands_note(self.config, path))


class Hot3dQuestReader(FormatReader):
    source, what = Hot3dQuestSource, "HOT3D, Quest 3 headset"
    groups = r"(?P<participant>P\d+)_"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = folders_with(root, "metadata.json", "camera_models.json", _TRAJECTORY)
        return {name: path for name, path in found.items() if _headset(path) == "Quest3"}

    def open(self, name: str, path: Path) -> Opened:
        intrinsics, device_from_cam = _quest_camera(path / "camera_models.json", self.config.camera)
        times_s, world_from_device = _headset_poses(path / _TRAJECTORY)
        world_from_cam = world_from_device @ device_from_cam @ CLOCKWISE_TURN
        streams = {"camera": pose_stream(times_s, world_from_cam, where=path / _TRAJECTORY)}
        used = [path / "metadata.json", path / "camera_models.json", path / _TRAJECTORY]
        mask = path / "masks" / "mask_headset_pose_available.csv"
        if mask.is_file():
            stamps, is_known = _mask(mask, self.config.camera)
            camera = streams["camera"]
            is_valid = ~np.isin(np.round(times_s, 6), np.round(stamps[~is_known], 6))
            streams["camera"] = replace(camera, is_valid=camera.is_valid & is_valid)
            used.append(mask)
        folder = path / "images" / self.config.camera
        if folder.is_dir():
            if not mask.is_file():
                raise ValueError(f"{mask}: no such file; the times of the pictures in {folder} are in it")
            frames = TurnedFrames(RgbImages(list_images(folder), as_stored=True), CLOCKWISE[90])
            streams["rgb"] = frame_stream(frames, stamps, "uint8", where=folder)
            used.append(folder)
        if self.config.hands and (path / _HANDS).is_file():
            streams["hands"] = _hands(path / _HANDS, streams["camera"], offset_s=0.0)
            used.append(path / _HANDS)
        return Opened(streams, turned_clockwise(intrinsics), used, _hands_note(self.config, path))


def _hands_note(config: Hot3dAriaSource | Hot3dQuestSource, path: Path) -> tuple[str, ...]:
    is_left = not config.hands and (path / _HANDS).is_file()
    return (f"{_HANDS} is left out: its layout is not confirmed, source.hands=true reads it",) if is_left else ()


def _headset(path: Path) -> str:
    try:
        return str(read_json(path / "metadata.json").get("headset"))
    except (ValueError, AttributeError):
        return ""


def _headset_poses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) of TIME_CODE in seconds and world_from_device (T, 4, 4)."""
    table = Table(path)
    times_s = seconds_from_stamps(stamps_from_text(table.text("timestamp[ns]")), "ns")
    return times_s, _poses_of(table)


def _poses_of(table: Table) -> np.ndarray:
    positions = np.stack([table.numbers(f"t_wo_{axis}[m]") for axis in "xyz"], axis=1)
    quaternions = np.stack([table.numbers(f"q_wo_{axis}") for axis in "xyzw"], axis=1)
    return poses_from_parts(matrix_from_quaternion(quaternions), positions)


def _mask(path: Path, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) seconds of a stream's frames and the mask (T,) bool."""
    table = Table(path)
    mine = np.array([name == stream for name in table.text("stream_id")])
    stamps = seconds_from_stamps(stamps_from_text(table.text("timestamp[ns]")), "ns")
    return stamps[mine], table.numbers("mask")[mine] > 0


def _quest_camera(path: Path, stream: str) -> tuple[Intrinsics, np.ndarray]:
    """Intrinsics of the picture as stored, and device_from_cam (4, 4)."""
    try:
        camera = next(camera for camera in read_json(path) if camera["stream_id"] == stream)
        pose = camera["T_Device_Camera"]
        w, *xyz = pose["quaternion_wxyz"]
        intrinsics = fisheye624(camera["projectionParams"], int(camera["imageWidth"]), int(camera["imageHeight"]))
        rotation = matrix_from_quaternion(np.array([*xyz, w], dtype=np.float64))
        return intrinsics, poses_from_parts(rotation, np.array(pose["translation_xyz"], dtype=np.float64))
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"{path}: not a list of cameras with {stream}: {error!r}") from None


def _clock_offset(
    path: Path, times_s: np.ndarray, poses: np.ndarray, device_times_s: np.ndarray, device_poses: np.ndarray
) -> float:
    """Seconds to add to TIME_CODE for device time: every headset pose is a row of MPS (median over 64 of them)."""
    offsets = []
    for row in np.unique(np.linspace(0, len(times_s) - 1, 64).astype(int)):
        distance_m = np.linalg.norm(device_poses[:, :3, 3] - poses[row, :3, 3], axis=1)
        nearest = int(np.argmin(distance_m))
        if distance_m[nearest] < _SAME_POSE_M:
            offsets.append(device_times_s[nearest] - times_s[row])
    spread_s = float(np.median(np.abs(np.array(offsets) - np.median(offsets)))) if offsets else np.inf
    if spread_s > _CLOCK_SPREAD_S:
        raise ValueError(
            f"{path}: found {len(offsets)} poses that are in mps/slam, at clocks {spread_s:.3g} s apart; wanted the "
            "same poses at one offset"
        )
    return float(np.median(offsets))


def _hands(path: Path, camera: Stream, *, offset_s: float) -> Stream:
    """Both wrists in the camera (T, 18)."""
    lines = [(n, text) for n, text in enumerate(read_text(path).splitlines(), start=1) if text.strip()]
    stamps, world_from_wrist = [], np.full((len(lines), 2, 4, 4), np.nan)
    for row, (line, text) in enumerate(lines):
        try:
            entry = json.loads(text)
            stamps.append(int(entry["timestamp_ns"]))
            for hand, side in enumerate("01"):  # 0 is left
                if side in entry["hand_poses"]:
                    world_from_wrist[row, hand] = _wrist(entry["hand_poses"][side]["wrist_xform"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {line}: not the poses of hands at a time: {error!r}") from None
    times_s = seconds_from_stamps(np.array(stamps, dtype=np.int64), "ns", offset_s=offset_s)
    world_from_cam, is_seen = interpolate_poses(
        camera.times_s, camera.values, times_s, max_gap_s=_MAX_POSE_GAP_S, is_valid=camera.is_valid
    )
    cam_from_wrist = inverse_poses(world_from_cam)[:, None] @ world_from_wrist
    parts = [cam_from_wrist[..., :3, 3], cam_from_wrist[..., :3, 0], cam_from_wrist[..., :3, 1]]
    values = np.concatenate(parts, axis=-1).reshape(len(times_s), 18)
    return track_stream(times_s, values, "m, in the camera", where=path, is_valid=is_seen)


def _wrist(pose: Any) -> np.ndarray:
    w, *xyz = pose["q_wxyz"]
    return poses_from_parts(matrix_from_quaternion(np.array([*xyz, w], float)), np.array(pose["t_xyz"], float))
