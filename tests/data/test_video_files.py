import importlib.util
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_cases import (
    CODECS,
    HEIGHT,
    TIMINGS,
    UPRIGHT,
    WIDTH,
    Codec,
    corners_of,
    frames_right,
    number_of,
    numbered,
    remux,
    write_case,
    written_cases,
)

from egom2p.data.clips.upright import OF_EXIF, turn_of_matrix
from egom2p.data.clips.video_files import encode_webm, open_video, write_video

_ONE = 1 << 16
DECODERS = ["pyav", *(name for name in ("decord", "torchcodec") if importlib.util.find_spec(name))]


@pytest.fixture
def frames(rng):
    """Twenty smooth, moving pictures (20, 48, 64, 3)."""
    x, y, t = np.meshgrid(np.arange(64), np.arange(48), np.arange(20))
    picture = np.stack([x * 3 + t, y * 4 + 2 * t, x + y + 5 * t], axis=-1) % 256
    return np.ascontiguousarray(np.moveaxis(picture, 2, 0).astype(np.uint8))


@pytest.fixture(autouse=True)
def quiet():
    """Encoders and damaged files write to stderr."""
    av.logging.set_level(av.logging.PANIC)
    yield
    av.logging.set_level(None)


def cases_dir() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "cases" / "door"
    if not folder.is_dir():
        pytest.skip(f"no found cases at {folder}")
    return folder


def numbers(video, rows):
    return [number_of(frame) for frame in video.read(np.asarray(rows))]


def test_real_video_reads_the_same_with_all_decoders(real_data_dir):
    path = next((real_data_dir / "ego4d_clip_lavila").glob("*.mp4"))
    video = open_video(path)
    assert (len(video), video.width, video.height) == (60, 384, 288)
    np.testing.assert_allclose(video.times_s, np.arange(60) / 30, atol=1e-6)
    all_frames = video.read(np.arange(60))
    np.testing.assert_array_equal(video.read(np.array([41, 3, 3])), all_frames[[41, 3, 3]])
    for decoder in DECODERS:
        np.testing.assert_array_equal(open_video(path, decoder=decoder).read(np.arange(60)), all_frames)


# The whole table (docs/results/video_decoding.md) is made by benchmarks/video_decoding.py.
_PAIRS = [("h264 B", container) for container in ("mp4", "mkv", "avi", "ts", "flv")]
_PAIRS += [
    ("hevc open", "mp4"),
    ("hevc open", "ts"),
    ("hevc 10 bit", "mkv"),
    ("h264 open", "mov"),
    ("h264 refresh", "mp4"),
]
_PAIRS += [
    ("av1", "mp4"),
    ("av1 10 bit", "mkv"),
    ("vp9", "webm"),
    ("vp8", "webm"),
    ("mpeg4 B", "mp4"),
    ("mpeg4 B", "avi"),
]
_PAIRS += [("mpeg2", "ts"), ("mpeg2", "mpg"), ("mpeg1", "mkv"), ("wmv2", "wmv"), ("mjpeg", "avi"), ("mjpeg", "mov")]
_PAIRS += [("prores", "mov"), ("ffv1", "mkv"), ("png", "mov"), ("rawvideo", "avi"), ("gif", "gif"), ("apng", "apng")]


@pytest.mark.parametrize(("codec", "container"), _PAIRS)
def test_every_decoder_returns_the_frame_of_the_time_or_refuses(tmp_path, rng, codec, container):
    """Frames are asked for one by one in any order by their time, and read as numbers."""
    seen = 0
    for _, _, timing, path, times_s in written_cases(tmp_path, [codec], [container]):
        seen += 1
        for decoder in DECODERS:
            try:
                video = open_video(path, decoder=decoder)
                right = frames_right(video, times_s, rng)
            except ValueError as error:
                is_unordered = container == "avi" and timing == "vfr" and "order of decoding only" in str(error)
                assert decoder != "pyav" or is_unordered, error
                continue
            assert right == len(times_s), (timing, decoder)
            np.testing.assert_allclose(video.times_s, times_s, atol=2e-3 if container != "gif" else 0.011)
    assert seen


