"""Perception features of many clips, computed once.

Command: `python -m egom2p.anytoany.perception.export_features input=... output=...`.

Resumable: what the ledger of the output names is not computed again. A killed run leaves no half shard.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from egom2p.anytoany.perception.build_perception import build_source
from egom2p.anytoany.perception.feature_store import FeatureWriter
from egom2p.anytoany.perception.media_files import read_clips
from egom2p.anytoany.perception.source import Clip, PerceptionConfig, TokenConfig
from egom2p.anytoany.perception.token_features import TokenSource
from egom2p.config import Count, run_main, strict, to_plain
from egom2p.storage import RemoteConfig, configure_remote, only_writer


@strict
class ExportConfig:
    """What to perceive and where to keep it.

    perception   the source; an encoder or image tower must be `precomputed: true`, else ids or pixels are written
    input        as for `generate.py`: token shards, stored clips, a folder of recordings, a video, a token file
    predict      modalities of EgoM2P that a clip lacks (gaze and camera of a video) are predicted by its own model
    dtype        float16 halves the files
    shard_clips  clips per shard: what is lost at most when the run is killed
    """

    perception: PerceptionConfig
    input: str
    output: str
    predict: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: Count = 16
    shard_clips: Count = 256
    max_clips: Count | None = None
    device: str = "cpu"
    remote: RemoteConfig = RemoteConfig()  # waiting for and asking of S3


def export(config: ExportConfig) -> tuple[int, int]:
    """Numbers of clips computed now, and of those that were there already."""
    if config.predict and not isinstance(config.perception, TokenConfig):
        raise ValueError(f"predict=true needs EgoM2P's modalities, found perception source {config.perception.source}")
    configure_remote(config.remote)
    source = build_source(config.perception, device=config.device)
    card = {
        "source": config.perception.source,
        "names": list(source.names),
        "width": source.width,
        "fingerprint": source.fingerprint,
        "perception": to_plain(config.perception),
    } | ({"predict": True} if config.predict else {})
    tokens = TokenSource(config.perception, device=config.device) if config.predict else None
    # Ids beyond 2048 are not numbers of half precision, and pixels are bytes.
    dtype = torch.float32 if config.perception.gives_ids else getattr(torch, config.dtype)
    dtype = torch.uint8 if config.perception.gives_pixels else dtype
    num_made = num_kept = 0
    keys: set[str] = set()
    with only_writer(config.output):
        writer = FeatureWriter(config.output, card, dtype=dtype)
        clips: Iterator[Clip] = islice(read_clips(config.input, config.perception), config.max_clips)
        while part := list(islice(clips, config.shard_clips)):
            for clip in part:
                if clip.key in keys:
                    raise ValueError(f"{config.input}: two clips are called {clip.key!r}; wanted each name once")
                keys.add(clip.key)
            missing = [clip for clip in part if clip.key not in writer.done]
            num_kept += len(part) - len(missing)
            num_made += len(missing)
            if missing and tokens is not None:
                missing = [tokens.completed(clip)[0] for clip in missing]
            if missing:
                batches = [missing[at : at + config.batch_size] for at in range(0, len(missing), config.batch_size)]
                items = [item for batch in batches for item in source.perceive(batch)]
                writer.write([clip.key for clip in missing], items)
    if not num_made + num_kept:
        raise ValueError(f"{config.input}: found no clip to perceive")
    return num_made, num_kept


def main(config: ExportConfig) -> None:
    num_made, num_kept = export(config)
    sys.stderr.write(f"{Path(config.output)}: {num_made} perception features written, {num_kept} were there already\n")


if __name__ == "__main__":
    run_main(ExportConfig, main, default_config="default/anytoany/export_features.yaml", description=str(__doc__))
