"""Likeness of colour video: PSNR and SSIM, per frame, then the mean over frames.

F frames, H, W pixels, C channels. Frames are uint8 (0 ... 255) or float in [0, 1]; both inputs of the same kind.
"""

from typing import Any

import numpy as np
from scipy.ndimage import correlate1d

from egom2p.contracts import check_shape

VIDEO_METRICS = ("psnr_db", "ssim")

# Identical frames have infinite PSNR; a mean needs a number, and 8-bit video cannot differ less than 100 dB says.
PSNR_CAP_DB = 100.0
_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def video_errors(estimate: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Likeness of `estimate` (F, H, W, C) and `reference` (F, H, W, C).

    psnr_db (frames capped at PSNR_CAP_DB) and ssim, means over frames; num_frames; num_identical frames.
    A video without frames has None for both.
    """
    estimate, reference = _to_unit(estimate, reference)
    if len(reference) == 0:
        return {"psnr_db": None, "ssim": None, "num_frames": 0, "num_identical": 0}
    return {
        "psnr_db": float(np.mean(_frame_psnr_db(estimate, reference))),
        "ssim": float(np.mean(_frame_ssim(estimate, reference))),
        "num_frames": len(reference),
        "num_identical": int((estimate == reference).all(axis=(1, 2, 3)).sum()),
    }


def frame_psnr_db(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR (F,) in dB of each frame, over all pixels and channels, at most PSNR_CAP_DB."""
    return _frame_psnr_db(*_to_unit(estimate, reference))


def frame_ssim(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM (F,) of each frame: mean over channels and over the pixels whose whole window lies inside the frame.

    Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, biased (co)variances (Wang et al. 2004). Each side of a frame
    needs at least 11 pixels.
    """
    return _frame_ssim(*_to_unit(estimate, reference))


def _to_unit(estimate: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    estimate, reference = np.asarray(estimate), np.asarray(reference)
    check_shape("estimate", estimate, "f h w c", **check_shape("reference", reference, "f h w c"))
    scaled = []
    for name, frames in (("estimate", estimate), ("reference", reference)):
        if frames.dtype == np.uint8:
            scaled.append(frames / 255.0)
            continue
        if not np.issubdtype(frames.dtype, np.floating) or (estimate.dtype == np.uint8) != (
            reference.dtype == np.uint8
        ):
            raise ValueError(f"wanted both videos as uint8 or both as float, found {estimate.dtype}, {reference.dtype}")
        if not np.isfinite(frames).all() or (frames.size and (frames.min() < 0 or frames.max() > 1)):
            raise ValueError(f"{name}: float frames must be finite and in [0, 1]")
        scaled.append(frames.astype(np.float64))
    if (estimate.dtype == np.uint8) != (reference.dtype == np.uint8):
        raise ValueError(f"wanted both videos as uint8 or both as float, found {estimate.dtype}, {reference.dtype}")
    return scaled[0], scaled[1]


def _frame_psnr_db(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    mse_F = np.mean((estimate - reference) ** 2, axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(mse_F, 10 ** (-PSNR_CAP_DB / 10)))


def _frame_ssim(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    if min(reference.shape[1:3]) < _WINDOW:
        raise ValueError(f"SSIM needs frames of at least {_WINDOW}x{_WINDOW} pixels, found {reference.shape[1:3]}")
    return np.array([_ssim(x, y) for x, y in zip(estimate, reference, strict=True)])


def _ssim(x_HWC: np.ndarray, y_HWC: np.ndarray) -> float:
    mean_x, mean_y = _blur(x_HWC), _blur(y_HWC)
    variance_x = _blur(x_HWC * x_HWC) - mean_x**2
    variance_y = _blur(y_HWC * y_HWC) - mean_y**2
    covariance = _blur(x_HWC * y_HWC) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))


def _blur(frame_HWC: np.ndarray) -> np.ndarray:
    """Gaussian-weighted means, only where the whole window lies inside."""
    reach = _WINDOW // 2
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    blurred = correlate1d(correlate1d(frame_HWC, weights, axis=0), weights, axis=1)
    return blurred[reach:-reach, reach:-reach]
