"""EgoDex: `<task>/<n>.hdf5` beside `<n>.mp4`; package h5py.

`transforms/camera` (N, 4, 4) is world_from_cam in metres, taken as OpenCV axes as every public reader does (the maker's
word is missing: `source.axes`); row i is frame i of the video, 30 a second. The world is ARKit's, y up, another in each
episode. Joints are a track `body` (N, joints x 3): metres in that world, and `hands` (N, 2 x 25 x 3): left then right,
the wrist and the 24 of the fingers, in the camera's frame (x right, y down, z forward), invalid where a file says a
confidence below `min_confidence` of a wrist. Files without `confidences` are taken at their word. Intrinsics are the
constant of the recording device where `camera/intrinsic` is empty. Format: the data set's README and public readers;
held by a replica, and checked against the video: counts of frames and rows must be equal.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import Share, strict
from egom2p.contracts import Stream
from egom2p.data.clips.video_files import open_video
from egom2p.data.recordings.reader_parts import OPENCV_FROM_OPENGL, frame_stream, lens, needs, pose_stream, track_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, called_by_path
from egom2p.data.recordings.track_files import matching
from egom2p.geometry import inverse_poses

_RATE_HZ = 30.0
_SIDES = ("left", "right")
_CONSTANT = (736.6339, 736.6339, 960.0, 540.0)  # of 1920x1080, for files whose intrinsics are empty
_FINGERS = ("Index", "Middle", "Ring", "Little")
_PARTS = ("Metacarpal", "Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
HAND_JOINTS = (
    "Hand",
    *(f"Thumb{part}" for part in ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")),
    *(f"{finger}Finger{part}" for finger in _FINGERS for part in _PARTS),
)


@strict
class EgoDexSource(FolderSource):
    """EgoDex."""

    kind: Literal["egodex"]
    axes: Literal["opencv", "opengl"] = "opencv"  # of the camera
    min_confidence: Share = 0.0  # of a hand


class EgoDexReader(FormatReader):
    source, what = EgoDexSource, "EgoDex (HDF5 beside mp4)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = matching(root, "*.hdf5", "*/*.hdf5", "*/*/*.hdf5")
        return called_by_path(root, [path for path in found if path.with_suffix(".mp4").is_file()])

    def files(self, name: str) -> Sequence[Path]:
        return (self.paths[name], self.paths[name].with_suffix(".mp4"))

    def open(self, name: str, path: Path) -> Opened:
        h5py: Any = needs("h5py", path)
        video = open_video(path.with_suffix(".mp4"))
        try:
            with h5py.File(path, "r") as held:
                joints = {key: np.array(value, np.float64) for key, value in held["transforms"].items()}
                sure = {key: np.array(value, np.float64) for key, value in held.get("confidences", {}).items()}
                matrix = np.array(held["camera/intrinsic"], np.float64) if "camera/intrinsic" in held else np.zeros(0)
                text = _text(held.attrs)
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{path}: not as EgoDex writes it: {error}") from error
        counts = {key: len(value) for key, value in joints.items()}
        wrong = {key: count for key, count in counts.items() if count != len(video)}
        if "camera" not in joints or wrong:
            raise ValueError(
                f"{path}: found rows {wrong or sorted(counts)[:8]}, wanted a `camera` and {len(video)} rows as frames"
            )
        times_s = np.arange(len(video)) / _RATE_HZ
        world_from_cam = joints.pop("camera")
        if self.config.axes == "opengl":
            world_from_cam = world_from_cam @ OPENCV_FROM_OPENGL
        streams = {
            "rgb": frame_stream(video, times_s, "uint8", where=path),
            "camera": pose_stream(times_s, world_from_cam, where=f"{path}: camera"),
        }
        names = [f"{side}{joint}" for side in ("left", "right") for joint in HAND_JOINTS]
        if set(names) <= set(joints):
            points = np.stack([joints[joint][:, :3, 3] for joint in names], axis=1)
            cam_from_world = inverse_poses(streams["camera"].values)
            in_cam = np.einsum("tij,tpj->tpi", cam_from_world[:, :3, :3], points) + cam_from_world[:, None, :3, 3]
            is_sure = [sure.get(f"{side}Hand", np.ones(len(video))) >= self.config.min_confidence for side in _SIDES]
            unit = "m, camera's frame; left then right, 25 joints xyz each"
            is_valid = streams["camera"].is_valid & is_sure[0] & is_sure[1]
            values = in_cam.reshape(len(video), -1)
            streams["hands"] = track_stream(times_s, values, unit, where=path, is_valid=is_valid)
        if joints:
            ordered = sorted(joints)
            values = np.concatenate([joints[joint][:, :3, 3] for joint in ordered], axis=1)
            streams["body"] = track_stream(
                times_s, values, f"m, world's frame; xyz of {', '.join(ordered)}", where=path
            )
        if text:
            streams["caption"] = Stream(np.array([text]), np.ones(1, bool), times_s[:1], "text")
        is_told = matrix.shape == (3, 3)
        size = (video.width, video.height) if is_told else (1920, 1080)
        camera = lens(path, "pinhole", (), size, matrix if is_told else _CONSTANT)
        if (video.width, video.height) != size:
            camera = camera.resized(video.width, video.height)
        return Opened(streams, camera, self.files(name))


def _text(attributes: Mapping[str, Any]) -> str:
    """The description: of two, the one the file says; older files have one."""
    which = str(attributes.get("which_llm_description", "1"))
    key = "llm_description2" if which == "2" else "llm_description"
    value = attributes.get(key, attributes.get("description", ""))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
