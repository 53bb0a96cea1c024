"""Ranks that watch each other: one that hangs is named with the stacks of all, and signals are obeyed meanwhile.

A rank inside a collective waits for its peers in C++, where no Python runs: neither a message nor a signal's handler.
So a thread of every rank writes a sign of life into the store of the launch (with what the rank does, and its stack),
and reads those of others: the first rank reads all, the others read the first's, so the store's work grows with the
number of ranks only. A stopped rank cannot say where it stands; the last stack that it reported is shown.
"""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

HANG_CODE = 4
_BEAT_S = 1.0
_OBEY_S = 5.0  # a peer without a sign for so long is not waited for once a signal came
_STUCK_S = 20.0  # nor one that lives, but does not come to the collective this rank waits in
_STORE_TIMEOUT_S = 10.0
_GONE_BEATS = 5  # so many are waited for before a rank is said to be gone
_NUM_FRAMES = 12
RUNS, WAITS, BUSY = "computes", "waits for other ranks", "evaluates or writes"


class Activity:
    """What the main thread of this process does, for its watchdog; `count` grows whenever that changes."""

    def __init__(self) -> None:
        self.state, self.count = RUNS, 0

    @contextlib.contextmanager
    def doing(self, state: str) -> Iterator[None]:
        before, self.state = self.state, state
        self.count += 1
        try:
            yield
        finally:
            self.state = before
            self.count += 1


activity = Activity()


class _Seen:
    """The newest sign of one rank, and when it and what it does last changed, on the clock of this process."""

    def __init__(self, now_s: float) -> None:
        self.beat: dict[str, Any] = {"beat": -1, "count": -1, "state": RUNS, "stack": "  nothing reported yet\n"}
        self.beat_s = self.count_s = now_s

    def update(self, beat: dict[str, Any], now_s: float) -> None:
        if beat["beat"] != self.beat["beat"]:
            self.beat_s = now_s
        if beat["count"] != self.beat["count"]:
            self.count_s = now_s
        self.beat = beat


