import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from egom2p.config import load_config
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_alignment import clip_key
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.conversion import convert
from egom2p.geometry import write_tum
from egom2p.jobs.stages import PlaceConfig
from egom2p.pipelines import prepare as prepare_module
from egom2p.pipelines.prepare import PrepareConfig, prepare, read_report

CLIP = {"height": 16, "width": 16}
LAMP = "source.world.lamp.reach_m=3.0"


def _make(root, name, *, seconds=4.0, has_poses=True):
    folder = root / name
    folder.mkdir(parents=True)
    count = round(seconds * 30)
    write_video(folder / "video.mp4", np.full((count, 24, 32, 3), 90, np.uint8), 30)
    if has_poses:
        write_tum(folder / "trajectory.txt", np.arange(count) / 30, np.tile(np.eye(4), (count, 1, 1)))


def _config(root, output, **changes):
    values = {
        "source": {"kind": "plain_folder", "root": str(root)},
        "clip": CLIP,
        "output": str(output),
        "dataset": "home",
        "clips_per_shard": 2,
    }
    return PrepareConfig(**(values | changes))


@pytest.fixture
def root(tmp_path):
    _make(tmp_path / "recordings", "a")
    _make(tmp_path / "recordings", "b (2)")
    return tmp_path / "recordings"


def test_recordings_become_a_store_and_a_report(root, tmp_path):
    report = prepare(_config(root, tmp_path / "clips"))
    store = ClipStore(tmp_path / "clips", "home")
    assert report.num_clips == len(store) == 4 and len(set(store.keys)) == 4
    assert store.streams == ("camera", "rgb") and store.shard_starts == (0, 2, 4)
    assert isinstance(store[0], AlignedClip) and store[0].rgb.shape == (16, 16, 16, 3)
    assert read_report(tmp_path / "clips", "home").datasets == report.datasets


def test_two_workers_write_the_same_bytes(root, tmp_path):
    prepare(_config(root, tmp_path / "one"))
    prepare(_config(root, tmp_path / "two", num_workers=2))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.tar"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def _array(number, count):
    values = {"ID": number, "MIN": 0, "STEP": 1, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_the_tasks_of_a_slurm_array_write_the_same_bytes(root, tmp_path, monkeypatch):
    _make(root, "c", has_poses=False)
    whole = prepare(_config(root, tmp_path / "one", clips_per_shard=1))
    for number in (0, 2, 1):
        assert not (tmp_path / "array" / "meta" / "home" / "prepare_report.json").exists()
        for name, value in _array(number, 3).items():
            monkeypatch.setenv(name, value)
        prepare(_config(root, tmp_path / "array", clips_per_shard=1, place=PlaceConfig(run_on="slurm")))
    assert read_report(tmp_path / "array", "home") == whole
    assert _shards(tmp_path / "one") == _shards(tmp_path / "array") and len(_shards(tmp_path / "one")) == 16


@pytest.mark.slow
def test_the_tasks_of_a_slurm_array_begin_at_once(tmp_path):
    """One of them plans, the others wait for it; the last one to finish writes the report."""
    command = [sys.executable, "run_prepare_data.py", "--config", "cfgs/default/data_preparation/synthetic.yaml"]
    command += ["source.world.num_rooms=6", "clips_per_shard=2"]
    subprocess.run([*command, f"output={tmp_path / 'one'}"], check=True, stderr=subprocess.DEVNULL)
    command += [f"output={tmp_path / 'array'}", "place.run_on=slurm"]
    tasks = [
        subprocess.Popen(command, env={**os.environ, **_array(number, 3)}, stderr=subprocess.DEVNULL)
        for number in range(3)
    ]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0, 0]
    assert read_report(tmp_path / "array", "synthetic") == read_report(tmp_path / "one", "synthetic")
    assert _shards(tmp_path / "one") == _shards(tmp_path / "array")


