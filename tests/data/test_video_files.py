import shutil

import av
import numpy as np
import pytest

from egom2p.data.clips import video_files
from egom2p.data.clips.video_files import encode_webm, open_video, write_video


@pytest.fixture
def frames(rng):
    """Twenty smooth, moving pictures (20, 48, 64, 3)."""
    x, y, t = np.meshgrid(np.arange(64), np.arange(48), np.arange(20))
    picture = np.stack([x * 3 + t, y * 4 + 2 * t, x + y + 5 * t], axis=-1) % 256
    return np.ascontiguousarray(np.moveaxis(picture, 2, 0).astype(np.uint8))


def test_real_video_reads_the_same_with_both_decoders(real_data_dir):
    path = next((real_data_dir / "ego4d_clip_lavila").glob("*.mp4"))
    video = open_video(path, decoder="pyav")
    assert (len(video), video.width, video.height) == (60, 384, 288)
    np.testing.assert_allclose(video.times_s, np.arange(60) / 30, atol=1e-6)
    all_frames = video.read(np.arange(60))
    np.testing.assert_array_equal(video.read(np.array([41, 3, 3])), all_frames[[41, 3, 3]])
    if video_files.decord is not None:
        np.testing.assert_array_equal(open_video(path, decoder="decord").read(np.arange(60)), all_frames)


def test_real_8_hz_video(real_data_dir):
    video = open_video(real_data_dir / "egom2p_example_data" / "rgb2dep_h2o.mp4")
    assert len(video) == 16 and video.rate_hz == pytest.approx(8)
    assert video.read(np.array([15])).shape == (1, 256, 256, 3)


def test_reads_without_decord(real_data_dir, monkeypatch):
    monkeypatch.setattr(video_files, "decord", None)
    path = real_data_dir / "egom2p_example_data" / "rgb2dep_h2o.mp4"
    assert open_video(path).decoder == "pyav"
    with pytest.raises(ValueError, match="decord is not installed"):
        open_video(path, decoder="decord")


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


@pytest.mark.parametrize("width", [16, 48])
def test_what_decord_cannot_decode_is_read_by_pyav_and_told(tmp_path, frames, caplog, width):
    path = write_video(tmp_path / "narrow.mp4", frames[:, :, :width], 8)
    video = open_video(path)
    was_decord = video.decoder == "decord"
    read = video.read(np.array([3, 9]))
    np.testing.assert_array_equal(read, open_video(path, decoder="pyav").read(np.array([3, 9])))
    if was_decord:
        assert video.decoder == "pyav" and "narrow.mp4: decord cannot decode it" in caplog.text
        with pytest.raises(ValueError, match=r"narrow\.mp4: frames 3\.\.9 cannot be decoded"):
            open_video(path, decoder="decord").read(np.array([3, 9]))
    video.read(np.array([0]))
    assert caplog.text.count("PyAV reads it instead") == was_decord


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
