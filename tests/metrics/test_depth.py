"""Depth errors: definitions by hand, what an alignment forgives, and empty or broken frames."""

import numpy as np
import pytest
from scipy.optimize import minimize

from egom2p.metrics.depth import DEPTH_ALIGNMENTS, DEPTH_METRICS, DEPTH_SCOPES, depth_errors


@pytest.fixture
def reference(rng):
    depth_m = rng.uniform(0.5, 5.0, size=(4, 6, 8))
    depth_m[rng.random(depth_m.shape) < 0.2] = 0
    return depth_m


@pytest.fixture
def estimate(reference, rng):
    return np.where(reference > 0, reference, 1.0) * np.exp(0.2 * rng.normal(size=reference.shape))


def assert_same(errors, others):
    for name in DEPTH_METRICS:
        assert errors[name] == pytest.approx(others[name], rel=1e-9, abs=1e-12), name


def test_definitions_by_hand():
    reference, estimate = np.array([[[2.0, 4.0, 0.0, 1.0]]]), np.array([[[1.0, 5.0, 9.0, 1.2]]])
    errors = depth_errors(estimate, reference)
    assert errors["abs_rel"] == pytest.approx((0.5 + 0.25 + 0.2) / 3)
    assert errors["sq_rel"] == pytest.approx((1 / 2 + 1 / 4 + 0.04) / 3)
    assert errors["rmse_m"] == pytest.approx(np.sqrt((1 + 1 + 0.04) / 3))
    assert errors["rmse_log"] == pytest.approx(np.sqrt(np.mean(np.log([0.5, 1.25, 1.2]) ** 2)))
    assert (errors["delta1"], errors["delta2"], errors["delta3"]) == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    assert errors["num_pixels"] == 3 and errors["coverage"] == 1.0


@pytest.mark.parametrize("alignment", DEPTH_ALIGNMENTS)
@pytest.mark.parametrize("scope", DEPTH_SCOPES)
def test_a_perfect_estimate_has_no_error(reference, alignment, scope):
    errors = depth_errors(reference, reference, alignment=alignment, scope=scope)
    assert max(errors[name] for name in ("abs_rel", "sq_rel", "rmse_m", "rmse_log")) < 1e-9
    assert errors["delta1"] == errors["delta3"] == 1.0 and errors["problem"] is None


@pytest.mark.parametrize("scope", DEPTH_SCOPES)
def test_median_forgives_scale_and_scale_shift_both_in_disparity(reference, estimate, scope):
    median = depth_errors(estimate, reference, alignment="median", scope=scope)
    assert_same(depth_errors(7.3 * estimate, reference, alignment="median", scope=scope), median)
    both = depth_errors(estimate, reference, alignment="scale_shift", scope=scope)
    changed = 1 / (0.3 / estimate + 0.05)
    assert_same(depth_errors(changed, reference, alignment="scale_shift", scope=scope), both)
    relative = depth_errors(
        255 * (0.3 / estimate - 0.02), reference, alignment="scale_shift", scope=scope, estimate_is_disparity=True
    )
    assert_same(relative, both)


def test_frame_scope_forgives_a_scale_per_frame_and_video_scope_does_not(reference):
    flicker = reference * np.array([1.0, 2.0, 3.0, 4.0])[:, None, None]
    assert depth_errors(flicker, reference, alignment="median", scope="frame")["abs_rel"] < 1e-12
    assert depth_errors(flicker, reference, alignment="median", scope="video")["abs_rel"] > 0.1


def test_video_scope_does_not_feel_the_order_of_frames_or_pixels(reference, estimate, rng):
    order = rng.permutation(reference.size)
    mixed = [depth.ravel()[order].reshape(reference.shape) for depth in (estimate, reference)]
    for alignment in DEPTH_ALIGNMENTS:
        assert_same(depth_errors(*mixed, alignment=alignment), depth_errors(estimate, reference, alignment=alignment))


def test_scale_and_shift_are_the_least_squares_ones(reference, estimate):
    is_known = reference > 0
    x, y = 1 / estimate[is_known], 1 / reference[is_known]
    scale, shift = minimize(lambda st: np.sum((st[0] * x + st[1] - y) ** 2), [1.0, 0.0], tol=1e-14).x
    wanted = depth_errors(1 / np.clip(scale / estimate + shift, 1 / 80, 1e3), reference)
    found = depth_errors(estimate, reference, alignment="scale_shift")
    assert found["abs_rel"] == pytest.approx(wanted["abs_rel"], rel=1e-5)


