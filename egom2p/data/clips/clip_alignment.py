"""From a recording with many clocks to clips on two: pictures at one rate, tracks at another.

First a plan (which windows, which streams each of them has, why others are missing), made from times and tracks alone;
then clips, which read pictures. F frames and S samples of a clip, H, W pixels.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from egom2p.config import Count, NotNegative, Positive, Share, strict
from egom2p.contracts import AlignedClip, Recording, Stream, quantity_of_stream
from egom2p.contracts.quantities import PICTURE_STREAMS
from egom2p.data.clips.clip_store import LARGEST_DEPTH_M
from egom2p.data.clips.cropping import Crop, Rectification, centre_crop, check_same_aspect, pinhole_view
from egom2p.data.clips.resampling import nearest_frames, poses_at, sample_period_s, track_at
from egom2p.data.clips.upright import AS_STORED, CLOCKWISE
from egom2p.geometry import LONGEST_SPAN_S, check_whole_picture
from egom2p.jobs.progress import timed

_TEXT = "caption"
_TIME_TOLERANCE_S = 1e-6
_LONGEST_NAME = 72


@strict
class RectifyConfig:
    """Every lens becomes one pinhole camera; needs intrinsics. What it did not see is black, and 0 in depth."""

    fov_deg: Positive  # from the left to the right edge of the picture

    def __post_init__(self) -> None:
        if not 1 <= self.fov_deg <= 170:
            raise ValueError(f"fov_deg must be in [1, 170], got {self.fov_deg}")


View = Crop | Rectification


@strict
class ClipConfig:
    """How recordings become clips: length, rates, picture size, and how much of a stream a clip may miss."""

    height: Count
    width: Count
    duration_s: Positive = 2.0
    stride_s: Positive = 2.0  # from the start of one clip to the next; smaller than duration_s: they overlap
    video_rate_hz: Positive = 8.0  # frames a second
    track_rate_hz: Positive = 30.0  # samples of camera, gaze and other tracks a second
    # `common`: only where all streams of the recording run. `any`: everywhere; streams that miss there are absent.
    span: Literal["common", "any"] = "common"
    max_frame_offset_s: NotNegative = 0.1  # a frame further from its time is missing
    max_pose_gap_s: NotNegative = 0.2  # longer ones between poses are not interpolated
    max_gaze_gap_s: NotNegative = 0.15  # the same between samples of gaze
    max_track_gap_s: NotNegative = 0.2  # any other track
    # Gaze and other tracks: share of valid samples below which the stream is absent. Pictures and poses need all.
    min_valid_fraction: Share = 0.5
    # Cameras of different lenses see the same thing at different sizes, which depth and camera cannot know.
    rectify: RectifyConfig | None = None  # by default the centred crop of the picture as it is
    gaze_margin: NotNegative = 0.0  # gaze this far outside the cropped picture still counts (published data: 0.2)

    @property
    def num_frames(self) -> int:
        """F."""
        return max(1, round(self.duration_s * self.video_rate_hz))

    @property
    def num_samples(self) -> int:
        """S."""
        return max(1, round(self.duration_s * self.track_rate_hz))


class RecordingTooShort(ValueError):
    """No clip fits into what the streams of a recording have in common."""


@dataclass(frozen=True)
class Window:
    """One clip to be: its number in the recording, start on the recording's clock, streams, and why others miss."""

    index: int
    start_s: float
    streams: tuple[str, ...]
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipPlan:
    """Windows of a recording that become clips.

    num_empty   windows without any usable stream, left out
    unused_s    seconds in which some stream runs that no window covers
    """

    recording: str
    windows: tuple[Window, ...]
    num_empty: int
    unused_s: float


