"""Crops and pinhole views: pictures, depth, gaze and intrinsics stay in step, and lead back to the source."""

import json

import av
import numpy as np
import pytest

from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.clips.clip_alignment import ClipConfig, RectifyConfig, cut_clips, plan_clips
from egom2p.data.clips.cropping import depth_on_source, view_of_note
from egom2p.data.clips.upright import CLOCKWISE
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.geometry import CLOCKWISE_TURN, pixel_grid, project, rays

FISHEYE = Intrinsics(160, 120, 70.0, 70.0, 79.5, 59.5, "kannala_brandt", (0.05, -0.02, 0.004, -0.0007))
RADIAL = Intrinsics(160, 120, 110.0, 110.0, 81.0, 58.0, "opencv", (-0.2, 0.05, 0.001, -0.002))
NARROW = Intrinsics(200, 200, 300.0, 300.0, 99.5, 99.5)
RECTIFIED = ClipConfig(height=48, width=48, rectify=RectifyConfig(fov_deg=80))


def _world(directions):
    """Colours of a world far away and its distance: both smooth functions of where one looks."""
    x, y = directions[..., 0] / directions[..., 2], directions[..., 1] / directions[..., 2]
    colours = 127 + 100 * np.stack([np.sin(3 * x), np.sin(3 * y), np.sin(2 * x + 2 * y)], axis=-1)
    return np.rint(colours).astype(np.uint8), (2 + 0.5 * x + 0.3 * y).astype(np.float32)


def _recording(camera, gaze_ray=(0.2, -0.1, 1.0), with_pictures=True):
    directions, exists = rays(pixel_grid(camera), camera)
    colours, depth_m = _world(np.where(exists[..., None], directions, [0, 0, 1]))
    times_s, count = np.arange(75) / 30, 75
    valid = np.ones(count, bool)
    pixel = np.array(_pixel(camera, np.array(gaze_ray)))
    gaze = np.tile((pixel + 0.5) / [camera.width, camera.height], (count, 1))
    streams = {"gaze": Stream(gaze, valid, times_s, "image")}
    if with_pictures:
        streams["rgb"] = Stream(np.broadcast_to(colours, (count, *colours.shape)), valid, times_s, "uint8")
        depth_m = np.where(exists, depth_m, 0).astype(np.float32)
        streams["depth"] = Stream(np.broadcast_to(depth_m, (count, *depth_m.shape)), valid, times_s, "m")
    return Recording("r", streams, camera, Provenance("d", "r"))


def _pixel(camera, ray):
    return project(ray[None], camera)[0][0]


@pytest.mark.parametrize("camera", [FISHEYE, RADIAL], ids=["fisheye", "radial"])
def test_two_lenses_give_the_same_picture_depth_and_gaze(camera):
    """The oracle is the world itself seen through the pinhole, not a second resampling."""
    (clip,) = cut_clips(_recording(camera), RECTIFIED)
    pinhole = clip.intrinsics
    assert (pinhole.model, pinhole.width, pinhole.height) == ("pinhole", 48, 48)
    assert np.degrees(2 * np.arctan(24 / pinhole.fx)) == pytest.approx(80)
    colours, depth_m = _world(rays(pixel_grid(pinhole), pinhole)[0])
    is_seen = clip.depth_m[0] > 0
    assert is_seen[24, 24] and is_seen.mean() > 0.6
    error = np.abs(clip.rgb[0].astype(int) - colours)[is_seen[..., None].repeat(3, 2)]
    assert np.percentile(error, 95) <= 4  # of 255; half a source pixel at the rim
    np.testing.assert_allclose(clip.depth_m[0][is_seen], depth_m[is_seen], atol=0.015)
    u, v = (_pixel(pinhole, np.array([0.2, -0.1, 1.0])) + 0.5) / 48
    np.testing.assert_allclose(clip.gaze, np.tile([u, v], (60, 1)), atol=1e-6)


def test_cameras_of_60_and_110_degrees_agree_after_it():
    narrow = Intrinsics(160, 120, 138.6, 138.6, 79.5, 59.5)
    wide = Intrinsics(160, 120, 56.0, 56.0, 79.5, 59.5)
    config = ClipConfig(height=32, width=32, rectify=RectifyConfig(fov_deg=40))
    a, b = (next(cut_clips(_recording(camera), config)) for camera in (narrow, wide))
    assert np.abs(a.rgb.astype(int) - b.rgb).max() <= 12 and np.abs(a.depth_m - b.depth_m).max() < 0.02
    np.testing.assert_allclose(a.gaze, b.gaze, atol=1e-6)
    assert a.intrinsics == b.intrinsics
    cropped = ClipConfig(height=32, width=32)
    a, b = (next(cut_clips(_recording(camera), cropped)) for camera in (narrow, wide))
    assert np.abs(a.gaze - b.gaze).max() > 0.1  # what is said of as a hidden error