def test_more_noise_is_more_error(reference):
    noise = np.random.default_rng(3).normal(size=reference.shape)
    series = [
        depth_errors(np.where(reference > 0, reference, 1) * np.exp(size * noise), reference)
        for size in (0.01, 0.1, 0.5)
    ]
    for name in ("abs_rel", "rmse_log"):
        assert series[0][name] < series[1][name] < series[2][name]
    for name in ("delta1", "delta2", "delta3"):
        assert series[0][name] >= series[1][name] >= series[2][name]
    assert all(errors["delta1"] <= errors["delta2"] <= errors["delta3"] for errors in series)


@pytest.mark.parametrize("scope", DEPTH_SCOPES)
@pytest.mark.parametrize("alignment", DEPTH_ALIGNMENTS)
def test_invalid_reference_pixels_never_count(reference, estimate, alignment, scope):
    wanted = depth_errors(estimate, reference, alignment=alignment, scope=scope)
    for rubbish in (0.0, 1e6, np.inf, -3.0):
        dirty = np.where(reference > 0, estimate, rubbish)
        assert_same(depth_errors(dirty, reference, alignment=alignment, scope=scope), wanted)
    beyond = np.where(reference > 0, reference, np.inf)
    assert_same(depth_errors(estimate, beyond, alignment=alignment, scope=scope), wanted)


def test_an_empty_frame_is_left_out_and_an_empty_video_has_no_values(reference, estimate):
    wanted = depth_errors(estimate[1:], reference[1:], alignment="median", scope="frame")
    reference[0] = 0
    assert_same(depth_errors(estimate, reference, alignment="median", scope="frame"), wanted)
    errors = depth_errors(estimate, np.zeros_like(reference), alignment="scale_shift")
    assert all(errors[name] is None for name in DEPTH_METRICS)
    assert errors["num_pixels"] == 0 and errors["coverage"] is None


def test_holes_of_the_estimate_lower_coverage(reference, estimate):
    holes = estimate.copy()
    holes[0] = 0
    errors = depth_errors(holes, reference)
    assert errors["coverage"] == pytest.approx((reference[1:] > 0).sum() / (reference > 0).sum())
    assert_same(errors, depth_errors(estimate[1:], reference[1:]))


def test_a_constant_estimate_says_so_and_becomes_the_mean_disparity(reference):
    errors = depth_errors(np.ones_like(reference), reference, alignment="scale_shift")
    assert "only the shift" in errors["problem"]
    middle_m = 1 / np.mean(1 / reference[reference > 0])
    assert_same(errors, depth_errors(np.full_like(reference, middle_m), reference))
    swapped = depth_errors(
        1 / np.maximum(3 - 1 / np.where(reference > 0, reference, 1), 0.1), reference, alignment="scale_shift"
    )
    assert "near and far are swapped" in swapped["problem"]


def test_infinity_is_far_away(reference, estimate):
    estimate[0, 0, 0], reference[0, 0, 0] = np.inf, 2.0
    errors = depth_errors(estimate, reference, range_m=(1e-3, 10.0))
    assert np.isfinite([errors[name] for name in DEPTH_METRICS]).all()


def test_bad_input_is_refused(reference, estimate):
    broken = estimate.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="estimate: 1 of 192 depths are NaN"):
        depth_errors(broken, reference)
    with pytest.raises(ValueError, match="reference: 1 of 192"):
        depth_errors(estimate, broken)
    with pytest.raises(ValueError, match="alignment of"):
        depth_errors(estimate, reference, alignment="least")
    with pytest.raises(ValueError, match="estimate has shape"):
        depth_errors(estimate[:2], reference)


def test_disparity_of_a_real_video_orders_depth(real_data_dir):
    """Real sensor depth through an 8-bit relative disparity: scale and shift give the metres back."""
    image = pytest.importorskip("PIL.Image")
    files = sorted((real_data_dir / "rgbd_7scenes_redkitchen").glob("*.depth.png"))[:4]
    raw = np.stack([np.asarray(image.open(file)) for file in files]).astype(np.float64)[:, ::4, ::4]
    depth_m = np.where((raw > 0) & (raw < 65535), raw / 1000, 0)
    disparity = np.divide(1, depth_m, out=np.zeros_like(depth_m), where=depth_m > 0)
    grey = np.round(255 * disparity / disparity.max())
    errors = depth_errors(grey, depth_m, alignment="scale_shift", estimate_is_disparity=True)
    assert errors["delta1"] > 0.999 and errors["abs_rel"] < 0.01
