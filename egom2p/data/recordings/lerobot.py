"""LeRobotDataset v3.0 (and v2.1) without the lerobot package: a recording an episode; package pyarrow.

Every video key has its own file and its own offset: frame i of an episode is the frame of its file at
from_timestamp + i / fps, in double precision (lerobot compares float32 stamps, which lose frames beyond 1024 s).
Times are frame_index / fps; a `timestamp` column that says otherwise by more than half a frame is refused.
Depth videos hold 12-bit codes; code 0 is no depth, and so is 4095 (beyond the largest). The format has no field for
intrinsics, poses or gaze: `source.camera`, `source.gaze` name features, or `meta/egom2p.json` of what we wrote
(`lerobot_writer.py`) does. Other numeric features become tracks, dots as underscores, in units the set does not say.
Format: huggingface/lerobot's code; real v3 and v2.1 sets confirm tables, v2.1 its videos, a replica offsets and depth.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.config import strict
from egom2p.contracts import Intrinsics, Stream
from egom2p.data.clips.video_files import VideoFile
from egom2p.data.recordings.depth_files import DepthVideo
from egom2p.data.recordings.reader_parts import (
    JoinedFrames,
    frame_stream,
    needs,
    pose_stream,
    read_json,
    track_stream,
)
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened, folders_with
from egom2p.data.recordings.recording_settings import IntrinsicsSettings
from egom2p.data.recordings.track_files import matching, named_file, read_text

LARGEST_CODE = 4095
OWN_FILE = "meta/egom2p.json"
_CLOCK = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_MOST_EPISODES = 10**6  # ten times the largest published set; each becomes a name in memory
_NO_NUMBERS = ("image", "string", "language")
_INFO, _TABLE_NAME = "meta/info.json", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


@strict
class LeRobotSource(FolderSource):
    """A LeRobot data set, or a folder of several."""

    kind: Literal["lerobot"]
    rgb: str | None = None  # video key; by default the only one that is no depth
    depth: str | None = None  # video key
    camera: str | None = None  # feature of 16 numbers: world_from_cam, metres, OpenCV axes
    gaze: str | None = None  # feature of 2 numbers in [0, 1], or 3: then the last says whether it is valid
    intrinsics: IntrinsicsSettings | None = None


class LeRobotReader(FormatReader):
    source, what = LeRobotSource, "LeRobot data sets (v3.0, v2.1)"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        found = {}
        folders = folders_with(root, _INFO, depth=2)
        for name, folder in folders.items():
            try:
                info = read_json(folder / _INFO)
            except ValueError:
                continue  # of another format
            if isinstance(info, dict) and "codebase_version" in info:
                prefix = "" if folder == root else f"{name}_"
                found |= {f"{prefix}episode_{n:06d}": folder for n in _episode_numbers(folder, info)}
        return found

    def files(self, name: str) -> Sequence[Path]:
        """The episode's table and videos, and what all episodes share."""
        path = self.paths[name]
        info = _read_info(path)
        row = _episode_row(path, info, int(name.rpartition("_")[2]))
        videos = [_stated(path, info, "video_path", video_key=key, **at) for key, at in row["videos"].items()]
        return [path / "meta", _stated(path, info, "data_path", **row["data"]), *videos]

    def open(self, name: str, path: Path) -> Opened:
        episode, info = int(name.rpartition("_")[2]), _read_info(path)
        own = read_json(path / OWN_FILE) if (path / OWN_FILE).is_file() else {}
        features, fps = info["features"], float(info["fps"])
        row = _episode_row(path, info, episode)
        table_path = _stated(path, info, "data_path", **row["data"])
        columns = _rows(table_path, episode, row["length"])
        times_s = _times(table_path, columns, fps)
        start_s = own.get("start_s", {}).get(str(episode), 0.0)
        streams: dict[str, Stream] = {}
        videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
        no_numbers = [
            key
            for key in dict.fromkeys((*features, *columns))
            if key not in _CLOCK and features.get(key, {}).get("dtype", "string") in _NO_NUMBERS
        ]
        depths = [key for key in videos if _depth_coding(features[key])]
        rgb = self.config.rgb or own.get("rgb") or _only(path, [k for k in videos if k not in depths], "rgb")
        depth = self.config.depth or own.get("depth") or _only(path, depths, "depth")
        for stream, key in (("rgb", rgb), ("depth", depth)):
            if key is not None:
                if key not in videos:
                    raise ValueError(f"{path}: found video keys {videos}, wanted source.{stream} to be one of them")
                video_path = _stated(path, info, "video_path", video_key=key, **row["videos"][key])
                coding = _depth_coding(features[key]) if stream == "depth" else None
                video = DepthVideo(video_path, metres_of_codes(coding)) if coding else VideoFile(video_path)
                rows = _video_rows(video, row["from"][key] + times_s, fps)
                unit, joined = "m" if coding else "uint8", JoinedFrames([(video, rows)])
                streams[stream] = frame_stream(joined, times_s + start_s, unit, where=video_path)
        camera, gaze = self.config.camera or own.get("camera"), self.config.gaze or own.get("gaze")
        for key in columns:
            if key in _CLOCK or key in no_numbers:
                continue
            values = np.array(columns[key], np.float64).reshape(len(times_s), -1)
            where = f"{table_path}: {key}"
            if key == camera:
                is_known = np.isfinite(values).all(axis=1) & (values != 0).any(axis=1)
                matrices = _shaped(table_path, key, values, (16,)).reshape(-1, 4, 4)
                streams["camera"] = pose_stream(times_s + start_s, matrices, where=where, is_valid=is_known)
            elif key == gaze:
                values = _shaped(table_path, key, values, (2, 3))
                is_seen = values[:, 2] > 0 if values.shape[1] == 3 else None
                streams["gaze"] = track_stream(times_s + start_s, values[:, :2], "image", where=where, is_valid=is_seen)
            else:
                unit = own.get("units", {}).get(key) or f"unknown; {features[key].get('names') or key}"
                track = own.get("tracks", {}).get(key, key.replace(".", "_"))
                streams[track] = track_stream(times_s + start_s, values, unit, where=where)
        others = [key for key in videos if key not in (rgb, depth)]
        notes = [f"the videos {others} are left out, source.rgb and source.depth say which is read"] if others else []
        if no_numbers:
            notes.append(f"the features {no_numbers} hold no numbers and are left out")
        for wanted in (camera, gaze):
            if wanted is not None and wanted not in columns:
                raise ValueError(f"{table_path}: found {sorted(columns)}, wanted the feature {wanted!r}")
        if (captions := _captions(path, columns, times_s + start_s)) is not None:
            streams["caption"] = captions
        held = own.get("intrinsics", {}).get(str(episode))
        intrinsics = self.config.intrinsics.build() if self.config.intrinsics else None
        if intrinsics is None and held:
            intrinsics = Intrinsics(**{**held, "distortion": tuple(held["distortion"])})
        return Opened(streams, intrinsics, self.files(name), notes)