def test_other_streams_go_to_another_data_set(root, tmp_path):
    _make(root, "c", has_poses=False)
    report = prepare(_config(root, tmp_path / "clips"))
    assert report.datasets["home"]["num_clips"] == 4
    assert report.datasets["home-rgb"] == {"streams": ["rgb"], "num_clips": 2, "num_shards": 1}
    assert ClipStore(tmp_path / "clips", "home-rgb").keys == ["c_000000", "c_000001"]


def test_a_run_that_stops_keeps_its_shards_and_continues(root, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    prepare(_config(root, whole))
    cut = prepare_module.cut_clip
    calls = []

    def stop_at_the_fourth(*arguments, **more):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return cut(*arguments, **more)

    monkeypatch.setattr(prepare_module, "cut_clip", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        prepare(_config(root, tmp_path / "clips"))
    assert len(ClipStore(tmp_path / "clips", "home")) == 2
    calls.clear()
    calls.extend([1] * 10)
    prepare(_config(root, tmp_path / "clips"))
    assert len(calls) == 12, "the finished shard was not made again"
    for path in sorted(whole.rglob("*.tar")):
        assert (tmp_path / "clips" / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "clips").rglob(".*")} <= {".writer", ".index"}


def test_nothing_is_written_when_a_recording_is_bad(root, tmp_path):
    path = root / "a" / "trajectory.txt"
    path.write_text(path.read_text() + "9.5 nan 0 0 0 0 0 1\n")
    video = root / "b (2)" / "video.mp4"
    video.write_bytes(video.read_bytes()[:800])
    with pytest.raises(ValueError, match=r"(?s)trajectory\.txt, line 122.*video\.mp4.*nothing was written") as error:
        prepare(_config(root, tmp_path / "clips"))
    assert "bad_recordings=skip" in str(error.value) and not (tmp_path / "clips").exists()


def test_bad_and_short_recordings_can_be_left_out_and_are_counted(root, tmp_path):
    (root / "a" / "video.mp4").write_bytes(b"nothing")
    _make(root, "short", seconds=1.0)
    with pytest.raises(ValueError, match=r"short: found camera 0.000-.* wanted 2 s"):
        prepare(_config(root, tmp_path / "clips", bad_recordings="skip"))
    report = prepare(_config(root, tmp_path / "clips", bad_recordings="skip", skip_short=True))
    assert report.num_clips == 2 and sorted(report.skipped) == ["a", "short"]
    saved = json.loads((tmp_path / "clips/meta/home/prepare_report.json").read_text())["report"]
    assert "found 0 frames" in saved["skipped"]["a"]


def test_a_store_of_another_configuration_is_not_continued(root, tmp_path):
    prepare(_config(root, tmp_path / "clips"))
    with pytest.raises(ValueError, match="clip: found .*'height': 16.* wanted .*'height': 8"):
        prepare(_config(root, tmp_path / "clips", clip={"height": 8, "width": 8}))
    shutil.copytree(root, tmp_path / "others")  # other recordings may have the same names
    with pytest.raises(ValueError, match="source: found .*recordings.* wanted .*others"):
        prepare(_config(tmp_path / "others", tmp_path / "clips"))
    with pytest.raises(ValueError, match="another run's"):
        prepare(_config(root, tmp_path / "clips", clips_per_shard=3))
    (root / "b (2)").rename(root / "z")
    with pytest.raises(ValueError, match="another run's"):
        prepare(_config(root, tmp_path / "clips"))


def test_files_that_no_reader_took_are_listed(root, tmp_path, capsys):
    (root / "a" / "groundtruth.txt").write_text("0 0 0 0 0 0 0 1\n")
    (root / "a" / ".DS_Store").write_text("x")
    report = prepare(_config(root, tmp_path / "clips"))
    assert report.unused_files == {"a": ["groundtruth.txt"]} == read_report(tmp_path / "clips", "home").unused_files
    shown = capsys.readouterr()
    assert "not used of a: groundtruth.txt" in shown.out + shown.err


def _shards(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def _make_pictures(root, name, *, broken):
    folder = root / name / "rgb"
    folder.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    for number in range(120):
        Image.fromarray(picture).save(folder / f"{number:06d}.jpg")
    if broken is not None:
        broken(folder)


def _cut_a_picture(folder):
    path = folder / "000090.jpg"
    path.write_bytes(path.read_bytes()[:300])


def _resize_a_picture(folder):
    Image.new("RGB", (8, 8)).save(folder / "000090.jpg")


def _make_a_bomb(folder):
    # 100 megapixels promised by a header of a few bytes.
    path = folder / "000090.png"
    (folder / "000090.jpg").unlink()
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(head + struct.pack(">I", zlib.crc32(head[12:])))


@pytest.mark.parametrize("break_it", [_cut_a_picture, _resize_a_picture, _make_a_bomb])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_only_shows_when_pictures_are_decoded_leaves_the_recording_out(tmp_path, break_it, num_workers):
    """Its first clips lie in a shard that was finished before the bad picture was met."""
    root = tmp_path / "recordings"
    for name, broken in (("a", None), ("b", break_it), ("c", None)):
        _make_pictures(root, name, broken=broken)
    for config in ({}, {"num_workers": num_workers}):
        with pytest.raises(ValueError, match=r"b.*000090(?s:.*)bad_recordings=skip"):
            prepare(_config(root, tmp_path / "clips", **config))
    report = prepare(_config(root, tmp_path / "clips", bad_recordings="skip", num_workers=num_workers))
    assert report.num_clips == 4 and list(report.skipped) == ["b"] and "000090" in report.skipped["b"]
    store = ClipStore(tmp_path / "clips", "home")
    assert store.keys == ["a_000000", "a_000001", "c_000000", "c_000001"] and store.verify() == 4
    before = _shards(tmp_path / "clips")
    assert prepare(_config(root, tmp_path / "clips", bad_recordings="skip")).skipped == report.skipped
    assert _shards(tmp_path / "clips") == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gaze.csv", "timestamps,u,v\n0,0,0\n".encode("utf-16"), "gaze.csv: found UTF-16"),
        ("gaze.csv", b"timestamps,u,v\n0,\xb0,0\n", "gaze.csv: found no UTF-8"),
        ("gaze.csv", b'timestamps,u,v\n0,"' + b"9" * 200_000 + b'",0\n', "gaze.csv: not a readable table"),
        ("recording.yaml", b"rgb: {rate_hz: [", "recording.yaml: not valid YAML"),
        ("recording.yaml", "gaze: {}".encode("utf-16"), "recording.yaml: not valid YAML"),
        ("trajectory.txt", b"\xff\xfe0 0", "trajectory.txt: found a binary file"),
        ("depth.npy", b"\x93NUMPY", "depth.npy: not a readable array"),
        ("video.mp4", b"nothing", "video.mp4"),
    ],
)
def test_whatever_is_wrong_with_a_recording_is_told_with_its_file_or_skipped(root, tmp_path, name, content, message):
    (root / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"a/{message}"):
        prepare(_config(root, tmp_path / "clips"))
    report = prepare(_config(root, tmp_path / "clips", bad_recordings="skip"))
    assert report.num_clips == 2 and message in report.skipped["a"]


