"""Progress of long work: a bar and lines on stderr for people, a ledger of finished parts for the run that goes on,
and what the time went to."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from egom2p.storage import append_to, errors_name


@contextmanager
def progress_bar(title: str, total: int | None, *, is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by a number of finished things; total None: not known beforehand."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.update(task, advance=count)


def say(text: str) -> None:
    """One line for a person, on stderr."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def listed(words: Sequence[str], most: int = 20) -> str:
    """The first words between commas, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


class Ledger:
    """A file of finished parts, a JSON line each, appended by one process at a time.

    Lines and not a database: appending one costs nothing, people can read them, and of a process that is killed while
    it writes only the last line is torn. A torn line does not count, and the next
    one starts in its place.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)

    def entries(self) -> Iterator[dict[str, Any]]:
        """What was appended, in that order, one line in memory at a time; nothing where there is no file.

        ValueError names a whole line that is not JSON: another program wrote here, or the disk is broken.
        """
        if not self.file.is_file():
            return
        with self.file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"{self.file}: line {number} is not JSON ({error}); remove the file to begin this part anew"
                    ) from None
                yield entry

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Several parts at once; they count when this returns."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        with errors_name(self.file), append_to(self.file) as opened:
            self._drop_torn_line(opened)
            opened.write(text.encode())

    @staticmethod
    def _drop_torn_line(opened: BinaryIO) -> None:
        """Here and not where entries are read: a reader must not cut off what another process is writing."""
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(end - 1, 0))
        if opened.read(1) in (b"", b"\n"):
            return
        opened.seek(0)
        opened.truncate(opened.read().rfind(b"\n") + 1)


_spent_s: dict[str, float] = {}
_spent_lock = threading.Lock()


@contextmanager
def timed(activity: str) -> Iterator[None]:
    """Count the time of the block for an activity of this process, whatever its thread."""
    started = time.perf_counter()
    try:
        yield
    finally:
        with _spent_lock:
            _spent_s[activity] = _spent_s.get(activity, 0.0) + time.perf_counter() - started


def take_times() -> dict[str, float]:
    """Seconds of each activity since the last call."""
    with _spent_lock:
        found = dict(_spent_s)
        _spent_s.clear()
    return found


def time_shares(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Activity -> its share of the time that all of them took, over all processes; largest first."""
    sums: dict[str, float] = {}
    for row in times:
        for activity, spent_s in row.items():
            sums[activity] = sums.get(activity, 0.0) + spent_s
    total = sum(sums.values()) or 1.0
    return {activity: round(spent_s / total, 4) for activity, spent_s in sorted(sums.items(), key=lambda row: -row[1])}
