"""Units of time stamps: from a header, to seconds without losing digits, and whether they can be meant.

T stamps. Stamps that are whole numbers stay int64 until they are seconds: nanoseconds since 1970 need 61 bits, a
float64 has 53.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

TimeUnit = Literal["s", "ms", "us", "ns", "100ns"]
UNITS_PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "100ns": 10**7, "ns": 10**9}
_UNIT_WORDS = {
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "millis", "milliseconds"),
    "us": ("us", "µs", "μs", "usec", "micros", "microseconds"),
    "100ns": ("100ns", "100 ns", "ticks"),
    "ns": ("ns", "nsec", "nanos", "nanoseconds"),
}
_UNIT_OF_WORD = {word: unit for unit, words in _UNIT_WORDS.items() for word in words}
_UNIT_IN_NAME = re.compile(r"(?:[\[(]\s*([^\])]+?)\s*[\])]|_([a-zµμ]+))\s*$")
_WHOLE = re.compile(r"[+-]?\d{1,19}")

# Limits of what can be meant. Nobody records three days in one go, or in the year 5000.
LONGEST_SPAN_S = 3 * 86400.0
_LATEST_S = 1e11
_LONGEST_PERIOD_S = 10.0
_SHORTEST_PERIOD_S = 1 / 100_000
# Gaze or poses once a second are stamps of another unit, unless somebody says it is this one.
_LONGEST_DENSE_PERIOD_S = 1.0
_DENSE = ("camera", "gaze")
_FASTEST_USUAL_PERIOD_S = 1 / 5000
_EPOCH_FROM = {"ns": 1e17, "us": 1e14, "ms": 1e11}  # stamps since 1970 are told by their size alone
_USUAL_PERIOD_S = 1 / 30


def unit_in_name(name: str) -> TimeUnit | None:
    """The unit a column's name states: `timestamp [ns]`, `time_ms`, `t (s)`; None: it states none."""
    found = _UNIT_IN_NAME.search(name.strip().lower())
    return _UNIT_OF_WORD.get(found.group(1) or found.group(2)) if found else None


def stated_unit(name: str, given: TimeUnit | None, *, where: str) -> TimeUnit | None:
    """The unit of a column: what its name states or what was given. Raises ValueError when they differ."""
    own = unit_in_name(name)
    if own and given and own != given:
        raise ValueError(f"{where}: the column {name!r} is in {own}, time_unit says {given}; one of them is wrong")
    return own or given


def stamps_from_text(cells: Sequence[str]) -> np.ndarray:
    """Stamps (T,): int64 where all are whole numbers, else float64. Raises ValueError on what is no number."""
    if all(_WHOLE.fullmatch(cell.strip()) for cell in cells):
        whole = [int(cell) for cell in cells]
        if not whole or max(map(abs, whole)) <= np.iinfo(np.int64).max:
            return np.array(whole, dtype=np.int64)
    return np.array([number_from_text(cell) for cell in cells], dtype=np.float64)


def number_from_text(cell: str) -> float:
    """As `float`, which would read `0_1` as 1. Raises ValueError on what is no number."""
    if "_" in cell:
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float(cell)


def seconds_from_stamps(stamps: np.ndarray, unit: TimeUnit, *, offset_s: float = 0.0) -> np.ndarray:
    """Seconds (T,) float64 of stamps (T,) plus an offset; whole stamps are rounded once, after the offset is added."""
    per_second = UNITS_PER_SECOND[unit]
    if not np.issubdtype(stamps.dtype, np.integer):
        return np.asarray(stamps, dtype=np.float64) / per_second + offset_s
    whole, rest = np.divmod(stamps.astype(np.int64), per_second)
    whole_offset = int(np.floor(offset_s))
    return (whole + whole_offset) + (rest / per_second + (offset_s - whole_offset))


def check_clock(
    stamps: np.ndarray, unit: TimeUnit, *, where: str, stream: str = "", is_unit_stated: bool = True, say: str = ""
) -> None:
    """Raise ValueError when a stream's stamps (T,) cannot be meant in this unit, naming span, period and likely unit.

    where            file, for the message
    stream           its name
    is_unit_stated   False: seconds were assumed, and poses or gaze once a second or slower are refused too
    say              the setting that states the unit
    """
    if len(stamps) == 0:
        return
    values = stamps.astype(np.float64)
    per_second = UNITS_PER_SECOND[unit]
    span_s = float(values[-1] - values[0]) / per_second
    periods = np.diff(values)
    # A few files repeat poses microseconds apart, so speed is judged by the mean; holes do not make a clock slow.
    mean_s = span_s / (len(values) - 1) if len(values) > 1 else 0.0
    median_s = float(np.median(periods)) / per_second if len(values) > 1 else 0.0
    longest_s = _LONGEST_PERIOD_S if is_unit_stated or stream not in _DENSE else _LONGEST_DENSE_PERIOD_S
    is_slow = median_s >= longest_s
    is_fast = len(values) > 1 and mean_s < _SHORTEST_PERIOD_S
    is_far = np.abs(values).max() / per_second > _LATEST_S or span_s > LONGEST_SPAN_S
    if not (is_slow or is_fast or is_far):
        return
    likely = _likely_unit(values, unit)
    advice = f"; the unit is likely {likely}" + (f", say {say}: {likely}" if say else "") if likely else ""
    raise ValueError(
        f"{where}: found times {stamps[0]} to {stamps[-1]} ({unit}): {span_s:.6g} s long, one sample every "
        f"{median_s:.4g} s, which cannot be meant{advice}"
    )


def _likely_unit(values: np.ndarray, unit: TimeUnit) -> str | None:
    for name, smallest in _EPOCH_FROM.items():
        if abs(values[0]) >= smallest:
            return name if name != unit else None
    period = float(np.median(np.diff(values))) if len(values) > 1 else 0.0
    candidates = [name for name in ("s", "ms", "us", "ns") if name != unit and period > 0]
    fitting = [
        name
        for name in candidates
        if _FASTEST_USUAL_PERIOD_S <= period / UNITS_PER_SECOND[name] <= _LONGEST_DENSE_PERIOD_S
    ]
    return min(
        fitting,
        key=lambda name: abs(np.log(period / UNITS_PER_SECOND[name] / _USUAL_PERIOD_S)),
        default=None,
    )