def test_memory_that_runs_out_costs_one_recording_only(root, tmp_path, monkeypatch):
    cut = prepare_module.cut_clip

    def cut_with_little_memory(recording, *arguments, **keywords):
        if recording.name == "a":
            raise MemoryError("8 GiB")
        return cut(recording, *arguments, **keywords)

    monkeypatch.setattr(prepare_module, "cut_clip", cut_with_little_memory)
    with pytest.raises(ValueError, match="a: MemoryError: 8 GiB"):
        prepare(_config(root, tmp_path / "clips"))
    report = prepare(_config(root, tmp_path / "clips", bad_recordings="skip"))
    assert report.num_clips == 2 and report.skipped == {"a": "a: MemoryError: 8 GiB"}


def test_recordings_come_to_a_store_later_wherever_they_sort(root, tmp_path):
    first = prepare(_config(root, tmp_path / "clips"))
    before = _shards(tmp_path / "clips")
    for name in ("0 before all", "a2"):
        _make(root, name)
    _make(root, "only video", has_poses=False)
    report = prepare(_config(root, tmp_path / "clips"))
    after = _shards(tmp_path / "clips")
    assert {path: content for path, content in after.items() if path in before} == before
    assert report.num_clips == first.num_clips + 6 and report.num_recordings == 5
    store = ClipStore(tmp_path / "clips", "home")
    assert store.keys[:4] == [f"{name}_00000{k}" for name in ("a", clip_key("b (2)", 0)[:-7]) for k in (0, 1)]
    assert len(set(store.keys)) == 8 == store.verify()
    assert ClipStore(tmp_path / "clips", "home-rgb").keys[0].startswith("only-video")
    # More recordings of the rarer kind do not take the plain name over.
    for number in range(5):
        _make(root, f"video {number}", has_poses=False)
    prepare(_config(root, tmp_path / "clips"))
    assert len(ClipStore(tmp_path / "clips", "home")) == 8 and len(ClipStore(tmp_path / "clips", "home-rgb")) == 12
    assert ClipStore(tmp_path / "clips", "home").streams == ("camera", "rgb")


