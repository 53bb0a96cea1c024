"""Folders of pictures: their order, times, partners in depth, and what brings them upright."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_cases import UPRIGHT, corners_of, number_of, numbered, write_case

from egom2p.data.clips.clip_alignment import ClipConfig, cut_clips
from egom2p.data.clips.image_files import (
    RgbImages,
    frame_ticks,
    image_sequence,
    list_images,
    read_picture,
    times_in_names,
)
from egom2p.data.clips.upright import OF_EXIF
from egom2p.data.recordings.conversion import convert
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.generation.generation_inputs import kind_of_input, read_recordings
from egom2p.geometry import CLOCKWISE_TURN, project, write_tum

_SIZE = 64, 48


def write_rgb(folder, names):
    """Picture k carries number k."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(numbered(number % 256, *_SIZE)).save(folder / name)


def write_depth(folder, names, values=None):
    """Frame k lies 1000 + values[k] mm away."""
    folder.mkdir(parents=True)
    for number, name in zip(range(len(names)) if values is None else values, names, strict=True):
        Image.fromarray(np.full(_SIZE[::-1], 1000 + number, np.uint16)).save(folder / name)


def read_one(root):
    return PlainFolderReader(root).read(0)


def seen(stream, rows=None):
    frames = stream.values.read(np.arange(len(stream.values)) if rows is None else np.asarray(rows))
    return [number_of(frame) for frame in frames]


def millimetres(stream):
    depth_m = stream.values.read(np.arange(len(stream.values)))
    return np.rint(depth_m[:, 0, 0] * 1000).astype(int).tolist()


@pytest.mark.parametrize("pattern", ["frame_{}.png", "{}.png", "Frame {} .PNG", "a1_b{}.jpg"])
def test_numbers_in_names_are_numbers(tmp_path, pattern):
    write_rgb(tmp_path / "rgb", [pattern.format(number) for number in range(25)])
    (tmp_path / "rgb" / "._0.png").write_bytes(b"\0" * 16)
    (tmp_path / "rgb" / ".DS_Store").write_bytes(b"Bud1")
    rgb = read_one(tmp_path).streams["rgb"]
    assert seen(rgb) == list(range(25))
    np.testing.assert_allclose(rgb.times_s, np.arange(25) / 30)
    (found,) = read_recordings(str(tmp_path / "rgb"), kind_of_input(str(tmp_path / "rgb")), rate_hz=10)
    assert seen(found.streams["rgb"]) == list(range(25)) and found.streams["rgb"].times_s[-1] == pytest.approx(2.4)


def test_missing_numbers_are_missing_frames(tmp_path):
    write_rgb(tmp_path / "rgb", [f"{number:04d}.png" for number in (10, 11, 14, 15)])
    np.testing.assert_allclose(read_one(tmp_path).streams["rgb"].times_s, np.array([0, 1, 4, 5]) / 30)
    write_rgb(tmp_path / "even" / "rgb", [f"{number}.png" for number in (0, 10, 20, 30)])
    np.testing.assert_allclose(read_one(tmp_path / "even").streams["rgb"].times_s, np.arange(4) / 30)
    write_rgb(tmp_path / "wild" / "rgb", [f"{number}.png" for number in (3, 5000, 90001)])
    with pytest.raises(ValueError, match="count no frames; say their times"):
        read_one(tmp_path / "wild")


@pytest.mark.parametrize(
    ("names", "first_s"),
    [
        ([str(1403636579763555584 + 50_000_000 * k) for k in range(6)], 1403636579.763555584),
        ([str(1560004890349546 + 50_000 * k) for k in range(6)], 1560004890.349546),
        ([f"{1305031102.175304 + 0.05 * k:.6f}" for k in range(6)], 1305031102.175304),
        (["0.5", "0.55", "0.6", "0.65", "0.7", "0.75"], 0.5),
    ],
)
def test_names_that_are_times_are_the_times(tmp_path, names, first_s):
    write_rgb(tmp_path / "rgb", [f"{name}.png" for name in names])
    write_depth(tmp_path / "depth", [f"{name}.png" for name in names[1::2]], values=[1, 3, 5])
    recording = read_one(tmp_path)
    np.testing.assert_allclose(recording.streams["rgb"].times_s, first_s + 0.05 * np.arange(6), rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        recording.streams["depth"].times_s, recording.streams["rgb"].times_s[1::2], rtol=0, atol=0
    )
    (found,) = read_recordings(str(tmp_path / "rgb"), "pictures")
    np.testing.assert_array_equal(found.streams["rgb"].times_s, recording.streams["rgb"].times_s)


