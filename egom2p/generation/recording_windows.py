"""Where the windows of a long recording lie.

A window starts on a time at which every clock of the clips has a sample (8 Hz pictures and 30 Hz tracks share every
half second), so that the samples of neighbouring windows coincide and nothing is resampled twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd

from egom2p.contracts import AlignedClip, Recording
from egom2p.data.clips.clip_alignment import ClipConfig, RecordingTooShort, Window, clip_key, cut_clip, plan_clips
from egom2p.generation.generation_inputs import tell_too_short


@dataclass(frozen=True)
class Segment:
    """Windows of one recording without a gap between them.

    key        for files and folders; the recording's own, with `_part2` ... behind it where it has several segments
    unused_s   seconds of the recording after (or between) the windows that no window covers
    """

    key: str
    recording: Recording
    config: ClipConfig
    windows: tuple[Window, ...]
    unused_s: float

    @property
    def start_s(self) -> float:
        return self.windows[0].start_s

    @property
    def duration_s(self) -> float:
        return self.windows[-1].start_s - self.start_s + self.config.duration_s

    def first_sample(self, window: Window, rate_hz: float) -> int:
        """Number of a window's first sample in the whole segment."""
        return round((window.start_s - self.start_s) * rate_hz)

    def num_samples(self, rate_hz: float) -> int:
        """Samples of the whole segment."""
        return round(self.duration_s * rate_hz)

    def clip(self, window: Window) -> AlignedClip:
        """One window, read when asked for."""
        clip = cut_clip(self.recording, window, self.config)
        return replace(clip, key=f"{self.key}_{window.index:06d}")


def common_step_s(rates_hz: Iterable[float]) -> float:
    """The shortest time in which every clock makes a whole number of samples."""
    rates = [Fraction(rate).limit_denominator(1001) for rate in rates_hz]
    numerator, denominator = 0, 1
    for rate in rates:
        numerator = gcd(numerator * rate.denominator, rate.numerator * denominator)
        denominator *= rate.denominator
    return float(Fraction(denominator, numerator))


def overlap_of(config: ClipConfig, wanted_s: float | None = None) -> float:
    """Seconds that neighbouring windows share: half a clip, or what is wanted; ValueError where clocks do not allow it.

    Zero where the clocks only meet at the ends of a clip.
    """
    step_s = common_step_s((config.video_rate_hz, config.track_rate_hz))
    if wanted_s is None:
        return int(config.duration_s / 2 / step_s + 1e-6) * step_s
    steps = wanted_s / step_s
    if not 0 <= wanted_s < config.duration_s or abs(steps - round(steps)) > 1e-6:
        allowed = [f"{k * step_s:g}" for k in range(20) if k * step_s < config.duration_s - 1e-9]
        raise ValueError(
            f"overlap_s must be one of {', '.join(allowed)} (windows of {config.duration_s:g} s, pictures at "
            f"{config.video_rate_hz:g} Hz, tracks at {config.track_rate_hz:g} Hz), got {wanted_s:g}"
        )
    return wanted_s


def plan_segments(recording: Recording, config: ClipConfig, *, overlap_s: float) -> list[Segment]:
    """Windows every `duration_s - overlap_s`, the last as late as the recording allows; split where streams miss.

    Raises RecordingTooShort naming recording, found and wanted.
    """
    step_s = common_step_s((config.video_rate_hz, config.track_rate_hz))
    try:
        plan = plan_clips(recording, replace(config, stride_s=step_s))
    except RecordingTooShort:
        raise RecordingTooShort(tell_too_short(recording, config)) from None
    if not plan.windows:
        raise RecordingTooShort(tell_too_short(recording, config))
    runs: list[list[Window]] = []
    for window in plan.windows:
        if runs and window.index - runs[-1][-1].index == 1:
            runs[-1].append(window)
        else:
            runs.append([window])
    hop = round((config.duration_s - overlap_s) / step_s)
    base = clip_key(recording.name, 0).removesuffix("_000000")
    segments = []
    for number, run in enumerate(runs, start=1):
        chosen = run[::hop]
        if chosen[-1] is not run[-1]:
            chosen = [*chosen, run[-1]]
        key = base if number == 1 else f"{base}_part{number}"
        segments.append(Segment(key, recording, config, tuple(chosen), unused_s=plan.unused_s))
    return segments
