"""Schema of `recording.yaml`, the small file beside a recording that says what its files cannot."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field

from egom2p.config import Count, NotNegative, Positive, from_plain, strict
from egom2p.contracts import Intrinsics
from egom2p.data.clips.video_files import Decoder
from egom2p.data.recordings.track_files import named
from egom2p.geometry import TimeUnit, check_camera_model, check_poses, matrix_from_quaternion, poses_from_parts

SETTINGS_FILE = "recording.yaml"
Rate = Annotated[float, Field(gt=0)]
DEFAULT_RATE_HZ = 30.0


@strict
class IntrinsicsSettings:
    """Camera of the RGB picture; pixel (0, 0) is the centre of the first pixel."""

    width: Count
    height: Count
    fx: Positive  # focal length in pixels
    fy: Positive  # focal length in pixels
    cx: float  # principal point in pixels
    cy: float  # principal point in pixels
    model: str = "pinhole"  # or opencv, kannala_brandt, fisheye624: `geometry.cameras`
    distortion: tuple[float, ...] = ()  # as the model orders it

    def __post_init__(self) -> None:
        if not (-0.5 <= self.cx <= self.width - 0.5 and -0.5 <= self.cy <= self.height - 0.5):
            raise ValueError(
                f"found the principal point ({self.cx:g}, {self.cy:g}) outside {self.width}x{self.height} pixels"
            )
        check_camera_model(self.build())

    def build(self) -> Intrinsics:
        return Intrinsics(
            self.width, self.height, self.fx, self.fy, self.cx, self.cy, self.model, tuple(self.distortion)
        )


@strict
class RigidTransform:
    """Rotation (one of the two orders) and translation in metres."""

    quaternion_xyzw: tuple[float, float, float, float] | None = None  # rotation, scalar last
    quaternion_wxyz: tuple[float, float, float, float] | None = None  # rotation, scalar first
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)  # metres

    def __post_init__(self) -> None:
        if (self.quaternion_xyzw is None) == (self.quaternion_wxyz is None):
            raise ValueError("wanted one of quaternion_xyzw and quaternion_wxyz")


# A transform as a person writes it: 4 rows of 4, the same 16 numbers in a row, or rotation and translation.
TransformSettings = RigidTransform | tuple[tuple[float, ...], ...] | tuple[float, ...]


def transform_matrix(wanted: TransformSettings, *, where: str) -> np.ndarray:
    """The 4x4 matrix of a transform. Raises ValueError when it is no rigid motion."""
    if isinstance(wanted, RigidTransform):
        x, y, z, w = wanted.quaternion_xyzw or (*wanted.quaternion_wxyz[1:], wanted.quaternion_wxyz[0])
        if abs(np.linalg.norm([x, y, z, w]) - 1) > 1e-2:
            raise ValueError(f"{where}: found the quaternion (xyzw) {[x, y, z, w]}, wanted length 1")
        return poses_from_parts(matrix_from_quaternion(np.array([x, y, z, w])), np.array(wanted.translation))
    rows = np.array(wanted, dtype=np.float64) if len({np.size(row) for row in wanted}) == 1 else np.zeros(0)
    if rows.size != 16:
        raise ValueError(f"{where}: found {wanted}, wanted 4 rows of 4 numbers, or a quaternion and a translation")
    return check_poses(where, rows.reshape(1, 4, 4))[0]


@strict
class PictureSettings:
    """RGB video or folder of pictures. `rate_hz` replaces the file's own times."""

    file: str | None = None
    time_unit: TimeUnit | None = None  # of rgb_timestamps.txt; by default seconds
    rate_hz: Rate | None = None
    offset_s: float = 0.0  # added to the stream's times; brings its clock to the recording's
    decoder: Decoder = "pyav"  # another one refuses videos it is not proven right for
    # Degrees clockwise that bring the picture upright, for cameras that lie on their side (raw Aria: 90), and what lies
    # on its side with it. Poses do unless their axes are `turned`.
    rotate: Literal[0, 90, 180, 270] = 0
    rotates: tuple[Literal["depth", "gaze", "camera", "intrinsics"], ...] = ("depth", "gaze", "camera", "intrinsics")


