"""Video files: frames decoded when asked for, and writing mp4 and WebM.

The index of a file (times, key frames, completeness) is PyAV's; pixels come from decord where it is installed and
agrees with that index, else, and for what decord cannot decode, from PyAV. T frames of the file, N frames asked for,
H, W pixels.
"""

import io
import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np

from egom2p.contracts import Provenance, Recording, Stream
from egom2p.storage import atomic_file

try:
    import decord
except ImportError:  # no wheel for this machine; PyAV reads the same frames
    decord = None

Decoder = Literal["auto", "decord", "pyav"]
_LOG = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
_CODECS = {".mp4": ("mp4", "libx264"), ".webm": ("webm", "libvpx-vp9")}
# Containers that do not store a frame count store a duration; a tail of half a second may honestly hold no frame.
_DURATION_SLACK_S = 0.5


class _Index(NamedTuple):
    """pts (T,) int64 in presentation order, seconds per pts unit, rows of key frames, picture size and turn."""

    pts: np.ndarray
    time_base: Fraction
    key_rows: np.ndarray
    height: int
    width: int
    rotation_deg: int


class VideoFile:
    """Frames of one video; a FrameSource of RGB frames (N, H, W, 3) uint8.

    times_s         (T,) float64, presentation times; the first frame is at 0
    height, width   of an upright frame (a rotation noted in the file is applied)
    decoder         "decord" or "pyav", what `read` uses; decord gives way to PyAV, with a warning in the log, when it
                    cannot decode a frame and was not asked for by name

    Opening reads the packet index, so a file that is cut short is an error here, not hours later.
    """

    def __init__(self, path: str | Path, *, decoder: Decoder = "auto") -> None:
        self.path = Path(path)
        self._index = _read_index(self.path)
        self.height, self.width = self._index.height, self._index.width
        seconds = self._index.pts.astype(np.float64) * float(self._index.time_base)
        self.times_s = seconds - seconds[0]
        self._open: Any = None
        self._may_change = decoder == "auto"
        self.decoder = self._choose_decoder(decoder)

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def rate_hz(self) -> float:
        """Mean frame rate; 0 for a single frame."""
        return (len(self) - 1) / float(self.times_s[-1]) if len(self) > 1 else 0.0

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 at `indices` (any order, repeats allowed)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) == 0:
            return np.zeros((0, self.height, self.width, 3), np.uint8)
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"{self.path}: frames {indices.min()}..{indices.max()} of {len(self)}")
        rows, positions = np.unique(indices, return_inverse=True)
        frames = self._read_decord(rows) if self.decoder == "decord" else self._read_pyav(rows)
        return frames[positions]

    def close(self) -> None:
        if self._open is not None and self.decoder == "pyav":
            self._open.close()
        self._open = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}

    def _choose_decoder(self, wanted: Decoder) -> str:
        if wanted == "pyav" or (wanted == "auto" and (decord is None or self._index.rotation_deg)):
            return "pyav"
        if decord is None:
            raise ValueError(f"{self.path}: decord is not installed; use decoder='pyav'")
        try:
            reader = decord.VideoReader(str(self.path), num_threads=1)
        except (RuntimeError, decord.DECORDError) as error:
            if wanted == "decord":
                raise ValueError(f"{self.path}: decord cannot open this video: {error}") from error
            return "pyav"
        if len(reader) != len(self):  # edit lists and odd containers: decord's FFmpeg is older than PyAV's
            if wanted == "decord":
                raise ValueError(f"{self.path}: decord finds {len(reader)} frames, the file has {len(self)}")
            return "pyav"
        self._open = reader
        return "decord"

    def _read_decord(self, rows: np.ndarray) -> np.ndarray:
        if self._open is None:
            self._open = decord.VideoReader(str(self.path), num_threads=1)
        try:
            return self._open.get_batch(rows.tolist()).asnumpy()
        except decord.DECORDError as error:
            if not self._may_change:
                raise ValueError(f"{self.path}: frames {rows[0]}..{rows[-1]} cannot be decoded: {error}") from error
            # Known: decord cannot hand over some narrow pictures (their lines are padded in memory).
            reason = str(error).splitlines()[0]
            _LOG.warning("%s: decord cannot decode it (%s); PyAV reads it instead", self.path, reason)
        self._open, self.decoder = None, "pyav"
        return self._read_pyav(rows)

    def _read_pyav(self, rows: np.ndarray) -> np.ndarray:
        if self._open is None:
            self._open = av.open(str(self.path))
            self._open.streams.video[0].codec_context.thread_count = 1
        key_of_row = np.searchsorted(self._index.key_rows, rows, side="right") - 1
        found: dict[int, np.ndarray] = {}
        for key in np.unique(key_of_row):
            wanted = set(rows[key_of_row == key].tolist())
            # Frames shown before the key frame they follow in an open group need the group before: go back until found.
            while wanted - set(found) and key >= 0:
                found |= self._decode_from(int(self._index.key_rows[key]), wanted - set(found))
                key -= 1
            if wanted - set(found):
                raise ValueError(f"{self.path}: frame {min(wanted - set(found))} of {len(self)} cannot be decoded")
        return np.stack([found[row] for row in rows.tolist()])

    def _decode_from(self, key_row: int, wanted: set[int]) -> dict[int, np.ndarray]:
        """Wanted rows found when decoding starts at a key frame."""
        container, pts = self._open, self._index.pts
        stream = container.streams.video[0]
        container.seek(int(pts[key_row]), stream=stream, backward=True)
        found: dict[int, np.ndarray] = {}
        try:
            for frame in container.decode(stream):
                row = int(np.searchsorted(pts, frame.pts))
                if row in wanted and pts[row] == frame.pts:
                    found[row] = np.rot90(frame.to_ndarray(format="rgb24"), self._index.rotation_deg // 90)
                if len(found) == len(wanted) or row > max(wanted):
                    break
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: frames {min(wanted)}..{max(wanted)} cannot be decoded: {error}") from error
        return found


def open_video(path: str | Path, *, decoder: Decoder = "auto") -> VideoFile:
    """Open a video. Raises ValueError naming file, frames found and wanted when it is cut short or unreadable."""
    return VideoFile(path, decoder=decoder)


def video_recording(path: str | Path) -> Recording:
    """A video file as a recording of rgb alone, named as the file; frames are decoded when they are asked for."""
    path = Path(path)
    video = open_video(path)
    stream = Stream(video, np.ones(len(video), bool), video.times_s, "uint8")
    return Recording(path.stem, {"rgb": stream}, None, Provenance("video", path.stem, source=str(path)))


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, *, crf: int = 18) -> Path:
    """Write RGB frames (H, W, 3) uint8 as `.mp4` (H.264) or `.webm` (VP9), atomically; returns the path.

    crf is the codec's quality number (lower is better). An odd height or width repeats its last row or column,
    which the 4:2:0 sampling that every browser plays needs.
    """
    path = Path(path)
    if path.suffix not in _CODECS:
        raise ValueError(f"{path}: a video is written as {sorted(_CODECS)}")
    with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
        _encode(file, frames, fps, container_format=path.suffix, crf=crf)
    return path


