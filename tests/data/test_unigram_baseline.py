"""The unigram baseline per position against sums written out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from token_shards import tiny_specs, write_tokens

from egom2p.data.token_set import TokenSet
from egom2p.data.unigram_baseline import baseline_cross_entropy, position_counts, position_entropy

SMELL = tiny_specs()[2]


def test_counts_are_those_of_the_shards(tmp_path):
    pattern = write_tokens(tmp_path, tiny_specs())
    tokens = TokenSet(pattern, [SMELL])
    ids_BL = np.stack([tokens[index].tokens["tok_smell"] for index in range(len(tokens))])
    expected = np.zeros((6, 7), dtype=int)
    for row in ids_BL:
        expected[np.arange(6), row] += 1
    for source in (pattern, ids_BL):
        assert np.array_equal(position_counts(source, SMELL).toarray(), expected)
    assert position_counts(pattern, SMELL, max_clips=4).sum() == 4 * 6
    with pytest.raises(ValueError, match=r"wanted \(clips, 6\) in \[0, 6\]"):
        position_counts(ids_BL + 7, SMELL)


def test_entropy_of_known_distributions(rng):
    constant = np.zeros((50, 6), dtype=int)
    assert position_entropy(position_counts(constant, SMELL)) == 0.0
    halves = constant.copy()
    halves[25:] = 3
    assert position_entropy(position_counts(halves, SMELL)) == pytest.approx(np.log(2))
    even = rng.integers(0, 7, (20000, 6))
    assert position_entropy(position_counts(even, SMELL)) == pytest.approx(np.log(7), abs=1e-3)


def test_cross_entropy_of_unseen_clips(rng):
    weights = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0])
    train, held_out = (rng.choice(7, (count, 6), p=weights) for count in (5000, 3000))
    counts = position_counts(train, SMELL)
    entropy = -sum(weight * np.log(weight) for weight in weights if weight)
    assert baseline_cross_entropy(counts, held_out) == pytest.approx(entropy, abs=0.02)
    by_hand = 0.0
    dense = counts.toarray()
    prior = (dense.sum(axis=0) + 0.5) / (dense.sum() + 3.5)
    for position in range(6):
        by_hand -= (
            np.log((dense[position, held_out[:, position]] + 4 * prior[held_out[:, position]]) / (5000 + 4)).mean() / 6
        )
    assert baseline_cross_entropy(counts, held_out, smoothing=4.0) == pytest.approx(by_hand)
    assert baseline_cross_entropy(counts, held_out) <= by_hand
    assert np.isfinite(baseline_cross_entropy(counts, np.full((1, 6), 6)))
    with pytest.raises(ValueError, match=r"wanted \(clips, 6\)"):
        baseline_cross_entropy(counts, held_out[:, :4])


def test_a_part_of_the_clips_is_spread_over_all_of_them():
    """Clips of one recording lie side by side: the first ones would say little about the rest."""
    ids_BL = np.repeat(np.arange(6), 10)[:, None] * np.ones((1, 6), dtype=int)
    counts = position_counts(ids_BL, SMELL, max_clips=6).toarray()
    assert np.array_equal(counts, np.tile([1, 1, 1, 1, 1, 1, 0], (6, 1)))


def test_the_baseline_of_uniform_tokens_is_the_entropy(rng):
    train, held_out = rng.integers(0, 7, (4000, 6)), rng.integers(0, 7, (50, 6))
    assert baseline_cross_entropy(position_counts(train, SMELL), held_out) == pytest.approx(np.log(7), abs=0.01)


def test_the_baseline_is_never_much_worse_than_knowing_nothing(rng):
    """Few clips, many codes: counts per position say nothing, and must not make any model look good."""
    spec = replace(SMELL, vocab_size=2000)
    train, held_out = rng.integers(0, 2000, (4000, 6)), rng.integers(0, 2000, (200, 6))
    assert baseline_cross_entropy(position_counts(train[:400], spec), held_out) < np.log(2000) + 0.6
    assert baseline_cross_entropy(position_counts(train, spec), held_out) < np.log(2000) + 0.06
