"""Labels by a teacher: depth or poses that another program or model says, added to clips as a stream of their own.

    python -m egom2p.pipelines.teacher_labels --config cfgs/default/data_preparation/teacher_depth.yaml \
      clips=CLIPS dataset=NAME output=LABELLED teacher.path=MODEL licence=...

What is metric becomes `depth` (metres along the optical axis, 0 none) or `camera` (world_from_cam). What is not, is
called `depth_unscaled` (F, H, W; its kind stands in the unit) or `camera_unscaled` (S, 12: rows of 3x4), which nothing
that counts in metres reads. Model, licence and scale stand in every clip's `extra.labels`, with the valid share, and in
the card of the data set, with how the teacher was read. Nothing is downloaded. F frames and S samples of a clip, H, W
pixels.

Outputs of other programs (`teacher.kind=folder`) are found by the clip's key, else by the recording's name: `.npy`,
`.npz` (one array, or `teacher.array`), TUM trajectories (`.txt`, `.tum`, on the recording's clock), or a folder of
16-bit or EXR pictures. An array of a clip has its F frames (or S poses); one of a recording has a row each
1 / `teacher.rate_hz` seconds. ViPE and Depth Anything 3 write poses of either direction: `teacher.maps` says which.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from egom2p.anytoany.perception.transformers_depth import load_depth_model
from egom2p.config import Count, NotNegative, Positive, run_main, strict, to_plain
from egom2p.contracts import AlignedClip, Stream
from egom2p.data.clips.clip_store import LARGEST_DEPTH_M, META, ClipStore, clip_folders, encode_clip
from egom2p.data.clips.image_files import image_sequence
from egom2p.data.clips.resampling import nearest_frames, poses_at
from egom2p.data.recordings.depth_files import DEPTH_SUFFIXES, DepthFrames
from egom2p.data.recordings.track_files import load_npz
from egom2p.data.shards.shard_files import CARD_NAME, read_card
from egom2p.data.shards.shard_set import ShardWriter
from egom2p.geometry import check_poses, inverse_poses, read_trajectory
from egom2p.jobs.progress import progress_bar, say
from egom2p.storage import inside, load_json, only_writer

Values = tuple[np.ndarray, np.ndarray]
"""Depth (F, H, W) or poses (S, 4, 4), and which frames or samples are valid."""
_WHERE = {"path", "device"}  # of a teacher; all else about it changes what it says


@strict
class FolderTeacher:
    """Another program's outputs.

    array          key of the array in an npz of several
    rate_hz        rows a second of an array of a whole recording, whose first is at offset_s on the recording's clock
    metres_per_unit  of depth; by default whole numbers are millimetres and others metres
    maps           direction of poses
    max_gap_s      between poses that are interpolated, or from a frame to the row that is its own
    """

    kind: Literal["folder"]
    path: str  # folder or file of the outputs
    array: str | None = None
    rate_hz: Positive | None = None
    offset_s: float = 0.0  # time of the first row
    metres_per_unit: Positive | None = None
    maps: Literal["world_from_cam", "cam_from_world"] = "world_from_cam"
    max_gap_s: NotNegative = 0.2


@strict
class TransformersTeacher:
    """A depth model of transformers in a folder on this machine; its processor beside it."""

    kind: Literal["transformers"]
    path: str  # folder of the model
    device: str = "cpu"


@strict
class CallableTeacher:
    """A function of yours, `package.module:name`, from an AlignedClip to (values, is_valid)."""

    kind: Literal["callable"]
    name: str  # package.module:name


@strict
class LabelConfig:
    """Which clips get which label, by whom, and how far it may be believed.

    scale: metric; relative (depth without unit) or up_to_scale (poses without unit). Nobody but you can know it.
    """

    clips: str
    dataset: str
    output: str
    stream: Literal["depth", "camera"]
    # Who labels; `kind` says how.
    teacher: Annotated[FolderTeacher | TransformersTeacher | CallableTeacher, Field(discriminator="kind")]
    model: str  # as it is to be cited: name, version
    licence: str
    scale: Literal["metric", "relative", "up_to_scale"]
    clips_per_shard: Count = 100

    def __post_init__(self) -> None:
        if self.scale == ("up_to_scale" if self.stream == "depth" else "relative"):
            raise ValueError(f"scale of {self.stream} is metric or not, found {self.scale}")

    @property
    def label(self) -> str:
        """The stream that is written."""
        return self.stream if self.scale == "metric" else f"{self.stream}_unscaled"


def label_clips(config: LabelConfig, teacher: Callable[[AlignedClip], Values] | None = None) -> dict[str, Any]:
    """Write the clips with the label as a data set of the same name below `output`; returns what the card says of it.

    teacher: by default the one that the config names. A run that was stopped continues after its last whole shard.
    Raises ValueError naming the clip whose label is missing, of another shape, or no depth and no poses.
    """
    if Path(config.output).resolve() == Path(config.clips).resolve():
        raise ValueError(f"output={config.output}: are the clips themselves, wanted another folder")
    store = ClipStore(config.clips, config.dataset)
    if config.label in store.streams:
        raise ValueError(
            f"{config.clips}: clips of {config.dataset} have {config.label} already, {list(store.streams)}"
        )
    if not {"rgb", "depth", "camera"} & set(store.streams):
        raise ValueError(
            f"{config.clips}: clips of {config.dataset} have {list(store.streams)}, wanted pictures or poses"
        )
    teacher = teacher or _TEACHERS[config.teacher.kind](config)
    about: dict[str, Any] = {"model": config.model, "licence": config.licence, "scale": config.scale}
    read_as = {name: to_plain(config.teacher)[name] for name in sorted(to_plain(config.teacher).keys() - _WHERE)}
    card = read_card(f"{config.clips}/{META}/{config.dataset}")
    card |= {
        "streams": sorted([*store.streams, config.label]),
        "labels": card.get("labels", {}) | {config.label: about | {"teacher": read_as}},
    }
    meta = inside(config.output, META, config.dataset)
    found = load_json(meta / CARD_NAME) if (meta / CARD_NAME).is_file() else card
    if found != card:
        raise ValueError(
            f"{meta / CARD_NAME}: found clips labelled otherwise ({found.get('labels')}), wanted {card['labels']}"
        )
    shares = []
    with only_writer(meta):
        folders = clip_folders([*store.streams, config.label])
        with ShardWriter(config.output, config.dataset, folders, config.clips_per_shard) as writer:
            writer.card(META, card)
            left = [index for index, key in enumerate(store.keys) if key not in writer.finished_keys]
            with progress_bar(f"{config.label} by {config.model}", len(left), is_shown=bool(left)) as advance:
                for index in left:
                    clip = store[index]
                    stream = _stream_of(clip, config, teacher(clip))
                    shares.append(_valid_share(stream, config.stream))
                    labels = {**clip.extra.get("labels", {}), config.label: about | {"valid_share": shares[-1]}}
                    labelled = replace(
                        clip, streams={**clip.streams, config.label: stream}, extra={**clip.extra, "labels": labels}
                    )
                    writer.write(clip.key, encode_clip(labelled))
                    advance(1)
    said = f"{config.label} of {len(shares)} clips by {config.model} ({config.licence}, {config.scale})"
    say(said + (f", valid in {np.mean(shares):.0%}" if shares else ": they were there already"))
    return card["labels"]


def _valid_share(stream: Stream, kind: str) -> float:
    values = np.asarray(stream.values)
    return round(float((values > 0).mean() if kind == "depth" else np.mean(stream.is_valid)), 4)


def _stream_of(clip: AlignedClip, config: LabelConfig, found: Values) -> Stream:
    """The label of one clip as a stream. Depth of another picture size is brought to the clip's (nearest pixel)."""
    where = f"clip {clip.key}: {config.model}"
    try:
        values, is_valid = np.asarray(found[0]), np.asarray(found[1], bool)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: found {type(found).__name__}, wanted (values, is_valid): {error}") from error
    if values.dtype.kind not in "fiu" or not values.size or is_valid.shape != values.shape[:1]:
        raise ValueError(
            f"{where}: found {values.dtype} of shape {values.shape}, valid {is_valid.shape}; wanted numbers, and for "
            "each row whether it is valid"
        )
    values = values.astype(np.float64)
    if config.stream == "depth":
        frames = clip.streams.get("rgb", clip.streams.get("depth"))
        if frames is None or values.ndim != 3 or len(values) != len(frames.times_s):
            wanted = "RGB" if frames is None else f"({len(frames.times_s)}, H, W)"
            raise ValueError(f"{where}: found depth of shape {values.shape}, wanted {wanted}")
        height, width = np.shape(frames.values)[1:3]
        rows, columns = (
            np.minimum(((np.arange(side) + 0.5) * own / side).astype(int), own - 1)
            for side, own in zip((height, width), values.shape[1:], strict=True)
        )
        values = values[:, rows][:, :, columns]
        known = np.isfinite(values) & (values > 0) & is_valid[:, None, None]
        if config.scale == "metric" and known.any():
            if (median := np.median(values[known])) > LARGEST_DEPTH_M:
                raise ValueError(f"{where}: the median depth is {median:g}, wanted metres; teacher.metres_per_unit?")
            known &= values < LARGEST_DEPTH_M  # as the store would do without counting it
        values, is_valid = np.where(known, values, 0.0).astype(np.float32), known.any(axis=(1, 2))
        unit = "m" if config.scale == "metric" else f"no unit; {config.model} as it is"
        return Stream(values, is_valid, frames.times_s, unit)
    times_s = _sample_times(clip)
    if values.shape != (len(times_s), 4, 4):
        raise ValueError(f"{where}: found poses of shape {values.shape}, wanted ({len(times_s)}, 4, 4)")
    is_valid = is_valid & np.isfinite(values).all(axis=(1, 2))
    values = check_poses(where, np.where(is_valid[:, None, None], values, np.eye(4)))
    if config.scale == "metric":
        return Stream(values, is_valid, times_s, "world_from_cam")
    unit = "world_from_cam, rows of 3x4, unknown unit"
    return Stream(values[:, :3].reshape(-1, 12).astype(np.float32), is_valid, times_s, unit)


