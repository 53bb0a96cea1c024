"""What a video file says of its frames before one is wanted: their times, where decoding may begin, how they stand.

Also whether the file is whole. T frames of the stream that is the video.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np

from egom2p.data.clips.upright import AS_STORED, Turn, turn_of_matrix

# Codecs of which one packet with its own time makes one picture, wherever decoding began. Files of the others (packed
# B-frames, pictures drawn over the one before) are decoded from their start.
INTRA_CODECS = {"mjpeg", "prores", "ffv1", "dnxhd", "png", "huffyuv", "ffvhuff", "rawvideo", "jpeg2000", "utvideo"}
_SEEKABLE_CODECS = {"h264", "hevc", "av1", "libdav1d", "vp9", "vp8", "mpeg2video", "mpeg1video", *INTRA_CODECS}
_SEEKABLE_IN_MP4 = {"mpeg4", "h263"}
# Containers that hold times of presentation, and can jump to a key frame. MPEG program streams can do neither well.
_SEEKABLE_CONTAINERS = ("mp4", "matroska", "mpegts", "flv", "nut")
# Containers that hold one time per packet, in the order of decoding, and codecs of which FFmpeg then does not know the
# order of presentation.
_ONE_CLOCK, _UNORDERED_CODECS = ("avi", "asf"), ("h264", "hevc", "mpeg1video")
# Containers whose header states a duration; of others FFmpeg makes one up from what is there.
_STATES_DURATION = ("mp4", "matroska", "avi", "flv", "asf")
# A tail of half a second may honestly hold no frame: streams end at different times, rates are rounded.
_DURATION_SLACK_S = 0.5
_MAX_PIXEL_ASPECT = 8  # more is a broken header
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273
_BT2020_PRIMARIES = 9
_NO_VIDEO = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails


class VideoIndex(NamedTuple):
    """The stream that is the video.

    stream          its number in the file
    pts             (T,) int64, increasing; time_base: seconds per unit
    key_rows        rows at which decoding may begin; row 0 is one of them
    ordinals        (T,) int64, or None: which decoded frame a row is, counted from the start of the file, where packets
                    do not tell frames apart
    is_plain        the only video stream, in MP4 or Matroska, and no frame is shown before the key frame that it is
                    decoded after
    width, height   of the picture as it is stored; pixel_aspect: width of a pixel by its height
    turn            what brings it upright
    notes           what a person should know of the material
    """

    stream: int
    pts: np.ndarray
    time_base: Fraction
    key_rows: np.ndarray
    ordinals: np.ndarray | None
    is_plain: bool
    width: int
    height: int
    pixel_aspect: Fraction
    turn: Turn
    notes: tuple[str, ...]


@dataclass
class _Packets:
    """Packets of one stream in the file's order, without those that hold nothing. Times in the stream's unit."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    is_key: list[bool] = field(default_factory=list)
    is_shown: list[bool] = field(default_factory=list)
    is_corrupt: list[bool] = field(default_factory=list)
    end_s: float = 0.0  # of the last packet, empty ones too


class _Times(NamedTuple):
    """Of the frames that packets promise, by time: (N,) each."""

    pts: np.ndarray
    is_key: np.ndarray
    is_leading: np.ndarray  # shown before the key frame that it is decoded after