def test_what_the_lens_did_not_see_is_black_and_without_depth():
    config = ClipConfig(height=40, width=40, rectify=RectifyConfig(fov_deg=90))
    (clip,) = cut_clips(_recording(NARROW), config)
    half_width = np.tan(np.arctan(100 / 300)) * 20  # the pinhole's focal length is 20
    inside = np.abs(np.arange(40) - 19.5) < half_width - 1
    outside = np.abs(np.arange(40) - 19.5) > half_width + 1
    assert (clip.depth_m[0][np.ix_(inside, inside)] > 0).all() and clip.rgb[0][np.ix_(inside, inside)].any()
    assert not clip.depth_m[0][outside].any() and not clip.rgb[0][outside].any()
    assert clip.extra["picture"]["seen_fraction"] == pytest.approx((2 * half_width / 40) ** 2, abs=0.02)


def test_rectifying_needs_intrinsics():
    recording = _recording(FISHEYE)
    recording = Recording("r", recording.streams, None, recording.provenance)
    with pytest.raises(ValueError, match=r"r: clip\.rectify needs intrinsics"):
        plan_clips(recording, RECTIFIED)


@pytest.mark.parametrize("config", [RECTIFIED, ClipConfig(height=48, width=48)], ids=["pinhole", "crop"])
def test_the_note_of_a_clip_leads_back_to_the_source(config):
    recording = _recording(FISHEYE)
    (clip,) = cut_clips(recording, config)
    note = json.loads(json.dumps(clip.extra["picture"]))
    assert (note["source_width"], note["source_height"]) == (160, 120)
    back, exists = view_of_note(note).source_gaze(clip.gaze)
    assert exists.all()
    np.testing.assert_allclose(back, recording.streams["gaze"].values[:60], atol=1e-6)
    if config.rectify is None:
        assert (note["left"], note["top"], note["width"], note["height"]) == (20, 0, 120, 120)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_note_of_a_clip_knows_the_turn_that_a_person_added(tmp_path, degrees):
    write_video(tmp_path / "r" / "video.mp4", np.zeros((75, 18, 32, 3), np.uint8), 30)
    (tmp_path / "r" / "gaze.csv").write_text("\n".join(["timestamps,u,v", *(f"{k / 60},0.6,0.3" for k in range(150))]))
    (tmp_path / "r" / "recording.yaml").write_text(f"rgb: {{rotate: {degrees}}}")
    clip = next(cut_clips(PlainFolderReader(tmp_path / "r").read(0), ClipConfig(height=16, width=16)))
    note = clip.extra["picture"]
    assert note["rotated_deg"] == degrees
    back = CLOCKWISE[degrees].inverse
    assert back.size(note["source_width"], note["source_height"]) == (32, 18)
    gaze, _ = view_of_note(note).source_gaze(clip.gaze.astype(np.float64))
    np.testing.assert_allclose(back.points(gaze), np.tile([0.6, 0.3], (60, 1)), atol=1e-6)


@pytest.mark.parametrize("config", [RECTIFIED, ClipConfig(height=48, width=48)], ids=["pinhole", "crop"])
def test_depth_of_a_clip_lies_on_the_source(config):
    recording = _recording(FISHEYE)
    (clip,) = cut_clips(recording, config)
    whole = depth_on_source(clip.depth_m, view_of_note(clip.extra["picture"]))
    assert len(whole) == len(clip.depth_m) and whole.shape[2] / whole.shape[1] == pytest.approx(4 / 3, abs=0.03)
    rows = ((np.arange(whole.shape[1]) + 0.5) / whole.shape[1] * 120).astype(int)
    columns = ((np.arange(whole.shape[2]) + 0.5) / whole.shape[2] * 160).astype(int)
    source = recording.streams["depth"].values[0][np.ix_(rows, columns)]
    is_known = whole[0] > 0
    assert 0.4 < is_known.mean() < 1
    np.testing.assert_allclose(whole[0][is_known], source[is_known], atol=0.05)


