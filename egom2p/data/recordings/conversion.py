"""Other people's files into plain folders: video files, RGB-D frames with poses, Aria MPS output.

Each converter knows a format, not a data set, and writes `<out>/<recording>/` as `plain_folder.py` describes it.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from egom2p.contracts import Intrinsics
from egom2p.data.clips.image_files import IMAGE_SUFFIXES, RgbImages
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, open_video
from egom2p.data.recordings.aria_mps import MpsRecording, mps_sequences, read_mps
from egom2p.data.recordings.reader_parts import read_numbers
from egom2p.data.recordings.recording_formats import unused_files
from egom2p.data.recordings.recording_settings import SETTINGS_FILE
from egom2p.data.recordings.track_files import visible
from egom2p.jobs.progress import say
from egom2p.storage import atomic_directory, inside

_FRAME = re.compile(r"^(?P<stem>.*?)(?P<number>\d+)\.(color|rgb)$")
_POSE_SUFFIX, _DEPTH_SUFFIX = ".pose.txt", ".depth.png"
_INTRINSICS_FILE = "camera-intrinsics.txt"


_LISTED = 30

# Files by which recordings of products are told that no converter here reads whole: their videos alone would lose the
# rest, or be the same moments twice.
_PRODUCTS = {
    "Pupil Labs Neon": ("*gaze ps*.raw", "gaze.dtype"),
    "Pupil Labs Cloud": ("world_timestamps.csv",),
    "Pupil Core": ("info.player.json", "gaze.pldata", "*world_timestamps.npy"),
    "Tobii Glasses 3": ("recording.g3", "gazedata.gz"),
    "Tobii Glasses 2": ("livedata.json.gz",),
    "HoloAssist": ("Export_py", "Video_pitchshift.mp4", "Eyes_sync.txt"),
    "LeRobot": ("info.json:codebase_version",),
}


def detect_format(source: Path) -> str:
    """Which of FORMATS a file or folder is in. Raises ValueError listing what was found."""
    if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
        return "videos"
    if source.is_dir():
        if mps_sequences(source):
            return "aria_mps"
        if _colour_frames(source):
            return "rgbd_frames"
        _refuse_products(source)
        if any(path.suffix.lower() in VIDEO_SUFFIXES for path in visible(source)):
            return "videos"
        found = str([path.name for path in visible(source)][:10])
    else:
        found = f"a file of suffix {source.suffix!r}" if source.exists() else "no such file or folder"
    raise ValueError(
        f"{source}: found {found}, wanted one of the formats {sorted(FORMATS)}, a video being one of {VIDEO_SUFFIXES}"
    )


def convert(source: str | Path, out: str | Path, *, name: str | None = None, **options: Any) -> list[Path]:
    """Write the recordings of `source` below `out`; returns their folders. `name` replaces the source's own name.

    Files of the source that no recording was made from are listed on the terminal.
    """
    source, out = Path(source), Path(out)
    folders, used = FORMATS[detect_format(source)](source, out, name, **options)
    if unused := unused_files(source, used):
        more = f" and {len(unused) - _LISTED} more" if len(unused) > _LISTED else ""
        say(f"not used of {source}: {', '.join(unused[:_LISTED])}{more}")
    return folders


def _refuse_products(source: Path) -> None:
    """Raise ValueError for a folder of a product whose recording is more than its videos."""
    for product, patterns in _PRODUCTS.items():
        for pattern in patterns:
            name, _, key = pattern.partition(":")
            found = next(
                (path for path in source.glob(name) if not key or key in path.read_text("utf-8", "replace")), None
            )
            if found is not None:
                raise ValueError(
                    f"{source}: found {found.name}: a recording of {product}, of which its videos alone would lose "
                    f"gaze and poses; run_prepare_data.py reads data sets as they are (README_DATA.md); wanted one of "
                    f"the formats {sorted(FORMATS)}, or a plain folder made of it"
                )


def convert_videos(source: Path, out: Path, name: str | None) -> tuple[list[Path], list[Path]]:
    """A video file, or every video file of a folder, as recordings with pictures only."""
    files = [source] if source.is_file() else [p for p in visible(source) if p.suffix.lower() in VIDEO_SUFFIXES]
    if name is not None and len(files) > 1:
        raise ValueError(f"{source}: found {len(files)} videos; one name can only be given to one")
    _refuse_same_names(source, [name or file.stem for file in files])
    for file in files:
        open_video(file).close()  # a file that is cut short is an error before anything is written
    folders = []
    for file in files:
        folder = inside(out, name or file.stem)
        with atomic_directory(folder) as unfinished:
            shutil.copyfile(file, unfinished / f"video{file.suffix.lower()}")
        folders.append(folder)
    return folders, files


def _refuse_same_names(source: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{source}: found several recordings called {twice[:10]}, wanted one of each name")


def convert_rgbd_frames(
    source: Path, out: Path, name: str | None, *, rate_hz: float = 30.0
) -> tuple[list[Path], list[Path]]:
    """Frames `<stem><number>.color.jpg`, `.depth.png` (16 bit, mm), `.pose.txt` (4x4 world_from_cam, OpenCV axes).

    The layout of 7-Scenes and of tools that follow it. There are no times in it: frame n is at n / rate_hz. A pose
    with nan or inf means lost tracking and becomes an invalid sample. `camera-intrinsics.txt` (3x3) is used if there.
    """
    colours, numbers = colour_frames(source)
    times_s = (numbers - numbers[0]) / rate_hz
    folder = inside(out, name or source.name)
    with atomic_directory(folder) as unfinished:
        _copy_numbered(colours, unfinished / "rgb")
        _write_times(unfinished / "rgb_timestamps.txt", times_s)
        depths = [beside_colour(path, _DEPTH_SUFFIX) for path in colours]
        has_depth = np.array([path.is_file() for path in depths])
        if has_depth.any():
            _copy_numbered([p for p, is_there in zip(depths, has_depth, strict=True) if is_there], unfinished / "depth")
            _write_times(unfinished / "depth_timestamps.txt", times_s[has_depth])
        poses = [beside_colour(path, _POSE_SUFFIX) for path in colours]
        has_pose = np.array([path.is_file() for path in poses])
        if has_pose.any():
            matrices = np.stack(
                [read_numbers(p, (4, 4)) for p, is_there in zip(poses, has_pose, strict=True) if is_there]
            )
            _write_poses(unfinished / "trajectory.npz", times_s[has_pose], matrices)
        if (source / _INTRINSICS_FILE).is_file():
            matrix = read_numbers(source / _INTRINSICS_FILE, (3, 3))
            frames = RgbImages(colours[:1])
            camera = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
            _write_settings(unfinished, Intrinsics(frames.width, frames.height, *map(float, camera)))
    return [folder], [*colours, *depths, *poses, source / _INTRINSICS_FILE]


def convert_aria_mps(
    source: Path, out: Path, name: str | None, *, image_size: int | None = None, device_size: str = "L"
) -> tuple[list[Path], list[Path]]:
    """Aria MPS output (closed-loop trajectory, online calibration, eye gaze) as recordings of camera and gaze.

    A recording per trajectory below the source, named by its folder. Poses and gaze are of the upright RGB camera.
    See `aria_mps.read_mps` for image_size and device_size.
    """
    sequences = mps_sequences(source)
    if name is not None and len(sequences) > 1:
        raise ValueError(f"{source}: found {len(sequences)} sequences; one name can only be given to one")
    names = [name or "_".join(folder.relative_to(source).parts) or source.resolve().name for folder in sequences]
    _refuse_same_names(source, names)
    folders, used = [], []
    for sequence, recording in zip(sequences, names, strict=True):
        mps = read_mps(sequence, image_size=image_size, device_size=device_size)
        folders.append(inside(out, recording))
        _write_mps(folders[-1], mps)
        for note in mps.notes:
            say(f"{sequence}: {note}")
        used += mps.files
    return folders, used


def _write_mps(folder: Path, mps: MpsRecording) -> None:
    with atomic_directory(folder) as unfinished:
        _write_poses(unfinished / "trajectory.npz", mps.pose_times_s, mps.world_from_cam)
        if mps.gaze is not None:
            rows = zip(
                mps.gaze_times_s.tolist(), mps.gaze.tolist(), mps.gaze_is_valid.astype(int).tolist(), strict=True
            )
            lines = ["timestamps,u,v,valid", *(f"{t!r},{u!r},{v!r},{valid}" for t, (u, v), valid in rows)]
            (unfinished / "gaze.csv").write_text("\n".join(lines) + "\n")
        _write_settings(unfinished, mps.intrinsics)


FORMATS: dict[str, Callable[..., tuple[list[Path], list[Path]]]] = {
    "videos": convert_videos,
    "rgbd_frames": convert_rgbd_frames,
    "aria_mps": convert_aria_mps,
}


def colour_frames(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Colour pictures of RGB-D frames and their numbers (T,), increasing.

    Raises ValueError where they are of several sequences, or a number is there twice.
    """
    colours = _colour_frames(folder)
    stems = sorted({_FRAME.match(path.stem).group("stem") for path in colours})
    if len(stems) > 1:
        raise ValueError(f"{folder}: found frames of several sequences {stems[:10]}, wanted those of one in a folder")
    numbers = np.array([int(_FRAME.match(path.stem).group("number")) for path in colours])
    if (np.diff(numbers) <= 0).any():
        raise ValueError(f"{folder}: found frame {numbers[:-1][np.diff(numbers) <= 0][0]} twice, wanted each once")
    return colours, numbers


