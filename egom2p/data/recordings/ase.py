"""Aria Synthetic Environments: RGB, depth and camera of walks through synthetic rooms.

    <scene>/ rgb/vignette0000000.jpg  depth/depth0000000.png  trajectory.csv (or .txt)

One fisheye camera for all scenes; pictures are stored turned and come out upright. Depth is 16 bit, millimetres along
each pixel's ray, and becomes z. Row i of the trajectory (columns as in MPS, world_from_device) is frame i, at
i / rate_hz: what unit its times are in is not confirmed, so they are not used. Format and calibration:
projectaria_tools, Aria Synthetic Environments; tried on a replica only. Checked: a pose for each picture, and the
direction of the poses by the depth.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.data.clips.image_files import RgbImages, list_images
from egom2p.data.clips.upright import CLOCKWISE, TurnedFrames
from egom2p.data.recordings.aria_mps import read_device_poses
from egom2p.data.recordings.depth_files import DepthAlongAxis, DepthFrames
from egom2p.data.recordings.reader_parts import check_pose_direction, frame_stream, pose_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.geometry import CLOCKWISE_TURN, fisheye624, matrix_from_quaternion, poses_from_parts, turned_clockwise

_SIDE = 704
_PARAMETERS = (
    *(297.6375381033778, 357.6599197217746, 349.1922497127481),
    *(0.3650890375644368, -0.1738082418112771, -0.7534945484033189),
    *(2.434788882752295, -2.57786220300886, 0.8788483538598834),
    *(0.0008005198595407136, -0.000294237814554143, 0.0, 0.0, 0.0, 0.0),
)
_DEVICE_FROM_CAM = poses_from_parts(
    matrix_from_quaternion(
        np.array([0.32640934382849085, 0.029274992008313648, 0.03336105995653155, 0.9441858687689326])
    ),
    np.array([-0.007530096566173914, -0.01090854984158026, -0.003598063315542823]),
)


@strict
class AseSource(FolderSource):
    """rate_hz: frames a second."""

    kind: Literal["ase"]
    rate_hz: Positive = 10.0


class AseReader(FormatReader):
    source, what = AseSource, "Aria Synthetic Environments"
    groups = r"(?P<environment>.+)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "rgb/vignette*", "trajectory.*")

    def open(self, name: str, path: Path) -> Opened:
        trajectory = next((p for p in (path / "trajectory.csv", path / "trajectory.txt") if p.is_file()), None)
        if trajectory is None:
            raise ValueError(f"{path / 'trajectory.csv'}: no such file")
        _, world_from_device = read_device_poses(trajectory)
        times_s = np.arange(len(world_from_device)) / self.config.rate_hz
        world_from_cam = world_from_device @ _DEVICE_FROM_CAM @ CLOCKWISE_TURN
        rgb = RgbImages(list_images(path / "rgb"), as_stored=True)
        stored = fisheye624(_PARAMETERS, _SIDE, _SIDE).resized(rgb.width, rgb.height)
        streams = {
            "camera": pose_stream(times_s, world_from_cam, where=trajectory),
            "rgb": frame_stream(TurnedFrames(rgb, CLOCKWISE[90]), times_s, "uint8", where=path / "rgb"),
        }
        intrinsics, used = turned_clockwise(stored), [trajectory, path / "rgb"]
        if (path / "depth").is_dir():
            frames = DepthFrames(list_images(path / "depth"), metres_per_unit=0.001, invalid_values=(0, 65535))
            depth = TurnedFrames(DepthAlongAxis(frames, stored), CLOCKWISE[90])
            streams["depth"] = frame_stream(depth, times_s, "m", where=path / "depth")
            check_pose_direction(streams, intrinsics, where=trajectory)
            used.append(path / "depth")
        return Opened(streams, intrinsics, used)
