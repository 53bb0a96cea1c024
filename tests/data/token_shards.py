"""Tiny token shards for the tests of the loader: random ids, an invented modality among the names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.data.modality_info import build_specs
from egom2p.data.shards.shard_set import ShardWriter, encode_array, shard_pattern

GRID = {"kind": "grid", "grid": [3, 2, 4], "vocab_size": 13}
TRACK = {"kind": "track", "grid": [6], "vocab_size": 7}
TEXT = {"kind": "sequence", "grid": [12], "vocab_size": 40, "pad_id": 0, "eos_id": 1, "sentinel_ids": [2, 3, 4]}


def tiny_specs() -> tuple[ModalitySpec, ...]:
    return build_specs(
        {
            "tok_rgb": {**GRID, "quantity": "rgb", "folder": "rgb"},
            "tok_depth": {**GRID, "quantity": "depth", "folder": "depth"},
            "tok_smell": {**TRACK, "quantity": "generic", "folder": "smell"},
        }
    )


def text_spec() -> ModalitySpec:
    return build_specs({"tok_text": {**TEXT, "quantity": "text", "folder": "text"}})[0]


def random_clip(specs: Sequence[ModalitySpec], rng: np.random.Generator, key: str = "clip") -> TokenClip:
    """Ids of text avoid pad, eos and sentinels."""
    low = {spec.name: 5 if spec.kind == "sequence" else 0 for spec in specs}
    return TokenClip(
        key,
        {s.name: rng.integers(low[s.name], s.vocab_size, s.num_tokens).astype(np.int32) for s in specs},
    )


def write_tokens(
    root: Path,
    specs: Sequence[ModalitySpec],
    *,
    dataset: str = "tiny",
    num_clips: int = 20,
    clips_per_shard: int = 6,
    suffix: str = "npy",
    fingerprint: str | None = "sha256:0123456789abcdef",
) -> str:
    """Write random tokens with cards; returns the pattern of their shards."""
    rng = np.random.default_rng(7)
    folders = {spec.folder: suffix for spec in specs}
    with ShardWriter(root, dataset, folders, clips_per_shard=clips_per_shard) as writer:
        for number in range(num_clips):
            clip = random_clip(specs, rng)
            contents = {
                spec.folder: encode_array(clip.tokens[spec.name].reshape(spec.grid.shape), suffix) for spec in specs
            }
            writer.write(f"{dataset}_{number:04d}", contents)
        for spec in specs:
            writer.card(spec.folder, spec.with_fingerprint(fingerprint).to_dict())
    return shard_pattern(root, dataset, [spec.folder for spec in specs])