@strict
class DepthSettings:
    """Depth as pictures (16-bit, float TIFF, EXR) or as npy/npz."""

    file: str | None = None
    time_unit: TimeUnit | None = None  # of depth_timestamps.txt, or of the npz's own timestamps; by default seconds
    rate_hz: Rate | None = None
    offset_s: float = 0.0
    # Of one step of a stored number. By default 0.001 for pictures of whole numbers and 1 for real numbers (float
    # pictures, float arrays); arrays of whole numbers must say it.
    metres_per_unit: Positive | None = None
    invalid_values: tuple[float, ...] = (0, 65535)
    # `z`: along the optical axis. `ray`: distance from the camera; turned into z with the intrinsics.
    measured_along: Literal["z", "ray"] = "z"

    def __post_init__(self) -> None:
        if self.metres_per_unit is not None and not 0 < self.metres_per_unit < 100:
            raise ValueError(f"metres_per_unit must be in (0, 100), got {self.metres_per_unit}")


@strict
class CameraSettings:
    """Trajectory: what its matrices map and which way the camera's axes point."""

    file: str | None = None
    file_format: Literal["tum", "kitti", "euroc", "npz"] | None = None  # by default told from the suffix
    time_unit: TimeUnit | None = None  # by default what a header says, else seconds (euroc: ns)
    rate_hz: Rate | None = None  # for files without times
    offset_s: float = 0.0
    maps: Literal["world_from_cam", "cam_from_world"] = "world_from_cam"
    # opencv: x right, y down, z forward. opengl: x right, y up, z back. turned: x down, y left, z forward (raw Aria).
    axes: Literal["opencv", "opengl", "turned"] = "opencv"
    # For poses of a body (IMU, headset, rig): where the camera sits on it. Maps points of the camera into the body.
    body_from_camera: TransformSettings | None = None


@strict
class GazeSettings:
    """Gaze points. What known headers tell (Pupil Labs, Tobii, Aria) need not be said here.

    Gaze without pictures is cropped as the picture it belongs to, when `width` and `height` say its size.
    """

    file: str | None = None
    time_unit: TimeUnit | None = None  # by default what the header says, else seconds
    offset_s: float = 0.0
    coordinates: Literal["normalised", "pixel"] | None = None  # by default the header's, else normalised
    origin: Literal["top_left", "bottom_left"] | None = None  # by default the header's, else top_left
    # Size of the picture that pixels belong to: by default the intrinsics', else the video's.
    width: Count | None = None
    height: Count | None = None
    columns: tuple[str, str] | None = None  # u and v, when the header is no known one
    time_column: str | None = None
    min_confidence: NotNegative | None = None  # samples below are invalid, where there is a `confidence` column; 0.6
    # For gaze as angles (Aria): the eyes' frame (x left, y up, z forward). Maps points of it into the camera.
    camera_from_eyes: TransformSettings | None = None

    def __post_init__(self) -> None:
        if (self.width is None) != (self.height is None):
            raise ValueError("gaze.width and gaze.height belong together, found one of them")


@strict
class TrackSettings:
    """Any further track."""

    file: str | None = None
    time_unit: TimeUnit | None = None  # by default what the header says, else seconds
    offset_s: float = 0.0
    unit: str = "unknown"
    columns: tuple[str, ...] | None = None  # by default all but time and validity
    time_column: str | None = None


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
        if held is None:
            continue
        path, other = named(held, SETTINGS_FILE), named(held, "recording.yml")
        if other.is_file():
            raise ValueError(f"{other}: wanted it to be called {SETTINGS_FILE}")
        if path.is_file():
            return _read(path)
    return RecordingSettings()


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name each key once; of two, the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if keys.count(key.value) > 1 and key.value != "<<"]:
            raise yaml.constructor.ConstructorError(
                None, None, f"found the key {twice[-1].value!r} twice, wanted it once", twice[-1].start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _read(path: Path) -> RecordingSettings:
    try:
        values: Any = _UniqueKeys(path.read_text(encoding="utf-8-sig")).get_single_data() or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: found {type(values).__name__}, wanted keys such as {sorted(_KEYS)}")
    return from_plain(RecordingSettings, values, where=str(path))


_KEYS = RecordingSettings.__dataclass_fields__
