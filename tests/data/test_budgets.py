"""Budgets: the published statistics under `clamp`, exact sums under `waterfill`."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import ks_2samp

from egom2p.data.budgets import draw_budgets

_FOUR = [0.01, 0.1, 1.0, 10.0]


@pytest.mark.parametrize("name", ["all4", "rgb_depth_cam", "rgb_gaze_cam"])
def test_clamp_has_the_published_statistics(parity_dir, name):
    stats = json.loads((parity_dir / "masking" / "stats.json").read_text())
    raw = load_file(parity_dir / "masking" / "budgets_raw.safetensors")
    limits = [stats["max_tokens"][modality] for modality in stats[name]["modalities"]]
    rng = np.random.default_rng(3)
    # The same components as the fixture drew, so that only the Dirichlet draws are compared.
    inputs, targets = [], []
    for component in np.tile(raw[f"{name}.component"], 2):
        alphas = [_FOUR[component]] * len(limits)
        drawn = draw_budgets(stats["num_input_tokens"], alphas, limits, policy="clamp", rng=rng)
        room = [limit - count for limit, count in zip(limits, drawn, strict=True)]
        inputs.append(drawn)
        targets.append(draw_budgets(stats["num_target_tokens"], alphas, room, policy="clamp", rng=rng))
    for side, drawn in (("input", np.array(inputs)), ("target", np.array(targets))):
        reference = raw[f"{name}.{side}"].astype(np.int64)
        for column, limit in enumerate(limits):
            ours, theirs = drawn[:, column], reference[:, column]
            # Targets of tracks are rare: 3 % of their mean is below two standard errors of the fixture itself.
            noise = 3 * np.hypot(theirs.std() / len(theirs) ** 0.5, ours.std() / len(ours) ** 0.5)
            assert abs(ours.mean() - theirs.mean()) < max(0.03 * theirs.mean(), noise)
            # 0 against 1 token is rounding of the published float32 draws.
            assert ks_2samp(np.maximum(ours, 1), np.maximum(theirs, 1)).statistic < 0.03
            quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
            difference = np.abs(np.quantile(ours, quantiles) - np.quantile(theirs, quantiles))
            assert difference.max() <= 0.05 * min(limit, 2048) + 1


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