def metres_of_codes(coding: Mapping[str, Any]) -> np.ndarray:
    """Metres (4096,) float32 of each code: even steps of ln(metres + shift) (or of metres); 0 at 0 and the largest."""
    low, high, shift = coding["depth_min"], coding["depth_max"], coding["shift"]
    steps = np.arange(LARGEST_CODE + 1) / LARGEST_CODE
    if coding["use_log"]:
        first, last = np.log(low + shift), np.log(high + shift)
        metres = np.exp(first + steps * (last - first)) - shift
    else:
        metres = low + steps * (high - low)
    metres[[0, LARGEST_CODE]] = 0.0
    return metres.astype(np.float32)


def _depth_coding(feature: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a video feature codes depth; None: it is no depth."""
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    if not (info.get("is_depth_map") or info.get("video.is_depth_map")):
        return None
    defaults = {"depth_min": 0.01, "depth_max": 10.0, "shift": 3.5, "use_log": True}
    return {key: info.get(f"video.{key}", usual) for key, usual in defaults.items()}


def _only(path: Path, keys: list[str], name: str) -> str | None:
    if len(keys) > 1:
        raise ValueError(f"{path}: found the videos {keys}, wanted source.{name} to name one")
    return keys[0] if keys else None


def _shaped(path: Path, key: str, values: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    if values.shape[1] not in widths:
        raise ValueError(f"{path}: {key} has {values.shape[1]} numbers, wanted {' or '.join(map(str, widths))}")
    return values


def _read_info(path: Path) -> dict[str, Any]:
    """What `meta/info.json` says. Raises ValueError where it lacks what every version of the format has."""
    info = read_json(path / _INFO)
    features, fps = (info.get(key) if isinstance(info, dict) else None for key in ("features", "fps"))
    has_types = isinstance(features, dict) and all(isinstance(f, dict) and "dtype" in f for f in features.values())
    if not has_types or not isinstance(fps, int | float) or not fps > 0:
        raise ValueError(
            f"{path / _INFO}: found fps {fps!r} and features {features!r:.80}, wanted both, each with a dtype"
        )
    return info


def _stated(path: Path, info: Mapping[str, Any], key: str, **fields: Any) -> Path:
    """The file of a set by the pattern of its name that info.json states."""
    pattern = info.get(key) or _TABLE_NAME
    try:
        name = pattern.format(**fields)
    except (AttributeError, LookupError, ValueError, TypeError):
        raise ValueError(f"{path / _INFO}: {key} is {pattern!r}, wanted a name of {sorted(fields)}") from None
    return named_file(path, name, where=path / _INFO)


def _is_v2(info: Mapping[str, Any]) -> bool:
    return str(info["codebase_version"]).startswith("v2.")


def _episode_numbers(folder: Path, info: Mapping[str, Any]) -> list[int]:
    """All episodes; of a v2.1 set, where each is a file, and where info.json counts none, those that are there."""
    if _is_v2(info):
        return sorted(int(path.stem.rpartition("_")[2]) for path in matching(folder, "data/chunk-*/episode_*.parquet"))
    total = info.get("total_episodes")
    if isinstance(total, int) and not 0 <= total <= _MOST_EPISODES:
        raise ValueError(f"{folder / _INFO}: found total_episodes {total}, wanted 0 ... {_MOST_EPISODES}")
    return list(range(total)) if isinstance(total, int) else sorted(_episodes(folder))


def _episode_row(path: Path, info: Mapping[str, Any], episode: int) -> dict[str, Any]:
    """Where an episode lies: its length, and per table and video the fields of its path and the offset in seconds."""
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    if _is_v2(info):
        fields = {"episode_chunk": episode // int(info.get("chunks_size", 1000)), "episode_index": episode}
        offsets = dict.fromkeys(videos, 0.0)
        return {"length": None, "data": fields, "videos": dict.fromkeys(videos, fields), "from": offsets}
    if not str(info["codebase_version"]).startswith("v3."):
        raise ValueError(f"{path}: found LeRobot {info['codebase_version']}, wanted v3.0 or v2.1")
    row = _episodes(path).get(episode)
    if row is None:
        raise ValueError(f"{path / 'meta/episodes'}: found no episode {episode}, info.json counts it")
    try:
        return {
            "length": row["length"],
            "data": _place(row, "data"),
            "videos": {key: _place(row, f"videos/{key}") for key in videos},
            "from": {key: float(row[f"videos/{key}/from_timestamp"]) for key in videos},
        }
    except KeyError as error:
        raise ValueError(f"{path / 'meta/episodes'}: found no column {error}") from None


def _place(row: Mapping[str, Any], of: str) -> dict[str, int]:
    return {name: int(row[f"{of}/{name}"]) for name in ("chunk_index", "file_index")}


@lru_cache(maxsize=4)
def _episodes(path: Path) -> dict[int, dict[str, Any]]:
    """Rows of meta/episodes by episode, without statistics."""
    files = matching(path, "meta/episodes/chunk-*/file-*.parquet")
    return {int(row["episode_index"]): row for file in files for row in _table(file).to_pylist()}


def _table(file: Path, **options: Any) -> Any:
    """A parquet file without columns of statistics."""
    needs("pyarrow", file)
    import pyarrow.parquet

    try:
        names = [name for name in pyarrow.parquet.read_schema(file).names if not name.startswith("stats/")]
        return pyarrow.parquet.read_table(file, columns=names, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a readable parquet file: {error}") from error


def _rows(path: Path, episode: int, length: int | None) -> dict[str, list[Any]]:
    """Columns of the rows of one episode, in order of frames."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it holds episode {episode}")
    table = _table(path, filters=[("episode_index", "=", episode)])
    if missing := {"frame_index", "timestamp"} - set(table.column_names):
        raise ValueError(f"{path}: found columns {table.column_names}, wanted {sorted(missing)}")
    table = table.sort_by("frame_index")
    if table.num_rows == 0 or length not in (None, table.num_rows):
        raise ValueError(f"{path}: found {table.num_rows} rows of episode {episode}, wanted {length or 'some'}")
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _times(path: Path, columns: Mapping[str, list[Any]], fps: float) -> np.ndarray:
    numbers = np.array(columns["frame_index"], np.int64)
    times_s, stated_s = numbers / fps, np.array(columns["timestamp"], np.float64)
    if not np.array_equal(numbers, np.arange(len(numbers))) or (np.abs(stated_s - times_s) > 0.5 / fps).any():
        raise ValueError(f"{path}: frame_index and timestamp do not count frames of {fps:g} a second from 0")
    return times_s


