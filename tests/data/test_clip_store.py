from dataclasses import replace

import numpy as np
import pytest

from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Stream
from egom2p.data.clips.clip_store import ClipStore, stored_datasets, write_clips
from egom2p.data.clips.upright import MIRRORED_STREAMS, mirrored
from egom2p.geometry import matrix_from_quaternion, pixel_grid, poses_from_parts, rays, unproject


def make_clip(key, rng, *, has_gaze=True):
    frames_s, samples_s = 3 + np.arange(4) / 8, 3 + np.arange(6) / 30
    streams = {
        "rgb": Stream(rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8), np.ones(4, bool), frames_s, "uint8"),
        "depth": Stream(rng.uniform(0, 8, (4, 6, 8)).astype(np.float32), np.ones(4, bool), frames_s, "m"),
        "camera": Stream(rng.normal(size=(6, 4, 4)), np.ones(6, bool), samples_s, "world_from_cam"),
        "caption": Stream(np.array(["größer"]), np.ones(1, bool), frames_s[:1], "text"),
    }
    if has_gaze:
        streams["gaze"] = Stream(rng.uniform(size=(6, 2)).astype(np.float32), rng.random(6) > 0.3, samples_s, "image")
    camera = Intrinsics(8, 6, 7.0, 7.5, 3.5, 2.5, "fisheye624", tuple(range(12)))
    return AlignedClip(key, streams, camera, Provenance("d", "r", 3.0, "x/y"), {"note": 1})


def test_clips_come_back(tmp_path, rng):
    clips = [make_clip(f"c{i}", rng) for i in range(5)]
    assert write_clips(tmp_path, "d", clips, clips_per_shard=2) == 5
    store = ClipStore(tmp_path, "d")
    assert store.keys == [f"c{i}" for i in range(5)] and store.shard_starts == (0, 2, 4, 5)
    assert store.streams == ("camera", "caption", "depth", "gaze", "rgb")
    for clip, found in zip(clips, store, strict=True):
        assert (found.intrinsics, found.provenance, found.extra) == (clip.intrinsics, clip.provenance, clip.extra)
        assert found.caption == "größer"
        for name, stream in clip.streams.items():
            assert found.streams[name].unit == stream.unit and found.streams[name].values.dtype == stream.values.dtype
            np.testing.assert_array_equal(found.streams[name].is_valid, stream.is_valid)
            np.testing.assert_array_equal(found.streams[name].times_s, stream.times_s)
            if name != "depth":
                np.testing.assert_array_equal(found.streams[name].values, stream.values)
        assert np.abs(found.depth_m - clip.depth_m).max() <= 0.00051
        np.testing.assert_array_equal(found.depth_m == 0, clip.depth_m == 0)
    assert store[-1].key == "c4"


def test_only_the_asked_for_streams_are_read(tmp_path, rng):
    write_clips(tmp_path, "d", [make_clip("a", rng)])
    assert sorted(ClipStore(tmp_path, "d", streams=["gaze"])[0].streams) == ["gaze"]
    with pytest.raises(ValueError, match=r"have \['camera'.*wanted \['smell'\]"):
        ClipStore(tmp_path, "d", streams=["smell"])


def test_a_mirrored_clip_is_the_mirrored_world(tmp_path, rng):
    """Points of depth and rays of gaze, carried into the world by the poses, are the mirrored ones; so are pictures."""
    clip = make_clip("a", rng)
    turns = matrix_from_quaternion(rng.normal(size=(6, 4)))
    poses = Stream(
        poses_from_parts(turns, rng.normal(size=(6, 3))), np.ones(6, bool), 3 + np.arange(6) / 30, "world_from_cam"
    )
    clip = replace(clip, streams=clip.streams | {"camera": poses}, intrinsics=Intrinsics(8, 6, 7.0, 7.5, 2.9, 3.3))
    write_clips(tmp_path, "d", [clip])
    clip = ClipStore(tmp_path, "d", streams=MIRRORED_STREAMS)[0]
    seen = ClipStore(tmp_path, "d", streams=MIRRORED_STREAMS, is_mirrored=True)[0]
    np.testing.assert_allclose(np.linalg.det(seen.world_from_cam[:, :3, :3]), 1)
    for frame in range(4):
        here, there = (
            unproject(pixel_grid(lens), one.depth_m[frame], lens)[0] @ one.world_from_cam[frame, :3, :3].T
            + one.world_from_cam[frame, :3, 3]
            for one, lens in ((clip, clip.intrinsics), (seen, seen.intrinsics))
        )
        np.testing.assert_allclose(there[:, ::-1], here * [-1, 1, 1], atol=1e-5)
        np.testing.assert_array_equal(seen.streams["rgb"].values[frame][:, ::-1], clip.streams["rgb"].values[frame])
    pixels = [one.streams["gaze"].values * (8, 6) - 0.5 for one in (clip, seen)]
    here, there = (rays(uv, one.intrinsics)[0] for uv, one in zip(pixels, (clip, seen), strict=True))
    np.testing.assert_allclose(there, here * [-1, 1, 1], atol=1e-5)
    twice = mirrored(seen)
    assert twice.intrinsics.cx == pytest.approx(clip.intrinsics.cx)
    for name, stream in clip.streams.items():
        np.testing.assert_allclose(twice.streams[name].values, stream.values, atol=1e-6)
    with pytest.raises(ValueError, match=r"found streams \['caption'\], wanted for mirror images \['rgb'"):
        ClipStore(tmp_path, "d", is_mirrored=True)


def test_depth_that_cannot_be_stored_is_invalid(tmp_path, rng):
    clip = make_clip("a", rng)
    clip.depth_m[0, 0, :5] = [np.nan, np.inf, -1.0, 70.0, 0.0002]
    write_clips(tmp_path, "d", [clip])
    assert ClipStore(tmp_path, "d")[0].depth_m[0, 0, :5].tolist() == [0, 0, 0, 0, np.float32(0.001)]


def test_writing_continues(tmp_path, rng):
    clips = [make_clip(f"c{i}", rng) for i in range(5)]

    def broken():
        yield from clips[:3]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_clips(tmp_path, "d", broken(), clips_per_shard=2)
    assert ClipStore(tmp_path, "d").keys == ["c0", "c1"]
    assert write_clips(tmp_path, "d", clips, clips_per_shard=2) == 5


def test_one_data_set_has_one_set_of_streams(tmp_path, rng):
    with pytest.raises(ValueError, match="clip b"):
        write_clips(tmp_path, "d", [make_clip("a", rng), make_clip("b", rng, has_gaze=False)])


def test_a_missing_data_set_lists_those_there_are(tmp_path, rng):
    write_clips(tmp_path, "d", [make_clip("a", rng)])
    assert stored_datasets(tmp_path) == ("d",)
    with pytest.raises(ValueError, match=r"no clips of data set 'e'; found \['d'\]"):
        ClipStore(tmp_path, "e")


def test_a_tar_with_a_missing_key_is_an_error_that_names_it(tmp_path, rng):
    write_clips(tmp_path, "d", [make_clip("a", rng), make_clip("b", rng)])
    write_clips(tmp_path / "other", "d", [make_clip("a", rng)])
    (tmp_path / "other/gaze/d/shard-000000.tar").replace(tmp_path / "gaze/d/shard-000000.tar")
    with pytest.raises(ValueError, match=r"gaze/d/shard-000000\.tar: clip b has no gaze"):
        ClipStore(tmp_path, "d")[0]
