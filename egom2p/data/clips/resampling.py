"""Streams at the times of another clock, with the validity of every sample.

T source samples, Q query times. Nothing is invented: no value is carried over a gap wider than its limit, and beyond
the ends of a stream a sample is held for at most half a period.
"""

import numpy as np

from egom2p.contracts import Stream
from egom2p.geometry import interpolate_poses, interpolation_weights

_PERIODS_LOOKED_AT = 1000
_SAME_TIME_S = 1e-6


def sample_period_s(times_s: np.ndarray) -> float:
    """Median distance of the first samples (a thousand tell it well enough); 0 for a single sample."""
    return float(np.median(np.diff(times_s[: _PERIODS_LOOKED_AT + 1]))) if len(times_s) > 1 else 0.0


def nearest_index(times: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Index (Q,) of the time nearest to each query (ties: the earlier); both in one unit, `times` increasing."""
    after = np.clip(np.searchsorted(times, queries), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    is_before_nearer = np.abs(queries - times[before]) <= np.abs(times[after] - queries) + _SAME_TIME_S
    return np.where(is_before_nearer, before, after)


def nearest_frames(stream: Stream, query_times_s: np.ndarray, *, max_offset_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Index (Q,) of the frame nearest to each time (ties: the earlier) and whether it is valid and near enough (Q,)."""
    nearest = nearest_index(stream.times_s, query_times_s)
    offset_s = np.abs(stream.times_s[nearest] - query_times_s)
    return nearest, np.asarray(stream.is_valid)[nearest] & (offset_s <= max_offset_s + _SAME_TIME_S)


def poses_at(stream: Stream, query_times_s: np.ndarray, *, max_gap_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Poses (Q, 4, 4) by slerp and linear interpolation, and their validity (Q,)."""
    part = _around(stream, query_times_s, max_gap_s)
    held = _held_times(stream, query_times_s)
    return interpolate_poses(part.times_s, part.values, held, max_gap_s=max_gap_s, is_valid=part.is_valid)


def track_at(stream: Stream, query_times_s: np.ndarray, *, max_gap_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Values (Q, ...) linear between valid samples at most `max_gap_s` apart, and validity (Q,); 0 where invalid.

    A query whose nearest source sample is invalid stays invalid, however narrow the gap: a blink is not filled in.
    """
    part = _around(stream, query_times_s, max_gap_s)
    held = _held_times(stream, query_times_s)
    values = np.asarray(part.values, dtype=np.float64)
    is_valid = np.asarray(part.is_valid) & np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    result = np.zeros((len(held), *values.shape[1:]))
    if not is_valid.any():
        return result, np.zeros(len(held), dtype=bool)
    nearest, _ = nearest_frames(part, held, max_offset_s=np.inf)
    before, after, fraction, can_use = interpolation_weights(part.times_s[is_valid], held, max_gap_s=max_gap_s)
    known = values[is_valid]
    fraction = fraction.reshape(-1, *[1] * (values.ndim - 1))
    result = known[before] + fraction * (known[after] - known[before])
    can_use = can_use & is_valid[nearest]
    result[~can_use] = 0.0
    return result, can_use


def _held_times(stream: Stream, query_times_s: np.ndarray) -> np.ndarray:
    """Queries at most half a period beyond the stream's ends moved onto its ends."""
    clipped = np.clip(query_times_s, stream.times_s[0], stream.times_s[-1])
    reach_s = sample_period_s(stream.times_s) / 2 + _SAME_TIME_S
    return np.where(np.abs(clipped - query_times_s) <= reach_s, clipped, query_times_s)


def _around(stream: Stream, query_times_s: np.ndarray, margin_s: float) -> Stream:
    """The part of a stream that queries can see: an hour at 1 kHz is not touched for two seconds of it."""
    first = max(0, int(np.searchsorted(stream.times_s, query_times_s[0] - margin_s)) - 1)
    last = int(np.searchsorted(stream.times_s, query_times_s[-1] + margin_s)) + 1
    rows = slice(min(first, len(stream.times_s) - 1), max(last, 1))
    return Stream(stream.values[rows], np.asarray(stream.is_valid)[rows], stream.times_s[rows], stream.unit)
