"""What `generate` accepts: a video, pictures, folders of recordings, stored clips, token shards, token files."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Recording, Stream, TokenClip, check_fingerprint
from egom2p.data.clips.clip_alignment import ClipConfig, RecordingTooShort, clip_config_for, cut_clips
from egom2p.data.clips.clip_store import ClipStore, stored_datasets
from egom2p.data.clips.image_files import (
    PICTURE_SUFFIXES,
    RgbImages,
    frame_ticks,
    image_sequence,
    list_images,
    times_in_names,
)
from egom2p.data.clips.upright import CLOCKWISE, TurnedFrames
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, video_recording
from egom2p.data.recordings.conversion import convert, detect_format
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.recordings.track_files import load_npz, visible
from egom2p.data.shards.folder_set import open_clips
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.request import Request

Prompt = AlignedClip | TokenClip
InputKind = Literal[
    "video", "pictures", "videos", "token_file", "token_files", "texts", "shards", "clips", "frames", "folder"
]

RECORDED_KINDS: tuple[InputKind, ...] = ("video", "videos", "pictures", "frames", "folder")


def kind_of_input(source: str) -> InputKind:
    """What lies at a path.

    shards       a path with `.tar`: a pattern of token shards
    video        *.mp4, *.webm ...
    token_file   *.npz: ids (L,) or (W, L) by modality name, quantity or folder; patches (L, P) or (W, L, P)
    texts        *.txt: captions, one clip per line
    clips        a folder with meta/: stored clips
    pictures     a folder of images and nothing else that is read: the frames of one video
    videos       a folder of several videos: one recording each
    token_files  a folder of *.npz, and no video or picture
    frames       RGB-D frames with poses (7-Scenes layout), or the MPS output of Aria glasses
    folder       recordings in the plain-folder layout
    """
    path = Path(source)
    if ".tar" in source:
        return "shards"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "video"
    if path.suffix == ".npz":
        return "token_file"
    if path.suffix == ".txt" and path.is_file():
        return "texts"
    if (path / "meta").is_dir():
        return "clips"
    if not path.is_dir():
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
            raise ValueError(f"{source}: is one picture; wanted a video, or a folder of pictures in their order")
        raise ValueError(
            f"{source}: found no video, token file, token shards, stored clips or folder of recordings there"
        )
    if not visible(path):
        raise ValueError(f"{source}: is an empty folder; wanted videos, pictures, recordings or token files in it")
    if _format_of(path) in ("rgbd_frames", "aria_mps"):
        return "frames"
    suffixes = [entry.suffix.lower() for entry in visible(path) if entry.is_file()]
    num_videos = sum(suffix in VIDEO_SUFFIXES for suffix in suffixes)
    tracks = ("trajectory.txt", "trajectory.npz", "gaze.npz", "depth.npz", "recording.yaml")
    has_tracks = bool({".csv", ".npy"} & set(suffixes)) or any((path / name).is_file() for name in tracks)
    if num_videos > 1 and not has_tracks and ".npz" not in suffixes:
        return "videos"
    if num_videos == 0 and not has_tracks and ".npz" in suffixes:
        return "token_files"
    return "pictures" if num_videos == 0 and not has_tracks and list_images(path) else "folder"


def read_recordings(
    source: str, kind: InputKind, *, rate_hz: float | None = None, rotate: int = 0
) -> Iterator[Recording]:
    """Whole recordings of an input that holds some; pictures stay in their files.

    rate_hz   of pictures in a folder; None: their names are times
    rotate    degrees clockwise that bring videos and pictures upright
    """
    if rotate and kind in ("frames", "folder"):
        raise ValueError(
            f"{source}: rotate={rotate} is for videos and pictures; a recording says it in its recording.yaml, "
            f"rgb: {{rotate: {rotate}}}, and what turns with them"
        )
    for recording in _recordings_as_stored(source, kind, rate_hz):
        if rotate:
            rgb = recording.streams["rgb"]
            rgb = replace(rgb, values=TurnedFrames(rgb.values, CLOCKWISE[rotate]))
            recording = replace(recording, streams={"rgb": rgb})
        yield recording


def _recordings_as_stored(source: str, kind: InputKind, rate_hz: float | None) -> Iterator[Recording]:
    path = Path(source)
    if kind == "video":
        yield video_recording(path)
    elif kind == "videos":
        for file in [entry for entry in visible(path) if entry.suffix.lower() in VIDEO_SUFFIXES]:
            yield video_recording(file)
    elif kind == "pictures":
        yield _picture_recording(path, rate_hz)
    elif kind == "frames":
        with tempfile.TemporaryDirectory() as scratch:
            options = {} if rate_hz is None or _format_of(path) != "rgbd_frames" else {"rate_hz": rate_hz}
            convert(path, scratch, **options)
            yield from _plain_recordings(Path(scratch))
    elif kind == "folder":
        parts = [entry for entry in visible(path) if entry.is_dir()]
        if (
            parts
            and all(_is_picture_folder(part) for part in parts)
            and {part.name for part in parts} - {"rgb", "depth"}
        ):
            for part in parts:
                yield _picture_recording(part, rate_hz)
        else:
            yield from _plain_recordings(path)


def check_is_shown(checkpoint: Checkpoint, request: Request, source: str | Iterator[Recording]) -> None:
    """ValueError where a model of pixels would be shown none: it was hardly trained without them, and not measured.

    source   an input or recordings, of which no more is read than says what they hold
    """
    pixels = {spec.name for spec in checkpoint.specs if spec.is_input_only}
    kind, path = (kind_of_input(source), Path(source)) if isinstance(source, str) else ("folder", Path())
    streams: Iterable[str] = ()
    if kind == "shards":
        shown = {checkpoint.spec(folder).name for folder in open_clips(source).folders}
    elif kind in ("token_file", "token_files"):
        shown = {checkpoint.spec(name).name for name in load_npz(path if path.is_file() else min(path.glob("*.npz")))}
    else:
        if kind == "clips":
            streams = ClipStore(path, request.dataset or _only_dataset(path)).streams
        elif kind == "folder":
            found = _recordings_as_stored(source, kind, request.rate_hz) if isinstance(source, str) else source
            streams = next((recording.streams for recording in found), ())
        elif kind in ("video", "videos", "pictures") or _format_of(path) == "rgbd_frames":
            streams = ("rgb",)
        shown = {name for name, tokenizer in checkpoint.tokenizers.items() if tokenizer.stream in streams}
    if request.conditions is not None:
        shown &= {spec.name for word in request.conditions for spec in checkpoint.inputs(word)}
    if pixels and not pixels & shown:
        raise ValueError(
            f"{checkpoint.directory}: reads {', '.join(sorted(pixels))}, is shown {sorted(shown) or 'none'}"
        )


def read_prompts(source: str, checkpoint: Checkpoint, request: Request) -> Iterator[Prompt]:
    """Clips or token clips of any input (`kind_of_input`), each by itself; recordings are cut into clips."""
    path, kind = Path(source), kind_of_input(source)
    if kind == "shards":
        yield from _token_shards(source, checkpoint)
    elif kind == "token_file":
        yield from _token_file(path, checkpoint)
    elif kind == "token_files":
        for file in sorted(path.glob("*.npz")):
            yield from _token_file(file, checkpoint)
    elif kind == "texts":
        yield from _text_clips(path, checkpoint)
    elif kind == "clips":
        yield from ClipStore(path, request.dataset or _only_dataset(path))
    else:
        yield from recorded_prompts(
            read_recordings(source, kind, rate_hz=request.rate_hz, rotate=request.rotate), checkpoint, request
        )


def recorded_prompts(
    recordings: Iterable[Recording], checkpoint: Checkpoint, request: Request
) -> Iterator[AlignedClip]:
    """Clips of recordings, every `stride_s` one."""
    config = clip_config_of(checkpoint, stride_s=request.stride_s, span="any")
    for recording in recordings:
        try:
            yield from cut_clips(recording, config)
        except RecordingTooShort:
            raise RecordingTooShort(tell_too_short(recording, config)) from None


def tell_too_short(recording: Recording, config: ClipConfig) -> str:
    """What is wrong with a recording that is shorter than a clip, and what would be right."""
    where = recording.provenance.source or recording.name
    spans = [
        f"{name} {stream.times_s[0]:.3f}-{stream.times_s[-1]:.3f} s ({len(stream.times_s)} samples)"
        for name, stream in sorted(recording.streams.items())
    ]
    return (
        f"{where}: found {', '.join(spans)}; wanted {config.duration_s:g} s, the length of the clips the model was "
        f"trained on. A longer recording is needed; a shorter clip cannot be generated from"
    )


def clip_config_of(checkpoint: Checkpoint, *, stride_s: float | None = None, span: str = "common") -> ClipConfig:
    """The clips that the checkpoint's tokenizers read: picture size, rates and length."""
    # A text has neither size nor rate, and patches no network.
    networks = [getattr(tokenizer, "network", tokenizer) for tokenizer in checkpoint.tokenizers.values()]
    configs = [network.config for network in networks if hasattr(network, "config")]
    return clip_config_for(configs, where=str(checkpoint.directory), stride_s=stride_s, span=span)


