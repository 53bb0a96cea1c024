"""ARCTIC: its egocentric view.

    raw_seqs/<subject>/<sequence>.egocam.dist.npy  images/<subject>/<sequence>/0/00001.jpg ...  meta/misc.json

The npy holds a pickled dict, of which only arrays and plain values are read: `R_k_cam_np` (T, 3, 3) and `T_k_cam_np`
(T, 3, 1), cam_from_world in metres and OpenCV axes, `intrinsics` and `dist8` (OpenCV's rational model). Pose i belongs
to picture i + ioi_offset of the subject. The files hold no times: picture n is at n / rate_hz. The first and last
pictures of a sequence may be black. Format: github.com/zc-alexfan/arctic; tried on a replica only. Without depth the
direction of the poses cannot be checked; that pictures and poses have numbers in common is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.config import Positive, strict
from egom2p.data.clips.image_files import IMAGE_SUFFIXES
from egom2p.data.recordings.reader_parts import (
    lens,
    numbered_frames,
    picture_stream,
    pose_stream,
    read_json,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened
from egom2p.data.recordings.track_files import matching
from egom2p.geometry import inverse_poses, poses_from_parts
from egom2p.storage.foreign_checkpoints import read_foreign_array

_SUFFIX, _VIEW = ".egocam.dist.npy", "0"
_SIZE = 2800, 2000  # of the pictures, where they are not there


@strict
class ArcticSource(FolderSource):
    """rate_hz: pictures a second, which the files do not say."""

    kind: Literal["arctic"]
    rate_hz: Positive = 30.0


class ArcticReader(FormatReader):
    source, what = ArcticSource, "ARCTIC"
    groups = r"^(?P<participant>s\d+)_"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = matching(root, f"raw_seqs/*/*{_SUFFIX}")
        return {f"{path.parent.name}_{path.name.removesuffix(_SUFFIX)}": path for path in found}

    def files(self, name: str) -> Sequence[Path]:
        folder, meta = self._pictures(self.paths[name]), self.root / "meta" / "misc.json"
        return [self.paths[name], *(path for path in (folder, meta) if path.exists())]

    def _pictures(self, path: Path) -> Path:
        return self.root / "images" / path.parent.name / path.name.removesuffix(_SUFFIX) / _VIEW

    def open(self, name: str, path: Path) -> Opened:
        meta = self.root / "meta" / "misc.json"
        held, folder = read_foreign_array(path), self._pictures(path)
        try:
            rotations = np.asarray(held["R_k_cam_np"], dtype=np.float64).reshape(-1, 3, 3)
            positions = np.asarray(held["T_k_cam_np"], dtype=np.float64).reshape(-1, 3)
            matrix = np.asarray(held["intrinsics"], dtype=np.float64).reshape(3, 3)
            distortion = tuple(np.asarray(held["dist8"], dtype=np.float64).reshape(8).tolist())
            cam_from_world = poses_from_parts(rotations, positions)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path}: not the egocentric camera of a sequence: {error!r}") from None
        try:
            offset = int(read_json(meta)[path.parent.name]["ioi_offset"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{meta}: found no ioi_offset of {path.parent.name}: {error!r}") from None
        times_s = (np.arange(len(cam_from_world)) + offset) / self.config.rate_hz
        streams = {"camera": pose_stream(times_s, inverse_poses(cam_from_world), where=path)}
        width, height = _SIZE
        if folder.is_dir():
            files, rgb_times_s = numbered_frames(folder, IMAGE_SUFFIXES, self.config.rate_hz)
            streams["rgb"] = picture_stream(files, rgb_times_s, where=folder)
            width, height = streams["rgb"].values.width, streams["rgb"].values.height
            if not len(np.intersect1d(np.round(rgb_times_s, 6), np.round(times_s, 6))):
                raise ValueError(
                    f"{folder}: found pictures {files[0].stem} to {files[-1].stem}, wanted some of the numbers "
                    f"{offset} to {offset + len(times_s) - 1} of the poses"
                )
        intrinsics = lens(path, "opencv", distortion, (width, height), matrix)
        return Opened(streams, intrinsics, [path, folder, meta])
