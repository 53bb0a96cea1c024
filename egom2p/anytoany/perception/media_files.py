"""Media out of files: clips of a video, a picture, recordings, stored clips, token shards; precomputed vectors.

D width of a vector.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.perception.build_perception import build_source
from egom2p.anytoany.perception.source import Clip, PerceptionConfig, TimmFramesConfig, TokenConfig
from egom2p.anytoany.perception.timm_frames import picture_grid, resized
from egom2p.anytoany.perception.token_features import TokenSource, perceived_specs
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip
from egom2p.data.clips.clip_alignment import ClipConfig, clip_config_for, cut_clips
from egom2p.data.clips.clip_store import ClipStore, stored_datasets
from egom2p.data.clips.image_files import PICTURE_SUFFIXES, read_picture
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, video_recording
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.token_set import TokenSet

# Columns that the published data sets use.
COLUMNS = ("video_embed", "ib_embed", "image_embed", "audio_embed", "embedding")


def read_clips(source: str, config: PerceptionConfig, *, stride_s: float | None = None) -> Iterator[Clip]:
    """Clips that a perception source can perceive, told apart by what lies there.

    *.mp4, *.webm ...   a video, cut into clips       *.npz          ids by modality: one token clip
    *.jpg, *.png ...    a picture, one clip           with meta/     stored clips
    a path with `.tar`  a pattern of token shards     another folder recordings in the plain-folder layout
    pictures/*.png      a pattern of any of these files

    stride_s   of videos and recordings: seconds from clip to clip, None: they touch
    """
    path = Path(source)
    if ".tar" in source:
        tokens = TokenSet(source, perceived_specs(config))
        yield from (tokens[index] for index in range(len(tokens)))
    elif not path.exists() and (files := sorted(glob(source))):
        for file in files:
            yield from read_clips(file, config, stride_s=stride_s)
    elif path.suffix == ".npz":
        yield _token_file(path, perceived_specs(config))
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield from cut_clips(video_recording(path), clip_config(config, stride_s=stride_s))
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        yield _picture_clip(path, config)
    elif (path / "meta").is_dir():
        for name in stored_datasets(path):
            yield from ClipStore(path, name)
    elif path.is_dir():
        reader = PlainFolderReader(str(path))
        wanted = clip_config(config, stride_s=stride_s, span="any")
        for index in range(len(reader)):
            yield from cut_clips(reader.read(index), wanted)
    else:
        raise ValueError(f"{source}: found no video, picture, tokens, stored clips or recordings there")


def clip_config(config: PerceptionConfig, *, stride_s: float | None = None, span: str = "common") -> ClipConfig:
    """The clips that the source's tokenizers, or its image tower, read: picture size, rates and length."""
    if isinstance(config, TimmFramesConfig):
        height, width = picture_grid(config).frame_size
        rate_hz, length_s = config.num_frames / config.clip_s, config.clip_s
        sizes = {"height": height, "width": width, "duration_s": length_s, "video_rate_hz": rate_hz, "span": span}
        return ClipConfig(**sizes, stride_s=stride_s or length_s)
    if not isinstance(config, TokenConfig) or config.checkpoint is None:
        raise ValueError("signals need tokenizers: name a checkpoint in perception, or give tokens")
    networks = [tokenizer.network.config for tokenizer in _tokenizers(config) if hasattr(tokenizer, "network")]
    return clip_config_for(networks, where=config.checkpoint, stride_s=stride_s, span=span)


class PixelFiles:
    """Pixels of pictures and videos by their path; of a video its first clip, as the command line shows it."""

    def __init__(self, config: TimmFramesConfig) -> None:
        self._config, self._source = config, build_source(config)

    def __getitem__(self, ref: str) -> PerceptionFeatures:
        if not Path(ref).is_file():
            raise FileNotFoundError(f"{ref}: no such picture or video (paths start where the command runs)")
        clip = next(read_clips(ref, self._config), None)
        if clip is None:
            raise ValueError(f"{ref}: shorter than one clip of {self._config.clip_s} s; set perception.clip_s")
        return self._source.perceive([clip])[0]


def picture_key(path: str | Path) -> str:
    """Key of the clip that a picture file is, under which its features are exported."""
    return Path(path).stem.replace(".", "_")


def _picture_clip(path: Path, config: PerceptionConfig) -> AlignedClip:
    """A picture file, or an animation: for an image tower its frames as they are, for tokenizers a still video.

    A still video has the clip's size and rate; the frames of an animation share it evenly.
    """
    frames, rate_hz = read_picture(path), 1.0
    if not isinstance(config, TimmFramesConfig):
        wanted = clip_config(config)
        rate_hz, shares = wanted.video_rate_hz, np.arange(wanted.num_frames) * len(frames) // wanted.num_frames
        frames = np.stack([resized(frame, (wanted.height, wanted.width)) for frame in frames])[shares]
    count = len(frames)
    stream = Stream(frames, np.ones(count, bool), np.arange(count) / rate_hz, "uint8")
    where = Provenance(dataset="pictures", recording=path.stem, source=str(path))
    return AlignedClip(picture_key(path), {"rgb": stream}, None, where)


def _tokenizers(config: TokenConfig) -> list[Any]:
    """Those of all modalities: the size of pictures matters also when only tracks are perceived."""
    return list(TokenSource(replace(config, modalities=())).tokenizers.values())


def _token_file(path: Path, specs: tuple[ModalitySpec, ...]) -> TokenClip:
    """Arrays named by modality, folder or quantity."""
    names = {word: spec.name for spec in specs for word in (spec.quantity, spec.folder, spec.name)}
    with np.load(path, allow_pickle=False) as arrays:
        unknown = [name for name in arrays.files if name not in names]
        if unknown or not arrays.files:
            raise ValueError(f"{path}: holds {arrays.files}, wanted ids of some of {sorted(set(names.values()))}")
        tokens = {names[name]: arrays[name].reshape(-1).astype(np.int32) for name in arrays.files}
    return TokenClip(path.stem, tokens)


class VectorFiles:
    """Vectors by reference: `file.parquet#row` (also .jsonl, .json), `file.npz#name`, `file.npy#row` or `file.npy`.

    A row may hold one vector (D,) or several (n, D); all are rows of the features, numbered along its t axis.

    columns   of tables: the first one that the file has is read
    """

    def __init__(self, width: int, *, columns: Sequence[str] = COLUMNS) -> None:
        self.width, self.columns = width, tuple(columns)
        self._opened: dict[str, Any] = {}

    def __getitem__(self, ref: str) -> PerceptionFeatures:
        path, _, inner = ref.partition("#")
        vectors = np.asarray(self._read(Path(path), inner), dtype=np.float32)
        if vectors.ndim not in (1, 2) or vectors.size == 0 or vectors.shape[-1] != self.width:
            raise ValueError(f"{ref}: a vector of shape {vectors.shape}, wanted {self.width} numbers")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{ref}: the vector holds numbers that are not finite")
        return features_of_vectors(vectors)

    def _read(self, path: Path, inner: str) -> Any:
        if path.suffix == ".npz":
            return self._of_archive(path, inner)
        if path.suffix == ".npy":
            array = self._open(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
            return array[_row(path, inner, len(array))] if inner else array
        table, column = self._open(path, lambda: self._table(path))
        return table[_row(path, inner, len(table))][column]

    def _of_archive(self, path: Path, name: str) -> Any:
        archive = self._open(path, lambda: np.load(path, allow_pickle=False))
        if not name and len(archive.files) == 1:
            name = archive.files[0]
        if name not in archive.files:
            some = ", ".join(archive.files[:5])
            raise ValueError(f"{path}: has no array {name!r}; it has {len(archive.files)}: {some}")
        return archive[name]

    def _table(self, path: Path) -> tuple[TableFiles, str]:
        table = TableFiles([str(path)], (), optional=self.columns)
        found = [column for column in self.columns if len(table) and table[0].get(column) is not None]
        if not found:
            raise ValueError(f"{path}: has none of the columns {', '.join(self.columns)}")
        return table, found[0]

    def _open(self, path: Path, read: Any) -> Any:
        if str(path) not in self._opened:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            self._opened[str(path)] = read()
        return self._opened[str(path)]


def features_of_vectors(vectors: np.ndarray) -> PerceptionFeatures:
    """Vectors (D,) or (n, D) as perception features of n rows."""
    features_ND = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    position_N3 = np.zeros((len(features_ND), 3), np.int16)
    position_N3[:, 0] = np.arange(len(features_ND))
    return PerceptionFeatures(features_ND, position_N3, np.zeros(len(features_ND), np.int16))


def _row(path: Path, text: str, count: int) -> int:
    if not text.isdecimal() or int(text) >= count:
        raise ValueError(f"{path}#{text}: wanted a row number from 0 to {count - 1} behind the #")
    return int(text)
