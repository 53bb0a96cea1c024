"""Pictures and calibration from the VRS files of Project Aria, by the package projectaria-tools.

Times are seconds of device time. Pictures come out upright: Gen 1's camera is mounted on its side, and what it stores
is turned by 90 degrees clockwise; Gen 2's are upright. T frames, H, W pixels of the upright picture.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egom2p.contracts import Intrinsics
from egom2p.data.recordings.aria_mps import AriaCalibration

RGB_STREAM, DEPTH_STREAM = "214-1", "345-1"  # the second of ADT's depth_images.vrs
_METRES_PER_UNIT = np.float32(0.001)


class VrsCamera(NamedTuple):
    """The RGB camera as calibrated in the factory: upright intrinsics, calibration as stored, device_from_cpf."""

    intrinsics: Intrinsics
    calibration: AriaCalibration
    device_from_cpf: np.ndarray


class VrsFrames:
    """Upright pictures of one stream; a FrameSource of (N, H, W, 3) uint8, or of (N, H, W) metres for depth.

    times_s   (T,) device time
    """

    def __init__(self, path: Path, stream: str) -> None:
        self.path, self._stream, self._provider = path, stream, None
        times_ns = np.array(self._open().get_timestamps_ns(*self._clock()), dtype=np.int64)
        if not len(times_ns):
            raise ValueError(f"{path}: found no pictures of stream {stream}")
        self.times_s = times_ns / 1e9
        self.height, self.width = self._frame(0).shape[:2]

    def __len__(self) -> int:
        return len(self.times_s)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_provider": None}

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._frame(int(index)) for index in indices])

    def _open(self) -> Any:
        if self._provider is None:
            self._provider = open_vrs(self.path)
        return self._provider

    def _clock(self) -> tuple[Any, Any]:
        from projectaria_tools.core.sensor_data import TimeDomain
        from projectaria_tools.core.stream_id import StreamId

        return StreamId(self._stream), TimeDomain.DEVICE_TIME

    def _frame(self, index: int) -> np.ndarray:
        picture = self._open().get_image_data_by_index(self._clock()[0], index)[0].to_numpy_array()
        picture = np.rot90(picture, -1) if _is_turned(self._open()) else picture
        if picture.dtype == np.uint16:  # millimetres along the camera's axis, 0 none
            return picture.astype(np.float32) * _METRES_PER_UNIT
        return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def open_vrs(path: Path) -> Any:
    """A data provider of projectaria-tools. ValueError: the package is not there, or the file is none of Aria."""
    try:
        from projectaria_tools.core import data_provider
    except ImportError:
        raise ValueError(
            f"{path}: VRS files are read by the package projectaria-tools: pip install 'egom2p[aria]'; "
            "source.pictures=false leaves pictures out"
        ) from None
    provider = data_provider.create_vrs_data_provider(str(path)) if path.is_file() else None
    if provider is None:
        raise ValueError(f"{path}: not a readable VRS file of Project Aria")
    return provider


def _is_turned(provider: Any) -> bool:
    """Whether pictures are Gen 1's, as are those without calibration (depth of ADT) and of packages that cannot ask."""
    return not hasattr(provider, "get_device_version") or provider.get_device_version().name != "Gen2"


def device_seconds(path: Path, timecode_ns: np.ndarray) -> np.ndarray:
    """Device time (T,) seconds of times (T,) that several devices share. ValueError: the file cannot tell them."""
    provider, stamps = open_vrs(path), [int(stamp) for stamp in timecode_ns]
    try:
        return np.array([provider.convert_from_timecode_to_device_time_ns(stamp) for stamp in stamps]) / 1e9
    except RuntimeError as error:
        raise ValueError(f"{path}: found no TIME_CODE, the clock between devices: {error}") from None


def read_vrs_camera(path: Path) -> VrsCamera:
    """Calibration of camera-rgb in a VRS file, with the position of the eyes as designed (CPF)."""
    provider = open_vrs(path)
    device = provider.get_device_calibration()
    camera = device.get_camera_calib("camera-rgb") if device is not None else None
    if camera is None:
        raise ValueError(f"{path}: found no calibration of camera-rgb")
    read = getattr(camera, "get_projection_params", None) or camera.projection_params
    parameters, (width, height) = [float(value) for value in read()], camera.get_image_size()
    device_from_cam = np.array(camera.get_transform_device_camera().to_matrix(), dtype=np.float64)
    size = int(width), int(height)
    calibration = AriaCalibration(np.zeros(1), device_from_cam[None], [parameters], _is_turned(provider), size)
    device_from_cpf = np.array(device.get_transform_device_cpf().to_matrix(), dtype=np.float64)
    return VrsCamera(calibration.camera(0, size), calibration, device_from_cpf)