def _picture_recording(folder: Path, rate_hz: float | None) -> Recording:
    paths = image_sequence(folder)
    times_s = times_in_names(paths) if rate_hz is None else frame_ticks(paths) / rate_hz
    if times_s is None:
        raise ValueError(f"{folder}: found pictures, which carry no times; say how many there are a second: rate_hz=30")
    images = RgbImages(paths)
    stream = Stream(images, np.ones(len(images), bool), times_s, "uint8")
    name = folder.resolve().name
    return Recording(name, {"rgb": stream}, None, Provenance("pictures", name, source=str(folder)))


def _plain_recordings(root: Path) -> Iterator[Recording]:
    reader = PlainFolderReader(root)
    for index in range(len(reader)):
        yield reader.read(index)


def _is_picture_folder(folder: Path) -> bool:
    """Nothing but pictures, unlike a recording of the plain layout."""
    return 0 < len(list_images(folder)) == len([entry for entry in visible(folder) if entry.is_file()])


def _format_of(path: Path) -> str | None:
    try:
        return detect_format(path)
    except ValueError:
        return None


def _token_file(path: Path, checkpoint: Checkpoint) -> Iterator[TokenClip]:
    """One clip, or of arrays (W, L) one clip per row."""
    arrays = {checkpoint.spec(name).name: ids for name, ids in load_npz(path).items()}
    if not arrays:
        raise ValueError(f"{path}: no tokens inside; wanted one array of ids per modality")
    rows = {name: _token_rows(ids, checkpoint.spec(name)) for name, ids in arrays.items()}
    counts = sorted({len(ids) for ids in rows.values()})
    if len(counts) > 1:
        raise ValueError(f"{path}: its modalities hold {counts} clips; wanted as many of each")
    for row in range(counts[0]):
        key = path.stem if counts[0] == 1 else f"{path.stem}_{row:06d}"
        yield TokenClip(key, {name: ids[row] for name, ids in rows.items()})


