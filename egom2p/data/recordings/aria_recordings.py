"""Project Aria as it comes from the machine perception services (Gen 1 and 2, Aria Everyday Activities), and Nymeria.

    <recording>/ [recording.vrs]  [mps/]slam/{closed_loop_trajectory.csv, online_calibration.jsonl}
                 [mps/]eye_gaze/*.csv  [mps/]hand_tracking/*.csv  [metadata.json]
    Nymeria: <sequence>/ recording_{head,observer}/{data/*.vrs, mps/}  recording_{l,r}wrist/  body/xdata.npz  narration/

A recording is a folder with one trajectory, whatever MPS's own folders are called. Clock: the device's. `camera` and
`gaze` are of the upright RGB camera; `hand_left`, `hand_right` (T, 21 x 3; of older files wrist and palm): metres in
that camera, OpenCV axes, in MPS's order of landmarks. Pictures are in the VRS file; without it the rest is read alone.

Nymeria's headsets are recordings of their own; the wrists', which have no pictures, are left out. `body` (T, 23 x 3):
the suit's segments, metres in the suit's own world (not Aria's), on the clock that devices share, which the VRS file
brings to the device's. Narrations are left out, their columns not being confirmed. Formats: projectaria_tools' and
nymeria_dataset's code. Gen 1 is confirmed on real files; Gen 2's pictures, hands and Nymeria on replicas.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import Count, strict
from egom2p.data.recordings.aria_mps import HAND_FILES, find_file, mps_sequences, read_calibration, read_hands, read_mps
from egom2p.data.recordings.aria_vrs import RGB_STREAM, VrsFrames, device_seconds, read_vrs_camera
from egom2p.data.recordings.reader_parts import frame_stream, track_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import files_below, load_npz

_CALIBRATION = "online_calibration.jsonl"
_VRS_NAMES = ("recording.vrs", "video.vrs", "data.vrs", "main_recording.vrs", "sample.vrs")
_HEADSETS = ("head", "observer")
_NUM_SEGMENTS = 23


@strict
class AriaSource(FolderSource):
    """pictures: RGB out of the VRS file. image_size: width, height of the stored picture, where no file says it.

    vrs: name of the file with pictures, where a recording has several. calibration: MPS's, of every moment, or that
    of the factory, in the VRS file, which Aria's own gaze projection takes. device_size: see `aria_mps.read_mps`.
    """

    kind: Literal["aria_mps"]
    pictures: bool = True
    hands: bool = True  # read hand tracks
    vrs: str | None = None
    image_size: tuple[Count, Count] | None = None
    calibration: Literal["online", "factory"] = "online"
    device_size: Literal["L", "S"] = "L"


@strict
class NymeriaSource(AriaSource):
    """headsets: of the participant, of the observer, or of both."""

    kind: Literal["nymeria"]
    headsets: tuple[Literal["head", "observer"], ...] = _HEADSETS
    body: bool = True  # read body tracks


class AriaReader(FormatReader):
    source, what = AriaSource, "Project Aria with MPS output"
    groups = r"(?P<environment>loc\d+)_script"  # Aria Everyday Activities

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        folders = mps_sequences(root)
        return {"_".join(path.relative_to(root).parts) or root.resolve().name: path for path in folders}

    def open(self, name: str, path: Path) -> Opened:
        online, vrs = find_file(path, (_CALIBRATION,)), self._vrs(path)
        if not self.config.pictures and online is not None and self.config.calibration == "online":
            vrs = None  # needs no package then
        factory = read_vrs_camera(vrs) if vrs is not None else None
        is_online = online is not None and self.config.calibration == "online"
        if not is_online and factory is None:
            raise ValueError(f"{path}: found no VRS file and no {_CALIBRATION} that is asked for, wanted one of them")
        calibration = read_calibration(online) if is_online else factory.calibration
        mps = read_mps(
            path,
            # Online calibrations of other picture modes than the recording's exist: those tell their size themselves.
            image_size=self.config.image_size
            or (factory.calibration.size if factory and not calibration.is_turned else None),
            device_size=self.config.device_size,
            device_from_cpf=factory.device_from_cpf if factory else None,
            calibration=None if is_online else calibration,
        )
        streams = mps.streams(path)
        used, notes = list(mps.files), list(mps.notes)
        hands = find_file(path, HAND_FILES) if self.config.hands else None
        if hands is not None:
            times_s, points = read_hands(hands, calibration.device_from_upright[0])
            for side, (values, is_seen) in points.items():
                unit = "m, camera's frame; xyz of landmarks"
                streams[f"hand_{side}"] = track_stream(times_s, values, unit, where=hands, is_valid=is_seen)
            used.append(hands)
        if vrs is not None and self.config.pictures:
            frames = VrsFrames(vrs, RGB_STREAM)
            streams["rgb"] = frame_stream(frames, frames.times_s, "uint8", where=vrs)
            used.append(vrs)
        return Opened(streams, mps.intrinsics, used, notes)

    def _vrs(self, path: Path) -> Path | None:
        """The file with pictures: the one that source.vrs names, else of a known name, else the only one."""
        found = [file for file in files_below(path) if file.suffix == ".vrs"]
        if self.config.vrs is not None:
            chosen = [file for file in found if file.name == self.config.vrs]
            if not chosen:
                raise ValueError(f"{path}: found {[file.name for file in found]}, wanted source.vrs={self.config.vrs}")
            return chosen[0]
        known = [file for known in _VRS_NAMES for file in found if file.name == known]
        if not known and len(found) > 1:
            raise ValueError(f"{path}: found {[file.name for file in found]}; source.vrs says which has the pictures")
        return next(iter(known or found), None)


class NymeriaReader(AriaReader):
    source, what = NymeriaSource, "Nymeria"
    groups = r"^\d{8}_s\d+_(?P<participant>.+)_act\d+_"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        trajectory = "mps/slam/closed_loop_trajectory.csv"
        return {
            name if headset == "head" else f"{name}_{headset}": folder / f"recording_{headset}"
            for headset in _HEADSETS
            for name, folder in folders_with(root, f"recording_{headset}/{trajectory}").items()
        }

    def __init__(self, config: Any, *, dataset: str = "") -> None:
        super().__init__(config, dataset=dataset)
        chosen = [f"recording_{headset}" for headset in config.headsets]
        self.names = tuple(name for name in self.names if self.paths[name].name in chosen)

    def files(self, name: str) -> Sequence[Path]:
        path = self.paths[name]
        beside = [path.parent / "body", path.parent / "narration"] if path.name == "recording_head" else []
        return [path, *(folder for folder in beside if folder.is_dir())]

    def open(self, name: str, path: Path) -> Opened:
        opened = super().open(name, path)
        body, vrs = path.parent / "body" / "xdata.npz", self._vrs(path)
        if not self.config.body or path.name != "recording_head" or not body.is_file():
            return opened
        if vrs is None:
            note = "body is left out: its clock is brought to the device's by a VRS file, which is not there"
            return opened._replace(notes=[*opened.notes, note])
        arrays = load_npz(body)
        try:
            stamps_us, positions = arrays["timestamps_us"], arrays["segment_tXYZ"]
            positions = positions.reshape(len(stamps_us), _NUM_SEGMENTS * 3)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{body}: found {sorted(arrays)}, wanted timestamps_us and segment_tXYZ: {error}"
            ) from None
        times_s = device_seconds(vrs, np.asarray(stamps_us, np.int64) * 1000)
        track = track_stream(times_s, positions, "m, the suit's world; xyz of 23 segments", where=body)
        return opened._replace(streams={**opened.streams, "body": track}, files=[*opened.files, body])
