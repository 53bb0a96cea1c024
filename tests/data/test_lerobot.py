"""LeRobot: real tables and videos, offsets per video key, depth codes, and what is written read back."""

import json
import shutil

import numpy as np
import pytest
from field_replicas import numbered_frames, numbered_video, numbers_seen, real, walk

from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.clips.video_files import open_video
from egom2p.data.recordings.lerobot import LeRobotReader, LeRobotSource, metres_of_codes
from egom2p.data.recordings.lerobot_writer import codes_of_metres, write_lerobot
from egom2p.data.recordings.reader_choice import AnySource, open_reader

pa = pytest.importorskip("pyarrow", reason="extra [formats]")
CODING = {"depth_min": 0.01, "depth_max": 10.0, "shift": 3.5, "use_log": True}


class _Array:
    """A FrameSource of an array."""

    def __init__(self, frames):
        self.frames = frames
        self.height, self.width = frames.shape[1:3]

    def __len__(self):
        return len(self.frames)

    def read(self, indices):
        return self.frames[indices]


def _recording(name, count, start_s):
    times_s = start_s + np.arange(count) / 30
    always, depth = np.ones(count, bool), np.full((count, 48, 64), 2.0, np.float32)
    depth += np.arange(count, dtype=np.float32)[:, None, None] / 20
    depth[:, 0, 0] = 0
    gaze = np.stack([np.linspace(0.2, 0.8, count), np.full(count, 0.4)], 1)
    streams = {
        "rgb": Stream(_Array(numbered_frames(count)), always, times_s, "uint8"),
        "depth": Stream(_Array(depth), always, times_s, "m"),
        "camera": Stream(walk(count), always, times_s, "world_from_cam"),
        "gaze": Stream(gaze, np.arange(count) != 7, times_s, "image"),
        "hands": Stream(np.arange(3.0 * count).reshape(count, 3), always, times_s, "m, world"),
        "caption": Stream(np.array(["reach", "grasp"]), np.ones(2, bool), times_s[[0, 10]], "text"),
    }
    intrinsics = Intrinsics(64, 48, 50.0, 51.0, 31.5, 23.5, "kannala_brandt", (0.1, 0.0, 0.0, 0.01))
    return Recording(name, streams, intrinsics, Provenance("set", name))


def test_what_is_written_reads_back_and_every_episode_keeps_its_own_clock(tmp_path):
    recordings = [_recording("a", 20, 100.0), _recording("b", 25, 2000.25)]
    write_lerobot(tmp_path / "set", recordings, fps=30)
    reader = open_reader(AnySource(kind="any", root=str(tmp_path / "set")))
    assert reader.names == ("episode_000000", "episode_000001")
    for number, (recording, count) in enumerate(zip(recordings, (20, 25), strict=True)):
        read = reader.read(number)
        assert set(read.streams) == set(recording.streams) and read.intrinsics == recording.intrinsics
        for name in read.streams:
            np.testing.assert_allclose(read.streams[name].times_s, recording.streams[name].times_s, atol=1e-9)
        np.testing.assert_array_equal(numbers_seen(read.streams["rgb"].values.read(np.arange(count))), np.arange(count))
        depth = read.streams["depth"].values.read(np.arange(count))
        np.testing.assert_allclose(depth[:, 1:, 1:], recording.streams["depth"].values.frames[:, 1:, 1:], atol=2e-3)
        assert (depth[:, 0, 0] == 0).all()
        np.testing.assert_allclose(read.streams["camera"].values, walk(count), atol=1e-9)
        np.testing.assert_array_equal(read.streams["gaze"].is_valid, np.arange(count) != 7)
        np.testing.assert_allclose(read.streams["gaze"].values[3], recording.streams["gaze"].values[3])
        np.testing.assert_allclose(read.streams["hands"].values, recording.streams["hands"].values)
        assert read.streams["hands"].unit == "m, world"
        assert list(read.streams["caption"].values) == ["reach", "grasp"]
    # What a reader cannot take is said: a feature of text, and a file of nobody's.
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    info["features"]["mood"] = {"dtype": "string", "shape": [1], "names": None}
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    (tmp_path / "set/stray.txt").write_text("")
    assert reader.read(0).notes == ("the features ['mood'] hold no numbers and are left out",)
    assert reader.unused == ["stray.txt"]
    with pytest.raises(ValueError, match="is there already"):
        write_lerobot(tmp_path / "set", recordings, fps=30)


def test_an_info_json_of_something_else_is_no_lerobot_set(tmp_path):
    (tmp_path / "meta").mkdir()
    for content in ("[1]", "{", '{"fps": 3}'):
        (tmp_path / "meta/info.json").write_text(content)
        assert not LeRobotReader.find(tmp_path)


def test_the_codes_of_depth_are_lerobots():
    codes = np.arange(1, 4095)
    expected = np.exp(np.log(3.51) + codes / 4095 * (np.log(13.5) - np.log(3.51))) - 3.5
    metres = metres_of_codes(CODING)
    np.testing.assert_allclose(metres[1:-1], expected, rtol=1e-6)
    assert metres[0] == metres[-1] == 0
    np.testing.assert_array_equal(codes_of_metres(metres[1:-1]), codes)
    np.testing.assert_array_equal(codes_of_metres(np.array([0, 0.001, 50, np.nan])), [0, 1, 4095, 0])


