"""Video files: frames decoded when asked for, and writing mp4 and WebM.

A frame is what its own timestamp says: what is decoded is told by its time, never by counting from a key frame, which
finds other frames in open groups of pictures. T frames of the file, N frames asked for, H, W pixels.
"""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from egom2p.contracts import Provenance, Recording, Stream
from egom2p.data.clips.video_index import frames_from_key, open_container, read_index
from egom2p.storage import atomic_file

Decoder = Literal["pyav", "decord", "torchcodec"]
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
)
_CODECS = {".mp4": ("mp4", "libx264"), ".webm": ("webm", "libvpx-vp9")}
# Decoding on costs less than a jump, which empties the decoder and starts at a key frame again.
_WORTH_A_JUMP = 24
_TORCHCODEC_THREADS = 4  # its default of one takes several times as long
_TIME_TOLERANCE = 0.25  # of the time between frames


class VideoFile:
    """Frames of one video, upright and with square pixels; a FrameSource of RGB frames (N, H, W, 3) uint8.

    times_s                     (T,) float64, presentation times; the first frame is at 0
    height, width               of a frame as `read` returns it
    stored_height, stored_width of the picture in the file, before it is scaled to square pixels and turned
    turn                        that brings the stored picture upright
    notes                       what a person should know of the material (interlaced, HDR, frames with one time)
    decoder                     what `read` uses; another one than PyAV refuses files it is not proven right for

    Opening reads the packets, so a file that is cut short is an error here, not hours later. Reading in order decodes
    every frame once: the decoder stays where it is between two calls.
    """

    def __init__(self, path: str | Path, *, decoder: Decoder = "pyav") -> None:
        self.path, self.decoder = Path(path), decoder
        self._index = index = read_index(self.path)
        self.stored_width, self.stored_height, self.notes = index.width, index.height, index.notes
        self._square = max(1, round(index.width * index.pixel_aspect)), index.height
        self.turn = index.turn
        self.width, self.height = index.turn.size(*self._square)
        self.times_s = (index.pts - index.pts[0]).astype(np.float64) * float(index.time_base)
        self._reset()
        if decoder != "pyav":
            self._check_other_decoder()

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def rate_hz(self) -> float:
        """Mean frame rate; 0 for a single frame."""
        return (len(self) - 1) / float(self.times_s[-1]) if len(self) > 1 else 0.0

    @property
    def is_as_stored(self) -> bool:
        """Whether frames have the pixels of the file: neither turned nor scaled to square ones."""
        return not self.turn and (self.width, self.height) == (self.stored_width, self.stored_height)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 at `indices` (any order, repeats allowed)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"{self.path}: frames {indices.min()}..{indices.max()} of {len(self)}")
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        rows, positions = np.unique(indices, return_inverse=True)
        if len(rows) and self.decoder != "pyav":
            frames[:] = self._read_other(rows)[positions]
            return frames
        for number, row in enumerate(rows.tolist()):
            frames[positions == number] = self._frame(row)
        return frames

    def close(self) -> None:
        if self._container is not None:
            self._decoded = None
            self._container.close()
        self._reset()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_container": None, "_decoded": None, "_at": -1, "_last": None, "_other": None}

    def _reset(self) -> None:
        self._container: Any = None
        self._decoded: Iterator[tuple[int, av.VideoFrame]] | None = None
        self._at = -1  # row decoded last
        self._last: tuple[int, np.ndarray] | None = None
        self._other: Any = None

    def _frame(self, row: int) -> np.ndarray:
        if self._last is None or self._last[0] != row:
            self._last = row, self._upright(self._find(row), row)
        return self._last[1]

    def _find(self, row: int) -> av.VideoFrame:
        """Decode until a row comes, from the key frame before it or from where the decoder stands."""
        number = int(np.searchsorted(self._index.key_rows, row, side="right")) - 1
        key_row = int(self._index.key_rows[number])
        if self._decoded is None or row <= self._at or key_row > self._at + _WORTH_A_JUMP:
            self._begin(number)
        else:
            number += 1  # not found from here: the key frame itself is tried next
        while True:
            try:
                for at, frame in self._decoded:
                    self._at = at
                    if at == row:
                        return frame
                    if at > row:
                        break
            except av.FFmpegError as error:
                self._decoded = None
                raise ValueError(f"{self.path}: frame {row} of {len(self)} cannot be decoded: {error}") from error
            # A frame shown before the key frame it follows (an open group) needs the group before; a container that
            # seeks too far needs an earlier start; the start of the file is the last one.
            if number < 0:
                self._decoded = None
                raise ValueError(f"{self.path}: frame {row} of {len(self)} cannot be decoded")
            number -= 1
            self._begin(number)

    def _begin(self, number: int) -> None:
        """Go to key frame `number`; -1 is the start of the file, whatever is there."""
        index = self._index
        if index.ordinals is not None:
            number = -1
        if self._container is None or number < 0:
            self.close()
            self._container = open_container(self.path)
            self._container.streams[index.stream].codec_context.thread_count = 1
        stream = self._container.streams[index.stream]
        if number >= 0:
            self._container.seek(int(index.pts[index.key_rows[number]]), stream=stream, backward=True)
        self._at = -1
        self._decoded = self._rows(stream)

    def _rows(self, stream: Any) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames that are in the index, with their rows, from where the container stands."""
        index = self._index
        for ordinal, frame in enumerate(frames_from_key(self._container, stream)):
            position = ordinal if index.ordinals is not None else frame.pts
            if position is None:
                continue
            known = index.pts if index.ordinals is None else index.ordinals
            row = int(np.searchsorted(known, position))
            if row < len(known) and known[row] == position:
                yield row, frame

    def _upright(self, frame: av.VideoFrame, row: int) -> np.ndarray:
        if (frame.width, frame.height) != (self.stored_width, self.stored_height):
            raise ValueError(
                f"{self.path}: frame {row} is {frame.width}x{frame.height}, the first "
                f"{self.stored_width}x{self.stored_height}; wanted one size"
            )
        if frame.is_corrupt:
            raise ValueError(f"{self.path}: frame {row} of {len(self)} is damaged")
        if self._square != (frame.width, frame.height):
            width, height = self._square
            frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
        return self._index.turn.frames(frame.to_ndarray(format="rgb24"), first_axis=0)

    def _check_other_decoder(self) -> None:
        """Refuse what another decoder cannot be proven right for: wrong frames come without an error."""
        reasons = []
        if not self.is_as_stored:
            reasons.append("its picture is to be turned or scaled")
        if self._index.ordinals is not None:
            reasons.append("its frames cannot be told by their times")
        if self.decoder == "decord" and not self._index.is_plain:
            # decord counts from key frames (its issue 325): in open groups of pictures it returns other frames.
            reasons.append(
                "it has several video streams, frames that are shown before the key frame they follow, or a container "
                "other than MP4 and Matroska"
            )
        if reasons:
            raise ValueError(
                f"{self.path}: not proven right with decoder={self.decoder}: {', '.join(reasons)}; use pyav"
            )
        self._open_other()
        found = len(self._other)
        if found != len(self):
            raise ValueError(f"{self.path}: {self.decoder} finds {found} frames, the file has {len(self)}; use pyav")

    def _open_other(self) -> None:
        try:
            if self.decoder == "decord":
                import decord

                self._other = decord.VideoReader(str(self.path), num_threads=1)
            else:
                from torchcodec.decoders import VideoDecoder

                # Exact: it looks at every packet instead of trusting the header.
                self._other = VideoDecoder(
                    str(self.path),
                    stream_index=self._index.stream,
                    seek_mode="exact",
                    dimension_order="NHWC",
                    num_ffmpeg_threads=_TORCHCODEC_THREADS,
                )
        except ImportError as error:
            raise ValueError(f"{self.path}: decoder={self.decoder} is not installed; use pyav") from error
        except Exception as error:  # of their own kinds
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path}: {self.decoder} cannot open this video: {reason}; use pyav") from error

    def _read_other(self, rows: np.ndarray) -> np.ndarray:
        """Frames of increasing rows from decord or torchcodec, their times compared with the file's."""
        if self._other is None:
            self._open_other()
        try:
            if self.decoder == "decord":
                frames = self._other.get_batch(rows.tolist()).asnumpy()
                seconds = self._other.get_frame_timestamp(rows.tolist())[:, 0]
            else:
                batch = self._other.get_frames_at(rows.tolist())
                frames, seconds = batch.data.numpy(), batch.pts_seconds.numpy()
        except Exception as error:  # of their own kinds
            raise ValueError(
                f"{self.path}: frames {rows[0]}..{rows[-1]} cannot be decoded by {self.decoder}: {error}"
            ) from error
        wanted_s = self._index.pts[rows] * float(self._index.time_base)
        offset_s = np.abs(seconds - wanted_s)
        if len(self) > 1 and offset_s.max() > _TIME_TOLERANCE * np.diff(self.times_s).min():
            worst = int(np.argmax(offset_s))
            raise ValueError(
                f"{self.path}: {self.decoder} returns the frame of {seconds[worst]:.6f} s for that of "
                f"{wanted_s[worst]:.6f} s; use pyav"
            )
        if frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(f"{self.path}: {self.decoder} returns frames of shape {frames.shape[1:]}; use pyav")
        return frames


def open_video(path: str | Path, *, decoder: Decoder = "pyav") -> VideoFile:
    """Open a video. Raises ValueError naming file, frames found and wanted when it is cut short or unreadable."""
    return VideoFile(path, decoder=decoder)


def video_recording(path: str | Path) -> Recording:
    """A video file as a recording of rgb alone, named as the file; frames are decoded when they are asked for."""
    path = Path(path)
    video = open_video(path)
    stream = Stream(video, np.ones(len(video), bool), video.times_s, "uint8")
    where = Provenance("video", path.stem, source=str(path))
    return Recording(path.stem, {"rgb": stream}, None, where, notes=video.notes)


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
