"""Errors of texts against counts made by hand."""

import pytest

from egom2p.metrics.caption import text_errors


@pytest.mark.parametrize(
    ("found", "wanted", "exact", "rate"),
    [
        ("the wearer walks", "The  wearer walks", 1.0, 0.0),
        ("the wearer walks", "the wearer runs", 0.0, 1 / 3),
        ("the walks", "the wearer walks", 0.0, 1 / 3),
        ("the old wearer walks home", "the wearer walks", 0.0, 2 / 3),
        ("", "a b", 0.0, 1.0),
        ("b c d e", "a", 0.0, 4.0),
        ("kitten sat", "sat kitten", 0.0, 1.0),
    ],
)
def test_words_are_counted(found, wanted, exact, rate):
    assert text_errors(found, wanted) == {"exact": exact, "word_error_rate": pytest.approx(rate)}


def test_an_empty_truth_is_refused():
    with pytest.raises(ValueError, match="no words"):
        text_errors("a", " ")
