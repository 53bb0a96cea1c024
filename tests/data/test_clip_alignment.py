from dataclasses import replace

import numpy as np
import pytest

from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.clips.clip_alignment import ClipConfig, RecordingTooShort, clip_key, cut_clips, plan_clips
from egom2p.data.clips.cropping import centre_crop, crop_depth, crop_gaze, crop_intrinsics
from egom2p.data.clips.resampling import track_at
from egom2p.geometry import project

CONFIG = ClipConfig(height=16, width=16)


def _poses(times_s):
    """Yaw of 0.2 rad/s, 1 m/s forward."""
    poses = np.tile(np.eye(4), (len(times_s), 1, 1))
    angle = 0.2 * (times_s - times_s[0])
    poses[:, 0, 0], poses[:, 0, 2] = np.cos(angle), np.sin(angle)
    poses[:, 2, 0], poses[:, 2, 2] = -np.sin(angle), np.cos(angle)
    poses[:, 2, 3] = times_s
    return poses


def _stream(values, times_s, unit, is_valid=None):
    return Stream(values, np.ones(len(values), bool) if is_valid is None else is_valid, times_s, unit)


def _recording(seconds=5.0, *, gaze_start_s=0.0, camera_start_s=0.0, height=24, width=32):
    """RGB whose red is the frame number at 30 fps, gaze at 60 Hz moving right, camera at 100 Hz."""
    video_s = np.arange(round(seconds * 30)) / 30
    rgb = np.zeros((len(video_s), height, width, 3), np.uint8)
    rgb[..., 0] = np.arange(len(video_s))[:, None, None]
    gaze_s = gaze_start_s + np.arange(round(seconds * 60)) / 60
    gaze = np.stack([0.4 + 0.02 * (gaze_s - gaze_start_s), np.full(len(gaze_s), 0.5)], axis=1)
    camera_s = camera_start_s + np.arange(round(seconds * 100)) / 100
    return Recording(
        "walk",
        {
            "rgb": _stream(rgb, video_s, "uint8"),
            "gaze": _stream(gaze, gaze_s, "image"),
            "camera": _stream(_poses(camera_s), camera_s, "world_from_cam"),
        },
        Intrinsics(width, height, 20.0, 20.0, (width - 1) / 2, (height - 1) / 2),
        Provenance("test", "walk"),
    )


def _without(recording, *names):
    return replace(recording, streams={n: s for n, s in recording.streams.items() if n not in names})


def test_clips_have_common_clocks_and_nearest_frames():
    clips = list(cut_clips(_recording(), CONFIG))
    assert [clip.key for clip in clips] == ["walk_000000", "walk_000001"]
    clip = clips[1]
    assert clip.rgb.shape == (16, 16, 16, 3) and clip.gaze.shape == (60, 2) and clip.world_from_cam.shape == (60, 4, 4)
    np.testing.assert_allclose(clip.streams["rgb"].times_s, 2 + np.arange(16) / 8)
    # The frame 2.125 s lies between 63 and 64; ties go to the earlier one.
    np.testing.assert_array_equal(
        clip.rgb[:, 8, 8, 0], [60, 64, 67, 71, 75, 79, 82, 86, 90, 94, 97, 101, 105, 109, 112, 116]
    )
    np.testing.assert_allclose(
        clip.world_from_cam, _poses(np.concatenate([[0.0], clip.streams["camera"].times_s]))[1:], atol=1e-9
    )
    assert clip.provenance.start_s == 2.0


def test_offset_clocks_meet_where_all_streams_run():
    """Gaze begins 0.7 s before the poses: clips start with the poses."""
    recording = _without(_recording(6.0, gaze_start_s=9.3, camera_start_s=10.0), "rgb")
    plan = plan_clips(recording, CONFIG)
    assert [window.start_s for window in plan.windows] == [10.0, 12.0]
    assert all(window.streams == ("camera", "gaze") for window in plan.windows)
    clip = next(cut_clips(recording, CONFIG))
    np.testing.assert_allclose(clip.world_from_cam[:, 2, 3], 10 + np.arange(60) / 30)
    # Gaze follows the picture's centred 24-of-32 crop.
    u = 0.4 + 0.02 * (0.7 + np.arange(60) / 30)
    np.testing.assert_allclose(clip.gaze[:, 0], (u * 32 - 4) / 24, atol=1e-6)
    assert plan.unused_s == pytest.approx(6.7 - 4.0, abs=0.02)  # gaze from 9.3 s, poses to 16 s


def test_any_span_keeps_what_only_some_streams_cover():
    recording = _recording(5.0, camera_start_s=2.0)
    config = replace(CONFIG, span="any", stride_s=1.0)
    windows = {window.start_s: window for window in plan_clips(recording, config).windows}
    assert windows[0.0].streams == ("gaze", "rgb") and "0 of 60" in windows[0.0].absent["camera"]
    assert windows[2.0].streams == ("camera", "gaze", "rgb")
    assert windows[4.0].streams == ("camera", "gaze") and "of 16 samples valid" in windows[4.0].absent["rgb"]


def test_a_gap_in_the_poses_makes_the_camera_absent_and_says_why():
    recording = _recording()
    camera = recording.streams["camera"]
    kept = (camera.times_s < 2.5) | (camera.times_s > 3.0)
    gappy = Stream(camera.values[kept], camera.is_valid[kept], camera.times_s[kept], camera.unit)
    recording = replace(recording, streams={**recording.streams, "camera": gappy})
    first, second = plan_clips(recording, CONFIG).windows
    assert "camera" in first.streams and "camera" not in second.streams
    assert "of 60 samples valid, wanted 60" in second.absent["camera"]


