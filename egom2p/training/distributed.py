"""This process: its rank among those that torchrun started, its device and precision, and whether it shall stop."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from egom2p.jobs.workers import choose_device
from egom2p.training.watchdog import WAITS, Watchdog, activity, launch_store

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # of several the first counts


@dataclass(frozen=True)
class Ranks:
    """This process among its peers, and its device. One process alone is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_ints(self, values: Sequence[int]) -> list[int]:
        """Sum each number over ranks, through host memory: the device is neither asked nor waited for."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64)
        with activity.doing(WAITS):
            dist.all_reduce(total)
        return total.tolist()

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """Sum each number over ranks in double precision, through host memory."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with activity.doing(WAITS):
            dist.all_reduce(total)
        return total.tolist()

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Sum of a tensor over ranks, on its device."""
        if self.world_size == 1:
            return values
        total = values.clone()
        with activity.doing(WAITS):
            dist.all_reduce(total)
        return total

    def from_first(self, value: Any) -> Any:
        """The value that rank 0 holds."""
        if self.world_size == 1:
            return value
        box = [value]
        with activity.doing(WAITS):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait_for_all(self) -> None:
        if self.world_size > 1:
            with activity.doing(WAITS):
                dist.barrier()


@contextmanager
def ranks_of_launch(
    device: str = "auto", *, timeout_s: float = 1800.0, watchdog_s: float | None = None
) -> Iterator[Ranks]:
    """Join the ranks that the environment of torchrun describes (one rank without it); leave them at the end.

    device      `auto` takes this rank's CUDA device where there is one, else the CPU
    timeout_s   how long a rank waits for the others before it fails
    watchdog_s  a rank that gives no sign of life for so long is named, and ends the launch; None: nobody watches
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, only_cuda=True)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Ranks(device=chosen)
        return
    # Both backends: counts are summed through host memory while the device computes.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    is_ours = not dist.is_initialized()  # several jobs of a sweep share one process group
    if is_ours:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    ranks = Ranks(rank=dist.get_rank(), world_size=world_size, device=chosen)
    with _watched(ranks, watchdog_s):
        yield ranks
    # Not in a `finally`: after an error the peers are inside a collective, and leaving politely would wait for them.
    if is_ours:
        # All work is done and saved. A peer that has passed the barrier may close its connections before this rank has
        # read its last message; that is no failure of the run.
        with suppress(RuntimeError):
            dist.barrier()
        dist.destroy_process_group()


_launches = count()


def _watched(ranks: Ranks, limit_s: float | None) -> AbstractContextManager:
    store = None if limit_s is None else launch_store(next(_launches))
    if store is None:
        return nullcontext()
    return Watchdog(store, rank=ranks.rank, world_size=ranks.world_size, limit_s=limit_s, signals=STOP_SIGNALS)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; does nothing for float32."""
    is_half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if is_half else torch.bfloat16, enabled=is_half)


class StopRequest:
    """Context in which the first signal sets `signal_number`; a second ctrl-C interrupts at once.

    SIGUSR1 is what Slurm sends some time before it preempts a job.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
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