def _colour_frames(folder: Path) -> list[Path]:
    """Colour pictures of RGB-D frames, sorted by frame number."""
    found = [p for p in visible(folder) if p.suffix.lower() in IMAGE_SUFFIXES and _FRAME.match(p.stem)]
    return sorted(found, key=lambda path: int(_FRAME.match(path.stem).group("number")))


def beside_colour(colour: Path, suffix: str) -> Path:
    """The file of another kind of the same frame."""
    return colour.with_name(colour.stem.rpartition(".")[0] + suffix)


def _copy_numbered(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:06d}{file.suffix.lower()}")


def _write_times(path: Path, times_s: np.ndarray) -> None:
    path.write_text("".join(f"{time_s!r}\n" for time_s in times_s.tolist()))


def _write_poses(path: Path, times_s: np.ndarray, world_from_cam: np.ndarray) -> None:
    is_valid = np.isfinite(world_from_cam).all(axis=(1, 2))
    poses = np.where(is_valid[:, None, None], world_from_cam, np.eye(4))
    np.savez(path, timestamps=times_s, world_from_camera=poses, valid=is_valid)


def _write_settings(folder: Path, intrinsics: Intrinsics) -> None:
    values = asdict(intrinsics)
    values["distortion"] = [float(value) for value in values["distortion"]]
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump({"intrinsics": values}, sort_keys=False))