@pytest.mark.parametrize("codec", ["h264 B", "hevc open", "mpeg4 B"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_trimmed_file_shows_what_its_edit_list_shows(tmp_path, codec, suffix):
    """The hidden frames are there, for decoding; they are neither missing nor shown."""
    write_case(tmp_path / "whole.mp4", codec, TIMINGS["constant"])
    remux(tmp_path / "whole.mp4", tmp_path / f"trimmed{suffix}", hide_before=17)
    video = open_video(tmp_path / f"trimmed{suffix}")
    assert numbers(video, np.arange(len(video))[::-1]) == list(range(47, 16, -1))
    np.testing.assert_allclose(video.times_s, np.arange(31) / 30, atol=1e-4)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264 open", ".mp4"), ("h264 open", ".mkv"), ("hevc open", ".mp4"), ("hevc open", ".ts")]
)
def test_a_file_that_begins_between_key_frames_begins_at_the_first_that_decodes(tmp_path, codec, suffix):
    write_case(tmp_path / "whole.mp4", codec, TIMINGS["constant"])
    remux(tmp_path / "whole.mp4", tmp_path / f"rest{suffix}", skip=8)
    video = open_video(tmp_path / f"rest{suffix}")
    assert numbers(video, np.arange(len(video))) == list(range(12, 48))


def test_a_stream_that_starts_later_than_the_sound_starts_at_0(tmp_path):
    path = tmp_path / "late.mp4"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=8000)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for block in range(8):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 8000, 1024 * block
            container.mux(audio.encode(sound))
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            picture.pts, picture.time_base = 12 + number, Fraction(1, 30)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    video = open_video(path)
    assert video.times_s[0] == 0 and numbers(video, [9, 0, 4]) == [9, 0, 4]


def test_frames_with_one_time_are_left_out_and_told(tmp_path):
    path = tmp_path / "twice.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1000)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number, milliseconds in enumerate([0, 33, 33, 67, 100]):
            picture = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            for packet in stream.encode(picture):
                packet.pts = packet.dts = milliseconds
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)
    video = open_video(path)
    assert numbers(video, [3, 0, 1, 2]) == [4, 0, 1, 3] and video.times_s.tolist() == [0, 0.033, 0.067, 0.1]
    assert video.notes == ("1 frames have the time of the frame before them and are left out",)


def test_one_frame_is_decoded_once_when_read_in_order(tmp_path, monkeypatch):
    write_case(tmp_path / "v.mp4", "h264 B", TIMINGS["constant"])
    video, decoded = open_video(tmp_path / "v.mp4"), []
    rows = type(video)._rows

    def counted(self, stream):
        for row, frame in rows(self, stream):
            decoded.append(row)
            yield row, frame

    monkeypatch.setattr(type(video), "_rows", counted)
    for first in range(0, 40, 4):
        video.read(np.arange(first, first + 4))
    assert decoded == list(range(40))


_MATRICES = {  # a b u c d v x y w -> corners of what is shown, turned by hand
    (0, _ONE, -_ONE, 0): "BRWG",
    (-_ONE, 0, 0, -_ONE): "WBGR",
    (0, -_ONE, _ONE, 0): "GWRB",
    (-_ONE, 0, 0, _ONE): "GRWB",
    (_ONE, 0, 0, -_ONE): "BWRG",
    (0, _ONE, _ONE, 0): "RBGW",
    (0, -_ONE, -_ONE, 0): "WGBR",
}


