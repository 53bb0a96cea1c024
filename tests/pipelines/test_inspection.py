"""Before recordings are cut: faults put in are found, shifts put in are measured, sides share nothing."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from egom2p.contracts import Provenance, Recording, Stream
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.clips.video_files import write_video
from egom2p.geometry import write_tum
from egom2p.pipelines.prepare import PrepareConfig, prepare, read_report
from egom2p.pipelines.recording_inspection import stream_skew
from egom2p.pipelines.recording_splits import SplitConfig, sides_of

RATE_HZ, SECONDS = 30, 12
TIMES_S = np.arange(RATE_HZ * SECONDS) / RATE_HZ


def turning(seed):
    """Yaw (T,) radians of a head that looks about without rhythm, and pictures that follow it."""
    random = np.random.default_rng(seed)
    speed = gaussian_filter(random.normal(size=len(TIMES_S)), 6, mode="wrap") * 5
    yaw = np.cumsum(speed - speed.mean()) / RATE_HZ
    wall = gaussian_filter(random.normal(size=(48, 1400)), (1.5, 1.5))
    wall = np.uint8(np.clip(128 + 200 * wall, 0, 255))
    first = np.round(650 + 120 * (yaw - yaw.mean())).astype(int)
    assert first.min() >= 0 and first.max() < 1336
    pictures = np.stack([np.repeat(wall[:, x : x + 64, None], 3, axis=2) for x in first])
    return yaw, pictures


def poses_of(yaw):
    poses = np.tile(np.eye(4), (len(yaw), 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(np.stack([0 * yaw, yaw, 0 * yaw], 1)).as_matrix()
    poses[:, 0, 3] = 0.3 * TIMES_S
    return poses


def write_recording(folder, seed, *, change=lambda poses, pictures: None):
    yaw, pictures = turning(seed)
    poses = poses_of(yaw)
    change(poses, pictures)
    folder.mkdir(parents=True)
    write_video(folder / "video.mp4", pictures, RATE_HZ)
    write_tum(folder / "trajectory.txt", TIMES_S, poses)
    rows = [f"{time},0.5,0.5,{int(time < 3)}" for time in TIMES_S]
    (folder / "gaze.csv").write_text("\n".join(["timestamps,u,v,valid", *rows]))


def config(root, output, **changes):
    values = {"source": {"kind": "plain_folder", "root": str(root)}, "clip": {"height": 16, "width": 16}}
    return PrepareConfig(**(values | {"output": str(output), "dataset": "home"} | changes))


@pytest.mark.parametrize("shift_frames", [0, 3, -4])
def test_a_shift_between_streams_is_measured(shift_frames):
    yaw, pictures = turning(1)
    always, shift_s = np.ones(len(TIMES_S), bool), shift_frames / RATE_HZ
    gyroscope = np.stack([0 * yaw, np.gradient(yaw, TIMES_S), 0 * yaw], 1)
    depth_m = np.float32(1 + pictures[..., 0] / 100)
    streams = {
        "camera": Stream(poses_of(yaw), always, TIMES_S, "world_from_cam"),
        "rgb": Stream(pictures, always, TIMES_S + shift_s, "uint8"),
        "depth": Stream(depth_m, always, TIMES_S, "m"),
        "imu": Stream(gyroscope, always, TIMES_S - 2 * shift_s, "gyroscope rad/s xyz"),
        "heart": Stream(yaw[:, None], always, TIMES_S, "bpm"),
    }
    found = stream_skew(Recording("r", streams, None, Provenance("d", "r")), 10.0)
    assert found.keys() == {"rgb", "depth", "imu"}
    for name, frames in (("rgb", shift_frames), ("depth", 0), ("imu", -2 * shift_frames)):
        words = found[name].removeprefix("off: ")
        assert float(words.split(" s ")[0]) == pytest.approx(frames / RATE_HZ, abs=0.4 / RATE_HZ), name
        assert found[name].startswith("off: ") == (frames != 0), found[name]
    noise = np.random.default_rng(5).integers(0, 255, pictures.shape, np.uint8)
    streams["rgb"] = Stream(noise, always, TIMES_S, "uint8")
    assert stream_skew(Recording("r", streams, None, Provenance("d", "r")), 10.0)["rgb"].startswith("cannot be told")


def faulty(poses, pictures):
    """A clip of 2 s each: half a second black, one picture repeated, a leap, one pose throughout; two are sound."""
    pictures[70:86] = 0
    pictures[120:180] = pictures[120]
    poses[200:, 0, 3] += 5.0
    poses[240:300] = poses[240]


def test_faults_that_were_put_in_are_counted_and_dropped(tmp_path):
    write_recording(tmp_path / "in/walk", 2, change=faulty)
    for action, count in (("report", 6), ("drop", 2)):
        out = tmp_path / action
        report = prepare(config(tmp_path / "in", out, quality={"action": action}))
        assert report.faults == {"blank": 1, "frozen": 1, "jump": 1, "identical poses": 1}
        assert report.fault_examples["jump"].startswith("walk, clip 3: the camera moves at 150")
        assert report.num_clips == count and read_report(out, "home").faults == report.faults
        assert report.coverage["walk"]["gaze"] == pytest.approx(0.25, abs=0.01) and report.coverage["walk"]["rgb"] == 1
        assert prepare(config(tmp_path / "in", out, quality={"action": action})).faults == report.faults
    kept = [key for name in report.datasets for key in ClipStore(out, name).keys]
    assert sorted(kept) == ["walk_000000", "walk_000005"]
    with pytest.raises(ValueError, match="found clips made otherwise"):
        prepare(config(tmp_path / "in", out, quality={"action": "drop", "min_contrast": 0}))
    thin = {"action": "drop", "min_coverage": {"gaze": 0.5}}
    with pytest.raises(ValueError, match="none of 1 recordings gives a clip"):
        prepare(config(tmp_path / "in", tmp_path / "thin", quality=thin))
    with Image.open(out / "meta/home/contact_sheets/walk.jpg") as sheet:
        assert sheet.size == (640, 240)


def test_a_group_is_on_one_side_wherever_it_is_looked_at(tmp_path):
    names = [f"P{number:04d}_{part}" for number in range(200) for part in "ab"]
    split = SplitConfig(fractions={"validation": 0.2, "test": 0.1}, assign={"P0007": "test"})
    by, groups, sides = sides_of(names, split, r"(?P<participant>P\d+)_")
    assert by == "participant" and sides["P0007_a"] == sides["P0007_b"] == "test" and groups["P0007_a"] == "P0007"
    assert all(sides[f"P{n:04d}_a"] == sides[f"P{n:04d}_b"] for n in range(200))
    shares = {side: list(sides.values()).count(side) / 400 for side in ("train", "validation", "test")}
    assert shares == {"train": pytest.approx(0.7, abs=0.1), "validation": pytest.approx(0.2, abs=0.08),
                      "test": pytest.approx(0.1, abs=0.06)}  # fmt: skip
    later = sides_of([*names[50:60], "P9999_a"], split, r"(?P<participant>P\d+)_")[2]
    assert all(later[name] == sides[name] for name in names[50:60])
    assert sides_of([*names, "stray"], split, r"(?P<participant>P\d+)_")[0] == "recording"
    with pytest.raises(ValueError, match="1 of 401 recordings do not tell it, the first 'stray'"):
        sides_of([*names, "stray"], SplitConfig(by="participant"), r"(?P<participant>P\d+)_")
    with pytest.raises(ValueError, match="wanted a group"):
        SplitConfig(pattern="P")
    with pytest.raises(ValueError, match="shares of 1|less than or equal to 1"):
        SplitConfig(fractions={"test": 1.5})


def test_data_sets_of_two_sides_and_the_video_they_share(tmp_path, capsys):
    root = tmp_path / "in"
    for number, name in enumerate(("anna_1", "anna_2", "ben_1", "carl_1")):
        write_recording(root / name, number)
    split = {"pattern": r"^(?P<participant>[a-z]+)_", "fractions": {}, "assign": {"ben": "validation"}}
    report = prepare(config(root, tmp_path / "out", split=split, streams=["rgb", "camera"]))
    assert {name: about["num_clips"] for name, about in report.datasets.items()} == {
        "home_train": 18,
        "home_validation": 6,
    }
    assert report.splits["train"] == {"recordings": 3, "clips": 18, "by": "participant", "groups": ["anna", "carl"]}
    assert {key.split("_")[0] for key in ClipStore(tmp_path / "out", "home_validation").keys} == {"ben"}
    assert report.leaks == []
    again = prepare(config(root, tmp_path / "out", split=split, streams=["rgb", "camera"]))
    assert again.splits == report.splits
    write_recording(root / "ben_2", 9)
    grown = prepare(config(root, tmp_path / "out", split=split, streams=["rgb", "camera"]))
    assert grown.datasets["home_validation"]["num_clips"] == 12 and grown.datasets["home_train"]["num_clips"] == 18
    shutil.copytree(root / "carl_1", root / "ben_3")
    with pytest.raises(ValueError, match=r"ben_3 \(validation\) and carl_1 \(train\) show the same video"):
        prepare(config(root, tmp_path / "other", split=split))
    assert not list((tmp_path / "other").rglob("*.tar"))
    told = prepare(config(root, tmp_path / "other", split={**split, "leaks": "report"}))
    assert len(told.leaks) == 1 and "sides: ben_3" in capsys.readouterr().err
    # By recording, a participant may be on both sides: that is told.
    by_recording = {**split, "by": "recording", "assign": {"anna_1": "validation"}}
    assert prepare(config(root, tmp_path / "third", split=by_recording)).leaks == [
        "participant anna is in train and validation"
    ]
    card = json.loads((tmp_path / "out/meta/home_train/card.json").read_text())
    assert card["split"]["assign"] == {"ben": "validation"}
    with pytest.raises(ValueError, match="found clips made otherwise"):
        prepare(config(root, tmp_path / "out", split={**split, "salt": "x"}, streams=["rgb", "camera"]))


FAST = {"quality": {"pictures_per_clip": 0}, "inspect": {"sheet_pictures": 0, "skew_s": 0}}


def test_recordings_that_come_later_do_not_change_what_a_group_is(tmp_path, capsys):
    root = tmp_path / "source"
    write_recording(root / "P1_a", 1)
    shutil.copytree(root / "P1_a", root / "P2_a")
    split = {"pattern": r"^(?P<participant>P\d+)_", "fractions": {"test": 0.4}, "assign": {"P9": "test"}}
    report = prepare(config(root, tmp_path / "out", split=split, **FAST))
    assert report.splits["test"]["groups"] == ["P2"]
    assert report.leaks == [
        "whether P1_a (2 recordings in all) is a copy of another was not looked at",
        "split.assign names ['P9'], which is no participant here",
    ]
    shutil.copytree(root / "P1_a", root / "zz")  # by recording, which it would be now, P1_a and P2_a stay by chance
    with pytest.raises(ValueError, match="were split by participant; with zz they would be split by recording"):
        prepare(config(root, tmp_path / "out", split=split, **FAST))
    shutil.rmtree(root / "zz")
    shutil.copytree(root / "P2_a", root / "P1_b")
    for changes in ({"split": None}, {"split": split, "inspect": {"sheet_pictures": 4, "skew_s": 0}}):
        with pytest.raises(ValueError, match="card.json: found clips made otherwise"):
            prepare(config(root, tmp_path / "out", **(FAST | changes)))
    assert not list((tmp_path / "out").rglob("shard-000001.tar"))


def test_a_recording_with_a_long_name(tmp_path):
    write_recording(tmp_path / "source" / ("n" * 200), 1)
    assert prepare(config(tmp_path / "source", tmp_path / "out", **FAST)).num_clips == 6
    (key, *_) = ClipStore(tmp_path / "out", "home").keys
    assert key.startswith("n" * 72 + "-") and key.endswith("_000000") or key.endswith("_000002")
