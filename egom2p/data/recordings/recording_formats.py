"""What every reader of a foreign format has in common: finding recordings, choosing among them, what is left over.

A format is one file beside this one with one subclass of `FormatReader` and its config, a subclass of `FolderSource`;
`reader_choice.FORMATS` lists the class, and all else (the union of sources, recognition) follows from it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from egom2p.config import strict
from egom2p.contracts import Intrinsics, Provenance, Recording, Stream
from egom2p.data.recordings.track_files import TABLE_SUFFIXES, cut_notes, entries_of, files_below, is_folder, visible

# Files that may hold other numbers in as many bytes, and how much of each is looked at: all, or blocks over its length.
_TRACKS = (*TABLE_SUFFIXES, ".txt", ".yaml", ".yml", ".tum", ".json", ".jsonl", ".log", ".npz", ".npy", ".hdf5")
_NUM_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


@strict
class FolderSource:
    """Where recordings of a format lie. A format's own source adds its `kind` and what its files cannot say."""

    root: str
    names: tuple[str, ...] | None = None  # only these recordings


class Opened(NamedTuple):
    """What a reader makes of one recording.

    files    files (or whole folders) that the streams are from
    notes    what a person should know beside what the pictures say: above all, how much was left out and why
    """

    streams: Mapping[str, Stream]
    intrinsics: Intrinsics | None
    files: Iterable[Path]
    notes: Sequence[str] = ()


class FormatReader:
    """Recordings of one format below a root, sorted by name.

    source   class of its config, with a `kind: Literal[...]`
    what     the format in words, for people
    groups   regular expression on names of recordings, with the groups `participant` and `environment` that they tell
    """

    source: ClassVar[type[FolderSource]]
    what: ClassVar[str]
    groups: ClassVar[str] = ""

    def __init__(self, config: Any, *, dataset: str = "") -> None:
        self.config, self.dataset, self.root = config, dataset, Path(config.root)
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder of recordings ({self.what})")
        self.paths: Mapping[str, Path] = self.find(self.root)
        missing = sorted(set(config.names or ()) - set(self.paths))
        if missing or not self.paths:
            held = list(self.paths)[:20] or [path.name for path in visible(self.root)][:20]
            raise ValueError(f"{self.root}: found {held}, wanted {missing or 'recordings'} of {self.what}")
        self.names: tuple[str, ...] = tuple(dict.fromkeys(sorted(self.paths) if config.names is None else config.names))

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        """Recordings of this format by name, each with its folder or main file; empty: a root is not in this format.

        Looks at names of files and small headers only, and never raises for what is in another format.
        """
        raise NotImplementedError

    def open(self, name: str, path: Path) -> Opened:
        """One recording; pictures stay in their files. Raises ValueError naming the file that is wrong."""
        raise NotImplementedError

    def files(self, name: str) -> Sequence[Path]:
        """Files and folders that belong to one recording; by default what lies below its path."""
        return (self.paths[name],)

    def read(self, index: int) -> Recording:
        name = self.names[index]
        streams, intrinsics, used, said = self.open(name, self.paths[name])
        pictures = streams["rgb"].values if "rgb" in streams else None
        if not getattr(pictures, "is_as_stored", True) and (intrinsics or {"camera", "gaze"} & set(streams)):
            raise ValueError(
                f"{self.paths[name]}: found a video that says of itself that it is turned or has pixels that are not "
                f"square; poses, gaze and intrinsics of {self.what} are of the picture as stored, wanted it so"
            )
        unused = tuple(file for path in self.files(name) for file in unused_files(path, used))
        provenance = Provenance(self.dataset, name, source=str(self.paths[name]))
        notes = (*getattr(pictures, "notes", ()), *said, *cut_notes(used))
        return Recording(name, streams, intrinsics, provenance, unused=unused, notes=notes)

    def signature(self, index: int, *, is_whole: bool) -> dict[str, str]:
        return files_signature(self.root, self.files(self.names[index]), is_whole=is_whole)

    @property
    def unused(self) -> list[str]:
        """Files and folders below the root that belong to no recording."""
        used: list[Path] = []
        for name, path in self.paths.items():
            try:
                used += self.files(name)
            except ValueError:  # said when the recording is read
                used.append(path)
        return unused_files(self.root, used)


def folders_with(root: Path, *markers: str, depth: int = 1) -> dict[str, Path]:
    """Folders that hold all of `markers` (globs, relative): the root itself, else those up to `depth` levels below.

    A folder is called by its path below the root, parts joined by `_`; the root by its own name.
    """

    def holds_all(folder: Path) -> bool:
        return all(any(path.name[0] != "." for path in folder.glob(marker)) for marker in markers)

    if holds_all(root):
        return {root.resolve().name: root}
    found: dict[str, Path] = {}
    level = [root]
    for _ in range(depth):
        level = [Path(entry.path) for folder in level for entry in entries_of(folder) if is_folder(entry)]
        for folder in [folder for folder in level if holds_all(folder)]:
            add_named(found, "_".join(folder.relative_to(root).parts), folder)
        level = [folder for folder in level if folder not in found.values()]
    return found


def called_by_path(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Recordings called by the parts of their path below a root, joined by `_`, without suffix."""
    found: dict[str, Path] = {}
    for path in paths:
        inner = path.relative_to(root)
        add_named(found, "_".join((*inner.parts[:-1], inner.name if path.is_dir() else inner.stem)), path)
    return found


def add_named(found: dict[str, Path], name: str, path: Path) -> None:
    if name in found:
        raise ValueError(
            f"{path}: found a second recording called {name} beside {found[name]}, wanted one of each name"
        )
    found[name] = path


def files_signature(root: Path, paths: Iterable[Path], *, is_whole: bool) -> dict[str, str]:
    """What tells whether files (or all in folders) are what they were: `stamps`, and whole also `content`.

    stamps: names, sizes and times of writing; content: names, sizes, and what tracks hold (a copy has it too).
    """
    files = [file for path in paths for file in (files_below(path) if path.is_dir() else [path]) if file.is_file()]
    stats = [(str(path.relative_to(root)), path, path.stat()) for path in files]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, _, stat in stats]
    if not is_whole:
        return {"stamps": _hash(stamps)}
    held = [_digest(path, stat.st_size) for _, path, stat in stats if path.suffix.lower() in _TRACKS]
    return {"stamps": _hash(stamps), "content": _hash([[(name, stat.st_size) for name, _, stat in stats], held])}


def _digest(path: Path, size: int) -> str:
    digest, step = hashlib.sha256(), max(_BLOCK_BYTES, (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1))
    with open(path, "rb") as opened:
        for start in range(0, size, step):
            opened.seek(start)
            digest.update(opened.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _hash(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def unused_files(source: Path, used: Iterable[Path]) -> list[str]:
    """Files and folders below a source of which nothing is in `used`; a folder as a whole, with its number of files."""
    used = set(used)
    holding = {parent for path in used for parent in path.parents}

    def walk(folder: Path) -> Iterator[str]:
        for path in visible(folder):
            if path in used:
                continue
            if path.is_file():
                yield str(path.relative_to(source))
            elif path in holding:
                yield from walk(path)
            elif path.is_dir():
                yield f"{path.relative_to(source)}/ ({len(list(files_below(path)))} files)"

    return list(walk(source)) if source.is_dir() and source not in used else []