@pytest.mark.parametrize(("matrix", "corners"), _MATRICES.items())
def test_a_display_matrix_turns_and_mirrors(tmp_path, matrix, corners):
    a, b, c, d = matrix
    write_case(tmp_path / "v.mp4", "h264", range(4), matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    video = open_video(tmp_path / "v.mp4")
    picture = video.read(np.array([2]))[0]
    assert corners_of(picture) == corners
    assert picture.shape[:2] == (video.height, video.width) == ((HEIGHT, WIDTH) if a else (WIDTH, HEIGHT))
    assert (video.stored_height, video.stored_width) == (HEIGHT, WIDTH)


def test_another_angle_is_refused(tmp_path):
    half = round(_ONE * 0.5**0.5)
    write_case(tmp_path / "v.mp4", "h264", range(4), matrix=(half, half, 0, -half, half, 0, 0, 0, 1 << 30))
    with pytest.raises(ValueError, match=r"v\.mp4: .*turned by 45\.0 degrees.*wanted quarter turns"):
        open_video(tmp_path / "v.mp4")


def test_a_turn_moves_points_as_it_moves_pictures(rng):
    """A pixel found again after the turn lies where its point was moved to."""
    picture = np.zeros((1, 4, 6), np.uint8)
    picture[0, 1, 4] = 1
    for turn in OF_EXIF.values():
        turned = turn.frames(picture)
        _, row, column = (int(axis[0]) for axis in np.nonzero(turned))
        width, height = turn.size(6, 4)
        assert turned.shape == (1, height, width)
        u, v = turn.points(np.array([[4.5 / 6, 1.5 / 4]]))[0]
        np.testing.assert_allclose((u * width, v * height), (column + 0.5, row + 0.5))
    with pytest.raises(ValueError, match="x: .*quarter turns"):
        turn_of_matrix([0] * 9, where="x")


def test_pixels_become_square(tmp_path):
    write_case(tmp_path / "v.mp4", "h264", range(4), sample_aspect_ratio=Fraction(4, 3))
    video = open_video(tmp_path / "v.mp4")
    assert (video.width, video.height, video.stored_width) == (171, HEIGHT, WIDTH)
    picture = video.read(np.array([3]))[0]
    assert picture.shape == (HEIGHT, 171, 3) and number_of(picture) == 3 and corners_of(picture) == UPRIGHT
    write_case(tmp_path / "broken.mkv", "h264", range(4), sample_aspect_ratio=Fraction(40, 1))
    with pytest.raises(ValueError, match=r"broken\.mkv: .*40 times as wide as high"):
        open_video(tmp_path / "broken.mkv")


def test_material_that_needs_a_word_gets_one(tmp_path, monkeypatch):
    monkeypatch.setitem(CODECS, "interlaced", Codec("libx264", options={"x264-params": "interlaced=1"}))
    write_case(tmp_path / "woven.mkv", "interlaced", range(4))
    assert "interlaced" in open_video(tmp_path / "woven.mkv").notes[0]
    for transfer, name in ((16, "PQ"), (18, "HLG"), (1, "BT.2020")):
        path = tmp_path / f"{name}.mkv"
        write_case(path, "hevc 10 bit", range(4), color_primaries=9, color_trc=transfer, colorspace=9)
        video = open_video(path)
        assert name in video.notes[0] and numbers(video, [3, 1]) == [3, 1]
    write_case(tmp_path / "alpha.mov", "prores alpha", range(4))
    assert "transparency" in open_video(tmp_path / "alpha.mov").notes[0]
    write_case(tmp_path / "plain.mp4", "h264", range(4))
    assert open_video(tmp_path / "plain.mp4").notes == ()


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_cover_picture_is_not_the_video(tmp_path, is_marked):
    path = tmp_path / "cover.mkv"
    with av.open(str(path), "w") as container:
        cover, video = container.add_stream("mjpeg", rate=30), container.add_stream("libx264", rate=30)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if is_marked:
            cover.disposition = av.stream.Disposition.attached_pic
        for number in range(12):
            if number == 0:
                picture = av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")
                container.mux(cover.encode(picture))
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(video.encode(None))
    video = open_video(path)
    assert (len(video), video.width) == (12, WIDTH) and numbers(video, [11, 2]) == [11, 2]


def test_frames_of_another_size_are_refused(tmp_path):
    path = tmp_path / "grows.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, (width, height) in enumerate([(WIDTH, HEIGHT), (64, 48)]):
            encoder = av.CodecContext.create("libvpx-vp9", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base = Fraction(1, 30)
            picture = av.VideoFrame.from_ndarray(numbered(number, width, height), format="rgb24")
            for packet in [*encoder.encode(picture.reformat(format="yuv420p")), *encoder.encode(None)]:
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 30)
                container.mux(packet)
    assert numbers(open_video(path), [0]) == [0]
    with pytest.raises(ValueError, match=r"grows\.mkv: frame 1 is 64x48, the first 128x96"):
        open_video(path).read(np.array([1]))


@pytest.mark.parametrize(("container", "timing"), [("webm", "vfr"), ("avi", "vfr"), ("mkv", "late"), ("mp4", "vfr")])
def test_cut_short_is_said_of_what_is_cut_short_alone(tmp_path, container, timing):
    """A header may count more frames than there are; bytes that are missing are missing."""
    codec = {"webm": "vp9", "avi": "mpeg4"}.get(container, "h264")
    whole, cut = tmp_path / f"whole.{container}", tmp_path / f"cut.{container}"
    write_case(whole, codec, TIMINGS[timing])
    assert len(open_video(whole)) == len(TIMINGS[timing])
    content = whole.read_bytes()
    for share in (0.98, 0.6, 0.3):
        cut.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=rf"cut\.{container}: (the video is cut short|not a readable video)"):
            open_video(cut)


