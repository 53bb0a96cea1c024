"""Videos whose frames carry their number, in every codec, container and timing that PyAV here can write.

The picture is read, not compared: eight blocks across its middle are the number's bits, the corners are red, green,
blue and white (top left, top right, bottom left, bottom right), so a turned or mirrored picture shows it.
"""

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

os.environ.setdefault("SVT_LOG", "1")  # errors only
WIDTH, HEIGHT = 128, 96
UPRIGHT = "RGBW"
_COLOURS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (240, 240, 240)}


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """The picture (H, W, 3) uint8 of a number below 256."""
    frame = np.full((height, width, 3), 60, np.uint8)
    for bit in range(8):
        frame[height * 5 // 12 : height * 7 // 12, bit * width // 8 : (bit + 1) * width // 8] = (
            230 if number >> (7 - bit) & 1 else 10
        )
    rows, columns = height // 5, width // 5
    for name, part in zip(UPRIGHT, _corners(rows, columns), strict=True):
        frame[part] = _COLOURS[name]
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that an upright picture shows."""
    height, width = frame.shape[:2]
    row = frame[int(height * 0.47) : int(height * 0.53)].mean(axis=(0, 2))
    bits = [row[int((bit + 0.3) * width / 8) : int((bit + 0.7) * width / 8)].mean() > 120 for bit in range(8)]
    return sum(int(bit) << (7 - place) for place, bit in enumerate(bits))


def corners_of(frame: np.ndarray) -> str:
    """Names of the four corners' colours."""
    means = [frame[part].reshape(-1, 3).mean(axis=0) for part in _corners(frame.shape[0] // 8, frame.shape[1] // 8)]
    return "".join("W" if mean.min() > 150 else "RGB"[int(mean.argmax())] for mean in means)


def _corners(rows: int, columns: int) -> list[tuple[slice, slice]]:
    top, bottom, left, right = slice(rows), slice(-rows, None), slice(columns), slice(-columns, None)
    return [(top, left), (top, right), (bottom, left), (bottom, right)]


class Codec(NamedTuple):
    """An encoder of PyAV with its pixel format and options; `gop` are the options that make groups of 12 frames."""

    encoder: str
    pixels: str = "yuv420p"
    options: dict[str, str] = {}
    is_inter: bool = True


_X265 = "log-level=none:keyint=12:min-keyint=12"
CODECS = {
    "h264": Codec("libx264", options={"g": "12", "bf": "0"}),
    "h264 B": Codec("libx264", options={"g": "24", "bf": "3"}),
    "h264 open": Codec("libx264", options={"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "h264 refresh": Codec("libx264", options={"g": "12", "bf": "2", "x264-params": "intra-refresh=1"}),
    "h264 10 bit": Codec("libx264", "yuv420p10le", {"g": "12", "bf": "2"}),
    "hevc": Codec("libx265", options={"x265-params": f"{_X265}:open-gop=0"}),
    "hevc open": Codec("libx265", options={"x265-params": f"{_X265}:open-gop=1:bframes=4"}),
    "hevc 10 bit": Codec("libx265", "yuv420p10le", {"x265-params": f"{_X265}:open-gop=1"}),
    "av1": Codec("libsvtav1", options={"preset": "12", "g": "12"}),
    "av1 10 bit": Codec("libsvtav1", "yuv420p10le", {"preset": "12", "g": "24"}),
    "vp9": Codec("libvpx-vp9", options={"g": "12", "lag-in-frames": "12", "auto-alt-ref": "1", "cpu-used": "8"}),
    "vp8": Codec("libvpx", options={"g": "12", "lag-in-frames": "12", "auto-alt-ref": "1", "cpu-used": "8"}),
    "mpeg4": Codec("mpeg4", options={"g": "12", "bf": "0", "q": "3"}),
    "mpeg4 B": Codec("mpeg4", options={"g": "12", "bf": "2", "q": "3"}),
    "mpeg2": Codec("mpeg2video", options={"g": "12", "bf": "2"}),
    "mpeg1": Codec("mpeg1video", options={"g": "12", "bf": "2"}),
    "h263": Codec("h263", options={"g": "12"}),
    "flv1": Codec("flv", options={"g": "12"}),
    "wmv2": Codec("wmv2", options={"g": "12"}),
    "msmpeg4": Codec("msmpeg4", options={"g": "12"}),
    "snow": Codec("snow", options={"g": "12"}),
    "mjpeg": Codec("mjpeg", "yuvj420p", is_inter=False),
    "prores": Codec("prores_ks", "yuv422p10le", is_inter=False),
    "prores alpha": Codec("prores_ks", "yuva444p10le", {"profile": "4444"}, is_inter=False),
    "dnxhr": Codec("dnxhd", "yuv422p", {"profile": "dnxhr_lb"}, is_inter=False),
    "ffv1": Codec("ffv1", is_inter=False),
    "png": Codec("png", "rgb24", is_inter=False),
    "huffyuv": Codec("huffyuv", "yuv422p", is_inter=False),
    "utvideo": Codec("utvideo", is_inter=False),
    "rawvideo": Codec("rawvideo", is_inter=False),
    "jpeg2000": Codec("jpeg2000", is_inter=False),
    "qtrle": Codec("qtrle", "rgb24"),
    "cinepak": Codec("cinepak", "rgb24"),
    "gif": Codec("gif", "rgb8"),
    "apng": Codec("apng", "rgb24"),
}
CONTAINERS = ("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "wmv", "nut", "gif", "apng")
# Presentation times in frames of 1/30 s. `vfr`: frames missing here and there, as every container can say it.
_EVERY = list(range(48))
TIMINGS = {
    "constant": _EVERY,
    "vfr": [k for k in range(96) if k % 7 not in (1, 2, 5) and not 40 <= k < 52],
    "late": [k + 45 for k in _EVERY],
}


def write_case(path: Path, codec: str, ticks: Sequence[int], *, matrix: Sequence[int] = (), **more: Any) -> None:
    """Frame number k at ticks[k] / 30 s; `more` are attributes of the encoder, such as sample_aspect_ratio.

    Raises what PyAV raises where codec and container do not go together.
    """
    about = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(about.encoder, rate=30, options=dict(about.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, about.pixels
        stream.codec_context.time_base = Fraction(1, 30)
        for name, value in more.items():
            setattr(stream.codec_context, name, value)
        if matrix:
            stream.set_display_matrix(matrix)
        for number, tick in enumerate(ticks):
            picture = av.VideoFrame.from_ndarray(numbered(number), format="rgb24").reformat(format=about.pixels)
            picture.pts, picture.time_base = tick, Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def remux(source: Path, target: Path, *, skip: int = 0, hide_before: int = 0, **options: str) -> None:
    """Copy packets without decoding: from packet `skip` on, and with times that hide what is before a tick (1/30 s)."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.dts is None or number < skip:
                continue
            shift = round(Fraction(hide_before, 30) / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            new.mux(packet)


def written_cases(
    folder: Path, codecs: Sequence[str] = tuple(CODECS), containers: Sequence[str] = CONTAINERS
) -> Iterator[tuple[str, str, str, Path, np.ndarray]]:
    """Codec, container, timing, file, and the times (T,) in seconds of its frames 0, 1, 2 ... from the first one."""
    for codec in codecs:
        for container in containers:
            for timing, ticks in TIMINGS.items():
                path = folder / f"{codec.replace(' ', '_')}_{timing}.{container}"
                try:
                    write_case(path, codec, ticks)
                except (av.FFmpegError, ValueError):
                    path.unlink(missing_ok=True)
                    continue
                if not _can_say(container, timing) or not _is_video(path):
                    continue
                yield codec, container, timing, path, (np.array(ticks) - ticks[0]) / 30


def _can_say(container: str, timing: str) -> bool:
    """AVI begins at 0; a program stream has one time per pack of frames."""
    return (container, timing) not in {("avi", "late"), ("mpg", "vfr")}


def _is_video(path: Path) -> bool:
    """Whether FFmpeg itself takes what was written for a video: some containers hold any bytes."""
    try:
        with av.open(str(path)) as container:
            return any(stream.codec_context is not None for stream in container.streams.video) and bool(
                next(container.decode(video=0)).width
            )
    except (av.FFmpegError, StopIteration):
        return False


def decoded_in_order(path: Path) -> tuple[np.ndarray, list[int]]:
    """Times (T,) in seconds from the first frame, and numbers, of what FFmpeg decodes from the start of a file."""
    with av.open(str(path)) as container:
        frames = [(frame.time, number_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]
    return np.array([time_s - frames[0][0] for time_s, _ in frames]), [number for _, number in frames]


def frames_right(
    video: Any, times_s: np.ndarray, rng: np.random.Generator, *, numbers: Sequence[int] | None = None
) -> int:
    """How many frames of a video are right when asked for one by one in any order by their time.

    times_s    (T,) of the frames that carry `numbers`, by default 0, 1, 2 ...
    """
    right = 0
    for row in rng.permutation(len(times_s)):
        nearest = int(np.argmin(np.abs(video.times_s - times_s[row])))
        wanted = row if numbers is None else numbers[row]
        right += number_of(video.read(np.array([nearest]))[0]) == wanted
    return right
