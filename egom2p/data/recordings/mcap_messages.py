"""MCAP: topics of camera, poses and IMU in foxglove's schemas (protobuf, JSON) or ROS 2's; packages mcap, protobuf,
mcap-ros2-support.

A file is a recording. Times are the message's own stamp (capture) where it is not zero, else `log_time` (receipt).
H.264, H.265 and JPEG topics are pictures; raw pictures of 16 or 32 bits are depth: `source.depth_metres_per_unit` says
the unit of whole numbers, which no schema does. A calibration is the first on `source.calibration`, by default the only
one. Poses are taken from the topic that `source.pose` names, never guessed: which of a file's frames is the camera,
which is the world (`source.child_frame`) and how the camera sits on the body (`source.body_from_camera`) the file
cannot say. A quaternion that nobody set is 0: an invalid pose. Every IMU topic is a track. Topics out of order are
sorted. Format: foxglove's schemas and ROS 2's; held by replicas, real files confirm reading of ROS 2's container.
"""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

from egom2p.config import Positive, strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.recordings.reader_parts import (
    OPENCV_FROM_OPENGL,
    copied_video,
    frame_stream,
    lens,
    needs,
    pose_stream,
    poses_from_rows,
    track_stream,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, called_by_path
from egom2p.data.recordings.recording_settings import TransformSettings, transform_matrix
from egom2p.data.recordings.track_files import distinct_samples, visible
from egom2p.geometry import seconds_from_stamps

_PICTURES = ("CompressedVideo", "CompressedImage", "RawImage", "Image")
_CALIBRATIONS, _POSES = ("CameraCalibration", "CameraInfo"), ("PoseInFrame", "FrameTransform", "PoseStamped")
_VIDEO = {"h264": "h264", "h265": "hevc", "hevc": "hevc"}
_DEPTHS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
_COLOURS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "mono8": (1, (0, 0, 0)), "8UC1": (1, (0, 0, 0))}


@strict
class McapSource(FolderSource):
    """MCAP files."""

    kind: Literal["mcap"]
    rgb: str | None = None  # topics; by default the only one of its kind
    depth: str | None = None  # likewise
    depth_metres_per_unit: Positive | None = None  # of whole numbers: 0.001 for millimetres
    calibration: str | None = None  # likewise
    pose: str | None = None  # without it there are no poses
    child_frame: str | None = None  # of a topic of several transforms: that of the camera or of the body
    axes: Literal["opencv", "opengl"] = "opencv"
    body_from_camera: TransformSettings | None = None  # for poses of a body


class McapReader(FormatReader):
    source, what = McapSource, "MCAP files"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return called_by_path(root, [p for p in visible(root) if p.suffix.lower() == ".mcap" and p.is_file()])

    def open(self, name: str, path: Path) -> Opened:
        file, wanted = _File(path), self.config
        streams: dict[str, Stream] = {}
        notes: tuple[str, ...] = ()
        pictures = file.topics(_PICTURES)
        depth = wanted.depth
        rgb = wanted.rgb or file.only([topic for topic in pictures if topic != depth], "rgb")
        if rgb is not None:
            streams["rgb"], left = _pictures(file, rgb)
            notes += left
        if depth is not None:
            streams["depth"], left = _depth(file, depth, wanted.depth_metres_per_unit)
            notes += left
        if wanted.pose is not None:
            streams["camera"], left = self._poses(file, wanted.pose)
            notes += left
        elif found := file.topics((*_POSES, "FrameTransforms", "TFMessage")):
            notes += (f"poses on {found} are read where source.pose names one",)
        for topic in file.topics(("Imu",)):
            streams[topic.strip("/").replace("/", "_").replace(".", "_")], left = _imu(file, topic)
            notes += left
        intrinsics = None
        calibration = wanted.calibration or file.only(file.topics(_CALIBRATIONS), "calibration")
        if calibration is not None:
            intrinsics = _calibration(file, calibration)
        if not streams:
            raise ValueError(f"{path}: found the topics {file.all}, wanted pictures, IMU, or source.pose")
        return Opened(streams, intrinsics, [path], notes)

    def _poses(self, file: "_File", topic: str) -> tuple[Stream, tuple[str, ...]]:
        rows, frames = [], set()
        for stamp, message in file.messages(topic):
            for held in getattr(message, "transforms", None) or [message]:
                child = getattr(held, "child_frame_id", None)
                if self.config.child_frame in (None, child):
                    frames.add(child)
                    rows.append((_stamp(held, stamp), *_pose(file.path, topic, held)))
        if not rows or len(frames) > 1:
            raise ValueError(
                f"{file.path}: {topic} has {len(rows)} poses of the frames {sorted(map(str, frames))}, wanted those of "
                "one: source.child_frame"
            )
        values = np.array([row[1:] for row in rows], np.float64)
        times_s = seconds_from_stamps(np.array([row[0] for row in rows]), "ns")
        order, notes = distinct_samples(times_s, where=topic)
        matrices = poses_from_rows(f"{file.path}: {topic}", values[order, :3], values[order, 3:])
        if self.config.body_from_camera is not None:
            matrices = matrices @ transform_matrix(self.config.body_from_camera, where="source.body_from_camera")
        if self.config.axes == "opengl":
            matrices = matrices @ OPENCV_FROM_OPENGL
        return pose_stream(times_s[order], matrices, where=f"{file.path}: {topic}"), notes


