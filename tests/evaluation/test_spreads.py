"""Which numbers of a clip are held against the truth."""

import numpy as np
import pytest

from egom2p.contracts import Stream
from egom2p.evaluation.quantities import SCORING


@pytest.mark.parametrize("width", [64, 96])
def test_all_columns_and_colours_of_a_picture_count(width):
    """Samples that are right in all but the last columns, or in one colour: the share of wrong values is told."""
    truth = np.full((16, 64, width, 3), 100, np.uint8)
    pictures = Stream(truth, np.ones(16, bool), np.arange(16) / 8, "uint8")
    for position in (np.s_[:, :, -8:], np.s_[..., 1]):
        samples = np.repeat(truth[None], 2, axis=0)
        samples[(slice(None), *position)] = 200
        found = SCORING["rgb"].spread(samples, pictures, np.random.default_rng(0))
        assert found.error == pytest.approx(100 * np.sqrt((samples[0] == 200).mean()), rel=0.1)