class Watchdog:
    """Context of the work of several ranks.

    limit_s   a rank without a sign for so long ends all others with code 4; one that lives and keeps the others waiting
              for so long is named, and waited for (`training.collective_timeout_s` ends that)
    signals   numbers that end the process with 128 + number when a peer hangs, so that they cannot be obeyed in order
    leave     how the process ends; `os._exit`, for the main thread may never return
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        world_size: int,
        limit_s: float,
        signals: tuple[int, ...],
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self._store, self._rank, self._world_size, self._limit_s = store, rank, world_size, limit_s
        self._signals, self._leave = signals, leave
        self._main = threading.main_thread().ident
        self._beat = 0
        self._signal, self._signal_s = 0, 0.0
        now_s = time.monotonic()
        self._seen = {other: _Seen(now_s) for other in range(world_size)}
        self._named_s = self._store_s = self._woken_s = now_s
        self._is_ended = self._is_broken = False

    def __enter__(self) -> "Watchdog":
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._previous_fd: int | None = None
        if threading.current_thread() is threading.main_thread():
            # The C part of a handler writes here at once; its Python part waits for the collective to end.
            self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="watchdog of ranks", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        # Torch's errors of a collective that breaks (a peer's process is gone) are RuntimeErrors that name no rank.
        gone = None
        if isinstance(error, RuntimeError):
            with self._undisturbed():
                gone = self._who_is_gone()
        self._is_ended = True
        if self._previous_fd is not None:
            signal.set_wakeup_fd(self._previous_fd)
        os.write(self._write_fd, b"\0")
        self._thread.join(2 * _STORE_TIMEOUT_S)
        os.close(self._write_fd)
        os.close(self._read_fd)
        if gone is not None:
            self._say(
                f"{gone} ({str(error).splitlines()[0]:.120}); the same command goes on from the newest checkpoint"
            )
            raise SystemExit(HANG_CODE) from error

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """No signal ends this process before it has said who is gone: a launcher that saw it sends one at once."""
        is_main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, signal.SIG_IGN) for number in self._signals} if is_main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _who_is_gone(self) -> str | None:
        """Which ranks give no sign of life any more, once the others had the time for some; None: all do."""
        self._is_broken = True
        time.sleep(_GONE_BEATS * _BEAT_S)
        now_s = time.monotonic()
        if now_s - self._store_s > (_GONE_BEATS - 2) * _BEAT_S:
            return "the process that keeps the store of this launch (its launcher, or rank 0) is gone"
        since_s = (_GONE_BEATS - 2) * _BEAT_S
        silent = [other for other, seen in self._seen.items() if other != self._rank and now_s - seen.beat_s > since_s]
        return (
            f"{_ranks(silent)} broke off and gives no sign of life: killed, or its machine is gone" if silent else None
        )

    def _watch(self) -> None:
        while not self._is_ended:
            self._turn()
            readable, _, _ = select.select([self._read_fd], [], [], _BEAT_S)
            for number in os.read(self._read_fd, 64) if readable else b"":
                if number in self._signals and not self._signal:
                    self._signal, self._signal_s = number, time.monotonic()

    def _turn(self) -> None:
        now_s = time.monotonic()
        if now_s - self._woken_s > self._limit_s / 2:
            # This process was stopped itself (a suspended job): what it did not see meanwhile tells nothing.
            for seen in self._seen.values():
                seen.beat_s = seen.count_s = now_s
            self._store_s = now_s
        self._woken_s = now_s
        try:
            self._exchange(now_s, everybody=self._rank == 0 or self._signal > 0 or self._is_broken)
            self._store_s = time.monotonic()
        except (RuntimeError, ValueError) as error:  # torch's errors of a store are RuntimeErrors
            if time.monotonic() - self._store_s > self._limit_s and not self._is_ended:
                why = str(error).splitlines()[0]
                self._end(
                    HANG_CODE,
                    f"the store of this launch, which its launcher or rank 0 keeps, does not answer for "
                    f"{self._limit_s:g} s ({why}): that process is stopped or gone",
                )
            return
        if not self._is_ended:
            self._judge(time.monotonic())

    def _exchange(self, now_s: float, *, everybody: bool) -> None:
        self._beat += 1
        frame = sys._current_frames().get(self._main)
        stack = "".join(traceback.format_stack(frame, _NUM_FRAMES)) if frame is not None else ""
        beat = {"beat": self._beat, "count": activity.count, "state": activity.state, "stack": stack}
        self._store.set(f"beat/{self._rank}", json.dumps(beat))
        self._seen[self._rank].update(beat, now_s)
        for other in range(self._world_size) if everybody else (0,):
            if other != self._rank and self._store.check([f"beat/{other}"]):
                self._seen[other].update(json.loads(self._store.get(f"beat/{other}")), time.monotonic())

    def _judge(self, now_s: float) -> None:
        watched = [other for other in (range(self._world_size) if self._rank == 0 else (0,)) if other != self._rank]
        if self._rank and self._store.check(["verdict"]):
            self._end(HANG_CODE, "")  # the rank that found it has said it
        # Of the other ranks the lowest speaks first.
        limit_s = self._limit_s + min(self._rank, 10) * _BEAT_S
        if silent := [other for other in watched if now_s - self._seen[other].beat_s > limit_s]:
            self._exchange(now_s, everybody=True)
            text = (
                f"{_ranks(silent)} gave no sign of life for {limit_s:.0f} s: stopped, swapped out, or its machine is "
                f"gone. All ranks end (code {HANG_CODE}); the same command goes on from the newest checkpoint\n"
                f"{self._stacks()}"
            )
            self._store.set("verdict", text)
            self._end(HANG_CODE, text)
        own = self._seen[self._rank]
        stuck = [
            other
            for other in range(self._world_size)
            if self._seen[other].beat["state"] == RUNS and self._seen[other].beat["beat"] >= 0
        ]
        if self._signal and own.beat["state"] != BUSY:
            since_s = self._signal_s
            silent = [
                other
                for other, seen in self._seen.items()
                if other != self._rank and now_s - max(seen.beat_s, since_s) > _OBEY_S
            ]
            late = [other for other in stuck if now_s - max(self._seen[other].count_s, since_s) > _STUCK_S]
            waits_s = now_s - max(own.count_s, since_s)
            if (silent and waits_s > _OBEY_S) or (late and own.beat["state"] == WAITS and waits_s > _STUCK_S):
                name = signal.Signals(self._signal).name
                self._end(
                    128 + self._signal,
                    f"ends by {name}, in the middle of a step, for {_ranks(silent or late)} does not come; the same "
                    f"command goes on from the newest checkpoint\n{self._stacks()}",
                )
        late = [other for other in stuck if now_s - self._seen[other].count_s > self._limit_s]
        is_due = now_s - max(own.count_s, self._named_s) > self._limit_s
        if self._rank <= 1 and late and own.beat["state"] == WAITS and is_due:
            self._named_s = now_s
            self._say(f"{_ranks(late)} lives but keeps the others waiting for {self._limit_s:g} s\n{self._stacks()}")

    def _stacks(self) -> str:
        parts = []
        for other, seen in self._seen.items():
            age_s = time.monotonic() - seen.beat_s
            parts.append(f"rank {other} {seen.beat['state']} (as of {age_s:.0f} s ago):\n{seen.beat['stack']}")
        return "Stacks of the main threads, most recent call last:\n" + "".join(parts)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"watchdog of rank {self._rank}: {text}\n")
        sys.stderr.flush()

    def _end(self, code: int, text: str) -> None:
        if text:
            self._say(text)
        self._is_ended = True
        self._leave(code)


def launch_store(number: int) -> dist.Store | None:
    """A connection of its own to the store of the launch (torchrun's, or rank 0's); None where none is announced.

    number   of the job in this process: jobs of a sweep share one store
    """
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return None
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_STORE_TIMEOUT_S),
        wait_for_workers=False,
    )
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"egom2p watchdog {restart} {number}", store)


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
