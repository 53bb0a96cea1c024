"""JSON on disk, written atomically, read with errors that name the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.storage.atomic import atomic_file


def save_json(path: str | Path, value: Any) -> None:
    """Write plain values (also numpy scalars and arrays, paths, tuples) as indented JSON."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, default=_as_plain) + "\n", encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read JSON; ValueError names the file and the line where it breaks, FileNotFoundError the missing file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")
