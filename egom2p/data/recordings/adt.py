"""Aria Digital Twin: RGB, depth, gaze and camera of one Aria Gen 1 recording with synthetic ground truth.

    <sequence>/ video.vrs  depth_images.vrs  aria_trajectory.csv  eyegaze.csv

The ground truth (poses at 30 Hz, world y up, metres; gaze with its distance) is in device time, as are the pictures:
their stamps lie 0.1 ms apart and are matched by time. Depth is 16 bit, millimetres along the axis of the RGB camera,
without the wearer's body. Format: projectaria_tools, data format of ADT; checked on its three-frame sample, poses and
gaze against the official tools. `source.pictures=false` needs no VRS of depth, but the calibration in video.vrs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from egom2p.config import strict
from egom2p.data.recordings.aria_mps import read_device_poses, read_gaze_angles
from egom2p.data.recordings.aria_vrs import DEPTH_STREAM, RGB_STREAM, VrsFrames, read_vrs_camera
from egom2p.data.recordings.reader_parts import frame_stream, pose_stream, track_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with

_SECONDS = 1e-6


@strict
class AdtSource(FolderSource):
    """pictures: RGB and depth out of the VRS files."""

    kind: Literal["adt"]
    pictures: bool = True


class AdtReader(FormatReader):
    source, what = AdtSource, "Aria Digital Twin"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "aria_trajectory.csv", "video.vrs")

    def open(self, name: str, path: Path) -> Opened:
        video, trajectory, gazes = path / "video.vrs", path / "aria_trajectory.csv", path / "eyegaze.csv"
        camera = read_vrs_camera(video)
        times_us, world_from_device = read_device_poses(trajectory)
        world_from_cam = world_from_device @ camera.calibration.device_from_upright[0]
        streams = {"camera": pose_stream(times_us * _SECONDS, world_from_cam, where=trajectory)}
        if gazes.is_file():
            size, eyes = camera.calibration.size, camera.device_from_cpf
            times_s, gaze, is_valid = read_gaze_angles(gazes, camera.calibration, size, eyes)
            streams["gaze"] = track_stream(times_s, gaze, "image", where=gazes, is_valid=is_valid)
        used = [video, trajectory, gazes]
        if self.config.pictures:
            used.append(path / "depth_images.vrs")
            for stream, file, number, unit in (
                ("rgb", video, RGB_STREAM, "uint8"),
                ("depth", used[-1], DEPTH_STREAM, "m"),
            ):
                if stream == "rgb" or file.is_file():
                    frames = VrsFrames(file, number)
                    streams[stream] = frame_stream(frames, frames.times_s, unit, where=file)
        return Opened(streams, camera.intrinsics, used)
