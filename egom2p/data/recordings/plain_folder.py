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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.clips.cropping import upright_intrinsics
from egom2p.data.clips.image_files import (
    IMAGE_SUFFIXES,
    RgbImages,
    are_dated,
    frame_numbers,
    frame_ticks,
    image_sequence,
    times_in_names,
)
from egom2p.data.clips.upright import CLOCKWISE, TurnedFrames
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, open_video
from egom2p.data.recordings.depth_files import DEPTH_SUFFIXES, open_depth
from egom2p.data.recordings.plain_tracks import (
    FORMAT_OF_SUFFIX,
    read_camera,
    read_clock,
    read_further_track,
    read_gaze,
)
from egom2p.data.recordings.reader_parts import listed_pictures
from egom2p.data.recordings.recording_formats import files_signature
from egom2p.data.recordings.recording_settings import (
    SETTINGS_FILE,
    DepthSettings,
    RecordingSettings,
    TrackSettings,
    read_settings,
)
from egom2p.data.recordings.track_files import (
    TABLE_SUFFIXES,
    clock_s,
    cut_notes,
    distinct_samples,
    named,
    named_file,
    visible,
)
from egom2p.geometry import CLOCKWISE_TURN, turned_clockwise

_TRACK_SUFFIXES = (*TABLE_SUFFIXES, ".npz")
_OWN_FILES = ("depth", "gaze", "trajectory")  # have readers of their own
_OWN_STREAMS = ("rgb", "camera", "caption")  # no table is one of these
_PICTURES = ("rgb", "depth")
_OUTSIDE = 0.25  # share of gaze beside the picture that is worth a note
_STREAM_OF_CLOCK = {"rgb": "rgb", "depth": "depth", "trajectory": "camera"}  # of <name>_timestamps.txt


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
        self.names: tuple[str, ...] = tuple(dict.fromkeys(found if names is None else names))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def unused(self) -> list[str]:
        """Files beside the folders of recordings, the settings of all of them apart."""
        files = [] if self._is_one else [path.name for path in visible(self.root) if not path.is_dir()]
        return [name for name in files if name.lower() != SETTINGS_FILE]

    def read(self, index: int) -> Recording:
        """Open one recording; pictures stay in their files. Raises ValueError naming the file that is wrong."""
        name = self.names[index]
        folder = self.root if self._is_one else self.root / name
        return read_recording(folder, read_settings(folder, parent=self.root), name=name, dataset=self.dataset)

    def signature(self, index: int, *, is_whole: bool) -> dict[str, str]:
        """What tells whether a recording's files are what they were (`recording_formats.files_signature`)."""
        folder = self.root if self._is_one else self.root / self.names[index]
        parent = named(self.root, SETTINGS_FILE)
        settings = [parent] if parent.is_file() and folder != self.root else []
        return files_signature(self.root, [folder, *settings], is_whole=is_whole)


def read_recording(folder: Path, settings: RecordingSettings, *, name: str = "", dataset: str = "") -> Recording:
    """The recording in a folder."""
    files = _Files(folder)
    streams: dict[str, Stream] = {}
    _add(streams, "rgb", _read_rgb(files, settings))
    intrinsics = settings.intrinsics.build() if settings.intrinsics else None
    if intrinsics is not None and "rgb" in streams:
        intrinsics = upright_intrinsics(intrinsics, streams["rgb"].values)
    _add(streams, "depth", _read_depth(files, settings.depth, streams.get("rgb"), intrinsics))
    path = files.take(settings.camera.file, [f"trajectory{suffix}" for suffix in FORMAT_OF_SUFFIX])
    if (camera := read_camera(folder, path, settings.camera, streams.get("rgb"))) is not None:
        # Published files repeat a time here and there, and those in nanoseconds of seven digits all of a second.
        rows, notes = distinct_samples(camera.times_s, where=path.name)
        streams["camera"] = Stream(camera.values[rows], camera.is_valid[rows], camera.times_s[rows], camera.unit)
        files.notes += notes
    gazes = [f"gaze{suffix}" for suffix in _TRACK_SUFFIXES]
    gaze_path = files.take(settings.gaze.file, gazes)
    _add(streams, "gaze", read_gaze(folder, gaze_path, settings.gaze, streams.get("rgb"), intrinsics))
    if "gaze" in streams:
        files.notes += _notes_on_gaze(gaze_path, streams["gaze"])
    for track, path in _track_paths(files, settings).items():
        _add(streams, track, read_further_track(track, path, settings.tracks.get(track, TrackSettings())))
    if not streams:
        raise ValueError(f"{folder}: found {files.names[:20]}, wanted a video, depth, trajectory, gaze or track file")
    _refuse_settings_of_nothing(folder, settings, streams)
    _add(streams, "caption", _captions(settings, streams))
    name = name or folder.name
    clocks = [f"{clock}_timestamps.txt" for clock, stream in _STREAM_OF_CLOCK.items() if stream in streams]
    files.take_all((SETTINGS_FILE, *clocks))
    files.notes += cut_notes(sorted(set(files.paths) - set(files.rest())))
    recording = Recording(
        name,
        streams,
        intrinsics,
        Provenance(dataset, name, source=str(folder)),
        gaze_size=(settings.gaze.width, settings.gaze.height) if "gaze" in streams and settings.gaze.width else None,
        unused=files.unused,
        notes=(*(getattr(streams["rgb"].values, "notes", ()) if "rgb" in streams else ()), *files.notes),
    )
    return _turned(recording, settings) if settings.rgb.rotate else recording


