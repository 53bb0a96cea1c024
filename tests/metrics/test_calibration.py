"""Calibration of samples: laws whose coverage is known."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from egom2p.metrics.calibration import ClipSpread, calibration, clip_spread


def _clips(truth_scale: float, *, num_clips: int = 60, num_samples: int = 9, num_values: int = 400):
    rng = np.random.default_rng(3)
    clips = []
    for _ in range(num_clips):
        scale = rng.uniform(0.5, 3.0)
        samples_KN = rng.normal(scale=scale, size=(num_samples, num_values))
        truth_N = rng.normal(scale=scale * truth_scale, size=num_values)
        clips.append(clip_spread(samples_KN, truth_N, rng))
    return calibration(clips)


def test_draws_from_the_same_law_are_covered_as_often_as_promised():
    found = _clips(1.0)
    assert found.levels == pytest.approx((0.2, 0.4, 0.6, 0.8))
    np.testing.assert_allclose(found.coverage, found.levels, atol=0.02)
    assert found.correlation > 0.95, "clips differ in scale, and spread tells it"


def test_samples_that_are_too_sure_cover_less():
    """Truth with twice the standard deviation of the samples: between the extremes of 9 normal draws by integration."""
    found = _clips(2.0)
    below_min, _ = quad(lambda x: 9 * norm.pdf(x) * norm.sf(x) ** 8 * norm.cdf(x / 2), -10, 10)
    assert found.coverage[-1] == pytest.approx(1 - 2 * below_min, abs=0.01)
    assert all(seen < level for seen, level in zip(found.coverage, found.levels, strict=True))


def test_samples_without_any_spread_do_not_count_as_sure_and_right():
    """Repeated codes: all samples equal, truth equal too: ranks are drawn, so coverage stays nominal."""
    rng = np.random.default_rng(0)
    found = calibration([clip_spread(np.ones((4, 2000)), np.ones(2000), rng) for _ in range(3)])
    np.testing.assert_allclose(found.coverage, found.levels, atol=0.03)
    assert found.correlation is None
    wrong = calibration([clip_spread(np.ones((4, 10)), np.full(10, 2.0), rng)])
    assert wrong.coverage == (0.0, 0.0) and wrong.error == (1.0,) and wrong.spread == (0.0,)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="K >= 2"):
        clip_spread(np.ones((1, 5)), np.ones(5), np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one clip"):
        calibration([])


@pytest.mark.parametrize("own_std", [0.4, 1.0, 2.5])
def test_a_stretch_makes_ranges_hold_four_fifths_of_clips_it_has_not_seen(own_std):
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(60):
        centre = rng.normal(size=200)
        clips.append(clip_spread(centre + own_std * rng.normal(size=(8, 200)), centre + rng.normal(size=200), rng))
    found = calibration(clips)
    assert found.stretched == pytest.approx(0.8, abs=0.01)
    # The widest of 8 holds 7/9 of draws of its own law: 1.05 times as wide it holds 0.8, and s times narrower samples
    # have to be stretched about as often.
    assert (found.stretch > 1.5, found.stretch < 0.7) == (own_std < 1, own_std > 1)
    assert calibration(clips[:4]).stretch is None


def test_samples_without_spread_have_no_stretch():
    rng = np.random.default_rng(0)
    clips = [clip_spread(np.zeros((4, 50)), rng.normal(size=50), rng) for _ in range(10)]
    assert calibration(clips).stretch is None and calibration(clips).stretched is None


def test_a_part_whose_factor_does_not_exist_is_not_held():
    """Four parts in which more than a fifth is out of reach tell no factor for the fifth, though all together do."""
    parts = [np.where(np.arange(100) < 24, np.inf, 1.0)] * 4 + [np.ones(100)]
    found = calibration([ClipSpread(np.array([5, 5]), 1.0, 1.0, needed) for needed in parts])
    assert found.stretch == 1.0 and found.stretched == pytest.approx(0.76 * 0.8)


def test_no_clip_is_held_by_a_factor_that_was_fitted_to_it():
    """Four recordings that need 1 and one that needs 10: its own factor would hold it, that of the others does not."""
    clips = [ClipSpread(np.array([5, 5]), 1.0, 1.0, np.full(10, needed)) for needed in (1.0, 1.0, 1.0, 1.0, 10.0)]
    found = calibration(clips)
    assert found.stretch == 10 and found.stretched == pytest.approx(0.8)
