"""Poses of structure from motion: Nerfstudio's `transforms.json` and COLMAP's models.

Neither says how long a metre is. `source.metres_per_unit` says it; without, the poses are no camera stream but a
further track `camera_unscaled` (T, 12: rows of the 3x4 matrix world_from_cam, OpenCV axes, unknown unit), so that
nothing that counts in metres gets them, and a note says so. Neither has a clock: `source.rate_hz` says how many
pictures a second there are; numbers missing in the pictures' names are frames that are missing.

Nerfstudio: world_from_cam in OpenGL axes, in a world that was multiplied from the left by `applied_transform`; this is
undone with its inverse. COLMAP: cam_from_world, quaternions w first. Both call the centre of the first pixel
(0.5, 0.5), here it is (0, 0). Real files confirm both layouts.
"""

import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from egom2p.config import Natural, Positive, strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.image_files import frame_ticks, list_images
from egom2p.data.recordings.depth_files import DepthFrames
from egom2p.data.recordings.reader_parts import (
    OPENCV_FROM_OPENGL,
    frame_stream,
    lens,
    picture_stream,
    pose_stream,
    poses_from_rows,
    read_json,
    track_stream,
    unlisted,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.track_files import named_file, read_text
from egom2p.geometry import inverse_poses, number_from_text

# COLMAP's camera models that `geometry.cameras` knows: number, name, number of parameters, lens, which are f and c.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3, "pinhole", (0, 0, 1, 2)),
    1: ("PINHOLE", 4, "pinhole", (0, 1, 2, 3)),
    2: ("SIMPLE_RADIAL", 4, "radial", (0, 0, 1, 2)),
    3: ("RADIAL", 5, "radial", (0, 0, 1, 2)),
    4: ("OPENCV", 8, "opencv", (0, 1, 2, 3)),
    5: ("OPENCV_FISHEYE", 8, "kannala_brandt", (0, 1, 2, 3)),
    6: ("FULL_OPENCV", 12, "opencv", (0, 1, 2, 3)),
}


@strict
class _UnscaledSource(FolderSource):
    """What the files cannot say."""

    rate_hz: Positive | None = None  # pictures a second
    metres_per_unit: Positive | None = None  # None: the scale is unknown


@strict
class NerfstudioSource(_UnscaledSource):
    """Nerfstudio's transforms.json."""

    kind: Literal["nerfstudio"]


@strict
class ColmapSource(_UnscaledSource):
    """COLMAP's sparse models."""

    kind: Literal["colmap"]
    images: str = "images"  # folder of the pictures, relative to a recording
    model: str | None = None  # folder of the model, relative to a recording; by default sparse/0, sparse, or itself
    camera_id: Natural | None = None  # where a model has pictures of several cameras


class _UnscaledReader(FormatReader):
    """What both share: times by the rate, and what a missing scale means."""

    def _streams(
        self, path: Path, files: Sequence[Path], world_from_cam: np.ndarray
    ) -> tuple[dict[str, Stream], tuple[str, ...]]:
        """Pictures and poses, in the order of the files, and notes."""
        if self.config.rate_hz is None:
            raise ValueError(f"{path}: {self.what} have no times, wanted source.rate_hz (pictures a second)")
        times_s = frame_ticks(files) / self.config.rate_hz
        streams = {"rgb": picture_stream(files, times_s, where=path)}
        if self.config.metres_per_unit is None:
            rows = world_from_cam[:, :3].reshape(-1, 12)
            streams["camera_unscaled"] = track_stream(
                times_s, rows, "world_from_cam, rows of 3x4, unknown unit", where=path
            )
            note = f"{self.what} have no scale: poses are the track camera_unscaled; say source.metres_per_unit"
            return streams, (note, *unlisted(path, files))
        scaled = world_from_cam.copy()
        scaled[:, :3, 3] *= self.config.metres_per_unit
        streams["camera"] = pose_stream(times_s, scaled, where=path)
        return streams, unlisted(path, files)