def test_every_video_key_has_its_own_file_and_offset_on_real_tables(tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(real("formats/lerobot_v3_record_test"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    import pyarrow.parquet as pq

    episodes_path = folder / "meta/episodes/chunk-000/file-000.parquet"
    episodes = pq.read_table(episodes_path).to_pylist()
    front, top = "observation.images.front", "observation.images.top"
    base = np.cumsum([0, *[row["length"] for row in episodes]])
    for row, first in zip(episodes, base, strict=False):
        row[f"videos/{front}/from_timestamp"] = first / 30
        row[f"videos/{top}/file_index"], row[f"videos/{top}/from_timestamp"] = row["episode_index"], 3 / 30
    pq.write_table(pa.Table.from_pylist(episodes), episodes_path)
    count = int(episodes[1]["length"])
    video = numbered_video(folder / f"videos/{front}/chunk-000/file-000.mp4", 60)
    assert len(open_video(video)) == 60
    top_video = numbered_video(folder / f"videos/{top}/chunk-000/file-001.mp4", count + 3)
    expected = numbers_seen(open_video(top_video).read(np.arange(3, 40)))
    with pytest.raises(ValueError, match=r"source.rgb to name one"):
        open_reader(LeRobotSource(kind="lerobot", root=str(folder))).read(1)
    recording = open_reader(LeRobotSource(kind="lerobot", root=str(folder), rgb=top)).read(1)
    np.testing.assert_array_equal(numbers_seen(recording.streams["rgb"].values.read(np.arange(37))), expected)
    assert recording.streams["action"].values.shape == (count, 6)
    assert recording.streams["caption"].values[0] == "Pick the orange cube and place it in the box"
    np.testing.assert_array_equal(recording.streams["rgb"].times_s, np.arange(count) / 30)
    with pytest.raises(ValueError, match=r"found 60 frames, none at"):
        open_reader(LeRobotSource(kind="lerobot", root=str(folder), rgb=front)).read(1)


def test_a_real_v21_set_reads_its_episodes_and_videos():
    folder = real("formats/lerobot_v21_g1")
    reader = open_reader(AnySource(kind="any", root=str(folder)))
    assert reader.names == ("episode_000010", "episode_000013")
    info = json.loads((folder / "meta/info.json").read_text())
    recording = reader.read(0)
    rgb = recording.streams["rgb"]
    assert len(rgb.values) == len(open_video(next(folder.glob("videos/*/*/episode_000010.mp4"))))
    assert rgb.values.read(np.array([5])).shape[0] == 1 and rgb.times_s[1] == 1 / info["fps"]


def test_the_texts_of_tasks_are_the_index_that_pandas_makes(tmp_path):
    """What lerobot does with tasks.parquet, which is no lerobot code."""
    pandas = pytest.importorskip("pandas", reason="by evo and datasets")
    write_lerobot(tmp_path / "set", [_recording("a", 20, 0.0)], fps=30)
    tasks = pandas.read_parquet(tmp_path / "set/meta/tasks.parquet")
    assert list(tasks.index) == ["reach", "grasp"] and tasks.loc["grasp"].task_index == 1


def test_lerobot_itself_reads_what_is_written(tmp_path, monkeypatch):
    """Where lerobot is installed (README_DATA.md says how): every frame, pose, gaze point and task, and an episode."""
    pytest.importorskip("lerobot", reason="lerobot is not installed; README_DATA.md says how this was run")
    import av
    import torch
    import torchvision

    class Reader:
        """What torchvision had until 0.25, by PyAV as then."""

        def __init__(self, path, _):
            self.container = av.open(path)

        def seek(self, time_s, keyframes_only):
            self.container.seek(int(time_s * 1e6), backward=True)

        def __iter__(self):
            for frame in self.container.decode(video=0):
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                yield {"data": pixels, "pts": float(frame.pts * frame.time_base)}

    if not hasattr(torchvision.io, "VideoReader"):
        monkeypatch.setattr(torchvision.io, "VideoReader", Reader, raising=False)
        monkeypatch.setattr(torchvision, "set_video_backend", lambda _: None, raising=False)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    recordings = [_recording("a", 20, 100.0), _recording("b", 25, 2000.25)]
    write_lerobot(tmp_path / "set", recordings, fps=30)
    found = LeRobotDataset("local/set", root=tmp_path / "set", video_backend="pyav")
    assert (len(found), found.num_episodes, found.fps) == (45, 2, 30)
    for first, recording, count in ((0, recordings[0], 20), (20, recordings[1], 25)):
        for row in range(count):
            item = found[first + row]
            assert round(float(item["observation.images.ego"].mean()) * 255 / 4) == row
            np.testing.assert_allclose(item["observation.camera"].reshape(4, 4), walk(count)[row], atol=1e-6)
            np.testing.assert_allclose(
                item["observation.gaze"][:2], recording.streams["gaze"].values[row] * (row != 7), atol=1e-6
            )
            assert item["task"] == ("reach" if row < 10 else "grasp")
    steps = {"observation.images.ego": [-1 / 30, 0.0]}
    second = LeRobotDataset(
        "local/set", root=tmp_path / "set", video_backend="pyav", episodes=[1], delta_timestamps=steps
    )
    pair = second[3]["observation.images.ego"]
    assert len(second) == 25 and [round(float(frame.mean()) * 255 / 4) for frame in pair] == [2, 3]