def test_blinks_are_not_filled_in():
    recording = _recording()
    gaze = recording.streams["gaze"]
    is_valid = ~((gaze.times_s > 0.5) & (gaze.times_s < 0.8))
    recording = replace(recording, streams={**recording.streams, "gaze": replace(gaze, is_valid=is_valid)})
    clip = next(cut_clips(recording, CONFIG))
    times_s = clip.streams["gaze"].times_s
    np.testing.assert_array_equal(clip.gaze_is_valid, (times_s < 0.505) | (times_s > 0.795))
    assert (clip.gaze[~clip.gaze_is_valid] == 0).all()


def test_single_invalid_sample_stays_invalid_and_nan_counts_as_invalid():
    times_s = np.arange(60) / 30
    values = np.full((60, 2), 0.5)
    values[18] = np.nan
    _, is_valid = track_at(_stream(values, times_s, "image"), times_s, max_gap_s=0.15)
    assert (~is_valid).nonzero()[0].tolist() == [18]


def test_gaze_outside_the_crop_is_invalid_up_to_the_margin():
    recording = _recording()
    gaze = recording.streams["gaze"]
    left = replace(gaze, values=np.tile([0.1, 0.5], (len(gaze.times_s), 1)))  # 3.2 of 32 px, the crop starts at 4
    recording = replace(recording, streams={**recording.streams, "gaze": left})
    assert "0 of 60" in plan_clips(recording, CONFIG).windows[0].absent["gaze"]
    assert "gaze" in plan_clips(recording, replace(CONFIG, gaze_margin=0.2)).windows[0].streams


def test_too_short_a_recording_is_an_error_that_names_it():
    with pytest.raises(RecordingTooShort, match=r"walk: found .*rgb 0\.000-1\.48.*wanted 2 s"):
        plan_clips(_recording(1.5), CONFIG)
    with pytest.raises(RecordingTooShort, match="all streams run.*camera begins after .* ends; clocks .* by time_unit"):
        plan_clips(_recording(3.0, camera_start_s=50.0), CONFIG)


@pytest.mark.parametrize(
    "numbers",
    [(1170, 1170, 639, 479), (150, 150, 159.5, 119.5), (4.2, 4.2, 319.5, 239.5), (0.9, 1.2, 0.5, 0.5)],
    ids=["of twice the size", "of half the size", "millimetres", "shares"],
)
def test_a_lens_of_another_picture_is_refused(numbers):
    recording = replace(_recording(), intrinsics=Intrinsics(640, 480, *numbers))
    with pytest.raises(ValueError, match=r"intrinsics: found the focal lengths .*wanted those of the whole 640x480"):
        plan_clips(recording, CONFIG)


def test_exactly_one_clip_fits_its_own_length():
    assert len(plan_clips(_recording(2.0), CONFIG).windows) == 1


def test_intrinsics_follow_crop_and_resize():
    """A point projects to the same place of the picture before and after."""
    intrinsics = Intrinsics(640, 480, 585.0, 590.0, 320.0, 240.0)
    crop = centre_crop(640, 480, aspect=1.0)
    small = crop_intrinsics(intrinsics, crop, width=64, height=64)
    points = np.array([[0.1, -0.2, 2.0], [-0.3, 0.25, 1.0]])
    before, after = project(points, intrinsics)[0], project(points, small)[0]
    in_image = (before + 0.5) / [640, 480]
    np.testing.assert_allclose(crop_gaze(in_image, crop), (after + 0.5) / 64, atol=1e-12)


def test_depth_is_looked_up_never_averaged_and_finds_valid_neighbours():
    depth = np.full((1, 90, 120), 2.0, np.float32)
    depth[:, :, 60:] = 5.0
    depth[:, ::2] = 0.0  # every other row is missing
    small = crop_depth(depth, centre_crop(120, 90, aspect=1.0), width=15, height=15)
    assert set(np.unique(small)) == {2.0, 5.0}
    assert (crop_depth(np.zeros((1, 9, 9)), centre_crop(9, 9, aspect=1.0), width=3, height=3) == 0).all()


def test_rgb_and_depth_of_other_shapes_are_refused():
    recording = _recording()
    depth = _stream(np.ones((150, 32, 24), np.float32), recording.streams["rgb"].times_s, "m")
    with pytest.raises(ValueError, match="different pictures"):
        plan_clips(replace(recording, streams={**recording.streams, "depth": depth}), CONFIG)


def test_captions_hold_until_the_next():
    recording = _recording()
    caption = _stream(np.array(["sits", "walks"]), np.array([0.0, 2.5]), "text")
    recording = replace(recording, streams={**recording.streams, "caption": caption})
    assert [clip.caption for clip in cut_clips(recording, CONFIG)] == ["sits", "walks"]


def test_keys_are_safe_and_tell_names_apart():
    assert clip_key("a_b-1", 3) == "a_b-1_000003"
    odd = clip_key("cut (1). x/y", 0)
    assert set(odd) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert odd != clip_key("cut-1-x-y", 0) and odd != clip_key("cut [1]. x/y", 0)