class NerfstudioReader(_UnscaledReader):
    source, what = NerfstudioSource, "Nerfstudio's transforms.json"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return folders_with(root, "transforms.json", depth=2)

    def open(self, name: str, path: Path) -> Opened:
        listing = path / "transforms.json"
        held = read_json(listing)
        try:
            frames = sorted(held["frames"], key=lambda frame: _natural(path / frame["file_path"]))
            files = [_with_suffix(named_file(path, frame["file_path"], where=listing)) for frame in frames]
            matrices = np.array([frame["transform_matrix"] for frame in frames], np.float64).reshape(-1, 4, 4)
            applied = np.eye(4)
            applied[:3] = np.array(held.get("applied_transform", np.eye(4)[:3]), np.float64).reshape(-1, 4)[:3]
            depths = [
                named_file(path, frame["depth_file_path"], where=listing)
                for frame in frames
                if frame.get("depth_file_path")
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{listing}: not as Nerfstudio writes it: {error!r}") from error
        if not frames:
            raise ValueError(f"{listing}: found no frames")
        world_from_cam = np.linalg.inv(applied) @ matrices @ OPENCV_FROM_OPENGL
        streams, notes = self._streams(listing, files, world_from_cam)
        used = [listing, *files]
        if depths and self.config.metres_per_unit is not None:
            source = DepthFrames(depths, metres_per_unit=0.001 * self.config.metres_per_unit, invalid_values=(0,))
            streams["depth"] = frame_stream(source, streams["rgb"].times_s, "m", where=listing)
            used += depths
        camera, *others = [_nerfstudio_camera(listing, held, frame) for frame in frames]
        if differing := sum(other != camera for other in others):
            notes = (
                *notes,
                f"{differing} of {len(frames)} frames have intrinsics of their own; the first frame's are taken",
            )
        return Opened(streams, camera, used, notes)


def _nerfstudio_camera(path: Path, held: Mapping[str, Any], frame: Mapping[str, Any]) -> Intrinsics:
    """The camera of a frame: its own keys go before those of the file. As COLMAP's, pixels have their centre at 0.5."""
    values = {**held, **frame}
    try:
        width, height, fx, fy, cx, cy = (float(values[key]) for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: found no {error}, wanted w, h, fl_x, fl_y, cx and cy") from None
    size = int(width), int(height)
    f_c = fx, fy, cx - 0.5, cy - 0.5
    model = values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")
    k = [float(values.get(key, 0.0)) for key in ("k1", "k2", "k3", "k4")]
    if model == "OPENCV_FISHEYE":
        return lens(path, "kannala_brandt", k, size, f_c)
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"{path}: found camera_model {model!r}, wanted OPENCV, PINHOLE or OPENCV_FISHEYE")
    if k[3]:
        raise ValueError(f"{path}: found k4 {k[3]} for {model}, whose fourth radial term has no agreed meaning")
    radial = [k[0], k[1], float(values.get("p1", 0.0)), float(values.get("p2", 0.0)), k[2]]
    return lens(path, "opencv", radial, size, f_c)


class ColmapReader(_UnscaledReader):
    source, what = ColmapSource, "COLMAP's models"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        for marker in ("sparse/0/images.", "sparse/images.", "images."):
            for suffix in ("bin", "txt"):
                found = folders_with(root, marker + suffix, marker.replace("images.", "cameras.") + suffix, depth=2)
                if found:
                    return found
        return {}

    def open(self, name: str, path: Path) -> Opened:
        folder = _model_folder(path, self.config.model)
        suffix = "bin" if (folder / "images.bin").is_file() else "txt"
        read_cameras, read_images = (_cameras, _images) if suffix == "bin" else (_cameras_text, _images_text)
        cameras_path, images_path = folder / f"cameras.{suffix}", folder / f"images.{suffix}"
        cameras, images = read_cameras(cameras_path), read_images(images_path)
        ids = sorted({image[2] for image in images})
        camera_id = ids[0] if self.config.camera_id is None and len(ids) == 1 else self.config.camera_id
        if camera_id not in ids or camera_id not in cameras:
            raise ValueError(f"{images_path}: found pictures of the cameras {ids[:20]}, wanted one: source.camera_id")
        images = sorted((image for image in images if image[2] == camera_id), key=lambda image: _natural(image[0]))
        numbers = np.array([image[1] for image in images], np.float64)
        cam_from_world = poses_from_rows(str(images_path), numbers[:, 4:], numbers[:, [1, 2, 3, 0]])
        if not np.isfinite(cam_from_world).all():
            raise ValueError(f"{images_path}: found a quaternion that is not of length 1")
        files = [named_file(path / self.config.images, image[0], where=images_path) for image in images]
        streams, notes = self._streams(images_path, files, inverse_poses(cam_from_world))
        number, size, parameters = cameras[camera_id]
        _, _, model, order = _MODELS[number]
        fx, fy, cx, cy = (parameters[position] for position in order)
        distortion = list(parameters[max(order) + 1 :])
        if model == "radial":
            model, distortion = "opencv", [*distortion, *[0.0] * (4 - len(distortion))]
        camera = lens(cameras_path, model, distortion, size, (fx, fy, cx - 0.5, cy - 0.5))
        return Opened(streams, camera, [cameras_path, images_path, *files], notes)


def _model_folder(path: Path, wanted: str | None) -> Path:
    folders = [path / wanted] if wanted else [path / "sparse/0", path / "sparse", path]
    found = next((f for f in folders if (f / "images.bin").is_file() or (f / "images.txt").is_file()), None)
    if found is None:
        raise ValueError(f"{path}: found no model in {[str(f.relative_to(path)) for f in folders]}, say source.model")
    return found


_Camera = tuple[int, tuple[int, int], tuple[float, ...]]
_Image = tuple[str, tuple[float, ...], int]


def _unpack(path: Path, file: BinaryIO, layout: str) -> tuple[Any, ...]:
    try:
        return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))
    except struct.error:
        raise ValueError(f"{path}: the file ends early, wanted a whole COLMAP model") from None


