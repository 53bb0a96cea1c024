"""What `generate` accepts: a video, a folder of recordings, stored clips, token shards, or a file of tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egom2p.contracts import AlignedClip, Provenance, Recording, Stream, TokenClip, check_fingerprint
from egom2p.data.alignment import ClipConfig, cut_clips
from egom2p.data.clip_store import ClipStore, stored_datasets
from egom2p.data.folder_set import open_clips
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.recordings.track_files import load_npz
from egom2p.data.video_files import VIDEO_SUFFIXES, open_video
from egom2p.pipelines.checkpoints import Checkpoint

Prompt = AlignedClip | TokenClip


def read_prompts(
    source: str, checkpoint: Checkpoint, *, dataset: str | None = None, stride_s: float | None = None
) -> Iterator[Prompt]:
    """Clips or token clips of a source, told apart by what lies there.

    *.mp4, *.webm ...     one recording of rgb alone, cut into clips
    *.npz                 ids (L,) by modality name, quantity or folder: one token clip
    a path with `.tar`    a pattern of token shards
    a folder with meta/   stored clips (`dataset` names which, where there are several)
    another folder        recordings in the plain-folder layout, cut into clips
    """
    path = Path(source)
    if ".tar" in source:
        yield from _token_shards(source, checkpoint)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield from cut_clips(_video_recording(path), clip_config_of(checkpoint, stride_s=stride_s))
    elif path.suffix == ".npz":
        yield _token_file(path, checkpoint)
    elif (path / "meta").is_dir():
        yield from ClipStore(path, dataset or _only_dataset(path))
    elif path.is_dir():
        reader = PlainFolderReader(str(path))
        config = clip_config_of(checkpoint, stride_s=stride_s, span="any")
        for index in range(len(reader)):
            yield from cut_clips(reader.read(index), config)
    else:
        raise ValueError(
            f"{source}: found no video, token file, token shards, stored clips or folder of recordings there"
        )


def clip_config_of(checkpoint: Checkpoint, *, stride_s: float | None = None, span: str = "common") -> ClipConfig:
    """The clips that the checkpoint's tokenizers read: picture size, rates and length."""
    configs = [tokenizer.network.config for tokenizer in checkpoint.tokenizers.values()]
    videos = [config for config in configs if hasattr(config, "num_frames")]
    tracks = [config for config in configs if hasattr(config, "num_samples")]
    if not videos:
        raise ValueError(f"{checkpoint.directory}: no video tokenizer, so the size of pictures is not known")
    duration_s = videos[0].num_frames / videos[0].rate_hz
    return ClipConfig(
        height=videos[0].height,
        width=videos[0].width,
        duration_s=duration_s,
        stride_s=stride_s or duration_s,
        video_rate_hz=videos[0].rate_hz,
        track_rate_hz=tracks[0].rate_hz if tracks else videos[0].rate_hz,
        span=span,
    )


def _video_recording(path: Path) -> Recording:
    video = open_video(path)
    stream = Stream(video, np.ones(len(video), bool), video.times_s, "uint8")
    return Recording(path.stem, {"rgb": stream}, None, Provenance("video", path.stem, source=str(path)))


def _token_file(path: Path, checkpoint: Checkpoint) -> TokenClip:
    arrays = load_npz(path)
    tokens = {checkpoint.spec(name).name: ids.reshape(-1).astype(np.int32) for name, ids in arrays.items()}
    if not tokens:
        raise ValueError(f"{path}: no tokens inside; wanted one array of ids per modality")
    return TokenClip(path.stem, tokens)


def _token_shards(pattern: str, checkpoint: Checkpoint) -> Iterator[TokenClip]:
    shards = open_clips(pattern)
    specs = {folder: checkpoint.spec(folder) for folder in shards.folders}
    cards = {folder: shards.card(folder) for folder in shards.folders}
    marks = {specs[folder].name: card.get("tokenizer_fingerprint") for folder, card in cards.items()}
    for folder, spec in specs.items():
        wanted = spec.tokenizer_fingerprint
        check_fingerprint(spec.name, found=marks[spec.name], wanted=wanted, where=f"{pattern}, folder {folder}")
    for index in range(shards.num_clips):
        tokens = {
            spec.name: shards.read_array(index, folder).reshape(-1).astype(np.int32) for folder, spec in specs.items()
        }
        yield TokenClip(shards.key(index), tokens, marks)


def _only_dataset(root: Path) -> str:
    found = stored_datasets(root)
    if len(found) != 1:
        raise ValueError(f"{root} holds the data sets {list(found)}; say which with dataset=<name>")
    return found[0]
