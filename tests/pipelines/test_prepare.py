import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from egom2p.config import load_config
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.conversion import convert
from egom2p.geometry import write_tum
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
    assert {path.name for path in (tmp_path / "clips").rglob(".*")} <= {".writer"}


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


def test_chosen_streams_only(root, tmp_path):
    prepare(_config(root, tmp_path / "clips", streams=("rgb",)))
    assert ClipStore(tmp_path / "clips", "home").streams == ("rgb",)


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


@pytest.mark.slow
def test_ctrl_c_and_rerun_continues(tmp_path):
    command = [sys.executable, "run_prepare_data.py", "--config", "cfgs/default/data_preparation/synthetic.yaml"]
    command += ["source.world.num_rooms=30", f"output={tmp_path}", "clips_per_shard=4", "num_workers=2"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    meta = tmp_path / "meta" / "synthetic"
    deadline = time.monotonic() + 120
    while not list(meta.glob("shard-*.tar")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) != 0
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*.tar")}
    assert 0 < len(list(meta.glob("shard-*.tar"))) < 30
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    store = ClipStore(tmp_path, "synthetic")
    assert len(store) == 120 and store[119].rgb.shape == (16, 64, 64, 3)
    finished = [path for path in kept if all((tmp_path / s / "synthetic" / path.name) in kept for s in store.streams)]
    assert finished and all(path.stat().st_mtime_ns == kept[path] for path in finished if path.parts[-3] == "meta")
