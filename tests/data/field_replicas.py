"""What the tests of readers share: shared files, a video whose frames tell their number, poses from scipy."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from egom2p.config import from_plain
from egom2p.contracts import Recording
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.reader_choice import AnySource, open_reader, recognised

COLLECTED = Path(__file__).resolve().parents[3] / "shared" / "real_data" / "collected"


def real(path: str) -> Path:
    """A collected real file, or a skip that says why."""
    if not (COLLECTED / path).exists():
        pytest.skip(f"shared/real_data/collected/{path} is not beside the checkout")
    return COLLECTED / path


def numbered_frames(count: int, *, height: int = 48, width: int = 64, first: int = 0) -> np.ndarray:
    """Grey frames (count, height, width, 3) whose brightness is 4 times their number."""
    levels = (4 * (first + np.arange(count))).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers_seen(frames: np.ndarray) -> np.ndarray:
    """Numbers of `numbered_frames` after a codec."""
    return np.round(frames.reshape(len(frames), -1).mean(axis=1) / 4).astype(int)


def numbered_video(path: Path, count: int, fps: float = 30.0, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, numbered_frames(count, **size), fps)


def numbered_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbered_frames(1, first=number)[0]).save(path)


def depth_picture(path: Path, value: int, size: tuple[int, int] = (48, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint16)).save(path)


def walk(count: int) -> np.ndarray:
    """Poses (count, 4, 4), world_from_cam, of a walk that turns about all axes."""
    steps = np.arange(count)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(np.stack([0.02 * steps, 0.03 * steps, -0.01 * steps + 0.3], 1)).as_matrix()
    poses[:, :3, 3] = np.stack([0.05 * steps, 1.5 + 0.01 * steps, -0.02 * steps], 1)
    return poses


def quaternions(poses: np.ndarray) -> np.ndarray:
    """x, y, z, w (T, 4), by scipy."""
    return Rotation.from_matrix(poses[:, :3, :3]).as_quat()


def recognised_as(root: Path, kind: str, **options: object) -> Recording:
    """The only recording of a root, whose kind is told from its files; opened with options."""
    source = recognised(AnySource(kind="any", root=str(root)))
    assert source.kind == kind
    source = from_plain(type(source), {"kind": kind, "root": str(root), **options}, where="test")
    reader = open_reader(source, dataset="field")
    assert len(reader) == 1
    return reader.read(0)
