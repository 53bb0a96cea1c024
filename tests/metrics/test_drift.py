"""Drift of long trajectories and of depth scale: what is known by construction."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from egom2p.geometry import poses_from_parts
from egom2p.metrics.drift import path_length_m, scale_drift, segment_errors


def _line(num_samples: int, step_m: float, turn_rad: float = 0.0) -> np.ndarray:
    rotations = Rotation.from_rotvec(np.outer(np.arange(num_samples), [0, turn_rad, 0])).as_matrix()
    steps = np.concatenate([np.zeros((1, 3)), rotations[:-1, :, 2] * step_m])
    return poses_from_parts(rotations, np.cumsum(steps, axis=0))


def test_a_trajectory_that_is_a_tenth_too_long_is_ten_percent_off():
    reference, estimate = _line(201, 0.05), _line(201, 0.055)
    assert path_length_m(reference) == pytest.approx(10.0)
    found = segment_errors(estimate, reference, (1.0, 2.0))
    assert found["translation_percent"] == pytest.approx(10.0, rel=0.06)
    assert found["rotation_deg_per_m"] == pytest.approx(0.0, abs=1e-9)
    assert found["num_segments"] == pytest.approx(181 + 161, abs=2)


def test_a_steady_turn_is_told_in_degrees_per_metre():
    found = segment_errors(_line(201, 0.05, 0.001), _line(201, 0.05), (1.0,))
    assert found["rotation_deg_per_m"] == pytest.approx(np.degrees(0.02), rel=0.06)


def test_segments_do_not_care_about_the_world(rng):
    reference, estimate = _line(100, 0.05, 0.01), _line(100, 0.052, 0.012)
    moved = poses_from_parts(Rotation.from_rotvec([0.3, 1, -2]).as_matrix(), np.array([5.0, 6, 7])) @ estimate
    one, other = segment_errors(estimate, reference, (1.0,)), segment_errors(moved, reference, (1.0,))
    assert one == pytest.approx(other)
    assert segment_errors(reference, reference, (1.0,))["translation_percent"] == pytest.approx(0, abs=1e-9)
    assert segment_errors(estimate, reference, (50.0,))["translation_percent"] is None
    with pytest.raises(ValueError, match="positive"):
        segment_errors(estimate, reference, (0.0,))


def test_the_scale_of_depth_wanders(rng):
    reference = rng.uniform(1, 4, (20, 5, 6))
    steady = scale_drift(1.3 * reference, reference, rate_hz=8.0)
    assert steady == pytest.approx({"spread_percent": 0, "slope_percent_per_s": 0, "step_percent": 0}, abs=1e-9)
    growing = scale_drift(reference * np.exp(0.01 * np.arange(20))[:, None, None], reference, rate_hz=8.0)
    assert growing["slope_percent_per_s"] == pytest.approx(8.0) and growing["step_percent"] == pytest.approx(1.0)
    unknown = reference * (np.arange(20) < 1)[:, None, None]
    assert scale_drift(reference, unknown, rate_hz=8.0)["spread_percent"] is None
