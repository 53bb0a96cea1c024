"""From a source's config to its reader: the one place that knows every source of recordings.

A reader has `names`, `len(reader)`, `read(index) -> Recording`, and may have `outline(index)`: the same recording with
empty pictures, cheap to make, for planning clips; and `signature(index, is_whole=...)`: whether its files are what they
were, told without reading them (without one, a recording never changes).

A format of other people is a line in FORMATS (`recording_formats.FormatReader`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from egom2p.config import strict, to_plain
from egom2p.contracts import Recording
from egom2p.data.recordings.adt import AdtReader
from egom2p.data.recordings.arctic import ArcticReader
from egom2p.data.recordings.aria_recordings import AriaReader, NymeriaReader
from egom2p.data.recordings.ase import AseReader
from egom2p.data.recordings.conversion import detect_format
from egom2p.data.recordings.egocentric_tar import EgocentricTarReader
from egom2p.data.recordings.egodex import EgoDexReader
from egom2p.data.recordings.egoexo4d import EgoExo4dReader
from egom2p.data.recordings.egogen import EgoGenReader
from egom2p.data.recordings.euroc import EurocReader
from egom2p.data.recordings.h2o import H2oReader
from egom2p.data.recordings.hoi4d import Hoi4dReader
from egom2p.data.recordings.holoassist import HoloAssistReader
from egom2p.data.recordings.hot3d import Hot3dAriaReader, Hot3dQuestReader
from egom2p.data.recordings.kitti import KittiReader
from egom2p.data.recordings.lerobot import LeRobotReader
from egom2p.data.recordings.mcap_messages import McapReader
from egom2p.data.recordings.neon import NeonReader
from egom2p.data.recordings.plain_folder import PlainFolderReader, is_recording
from egom2p.data.recordings.pupil_core import PupilCoreReader
from egom2p.data.recordings.record3d import Record3dReader
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader
from egom2p.data.recordings.rgbd_frames import RgbdFramesReader
from egom2p.data.recordings.stray_scanner import StrayScannerReader
from egom2p.data.recordings.synthetic import SyntheticReader, SyntheticWorldConfig
from egom2p.data.recordings.taco import TacoReader
from egom2p.data.recordings.track_files import visible
from egom2p.data.recordings.trajectories import RandomMotionReader, RandomMotionSource, TrajectoriesReader
from egom2p.data.recordings.tum_rgbd import TumRgbdReader
from egom2p.data.recordings.unscaled_poses import ColmapReader, NerfstudioReader
from egom2p.data.recordings.video_folder import VideoFolderReader
from egom2p.data.recordings.xperience import XperienceReader
from egom2p.jobs.progress import listed, say

# In the order in which a root is tried: a format whose folders hold another's comes before it.
FORMATS: tuple[type[FormatReader], ...] = (
    Hot3dAriaReader,
    Hot3dQuestReader,
    AdtReader,
    H2oReader,
    TacoReader,
    HoloAssistReader,
    ArcticReader,
    Hoi4dReader,
    AseReader,
    EgoExo4dReader,
    NymeriaReader,
    AriaReader,
    EgoGenReader,
    EurocReader,
    TumRgbdReader,
    NeonReader,
    PupilCoreReader,
    StrayScannerReader,
    Record3dReader,
    NerfstudioReader,
    ColmapReader,
    RgbdFramesReader,
    KittiReader,
    LeRobotReader,
    XperienceReader,
    EgoDexReader,
    EgocentricTarReader,
    McapReader,
    VideoFolderReader,
)
# Any text file may be a trajectory: such a folder is never told from what lies in it.
_BY_KIND_ONLY: tuple[type[FormatReader], ...] = (TrajectoriesReader,)
_LISTED = 20


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
class PlainFolderSource(FolderSource):
    """A folder of recordings (README_DATA.md says what may lie in it)."""

    kind: Literal["plain_folder"]


@strict
class AnySource(FolderSource):
    """A folder whose format is told from what lies in it."""

    kind: Literal["any"]


_SOURCES = (
    AnySource,
    SyntheticSource,
    RandomMotionSource,
    PlainFolderSource,
    *(reader.source for reader in (*FORMATS, *_BY_KIND_ONLY)),
)
SourceConfig = Annotated[reduce(or_, _SOURCES), Field(discriminator="kind")]


def open_reader(source: Any, *, dataset: str = "") -> Reader:
    """The reader of a source (one of SourceConfig); `dataset` goes into the provenance of its recordings."""
    source = recognised(source)
    if isinstance(source, SyntheticSource):
        return SyntheticReader(replace(source.world, dataset=dataset or source.world.dataset))
    if isinstance(source, RandomMotionSource):
        return RandomMotionReader(source, dataset=dataset)
    if isinstance(source, PlainFolderSource):
        return PlainFolderReader(source.root, names=source.names, dataset=dataset)
    return next(reader for reader in (*FORMATS, *_BY_KIND_ONLY) if reader.source is type(source))(
        source, dataset=dataset
    )


def recognised(source: Any) -> Any:
    """The source itself, or for one of any format that which its root is in; what was told and left is said.

    Raises ValueError when the root is in none.
    """
    if not isinstance(source, AnySource):
        return source
    root = Path(source.root)
    if root.is_file():
        raise ValueError(f"{root}: is a file; wanted a folder of recordings or videos, such as {root.parent}")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of recordings")
    for reader_class in FORMATS:
        if reader_class.find(root):
            found = reader_class.source(kind=_kind(reader_class.source), root=source.root, names=source.names)
            reader = reader_class(found)
            _say_what(root, reader_class.what, _kind(reader_class.source), reader.names, reader.unused)
            return found
    if is_recording(root) or any(is_recording(path) for path in visible(root) if path.is_dir()):
        reader = PlainFolderReader(root, names=source.names)
        _say_what(root, "a plain folder (README_DATA.md)", "plain_folder", reader.names, reader.unused)
        return PlainFolderSource(kind="plain_folder", root=source.root, names=source.names)
    kinds = sorted(_kind(reader.source) for reader in FORMATS)
    names = [path.name for path in visible(root)][:_LISTED]
    try:
        cure = f"; convert_samples makes plain folders of it ({detect_format(root)}, README_DATA.md)"
    except ValueError:
        cure = ""
    raise ValueError(
        f"{root}: found {names}, wanted a folder of recordings, plain or in one of the formats {kinds}{cure}"
    )


def _kind(source: type[FolderSource]) -> str:
    """Its `kind`: the only value of the field's Literal."""
    return source.__annotations__["kind"].__args__[0]


def _say_what(root: Path, what: str, kind: str, names: Sequence[str], left: Sequence[str]) -> None:
    say(f"{root}: read as {what}, source.kind={kind}: {len(names)} recordings: {listed(names)}")
    if left:
        say(f"  no reader takes: {listed(left)}")


def identity(source: Any) -> dict[str, Any]:
    """Plain values that decide what a recording of this source holds, given its name.

    How many recordings there are is not among them: a store of clips may grow.
    """
    if isinstance(source, SyntheticSource):
        counts = ("num_rooms", "first_seed", "recordings_per_room", "dataset")
        return {"kind": source.kind} | {k: v for k, v in to_plain(source.world).items() if k not in counts}
    return {key: value for key, value in to_plain(source).items() if key not in ("names", "num_recordings")}


def outline(reader: Reader, index: int) -> Recording:
    """A recording as far as planning needs it."""
    return reader.outline(index) if hasattr(reader, "outline") else reader.read(index)
