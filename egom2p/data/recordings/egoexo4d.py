"""Ego-Exo4D: the Aria headset of a take, its frame-aligned video with MPS poses and gaze.

    takes.json  captures/<capture>/timesync.csv
    takes/<take>/ frame_aligned_videos/aria01_214-1.mp4 (or downscaled/448/)  trajectory/  eye_gaze/  aria01*.vrs

The video is upright. Frame i of it is row `timesync_start_idx + 1 + i` of timesync.csv, whose column
`<aria>_214-1_capture_timestamp_ns` is device time, as MPS's microseconds are; the documentation also says that frames
begin at the start row itself (`source.first_row`). A video whose frames are more than 2 off the documented number is
refused. The camera's calibration is online_calibration.jsonl, else that of the VRS file; gaze has the eyes where Aria's
design puts them. Format: the documentation of Ego-Exo4D; MPS is confirmed on real files, takes and times on a replica
only. Gaze in `*_2d.csv` is not used.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import strict
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.aria_mps import read_mps
from egom2p.data.recordings.aria_vrs import read_vrs_camera
from egom2p.data.recordings.reader_parts import frame_stream, read_json
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened
from egom2p.data.recordings.track_files import Table, matching
from egom2p.geometry import seconds_from_stamps, stamps_from_text

_TRAJECTORY = "trajectory/closed_loop_trajectory.csv"
_RGB = "_214-1.mp4"
_SIDE = 1408
_LARGEST_DIFFERENCE = 2  # frames


@strict
class EgoExo4dSource(FolderSource):
    """camera: the headset, where a take has several (aria01). first_row: of timesync.csv, of the first frame."""

    kind: Literal["egoexo4d"]
    camera: str | None = None
    resolution: Literal["full", "448"] = "full"  # full pictures, or those of 448 pixels
    first_row: Literal["start_plus_1", "start"] = "start_plus_1"
    device_size: Literal["L", "S"] = "L"  # of the glasses: see aria_mps.read_mps


class EgoExo4dReader(FormatReader):
    source, what = EgoExo4dSource, "Ego-Exo4D"
    groups = r"^(?P<environment>.+)_\d+$"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        if not (root / "takes.json").is_file():
            return {}
        return {path.parents[1].name: path.parents[1] for path in matching(root, f"takes/*/{_TRAJECTORY}")}

    def files(self, name: str) -> Sequence[Path]:
        try:
            timesync = [self._timesync(self._take(name))]
        except ValueError:
            timesync = []  # said when the take is read
        return [self.paths[name], self.root / "takes.json", *(path for path in timesync if path.is_file())]

    def open(self, name: str, path: Path) -> Opened:
        used, trajectory = [self.root / "takes.json"], path / _TRAJECTORY
        if (path / "trajectory" / "online_calibration.jsonl").is_file():
            mps = read_mps(path, image_size=_SIDE, device_size=self.config.device_size)
        else:
            vrs = next(iter(sorted(path.glob("aria*.vrs"))), None)
            if vrs is None:
                raise ValueError(
                    f"{path}: found neither trajectory/online_calibration.jsonl nor aria*.vrs, wanted one of them"
                )
            factory = read_vrs_camera(vrs)
            mps = read_mps(
                path,
                image_size=factory.calibration.size,
                device_from_cpf=factory.device_from_cpf,
                calibration=factory.calibration,
            )
            used.append(vrs)
        streams, intrinsics = mps.streams(trajectory), mps.intrinsics
        used += mps.files
        video = self._video(path)
        if video is not None:
            take = self._take(name)
            rgb, timesync = VideoFile(video), self._timesync(take)
            times_s = self._frame_times(take, timesync, video, len(rgb))
            streams["rgb"] = frame_stream(rgb, times_s, "uint8", where=video)
            used += [video, timesync]
        return Opened(streams, intrinsics, used)

    def _video(self, path: Path) -> Path | None:
        folder = path / "frame_aligned_videos"
        folder = folder if self.config.resolution == "full" else folder / "downscaled" / self.config.resolution
        found = sorted(folder.glob(f"{self.config.camera or 'aria*'}{_RGB}"))
        if len(found) > 1:
            raise ValueError(
                f"{folder}: found {[file.name for file in found]}, say source.camera to choose one of them"
            )
        if not found and self.config.camera:
            raise ValueError(f"{folder}: found no {self.config.camera}{_RGB}")
        return found[0] if found else None

    @cached_property
    def _takes(self) -> Mapping[Any, list[Mapping[str, Any]]]:
        """Takes by name, read once: takes.json is megabytes, and every recording asks for one."""
        takes: dict[Any, list[Mapping[str, Any]]] = {}
        for take in read_json(self.root / "takes.json"):
            if isinstance(take, dict):
                takes.setdefault(str(take.get("take_name")), []).append(take)
        return takes

    def _take(self, name: str) -> Mapping[str, Any]:
        found = self._takes.get(name, [])
        if len(found) != 1:
            raise ValueError(f"{self.root / 'takes.json'}: found {len(found)} takes called {name}, wanted one")
        return found[0]

    def _timesync(self, take: Mapping[str, Any]) -> Path:
        try:
            return self.root / "captures" / take["capture"]["capture_name"] / "timesync.csv"
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.root / 'takes.json'}: {take.get('take_name')} has no capture: {error!r}") from None

    def _frame_times(self, take: Mapping[str, Any], path: Path, video: Path, count: int) -> np.ndarray:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the times of {video.name} are in it")
        start, end = (take.get(f"timesync_{edge}_idx") for edge in ("start", "end"))
        if not (isinstance(start, int) and isinstance(end, int) and start >= 0):
            raise ValueError(
                f"{self.root / 'takes.json'}: {take['take_name']}: found timesync_start_idx {start!r} and "
                f"timesync_end_idx {end!r}, wanted rows of {path}"
            )
        documented = end - 1 - start
        if abs(count - documented) > _LARGEST_DIFFERENCE:
            raise ValueError(f"{video}: found {count} frames, wanted {documented} as rows {start} to {end} of {path}")
        table, column = Table(path), f"{video.name.removesuffix('.mp4')}_capture_timestamp_ns"
        first = start + (self.config.first_row == "start_plus_1")
        cells = table.text(column)[first : first + count]
        if len(cells) < count or not all(cells):
            raise ValueError(
                f"{path}: found {sum(map(bool, cells))} stamps in {column} from row {first}, wanted {count}"
            )
        return seconds_from_stamps(stamps_from_text(cells), "ns")