class _File:
    """Topics and decoded messages of one file."""

    def __init__(self, path: Path) -> None:
        self.path, self._factories = path, []
        needs("mcap", path)
        from mcap.reader import make_reader

        self._make_reader = partial(make_reader, validate_crcs=True)
        try:
            with open(path, "rb") as opened:
                summary = make_reader(opened).get_summary()
        except Exception as error:  # the package raises many kinds on damaged bytes
            raise ValueError(f"{path}: not a readable MCAP file: {error}") from error
        if summary is None:
            raise ValueError(f"{path}: found no index at the end: the file was cut short; `mcap recover` makes one")
        self._schemas = {c.topic: summary.schemas.get(c.schema_id) for c in summary.channels.values()}
        self._encodings = {c.topic: c.message_encoding for c in summary.channels.values()}
        self._decoders: dict[str, Any] = {}

    @property
    def all(self) -> dict[str, str]:
        return {topic: schema.name if schema else "" for topic, schema in sorted(self._schemas.items())}

    def topics(self, kinds: Iterable[str]) -> list[str]:
        """Topics whose schema, without its package, is one of these."""
        return [topic for topic, name in self.all.items() if name.replace("/", ".").rpartition(".")[2] in tuple(kinds)]

    def kind(self, topic: str) -> str:
        return self.all[topic].replace("/", ".").rpartition(".")[2]

    def only(self, topics: list[str], key: str) -> str | None:
        if len(topics) > 1:
            raise ValueError(f"{self.path}: found the topics {topics}, wanted source.{key} to name one")
        return topics[0] if topics else None

    def messages(self, topic: str, *, log_time: int | None = None) -> Iterator[tuple[int, Any]]:
        """Log times (ns) and messages, in order of log time; or those of one log time."""
        if topic not in self._schemas:
            raise ValueError(f"{self.path}: found the topics {self.all}, wanted {topic!r}")
        end = None if log_time is None else log_time + 1
        with open(self.path, "rb") as opened:
            found = self._make_reader(opened).iter_messages([topic], log_time, end)
            while True:
                try:
                    held = next(found, None)
                except Exception as error:  # as above
                    raise ValueError(f"{self.path}: {topic} is not readable to its end: {error}") from error
                if held is None:
                    return
                schema, channel, message = held
                yield message.log_time, self._decoded(schema, channel, message.data)

    def _decoded(self, schema: Any, channel: Any, content: bytes) -> Any:
        if channel.topic not in self._decoders:
            self._decoders[channel.topic] = self._decoder(schema, channel)
        try:
            return self._decoders[channel.topic](content)
        except Exception as error:  # protobuf, JSON and CDR decoders raise kinds of their own
            raise ValueError(f"{self.path}: {channel.topic} holds a message that is not readable: {error}") from error

    def _decoder(self, schema: Any, channel: Any) -> Any:
        if channel.message_encoding == "json":
            return partial(json.loads, object_hook=lambda values: SimpleNamespace(**values))
        if channel.message_encoding == "protobuf":
            needs("google.protobuf", self.path)
            from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

            pool = descriptor_pool.DescriptorPool()
            for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
                pool.Add(file)
            return message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name)).FromString
        if channel.message_encoding == "cdr":
            needs("mcap_ros2", self.path)
            from mcap_ros2.decoder import DecoderFactory

            if schema.encoding != "ros2msg":
                raise ValueError(f"{self.path}: {channel.topic} is described in {schema.encoding}, wanted ros2msg")
            return DecoderFactory().decoder_for("cdr", schema)
        raise ValueError(
            f"{self.path}: {channel.topic} is encoded as {channel.message_encoding!r}, wanted protobuf, json or cdr"
        )


