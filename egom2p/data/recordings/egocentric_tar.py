"""Tars of mp4 clips with a Kannala-Brandt lens beside them (Egocentric-10K and -100K, buildai-data).

    <factory>/<worker>/<part>.tar: <key>.mp4, <key>.json        intrinsics.json in the folder of a worker, or above
    shard-000001.tar: 000001.mp4, 000001.imu.npy                no lens; an IMU row a frame

A clip is a recording, called by its key. Its video is copied out of the tar while it is read, and goes with it. The
lens (`fx, fy, cx, cy, k1..k4`, OpenCV's fisheye) is for the size its file states, scaled to the video. Fields of a
clip's own json are not documented: they are left. `imu.npy` (T, 6) is m/s^2 and rad/s in axes of the device. Format:
the data sets' cards; held by a replica.
"""

import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from egom2p.config import strict
from egom2p.contracts import Intrinsics
from egom2p.data.recordings.reader_parts import copied_video, frame_stream, lens, read_json, track_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, add_named
from egom2p.data.recordings.track_files import matching
from egom2p.data.shards.array_files import decode_array
from egom2p.data.shards.shard_files import check_end


@strict
class EgocentricTarSource(FolderSource):
    """Tars of mp4 clips."""

    kind: Literal["egocentric_tar"]


class EgocentricTarReader(FormatReader):
    source, what = EgocentricTarSource, "tars of mp4 clips (Egocentric-10K, -100K)"
    groups = r"(?P<participant>(?P<environment>factory_?\d+)_worker_?\d+)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found: dict[str, Path] = {}
        tars = matching(root, "*.tar", "*/*.tar", "*/*/*.tar", "*/*/*/*.tar")
        clips = {path: _clips(root, path) for path in tars if not _damage(path)}
        if any(clips.values()):
            for path in tars:
                # A damaged tar is a recording that is no recording: reading it says so.
                for name in clips.get(path, ["_".join(path.relative_to(root).with_suffix("").parts)]):
                    add_named(found, name, path)
        return found

    def open(self, name: str, path: Path) -> Opened:
        if damage := _damage(path):
            raise ValueError(damage)
        key = _clips(self.root, path)[name]
        video = copied_video(_content(path, f"{key}.mp4"), f"{path}: {key}.mp4")
        streams = {"rgb": frame_stream(video, video.times_s, "uint8", where=path)}
        if f"{key}.imu.npy" in _members(path):
            try:
                values = decode_array(_content(path, f"{key}.imu.npy"))
            except ValueError as error:
                raise ValueError(f"{path}: {key}.imu.npy: {error}") from None
            if values.shape != (len(video), 6):
                raise ValueError(f"{path}: {key}.imu.npy is {values.shape}, wanted {(len(video), 6)}: a row a frame")
            unit = "accelerometer m/s^2 xyz, gyroscope rad/s xyz; axes of the device"
            streams["imu"] = track_stream(video.times_s, values, unit, where=path)
        camera = next((f for above in self._above(path) if (f := above / "intrinsics.json").is_file()), None)
        if camera is None:
            return Opened(streams, None, [path])
        return Opened(streams, _lens(camera, (video.width, video.height)), [path, camera])

    def files(self, name: str) -> Sequence[Path]:
        path = self.paths[name]
        cameras = [above / "intrinsics.json" for above in self._above(path)]
        return (path, *[camera for camera in cameras if camera.is_file()][:1])

    @property
    def unused(self) -> list[str]:
        """Files of no recording; members of a tar that belong to none of its clips among them."""
        found = super().unused
        for path in dict.fromkeys(self.paths.values()):
            if not _damage(path):
                keys = tuple(f"{key}." for key in _clips(self.root, path).values())
                found += [f"{path.relative_to(self.root)}: {m}" for m in _members(path) if not m.startswith(keys)]
        return found

    def _above(self, path: Path) -> list[Path]:
        """Folders from that of a tar up to the root."""
        return [above for above in path.parents if above == self.root or self.root in above.parents]


def _clips(root: Path, path: Path) -> dict[str, str]:
    """Members of a tar that are clips, without suffix, by the names of their recordings."""
    keys = [name.removesuffix(".mp4") for name in _members(path) if name.endswith(".mp4")]
    # Shards count their clips from one each: then the tar's own path goes before.
    above = "_".join(path.relative_to(root).with_suffix("").parts)
    named = {key: "_".join(Path(key).parts) for key in keys}
    return {f"{above}_{name}" if name.isdecimal() else name: key for key, name in named.items()}


def _damage(path: Path) -> str:
    """What is wrong with a tar; empty where nothing is."""
    try:
        _members(path)
    except ValueError as error:
        return str(error)
    return ""


@lru_cache(maxsize=64)
def _members(path: Path) -> list[str]:
    try:
        with tarfile.open(path) as held:
            members = [member for member in held if not member.isdir()]
            check_end(held.fileobj, held.offset)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path}: not a complete tar: {error}") from error
    names = [member.name for member in members]
    if other := next((member.name for member in members if not member.isreg() or member.issparse()), None):
        raise ValueError(f"{path}: {other} is a link, a device or has holes, wanted plain files")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: {next(name for name in names if names.count(name) > 1)} is there twice, wanted once")
    return names


def _content(path: Path, name: str) -> bytes:
    try:
        with tarfile.open(path) as held:
            return held.extractfile(name).read()
    except (tarfile.TarError, OSError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: {name} cannot be read: {error}") from error


def _lens(path: Path, size: tuple[int, int]) -> Intrinsics:
    held: Any = read_json(path)
    try:
        own = int(held["image_width"]), int(held["image_height"])
        f_c, bend = [held[key] for key in ("fx", "fy", "cx", "cy")], [held[f"k{n}"] for n in range(1, 5)]
        model = held["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: found {held}, wanted model, image_width, image_height, fx..cy and k1..k4") from error
    if model != "fisheye":
        raise ValueError(f"{path}: found the model {model!r}, wanted fisheye (OpenCV's, k1..k4)")
    return lens(path, "kannala_brandt", bend, own, f_c).resized(*size)