def _video_rows(video: VideoFile, file_s: np.ndarray, fps: float) -> np.ndarray:
    """Frames of a file at times in it. Raises ValueError where none is within half a frame."""
    rows = np.round(file_s * fps).astype(np.int64)
    is_there = (rows >= 0) & (rows < len(video))
    if is_there.all():
        is_there = np.abs(video.times_s[rows] - file_s) <= 0.5 / fps
    if not is_there.all():
        first = file_s[np.argmin(is_there)]
        raise ValueError(f"{video.path}: found {len(video)} frames, none at {first:.4f} s where the episode has one")
    return rows


def _captions(path: Path, columns: Mapping[str, list[Any]], times_s: np.ndarray) -> Stream | None:
    """The tasks' texts, each from the frame on at which it begins."""
    if "task_index" not in columns:
        return None
    texts = _tasks(path)
    numbers = np.array(columns["task_index"], np.int64)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    if missing := sorted(set(numbers.tolist()) - set(texts)):
        raise ValueError(f"{path / 'meta'}: found tasks {sorted(texts)[:20]}, wanted the text of {missing[:20]}")
    named = np.array([texts[number] for number in numbers[starts].tolist()])
    return Stream(named, np.ones(len(starts), bool), times_s[starts], "text")


def _tasks(path: Path) -> dict[int, str]:
    """Texts by task_index; in v3 a text is the index of a pandas table."""
    if (lines := path / "meta/tasks.jsonl").is_file():
        try:
            rows = [json.loads(line) for line in read_text(lines).splitlines() if line.strip()]
            return {int(row["task_index"]): str(row["task"]) for row in rows}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{lines}: not the tasks of a LeRobot set: {error!r}") from None
    file = path / "meta/tasks.parquet"
    if not file.is_file():
        return {}
    columns = _table(file).to_pydict()
    text = next((name for name in columns if name != "task_index"), None)
    return dict(zip(columns["task_index"], columns[text], strict=True)) if text else {}
