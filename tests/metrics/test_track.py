"""Errors of any track: by hand, over valid samples only."""

import numpy as np
import pytest

from egom2p.metrics.track import track_errors


def test_only_valid_samples_count():
    reference = np.array([[0.0, 0.0], [1.0, 1.0], [np.nan, 5.0]])
    estimate = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    is_valid = np.array([True, True, False])
    found = track_errors(estimate, reference, is_valid)
    assert found == {"rms_error": pytest.approx(np.sqrt(10 / 4)), "num_samples": 2}
    assert track_errors(estimate, reference, np.zeros(3, bool)) == {"rms_error": None, "num_samples": 0}
    with pytest.raises(ValueError, match="reference: 1 of 3 valid samples are not finite"):
        track_errors(estimate, reference, np.ones(3, bool))
    with pytest.raises(ValueError, match="estimate has shape"):
        track_errors(estimate[:2], reference, is_valid)
