"""Stamps become seconds without losing digits, and stamps of another unit are recognised."""

import numpy as np
import pytest

from egom2p.geometry import check_clock, seconds_from_stamps, stamps_from_text, stated_unit, unit_in_name


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("timestamp [ns]", "ns"),
        ("Recording timestamp [\u03bcs]", "us"),
        ("tracking_timestamp_us", "us"),
        ("time_ms", "ms"),
        ("t (s)", "s"),
        ("times_s", "s"),
        ("time(100ns)", "100ns"),
        ("timestamps", None),
        ("gaze x [px]", None),
    ],
)
def test_a_column_name_states_its_unit(name, unit):
    assert unit_in_name(name) == unit


def test_a_unit_that_contradicts_the_header_is_refused():
    assert stated_unit("timestamp [ns]", None, where="f") == "ns" and stated_unit("timestamp", "ms", where="f") == "ms"
    with pytest.raises(ValueError, match=r"f: the column 'timestamp \[ns\]' is in ns, time_unit says us"):
        stated_unit("timestamp [ns]", "us", where="f")


def test_nanoseconds_since_1970_keep_every_digit():
    """Differences of 4 ms written in ns: exact once the clock starts near 0, and rounded once otherwise."""
    first = 1_650_316_509_598_345_895
    cells = [str(first + k * 4_018_943) for k in range(1000)]
    stamps = stamps_from_text(cells)
    assert stamps.dtype == np.int64 and [str(stamp) for stamp in stamps] == cells
    exact = [(int(cell) - 1_650_316_509 * 10**9) / 1e9 for cell in cells]
    np.testing.assert_allclose(seconds_from_stamps(stamps, "ns", offset_s=-1_650_316_509.0), exact, atol=1e-15)
    absolute = seconds_from_stamps(stamps, "ns")
    nearest = [int(cell) // 10**9 + int(cell) % 10**9 / 1e9 for cell in cells]
    assert np.abs(absolute - nearest).max() <= np.spacing(1.65e9) / 2


@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("100ns", 10**7), ("ns", 10**9)]
)
def test_units_mean_what_they_say(unit, per_second):
    np.testing.assert_allclose(seconds_from_stamps(np.array([0, 3 * per_second]), unit, offset_s=0.5), [0.5, 3.5])
    np.testing.assert_allclose(seconds_from_stamps(np.array([0, 1.5 * per_second]), unit), [0, 1.5])


@pytest.mark.parametrize("true_unit", ["ms", "us", "ns"])
@pytest.mark.parametrize(("rate_hz", "start_s"), [(30, 0.0), (60, 5.0), (200, 1.6e9)])
def test_stamps_of_another_unit_are_refused_with_the_likely_one(true_unit, rate_hz, start_s):
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[true_unit]
    stamps = np.array([round((start_s + k / rate_hz) * per_second) for k in range(150)])
    check_clock(stamps, true_unit, where="f", stream="gaze")
    with pytest.raises(ValueError, match=f"f: found times {stamps[0]} .*likely {true_unit}, say gaze.time_unit"):
        check_clock(stamps, "s", where="f", stream="gaze", is_unit_stated=False, say="gaze.time_unit")


def test_spans_and_rates_that_cannot_be_meant():
    with pytest.raises(ValueError, match="cannot be meant"):  # 30 Hz in seconds, called nanoseconds: 30 GHz
        check_clock(np.arange(100) / 30, "ns", where="f")
    with pytest.raises(ValueError, match="one sample every 10 s"):
        check_clock(np.arange(100) * 10.0, "s", where="f")
    with pytest.raises(ValueError, match="864000 s long"):  # ten days in one go, however dense
        check_clock(np.linspace(0, 864000, 10**6), "s", where="f")
    check_clock(np.arange(100) * 5.0, "s", where="f", stream="heart_rate")
    check_clock(np.array([1.0]), "s", where="f", stream="gaze")