def test_a_rerun_with_nothing_to_do_reads_no_recording(root, tmp_path, monkeypatch):
    (root / "bad").mkdir()
    (root / "bad" / "gaze.csv").write_text("nothing")
    config = _config(root, tmp_path / "clips", bad_recordings="skip")
    first = prepare(config)
    monkeypatch.setattr(prepare_module, "outline", lambda *_: pytest.fail("a recording was read"))
    monkeypatch.setattr("egom2p.pipelines.prepare_plan.finished_keys", lambda *_: pytest.fail("a tar was read"))
    assert prepare(config) == first
    shutil.copytree(root, tmp_path / "copy")  # a copy with other times of writing is the same recording
    shutil.rmtree(root)
    shutil.move(tmp_path / "copy", root)
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    assert prepare(config) == first


def test_a_recording_that_changed_is_no_part_of_its_store(root, tmp_path):
    prepare(_config(root, tmp_path / "clips"))
    path = root / "a" / "trajectory.txt"
    path.write_text(path.read_text().replace("1.0", "0.9", 1))
    with pytest.raises(ValueError, match="a: its files have changed since its clips were cut"):
        prepare(_config(root, tmp_path / "clips"))


@pytest.mark.parametrize("count", [120, 60000], ids=["small", "of 7 MB"])
def test_arrays_of_other_numbers_in_as_many_bytes_are_a_change(tmp_path, count):
    _make(tmp_path / "rec", "a", has_poses=False)
    path, arrays = tmp_path / "rec/a/trajectory.npz", {"timestamps": np.arange(count) / 30}
    poses = np.tile(np.eye(4), (count, 1, 1))
    np.savez(path, world_from_camera=poses, **arrays)
    config, size = _config(tmp_path / "rec", tmp_path / "clips"), path.stat().st_size
    prepare(config)
    os.utime(path, (1, 1))  # a copy
    prepare(config)
    poses[:, 2, 3] = 1.0
    np.savez(path, world_from_camera=poses, **arrays)
    assert path.stat().st_size == size
    with pytest.raises(ValueError, match="a: its files have changed since its clips were cut"):
        prepare(config)


def test_a_recording_that_was_mended_gets_its_clips(root, tmp_path):
    video = (root / "a" / "video.mp4").read_bytes()
    (root / "a" / "video.mp4").write_bytes(b"nothing")
    prepare(_config(root, tmp_path / "clips", bad_recordings="skip"))
    (root / "a" / "video.mp4").write_bytes(video)
    report = prepare(_config(root, tmp_path / "clips", bad_recordings="skip"))
    assert report.num_clips == 4 and not report.skipped


