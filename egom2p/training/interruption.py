"""Turning a request to stop (ctrl-C, SIGTERM of a scheduler) into a flag that the loop reads between steps."""

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context in which the first signal sets `signal_number`; a second ctrl-C interrupts at once.

    SIGUSR1 is what Slurm sends some time before it preempts a job.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


def end_if_stopped(signal_number: int) -> None:
    """End the process as the signal would have, so that what was to follow (a Makefile's next stage) does not start."""
    if signal_number:
        raise SystemExit(128 + signal_number)
