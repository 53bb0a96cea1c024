"""From a source's config to its reader: the one place that knows every source of recordings.

A reader has `names`, `len(reader)`, `read(index) -> Recording`, and may have `outline(index)`: the same recording with
empty pictures, cheap to make, for planning clips; and `signature(index, is_whole=...)`: whether its files are what they
were, told without reading them (without one, a recording never changes).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from egom2p.config import strict, to_plain
from egom2p.contracts import Recording
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.recordings.synthetic import SyntheticReader, SyntheticWorldConfig


class Reader(Protocol):
    """Recordings of one source, by index."""

    names: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> Recording: ...


@strict
class SyntheticSource:
    """The embedded world."""

    kind: Literal["synthetic"]
    world: SyntheticWorldConfig


@strict
class PlainFolderSource:
    """A folder of recordings (README_DATA.md says what may lie in it)."""

    kind: Literal["plain_folder"]
    root: str
    names: tuple[str, ...] | None = None  # only these recordings


SourceConfig = Annotated[SyntheticSource | PlainFolderSource, Field(discriminator="kind")]


def _open_synthetic(source: SyntheticSource, dataset: str) -> Reader:
    return SyntheticReader(replace(source.world, dataset=dataset or source.world.dataset))


def _open_plain_folder(source: PlainFolderSource, dataset: str) -> Reader:
    return PlainFolderReader(source.root, names=source.names, dataset=dataset)


_OPENERS: dict[type, Callable[[Any, str], Reader]] = {
    SyntheticSource: _open_synthetic,
    PlainFolderSource: _open_plain_folder,
}


def open_reader(source: SyntheticSource | PlainFolderSource, *, dataset: str = "") -> Reader:
    """The reader of a source; `dataset` goes into the provenance of its recordings."""
    return _OPENERS[type(source)](source, dataset)


def identity(source: SyntheticSource | PlainFolderSource) -> dict[str, Any]:
    """Plain values that decide what a recording of this source holds, given its name.

    How many recordings there are is not among them: a store of clips may grow.
    """
    if isinstance(source, SyntheticSource):
        counts = ("num_rooms", "first_seed", "recordings_per_room", "dataset")
        return {"kind": source.kind} | {k: v for k, v in to_plain(source.world).items() if k not in counts}
    return {"kind": source.kind, "root": source.root}


def outline(reader: Reader, index: int) -> Recording:
    """A recording as far as planning needs it."""
    return reader.outline(index) if hasattr(reader, "outline") else reader.read(index)