def test_gaze_without_pictures_is_carried_into_the_same_crop(tmp_path):
    rows = [f"{k / 60},{0.4502 * 1600 - 0.5},{0.5 * 1200 - 0.5}" for k in range(150)]
    found = {}
    for name in ("alone", "with video"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "gaze.csv").write_text("\n".join(["timestamps,u,v", *rows]))
        (folder / "recording.yaml").write_text("gaze: {coordinates: pixel, width: 1600, height: 1200}")
        if name == "with video":
            write_video(folder / "video.mp4", np.zeros((75, 24, 32, 3), np.uint8), 30)
        found[name] = next(cut_clips(PlainFolderReader(folder).read(0), ClipConfig(height=24, width=24)))
    expected = (0.4502 * 1600 - 200) / 1200
    np.testing.assert_allclose(found["alone"].gaze, np.tile([expected, 0.5], (60, 1)), atol=1e-6)
    np.testing.assert_array_equal(found["alone"].gaze, found["with video"].gaze)
    assert found["alone"].extra["picture"]["left"] == 200


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("intrinsics: {width: 1600, height: 1200, fx: 9, fy: 9, cx: 1, cy: 1}", "1600x1200 .* 32x18"),
        ("intrinsics: {width: 180, height: 320, fx: 9, fy: 9, cx: 1, cy: 1}", "180x320 .* 32x18"),
        ("gaze: {width: 1600, height: 1200}", "1600x1200 .* 32x18"),
    ],
)
def test_another_aspect_is_refused_with_both_sizes(tmp_path, text, sizes):
    write_video(tmp_path / "r" / "video.mp4", np.zeros((75, 18, 32, 3), np.uint8), 30)
    (tmp_path / "r" / "gaze.csv").write_text("\n".join(["timestamps,u,v", *(f"{k / 60},0.5,0.5" for k in range(150))]))
    (tmp_path / "r" / "recording.yaml").write_text(text)
    with pytest.raises(ValueError, match=sizes):
        plan_clips(PlainFolderReader(tmp_path / "r").read(0), ClipConfig(height=8, width=8))


def test_intrinsics_of_another_size_are_scaled(tmp_path):
    write_video(tmp_path / "r" / "video.mp4", np.zeros((75, 18, 32, 3), np.uint8), 30)
    (tmp_path / "r" / "recording.yaml").write_text(
        "intrinsics: {width: 1920, height: 1080, fx: 1200, fy: 1200, cx: 959.5, cy: 539.5}"
    )
    (clip,) = cut_clips(PlainFolderReader(tmp_path / "r").read(0), ClipConfig(height=36, width=36))
    assert clip.intrinsics.fx == clip.intrinsics.fy == pytest.approx(1200 / 1080 * 36)
    assert clip.intrinsics.cx == clip.intrinsics.cy == pytest.approx(17.5)


def test_an_unknown_camera_model_is_refused_when_it_is_read(tmp_path):
    write_video(tmp_path / "r" / "video.mp4", np.zeros((75, 18, 32, 3), np.uint8), 30)
    (tmp_path / "r" / "recording.yaml").write_text(
        "intrinsics: {width: 32, height: 18, fx: 9, fy: 9, cx: 1, cy: 1, model: mei, distortion: [1, 2, 3]}"
    )
    with pytest.raises(ValueError, match=r"recording\.yaml: .*found camera model 'mei' with 3"):
        PlainFolderReader(tmp_path / "r").read(0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_intrinsics_of_the_sensor_turn_with_the_picture_of_a_turned_video(tmp_path, degrees):
    """Stored 40x24 with a note to turn it; the oracle is where a point of the stored picture goes."""
    stored = Intrinsics(400, 240, 300.0, 310.0, 190.0, 130.0, "opencv", (0.1, -0.05, 0.002, -0.003))
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[4:8, 28:32] = 255  # its middle lies at (29.5, 5.5)
    _write_turned(tmp_path / "r" / "video.mp4", picture, degrees)
    (tmp_path / "r" / "recording.yaml").write_text(
        "intrinsics: {width: 400, height: 240, fx: 300, fy: 310, cx: 190, cy: 130, model: opencv, "
        "distortion: [0.1, -0.05, 0.002, -0.003]}"
    )
    recording = PlainFolderReader(tmp_path / "r").read(0)
    frame = recording.streams["rgb"].values.read(np.array([0]))[0]
    v, u = (positions.mean() for positions in np.nonzero(frame[..., 0] > 128))
    ray, _ = rays(np.array([29.5, 5.5]), stored.resized(40, 24))
    if degrees == 180:  # its size does not tell which picture it is for: the upright one
        assert recording.intrinsics == stored
        return
    quarter = np.linalg.matrix_power(CLOCKWISE_TURN[:3, :3], degrees // 90)
    own = recording.intrinsics
    assert (own.width, own.height) == (24, 40)
    np.testing.assert_allclose(_pixel(own, ray @ quarter), [u, v], atol=0.3)


def _write_turned(path, picture, clockwise_degrees):
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv444p"
        for _ in range(75):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # version, flags, times, id, duration, layer, volume: then the matrix
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[clockwise_degrees]
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(content[:at] + matrix + content[at + 36 :])


def test_a_turned_video_with_the_sensors_intrinsics(door_dir):
    recording = PlainFolderReader(door_dir / "intrinsics_orientation" / "rec_rotated").read(0)
    rgb = recording.streams["rgb"].values
    assert rgb.height > rgb.width and (recording.intrinsics.width, recording.intrinsics.height) == (
        rgb.width,
        rgb.height,
    )
    clip = next(cut_clips(recording, ClipConfig(height=64, width=64)))
    assert (clip.intrinsics.fx, clip.intrinsics.fy) == pytest.approx((66.7, 66.7), abs=0.05)