def test_a_tum_listing_gives_times_and_files(tmp_path):
    write_rgb(tmp_path / "rgb", [f"{name}.png" for name in "cab"])  # 0, 1, 2
    write_depth(tmp_path / "depth", ["x.png", "y.png"])
    (tmp_path / "rgb.txt").write_text("# color images\n1.5 rgb/c.png\n1.6 rgb/a.png\n1.75 rgb/b.png\n")
    (tmp_path / "depth.txt").write_text("1.61 depth/y.png\n1.7 depth/x.png\n")
    recording = read_one(tmp_path)
    assert seen(recording.streams["rgb"]) == [0, 1, 2] and recording.unused == ()
    assert recording.streams["rgb"].times_s.tolist() == [1.5, 1.6, 1.75]
    assert millimetres(recording.streams["depth"]) == [1001, 1000]
    assert recording.streams["depth"].times_s.tolist() == [1.61, 1.7]
    (note,) = recording.notes  # 1/5000 m there, millimetres here
    assert note.startswith("depth: nothing says its unit, read as millimetres (its first frame is 1 m away)")
    assert note.endswith("depth.txt is TUM RGB-D's listing, whose depth is 1/5000 m (0.0002)")
    (tmp_path / "recording.yaml").write_text("depth: {metres_per_unit: 0.0002}")
    recording = read_one(tmp_path)
    assert recording.notes == () and millimetres(recording.streams["depth"]) == [200, 200]
    (tmp_path / "rgb.txt").write_text("1.5 rgb/c.png\n")
    assert read_one(tmp_path).notes == ("rgb.txt names 1 pictures, 2 more lie beside them and are left out",)
    (tmp_path / "rgb.txt").write_text("1.5 rgb/gone.png\n")
    with pytest.raises(ValueError, match=r"gone\.png: no such picture; rgb\.txt names it"):
        read_one(tmp_path)
    (tmp_path / "rgb.txt").write_text("1.5\n")
    with pytest.raises(ValueError, match=r"rgb\.txt, line 1: found .*, wanted a time in seconds and a file"):
        read_one(tmp_path)


def test_depth_belongs_to_the_picture_of_its_number(tmp_path):
    """Padded here, unpadded there, some missing: the rank says nothing."""
    write_rgb(tmp_path / "rgb", [f"{number:04d}.png" for number in range(24)])
    kept = [0, 1, 2, 9, 10, 11, 23]
    write_depth(tmp_path / "depth", [f"{number}.png" for number in kept], values=kept)
    streams = read_one(tmp_path).streams
    assert millimetres(streams["depth"]) == [1000 + number for number in kept]
    np.testing.assert_array_equal(streams["depth"].times_s, streams["rgb"].times_s[kept])


@pytest.mark.parametrize(
    ("rgb", "depth", "message"),
    [
        (range(10), range(1, 11), "number 10 has no picture"),
        (range(10), range(100, 110), "number 100 has no picture"),
        (range(10), range(0, 22, 2), "number 10 has no picture"),
    ],
)
def test_depth_without_a_picture_of_its_number_is_refused(tmp_path, rgb, depth, message):
    write_rgb(tmp_path / "rgb", [f"{number:04d}.png" for number in rgb])
    write_depth(tmp_path / "depth", [f"{number:04d}.png" for number in depth])
    with pytest.raises(ValueError, match=f"depth: found .*{message}; say depth.rate_hz"):
        read_one(tmp_path)
    (tmp_path / "recording.yaml").write_text("depth: {rate_hz: 30}")
    assert len(read_one(tmp_path).streams["depth"].values) == len(depth)


