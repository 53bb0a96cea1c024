"""Gaze errors: the published example, validity, and what must not move them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from egom2p.contracts import Intrinsics
from egom2p.metrics.gaze import GAZE_METRICS, gaze_auc, gaze_errors

CAMERA = Intrinsics(width=480, height=480, fx=400.0, fy=400.0, cx=239.5, cy=239.5)


def test_published_example(real_data_dir):
    """HoloAssist gaze in pixels of 896x504 against its reconstruction in the middle 480x480, 58 valid samples."""
    folder = real_data_dir / "egom2p_example_data"
    reference = (np.load(folder / "gaze.npy") - [208, 12]) / 480
    estimate = np.load(folder / "token" / "gaze-recon.npy")
    is_valid = np.isfinite(reference).all(axis=1)
    errors = gaze_errors(estimate, reference, is_valid, size_px=(480, 480))
    assert errors["num_samples"] == 58
    assert errors["mse"] == pytest.approx(4.1836e-5, abs=5e-10)
    assert errors["distance_px"] == pytest.approx(3.912, abs=5e-4)


def test_a_perfect_estimate_has_no_error(rng):
    gaze = rng.random((60, 2))
    errors = gaze_errors(gaze, gaze, np.ones(60, dtype=bool), intrinsics=CAMERA)
    assert errors["mse"] == errors["distance"] == errors["distance_px"] == 0.0
    assert errors["angle_deg"] == pytest.approx(0.0, abs=1e-9)
    assert errors["auc"] > 0.999 and errors["coverage"] == 1.0
    inner = 0.3 + 0.4 * gaze
    assert gaze_auc(inner, inner, np.ones(60, dtype=bool)) == 1.0


def test_known_differences():
    reference, estimate = np.full((5, 2), 0.5), np.full((5, 2), 0.5) + [0.3, 0.4]
    errors = gaze_errors(estimate, reference, np.ones(5, dtype=bool), size_px=(100, 100))
    assert errors["mse"] == pytest.approx((0.09 + 0.16) / 2)
    assert errors["distance"] == pytest.approx(0.5) and errors["distance_px"] == pytest.approx(50)
    edge = gaze_errors(np.array([[1.0, 0.5]]), np.array([[0.5, 0.5]]), np.array([True]), intrinsics=CAMERA)
    assert edge["angle_deg"] == pytest.approx(np.degrees(np.arctan(240 / 400)))
    assert edge["distance_px"] == pytest.approx(240)


def test_without_size_or_lens_there_are_no_pixels_or_degrees(rng):
    errors = gaze_errors(rng.random((4, 2)), rng.random((4, 2)), np.ones(4, dtype=bool))
    assert errors["distance_px"] is None and errors["angle_deg"] is None and errors["mse"] is not None


def test_invalid_samples_never_count_whatever_they_hold(rng):
    estimate, reference = rng.random((2, 20, 2))
    is_valid = rng.random(20) < 0.5
    wanted = gaze_errors(
        estimate[is_valid], reference[is_valid], np.ones(is_valid.sum(), dtype=bool), intrinsics=CAMERA
    )
    for rubbish in (np.nan, 1e9, -1.0):
        dirty_estimate, dirty_reference = estimate.copy(), reference.copy()
        dirty_estimate[~is_valid] = dirty_reference[~is_valid] = rubbish
        assert gaze_errors(dirty_estimate, dirty_reference, is_valid, intrinsics=CAMERA) == wanted


def test_a_clip_without_valid_samples_has_no_values():
    errors = gaze_errors(np.full((6, 2), np.nan), np.full((6, 2), np.nan), np.zeros(6, dtype=bool), intrinsics=CAMERA)
    assert all(errors[name] is None for name in GAZE_METRICS)
    assert errors["num_samples"] == 0 and errors["coverage"] is None
    assert gaze_auc(np.zeros((6, 2)), np.zeros((6, 2)), np.zeros(6, dtype=bool)) is None


def test_what_the_estimate_leaves_out_lowers_coverage(rng):
    estimate, reference = rng.random((2, 10, 2))
    estimate[:4] = np.nan
    is_given = np.arange(10) >= 4
    errors = gaze_errors(estimate, reference, np.ones(10, dtype=bool), estimate_is_valid=is_given)
    assert errors["coverage"] == pytest.approx(0.6) and errors["num_samples"] == 6
    assert errors["mse"] == pytest.approx(np.mean((estimate[4:] - reference[4:]) ** 2))


def test_nan_in_a_valid_sample_is_refused(rng):
    estimate, reference = rng.random((2, 10, 2))
    estimate[3, 1] = np.nan
    with pytest.raises(ValueError, match="estimate: 1 of 10 valid gaze points"):
        gaze_errors(estimate, reference, np.ones(10, dtype=bool))
    with pytest.raises(ValueError, match="estimate has shape"):
        gaze_errors(estimate[:5], reference, np.ones(10, dtype=bool))


def test_errors_are_symmetric_move_with_both_and_grow_with_distance(rng):
    estimate, reference = rng.random((2, 30, 2)) * 0.4
    is_valid = np.ones(30, dtype=bool)
    errors = gaze_errors(estimate, reference, is_valid, size_px=(64, 48))
    swapped = gaze_errors(reference, estimate, is_valid, size_px=(64, 48))
    shifted = gaze_errors(estimate + 0.3, reference + 0.3, is_valid, size_px=(64, 48))
    for name in ("mse", "distance", "distance_px"):
        assert errors[name] == pytest.approx(swapped[name]) == pytest.approx(shifted[name])
    values = [
        gaze_errors(reference + far, reference, is_valid, intrinsics=CAMERA) for far in (0.01, 0.05, 0.1, 0.2, 0.5)
    ]
    for name in ("mse", "distance", "distance_px", "angle_deg"):
        series = [value[name] for value in values]
        assert series == sorted(series) and series[0] < series[-1]


def test_auc_falls_with_distance_inside_the_blur():
    middle = np.full((1, 2), 0.5)
    auc = [gaze_auc(middle, middle + far / 63, np.array([True])) for far in range(14)]
    assert auc == sorted(auc, reverse=True) and auc[0] == 1.0 and auc[-1] < 0.9


def test_auc_is_the_rank_of_the_reference_cell():
    """Against counting by hand; a far miss lies where the cut-off blur is 0: the cells above are the blur's own."""
    for cells in ((0, 0), (0, 1), (3, 4), (10, 0), (31, 31)):
        heat = np.zeros((64, 64))
        heat[32, 32] = 1
        heat = gaussian_filter(heat, 3.2)
        above = sum(
            value > heat[32 + cells[1] if cells[1] < 31 else 63, 32 + cells[0] if cells[0] < 31 else 63]
            for value in heat.ravel()
        )
        target = np.minimum(np.array([32, 32]) + cells, 63)
        found = gaze_auc(np.array([[32, 32]]) / 63, target[None] / 63, np.array([True]))
        assert found == pytest.approx(1 - above / 64**2)
    assert gaze_auc(np.array([[0.5, 0.5]]), np.array([[0.0, 0.0]]), np.array([True])) == pytest.approx(
        1 - 27**2 / 64**2
    )