def clip_key(recording: str, index: int) -> str:
    """Key `<recording>_<index>` of letters, digits, `_` and `-`; a name that had to change also gets a short hash.

    A long name loses its end: a name in a tar has 100 bytes.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", recording)[:_LONGEST_NAME]
    if safe != recording:
        safe += "-" + hashlib.sha256(recording.encode()).hexdigest()[:8]
    return f"{safe}_{index:06d}"


def plan_clips(recording: Recording, config: ClipConfig, *, has_pictures: bool = True) -> ClipPlan:
    """Which clips a recording gives. Raises RecordingTooShort naming recording and spans.

    Of pictures, only depth is looked at, a frame per clip where the first holds a distance, since a clip whose depth is
    all invalid has none. has_pictures: False for an outline, whose pictures are empty.
    """
    signals = {name: stream for name, stream in recording.streams.items() if name != _TEXT}
    if not signals:
        raise ValueError(f"{_where(recording)}: no stream to cut clips from")
    first = {name: float(stream.times_s[0]) for name, stream in signals.items()}
    last = {name: float(s.times_s[-1]) + sample_period_s(s.times_s) / 2 for name, s in signals.items()}
    # The time of the last frame or sample of a window, from its start.
    reach = {name: _grid(0.0, name, config)[-1] for name in signals}
    choose_first, choose_last = (max, min) if config.span == "common" else (min, max)
    start_s = choose_first(first.values())
    end_s = choose_last(last[name] - reach[name] for name in signals)
    if end_s - start_s > LONGEST_SPAN_S:
        spans = ", ".join(f"{name} {first[name]:.3f}-{last[name]:.3f} s" for name in sorted(signals))
        raise ValueError(
            f"{_where(recording)}: found {spans}: {(end_s - start_s) / 86400:.6g} days of clips, which nobody means; "
            "clocks that differ are brought together by time_unit and offset_s"
        )
    count = int(np.floor((end_s - start_s + _TIME_TOLERANCE_S) / config.stride_s)) + 1
    if count < 1:
        spans = ", ".join(f"{name} {first[name]:.3f}-{last[name]:.3f} s" for name in sorted(signals))
        later, earlier = max(first, key=first.__getitem__), min(last, key=last.__getitem__)
        advice = "shorter clips: clip.duration_s"
        if config.span == "common" and first[later] > last[earlier]:
            advice = f"{later} begins after {earlier} ends; clocks are brought together by time_unit and offset_s"
        raise RecordingTooShort(
            f"{_where(recording)}: found {spans}; wanted {config.duration_s:g} s in which "
            f"{'all streams run' if config.span == 'common' else 'a stream runs'} ({advice})"
        )
    view = _picture_view(recording, config)
    windows = [
        _plan_window(recording, k, start_s + k * config.stride_s, config, view, has_pictures) for k in range(count)
    ]
    covered_s = min(config.stride_s, config.duration_s) * (count - 1) + config.duration_s
    total_s = max(last.values()) - min(first.values())
    return ClipPlan(
        recording=recording.name,
        windows=tuple(window for window in windows if window.streams),
        num_empty=sum(not window.streams for window in windows),
        unused_s=max(0.0, total_s - covered_s),
    )


# Small pictures by stream and frame number.
KeptPictures = dict[str, dict[int, np.ndarray]]


def cut_clip(
    recording: Recording, window: Window, config: ClipConfig, *, kept: KeptPictures | None = None
) -> AlignedClip:
    """The clip of one window of the recording's plan.

    kept    pictures of the last window, which this one replaces by its own: in windows that are cut in order, what
            neighbours share is decoded once
    """
    view = _picture_view(recording, config)
    kept = {} if kept is None else kept
    streams = {name: _cut_stream(recording, name, window.start_s, config, view, kept) for name in window.streams}
    intrinsics = recording.intrinsics
    if intrinsics is not None and view is not None:
        intrinsics = view.intrinsics(intrinsics, width=config.width, height=config.height)
    extra = {"video_rate_hz": config.video_rate_hz, "track_rate_hz": config.track_rate_hz}
    if view is not None:
        pictures = next((recording.streams[name].values for name in PICTURE_STREAMS if name in recording.streams), None)
        turn = getattr(pictures, "added_turn", AS_STORED)
        extra["picture"] = view.note() | {"rotated_deg": next(deg for deg, known in CLOCKWISE.items() if known == turn)}
    return AlignedClip(
        key=clip_key(recording.name, window.index),
        streams=streams,
        intrinsics=intrinsics,
        provenance=replace(recording.provenance, start_s=window.start_s),
        extra=extra,
    )


def cut_clips(recording: Recording, config: ClipConfig) -> Iterator[AlignedClip]:
    """All clips of a recording, in time order; what is missing in them is in `plan_clips`."""
    kept: KeptPictures = {}
    for window in plan_clips(recording, config).windows:
        yield cut_clip(recording, window, config, kept=kept)


def _plan_window(
    recording: Recording, index: int, start_s: float, config: ClipConfig, view: View | None, has_pictures: bool
) -> Window:
    present, absent = [], {}
    for name, stream in recording.streams.items():
        if name == _TEXT:
            if _caption_at(stream, start_s + config.duration_s / 2):
                present.append(name)
            continue
        times_s = _grid(start_s, name, config)
        if name in PICTURE_STREAMS:
            _, is_valid = nearest_frames(stream, times_s, max_offset_s=config.max_frame_offset_s)
        else:
            _, is_valid = _track_values(stream, name, times_s, config, view)
        needs_all = name in PICTURE_STREAMS or quantity_of_stream(name).is_relative
        wanted = len(times_s) if needs_all else max(1, int(np.ceil(config.min_valid_fraction * len(times_s))))
        if is_valid.sum() < wanted:
            absent[name] = f"{int(is_valid.sum())} of {len(times_s)} samples valid, wanted {wanted}"
        elif name == "depth" and has_pictures and not _has_depth(stream, times_s, config, view):
            absent[name] = f"no pixel of its {len(times_s)} pictures holds a distance below {LARGEST_DEPTH_M:g} m"
        else:
            present.append(name)
    if set(present) <= {_TEXT}:
        present = []
    return Window(index=index, start_s=float(start_s), streams=tuple(sorted(present)), absent=absent)


def _has_depth(stream: Stream, times_s: np.ndarray, config: ClipConfig, view: View) -> bool:
    """Whether any picture of a clip holds a distance; stops at the first that does."""
    indices, _ = nearest_frames(stream, times_s, max_offset_s=config.max_frame_offset_s)
    for index in np.unique(indices):
        depth_m = view.depth(stream.rows(np.array([index])), width=config.width, height=config.height)
        if ((depth_m > 0) & (depth_m < LARGEST_DEPTH_M)).any():
            return True
    return False


def _cut_stream(
    recording: Recording, name: str, start_s: float, config: ClipConfig, view: View | None, kept: KeptPictures
) -> Stream:
    stream = recording.streams[name]
    if name == _TEXT:
        caption = np.array([_caption_at(stream, start_s + config.duration_s / 2)])
        return Stream(caption, np.ones(1, dtype=bool), np.array([start_s]), stream.unit)
    times_s = _grid(start_s, name, config)
    if name not in PICTURE_STREAMS:
        values, is_valid = _track_values(stream, name, times_s, config, view)
        return Stream(values, is_valid, times_s, stream.unit)
    indices, is_valid = nearest_frames(stream, times_s, max_offset_s=config.max_frame_offset_s)
    shrink = view.rgb if name == "rgb" else view.depth
    before, kept[name] = kept.get(name, {}), {}
    # One after the other: a window of whole frames takes a hundred times the memory of what it becomes.
    for index in dict.fromkeys(indices.tolist()):
        small = before.get(index)
        if small is None:
            with timed("decode"):
                picture = stream.rows(np.array([index]))
            with timed("crop"):
                small = shrink(picture, width=config.width, height=config.height)[0]
            del picture  # else it stays while the next one is decoded
        kept[name][index] = small
    pictures = np.stack([kept[name][index] for index in indices.tolist()])
    if name == "depth":
        is_valid = is_valid & (pictures > 0).any(axis=(1, 2))
    return Stream(pictures, is_valid, times_s, stream.unit)


def _track_values(
    stream: Stream, name: str, times_s: np.ndarray, config: ClipConfig, view: View | None
) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity of a track at the samples of a clip."""
    if name == "camera":
        return poses_at(stream, times_s, max_gap_s=config.max_pose_gap_s)
    if name != "gaze":
        values, is_valid = track_at(stream, times_s, max_gap_s=config.max_track_gap_s)
        return values.astype(np.float32), is_valid
    gaze, is_valid = track_at(stream, times_s, max_gap_s=config.max_gaze_gap_s)
    if view is not None:
        gaze, has_place = view.gaze(gaze)
        is_valid = is_valid & has_place
    low, high = -config.gaze_margin, 1 + config.gaze_margin
    is_valid = is_valid & ((gaze >= low) & (gaze <= high)).all(axis=1)
    return np.where(is_valid[:, None], gaze, 0.0).astype(np.float32), is_valid


