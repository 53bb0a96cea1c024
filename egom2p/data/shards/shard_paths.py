"""Patterns that name shards: `root/[rgb,depth]/world/shard-{000000..000003}.tar`.

`[a,b]` lists folders (one list in a pattern), `{000..003}` and `{x,y}` expand as in a shell, `*` and `?` are globs.
"""

import re
from glob import glob
from itertools import product
from pathlib import PurePosixPath

from egom2p.storage import is_remote

_FOLDERS = re.compile(r"\[([^\[\]]*)\]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")


def expand_braces(pattern: str) -> list[str]:
    """All strings a pattern with `{000..003}` ranges and `{a,b}` lists stands for, in written order."""
    pieces = _BRACES.split(pattern)
    choices = [[piece] if i % 2 == 0 else _alternatives(piece, pattern) for i, piece in enumerate(pieces)]
    return ["".join(choice) for choice in product(*choices)]


def split_folders(pattern: str) -> dict[str, str]:
    """Folder -> pattern of that folder, in the listed order.

    Without a `[...]` list the folder is the one above the data set: `root/<folder>/<dataset>/shard-*.tar`.
    """
    found = _FOLDERS.findall(pattern)
    if len(found) > 1:
        raise ValueError(f"{pattern}: a pattern has one [...] list of folders, found {len(found)}")
    if not found:
        parts = PurePosixPath(pattern).parts
        if len(parts) < 3:
            raise ValueError(f"{pattern}: without a [...] list the pattern must be <folder>/<dataset>/<shards>")
        return {parts[-3]: pattern}
    folders = [folder.strip() for folder in found[0].split(",")]
    if "" in folders or len(set(folders)) != len(folders):
        raise ValueError(f"{pattern}: the list of folders has an empty or repeated name: {folders}")
    return {folder: _FOLDERS.sub(lambda _, folder=folder: folder, pattern) for folder in folders}


def expand_files(pattern: str) -> list[str]:
    """Existing files of one folder's pattern: braces in written order, globs sorted. Raises ValueError if none."""
    files: list[str] = []
    for path in expand_braces(pattern):
        if any(mark in path for mark in "*?"):
            if is_remote(path):
                raise ValueError(f"{path}: a remote pattern cannot hold * or ?; write a range {{000000..000003}}")
            files += sorted(glob(path, recursive=True))
        else:
            files.append(path)
    if not files:
        raise ValueError(f"{pattern}: no file matches")
    return files


def _alternatives(inside: str, pattern: str) -> list[str]:
    matched = _RANGE.match(inside)
    if matched is None:
        return inside.split(",")
    first, last = matched.groups()
    if int(last) < int(first):
        raise ValueError(f"{pattern}: the range {{{inside}}} ends before it starts")
    width = len(first)
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
