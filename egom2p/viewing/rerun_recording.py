"""A clip, or a whole stitched recording, as a rerun file.

Everything lies on one timeline, `time`: pictures, colour-mapped depth and its point cloud in the world, the gaze dot
and ray, the camera's frustum and its path; each source (given, generated, truth) in its own branch and colour. The
file opens in the viewer (`rerun FILE`), on the same machine or another. Needs `pip install 'egom2p[viz]'`.

F frames, S samples of a track, H, W pixels, P points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from egom2p.contracts import Intrinsics, Stream
from egom2p.geometry import canonicalise, gaze_rays, pixel_grid, pixels_from_gaze, unproject
from egom2p.storage import atomic_file
from egom2p.viewing import plots
from egom2p.viewing.plots import coloured_depth, depth_range, samples_at_frames

FIELD_OF_VIEW_DEG = 90.0  # for clips whose camera is not known
_TIMELINE = "time"
_MAX_POINTS = 20_000  # of one frame's cloud; more slow the viewer down and show nothing new
_GAZE_LENGTH_M = 1.0  # of the gaze ray where no depth says where it ends
_QUALITY = 90  # of JPEG


@dataclass(frozen=True)
class Source:
    """One account of the same seconds: the truth, what was given, or what a model made.

    streams  `rgb`, `depth`, `gaze`, `camera` as in AlignedClip; any further track (S, C) becomes lines over time
    context  streams of another account that these are seen in: generated depth wears the given picture, and stands in
             the world by the given camera; not written again
    """

    streams: Mapping[str, Stream]
    context: Mapping[str, Stream] = field(default_factory=dict)
    colour: str = plots.COLOURS[0]


def write_rerun(
    path: str | Path, sources: Mapping[str, Source], *, intrinsics: Intrinsics | None, name: str = "clip"
) -> Path:
    """Write a `.rrd` file of one clip and return its path; no viewer, display or network is needed.

    sources     by label; poses are shown relative to the first pose of their own source, so that accounts which know
                the world only up to a rigid motion start at the same place
    intrinsics  of the pictures; None: a pinhole camera of 90 degrees is assumed, which the file says
    """
    rr = _rerun()
    path = Path(path)
    depths = [source.streams["depth"].values for source in sources.values() if "depth" in source.streams]
    range_m = depth_range(depths) if depths else (1.0, 2.0)
    with atomic_file(path) as unfinished:
        recording = rr.RecordingStream("egom2p", recording_id=name)
        recording.save(str(unfinished), default_blueprint=_blueprint(rr, sources))
        recording.log("world", rr.ViewCoordinates.RDF, static=True)
        if intrinsics is None:
            words = (
                f"The camera of this clip is not known: a pinhole camera of {FIELD_OF_VIEW_DEG:.0f} degrees is shown."
            )
            recording.log("notes", rr.TextDocument(words), static=True)
        canvas = next((label for label, source in sources.items() if "rgb" in source.streams), None)
        for label, source in sources.items():
            _Branch(rr, recording, label, source, canvas, intrinsics, range_m).write()
        recording.flush()
        recording.disconnect()
    return path


class _Branch:
    """The entities of one source, below `world/<label>` and `<label>`."""

    def __init__(
        self,
        rr: ModuleType,
        recording: Any,
        label: str,
        source: Source,
        canvas: str | None,
        intrinsics: Intrinsics | None,
        range_m: tuple[float, float],
    ) -> None:
        self.rr, self.recording, self.label, self.range_m = rr, recording, label, range_m
        self.own, self.streams = source.streams, {**source.context, **source.streams}
        self.colour = tuple(round(255 * part) for part in to_rgb(source.colour))
        self.canvas = label if "rgb" in self.own else canvas  # whose picture the gaze dot is drawn on
        self.intrinsics = intrinsics
        self.poses_S44 = canonicalise(self.streams["camera"].values) if "camera" in self.streams else None

    def write(self) -> None:
        for name, stream in self.own.items():
            if name == "camera":
                self._camera(stream)
            elif name == "rgb":
                self._rgb(stream)
            elif name == "depth":
                self._depth(stream)
            elif name == "gaze":
                self._gaze(stream)
            elif stream.unit != "text":
                self._track(name, stream)

    def _at(self, time_s: float) -> None:
        self.recording.set_time(_TIMELINE, duration=float(time_s))

    def _log(self, entity: str, *what: Any, static: bool = False) -> None:
        self.recording.log(entity, *what, static=static)

    def _camera(self, stream: Stream) -> None:
        rr, poses_S44 = self.rr, self.poses_S44
        path = rr.LineStrips3D([poses_S44[:, :3, 3]], colors=[self.colour], labels=[self.label])
        self._log(f"world/{self.label}/path", path, static=True)
        size = (1.0, 1.0)
        for name in ("rgb", "depth"):
            if name in self.streams:
                size = self.streams[name].values.shape[1:3]
        camera = self._intrinsics_of(*size)
        pinhole = rr.Pinhole(
            focal_length=(camera.fx, camera.fy),
            principal_point=(camera.cx + 0.5, camera.cy + 0.5),  # there, 0 is the outer corner of the first pixel
            width=camera.width,
            height=camera.height,
            image_plane_distance=0.25,
            color=self.colour,
        )
        self._log(f"world/{self.label}/camera", pinhole, static=True)
        for time_s, pose_44 in zip(stream.times_s, poses_S44, strict=True):
            self._at(time_s)
            transform = rr.Transform3D(translation=pose_44[:3, 3], mat3x3=pose_44[:3, :3])
            self._log(f"world/{self.label}/camera", transform)

    def _rgb(self, stream: Stream) -> None:
        for time_s, frame_HW3 in zip(stream.times_s, stream.values, strict=True):
            self._at(time_s)
            image = self.rr.Image(frame_HW3).compress(jpeg_quality=_QUALITY)
            self._log(f"{self.label}/rgb", image)
            if "camera" in self.own:
                self._log(f"world/{self.label}/camera", image)

    def _depth(self, stream: Stream) -> None:
        """Depth in colour and as a cloud, which wears the colours of the picture where there is one of its size."""
        rr, depth_FHW = self.rr, stream.values
        camera = self._intrinsics_of(*depth_FHW.shape[1:])
        coloured_FHW3 = coloured_depth(depth_FHW, *self.range_m)
        rgb = self.streams.get("rgb")
        wears_rgb = rgb is not None and rgb.values.shape[:3] == depth_FHW.shape
        step = max(1, int(np.ceil(np.sqrt(depth_FHW[0].size / _MAX_POINTS))))
        pixels_HW2 = pixel_grid(camera)[::step, ::step]
        for frame, time_s in enumerate(stream.times_s):
            self._at(time_s)
            self._log(f"{self.label}/depth", rr.Image(coloured_FHW3[frame]).compress(jpeg_quality=_QUALITY))
            sparse_HW = depth_FHW[frame, ::step, ::step]
            points_HW3, exists_HW = unproject(pixels_HW2, sparse_HW, camera)
            is_valid_HW = exists_HW & (sparse_HW > 0)
            colours_HW3 = (rgb.values if wears_rgb else coloured_FHW3)[frame, ::step, ::step]
            points_P3 = self._into_world(points_HW3[is_valid_HW], time_s)
            self._log(f"world/{self.label}/points", rr.Points3D(points_P3, colors=colours_HW3[is_valid_HW], radii=0.01))

    def _gaze(self, stream: Stream) -> None:
        """The dot on the picture, and the ray into the world, which ends at the depth below the dot."""
        rr = self.rr
        size = next((self.streams[name].values.shape[1:3] for name in ("rgb", "depth") if name in self.streams), None)
        height, width = size or (1, 1)
        camera = self._intrinsics_of(height, width)
        rays_S3, exists_S = gaze_rays(stream.values, camera)
        pixels_S2 = pixels_from_gaze(stream.values, width, height)
        for sample, time_s in enumerate(stream.times_s):
            self._at(time_s)
            if not (stream.is_valid[sample] and exists_S[sample]):
                if self.canvas is not None:
                    self._log(f"{self.canvas}/rgb/gaze_{self.label}", rr.Clear(recursive=False))
                self._log(f"world/{self.label}/gaze", rr.Clear(recursive=False))
                continue
            if self.canvas is not None:
                dot = rr.Points2D([pixels_S2[sample] + 0.5], colors=[self.colour], radii=0.02 * height)
                self._log(f"{self.canvas}/rgb/gaze_{self.label}", dot)
            length_m = self._gaze_length(pixels_S2[sample], time_s, rays_S3[sample])
            start_3, end_3 = self._into_world(np.stack([np.zeros(3), rays_S3[sample] * length_m]), time_s)
            arrow = rr.Arrows3D(origins=[start_3], vectors=[end_3 - start_3], colors=[self.colour])
            self._log(f"world/{self.label}/gaze", arrow)

    def _gaze_length(self, pixel_2: np.ndarray, time_s: float, ray_3: np.ndarray) -> float:
        if "depth" not in self.streams:
            return _GAZE_LENGTH_M
        stream = self.streams["depth"]
        frame_HW = stream.values[samples_at_frames(stream.times_s, np.array([time_s]))[0]]
        column, row = np.clip(np.round(pixel_2), 0, np.array(frame_HW.shape[::-1]) - 1).astype(int)
        depth_m = float(frame_HW[row, column])
        return depth_m / max(float(ray_3[2]), 1e-6) if depth_m > 0 else _GAZE_LENGTH_M

    def _track(self, name: str, stream: Stream) -> None:
        values_SC = np.asarray(stream.values, np.float64).reshape(len(stream.values), -1)
        for time_s, value_C, is_valid in zip(stream.times_s, values_SC, stream.is_valid, strict=True):
            if is_valid:
                self._at(time_s)
                self._log(f"tracks/{name}/{self.label}", self.rr.Scalars(value_C))

    def _into_world(self, points_P3: np.ndarray, time_s: float) -> np.ndarray:
        """Points of the camera at a time, in the world of this source's first pose."""
        if self.poses_S44 is None:
            return points_P3
        pose_44 = self.poses_S44[samples_at_frames(self.streams["camera"].times_s, np.array([time_s]))[0]]
        return points_P3 @ pose_44[:3, :3].T + pose_44[:3, 3]

    def _intrinsics_of(self, height: int, width: int) -> Intrinsics:
        """Intrinsics at a picture size; estimates may be smaller than the clip they belong to."""
        if self.intrinsics is not None:
            return self.intrinsics.resized(int(width), int(height))
        focal = 0.5 * width / np.tan(np.radians(FIELD_OF_VIEW_DEG) / 2)
        return Intrinsics(int(width), int(height), focal, focal, (width - 1) / 2, (height - 1) / 2)


def _blueprint(rr: ModuleType, sources: Mapping[str, Source]) -> Any:
    """World on the left, the pictures of every source on the right, lines of further tracks below."""
    rrb = rr.blueprint
    pictures, has_track = [], False
    for label, source in sources.items():
        pictures += [
            rrb.Spatial2DView(origin=f"{label}/{name}", name=f"{label}: {name}")
            for name in ("rgb", "depth")
            if name in source.streams
        ]
        known = ("rgb", "depth", "gaze", "camera")
        has_track |= any(name not in known and stream.unit != "text" for name, stream in source.streams.items())
    views = [rrb.Spatial3DView(origin="world", name="world")]
    if pictures:
        views.append(rrb.Grid(*pictures))
    rows = [rrb.Horizontal(*views)]
    if has_track:
        rows.append(rrb.TimeSeriesView(origin="tracks", name="tracks"))
    return rrb.Blueprint(rrb.Vertical(*rows), collapse_panels=True)


def _rerun() -> ModuleType:
    try:
        import rerun
        import rerun.blueprint
    except ImportError as missing:
        raise ValueError("rerun is not installed; pip install 'egom2p[viz]'") from missing
    return rerun
