"""Anyone's data: a folder per recording.

    <root>/<recording>/
        video.mp4 | any one video | rgb/*.jpg|png       pictures
        depth/*.png|tif|exr | depth.npy | depth.npz      optional
        trajectory.txt (TUM) | .csv (EuRoC) | .npz      optional: poses
        gaze.csv | .tsv | .npz                          optional
        <track>.csv | .tsv | .npz                       optional: any further track
        <stream>_timestamps.txt                         optional: one time per picture
        recording.yaml                                  optional: what the files cannot say

Case does not count in names, names that begin with a dot are not there, and files that nothing of this took are listed
(`Recording.unused`). A stream that is not there is an absent modality. Every stream has its own clock; `offset_s` in
`recording.yaml` brings them together. T samples, H, W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.clips.cropping import upright_intrinsics
from egom2p.data.clips.image_files import IMAGE_SUFFIXES, RgbImages, list_images
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, open_video
from egom2p.data.recordings.depth_files import DEPTH_SUFFIXES, open_depth
from egom2p.data.recordings.plain_tracks import (
    FORMAT_OF_SUFFIX,
    read_camera,
    read_clock,
    read_further_track,
    read_gaze,
)
from egom2p.data.recordings.recording_settings import (
    SETTINGS_FILE,
    DepthSettings,
    RecordingSettings,
    TrackSettings,
    read_settings,
)
from egom2p.data.recordings.track_files import TABLE_SUFFIXES, clock_s, visible

_TRACK_SUFFIXES = (*TABLE_SUFFIXES, ".npz")
_RESERVED = ("depth", "gaze", "trajectory")
_PICTURES = ("rgb", "depth")
_CLOCKS = ("rgb_timestamps.txt", "depth_timestamps.txt", "trajectory_timestamps.txt")


class PlainFolderReader:
    """Recordings below a root, sorted by name; a root that itself holds the files is one recording.

    names    only these recordings (folder names)
    """

    def __init__(self, root: str | Path, *, names: Sequence[str] | None = None, dataset: str = "") -> None:
        self.root, self.dataset = Path(root), dataset
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder of recordings")
        found = [path.name for path in visible(self.root) if path.is_dir()]
        self._is_one = is_recording(self.root)
        if self._is_one:
            below = [name for name in found if name.lower() not in _PICTURES and is_recording(self.root / name)]
            if below:
                raise ValueError(
                    f"{self.root}: found files of a recording and folders that are recordings {below[:20]}, wanted "
                    "one or the other"
                )
            found = [self.root.resolve().name]
        missing = sorted(set(names or ()) - set(found))
        if missing or not found:
            raise ValueError(f"{self.root}: found recordings {found[:20]}, wanted {missing or 'at least one folder'}")
        self.names: tuple[str, ...] = tuple(found if names is None else names)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Recording:
        """Open one recording; pictures stay in their files. Raises ValueError naming the file that is wrong."""
        name = self.names[index]
        folder = self.root if self._is_one else self.root / name
        return read_recording(folder, read_settings(folder, parent=self.root), name=name, dataset=self.dataset)


def read_recording(folder: Path, settings: RecordingSettings, *, name: str = "", dataset: str = "") -> Recording:
    """The recording in a folder."""
    files = _Files(folder)
    streams: dict[str, Stream] = {}
    _add(streams, "rgb", _read_rgb(files, settings))
    intrinsics = settings.intrinsics.build() if settings.intrinsics else None
    if intrinsics is not None and "rgb" in streams:
        intrinsics = upright_intrinsics(intrinsics, streams["rgb"].values)
    _add(streams, "depth", _read_depth(files, settings.depth, streams.get("rgb"), intrinsics))
    trajectories = [f"trajectory{suffix}" for suffix in FORMAT_OF_SUFFIX]
    _add(streams, "camera", read_camera(folder, files.take(settings.camera.file, trajectories), settings.camera))
    gazes = [f"gaze{suffix}" for suffix in _TRACK_SUFFIXES]
    gaze_path = files.take(settings.gaze.file, gazes)
    _add(streams, "gaze", read_gaze(folder, gaze_path, settings.gaze, streams.get("rgb"), intrinsics))
    for track, path in _track_paths(files, settings).items():
        _add(streams, track, read_further_track(track, path, settings.tracks.get(track, TrackSettings())))
    if not streams:
        raise ValueError(f"{folder}: found {files.names[:20]}, wanted a video, depth, trajectory, gaze or track file")
    _refuse_settings_of_nothing(folder, settings, streams)
    _add(streams, "caption", _captions(settings, streams))
    name = name or folder.name
    files.take_all((SETTINGS_FILE, *_CLOCKS))
    return Recording(
        name,
        streams,
        intrinsics,
        Provenance(dataset, name, source=str(folder)),
        gaze_size=(settings.gaze.width, settings.gaze.height) if "gaze" in streams and settings.gaze.width else None,
        unused=files.unused,
    )


class _Files:
    """Files and folders of a recording, and which of them were used; names in any case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = visible(folder)
        self.names = [path.name for path in self.paths]
        self._used: set[str] = set()

    @property
    def unused(self) -> tuple[str, ...]:
        """Names that nothing took, sorted; folders with a slash."""
        return tuple(p.name + "/" * p.is_dir() for p in self.paths if p.name not in self._used)

    def take(self, file: str | None, names: Sequence[str] = ()) -> Path | None:
        """The file the settings name, else the first of `names` that is there. ValueError: it is named and not there.

        Raises ValueError when two files answer to one of the names (`gaze.csv`, `Gaze.CSV`).
        """
        if file:
            path = self.folder / file
            if not path.exists():
                raise ValueError(f"{path}: {SETTINGS_FILE} names it, found {self.names[:20]}")
            self._used.add(Path(file).parts[0])
            return path
        for name in names:
            found = [path for path in self.paths if path.name.lower() == name and path.name not in self._used]
            if len(found) > 1:
                raise ValueError(f"{self.folder}: found {[path.name for path in found]}, wanted one of them")
            if found:
                self._used.add(found[0].name)
                return found[0]
        return None

    def take_all(self, names: Sequence[str]) -> None:
        self._used |= {path.name for path in self.paths if path.name.lower() in names}

    def rest(self) -> list[Path]:
        return [path for path in self.paths if path.name not in self._used]