def _text_clips(path: Path, checkpoint: Checkpoint) -> Iterator[AlignedClip]:
    """A clip of nothing but a caption for every line that has words."""
    streams = [item.stream for item in checkpoint.tokenizers.values() if item.spec.signal.layout == "text"]
    if len(streams) != 1:
        raise ValueError(f"{path}: found texts, {checkpoint.directory} has the text streams {streams}, wanted one")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for row, line in enumerate(lines):
        text = Stream(np.array([line]), np.ones(1, bool), np.zeros(1), "text")
        where = Provenance("texts", path.stem, source=str(path))
        yield AlignedClip(f"{path.stem}_{row:06d}", {streams[0]: text}, None, where)


def _token_rows(ids: np.ndarray, spec: ModalitySpec) -> Sequence[np.ndarray]:
    """Rows (L,) of ids in any shape that begins with the number of clips, or of one clip; patches (L, P)."""
    if spec.kind == "patches":
        return list(ids) if ids.ndim == 3 else [ids]
    if ids.size > spec.num_tokens and ids.size % spec.num_tokens == 0:
        return list(ids.reshape(-1, spec.num_tokens).astype(np.int32))
    return [ids.reshape(-1).astype(np.int32)]


def _token_shards(pattern: str, checkpoint: Checkpoint) -> Iterator[TokenClip]:
    shards = open_clips(pattern)
    specs = {folder: checkpoint.spec(folder) for folder in shards.folders}
    cards = {folder: shards.card(folder) for folder in shards.folders}
    marks = {specs[folder].name: card.get("tokenizer_fingerprint") for folder, card in cards.items()}
    for folder, spec in specs.items():
        wanted = spec.tokenizer_fingerprint
        check_fingerprint(spec.name, found=marks[spec.name], wanted=wanted, where=f"{pattern}, folder {folder}")
    for index in range(shards.num_clips):
        arrays = {folder: shards.read_array(index, folder) for folder in specs}
        tokens = {
            spec.name: arrays[folder] if spec.kind == "patches" else arrays[folder].reshape(-1).astype(np.int32)
            for folder, spec in specs.items()
        }
        yield TokenClip(shards.key(index), tokens, marks)


def _only_dataset(root: Path) -> str:
    found = stored_datasets(root)
    if len(found) != 1:
        raise ValueError(f"{root} holds the data sets {list(found)}; say which with dataset=<name>")
    return found[0]