def _num_parameters(path: Path, number: int) -> int:
    if number not in _MODELS:
        names = [name for name, *_ in _MODELS.values()]
        raise ValueError(f"{path}: found camera model {number}, wanted one of {names} (undistort the pictures first)")
    return _MODELS[number][1]


def _cameras(path: Path) -> dict[int, _Camera]:
    cameras = {}
    with open(path, "rb") as file:
        for _ in range(_unpack(path, file, "Q")[0]):
            identity, number, width, height = _unpack(path, file, "IiQQ")
            parameters = _unpack(path, file, f"{_num_parameters(path, number)}d")
            cameras[identity] = number, (width, height), parameters
    return cameras


def _images(path: Path) -> list[_Image]:
    images = []
    with open(path, "rb") as file:
        for _ in range(_unpack(path, file, "Q")[0]):
            _, *pose, camera = _unpack(path, file, "I7dI")
            name = bytearray()
            while (byte := _unpack(path, file, "c")[0]) != b"\0":
                name += byte
            (num_points,) = _unpack(path, file, "Q")
            end = file.tell() + 24 * num_points  # two f64 and an i64 each
            if end > os.fstat(file.fileno()).st_size:
                raise ValueError(f"{path}: the file ends early, wanted a whole COLMAP model")
            file.seek(end)
            images.append((name.decode("utf-8"), tuple(pose), camera))
    return images


def _cameras_text(path: Path) -> dict[int, _Camera]:
    numbers = {name: number for number, (name, *_) in _MODELS.items()}
    cameras = {}
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if text.strip() and not text.startswith("#"):
            try:
                identity, model, width, height, *parameters = text.split()
                number, size, values = (
                    numbers.get(model, model),
                    (int(width), int(height)),
                    tuple(map(number_from_text, parameters)),
                )
                cameras[int(identity)] = number, size, values
            except ValueError:
                raise ValueError(
                    f"{path}, line {line}: found {text[:80]!r}, wanted an id, a model and numbers"
                ) from None
            if len(values) != (count := _num_parameters(path, number)):
                raise ValueError(f"{path}, line {line}: found {len(values)} parameters, wanted {count}")
    return cameras


def _images_text(path: Path) -> list[_Image]:
    """Two lines a picture; the second (its points) may be empty."""
    lines = enumerate(read_text(path).rstrip().splitlines(), start=1)
    images = []
    for line, text in [(line, text) for line, text in lines if not text.startswith("#")][::2]:
        try:
            _, *pose, camera, name = text.split(maxsplit=9)
            images.append((name.strip(), tuple(map(number_from_text, pose)), int(camera)))
            if len(pose) != 7:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{path}, line {line}: found {text[:80]!r}, wanted an id, 7 numbers, a camera and a name"
            ) from None
    return images


def _natural(path: str | Path) -> list[tuple[int, int, str]]:
    parts = [part for part in re.split(r"(\d+)", str(path)) if part]
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _with_suffix(path: Path) -> Path:
    """The picture itself; instant-ngp leaves the suffix away."""
    if path.suffix or not path.parent.is_dir():
        return path
    return next((other for other in list_images(path.parent) if other.stem == path.name), path)
