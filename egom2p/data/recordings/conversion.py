"""Other people's files into plain folders: video files, RGB-D frames with poses, Aria MPS output.

Each converter knows a format, not a data set, and writes `<out>/<recording>/` as `plain_folder.py` describes it.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from egom2p.data.clips.video_files import VIDEO_SUFFIXES, open_video
from egom2p.data.recordings.aria_mps import mps_sequences, read_mps
from egom2p.data.recordings.recording_formats import Opened, unused_files
from egom2p.data.recordings.recording_settings import SETTINGS_FILE
from egom2p.data.recordings.rgbd_frames import colour_pictures, open_frames
from egom2p.data.recordings.track_files import visible
from egom2p.jobs.progress import listed, say
from egom2p.storage import atomic_directory, inside

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
        if colour_pictures(source):
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
        say(f"not used of {source}: {listed(unused)}")
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
    """Frames of 7-Scenes' layout (`rgbd_frames.py`); there are no times in it: frame n is at n / rate_hz."""
    opened = open_frames(source, rate_hz)
    folder = inside(out, name or source.name)
    _write(folder, opened)
    return [folder], list(opened.files)


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
    folders, used = [inside(out, recording) for recording in names], []
    for sequence, folder in zip(sequences, folders, strict=True):
        mps = read_mps(sequence, image_size=image_size, device_size=device_size)
        _write(folder, Opened(mps.streams(sequence), mps.intrinsics, mps.files))
        for note in mps.notes:
            say(f"{sequence}: {note}")
        used += mps.files
    return folders, used


def _write(folder: Path, opened: Opened) -> None:
    """A recording of picture files and tracks as a plain folder."""
    with atomic_directory(folder) as unfinished:
        for name, stream in opened.streams.items():
            if name in ("rgb", "depth"):
                files = stream.values.paths if name == "rgb" else stream.values.stored
                if name == "rgb" and stream.values.notes:
                    raise ValueError(f"{files[0]}: found an EXIF note that turns it against its pose, wanted none")
                _copy_numbered(files, unfinished / name)
                times = "".join(f"{time_s!r}\n" for time_s in stream.times_s.tolist())
                (unfinished / f"{name}_timestamps.txt").write_text(times)
            elif name == "camera":
                arrays = {"timestamps": stream.times_s, "world_from_camera": stream.values, "valid": stream.is_valid}
                np.savez(unfinished / "trajectory.npz", **arrays)
            else:
                rows = zip(stream.times_s.tolist(), stream.values.tolist(), stream.is_valid.astype(int), strict=True)
                lines = ["timestamps,u,v,valid", *(f"{t!r},{u!r},{v!r},{valid}" for t, (u, v), valid in rows)]
                (unfinished / "gaze.csv").write_text("\n".join(lines) + "\n")
        if opened.intrinsics is not None:
            values = asdict(opened.intrinsics)
            values["distortion"] = [float(value) for value in values["distortion"]]
            (unfinished / SETTINGS_FILE).write_text(yaml.safe_dump({"intrinsics": values}, sort_keys=False))


FORMATS: dict[str, Callable[..., tuple[list[Path], list[Path]]]] = {
    "videos": convert_videos,
    "rgbd_frames": convert_rgbd_frames,
    "aria_mps": convert_aria_mps,
}


def _copy_numbered(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:06d}{file.suffix.lower()}")
