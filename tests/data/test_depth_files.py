"""Depth in every form it comes in: the metres are right, or the file is refused."""

import json
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image

from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips, plan_clips
from egom2p.data.clips.clip_store import ClipStore, write_clips
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.plain_folder import PlainFolderReader

COUNT, HEIGHT, WIDTH = 75, 24, 32
METRES = np.linspace(0.5, 2.7, COUNT * HEIGHT * WIDTH).reshape(COUNT, HEIGHT, WIDTH).astype(np.float32)
CONFIG = ClipConfig(height=24, width=24)


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "a" / "video.mp4", np.full((COUNT, HEIGHT, WIDTH, 3), 90, np.uint8), 30)
    return tmp_path / "a"


def _depth(folder, settings=None):
    (folder / "recording.yaml").write_text(yaml.safe_dump({"depth": settings} if settings else {}))
    recording = PlainFolderReader(folder).read(0)
    return recording.streams["depth"].values.read(np.arange(COUNT)), recording


def _save_pictures(folder, suffix, frames):
    (folder / "depth").mkdir()
    for number, frame in enumerate(frames):
        path = folder / "depth" / f"{number:06d}{suffix}"
        if suffix == ".exr":
            open_exr = pytest.importorskip("OpenEXR")
            header = {"compression": open_exr.ZIP_COMPRESSION, "type": open_exr.scanlineimage}
            open_exr.File(header, {"Z": np.ascontiguousarray(frame)}).write(str(path))
        else:
            Image.fromarray(frame).save(path)


@pytest.mark.parametrize("suffix", [".tif", ".exr"])
def test_float_pictures_are_metres(folder, suffix):
    frames = METRES.copy()
    frames[:, 0, 0], frames[:, 0, 1], frames[:, 0, 2] = np.nan, np.inf, -1.0
    _save_pictures(folder, suffix, frames)
    depth_m, _ = _depth(folder)
    np.testing.assert_array_equal(depth_m[:, 1:], METRES[:, 1:])
    assert not depth_m[:, 0, :3].any()
    np.testing.assert_allclose(_depth(folder, {"metres_per_unit": 0.1})[0][:, 1:], METRES[:, 1:] / 10, rtol=1e-6)


def test_grey_exr_written_as_colour_and_exr_of_unknown_channels(folder):
    open_exr = pytest.importorskip("OpenEXR")
    header = {"compression": open_exr.ZIP_COMPRESSION, "type": open_exr.scanlineimage}
    (folder / "depth").mkdir()
    for number in range(COUNT):
        picture = np.repeat(METRES[number][..., None], 3, axis=2)
        open_exr.File(header, {"RGB": picture}).write(str(folder / "depth" / f"{number:06d}.exr"))
    np.testing.assert_array_equal(_depth(folder)[0], METRES)
    open_exr.File(header, {"a": METRES[0], "b": METRES[0]}).write(str(folder / "depth" / "000000.exr"))
    with pytest.raises(ValueError, match=r"000000\.exr: found channels \['a', 'b'\], wanted one of"):
        _depth(folder)
    (folder / "depth" / "000000.exr").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000000\.exr: not a readable EXR"):
        _depth(folder)