def _refuse_settings_of_nothing(folder: Path, settings: RecordingSettings, streams: dict[str, Stream]) -> None:
    """Keys of the recording's own file must have something to hold for; a parent's serves many recordings."""
    if not (folder / SETTINGS_FILE).is_file():
        return
    defaults = RecordingSettings()
    for stream in ("rgb", "depth", "camera", "gaze"):
        if stream not in streams and getattr(settings, stream) != getattr(defaults, stream):
            raise ValueError(f"{folder / SETTINGS_FILE}: keys of {stream} have no effect, found no {stream} there")
    if missing := sorted(set(settings.tracks) - set(streams)):
        raise ValueError(f"{folder / SETTINGS_FILE}: tracks {missing} are not there, found {sorted(streams)}")


def _read_rgb(files: _Files, settings: RecordingSettings) -> Stream | None:
    wanted, folder = settings.rgb, files.folder
    path = files.take(wanted.file) if wanted.file else _find_pictures(files)
    if path is None:
        return None
    if path.is_dir():
        source: Any = RgbImages(_some_images(path))
        times_s = read_clock(folder, "rgb", len(source), wanted, path=path)
    else:
        source = open_video(path, decoder=wanted.decoder)
        own_times_s = source.times_s + wanted.offset_s
        times_s = read_clock(folder, "rgb", len(source), wanted, path=path, own_times_s=own_times_s)
    return Stream(source, np.ones(len(source), bool), times_s, "uint8")


def _read_depth(
    files: _Files, wanted: DepthSettings, rgb: Stream | None, intrinsics: Intrinsics | None
) -> Stream | None:
    path = files.take(wanted.file, ("depth", "depth.npy", "depth.npz"))
    if path is None:
        return None
    pictures = _some_images(path, DEPTH_SUFFIXES) if path.is_dir() else []
    values, stamps = open_depth(path, pictures, wanted, intrinsics)
    own_times_s = None
    if stamps is not None:
        positions = [f"{path}, row {row}" for row in range(len(stamps))]
        own_times_s = clock_s(
            stamps,
            wanted.time_unit,
            path,
            positions,
            offset_s=wanted.offset_s,
            stream="depth",
            say="depth.time_unit",
        )
    elif rgb is not None and len(rgb.values) == len(values) and wanted.rate_hz is None:
        own_times_s = rgb.times_s + wanted.offset_s  # taken together, frame by frame
    times_s = read_clock(
        files.folder,
        "depth",
        len(values),
        wanted,
        path=path,
        own_times_s=own_times_s,
        is_own_in_unit=stamps is not None,
    )
    return Stream(values, np.ones(len(values), bool), times_s, "m")


def _track_paths(files: _Files, settings: RecordingSettings) -> dict[str, Path]:
    """Further tracks: those the settings name, and every table or npz that is nothing else."""
    named = {name: files.take(track.file) for name, track in settings.tracks.items() if track.file}
    found = {
        path.stem: path
        for path in files.rest()
        if path.suffix.lower() in _TRACK_SUFFIXES and path.is_file() and path.stem.lower() not in _RESERVED
    }
    files.take_all([path.name.lower() for path in found.values()])
    return found | named


def _captions(settings: RecordingSettings, streams: dict[str, Stream]) -> Stream | None:
    if not settings.caption:
        return None
    if isinstance(settings.caption, str):
        starts, texts = [min(float(stream.times_s[0]) for stream in streams.values())], [settings.caption]
    else:
        ordered = sorted(settings.caption, key=lambda caption: caption.start_s)
        starts, texts = [caption.start_s for caption in ordered], [caption.text for caption in ordered]
    return Stream(np.array(texts), np.ones(len(texts), bool), np.array(starts, dtype=np.float64), "text")


def _find_pictures(files: _Files) -> Path | None:
    videos = [path for path in files.paths if path.suffix.lower() in VIDEO_SUFFIXES]
    named = [path for path in videos if path.stem.lower() == "video"] or videos
    if len(named) > 1:
        raise ValueError(f"{files.folder}: found {[path.name for path in named]}, wanted one video; say rgb.file")
    return files.take(named[0].name) if named else files.take(None, ("rgb",))


def _some_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    images = list_images(folder, suffixes)
    if not images:
        raise ValueError(f"{folder}: found no images, wanted at least one")
    return images


def is_recording(folder: Path) -> bool:
    """Whether a folder itself holds a recording's files."""
    names = [path.name.lower() for path in visible(folder)]
    suffixes = {Path(name).suffix for name in names}
    return bool(suffixes & {*VIDEO_SUFFIXES, *_TRACK_SUFFIXES, ".npy"} or set(names) & {"trajectory.txt", "rgb"})


def _add(streams: dict[str, Stream], name: str, stream: Stream | None) -> None:
    if stream is not None:
        streams[name] = stream