def _stamp(message: Any, log_time_ns: int) -> int:
    """The message's own time in ns, else when it was received."""
    held = getattr(message, "timestamp", None) or getattr(getattr(message, "header", None), "stamp", None)
    seconds = next((int(getattr(held, key)) for key in ("seconds", "sec") if hasattr(held, key)), 0)
    nanos = next((int(getattr(held, key)) for key in ("nanos", "nanosec", "nsec") if hasattr(held, key)), 0)
    return seconds * 10**9 + nanos or log_time_ns


def _bytes(data: Any) -> bytes:
    return base64.b64decode(data) if isinstance(data, str) else bytes(data)


def _pose(path: Path, topic: str, held: Any) -> list[float]:
    """Position and quaternion xyzw of a transform, or of a pose."""
    held = getattr(held, "transform", held)
    held = getattr(held, "pose", held)
    position = getattr(held, "translation", None) or getattr(held, "position", None)
    turn = getattr(held, "rotation", None) or getattr(held, "orientation", None)
    if position is None or turn is None:
        raise ValueError(f"{path}: {topic} holds no poses, wanted one of the schemas {_POSES}")
    return [*(float(getattr(position, axis)) for axis in "xyz"), *(float(getattr(turn, axis)) for axis in "xyzw")]


def _pictures(file: _File, topic: str) -> tuple[Stream, tuple[str, ...]]:
    stamps, logged, coding = [], [], ""
    video = io.BytesIO()
    for log_time, message in file.messages(topic):
        coding = getattr(message, "format", "").lower() or getattr(message, "encoding", "")
        stamps.append(_stamp(message, log_time))
        logged.append(log_time)
        if coding in _VIDEO:
            video.write(_bytes(message.data))
    if not stamps:
        raise ValueError(f"{file.path}: {topic} has no messages")
    times_s = seconds_from_stamps(np.array(stamps), "ns")
    where = f"{file.path}: {topic}"
    if coding in _VIDEO:
        frames = copied_video(_as_mp4(file.path, topic, video, _VIDEO[coding]), where)
        return frame_stream(frames, times_s, "uint8", where=where), ()
    order, notes = distinct_samples(times_s, where=topic)
    source = _Messages(file, topic, np.array(logged), order, _colour)
    return frame_stream(source, times_s[order], "uint8", where=where), notes


def _as_mp4(path: Path, topic: str, content: io.BytesIO, codec: str) -> bytes:
    """Annex B, a frame a packet and none that is shown out of order, as an mp4 of 1000 frames a second."""
    content.seek(0)
    result = io.BytesIO()
    try:
        with av.open(content, format=codec) as read, av.open(result, "w", format="mp4") as written:
            if read.streams.video[0].codec_context.has_b_frames:
                raise ValueError(f"{path}: {topic} has frames that are shown out of order (B frames), wanted none")
            stream = written.add_stream_from_template(read.streams.video[0])
            number = 0
            for packet in read.demux(read.streams.video[0]):
                if packet.size:
                    packet.pts = packet.dts = number
                    packet.duration, packet.time_base, packet.stream = 1, Fraction(1, 1000), stream
                    written.mux(packet)
                    number += 1
    except av.FFmpegError as error:
        raise ValueError(f"{path}: {topic} holds no readable {codec}: {error}") from error
    return result.getvalue()


class _Messages:
    """Pictures of one topic, found by their log time; a FrameSource.

    log_times    of all messages of the topic, in their order; rows: which of them, in the order of frames
    """

    def __init__(self, file: _File, topic: str, log_times: np.ndarray, rows: np.ndarray, decode: Any) -> None:
        self._file, self._topic, self._decode = file, topic, decode
        self._log_times = log_times[rows]
        # Messages may be logged at one time: then which of them.
        self._ranks = (np.arange(len(log_times)) - np.searchsorted(log_times, log_times))[rows]
        self.height, self.width = self._frame(0).shape[:2]

    def __len__(self) -> int:
        return len(self._log_times)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": self._file.path}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _file=_File(state["_file"]))

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._frame(int(index)) for index in indices])

    def _frame(self, index: int) -> np.ndarray:
        logged = self._file.messages(self._topic, log_time=int(self._log_times[index]))
        _, message = next(islice(logged, int(self._ranks[index]), None))
        try:
            return self._decode(message)
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self._file.path}: {self._topic} holds a picture that is not readable: {error}"
            ) from error