def read_index(path: Path) -> VideoIndex:
    """Read the packets, and decode one frame, or all where packets do not tell frames apart.

    Raises ValueError naming the file when it is no video or cut short.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such video")
    try:
        with open_container(path) as container:
            packets = _read_packets(container)
            stream, num_streams = _main_stream(path, container, packets)
            _check_complete(path, container, stream, packets)
            if (rate := _other_rate(path)) is not None:
                raise ValueError(
                    f"{path}: an edit list of the file plays a part at {rate:g} times its speed, which the "
                    "times of its frames do not say; wanted speed 1. Export the video anew"
                )
            times, number = _promised(stream, packets[stream.index]), stream.index
        with open_container(path) as container:
            stream = container.streams[number]
            first = next(frames_from_key(container, stream))
            return _index(path, stream, first, times, packets[number], num_streams)
    except (av.FFmpegError, StopIteration) as error:
        raise ValueError(
            f"{path}: not a readable video (found 0 frames, wanted at least 1): {error}. "
            "An mp4 without its index was cut short or is still being written"
        ) from error


def open_container(path: Path) -> Any:
    """The file with its streams; titles and places in another alphabet than UTF-8 are no reason to refuse it."""
    return av.open(str(path), metadata_errors="replace")


def frames_from_key(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """Frames from where the container stands, beginning at a key frame: what is before it (a cut stream) is grey."""
    has_key = False
    for packet in container.demux(stream):
        has_key = has_key or packet.is_keyframe
        if has_key:
            yield from packet.decode()


def _index(
    path: Path, stream: Any, first: av.VideoFrame, times: _Times | None, packets: _Packets, num_streams: int
) -> VideoIndex:
    notes = _notes(stream, first, num_streams)
    ordinals, name = None, stream.container.format.name
    if times is not None and first.pts in times.pts:
        # Frames before the first that decodes lean on pictures that were cut away.
        pts, is_key, is_leading = (values[times.pts >= first.pts] for values in times)
        key_rows = np.flatnonzero(is_key)
        is_plain = num_streams == 1 and not is_leading.any() and name.startswith(("mov,mp4", "matroska"))
    else:
        pts, ordinals = _count_frames(path, stream.index, packets)
        key_rows, is_plain = np.zeros(1, np.int64), False
        if (num_lost := int(ordinals[-1]) + 1 - len(ordinals)) > 0:
            notes.append(f"{num_lost} frames have the time of the frame before them and are left out")
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        raise ValueError(f"{path}: the file says that its pixels are {aspect} times as wide as high; wanted 1/8 to 8")
    if aspect != 1:
        notes.append(f"pixels are not square ({aspect}); pictures are scaled to square ones")
    return VideoIndex(
        stream=stream.index,
        pts=pts,
        time_base=stream.time_base,
        key_rows=np.union1d(0, key_rows),
        ordinals=ordinals,
        is_plain=is_plain,
        width=first.width,
        height=first.height,
        pixel_aspect=aspect,
        turn=_turn(path, first),
        notes=tuple(notes),
    )


def _read_packets(container: Any) -> dict[int, _Packets]:
    """Packets by stream number."""
    found = {stream.index: _Packets() for stream in container.streams}
    for packet in container.demux():
        stamp = packet.pts if packet.pts is not None else packet.dts
        own = found[packet.stream.index]
        if stamp is not None:
            own.end_s = max(own.end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
        if (
            packet.size and packet.stream.type == "video" and packet.stream.codec_context is not None
        ):  # AVI marks a frame that stays with an empty packet
            own.pts.append(packet.pts)
            own.dts.append(packet.dts)
            own.is_key.append(packet.is_keyframe)
            own.is_shown.append(not packet.is_discard and _holds_picture(packet))
            own.is_corrupt.append(packet.is_corrupt)
    return found


def _holds_picture(packet: Any) -> bool:
    """False for VP8 and VP9 packets of a frame that only later ones refer to (RFC 6386 9.1; VP9 bitstream 6.2)."""
    codec = packet.stream.codec_context.name
    if codec == "vp8":
        return bool(memoryview(packet)[0] >> 4 & 1)
    if codec == "vp9":
        head, tail = memoryview(packet)[0], memoryview(packet)[-1]
        if tail >> 5 == 0b110:  # a superframe: its last frame is shown
            return True
        bits = f"{head:08b}"[5 if head >> 4 & 3 == 3 else 4 :]
        return bits[:1] == "1" or bits[2:3] != "0"  # show_existing_frame, show_frame
    return True


def _main_stream(path: Path, container: Any, packets: dict[int, _Packets]) -> tuple[Any, int]:
    """The video among the video streams, and of how many: no cover, many frames, marked, large, long, first."""
    known = [stream for stream in container.streams.video if stream.codec_context is not None]
    streams = [stream for stream in known if not stream.disposition & _NO_VIDEO]
    if not streams:
        found = "only a cover picture" if container.streams.video else "none"
        raise ValueError(f"{path}: the file has no video stream (found {found})")

    def rank(stream: Any) -> tuple[Any, ...]:
        count = sum(packets[stream.index].is_shown)
        is_marked = bool(stream.disposition & av.stream.Disposition.default)
        return count > 1, is_marked, (stream.width or 0) * (stream.height or 0), count, -stream.index

    return max(streams, key=rank), len(streams)


def _promised(stream: Any, packets: _Packets) -> _Times | None:
    """The frames that packets promise; None where they do not tell frames apart."""
    codec, container = stream.codec_context.name, stream.container.format.name
    can_seek = codec in _SEEKABLE_CODECS and any(name in container for name in _SEEKABLE_CONTAINERS)
    if not can_seek and codec not in INTRA_CODECS and not (codec in _SEEKABLE_IN_MP4 and "mp4" in container):
        return None
    dts = [stamp for stamp in packets.dts if stamp is not None]
    if any(later < earlier for earlier, later in zip(dts, dts[1:], strict=False)) or not any(packets.is_key):
        return None
    rows, key_pts = [], None
    for pts, is_key, is_shown in zip(packets.pts, packets.is_key, packets.is_shown, strict=True):
        if is_key:
            key_pts = pts
        if pts is None:
            return None
        if key_pts is not None and is_shown:
            rows.append((pts, is_key, pts < key_pts))
    if not rows or len({pts for pts, _, _ in rows}) < len(rows):
        return None
    return _Times(*(np.array(values) for values in zip(*sorted(rows), strict=True)))


def _count_frames(path: Path, number: int, packets: _Packets) -> tuple[np.ndarray, np.ndarray]:
    """Times of all decoded frames, and which of them each is; a frame with the time of the one before is left out."""
    with open_container(path) as container:
        stream = container.streams[number]
        stamps = [frame.pts for frame in frames_from_key(container, stream)]
        is_unordered = container.format.name in _ONE_CLOCK and stream.codec_context.name in _UNORDERED_CODECS
        is_reordered = stream.codec_context.has_b_frames
    if is_unordered:
        slots = sorted(dts for dts, is_shown in zip(packets.dts, packets.is_shown, strict=True) if is_shown)
        gaps = np.diff(slots) if len(slots) > 1 else np.ones(1)
        if len(slots) != len(stamps) or is_reordered and gaps.max() > 1.5 * gaps.min():
            raise ValueError(
                f"{path}: the file gives times in the order of decoding only, and frames are missing: which frame is "
                "shown when is not in it. Write the video as mp4 or mkv from its source"
            )
        stamps = slots
    if None in stamps or any(later < sooner for sooner, later in zip(stamps, stamps[1:], strict=False)):
        raise ValueError(
            f"{path}: the times of its {len(stamps)} frames run backwards or are missing; write the video anew"
        )
    pts = np.array(stamps, np.int64)
    ordinals = np.flatnonzero(np.diff(pts, prepend=pts[0] - 1) > 0)
    return pts[ordinals], ordinals


def _turn(path: Path, frame: av.VideoFrame) -> Turn:
    matrix = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    return AS_STORED if matrix is None else turn_of_matrix(np.frombuffer(bytes(matrix), "<i4"), where=str(path))


def _notes(stream: Any, first: av.VideoFrame, num_streams: int) -> list[str]:
    notes = []
    if num_streams > 1:
        notes.append(f"{num_streams} video streams; read is stream {stream.index}, {first.width}x{first.height}")
    if first.interlaced_frame:
        notes.append("interlaced; frames are read as they are woven, two moments in one picture")
    codec = stream.codec_context
    transfer = _HDR_TRANSFERS.get(int(codec.color_trc or 0))
    if transfer or int(codec.color_primaries or 0) == _BT2020_PRIMARIES:
        notes.append(
            f"wide colours (BT.2020{f', {transfer}' if transfer else ''}); read without tone mapping, so paler"
        )
    if any(component.is_alpha for component in first.format.components):
        notes.append("has transparency, which is left out")
    return notes


def _check_complete(path: Path, container: Any, stream: Any, packets: dict[int, _Packets]) -> None:
    """Raise ValueError for a file that is cut short.

    Counts are no evidence: headers count frames that an edit list hides, and those that AVI leaves empty.
    """
    own = packets[stream.index]
    found = len(own.pts) - sum(own.is_corrupt)
    reached_s = max(part.end_s for part in packets.values())
    promised_s = 0.0
    if container.duration and any(name in container.format.name for name in _STATES_DURATION):
        promised_s = container.duration / av.time_base
    stamps = np.sort([stamp for stamp in own.pts if stamp is not None])
    # The last frame may stay for as long as another one did.
    slack_s = _DURATION_SLACK_S + (float(np.diff(stamps).max() * stream.time_base) if len(stamps) > 1 else 0.0)
    is_early = reached_s < promised_s - slack_s
    if found and not is_early and not any(own.is_corrupt) and not _lacks_bytes(path):
        return
    wanted = stream.frames if stream.frames > found else round(promised_s * float(stream.average_rate or 0))
    until = f", up to {reached_s:.3f} of {promised_s:.3f} s" if is_early else ""
    raise ValueError(
        f"{path}: the video is cut short: found {found} complete frames, wanted "
        f"{wanted if wanted > found else 'more'}{until}; copy it again or cut it to what is there"
    )


def _lacks_bytes(path: Path) -> bool:
    """Whether a part of the container (MP4 box, RIFF chunk, Matroska segment) goes on behind the end of the file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] == b"RIFF":
            ends = _riff_ends(file, size)
        elif start[:4] == b"\x1a\x45\xdf\xa3":
            ends = _matroska_ends(file)
        elif start[4:8] in _BOXES:
            ends = _box_ends(file, size)
        else:
            return False
        return any(end > size for end in ends)


