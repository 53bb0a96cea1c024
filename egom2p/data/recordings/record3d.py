"""Record3D's `.r3d`: a zip of `metadata` (JSON) and `rgbd/N.{jpg,depth,conf}`.

Poses are world_from_cam in OpenGL axes, `qx, qy, qz, qw, tx, ty, tz`, metres, in the world of the first pose (without
gravity). K is stored by columns, for the size of pictures. Depth is LZFSE of float32 in metres along z (pyliblzfse),
`dh` rows of `dw`; another number of bytes (float16 is reported, not seen) is refused. Format: what the app's maintainer
says in its issues; held by a replica only. The first pose and the numbers of pictures, poses and times are checked.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from egom2p.config import strict
from egom2p.data.recordings.reader_parts import (
    OPENCV_FROM_OPENGL,
    frame_stream,
    lens,
    needs,
    pose_stream,
    poses_from_rows,
    track_stream,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, called_by_path
from egom2p.data.recordings.track_files import visible


@strict
class Record3dSource(FolderSource):
    """A folder of .r3d files."""

    kind: Literal["record3d"]
    min_confidence: Literal[0, 1, 2] = 0  # depth pixels that the phone was less sure of have no depth


class Record3dReader(FormatReader):
    source, what = Record3dSource, "Record3D files (.r3d)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        return called_by_path(root, [p for p in visible(root) if p.suffix.lower() == ".r3d" and p.is_file()])

    def open(self, name: str, path: Path) -> Opened:
        try:
            with zipfile.ZipFile(path) as held:
                members, metadata = held.namelist(), json.loads(held.read("metadata"))
        except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: not a Record3D file: {error}") from error
        numbers = {suffix: _numbers(members, suffix) for suffix in ("jpg", "depth")}
        try:
            rows = np.array(metadata["poses"], np.float64).reshape(-1, 7)
            size = int(metadata["w"]), int(metadata["h"])
            depth_size = int(metadata.get("dw", 0)), int(metadata.get("dh", 0))
            lenses = np.array(metadata.get("perFrameIntrinsicCoeffs") or np.zeros((0, 4)), np.float64)[:, :4]
            k = np.array(metadata["K"], np.float64).reshape(3, 3, order="F")
            times_s = np.array(metadata.get("frameTimestamps") or np.arange(len(rows)) / float(metadata["fps"]))
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
            raise ValueError(f"{path}: metadata is not as Record3D writes it: {error!r}") from error
        frames = numbers["jpg"]
        if not len(frames) or not len(frames) == len(rows) == len(times_s) or frames[-1] != len(rows) - 1:
            raise ValueError(
                f"{path}: found {len(frames)} pictures, {len(rows)} poses and {len(times_s)} times, wanted one each"
            )
        matrices = poses_from_rows(str(path), rows[:, 4:], rows[:, :4]) @ OPENCV_FROM_OPENGL
        streams = {
            "camera": pose_stream(times_s, matrices, where=f"{path}: frameTimestamps"),
            "rgb": frame_stream(_Pictures(path, [f"rgbd/{n}.jpg" for n in frames], size), times_s, "uint8", where=path),
        }
        depths = numbers["depth"]
        if len(depths):
            if depths[-1] >= len(times_s):
                raise ValueError(f"{path}: found depth {depths[-1]} of {len(times_s)} frames")
            needs("liblzfse", path)
            depth = _Depths(path, depths, depth_size, self.config.min_confidence)
            streams["depth"] = frame_stream(depth, times_s[depths], "m", where=path)
        if len(lenses):
            streams["intrinsics"] = track_stream(times_s, lenses, "fx, fy, cx, cy in pixels", where=path)
        return Opened(streams, lens(path, "pinhole", (), size, k), [path])


def _numbers(members: Sequence[str], suffix: str) -> np.ndarray:
    """Frame numbers of `rgbd/N.<suffix>`, in order."""
    stems = [m[5:].removesuffix(f".{suffix}") for m in members if m.startswith("rgbd/") and m.endswith(f".{suffix}")]
    return np.array(sorted(int(stem) for stem in stems if stem.isdecimal()), np.int64)


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as held:
            return held.read(name)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"{path}: {name} is not readable: {error}") from error


class _Pictures:
    """JPEG pictures in a zip; a FrameSource."""

    def __init__(self, path: Path, names: Sequence[str], size: tuple[int, int]) -> None:
        self._path, self._names, (self.width, self.height) = path, names, size

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        for row, index in enumerate(indices):
            name = self._names[int(index)]
            try:
                picture = np.asarray(Image.open(io.BytesIO(_member(self._path, name))).convert("RGB"))
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"{self._path}: {name} is no readable picture: {error}") from error
            if picture.shape != frames.shape[1:]:
                raise ValueError(f"{self._path}: {name} is {picture.shape[:2]}, wanted {frames.shape[1:3]}")
            frames[row] = picture
        return frames


class _Depths:
    """Depth in metres; a FrameSource of (N, H, W) float32."""

    def __init__(self, path: Path, numbers: np.ndarray, size: tuple[int, int], least: int) -> None:
        self._path, self._numbers, self._least, (self.width, self.height) = path, numbers, least, size

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._frame(int(self._numbers[int(index)])) for index in indices])

    def _frame(self, number: int) -> np.ndarray:
        depth_m = self._decoded(f"rgbd/{number}.depth", "<f4")
        is_valid = np.isfinite(depth_m) & (depth_m > 0)
        if self._least:
            is_valid &= self._decoded(f"rgbd/{number}.conf", "u1") >= self._least
        return np.where(is_valid, depth_m, np.float32(0.0))

    def _decoded(self, name: str, dtype: str) -> np.ndarray:
        liblzfse: Any = needs("liblzfse", self._path)
        try:
            content = liblzfse.decompress(_member(self._path, name))
        except liblzfse.error as error:
            raise ValueError(f"{self._path}: {name} is no LZFSE: {error}") from error
        wanted = self.width * self.height * np.dtype(dtype).itemsize
        if len(content) != wanted:
            raise ValueError(f"{self._path}: {name} holds {len(content)} bytes, wanted {wanted}: {dtype} of this size")
        return np.frombuffer(content, dtype).reshape(self.height, self.width)
