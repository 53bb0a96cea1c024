"""What every reader of a foreign format has in common: finding recordings, choosing among them, what is left over.

A format is one file beside this one with one subclass of `FormatReader` and its config, a subclass of `FolderSource`;
`reader_choice.FORMATS` lists the class, and all else (the union of sources, recognition) follows from it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from egom2p.config import strict
from egom2p.contracts import FrameSource, Intrinsics, Provenance, Recording, Stream
from egom2p.data.clips.image_files import frame_numbers, image_sequence
from egom2p.data.recordings.track_files import TABLE_SUFFIXES, check_times, read_text, visible
from egom2p.geometry import check_poses, interpolate_poses, inverse_poses, is_inside, pixel_grid, project, unproject

_TEXTS, _SMALL_FILE = (*TABLE_SUFFIXES, ".txt", ".yaml", ".tum", ".json", ".jsonl", ".log"), 1 << 22  # bytes


@strict
class FolderSource:
    """Where recordings of a format lie. A format's own source adds its `kind` and what its files cannot say."""

    root: str
    names: tuple[str, ...] | None = None  # only these recordings


class FormatReader:
    """Recordings of one format below a root, sorted by name.

    source   class of its config, with a `kind: Literal[...]`
    what     the format in words, for people
    """

    source: ClassVar[type[FolderSource]]
    what: ClassVar[str]

    def __init__(self, config: Any, *, dataset: str = "") -> None:
        self.config, self.dataset, self.root = config, dataset, Path(config.root)
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder of recordings ({self.what})")
        self.paths: Mapping[str, Path] = self.find(self.root)
        missing = sorted(set(config.names or ()) - set(self.paths))
        if missing or not self.paths:
            held = list(self.paths)[:20] or [path.name for path in visible(self.root)][:20]
            raise ValueError(f"{self.root}: found {held}, wanted {missing or 'recordings'} of {self.what}")
        self.names: tuple[str, ...] = tuple(sorted(self.paths) if config.names is None else config.names)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        """Recordings of this format by name, each with its folder or main file; empty: a root is not in this format.

        Looks at names of files and small headers only, and never raises for what is in another format.
        """
        raise NotImplementedError

    def open(self, name: str, path: Path) -> tuple[Mapping[str, Stream], Intrinsics | None, Iterable[Path]]:
        """Streams and intrinsics of one recording, and the files (or whole folders) they are from.

        Pictures stay in their files. Raises ValueError naming the file that is wrong.
        """
        raise NotImplementedError

    def files(self, name: str) -> Sequence[Path]:
        """Files and folders that belong to one recording; by default what lies below its path."""
        return (self.paths[name],)

    def notes(self, name: str) -> tuple[str, ...]:
        """What a person should know of a recording beside what its pictures say."""
        return ()

    def read(self, index: int) -> Recording:
        name = self.names[index]
        streams, intrinsics, used = self.open(name, self.paths[name])
        unused = tuple(file for path in self.files(name) for file in unused_files(path, used))
        provenance = Provenance(self.dataset, name, source=str(self.paths[name]))
        notes = getattr(streams["rgb"].values, "notes", ()) if "rgb" in streams else ()
        notes = (*notes, *self.notes(name))
        return Recording(name, streams, intrinsics, provenance, unused=unused, notes=notes)

    def signature(self, index: int, *, is_whole: bool) -> dict[str, str]:
        return files_signature(self.root, self.files(self.names[index]), is_whole=is_whole)

    @property
    def unused(self) -> list[str]:
        """Files and folders below the root that belong to no recording."""
        return unused_files(self.root, [path for name in self.paths for path in self.files(name)])


def folders_with(root: Path, *markers: str, depth: int = 1) -> dict[str, Path]:
    """Folders that hold all of `markers` (globs, relative): the root itself, else those up to `depth` levels below.

    A folder is called by its path below the root, parts joined by `_`; the root by its own name.
    """

    def holds_all(folder: Path) -> bool:
        return all(any(folder.glob(marker)) for marker in markers)

    if holds_all(root):
        return {root.resolve().name: root}
    found: dict[str, Path] = {}
    level = [root]
    for _ in range(depth):
        # Folders only, told without a look at each file: a level may hold a million pictures.
        level = [Path(entry.path) for folder in level for entry in _folders(folder)]
        for folder in [folder for folder in level if holds_all(folder)]:
            _add_named(found, "_".join(folder.relative_to(root).parts), folder)
        level = [folder for folder in level if folder not in found.values()]
    return found


