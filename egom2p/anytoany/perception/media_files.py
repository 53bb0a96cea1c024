"""Clips out of what lies on a disk: a video, recordings, stored clips, token shards, a file of tokens."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.anytoany.perception.source import Clip, PerceptionConfig
from egom2p.anytoany.perception.token_percepts import TokenSource, perceived_specs
from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.data.alignment import ClipConfig, cut_clips
from egom2p.data.clip_sizes import clip_config_for
from egom2p.data.clip_store import ClipStore, stored_datasets
from egom2p.data.recordings.plain_folder import PlainFolderReader
from egom2p.data.token_set import TokenSet
from egom2p.data.video_files import VIDEO_SUFFIXES, video_recording

# Of a source without tokenizers: what its frames are cut to.
_PICTURES = ClipConfig(height=256, width=256)


def read_clips(source: str, config: PerceptionConfig, *, stride_s: float | None = None) -> Iterator[Clip]:
    """Clips that a perception source can perceive, told apart by what lies there.

    *.mp4, *.webm ...   a video, cut into clips       *.npz          ids by modality: one token clip
    a path with `.tar`  a pattern of token shards     with meta/     stored clips
    another folder      recordings in the plain-folder layout

    stride_s   of videos and recordings: seconds from clip to clip, None: they touch
    """
    path = Path(source)
    if ".tar" in source:
        tokens = TokenSet(source, perceived_specs(config))
        yield from (tokens[index] for index in range(len(tokens)))
    elif path.suffix == ".npz":
        yield _token_file(path, perceived_specs(config))
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield from cut_clips(video_recording(path), clip_config(config, stride_s=stride_s))
    elif (path / "meta").is_dir():
        for name in stored_datasets(path):
            yield from ClipStore(path, name)
    elif path.is_dir():
        reader = PlainFolderReader(str(path))
        wanted = clip_config(config, stride_s=stride_s, span="any")
        for index in range(len(reader)):
            yield from cut_clips(reader.read(index), wanted)
    else:
        raise ValueError(f"{source}: found no video, tokens, stored clips or recordings there")


def clip_config(config: PerceptionConfig, *, stride_s: float | None = None, span: str = "common") -> ClipConfig:
    """The clips that the source's tokenizers read: picture size, rates and length."""
    if config.checkpoint is None:
        return ClipConfig(height=_PICTURES.height, width=_PICTURES.width, stride_s=stride_s or _PICTURES.duration_s)
    networks = [tokenizer.network.config for tokenizer in _tokenizers(config) if hasattr(tokenizer, "network")]
    return clip_config_for(networks, where=config.checkpoint, stride_s=stride_s, span=span)


def _tokenizers(config: PerceptionConfig) -> list[Any]:
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