def test_sixteen_bit_pictures_are_millimetres_or_what_is_said(folder):
    _save_pictures(folder, ".png", np.rint(METRES * 1000).astype(np.uint16))
    np.testing.assert_allclose(_depth(folder)[0], METRES, atol=5.1e-4)
    np.testing.assert_allclose(_depth(folder, {"metres_per_unit": 0.0002})[0], METRES / 5, atol=1.1e-4)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_whole_arrays_need_their_unit_and_real_ones_are_metres(folder, kind):
    def save(values):
        if kind == "npy":
            np.save(folder / "depth.npy", values)
        else:
            np.savez(folder / "depth.npz", depth=values, timestamps=np.arange(COUNT) * 33_333)

    stamps = {} if kind == "npy" else {"time_unit": "us"}
    save(np.rint(METRES * 1000).astype(np.uint16))
    with pytest.raises(ValueError, match=r"found whole numbers \(uint16\), wanted depth\.metres_per_unit"):
        _depth(folder, stamps)
    depth_m, recording = _depth(folder, {"metres_per_unit": 0.001, "invalid_values": [0, 1500]} | stamps)
    is_named = np.rint(METRES * 1000) == 1500
    assert is_named.any() and not depth_m[is_named].any()
    np.testing.assert_allclose(depth_m[~is_named], METRES[~is_named], atol=5.1e-4)
    assert recording.streams["depth"].times_s[30] == pytest.approx(1.0 if kind == "npy" else 0.99999, abs=1e-6)
    save(METRES.astype(np.float64))
    np.testing.assert_allclose(_depth(folder, stamps)[0], METRES)
    for start in (0, 3):  # also where a sensor begins with empty frames
        save(np.where(np.arange(len(METRES))[:, None, None] < start, 0.0, METRES * 1000))  # millimetres as floats
        with pytest.raises(ValueError, match=r"found depth of \d.* m .*metres_per_unit"):
            _depth(folder, stamps)
    save(METRES * 1000)
    np.testing.assert_allclose(_depth(folder, {"metres_per_unit": 0.001} | stamps)[0], METRES, rtol=1e-6)


def test_a_clip_whose_depth_is_all_invalid_has_no_depth(folder):
    frames = np.rint(METRES * 1000).astype(np.uint16)
    frames[:] = 0
    np.save(folder / "depth.npy", frames)
    _, recording = _depth(folder, {"metres_per_unit": 0.001})
    (window,) = plan_clips(recording, CONFIG).windows
    assert window.streams == ("rgb",) and "no pixel of its 16 pictures" in window.absent["depth"]
    frames[40, 5, 12] = 1234  # one pixel of one picture
    np.save(folder / "depth.npy", frames)
    _, recording = _depth(folder, {"metres_per_unit": 0.001})
    (clip,) = cut_clips(recording, ClipConfig(height=24, width=24, video_rate_hz=30))
    assert clip.streams["depth"].is_valid.nonzero()[0].tolist() == [40] and clip.depth_m[40, 5, 8] == pytest.approx(
        1.234
    )


def test_the_unit_in_the_store_is_that_of_its_numbers(folder, tmp_path):
    np.save(folder / "depth.npy", METRES)
    _, recording = _depth(folder)
    clips = list(cut_clips(recording, CONFIG))
    write_clips(tmp_path / "clips", "d", clips)
    with tarfile.open(tmp_path / "clips/meta/d/shard-000000.tar") as archive:
        meta = json.load(archive.extractfile(archive.getmembers()[0]))
    with tarfile.open(tmp_path / "clips/depth/d/shard-000000.tar") as archive:
        stored = np.load(archive.extractfile(archive.getmembers()[0]))["values"]
    assert meta["units"]["depth"] == "mm" and stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 1000, clips[0].depth_m, atol=5.1e-4)
    read = ClipStore(tmp_path / "clips", "d")[0].streams["depth"]
    assert read.unit == "m" and np.abs(read.values - clips[0].depth_m).max() < 5.1e-4


def test_the_array_of_millimetres_of_the_door(door_dir):
    recording = PlainFolderReader(door_dir / "depth_npy_uint16" / "rec_said").read(0)
    stored = np.load(door_dir / "depth_npy_uint16" / "rec_said" / "depth.npy")
    (clip, *_) = cut_clips(recording, ClipConfig(height=64, width=64))
    np.testing.assert_allclose(recording.streams["depth"].values.read(np.array([7]))[0], stored[7] / 1000, rtol=1e-6)
    assert 1.4 < clip.depth_m.min() and clip.depth_m.max() < 2.8