_RIGHT = {  # found case -> number of frames, and the numbers of some of them
    "trimmed/with_audio.mp4": (120, {0: 30, 17: 47, 119: 149}),
    "drop_frames/vfr.avi": (71, {0: 0, 70: 148}),
    "hevc_open_gop/og45.mp4": (150, {45: 45, 41: 41, 149: 149, 2: 2, 43: 43}),
}


@pytest.mark.parametrize("name", _RIGHT)
def test_found_cases_show_the_frames_of_their_times(name):
    count, wanted = _RIGHT[name]
    video = open_video(cases_dir() / name)
    assert len(video) == count
    for row, number in wanted.items():
        picture = video.read(np.array([row]))[0][:, 40:280]  # the number lies in the central square
        assert number_of(picture) == number


def test_found_cases_of_single_files():
    folder = cases_dir()
    video = open_video(folder / "hevc_open_gop" / "h265_video.mp4")
    in_order = video.read(np.arange(10))
    for row in (5, 9, 3):
        np.testing.assert_array_equal(open_video(video.path).read(np.array([row]))[0], in_order[row])
    assert len(open_video(folder / "trimmed" / "discard_first_keyframe.mp4")) == 25
    sar = open_video(folder / "display" / "sar.mp4")
    assert (sar.width, sar.height) == (427, 240)
    mirrored = open_video(folder / "display" / "mirror_h.mp4").read(np.array([3]))[0][:, 40:280]
    assert corners_of(mirrored) == "GRWB"
    with pytest.raises(ValueError, match=r"bitrot\.mp4: frame \d+ of 150 cannot be decoded"):
        open_video(folder / "bad_recordings_skip" / "bitrot.mp4").read(np.arange(150))


