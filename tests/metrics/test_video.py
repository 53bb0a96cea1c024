"""PSNR and SSIM against slow definitions, and what they must obey."""

import numpy as np
import pytest
from scipy.signal import convolve2d

from egom2p.metrics.video import PSNR_CAP_DB, frame_psnr_db, frame_ssim, video_errors


@pytest.fixture
def video(rng):
    smooth = np.cumsum(np.cumsum(rng.normal(size=(3, 24, 20, 3)), axis=1), axis=2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return (255 * smooth).astype(np.uint8)


def noisy(video, size):
    noise = np.random.default_rng(4).normal(size=video.shape)
    return np.clip(video + size * noise, 0, 255).astype(np.uint8)


def slow_ssim(x, y):
    """One channel in [0, 1], windows written out."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(image):
        return convolve2d(image, window, mode="valid")

    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return np.mean((2 * mx * my + 1e-4) * (2 * cxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))


def test_ssim_matches_the_written_out_definition(video):
    other = noisy(video, 20)
    wanted = [
        np.mean([slow_ssim(a[..., c] / 255, b[..., c] / 255) for c in range(3)])
        for a, b in zip(other, video, strict=True)
    ]
    np.testing.assert_allclose(frame_ssim(other, video), wanted, atol=1e-12)


def test_psnr_of_a_known_difference(video):
    reference = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    estimate = reference + np.array([1, 255], dtype=np.uint8)[:, None, None, None]
    np.testing.assert_allclose(frame_psnr_db(estimate, reference), [20 * np.log10(255), 0.0], atol=1e-12)


def test_identical_videos_are_capped_and_counted(video):
    assert video_errors(video, video) == {"psnr_db": PSNR_CAP_DB, "ssim": 1.0, "num_frames": 3, "num_identical": 3}


def test_bytes_and_floats_agree(video):
    other = noisy(video, 20)
    as_floats = video_errors((other / 255).astype(np.float32), video / 255)
    as_bytes = video_errors(other, video)
    assert as_floats["psnr_db"] == pytest.approx(as_bytes["psnr_db"], abs=1e-4)
    assert as_floats["ssim"] == pytest.approx(as_bytes["ssim"], abs=1e-6)


def test_symmetric_and_blind_to_mirrors_channels_and_frame_order(video):
    other = noisy(video, 20)
    errors = video_errors(other, video)
    for a, b in (
        (video, other),
        (other[:, ::-1], video[:, ::-1]),
        (other[:, :, ::-1], video[:, :, ::-1]),
        (other[..., ::-1], video[..., ::-1]),
        (other[::-1], video[::-1]),
    ):
        again = video_errors(a, b)
        assert again["psnr_db"] == pytest.approx(errors["psnr_db"]) and again["ssim"] == pytest.approx(errors["ssim"])


def test_more_noise_is_less_like(video):
    series = [video_errors(noisy(video, size), video) for size in (2, 8, 30, 100)]
    for name in ("psnr_db", "ssim"):
        values = [errors[name] for errors in series]
        assert values == sorted(values, reverse=True)
    assert all(-1 <= errors["ssim"] <= 1 for errors in series)


def test_a_video_without_frames_has_no_values(video):
    assert video_errors(video[:0], video[:0])["psnr_db"] is None


def test_bad_input_is_refused(video):
    with pytest.raises(ValueError, match="both videos as uint8"):
        video_errors(video / 255, video)
    with pytest.raises(ValueError, match="both videos as uint8"):
        video_errors(video, video / 255)
    with pytest.raises(ValueError, match="both videos as uint8"):
        video_errors(video.astype(int), video.astype(int))
    broken = video / 255
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="reference: float frames must be finite"):
        video_errors(video / 255, broken)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        video_errors(video * 1.0, video * 1.0)
    with pytest.raises(ValueError, match="at least 11x11"):
        video_errors(video[:, :10], video[:, :10])
    with pytest.raises(ValueError, match="estimate has shape"):
        video_errors(video[:, :20], video)
