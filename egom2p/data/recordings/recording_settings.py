"""Schema of `recording.yaml`, the small file beside a recording that says what its files cannot."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml

from egom2p.config import from_plain, strict
from egom2p.contracts import Intrinsics

SETTINGS_FILE = "recording.yaml"
DEFAULT_RATE_HZ = 30.0
TimeUnit = Literal["s", "ms", "us", "ns"]
SECONDS_PER_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@strict
class IntrinsicsSettings:
    """Camera of the RGB picture; pixel (0, 0) is the centre of the first pixel."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "pinhole"
    distortion: tuple[float, ...] = ()

    def build(self) -> Intrinsics:
        return Intrinsics(
            self.width, self.height, self.fx, self.fy, self.cx, self.cy, self.model, tuple(self.distortion)
        )


@strict
class PictureSettings:
    """RGB video or folder of pictures. `rate_hz` replaces the file's own times."""

    file: str | None = None
    rate_hz: float | None = None
    offset_s: float = 0.0  # added to the stream's times; brings its clock to the recording's


@strict
class DepthSettings:
    """Depth as 16-bit PNGs in steps of `metres_per_unit`, or as npy/npz in metres."""

    file: str | None = None
    rate_hz: float | None = None
    offset_s: float = 0.0
    metres_per_unit: float = 0.001
    invalid_values: tuple[int, ...] = (0, 65535)
    # `z`: along the optical axis. `ray`: distance from the camera; turned into z with the intrinsics.
    measured_along: Literal["z", "ray"] = "z"


@strict
class CameraSettings:
    """Trajectory: what its matrices map and which way the camera's axes point."""

    file: str | None = None
    file_format: Literal["tum", "kitti", "euroc", "npz"] | None = None  # by default told from the suffix
    rate_hz: float | None = None  # for files without times
    offset_s: float = 0.0
    maps: Literal["world_from_cam", "cam_from_world"] = "world_from_cam"
    # opencv: x right, y down, z forward. opengl: x right, y up, z back. turned: x down, y left, z forward (raw Aria).
    axes: Literal["opencv", "opengl", "turned"] = "opencv"


@strict
class GazeSettings:
    """Gaze points; `pixel` needs the picture's size (width, height here, else the intrinsics', else the video's)."""

    file: str | None = None
    time_unit: TimeUnit = "s"
    offset_s: float = 0.0
    coordinates: Literal["normalised", "pixel"] = "normalised"
    width: int | None = None
    height: int | None = None


@strict
class TrackSettings:
    """Any further track."""

    file: str | None = None
    time_unit: TimeUnit = "s"
    offset_s: float = 0.0
    unit: str = "unknown"


@strict
class CaptionSettings:
    """A caption that holds from a time on."""

    start_s: float
    text: str


@strict
class RecordingSettings:
    """All of `recording.yaml`; every key may be left out."""

    intrinsics: IntrinsicsSettings | None = None
    rgb: PictureSettings = PictureSettings()
    depth: DepthSettings = DepthSettings()
    camera: CameraSettings = CameraSettings()
    gaze: GazeSettings = GazeSettings()
    tracks: dict[str, TrackSettings] = field(default_factory=dict)
    caption: str | tuple[CaptionSettings, ...] = ()


def read_settings(folder: Path, *, parent: Path | None = None) -> RecordingSettings:
    """Settings of a recording: its own file, else its parent's (for all recordings below), else the defaults."""
    for held in (folder, parent):
        if held is not None and (held / SETTINGS_FILE).is_file():
            return _read(held / SETTINGS_FILE)
    return RecordingSettings()


def _read(path: Path) -> RecordingSettings:
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: found {type(values).__name__}, wanted keys such as {sorted(_KEYS)}")
    return from_plain(RecordingSettings, values, where=str(path))


_KEYS = RecordingSettings.__dataclass_fields__