def test_depth_beside_a_video(tmp_path):
    write_case(tmp_path / "video.mp4", "h264", range(8))
    write_depth(tmp_path / "depth", [f"{number}.png" for number in range(1, 9)])
    np.testing.assert_allclose(read_one(tmp_path).streams["depth"].times_s, np.arange(8) / 30, atol=1e-6)
    (tmp_path / "depth" / "1.png").rename(tmp_path / "depth" / "0.png")
    (tmp_path / "depth" / "8.png").unlink()
    np.testing.assert_allclose(
        read_one(tmp_path).streams["depth"].times_s, np.array([0, 2, 3, 4, 5, 6, 7]) / 30, atol=1e-6
    )
    (tmp_path / "depth" / "0.png").unlink()
    with pytest.raises(ValueError, match="numbered from 2 for the 8 frames of a video, which may count from 0 or 1"):
        read_one(tmp_path)
    shutil.rmtree(tmp_path / "depth")
    np.save(tmp_path / "depth.npy", np.ones((7, 48, 64), np.float32))
    with pytest.raises(ValueError, match="7 depth frames for 8 pictures and no numbers or times"):
        read_one(tmp_path)


def test_pictures_of_two_kinds_or_sizes_are_refused(tmp_path):
    write_rgb(tmp_path / "rgb", ["0.jpg", "1.JPEG", "2.jpg"])
    assert len(read_one(tmp_path).streams["rgb"].values) == 3
    Image.fromarray(numbered(3, 32, 24)).save(tmp_path / "rgb" / "3.jpg")
    with pytest.raises(ValueError, match=r"3\.jpg: found a picture of 32x24, wanted 64x48"):
        seen(read_one(tmp_path).streams["rgb"])
    Image.fromarray(numbered(3, *_SIZE)).save(tmp_path / "rgb" / "4.png")
    with pytest.raises(ValueError, match=r"4\.png: found \.png beside 0\.jpg, wanted pictures of one kind"):
        read_one(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_brings_pictures_upright(tmp_path, orientation, suffix):
    """A picture stored as the note says is read upright, whichever of the eight notes it is."""
    upright = numbered(77, *_SIZE)
    turn = OF_EXIF[orientation]
    stored = upright[:, ::-1] if turn.mirrors else upright
    stored = stored[::-1] if turn.flips else stored
    stored = np.swapaxes(stored, 0, 1) if turn.swaps else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"0{suffix}", exif=exif)
    images = RgbImages([tmp_path / f"0{suffix}"])
    picture = images.read(np.zeros(1, int))[0]
    assert (images.width, images.height) == _SIZE and picture.shape == upright.shape
    assert corners_of(picture) == UPRIGHT and number_of(picture) == 77
    np.testing.assert_array_equal(read_picture(tmp_path / f"0{suffix}")[0], picture)


def test_pixels_of_every_kind(tmp_path):
    """Grey, palette, CMYK, 16 bits, transparency: the colours that a viewer shows."""
    colour = Image.fromarray(numbered(5, *_SIZE))
    colour.convert("L").save(tmp_path / "grey.png")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    colour.convert("1").save(tmp_path / "bits.png")
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "palette.png", "cmyk.jpg", "bits.png", "deep.png"):
        picture = RgbImages([tmp_path / name]).read(np.zeros(1, int))[0]
        assert picture.shape == (48, 64, 3) and number_of(picture) == 5, name
    np.testing.assert_array_equal(
        RgbImages([tmp_path / "deep.png"]).read([0]), RgbImages([tmp_path / "grey.png"]).read([0])
    )
    alpha = np.zeros((4, 4, 4), np.uint8)
    alpha[0, 0] = (10, 20, 30, 255)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    picture = RgbImages([tmp_path / "alpha.png"]).read([0])[0]
    assert picture[0, 0].tolist() == [10, 20, 30] and (picture[1:] == 255).all()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(ValueError, match=r"real\.tif: found a picture of 32 bits"):
        RgbImages([tmp_path / "real.tif"]).read([0])