def _grid(start_s: float, name: str, config: ClipConfig) -> np.ndarray:
    """Times of a stream's frames or samples in a clip."""
    count, rate_hz = (
        (config.num_frames, config.video_rate_hz)
        if name in PICTURE_STREAMS
        else (config.num_samples, config.track_rate_hz)
    )
    return start_s + np.arange(count) / rate_hz


def _picture_view(recording: Recording, config: ClipConfig) -> View | None:
    """The view of the recording's picture: of RGB, else depth, else the size that intrinsics or gaze state.

    None: nothing has a size. Raises ValueError naming the sizes where they are not of one picture, and intrinsics that
    cannot be of the whole of it.
    """
    sizes = {
        name: _picture_size(recording.streams[name].values) for name in PICTURE_STREAMS if name in recording.streams
    }
    intrinsics = recording.intrinsics
    if intrinsics is not None:
        sizes["intrinsics"] = intrinsics.width, intrinsics.height
    if recording.gaze_size is not None:
        sizes["gaze"] = recording.gaze_size
    if not sizes:
        return None
    first, *others = sizes
    for name in others:
        try:
            check_same_aspect(sizes[name], sizes[first], name)
        except ValueError as error:
            raise ValueError(
                f"{_where(recording)}: {first} and {name} show different pictures (width, height): {sizes}; {error}"
            ) from None
    if intrinsics is not None:
        try:
            check_whole_picture(intrinsics)
        except ValueError as error:
            raise ValueError(f"{_where(recording)}: intrinsics: {error}") from None
    width, height = sizes[first]
    if config.rectify is None:
        return centre_crop(width, height, aspect=config.width / config.height)
    if intrinsics is None:
        raise ValueError(f"{_where(recording)}: clip.rectify needs intrinsics, found none")
    return pinhole_view(
        intrinsics.resized(width, height),
        fov_deg=config.rectify.fov_deg,
        width=config.width,
        height=config.height,
    )


