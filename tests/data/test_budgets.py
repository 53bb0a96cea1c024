"""Budgets: the published statistics under `clamp`, exact sums under `waterfill`."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_checks.check import failures
from parity_checks.masking_folder import masking_checks

from egom2p.data.budgets import draw_budgets


def test_clamp_has_the_published_statistics(parity_dir):
    assert not failures(masking_checks(parity_dir / "masking"), at_least=60)


_modalities = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.1, 1.0, 10.0]), st.integers(0, 60)), min_size=1, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(_modalities, st.integers(0, 120), st.integers(0, 2**32 - 1))
def test_waterfill_gives_what_was_asked_for(modalities, total, seed):
    alphas, limits = [list(column) for column in zip(*modalities, strict=True)]
    filled = draw_budgets(total, alphas, limits, policy="waterfill", rng=np.random.default_rng(seed))
    held = sum(limit for alpha, limit in modalities if alpha > 0)
    assert sum(filled) == min(total, held)
    clamped = draw_budgets(total, alphas, limits, policy="clamp", rng=np.random.default_rng(seed))
    for alpha, limit, high, low in zip(alphas, limits, filled, clamped, strict=True):
        assert 0 <= low <= high <= limit
        assert alpha > 0 or high == 0


def test_without_limits_the_shares_are_exact(rng):
    for total in (0, 1, 7, 1000):
        counts = draw_budgets(total, [1.0, 1.0, 1.0], [total] * 3, policy="clamp", rng=rng)
        assert sum(counts) == total