def test_a_picture_that_is_cut_or_a_bomb_is_one_error_that_names_it(tmp_path, monkeypatch):
    write_rgb(tmp_path / "rgb", ["0.jpg", "1.jpg"])
    content = (tmp_path / "rgb" / "1.jpg").read_bytes()
    (tmp_path / "rgb" / "1.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"1\.jpg: not a readable image: .*[Tt]runcated"):
        seen(read_one(tmp_path).streams["rgb"])
    for pixels, is_bomb in ((2000, False), (1000, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        if is_bomb:
            with pytest.raises(ValueError, match=r"0\.jpg: not a readable image: Image size \(3072 pixels\)"):
                RgbImages([tmp_path / "rgb" / "0.jpg"])
        else:
            assert len(RgbImages([tmp_path / "rgb" / "0.jpg"])) == 1  # large, but no bomb: no warning


def test_large_pictures_are_never_all_in_memory(tmp_path):
    (tmp_path / "rgb").mkdir()
    for number in range(16):
        Image.new("RGB", (2000, 1500), (number * 10, 0, 0)).save(tmp_path / "rgb" / f"{number}.bmp")
    (tmp_path / "recording.yaml").write_text("rgb: {rate_hz: 8}")
    recording = read_one(tmp_path)
    tracemalloc.start()
    (clip,) = cut_clips(recording, ClipConfig(height=32, width=32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.rgb[:, 5, 5, 0].tolist() == [number * 10 for number in range(16)]
    assert peak < 4 * 2000 * 1500 * 3  # of sixteen


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_everything_turns_with_the_picture_of_a_camera_on_its_side(tmp_path, rotate, rng):
    """A point of the world keeps its pixel, depth and gaze: what was on it in the stored picture is on it upright."""
    upright = numbered(9, 48, 64) if rotate != 180 else numbered(9, *_SIZE)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "depth").mkdir()
    stored = np.ascontiguousarray(np.rot90(upright, rotate // 90))
    depth_mm = rng.integers(900, 3000, (48, 64)).astype(np.uint16)
    for number in range(3):
        Image.fromarray(stored).save(tmp_path / "rgb" / f"{number}.png")
        Image.fromarray(depth_mm).save(tmp_path / "depth" / f"{number}.png")
    (tmp_path / "gaze.csv").write_text("time,u,v\n0,0.25,0.125\n0.03,0.9,0.4\n0.06,,\n")
    write_tum(tmp_path / "trajectory.txt", np.arange(3) / 30, np.tile(np.eye(4), (3, 1, 1)))
    intrinsics = "{width: 64, height: 48, fx: 50, fy: 60, cx: 30, cy: 20}"
    settings = tmp_path / "recording.yaml"
    settings.write_text(f"intrinsics: {intrinsics}")
    before = read_one(tmp_path)
    settings.write_text(f"intrinsics: {intrinsics}\nrgb: {{rotate: {rotate}}}")
    after = read_one(tmp_path)
    picture = after.streams["rgb"].values.read([1])[0]
    np.testing.assert_array_equal(picture, upright)
    assert after.intrinsics.width == picture.shape[1] == after.streams["rgb"].values.width
    turned = after.streams["depth"].values.read([0])[0]
    np.testing.assert_allclose(turned, np.rot90(depth_mm, -rotate // 90) / 1000, rtol=1e-6)
    # A point in front of the camera.
    point_m = np.array([0.3, -0.2, 2.0])
    pixels = []
    for recording in (before, after):
        cam_from_world = np.linalg.inv(recording.streams["camera"].values[0])
        in_camera = cam_from_world[:3, :3] @ point_m + cam_from_world[:3, 3]
        pixels.append(project(in_camera[None], recording.intrinsics)[0][0])
    marked = np.zeros((48, 64))
    marked[tuple(np.rint(pixels[0][::-1]).astype(int))] = 1
    row, column = np.argwhere(np.rot90(marked, -rotate // 90))[0]
    np.testing.assert_allclose(pixels[1], [column, row], atol=0.51)
    u, v = after.streams["gaze"].values[0]
    wanted = {90: (1 - 0.125, 0.25), 180: (0.75, 0.875), 270: (0.125, 0.75)}[rotate]
    np.testing.assert_allclose((u, v), wanted)
    assert after.streams["gaze"].is_valid.tolist() == [True, True, False]
    settings.write_text(f"intrinsics: {intrinsics}\nrgb: {{rotate: {rotate}, rotates: [depth, intrinsics]}}")
    np.testing.assert_array_equal(read_one(tmp_path).streams["gaze"].values, before.streams["gaze"].values)


def test_poses_whose_axes_are_turned_are_upright_already(tmp_path):
    write_rgb(tmp_path / "rgb", ["0.png", "1.png"])
    write_tum(tmp_path / "trajectory.txt", np.arange(2) / 30, np.tile(np.eye(4), (2, 1, 1)))
    poses = []
    for axes in ("opencv", "turned"):
        (tmp_path / "recording.yaml").write_text(f"rgb: {{rotate: 90}}\ncamera: {{axes: {axes}}}")
        poses.append(read_one(tmp_path).streams["camera"].values)
    np.testing.assert_allclose(poses[0], poses[1], atol=1e-12)
    np.testing.assert_allclose(poses[0][0], CLOCKWISE_TURN, atol=1e-12)


def test_intrinsics_of_the_stored_picture_go_with_it(tmp_path):
    """Of a phone's sensor that lies on its side, and of pixels that are not square."""
    one = 1 << 16
    (tmp_path / "a").mkdir()
    write_case(tmp_path / "a" / "video.mp4", "h264", range(4), matrix=(0, one, 0, -one, 0, 0, 0, 0, 1 << 30))
    (tmp_path / "a" / "recording.yaml").write_text(
        "intrinsics: {width: 128, height: 96, fx: 100, fy: 110, cx: 60, cy: 40}"
    )
    found = read_one(tmp_path).intrinsics
    assert (found.width, found.height, found.fx, found.fy, found.cx, found.cy) == (96, 128, 110, 100, 55, 60)
    (tmp_path / "a" / "recording.yaml").write_text(
        "intrinsics: {width: 96, height: 128, fx: 100, fy: 110, cx: 60, cy: 40}"
    )
    assert read_one(tmp_path).intrinsics.fx == 100


def test_a_picture_whose_pixels_are_wide_takes_its_intrinsics_along(tmp_path):
    write_case(tmp_path / "video.mp4", "h264", range(4), sample_aspect_ratio=2)
    (tmp_path / "recording.yaml").write_text("intrinsics: {width: 128, height: 96, fx: 50, fy: 100, cx: 63.5, cy: 40}")
    recording = read_one(tmp_path)
    assert recording.intrinsics.fx == recording.intrinsics.fy == 100 and recording.intrinsics.width == 256
    assert recording.intrinsics.cx == 127.5 and "not square" in recording.notes[0]


def test_hidden_files_are_not_there_and_suffixes_have_no_case(tmp_path):
    root = tmp_path / "in"
    (root / "walk").mkdir(parents=True)
    write_case(tmp_path / "v.mp4", "h264", range(4))
    shutil.copy(tmp_path / "v.mp4", root / "walk" / "GOPR0001.MP4")
    for name in ("._GOPR0001.MP4", ".DS_Store"):
        (root / "walk" / name).write_bytes(b"\0\5\x16\7" * 4)
    assert seen(read_one(root).streams["rgb"]) == [0, 1, 2, 3]
    shutil.copy(root / "walk" / "GOPR0001.MP4", root / "walk" / "b.mp4")
    assert kind_of_input(str(root / "walk")) == "videos"
    names = [recording.name for recording in read_recordings(str(root / "walk"), "videos")]
    assert names == ["GOPR0001", "b"]
    assert [folder.name for folder in convert(root / "walk", tmp_path / "out")] == names
    assert list_images(root / "walk") == []


@pytest.mark.parametrize("name", ["unpadded_pictures", "exif_pictures"])
def test_found_cases_of_picture_folders(name):
    folder = Path(__file__).resolve().parents[3] / "shared" / "cases" / "door" / name
    if not folder.is_dir():
        pytest.skip(f"no found case at {folder}")
    rgb = PlainFolderReader(folder / "rec").read(0).streams["rgb"]
    for row in (0, 2, 10, 45):
        picture = rgb.values.read([row])[0]
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = picture[top : top + side, left : left + side]
        assert (number_of(square), corners_of(square)) == (row, UPRIGHT)


def test_windows_that_overlap_read_a_frame_once(tmp_path):
    write_rgb(tmp_path / "rgb", [f"{number}.png" for number in range(48)])
    (tmp_path / "recording.yaml").write_text("rgb: {rate_hz: 8}")
    recording = read_one(tmp_path)
    images, asked = recording.streams["rgb"].values, []
    plain_read = images.read
    images.read = lambda indices: asked.extend(indices) or plain_read(indices)
    config = ClipConfig(height=48, width=48, stride_s=0.5)
    clips = list(cut_clips(recording, config))
    assert asked == list(range(48)) and len(clips) == 9
    alone = list(cut_clips(recording, ClipConfig(height=48, width=48, stride_s=2.0)))
    np.testing.assert_array_equal(clips[4].rgb, alone[1].rgb)


def test_a_video_that_lies_on_its_side_is_turned_when_told(tmp_path):
    write_case(tmp_path / "v.mp4", "h264", range(4), matrix=(0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
    path = str(tmp_path / "v.mp4")
    (recording,) = read_recordings(path, "video", rotate=270)
    rgb = recording.streams["rgb"].values
    assert (rgb.width, rgb.height) == (128, 96) and corners_of(rgb.read([1])[0]) == UPRIGHT
    with pytest.raises(ValueError, match="rotate=90 is for videos and pictures; a recording says it"):
        next(read_recordings(str(tmp_path), "folder", rotate=90))


@pytest.mark.parametrize(
    "names",
    [
        [f"frame_{number / 15:.3f}" for number in range(20)],
        [f"rgb_{1305031102 + number / 15:.6f}" for number in range(20)],
        [f"2024-01-01T00-00-{number / 15:09.6f}" for number in range(20)],
        [f"cam_{1403636579763555584 + number * 10**9 // 15}" for number in range(20)],
    ],
)
def test_times_in_names_may_follow_words(names):
    times_s = times_in_names([Path(f"{name}.png") for name in names])
    np.testing.assert_allclose(times_s - times_s[0], np.arange(20) / 15, atol=1e-3)


def test_tenths_in_names_are_in_order_behind_words_too(tmp_path):
    for name in ("f_0.1", "f_0.25", "f_0.3", "f_10.0"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    assert [path.stem for path in image_sequence(tmp_path)] == ["f_0.1", "f_0.25", "f_0.3", "f_10.0"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["left_0001", "left_0002", "right_0001", "right_0002"], "right_0001.png: found the number of left_0001.png"),
        (["cam0_0", "cam0_1", "cam1_0", "cam1_1"], "cam1_0.png: found the number of cam0_0.png"),
        (["003", "3", "4"], "found the number of 003.png"),
        (["1", "2", "thumb"], "thumb.png: found no number"),
    ],
)
def test_a_folder_of_two_sequences_or_with_a_stranger_is_refused(tmp_path, names, problem):
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=problem):
        image_sequence(tmp_path)


def test_names_whose_times_cannot_be_told_count_no_frames():
    with pytest.raises(ValueError, match="whose times cannot be told"):
        frame_ticks([Path(f"take-0{minute}-00.5.png") for minute in range(3)])
