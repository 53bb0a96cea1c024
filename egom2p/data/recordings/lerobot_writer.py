"""Recordings as a LeRobotDataset v3.0; package pyarrow. `lerobot.py` reads it back; the lerobot package
has not been tried on it.

Streams are brought onto one clock of `fps` (nearest frames, poses by slerp, tracks linearly) over the time that all of
them share. Every episode has its own mp4 files, so no file time grows into what float32 cannot count. Depth becomes
lossless HEVC of 12-bit codes. `meta/egom2p.json` keeps what the format has no field for: intrinsics, start times, units
and which feature is what.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from egom2p.contracts import Recording, Stream
from egom2p.data.clips.resampling import nearest_frames, poses_at, track_at
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.lerobot import LARGEST_CODE, OWN_FILE
from egom2p.data.recordings.reader_parts import needs
from egom2p.storage import atomic_directory, save_json

RGB_KEY, DEPTH_KEY, CAMERA_KEY, GAZE_KEY = (
    "observation.images.ego",
    "observation.images.ego_depth",
    "observation.camera",
    "observation.gaze",
)
_CODING = {"depth_min": 0.01, "depth_max": 10.0, "shift": 3.5, "use_log": True}
_FRAMES_AT_ONCE, _FILES_A_CHUNK, _LARGEST_GAP_S = 32, 1000, 0.5


def write_lerobot(root: str | Path, recordings: Iterable[Recording], *, fps: int, task: str = "") -> Path:
    """Write recordings of the same streams as episodes; returns the folder, which appears whole or not at all.

    task    what is done, where a recording has no caption (yet). Raises ValueError naming one that differs from
            the first in streams or sizes, or that has no time at which all its streams run.
    """
    root = Path(root)
    needs("pyarrow", root)
    if root.exists():
        raise ValueError(f"{root}: is there already, wanted a new folder")
    with atomic_directory(root) as unfinished:
        writer = _Writer(unfinished, fps, task)
        for recording in recordings:
            writer.add(recording)
        writer.finish()
    return root


def codes_of_metres(depth_m: np.ndarray) -> np.ndarray:
    """12-bit codes (...) uint16 of depth; none is 0, the nearest that can be told 1, beyond 10 m the largest."""
    low, high, shift = (_CODING[key] for key in ("depth_min", "depth_max", "shift"))
    first, last = np.log(low + shift), np.log(high + shift)
    inside = np.clip(np.nan_to_num(depth_m, nan=0.0, posinf=high).astype(np.float64), low, high)
    codes = np.clip(np.rint(LARGEST_CODE * (np.log(inside + shift) - first) / (last - first)), 1, LARGEST_CODE)
    return np.where(np.asarray(depth_m) > 0, codes, 0).astype(np.uint16)


class _Writer:
    def __init__(self, root: Path, fps: int, task: str) -> None:
        self._root, self._fps, self._task = root, fps, task
        self._features: dict[str, dict[str, Any]] = {}
        self._episodes: list[dict[str, Any]] = []
        self._tasks: list[str] = []
        self._own: dict[str, Any] = {"intrinsics": {}, "start_s": {}, "names": {}, "tracks": {}, "units": {}}
        self._table: Any = None

    def add(self, recording: Recording) -> None:
        episode, fps = len(self._episodes), self._fps
        tracks = {name: stream for name, stream in recording.streams.items() if name != "caption"}
        start_s = max(stream.times_s[0] for stream in tracks.values())
        end_s = min(stream.times_s[-1] for stream in tracks.values())
        times_s = start_s + np.arange(int(np.floor((end_s - start_s) * fps + 1e-6)) + 1) / fps
        if end_s < start_s:
            raise ValueError(f"recording {recording.name}: its streams {sorted(tracks)} share no time")
        columns, features = {}, {}
        where = {"chunk_index": episode // _FILES_A_CHUNK, "file_index": episode % _FILES_A_CHUNK}
        row: dict[str, Any] = {"data/chunk_index": 0, "data/file_index": 0}
        for name, stream in tracks.items():
            if name in ("rgb", "depth"):
                key, is_depth = (RGB_KEY, False) if name == "rgb" else (DEPTH_KEY, True)
                path = self._root / f"videos/{key}/chunk-{where['chunk_index']:03d}/file-{where['file_index']:03d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                features[key] = self._write_video(path, recording.name, name, stream, times_s)
                row |= {f"videos/{key}/{field}": value for field, value in where.items()}
                row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": len(times_s) / fps}
                self._own["depth" if is_depth else "rgb"] = key
            else:
                key, values = self._values(name, stream, times_s)
                columns[key] = values
                features[key] = {"dtype": str(values.dtype), "shape": [values.shape[1]], "names": None}
        if self._episodes and features != self._features:
            raise ValueError(
                f"recording {recording.name}: found the features {features}, wanted those of the first {self._features}"
            )
        self._features = features
        self._own["start_s"][str(episode)] = float(start_s)
        self._own["names"][str(episode)] = recording.name
        if recording.intrinsics is not None:
            self._own["intrinsics"][str(episode)] = asdict(recording.intrinsics)
        texts = self._texts(recording, times_s)
        first = sum(held["length"] for held in self._episodes)
        self._write_rows(episode, first, columns, times_s - start_s, texts)
        row |= {"dataset_from_index": first, "dataset_to_index": first + len(times_s)}
        self._episodes.append(
            {"episode_index": episode, "tasks": list(dict.fromkeys(texts)), "length": len(times_s), **row}
        )

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._episodes:
            raise ValueError(f"{self._root}: found no recordings to write, wanted at least one")
        self._table.close()
        _parquet(self._root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(self._episodes))
        tasks = pa.table({"task_index": list(range(len(self._tasks))), "task": self._tasks})
        # lerobot looks a task up by the index of a pandas table, which this metadata makes of the column.
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": held, "metadata": None}
            for name, (kind, held) in kinds.items()
        ]
        index = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
        pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(index)}), self._root / "meta/tasks.parquet")
        scalars = {
            key: {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
            for key in ("timestamp", "frame_index", "episode_index", "index", "task_index")
        }
        total = sum(held["length"] for held in self._episodes)
        info = {
            **{"codebase_version": "v3.0", "robot_type": None, "fps": self._fps},
            **{"total_episodes": len(self._episodes), "total_frames": total, "total_tasks": len(self._tasks)},
            **{"chunks_size": _FILES_A_CHUNK, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200},
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": {**self._features, **scalars},
        }
        save_json(self._root / "meta/info.json", info)
        save_json(self._root / OWN_FILE, self._own)

    def _values(self, name: str, stream: Stream, times_s: np.ndarray) -> tuple[str, np.ndarray]:
        """The feature of a track and its values (T, C) float64; where poses are invalid 0, else nan."""
        if name == "camera":
            self._own["camera"] = CAMERA_KEY
            matrices, is_valid = poses_at(stream, times_s, max_gap_s=_LARGEST_GAP_S)
            return CAMERA_KEY, np.where(is_valid[:, None], matrices.reshape(-1, 16), 0.0)
        values, is_valid = track_at(stream, times_s, max_gap_s=_LARGEST_GAP_S)
        if name == "gaze":
            self._own["gaze"] = GAZE_KEY
            return GAZE_KEY, np.column_stack([values, is_valid])
        key = f"observation.{name}"
        self._own["tracks"][key], self._own["units"][key] = name, stream.unit
        return key, np.where(is_valid[:, None], values.reshape(len(values), -1), np.nan)

    def _write_video(self, path: Path, recording: str, name: str, stream: Stream, times_s: np.ndarray) -> dict:
        rows, is_valid = nearest_frames(stream, times_s, max_offset_s=_LARGEST_GAP_S)
        if not is_valid.all():
            raise ValueError(f"recording {recording}: {name} has no frame near {times_s[np.argmin(is_valid)]:.3f} s")
        frames = _frames(stream, rows)
        info: dict[str, Any] = {"video.fps": self._fps, "has_audio": False}
        if name == "rgb":
            write_video(path, frames, self._fps)
            height, width = (2 * ((side + 1) // 2) for side in np.shape(stream.rows(rows[:1]))[1:3])
            info |= {"video.codec": "h264", "video.pix_fmt": "yuv420p", "is_depth_map": False, "video.channels": 3}
            channels = 3
        else:
            height, width = _write_depth(path, frames, self._fps)
            info |= {"video.codec": "hevc", "video.pix_fmt": "gray12le", "is_depth_map": True, "video.channels": 1}
            info |= {f"video.{key}": value for key, value in _CODING.items()} | {"depth_unit": "m"}
            channels = 1
        info |= {"video.height": height, "video.width": width}
        names = ["height", "width", "channels"]
        return {"dtype": "video", "shape": [height, width, channels], "names": names, "info": info}

    def _texts(self, recording: Recording, times_s: np.ndarray) -> list[str]:
        """A text per frame."""
        captions = recording.streams.get("caption")
        if captions is None:
            return [self._task] * len(times_s)
        held = np.searchsorted(captions.times_s, times_s + 1e-9) - 1
        return [str(captions.values[number]) if number >= 0 else self._task for number in held]

    def _write_rows(
        self, episode: int, first: int, columns: dict[str, np.ndarray], times_s: np.ndarray, texts: list[str]
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for text in dict.fromkeys(texts):
            if text not in self._tasks:
                self._tasks.append(text)
        count = len(times_s)
        arrays: dict[str, Any] = {
            key: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            if values.shape[1] > 1
            else pa.array(values[:, 0])
            for key, values in columns.items()
        }
        arrays |= {
            "timestamp": pa.array((np.arange(count) / self._fps).astype(np.float32)),
            "frame_index": pa.array(np.arange(count)),
            "episode_index": pa.array(np.full(count, episode)),
            "index": pa.array(first + np.arange(count)),
            "task_index": pa.array([self._tasks.index(text) for text in texts], pa.int64()),
        }
        table = pa.table(arrays)
        if self._table is None:
            path = self._root / "data/chunk-000/file-000.parquet"
            path.parent.mkdir(parents=True)
            self._table = pq.ParquetWriter(path, table.schema)
        self._table.write_table(table, row_group_size=count)


def _frames(stream: Stream, rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), _FRAMES_AT_ONCE):
        yield from stream.rows(rows[first : first + _FRAMES_AT_ONCE])


def _write_depth(path: Path, frames: Iterable[np.ndarray], fps: int) -> tuple[int, int]:
    """Depth frames (H, W) metres as lossless HEVC of 12 bits; returns H, W."""
    shape = (0, 0)
    with av.open(str(path), "w") as container:
        options = {"x265-params": "lossless=1:log-level=none"}
        stream = container.add_stream("libx265", rate=Fraction(fps), options=options)
        stream.pix_fmt = "gray12le"
        for depth_m in frames:
            if shape == (0, 0):
                shape = stream.height, stream.width = depth_m.shape
            picture = av.VideoFrame(shape[1], shape[0], "gray12le")
            rows = np.zeros((shape[0], picture.planes[0].line_size // 2), "<u2")
            rows[:, : shape[1]] = codes_of_metres(depth_m)
            picture.planes[0].update(rows.tobytes())
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return shape


def _parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
