"""Recordings and aligned clips: signals with their clocks, units and validity.

F frames, S samples of a track, T samples of any stream, H, W pixels.

Frames of reference. Camera axes are OpenCV's (x right, y down, z forward). `world_from_cam` maps points of the
camera into the world, metres. Gaze is (u, v) in [0, 1] of the image, u right, v down, (0, 0) the outer corner of
the first pixel. Depth is metres along the camera's z axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from egom2p.contracts.checks import plain_name


@runtime_checkable
class FrameSource(Protocol):
    """Frames that are decoded when asked for."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Frames at `indices` (any order, repeats allowed), stacked on axis 0."""
        ...


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera, optionally with a distortion model named in `model` (parameters as its library states).

    Pixel (0, 0) is the centre of the first pixel: u = fx * x / z + cx.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "pinhole"
    distortion: tuple[float, ...] = ()

    def resized(self, width: int, height: int) -> "Intrinsics":
        """Intrinsics of the same picture at another size (pixel centres kept, no crop)."""
        sx, sy = width / self.width, height / self.height
        return Intrinsics(
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
            model=self.model,
            distortion=self.distortion,
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> "Intrinsics":
        return Intrinsics(width, height, self.fx, self.fy, self.cx - left, self.cy - top, self.model, self.distortion)


@dataclass(frozen=True)
class Stream:
    """One signal with its own clock.

    values    (T, ...) array, or a FrameSource of T frames
    is_valid  (T,) bool; depth in an array may also be invalid per pixel (value 0)
    times_s   (T,) float64 seconds, increasing, on the clock shared by the streams of the recording
    unit      what one value is: `uint8`, `m`, `image` (gaze, [0, 1]), `world_from_cam`, `text` or free words
    """

    values: Any
    is_valid: np.ndarray
    times_s: np.ndarray
    unit: str

    def __post_init__(self) -> None:
        count = len(self.values)
        if len(self.is_valid) != count or len(self.times_s) != count:
            raise ValueError(
                f"a stream of {count} values has {len(self.is_valid)} validities and {len(self.times_s)} times"
            )

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Values (N, ...) at indices (N,), read where they lie in files."""
        return self.values[indices] if isinstance(self.values, np.ndarray) else self.values.read(indices)


@dataclass(frozen=True)
class Provenance:
    """Where a recording or clip comes from."""

    dataset: str
    recording: str
    start_s: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Recording:
    """A whole recording: raw streams, each with its own clock and rate.

    Known stream names: `rgb` (T, H, W, 3) uint8; `depth` (T, H, W) float32 metres, 0 = invalid; `gaze` (T, 2);
    `camera` (T, 4, 4) float64 world_from_cam; `caption` (T,) of str, each valid from its time on. Any other name is
    a further track (T, C) float.

    gaze_size    width and height of the picture that gaze belongs to, where its source states them
    unused       names of files beside the recording that no stream was made from
    notes        what a person should know of its material (interlaced, HDR)
    """

    name: str
    streams: Mapping[str, Stream]
    intrinsics: Intrinsics | None
    provenance: Provenance
    gaze_size: tuple[int, int] | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def span_s(self) -> tuple[float, float]:
        """First and last time at which any stream has a sample."""
        starts = [stream.times_s[0] for stream in self.streams.values()]
        ends = [stream.times_s[-1] for stream in self.streams.values()]
        return float(min(starts)), float(max(ends))


@dataclass(frozen=True)
class AlignedClip:
    """Two seconds of everything on common clocks: same stream names and conventions as a Recording, all arrays.

    Streams of images (`rgb`, `depth`) share one clock of F frames, tracks one of S samples. An absent modality has
    no entry. `intrinsics` belong to the clip's image size. `key` is unique in a data set and has no dot or slash; key
    and stream names become names of files, so each is one plain name.
    """

    key: str
    streams: Mapping[str, Stream]
    intrinsics: Intrinsics | None
    provenance: Provenance
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain_name(self.key, "clip key")
        for name in self.streams:
            plain_name(name, f"clip {self.key}: stream")

    def __contains__(self, name: str) -> bool:
        return name in self.streams

    def _values(self, name: str) -> np.ndarray:
        if name not in self.streams:
            raise KeyError(f"clip {self.key} has no {name}; it has {sorted(self.streams)}")
        return self.streams[name].values

    @property
    def rgb(self) -> np.ndarray:
        """(F, H, W, 3) uint8."""
        return self._values("rgb")

    @property
    def depth_m(self) -> np.ndarray:
        """(F, H, W) float32 metres along the camera's z axis; 0 = invalid."""
        return self._values("depth")

    @property
    def gaze(self) -> np.ndarray:
        """(S, 2) float32, u right, v down, [0, 1] of the image; meaningless where `gaze_is_valid` is False."""
        return self._values("gaze")

    @property
    def gaze_is_valid(self) -> np.ndarray:
        self._values("gaze")
        return self.streams["gaze"].is_valid

    @property
    def world_from_cam(self) -> np.ndarray:
        """(S, 4, 4) float64, metres, OpenCV camera axes."""
        return self._values("camera")

    @property
    def caption(self) -> str:
        return str(self._values("caption")[0])
