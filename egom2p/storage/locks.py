"""One writer for a folder at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Hold `folder` (made if absent) for this process; ValueError when another process holds it.

    The hold ends with the process, however it ends. File systems without locks are left unguarded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".writer").open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is writing here; wait for it, or stop it first") from None
        except OSError:
            pass  # no locks on this file system
        yield