def test_real_8_hz_video(real_data_dir):
    video = open_video(real_data_dir / "egom2p_example_data" / "rgb2dep_h2o.mp4")
    assert len(video) == 16 and video.rate_hz == pytest.approx(8)
    assert video.read(np.array([15])).shape == (1, 256, 256, 3)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_a_decoder_that_is_not_there_or_not_proven_is_refused(tmp_path, decoder, monkeypatch):
    for codec in ("h264 B", "mpeg4 B"):
        write_case(tmp_path / f"{codec}.avi", codec, TIMINGS["constant"])
        with pytest.raises(ValueError, match=rf"not proven right with decoder={decoder}.*use pyav"):
            open_video(tmp_path / f"{codec}.avi", decoder=decoder)
    write_case(tmp_path / "plain.mp4", "h264", TIMINGS["constant"])
    monkeypatch.setitem(sys.modules, decoder, None)
    with pytest.raises(ValueError, match=rf"plain\.mp4: decoder={decoder} is not installed"):
        open_video(tmp_path / "plain.mp4", decoder=decoder)


def test_an_mp4_without_its_end_is_an_error_that_names_file_and_frames(real_data_dir, tmp_path):
    path = next((real_data_dir / "ego4d_clip_lavila").glob("*.mp4"))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:90_000])  # the index stands at the end
    with pytest.raises(ValueError, match=r"cut\.mp4.*found 0 frames, wanted"):
        open_video(cut)


def test_an_mp4_with_its_index_but_not_all_frames_is_an_error(real_data_dir, tmp_path):
    path = next((real_data_dir / "ego4d_clip_lavila").glob("*.mp4"))
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(path)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(open_video(whole)) == 60
    cut.write_bytes(whole.read_bytes()[:70_000])
    with pytest.raises(ValueError, match=r"cut\.mp4.*found \d+ complete frames, wanted 60"):
        open_video(cut)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_written_video_comes_back(tmp_path, frames, suffix):
    video = open_video(write_video(tmp_path / f"v{suffix}", frames, 8, crf=10))
    assert len(video) == len(frames)
    np.testing.assert_allclose(video.times_s, np.arange(20) / 8, atol=2e-3)
    error = np.abs(video.read(np.arange(20)).astype(int) - frames)[:, 4:-4, 4:-4]
    assert np.median(error) < 8


def test_odd_sizes_get_a_repeated_row_and_column(tmp_path, frames):
    video = open_video(write_video(tmp_path / "odd.mp4", frames[:, :47, :63], 8))
    assert (video.height, video.width) == (48, 64)


def test_webm_bytes_and_their_truncation(tmp_path, frames):
    content = encode_webm(frames, 8)
    (tmp_path / "whole.webm").write_bytes(content)
    assert len(open_video(tmp_path / "whole.webm")) == 20
    (tmp_path / "cut.webm").write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=r"cut\.webm.*cut short"):
        open_video(tmp_path / "cut.webm")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "none.mp4", [], 8)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "float.mp4", np.zeros((2, 4, 4, 3)), 8)
    assert list(tmp_path.iterdir()) == []


def test_no_such_or_no_video(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.mp4: no such video"):
        open_video(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4: not a readable video"):
        open_video(tmp_path / "text.mp4")


def test_a_video_can_travel_to_another_process(tmp_path, frames):
    import pickle

    path = write_video(tmp_path / "v.mp4", frames, 8)
    video = open_video(path)
    first = video.read(np.array([7]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(video)).read(np.array([7])), first)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("rate", [0, 0.5, 2.0])
def test_an_edit_list_with_another_speed_is_refused(tmp_path, rate):
    write_case(tmp_path / "a.mp4", "h264 B", TIMINGS["late"])
    assert len(open_video(tmp_path / "a.mp4")) == len(TIMINGS["late"])
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    box = content.index(b"elst")
    last = box + 12 + 12 * int.from_bytes(content[box + 8 : box + 12], "big") - 4
    assert int.from_bytes(content[last : last + 4], "big") == _ONE
    content[last : last + 4] = round(rate * _ONE).to_bytes(4, "big")
    (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=f"b.mp4: an edit list of the file plays a part at {rate:g} times its speed"):
        open_video(tmp_path / "b.mp4")