def _turned(recording: Recording, settings: RecordingSettings) -> Recording:
    """A recording whose camera lies on its side, upright: pictures, and what `rgb.rotates` names."""
    turn, rotates = CLOCKWISE[settings.rgb.rotate], settings.rgb.rotates
    streams, intrinsics, gaze_size = dict(recording.streams), recording.intrinsics, recording.gaze_size
    for name in ("rgb", "depth"):
        if name in streams and (name == "rgb" or name in rotates):
            streams[name] = replace(streams[name], values=TurnedFrames(streams[name].values, turn))
    if "gaze" in streams and "gaze" in rotates:
        gaze = streams["gaze"]
        points = np.where(gaze.is_valid[:, None], turn.points(np.asarray(gaze.values)), 0.0)
        streams["gaze"] = replace(gaze, values=points)
        gaze_size = turn.size(*gaze_size) if gaze_size else None
    for _ in range(settings.rgb.rotate // 90):
        # Axes that are `turned` are those of a camera whose picture is upright already.
        if "camera" in streams and "camera" in rotates and settings.camera.axes != "turned":
            streams["camera"] = replace(streams["camera"], values=streams["camera"].values @ CLOCKWISE_TURN)
        if intrinsics is not None and "intrinsics" in rotates:
            intrinsics = turned_clockwise(intrinsics)
    return replace(recording, streams=streams, intrinsics=intrinsics, gaze_size=gaze_size)


def _notes_on_gaze(path: Path, gaze: Stream) -> tuple[str, ...]:
    """What is not impossible, but likelier a convention of another kind (centred, or with a frame of its own)."""
    points = gaze.values[gaze.is_valid]
    share = float(((points < 0) | (points > 1)).any(axis=1).mean()) if len(points) else 0.0
    if share < _OUTSIDE:
        return ()
    return (f"{path.name}: {share:.0%} of its valid samples lie outside of the picture, [0, 1] from its top left",)


class _Files:
    """Files and folders of a recording, which of them were used, and what to say of them; names in any case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = visible(folder)
        self.names = [path.name for path in self.paths]
        self._used: set[str] = set()
        self.notes: tuple[str, ...] = ()

    @property
    def unused(self) -> tuple[str, ...]:
        """Names that nothing took, sorted; folders with a slash."""
        return tuple(p.name + "/" * p.is_dir() for p in self.paths if p.name not in self._used)

    def take(self, file: str | None, names: Sequence[str] = ()) -> Path | None:
        """The file the settings name, else the first of `names` that is there. ValueError: it is named and not there.

        Raises ValueError when two files answer to one of the names (`gaze.csv`, `Gaze.CSV`).
        """
        if file:
            path = named_file(self.folder, file, where=self.folder / SETTINGS_FILE)
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
    if not named(folder, SETTINGS_FILE).is_file():
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
        pictures, own_times_s = _pictures_of(files, path, IMAGE_SUFFIXES)
        source: Any = RgbImages(pictures)
        ticks = _ticks(folder, "rgb", pictures, own_times_s, wanted.rate_hz)
    else:
        source, ticks = open_video(path, decoder=wanted.decoder), None
        own_times_s = source.times_s
    if own_times_s is not None:
        own_times_s = own_times_s + wanted.offset_s
    times_s = read_clock(folder, "rgb", len(source), wanted, path=path, own_times_s=own_times_s, ticks=ticks)
    return Stream(source, np.ones(len(source), bool), times_s, "uint8")


def _read_depth(
    files: _Files, wanted: DepthSettings, rgb: Stream | None, intrinsics: Intrinsics | None
) -> Stream | None:
    path, folder = files.take(wanted.file, ("depth", "depth.npy", "depth.npz")), files.folder
    if path is None:
        return None
    pictures, own_times_s = _pictures_of(files, path, DEPTH_SUFFIXES) if path.is_dir() else ([], None)
    values, stamps, unit, notes = open_depth(path, pictures, wanted, intrinsics)
    files.notes += notes
    ticks = None
    if stamps is not None:
        own_times_s = clock_s(stamps, unit, path, offset_s=wanted.offset_s, stream="depth", say="depth.time_unit")
    elif own_times_s is not None:
        own_times_s = own_times_s + wanted.offset_s
    elif wanted.rate_hz is not None or rgb is None or named(folder, "depth_timestamps.txt").is_file():
        ticks = _ticks(folder, "depth", pictures, None, wanted.rate_hz) if pictures else None
    else:
        own_times_s = rgb.times_s[_rows_of_rgb(path, pictures, len(values), rgb)] + wanted.offset_s
    times_s = read_clock(
        folder,
        "depth",
        len(values),
        wanted,
        path=path,
        own_times_s=own_times_s,
        is_own_in_unit=stamps is not None,
        ticks=ticks,
    )
    return Stream(values, np.ones(len(values), bool), times_s, "m")


def _pictures_of(files: _Files, path: Path, suffixes: Sequence[str]) -> tuple[list[Path], np.ndarray | None]:
    """Files of a folder of pictures, and their times (T,) where `<folder>.txt` (TUM RGB-D) or their names say them."""
    listing = files.take(None, (f"{path.name.lower()}.txt",)) if path.parent == files.folder else None
    if listing is None:
        pictures = image_sequence(path, suffixes)
        return pictures, times_in_names(pictures)
    times_s, pictures, notes = listed_pictures(listing, files.folder, stream=path.name.lower())
    files.notes += notes
    return pictures, times_s


def _ticks(
    folder: Path, name: str, pictures: Sequence[Path], own_times_s: np.ndarray | None, rate_hz: float | None
) -> np.ndarray | None:
    """Periods of the rate after the first picture (T,), where the rate makes the times."""
    is_told = named(folder, f"{name}_timestamps.txt").is_file() or (own_times_s is not None and rate_hz is None)
    if not is_told and rate_hz is None and are_dated(pictures):
        raise ValueError(
            f"{pictures[0]}: found pictures called by date and second, which are no times of frames; wanted "
            f"{name}.rate_hz, or their times in {name}_timestamps.txt"
        )
    return None if is_told else frame_ticks(pictures)


def _rows_of_rgb(path: Path, pictures: Sequence[Path], count: int, rgb: Stream) -> np.ndarray:
    """Which frames of RGB the depth frames belong to (T,): of the same number, never of the same rank.

    Raises ValueError where numbers or counts leave it open.
    """
    source, say = rgb.values, "say depth.rate_hz, or the times in depth_timestamps.txt"
    rgb_paths = source.paths if isinstance(source, RgbImages) else None
    numbers, rgb_numbers = frame_numbers(pictures) if pictures else None, np.arange(len(source))
    if rgb_paths is not None and numbers is not None:
        rgb_numbers = frame_numbers(rgb_paths)
    if numbers is None or rgb_numbers is None:
        stems = [picture.stem for picture in pictures]
        is_alike = not pictures or rgb_paths is None or stems == [picture.stem for picture in rgb_paths]
        if count == len(source) and is_alike:
            return np.arange(count)
        raise ValueError(
            f"{path}: found {count} depth frames for {len(source)} pictures and no numbers or times; {say}"
        )
    if rgb_paths is None and count == len(source) and numbers[-1] - numbers[0] == count - 1:
        return np.arange(count)  # one for every frame of a video, counted from 0 or 1
    if not np.isin(numbers, rgb_numbers).all():
        other = numbers[~np.isin(numbers, rgb_numbers)]
        raise ValueError(
            f"{path}: found {count} depth frames with the numbers {numbers[0]} to {numbers[-1]} and {len(source)} "
            f"pictures with {rgb_numbers[0]} to {rgb_numbers[-1]}; number {other[0]} has no picture; {say}"
        )
    if rgb_paths is None and numbers[0] > 0:
        raise ValueError(
            f"{path}: found {count} depth frames numbered from {numbers[0]} for the {len(source)} frames of a video, "
            f"which may count from 0 or 1; {say}"
        )
    return np.searchsorted(rgb_numbers, numbers)


def _track_paths(files: _Files, settings: RecordingSettings) -> dict[str, Path]:
    """Further tracks: those the settings name, and every table or npz that is nothing else."""
    named = {name: files.take(track.file) for name, track in settings.tracks.items() if track.file}
    tables = [path for path in files.rest() if path.suffix.lower() in _TRACK_SUFFIXES and path.is_file()]
    found = {path.stem: path for path in tables if path.stem.lower() not in _OWN_FILES}
    for name, path in (found | named).items():
        if name in _OWN_STREAMS or name.lower().removesuffix("_timestamps") in _STREAM_OF_CLOCK:
            raise ValueError(
                f"{path}: no further track can be called {name!r}; times of pictures or poses are "
                "<name>_timestamps.txt, anything else needs another name (tracks.<name>.file)"
            )
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
    videos = [path for path in files.paths if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    named = [path for path in videos if path.stem.lower() == "video"] or videos
    if len(named) > 1:
        raise ValueError(f"{files.folder}: found {[path.name for path in named]}, wanted one video; say rgb.file")
    return files.take(named[0].name) if named else files.take(None, ("rgb",))


def is_recording(folder: Path) -> bool:
    """Whether a folder itself holds a recording's files."""
    paths = visible(folder)
    names = [path.name.lower() for path in paths]
    suffixes = {path.suffix.lower() for path in paths if not path.is_dir()}
    return bool(suffixes & {*VIDEO_SUFFIXES, *_TRACK_SUFFIXES, ".npy"} or set(names) & {"trajectory.txt", "rgb"})


def _add(streams: dict[str, Stream], name: str, stream: Stream | None) -> None:
    if stream is not None:
        streams[name] = stream