def _picture_size(values: object) -> tuple[int, int]:
    """Width and height of an array of pictures or a FrameSource."""
    if hasattr(values, "shape"):
        return int(values.shape[2]), int(values.shape[1])
    if hasattr(values, "height") and hasattr(values, "width"):
        return int(values.width), int(values.height)
    return _picture_size(values.read(np.zeros(1, np.int64)))


def _caption_at(stream: Stream, time_s: float) -> str:
    """The caption that holds at a time; empty before the first."""
    row = int(np.searchsorted(stream.times_s, time_s, side="right")) - 1
    return str(stream.values[row]) if row >= 0 and stream.is_valid[row] else ""


def _where(recording: Recording) -> str:
    return recording.provenance.source or recording.name


def clip_config_for(
    networks: Iterable[Any], *, where: str, stride_s: float | None = None, span: str = "common"
) -> ClipConfig:
    """Picture size, rates and length of the clips that these tokenizers read.

    networks   configs of their networks: a video codec's knows `num_frames`, `rate_hz`, `height` and `width`, a
               track's `num_samples` and `rate_hz`
    where      whose tokenizers they are, for the error
    stride_s   seconds from one clip to the next; None: clips touch
    Raises ValueError without a video codec, since nothing else knows the size of pictures.
    """
    networks = list(networks)
    video = next((network for network in networks if hasattr(network, "num_frames")), None)
    if video is None:
        raise ValueError(f"{where}: no video tokenizer, so the size of pictures is not known")
    track = next((network for network in networks if hasattr(network, "num_samples")), video)
    duration_s = video.num_frames / video.rate_hz
    return ClipConfig(
        height=video.height,
        width=video.width,
        duration_s=duration_s,
        stride_s=stride_s or duration_s,
        video_rate_hz=video.rate_hz,
        track_rate_hz=track.rate_hz,
        span=span,
    )
