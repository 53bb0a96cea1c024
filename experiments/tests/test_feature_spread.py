"""Spread of features against what can be said without computing."""

import numpy as np
import pytest

from experiments.jepa.feature_spread import feature_spread, spread_of_sums


def test_equal_vectors_have_no_spread(rng):
    assert feature_spread(np.tile(rng.normal(size=8), (50, 1))) == {"std_share": 0.0, "effective_rank": 0.0}


@pytest.mark.parametrize("num_directions", [1, 3, 8])
def test_rank_counts_equally_strong_directions(rng, num_directions):
    axes, _ = np.linalg.qr(rng.normal(size=(8, num_directions)))
    rows = np.concatenate([axes.T, -axes.T])  # variance 1 / directions along each, mean 0
    found = feature_spread(5 * rows)
    assert found["effective_rank"] == pytest.approx(num_directions) and found["std_share"] == pytest.approx(1.0)


def test_the_mean_takes_its_share(rng):
    rows = rng.normal(size=(40_000, 6)) * 3.0 + 4.0
    assert feature_spread(rows)["std_share"] == pytest.approx(3 / 5, abs=0.01)
    assert feature_spread(rows)["effective_rank"] == pytest.approx(6, abs=0.01)


def test_sums_of_parts_are_the_whole(rng):
    parts = [rng.normal(size=(count, 4)) for count in (3, 7)]
    sums = (sum(len(p) for p in parts), sum(p.sum(0) for p in parts), sum(p.T @ p for p in parts))
    assert spread_of_sums(*sums) == pytest.approx(feature_spread(np.concatenate(parts)))