def _sample_times(clip: AlignedClip) -> np.ndarray:
    """Times (S,) of a clip's tracks: of one it has, else as its making says."""
    for name, stream in clip.streams.items():
        if name not in ("rgb", "depth", "depth_unscaled", "caption"):
            return stream.times_s
    frames, rates = next(iter(clip.streams.values())), clip.extra
    count = round(len(frames.times_s) * rates["track_rate_hz"] / rates["video_rate_hz"])
    return frames.times_s[0] + np.arange(count) / rates["track_rate_hz"]


def _folder_teacher(config: LabelConfig) -> Callable[[AlignedClip], Values]:
    teacher, root = config.teacher, Path(config.teacher.path)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of labels")

    def label(clip: AlignedClip) -> Values:
        for name, is_clip in ((clip.key, True), (clip.provenance.recording, False)):
            beside = [root / name, *(root / f"{name}{suffix}" for suffix in (".npz", ".npy", ".txt", ".tum"))]
            if (path := next((path for path in beside if path.exists()), None)) is not None:
                return _read_label(path, clip, config, is_clip=is_clip)
        raise ValueError(
            f"{root}: found nothing for clip {clip.key}, wanted {clip.key} or {clip.provenance.recording} as .npz, "
            ".npy, .txt, .tum or a folder of pictures"
        )

    assert isinstance(teacher, FolderTeacher)
    return label


