"""Processes and what they compute on: the same functions over many tasks, here or in several, results in order."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any, Literal, TypeVar

import torch

Result = TypeVar("Result")
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_POLL_S = 0.2
_PARENT_POLL_S = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def choose_device(wanted: str = "auto", *, only_cuda: bool = False) -> torch.device:
    """What this process computes on; of several devices that of its rank on the machine (`LOCAL_RANK`).

    `auto` is the accelerator where there is one, else the CPU. ValueError for a device that this machine does not have.

    only_cuda   `auto` passes over other accelerators: training and tokenization were never run on them
    """
    if wanted == "auto":
        has_one = torch.cuda.is_available() if only_cuda else torch.accelerator.is_available()
        wanted = torch.accelerator.current_accelerator().type if has_one else "cpu"
    try:
        device = torch.device(wanted)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device: {wanted} is not to be had here ({why}); use device=auto or cpu") from None
    return device


def choose_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 elsewhere: few CPUs (AVX512-BF16, AMX) gain from it (docs/PERFORMANCE.md)."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return _DTYPES[name]


def made_ahead(make: Callable[[Any], Result], items: Iterable[Any], *, num_threads: int) -> Iterator[Result]:
    """`make(item)` of every item, in their order, by threads that are a few items ahead; 0 threads: when it is asked.

    For work that mostly waits for disks or runs outside of Python. The first error ends it where it belongs.
    """
    if num_threads == 0:
        yield from map(make, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="made ahead") as pool:
        coming: deque[Future[Result]] = deque(pool.submit(make, item) for item in islice(left, 2 * num_threads))
        try:
            while coming:
                found = coming.popleft().result()
                coming.extend(pool.submit(make, item) for item in islice(left, 1))
                yield found
        finally:
            for future in coming:
                future.cancel()


class _Ticks:
    """Where `tick` reports to in this process: a callback at home, shared memory in a worker."""

    report: Callable[[int], None] | None = None


def tick(count: int = 1) -> None:
    """Called by a function at work: so many things more are finished."""
    if _Ticks.report is not None:
        _Ticks.report(count)


@contextmanager
def collect_ticks() -> Iterator[Callable[[], int]]:
    """What is ticked in the block is counted here; yields a function that tells the count."""
    counts: list[int] = []
    _Ticks.report = counts.append
    try:
        yield lambda: sum(counts)
    finally:
        _Ticks.report = None


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """For the start of a worker, e.g. as `worker_init_fn` of a DataLoader: it ends when its parent does, no sooner.

    Ctrl-C and a scheduler's signals reach workers too, but the parent still needs their results to end in order. When
    the parent is gone the worker ends within a second, also while it waits for somebody to read what it has made: of a
    pipe that is full its siblings hold the reading end, so without a parent it would wait for ever, with all it holds.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # `from_workers` held them back until here
    _end_with_parent()


_left: set[Any] = set()  # worker processes of iterators that are not at their end


def from_workers(loader: Iterable[Result]) -> Iterator[Result]:
    """Items of a DataLoader whose workers begin with `leave_signals_to_the_parent`; none outlives iterator or process.

    No signal reaches a worker between its fork and its beginning. Python's own end of a process sends SIGTERM to
    children and waits for them, for ever if they ignore it: those of an iterator that nobody closed (an error holds it)
    are killed before that.
    """
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    made = set(multiprocessing.active_children()) - others
    _left.update(made)
    try:
        yield from items
    finally:
        del items  # ends its workers in order, and forgets them: a kill then is no failure of theirs
        _kill(made)
        _left.difference_update(made)


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


@atexit.register  # runs before what multiprocessing registered when it was imported
def _kill_left() -> None:
    if _left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as failed
        _kill(_left)


def _end_with_parent() -> None:
    """At once where nobody else holds the other end of the sentinel, else (siblings made by fork do) within a poll.

    What this process was forked from may be the fork server, which lives a little longer than the process it works for.
    """
    parent, made_by = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == parent and not wait_for([made_by.sentinel], timeout=_PARENT_POLL_S):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="ends with the parent", daemon=True).start()


class Workers:
    """Processes that stay for several rounds of tasks; a context manager.

    num_workers   0 or 1: everything happens in this process
    prepare       called with `arguments` once in every process before its first task

    Workers compute on one thread each and end with the block, at once if it ends with an error or ctrl-C.
    """

    def __init__(self, num_workers: int, prepare: Callable[..., None], arguments: tuple) -> None:
        self._num_workers, self._prepare, self._arguments = num_workers, prepare, arguments
        self._pool: ProcessPoolExecutor | None = None
        self._is_prepared = False

    def run(
        self, function: Callable[[Any], Result], tasks: Sequence[Any], *, on_tick: Callable[[int], None]
    ) -> Iterator[Result]:
        """Results of `function(task)` in the order of the tasks; `on_tick` gets what `tick` counts anywhere.

        The error of a task is raised when its turn comes.
        """
        if self._num_workers <= 1 or (self._pool is None and len(tasks) <= 1):
            yield from self._run_here(function, tasks, on_tick)
            return
        if self._pool is None:
            self._start()
        futures = [self._pool.submit(function, task) for task in tasks]
        seen = self._counter.value
        for future in futures:
            while not future.done():
                wait([future], timeout=_POLL_S)
                seen = self._forward(seen, on_tick)
            seen = self._forward(seen, on_tick)
            yield future.result()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def _run_here(self, function: Callable, tasks: Sequence, on_tick: Callable[[int], None]) -> Iterator:
        if not self._is_prepared:
            self._prepare(*self._arguments)
            self._is_prepared = True
        _Ticks.report = on_tick
        try:
            for task in tasks:
                yield function(task)
        finally:
            _Ticks.report = None

    def _start(self) -> None:
        # Not plain fork: this process has threads (progress, torch), which a fork would leave half alive. A fork
        # server imports the heavy packages once for all workers; where there is none every worker imports them.
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if has_server else "spawn")
        if has_server:
            context.set_forkserver_preload([self._prepare.__module__])
        self._counter = context.Value("q", 0)
        self._others = set(multiprocessing.active_children())
        arguments = (self._counter, self._prepare, self._arguments)
        self._pool = ProcessPoolExecutor(self._num_workers, context, initializer=_begin, initargs=arguments)

    def _forward(self, seen: int, on_tick: Callable[[int], None]) -> int:
        now = self._counter.value
        if now > seen:
            on_tick(now - seen)
        return now


def _begin(counter: Any, prepare: Callable[..., None], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the parent, which ends its workers
    _end_with_parent()
    torch.set_num_threads(1)

    def report(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    _Ticks.report = report
    prepare(*arguments)