def _colour(message: Any) -> np.ndarray:
    if hasattr(message, "format"):
        return np.asarray(Image.open(io.BytesIO(_bytes(message.data))).convert("RGB"))
    if message.encoding not in _COLOURS:
        raise ValueError(f"its pixels are {message.encoding!r}, wanted one of {sorted(_COLOURS)}")
    channels, order = _COLOURS[message.encoding]
    rows = np.frombuffer(_bytes(message.data), np.uint8).reshape(message.height, message.step)
    return rows[:, : message.width * channels].reshape(message.height, message.width, channels)[..., list(order)]


def _depth(file: _File, topic: str, metres_per_unit: float | None) -> tuple[Stream, tuple[str, ...]]:
    stamps, logged = [], []
    for log_time, message in file.messages(topic):
        if getattr(message, "encoding", None) not in _DEPTHS:
            raise ValueError(f"{file.path}: {topic} is no raw depth, wanted pixels of {sorted(_DEPTHS)}")
        if _DEPTHS[message.encoding] == "u2" and metres_per_unit is None:
            raise ValueError(f"{file.path}: {topic} is whole numbers, wanted source.depth_metres_per_unit")
        stamps.append(_stamp(message, log_time))
        logged.append(log_time)
    times_s = seconds_from_stamps(np.array(stamps), "ns")
    order, notes = distinct_samples(times_s, where=topic)
    source = _Messages(file, topic, np.array(logged), order, partial(_metres, metres_per_unit))
    return frame_stream(source, times_s[order], "m", where=f"{file.path}: {topic}"), notes


def _metres(metres_per_unit: float | None, message: Any) -> np.ndarray:
    dtype = np.dtype(_DEPTHS[message.encoding]).newbyteorder(">" if getattr(message, "is_bigendian", 0) else "<")
    rows = np.frombuffer(_bytes(message.data), np.uint8).reshape(message.height, message.step)
    stored = rows[:, : message.width * dtype.itemsize].copy().view(dtype)
    scale = metres_per_unit if stored.dtype.kind == "u" else 1.0  # real numbers are metres
    depth_m = stored.astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, np.float32(0.0))


def _imu(file: _File, topic: str) -> tuple[Stream, tuple[str, ...]]:
    rows, stamps = [], []
    for log_time, message in file.messages(topic):
        stamps.append(_stamp(message, log_time))
        turn, pull = message.angular_velocity, message.linear_acceleration
        rows.append([getattr(held, axis) for held in (turn, pull) for axis in "xyz"])
        for columns, key in ((slice(0, 3), "angular_velocity"), (slice(3, 6), "linear_acceleration")):
            covariance = getattr(message, f"{key}_covariance", None)
            if covariance is not None and len(covariance) and covariance[0] == -1:  # not measured
                rows[-1][columns] = [np.nan] * 3
    times_s = seconds_from_stamps(np.array(stamps), "ns")
    order, notes = distinct_samples(times_s, where=topic)
    unit = "gyroscope rad/s xyz, accelerometer m/s^2 xyz; axes of the message's frame"
    values = np.array(rows, np.float64)[order]
    return track_stream(times_s[order], values, unit, where=f"{file.path}: {topic}"), notes


def _calibration(file: _File, topic: str) -> Intrinsics | None:
    """The first calibration of a topic; None where it says that it has none (K[0] is 0)."""
    _, message = next(file.messages(topic), (0, None))
    if message is None:
        raise ValueError(f"{file.path}: {topic} has no messages")
    k = list(getattr(message, "K", None) or getattr(message, "k", ()))
    if len(k) != 9 or not k[0]:
        return None
    distortion = list(getattr(message, "D", None) or getattr(message, "d", ()))
    model = message.distortion_model or "plumb_bob"
    size = message.width, message.height
    return lens(f"{file.path}: {topic}", model, distortion, size, np.reshape(k, (3, 3)))
