"""Bootstrap intervals: against scipy, coverage of the truth, missing clips."""

import numpy as np
import pytest
from scipy import stats

from egom2p.metrics.bootstrap import Interval, bootstrap_interval, paired_difference_interval


def test_scipy_agrees(rng):
    values = rng.gamma(2.0, size=60)
    found = bootstrap_interval(values, rng, num_resamples=20000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(9))
    width = found.high - found.low
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    intervals = [bootstrap_interval(rng.normal(size=50), rng, num_resamples=500) for _ in range(400)]
    share = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.90 < share < 0.98


def test_same_generator_same_interval_and_the_mean_lies_inside(rng):
    values = rng.normal(size=30)
    a, b = (bootstrap_interval(values, np.random.default_rng(1)) for _ in range(2))
    assert a == b and a.low < a.mean < a.high


def test_interval_moves_and_stretches_with_the_values(rng):
    values = rng.normal(size=30)
    base = bootstrap_interval(values, np.random.default_rng(1))
    moved = bootstrap_interval(3 * values + 10, np.random.default_rng(1))
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(3 * getattr(base, name) + 10)


def test_more_clips_or_less_confidence_make_it_narrower(rng):
    values = rng.normal(size=400)
    wide = bootstrap_interval(values[:25], rng)
    narrow = bootstrap_interval(values, rng)
    assert narrow.high - narrow.low < wide.high - wide.low
    half = bootstrap_interval(values, rng, confidence=0.5)
    assert half.high - half.low < narrow.high - narrow.low


def test_chunks_change_nothing_about_the_result(monkeypatch, rng):
    values = rng.normal(size=30)
    whole = bootstrap_interval(values, np.random.default_rng(1))
    monkeypatch.setattr("egom2p.metrics.bootstrap._CHUNK_VALUES", 1000)
    assert bootstrap_interval(values, np.random.default_rng(1)) == whole


def test_clips_without_value_are_counted_and_too_few_have_no_interval(rng):
    found = bootstrap_interval([1.0, None, 3.0, None], rng)
    assert (found.mean, found.num_clips, found.num_missing, found.median) == (2.0, 2, 2, 2.0)
    assert bootstrap_interval([None, None], rng) == Interval(None, None, None, 0, 2)
    assert bootstrap_interval([4.0], rng) == Interval(4.0, None, None, 1, 0, 4.0)


def test_pairing_sees_what_two_separate_intervals_cannot(rng):
    """Clips differ by much, the methods by little: only the paired difference shows it."""
    difficulty = 10 * rng.random(100)
    a, b = difficulty + 0.1 + 0.05 * rng.normal(size=100), difficulty + 0.05 * rng.normal(size=100)
    apart = bootstrap_interval(a, rng).low > bootstrap_interval(b, rng).high
    paired = paired_difference_interval(a, b, rng)
    assert not apart and paired.low > 0 and paired.mean == pytest.approx(a.mean() - b.mean())
    same = paired_difference_interval(a, a, rng)
    assert same.low == same.mean == same.high == 0.0


def test_a_pair_needs_both_sides(rng):
    found = paired_difference_interval([1.0, None, 3.0, 4.0], [0.5, 1.0, None, 3.0], rng)
    assert (found.mean, found.num_clips, found.num_missing) == (0.75, 2, 2)
    with pytest.raises(ValueError, match="found 2 and 3"):
        paired_difference_interval([1.0, 2.0], [1.0, 2.0, 3.0], rng)


def test_clips_of_one_recording_are_drawn_together():
    """Twenty recordings of eight clips that hardly differ are about twenty independent values, not 160."""
    rng = np.random.default_rng(7)
    held = {"clips": 0, "recordings": 0}
    groups = [f"recording{number // 8}" for number in range(160)]
    for _ in range(200):
        values = np.repeat(rng.normal(size=20), 8) + 0.1 * rng.normal(size=160)
        for name, chosen in (("clips", None), ("recordings", groups)):
            found = bootstrap_interval(values, rng, groups=chosen, num_resamples=300)
            assert found.mean == pytest.approx(values.mean()) and found.num_clips == 160
            held[name] += found.low <= 0 <= found.high
    assert held["clips"] < 0.7 * 200 and held["recordings"] > 0.87 * 200


def test_groups_of_one_clip_change_nothing_and_one_group_has_no_interval(rng):
    values = rng.normal(size=30)
    names = [f"{number:02d}" for number in range(30)]
    alone = bootstrap_interval(values, np.random.default_rng(1))
    assert bootstrap_interval(values, np.random.default_rng(1), groups=names) == alone
    assert bootstrap_interval([1.0, 2.0, None], rng, groups=["a", "a", "b"]) == Interval(1.5, None, None, 2, 1, 1.5)
    found = paired_difference_interval([2.0, None, 4.0], [1.0, 1.0, 1.0], rng, groups=["a", "b", "c"])
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="30 values and 2 groups"):
        bootstrap_interval(values, rng, groups=["a", "b"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(rng, bad):
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        bootstrap_interval([1.0, bad, 2.0], rng)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0, 2.0], rng, confidence=95)


def test_of_right_and_wrong_there_is_no_median():
    assert bootstrap_interval([1.0, 0.0, None, 1.0], np.random.default_rng(0)).median is None
    assert bootstrap_interval([1.0, 0.5, None, 1.0], np.random.default_rng(0)).median == 1.0
