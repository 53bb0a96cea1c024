"""HoloAssist: video, gaze and camera of a HoloLens 2.

    <recording>/Export_py/ Video_pitchshift.mp4 or Video_compress.mp4
        Video/{Pose_sync.txt, Intrinsics.txt, VideoMp4Timing.txt}  Eyes/Eyes_sync.txt

Tables are separated by tabs, without header: relative time, .NET ticks (100 ns), then a pose (16 numbers, row by row,
world_from_cam; camera axes x forward, y left, z up) or a gaze ray (origin, direction; world, metres). Frame k of the
video is at the start tick of VideoMp4Timing plus its own time. Gaze is the point `gaze_distance_m` along the ray, in
the picture of a pinhole camera, as EgoM2P has it. Format: github.com/Ember-HoloAssist/holoassist-release and the psi
exporter of Microsoft; tried on a replica only.

Not confirmed, and so not used: the unit of the relative time, further columns of the gaze table, the layout of hands
and the scale of AHAT depth (another camera). Checked: rows come at rate_hz, and the video is as long as its timing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.reader_parts import (
    frame_stream,
    lens,
    pose_stream,
    read_numbers,
    track_stream,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import read_text
from egom2p.geometry import gaze_from_pixels, interpolate_poses, inverse_poses, number_from_text, project

_VIDEOS = ("Video_pitchshift.mp4", "Video_compress.mp4")
_INTRINSICS = ("Intrinsics.txt", "Instrinsics.txt", "Instrinsincs.txt")  # as the exporter and its README write it
_TICKS_PER_SECOND = 10**7
_MAX_POSE_GAP_S = 0.1
# Columns: OpenCV's x, y, z in a camera whose x is forward, y left, z up.
_CAM_FROM_OPENCV = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@strict
class HoloAssistSource(FolderSource):
    """rate_hz: of the rows of *_sync.txt. gaze_distance_m: how far along its ray a gaze point lies."""

    kind: Literal["holoassist"]
    rate_hz: Positive = 30.0
    gaze_distance_m: Positive = 0.5


class HoloAssistReader(FormatReader):
    source, what = HoloAssistSource, "HoloAssist"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "Export_py/Video/Pose_sync.txt")

    def open(self, name: str, path: Path) -> Opened:
        folder = path / "Export_py"
        timing, poses_file, eyes = (folder / f for f in ("Video/VideoMp4Timing.txt", *_TABLES))
        start, end = _ticks(timing)[:2]
        pose_times_s, numbers = self._table(poses_file, start, columns=16)
        world_from_cam = numbers.reshape(-1, 4, 4) @ _CAM_FROM_OPENCV
        streams = {"camera": pose_stream(pose_times_s, world_from_cam, where=poses_file)}
        used = [timing, poses_file]
        video = next((folder / name for name in _VIDEOS if (folder / name).is_file()), None)
        if video is not None:
            rgb = VideoFile(video)
            seconds = (end - start) / _TICKS_PER_SECOND
            if abs(seconds - rgb.times_s[-1]) > max(1.0, 0.02 * seconds):
                raise ValueError(
                    f"{timing}: found {seconds:.3f} s from its first to its last tick, wanted {rgb.times_s[-1]:.3f} s, "
                    f"the length of {video.name}"
                )
            streams["rgb"] = frame_stream(rgb, rgb.times_s, "uint8", where=video)
            used.append(video)
        file = next((folder / "Video" / name for name in _INTRINSICS if (folder / "Video" / name).is_file()), None)
        if file is None:
            raise ValueError(f"{folder / 'Video' / _INTRINSICS[0]}: no such file; it comes in a download of its own")
        values = read_numbers(file).ravel()
        if len(values) < 11:
            raise ValueError(f"{file}: found {len(values)} numbers, wanted a 3x3 matrix first, width and height last")
        intrinsics = lens(file, "pinhole", (), values[-2:], values[:9].reshape(3, 3))
        if eyes.is_file():
            streams["gaze"] = self._gaze(eyes, start, streams["camera"], intrinsics)
            used.append(eyes)
        return Opened(streams, intrinsics, [*used, file])

    def _table(self, path: Path, start: int, *, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Times (T,) after the video's start and the `columns` numbers that follow them (T, columns)."""
        rows = [line.split("\t") for line in read_text(path).splitlines() if line.strip()]
        times_s, numbers = np.empty(len(rows)), np.empty((len(rows), columns))
        for row, cells in enumerate(rows):
            try:
                times_s[row] = (int(cells[1]) - start) / _TICKS_PER_SECOND
                numbers[row] = [number_from_text(cell) for cell in cells[2 : 2 + columns]]
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}, line {row + 1}: found {cells[:4]}, wanted a time, ticks and {columns} numbers"
                ) from None
        period_s = float(np.median(np.diff(times_s))) if len(rows) > 1 else 0.0
        if not 0.9 < period_s * self.config.rate_hz < 1.1:
            raise ValueError(f"{path}: found rows {period_s:.4g} s apart, wanted {self.config.rate_hz:g} a second")
        return times_s, numbers

    def _gaze(self, path: Path, start: int, camera: Stream, intrinsics: Intrinsics) -> Stream:
        times_s, rays = self._table(path, start, columns=6)
        poses, is_posed = interpolate_poses(
            camera.times_s, camera.values, times_s, max_gap_s=_MAX_POSE_GAP_S, is_valid=camera.is_valid
        )
        with np.errstate(invalid="ignore"):
            directions = rays[:, 3:] / np.linalg.norm(rays[:, 3:], axis=1, keepdims=True)
        points = np.concatenate([rays[:, :3] + self.config.gaze_distance_m * directions, np.ones((len(rays), 1))], 1)
        pixels, is_seen = project((inverse_poses(poses) @ points[..., None])[:, :3, 0], intrinsics)
        gaze = gaze_from_pixels(pixels, intrinsics.width, intrinsics.height)
        return track_stream(times_s, gaze, "image", where=path, is_valid=is_seen & is_posed)


_TABLES = ("Video/Pose_sync.txt", "Eyes/Eyes_sync.txt")


def _ticks(path: Path) -> list[int]:
    words = read_text(path).split() if path.is_file() else []
    if len(words) < 2 or not all(word.isdecimal() for word in words[:2]):
        raise ValueError(f"{path}: found {words[:4]}, wanted the ticks of the first and of the last frame")
    return [int(word) for word in words]
