"""Progress of long work, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
