"""EuRoC's `mav0` folders (TUM-VI's export too): pictures of a camera, poses of the body (IMU), IMU.

    <recording>/mav0/cam0/{data.csv, data/<ns>.png, sensor.yaml}, imu0/data.csv, state_groundtruth_estimate0/data.csv

Stamps are nanoseconds. `T_BS` of a sensor.yaml maps points of the sensor into the body, so
world_from_cam = world_from_body @ T_BS; a Kalibr `camchain.yaml` holds the inverse (`T_cam_imu`). Poses of other
bodies (`leica0`, `vicon0`) are left. Format: the ASL data sets' documentation; real calibrations confirm the two
layouts of cameras, a replica the rest.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from egom2p.config import strict
from egom2p.contracts import Intrinsics
from egom2p.data.recordings.reader_parts import (
    lens,
    picture_stream,
    pose_stream,
    stamped_rows,
    text_track,
    unlisted,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import distinct_samples, named_file, read_text
from egom2p.geometry import inverse_poses, read_euroc


@strict
class EurocSource(FolderSource):
    """EuRoC `mav0`."""

    kind: Literal["euroc"]
    camera: str = "cam0"  # folder of the camera
    poses: str = "state_groundtruth_estimate0"  # folder of poses of the body; TUM-VI's export has them in mocap0
    camchain: str | None = None  # a Kalibr file, relative to a recording, that replaces sensor.yaml


class EurocReader(FormatReader):
    source, what = EurocSource, "EuRoC folders (mav0)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "mav0/cam*/data.csv", depth=2)

    def open(self, name: str, path: Path) -> Opened:
        camera, mav = self.config.camera, path / "mav0"
        listing = mav / camera / "data.csv"
        if not listing.is_file():
            raise ValueError(f"{listing}: no such file; found {sorted(p.name for p in mav.iterdir())}")
        times_s, rows = stamped_rows(listing, "ns", columns=2, stream="rgb")
        files = [named_file(listing.parent / "data", row[0], where=listing) for row in rows]
        streams = {"rgb": picture_stream(files, times_s, where=listing)}
        used, notes = [listing, *files], unlisted(listing, files)
        calibration = path / self.config.camchain if self.config.camchain else mav / camera / "sensor.yaml"
        intrinsics, body_from_cam = None, None
        if calibration.is_file():
            intrinsics, body_from_cam = _calibration(calibration, camera)
            used.append(calibration)
        elif self.config.camchain:
            raise ValueError(f"{calibration}: no such file; source.camchain names it")
        trajectory = _first(mav, (self.config.poses,))
        if trajectory is not None:
            if body_from_cam is None:
                raise ValueError(
                    f"{trajectory}: holds poses of the body; wanted {calibration} with T_BS, or source.camchain"
                )
            pose_times_s, world_from_body = read_euroc(trajectory)
            # Published files repeat a stamp here and there.
            rows, repeats = distinct_samples(pose_times_s, where=f"{self.config.poses}/{trajectory.name}")
            world_from_cam = world_from_body[rows] @ body_from_cam
            streams["camera"] = pose_stream(pose_times_s[rows], world_from_cam, where=trajectory)
            notes += repeats
            used.append(trajectory)
        if (imu := _first(mav, ("imu0",))) is not None:
            unit = "gyroscope rad/s xyz, accelerometer m/s^2 xyz; axes of the body"
            streams["imu"] = text_track(imu, "ns", columns=6, unit=unit, stream="imu")
            used.append(imu)
        return Opened(streams, intrinsics, used, notes)


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name / "data.csv" for name in names if (folder / name / "data.csv").is_file()), None)


def _calibration(path: Path, camera: str) -> tuple[Intrinsics, np.ndarray]:
    """Intrinsics and body_from_cam (4, 4) of a sensor.yaml or a Kalibr camchain."""
    text = "\n".join(line for line in read_text(path).splitlines() if not line.startswith("%YAML"))
    try:
        values: Any = yaml.safe_load(text)
        values = values.get(camera, values)
        if "T_BS" in values:
            held = values["T_BS"]
            body_from_cam = np.array(held["data"] if isinstance(held, dict) else held, np.float64).reshape(4, 4)
            distortion = values["distortion_coefficients"]
        else:
            body_from_cam = inverse_poses(np.array(values["T_cam_imu"], np.float64).reshape(4, 4))
            distortion = values["distortion_coeffs"]
        model, size, f_c = values["distortion_model"], values["resolution"], values["intrinsics"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a calibration of {camera}: {error!r}") from error
    return lens(path, model, distortion, size, f_c), body_from_cam