_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"uuid", b"pnot", b"mfra"}


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """ISO/IEC 14496-12, 4.2. Ends at what is no known box: some cameras leave bytes behind."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if head[4:8] not in _BOXES or length < 8:  # 0: up to the end
            return
        position += length
        yield position


def _other_rate(path: Path) -> float | None:
    """A speed other than 1 in an edit list of an MP4 (ISO/IEC 14496-12, 8.6.6), which FFmpeg passes over."""
    with open(path, "rb") as file:
        head = file.read(8)
        if head[4:] not in _BOXES:
            return None
        for kind, start, end in _boxes(file, 0, path.stat().st_size):
            if kind != b"moov":
                continue
            for track in (box for box in _boxes(file, start, end) if box[0] == b"trak"):
                for edits in (box for box in _boxes(file, *track[1:]) if box[0] == b"edts"):
                    for _, at, until in (box for box in _boxes(file, *edits[1:]) if box[0] == b"elst"):
                        file.seek(at)
                        content = file.read(until - at)
                        length = 20 if content[:1] == b"\1" else 12
                        for entry in range(8, len(content) - length + 1, length):
                            rate = int.from_bytes(content[entry + length - 4 : entry + length], "big", signed=True)
                            if rate != 1 << 16:
                                return rate / (1 << 16)
    return None


def _boxes(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte of the content and end of the boxes between two positions."""
    while position + 8 <= end:
        file.seek(position)
        head = file.read(16)
        length, start = int.from_bytes(head[:4], "big"), position + 8
        if length == 1:
            length, start = int.from_bytes(head[8:16], "big"), position + 16
        if length < 8:
            return
        yield head[4:8], start, min(position + length, end)
        position += length


def _riff_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Of an AVI and its continuations (OpenDML)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):  # not finished by the recorder
            return
        yield position + 8 + length
        position += 8 + length + length % 2


def _matroska_ends(file: BinaryIO) -> Iterator[int]:
    """RFC 8794: an EBML header, then one segment, whose size may be unknown (all ones)."""
    file.seek(4)
    length, _ = _ebml_size(file)
    file.seek(length, 1)
    if file.read(4) == b"\x18\x53\x80\x67":
        length, is_known = _ebml_size(file)
        if is_known:
            yield file.tell() + length


def _ebml_size(file: BinaryIO) -> tuple[int, bool]:
    first = (file.read(1) or b"\0")[0]
    num_bytes = 9 - first.bit_length()
    value = int.from_bytes(
        bytes([first & ((1 << (8 - num_bytes)) - 1) if num_bytes <= 8 else 0]) + file.read(num_bytes - 1), "big"
    )
    return value, value != (1 << 7 * num_bytes) - 1