def _folders(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)


def _add_named(found: dict[str, Path], name: str, path: Path) -> None:
    if name in found:
        raise ValueError(
            f"{path}: found a second recording called {name} beside {found[name]}, wanted one of each name"
        )
    found[name] = path


def files_signature(root: Path, paths: Iterable[Path], *, is_whole: bool) -> dict[str, str]:
    """What tells whether files (or all in folders) are what they were: `stamps`, and whole also `content`.

    stamps: names, sizes and times of writing; content: names, sizes, and what small files hold (a copy has it too).
    """
    stats = [(str(path.relative_to(root)), path, path.stat()) for path in _all_files(paths)]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, _, stat in stats]
    if not is_whole:
        return {"stamps": _hash(stamps)}
    small = [path for _, path, stat in stats if stat.st_size <= _SMALL_FILE and path.suffix.lower() in _TEXTS]
    held = [hashlib.sha256(path.read_bytes()).hexdigest() for path in small]
    return {"stamps": _hash(stamps), "content": _hash([[(name, stat.st_size) for name, _, stat in stats], held])}


def _all_files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [p for p in below if p.is_file() and not any(x.startswith(".") for x in p.relative_to(path).parts)]
    return found


def _hash(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def unused_files(source: Path, used: Iterable[Path]) -> list[str]:
    """Files and folders below a source of which nothing is in `used`; a folder as a whole, with its number of files."""
    used = set(used)
    holding = {parent for path in used for parent in path.parents}

    def walk(folder: Path) -> Iterator[str]:
        for path in visible(folder):
            if path in used:
                continue
            if path.is_file():
                yield str(path.relative_to(source))
            elif path in holding:
                yield from walk(path)
            elif path.is_dir():
                count = sum(below.is_file() for below in path.rglob("*"))
                yield f"{path.relative_to(source)}/ ({count} files)"

    return list(walk(source)) if source.is_dir() and source not in used else []


def track_stream(
    times_s: np.ndarray, values: np.ndarray, unit: str, *, where: Path, is_valid: np.ndarray | None = None
) -> Stream:
    """A track (T, ...) on its clock; samples with a number that is not finite are invalid and become 0.

    Raises ValueError naming the file and row where times do not increase.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(times_s) != len(values):
        raise ValueError(f"{where}: found {len(times_s)} times for {len(values)} samples of {unit}, wanted one each")
    check_times(times_s, [f"{where}, sample {row}" for row in range(len(times_s))], where)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    is_valid = finite if is_valid is None else finite & is_valid
    return Stream(np.where(is_valid.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0), is_valid, times_s, unit)


def pose_stream(
    times_s: np.ndarray, world_from_cam: np.ndarray, *, where: Path, is_valid: np.ndarray | None = None
) -> Stream:
    """Camera poses (T, 4, 4), OpenCV axes; a pose that is not finite is invalid and becomes the identity.

    Raises ValueError naming the file where a pose is no rigid motion.
    """
    stream = track_stream(times_s, world_from_cam, "world_from_cam", where=where, is_valid=is_valid)
    poses = np.where(stream.is_valid[:, None, None], world_from_cam, np.eye(4))
    return replace(stream, values=check_poses(str(where), poses))


def frame_stream(frames: FrameSource, times_s: np.ndarray, unit: str, *, where: Path) -> Stream:
    """Pictures on their clock. Raises ValueError when there is not one time for each."""
    if len(frames) != len(times_s):
        raise ValueError(f"{where}: found {len(frames)} pictures, wanted {len(times_s)}, one for each time")
    return Stream(frames, np.ones(len(frames), bool), np.asarray(times_s, dtype=np.float64), unit)


def read_numbers(path: Path, shape: tuple[int, ...] | None = None, *, delimiter: str | None = None) -> np.ndarray:
    """Numbers of a text file; all of them in `shape` where given, else as rows. Raises ValueError naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is refused below
            found = np.loadtxt(path, delimiter=delimiter, ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a file of numbers: {error}") from None
    if shape is not None and found.size != np.prod(shape):
        raise ValueError(f"{path}: found {found.size} numbers, wanted {int(np.prod(shape))}")
    if not found.size:
        raise ValueError(f"{path}: found no numbers")
    return found if shape is None else found.reshape(shape)


def read_npy(path: Path) -> np.ndarray:
    """One array of numbers, nothing unpickled. Raises ValueError naming the file."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable array file: {error}") from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file: {error}") from None


def numbered_frames(folder: Path, suffixes: Sequence[str], rate_hz: float) -> tuple[list[Path], np.ndarray]:
    """Pictures of a folder and their times (T,): the number in a name over the rate. ValueError: names have none."""
    paths = image_sequence(folder, suffixes)
    numbers = frame_numbers(paths)
    if numbers is None:
        raise ValueError(f"{folder}: found names like {paths[0].name}, wanted names that differ by their number")
    return paths, numbers / rate_hz


def pinhole_from_matrix(path: Path, matrix: np.ndarray, width: int, height: int, **distorted: Any) -> Intrinsics:
    """Intrinsics of a 3x3 matrix. Raises ValueError where its centre is not near that of the picture."""
    fx, fy, cx, cy = (float(value) for value in (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]))
    if not (min(fx, fy) > 0 and 0.25 * width < cx < 0.75 * width and 0.25 * height < cy < 0.75 * height):
        raise ValueError(
            f"{path}: found fx {fx:g}, fy {fy:g} and the centre ({cx:g}, {cy:g}), wanted a camera of the {width}x"
            f"{height} picture"
        )
    return Intrinsics(width, height, fx, fy, cx, cy, **distorted)


_STEP_PX, _MOVED_M, _PAIR = 8, 0.02, 30


def check_pose_direction(streams: Mapping[str, Stream], intrinsics: Intrinsics, *, where: Path) -> None:
    """Raise ValueError when depth fits the inverse of the poses much better than the poses.

    The first depth picture is seen from a later one, at most 30 on, from which the camera has moved the most.
    """
    depth, camera = streams["depth"], streams["camera"]
    rows = np.arange(min(len(depth.values), _PAIR + 1))
    poses, is_known = interpolate_poses(
        camera.times_s, camera.values, depth.times_s[rows], max_gap_s=0.2, is_valid=camera.is_valid
    )
    moved_m = np.where(is_known & is_known[0], np.linalg.norm(poses[:, :3, 3] - poses[0, :3, 3], axis=1), 0.0)
    last = int(np.argmax(moved_m))
    if moved_m[last] < _MOVED_M:
        return
    first_m, last_m = depth.values.read(np.array([0, last]))
    own = intrinsics.resized(first_m.shape[1], first_m.shape[0])
    pixels = pixel_grid(own)[::_STEP_PX, ::_STEP_PX]
    points, is_valid = unproject(pixels, first_m[::_STEP_PX, ::_STEP_PX], own)

    def error_m(last_from_first: np.ndarray) -> float:
        seen = points[is_valid] @ last_from_first[:3, :3].T + last_from_first[:3, 3]
        landed, is_seen = project(seen, own)
        is_seen &= is_inside(landed, own)
        u, v = np.round(landed[is_seen]).astype(int).T
        there_m = last_m[np.clip(v, 0, own.height - 1), np.clip(u, 0, own.width - 1)]
        differs_m = np.abs(seen[is_seen, 2] - there_m)[there_m > 0]
        return float(np.median(differs_m)) if len(differs_m) else np.inf

    as_read_m = error_m(inverse_poses(poses[last]) @ poses[0])
    inverted_m = error_m(poses[last] @ inverse_poses(poses[0]))
    if as_read_m > 2 * inverted_m + 0.01:
        raise ValueError(
            f"{where}: depth of pictures 0 and {last} differs by {as_read_m:.3f} m with the poses and by "
            f"{inverted_m:.3f} m with their inverse; wanted poses in the direction its format documents"
        )