def _read_label(path: Path, clip: AlignedClip, config: LabelConfig, *, is_clip: bool) -> Values:
    teacher = config.teacher
    times_s = clip.streams["rgb"].times_s if config.stream == "depth" and "rgb" in clip.streams else _sample_times(clip)
    if path.suffix in (".txt", ".tum"):
        if config.stream == "depth":
            raise ValueError(f"{path}: found a trajectory, wanted depth")
        own_s, values = read_trajectory(path, "tum", offset_s=teacher.offset_s)
    elif path.is_dir():
        values, own_s = image_sequence(path, DEPTH_SUFFIXES), None
    else:
        values, own_s = _array(path, config), None
    if own_s is None and not is_clip:
        if teacher.rate_hz is None:
            raise ValueError(f"{path}: holds {len(values)} rows of a recording, wanted teacher.rate_hz, rows a second")
        own_s = teacher.offset_s + np.arange(len(values)) / teacher.rate_hz
    if config.stream == "camera":
        if path.is_dir():
            raise ValueError(f"{path}: found a folder of pictures, wanted poses")
        values = _as_matrices(path, np.asarray(values, np.float64))
        is_known = np.isfinite(values).all(axis=(1, 2))  # nan: the program lost track
        values = check_poses(str(path), np.where(is_known[:, None, None], values, np.eye(4)))
        values = inverse_poses(values) if teacher.maps == "cam_from_world" else values
        if own_s is None:
            return values, is_known
        stream = Stream(values, is_known, own_s, "world_from_cam")
        return poses_at(stream, times_s, max_gap_s=teacher.max_gap_s)
    frames = DepthFrames(values, metres_per_unit=teacher.metres_per_unit, invalid_values=(0, 65535))
    rows, is_valid = np.arange(len(values)), np.ones(len(values), bool)
    if own_s is not None:
        stream = Stream(np.zeros(len(own_s)), is_valid, own_s, "")
        rows, is_valid = nearest_frames(stream, times_s, max_offset_s=teacher.max_gap_s)
    return frames.read(rows), is_valid