def encode_webm(frames: Iterable[np.ndarray], fps: float, *, crf: int = 30) -> bytes:
    """RGB frames (H, W, 3) uint8 as the bytes of a WebM (VP9) video, e.g. to embed in a page."""
    buffer = io.BytesIO()
    _encode(buffer, frames, fps, container_format=".webm", crf=crf)
    return buffer.getvalue()


def _encode(file: Any, frames: Iterable[np.ndarray], fps: float, *, container_format: str, crf: int) -> None:
    container_name, codec = _CODECS[container_format]
    options = (
        {"crf": str(crf)} if codec == "libx264" else {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": "4"}
    )
    num_frames = 0
    with av.open(file, "w", format=container_name) as container:
        for frame in frames:
            picture = _even(np.asarray(frame))
            if num_frames == 0:
                stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            num_frames += 1
        if num_frames == 0:
            raise ValueError("a video needs at least one frame, got none")
        container.mux(stream.encode(None))


def _even(picture: np.ndarray) -> np.ndarray:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a frame is (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    height, width = picture.shape[:2]
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _read_index(path: Path) -> _Index:
    """Times and key frames from the packets, without decoding more than one frame."""
    if not path.is_file():
        raise ValueError(f"{path}: no such video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: the file has no video stream")
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            complete = [p for p in packets if not p.is_corrupt]
            _check_complete(path, container, stream, len(complete), has_cut_packet=len(complete) < len(packets))
            stamps = [(p.pts if p.pts is not None else p.dts, p.is_keyframe) for p in complete]
            container.seek(stream.start_time or 0, stream=stream, backward=True)
            frame = next(container.decode(stream))
            rotation_deg = int(getattr(frame, "rotation", 0)) % 360
            time_base = stream.time_base
            height, width = (frame.height, frame.width) if rotation_deg % 180 == 0 else (frame.width, frame.height)
    except (av.FFmpegError, StopIteration) as error:
        raise ValueError(
            f"{path}: not a readable video (found 0 frames, wanted at least 1): {error}. "
            "An mp4 without its index was cut short or is still being written"
        ) from error
    stamps.sort()
    pts = np.array([stamp for stamp, _ in stamps], dtype=np.int64)
    if len(pts) > 1 and np.diff(pts).min() <= 0:
        row = int(np.argmin(np.diff(pts))) + 1
        raise ValueError(f"{path}: frame {row} has the time of the frame before it; times must increase")
    key_rows = np.flatnonzero([is_key for _, is_key in stamps])
    if len(key_rows) == 0 or key_rows[0] != 0:
        key_rows = np.concatenate([[0], key_rows]).astype(np.int64)
    return _Index(pts, time_base, key_rows, height, width, rotation_deg)


def _check_complete(path: Path, container: Any, stream: Any, found: int, *, has_cut_packet: bool) -> None:
    wanted = stream.frames
    if wanted == 0 and container.duration and len(container.streams) == 1 and stream.average_rate:
        slack = _DURATION_SLACK_S * float(stream.average_rate)
        expected = container.duration / av.time_base * float(stream.average_rate)
        wanted = round(expected) if found < expected - slack else 0
    if found == 0 or has_cut_packet or found < wanted:
        raise ValueError(
            f"{path}: the video is cut short: found {found} complete frames, wanted {wanted or 'more'}; "
            "copy it again or cut it to what is there"
        )