def test_bad_recordings_of_the_door(door_dir, tmp_path):
    config = _config(door_dir / "bad_recordings_skip" / "rec", tmp_path / "clips", bad_recordings="skip")
    report = prepare(config)
    assert list(report.skipped) == ["b"] and "000034.jpg" in report.skipped["b"]
    assert {key[0] for key in ClipStore(tmp_path / "clips", "home").keys} == {"a", "c"}
    (tmp_path / "rot" / "x").mkdir(parents=True)
    shutil.copy(door_dir / "bad_recordings_skip" / "bitrot.mp4", tmp_path / "rot" / "x" / "video.mp4")
    shutil.copytree(door_dir / "bad_recordings_skip" / "rec" / "a", tmp_path / "rot" / "a")
    report = prepare(_config(tmp_path / "rot", tmp_path / "others", bad_recordings="skip"))
    assert list(report.skipped) in ([], ["x"]) and report.num_clips > 0


def test_chosen_streams_only(root, tmp_path):
    prepare(_config(root, tmp_path / "clips", streams=("rgb",)))
    assert ClipStore(tmp_path / "clips", "home").streams == ("rgb",)
    with pytest.raises(ValueError, match=r"streams: found no recording with \['camrea'\], wanted some of \['rgb'\]"):
        prepare(_config(root, tmp_path / "others", streams=("rgb", "camrea")))
    assert not list((tmp_path / "others").rglob("*.tar"))


def test_synthetic_world_is_a_source_like_any_other(tmp_path):
    overrides = [
        "source.world.num_rooms=1",
        "source.world.duration_s=4.0",
        "source.world.camera={height: 16, width: 16}",
        f"output={tmp_path}",
        "num_workers=0",
    ]
    config = load_config(PrepareConfig, "default/data_preparation/synthetic.yaml", overrides)
    assert prepare(config).num_clips == 2
    clip = ClipStore(tmp_path, "synthetic")[1]
    assert {"rgb", "depth", "gaze", "camera", "caption"} <= set(clip.streams) and clip.depth_m.shape == (16, 16, 16)
    with pytest.raises(ValueError, match="source: found"):
        prepare(load_config(PrepareConfig, "default/data_preparation/synthetic.yaml", [*overrides, LAMP]))


def test_real_samples_end_to_end(real_data_dir, tmp_path):
    sources = ["rgbd_7scenes_redkitchen", "aria_mps_sample", "ego4d_clip_lavila", "egom2p_example_data"]
    for source in sources:
        convert(real_data_dir / source, tmp_path / "recordings")
    overrides = [f"source.root={tmp_path / 'recordings'}", f"output={tmp_path / 'clips'}", "dataset=real"]
    overrides += ["clip.height=64", "clip.width=64", "num_workers=0"]
    report = prepare(load_config(PrepareConfig, "default/data_preparation/plain_folder.yaml", overrides))
    assert {tuple(about["streams"]): about["num_clips"] for about in report.datasets.values()} == {
        ("camera", "gaze"): 5,
        ("camera", "depth", "rgb"): 1,
        ("rgb",): 3,
    }


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("shard-*")}


@pytest.mark.slow
def test_ctrl_c_and_rerun_continues(tmp_path):
    command = [sys.executable, "run_prepare_data.py", "--config", "cfgs/default/data_preparation/synthetic.yaml"]
    command += ["source.world.num_rooms=30", f"output={tmp_path}", "clips_per_shard=4", "num_workers=2"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    meta = tmp_path / "meta" / "synthetic"
    deadline = time.monotonic() + 120
    while not list(meta.glob("shard-*.tar")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) != 0
    left = written(tmp_path)
    with pytest.raises(ProcessLookupError):  # workers, and what made them, are gone with it
        for _ in range(200):
            os.killpg(running.pid, 0)
            time.sleep(0.05)
    assert written(tmp_path) == left
    # In hidden folders of work a shard has the same name: one may have been about to move out.
    kept = {path: at_ns for path, at_ns in left.items() if path.parent.name == "synthetic"}
    assert 0 < len(list(meta.glob("shard-*.tar"))) < 30
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    store = ClipStore(tmp_path, "synthetic")
    assert len(store) == 120 and store[119].rgb.shape == (16, 64, 64, 3)
    finished = [path for path in kept if all((tmp_path / s / "synthetic" / path.name) in kept for s in store.streams)]
    assert finished and all(path.stat().st_mtime_ns == kept[path] for path in finished if path.parts[-3] == "meta")