def _array(path: Path, config: LabelConfig) -> np.ndarray:
    arrays = load_npz(path)
    name = config.teacher.array or (next(iter(arrays)) if len(arrays) == 1 else None)
    if name not in arrays:
        raise ValueError(f"{path}: found the arrays {sorted(arrays)}, wanted teacher.array to name one")
    values = arrays[name]
    if (
        values.dtype.kind not in "fiu"
        or not values.size
        or values.ndim not in ((3,) if config.stream == "depth" else (2, 3))
    ):
        raise ValueError(f"{path}: found {values.dtype} of shape {values.shape}, wanted numbers of {config.stream}")
    return values


def _as_matrices(path: Path, values: np.ndarray) -> np.ndarray:
    """Poses (T, 4, 4) of (T, 3, 4), (T, 12) or (T, 16) as well."""
    if values.ndim == 2 and values.shape[1] in (12, 16):
        values = values.reshape(len(values), -1, 4)
    if values.ndim != 3 or values.shape[1:] not in ((3, 4), (4, 4)):
        raise ValueError(f"{path}: found an array of shape {values.shape}, wanted poses (T, 3 or 4, 4)")
    last = np.broadcast_to(np.array([[[0.0, 0.0, 0.0, 1.0]]]), (len(values), 1, 4))
    return values if values.shape[1] == 4 else np.concatenate([values, last], axis=1)


def _transformers_teacher(config: LabelConfig) -> Callable[[AlignedClip], Values]:
    if config.stream != "depth":
        raise ValueError("teacher.kind=transformers says depth; poses come from a folder or a callable")
    depth_of = load_depth_model(config.teacher.path, scale=config.scale, device=config.teacher.device)
    return lambda clip: (depth_of(clip.rgb), np.asarray(clip.streams["rgb"].is_valid))


def _callable_teacher(config: LabelConfig) -> Callable[[AlignedClip], Values]:
    module, _, name = config.teacher.name.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"teacher.name={config.teacher.name}: wanted package.module:function, {error}") from None


_TEACHERS: Mapping[str, Callable[[LabelConfig], Callable[[AlignedClip], Values]]] = {
    "folder": _folder_teacher,
    "transformers": _transformers_teacher,
    "callable": _callable_teacher,
}

if __name__ == "__main__":
    run_main(
        LabelConfig,
        label_clips,
        default_config="default/data_preparation/teacher_depth.yaml",
        description=str(__doc__),
    )
