"""How fast clips become packed batches, on one core, and how many bytes a clip takes to the device.

    python benchmarks/loader.py [--num-clips 512] [--json FILE]

Makes token shards of random ids in a temporary folder: the published grids (5x32x32 and 30) under the published
mixture at 2048 + 2048 tokens, and a small world (5x8x8 and 30) with direct tasks. Prints clips per second of processor
time (so that a busy machine does not matter) of masking and packing alone, of the whole loader with tokens in memory,
and of the whole loader from tars of npz.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from environment import environment

from egom2p.contracts import ModalitySpec
from egom2p.data.clip_order import clip_rng
from egom2p.data.collate import collate
from egom2p.data.masking import UnifiedMasking
from egom2p.data.masking_config import AlphasConfig, ModalityAlphas, TransferConfig
from egom2p.data.modality_info import build_specs, default_specs
from egom2p.data.shards.shard_set import ShardWriter, encode_array, shard_pattern
from egom2p.data.token_set import TokenSet
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, TokenLoader

_ALPHAS = [0.01, 0.1, 1.0, 10.0]


def published_mixture(names: Sequence[str], alphas: Sequence[float] = _ALPHAS, **further: object) -> AlphasConfig:
    both = ModalityAlphas(input_alphas=list(alphas), target_alphas=list(alphas))
    shown = ModalityAlphas(input_alphas=list(alphas), target_alphas=[0.0 for _ in alphas])
    mixture = {name: shown if name.endswith("patches") else both for name in names}
    return AlphasConfig(alphas_mixture=mixture, **further)


def small_specs() -> tuple[ModalitySpec, ...]:
    video = {"grid": [5, 8, 8], "vocab_size": 1000}
    return build_specs({"tok_rgb": video, "tok_depth": video, "tok_gaze": None, "tok_cam": None})


def small_mixture(names: Sequence[str]) -> AlphasConfig:
    targets = [name for name in names if name != "tok_rgb"]
    return published_mixture(
        names,
        [1.0],
        sampling_weights=[0.3],
        transfers={
            "rgb2all": TransferConfig(weight=0.6, inputs=["tok_rgb"], targets=targets),
            "depth2rgb": TransferConfig(weight=0.1, inputs=["tok_depth"], targets=["tok_rgb"]),
        },
        always_target=["tok_gaze", "tok_cam"],
    )


def write_random_tokens(
    root: Path, specs: Sequence[ModalitySpec], num_clips: int, *, clips_per_shard: int = 256
) -> str:
    rng = np.random.default_rng(0)
    with ShardWriter(root, "random", {spec.folder: "npz" for spec in specs}, clips_per_shard=clips_per_shard) as writer:
        for clip in range(num_clips):
            ids = {spec.folder: random_tokens(spec, rng) for spec in specs}
            writer.write(f"clip{clip:06d}", {folder: encode_array(array, "npz") for folder, array in ids.items()})
    return shard_pattern(root, "random", [spec.folder for spec in specs])


def random_tokens(spec: ModalitySpec, rng: np.random.Generator) -> np.ndarray:
    """Ids in the shape of the grid, or pixels (L, P)."""
    if spec.kind == "patches":
        return rng.integers(0, 256, (spec.num_tokens, spec.num_values)).astype(np.uint8)
    return rng.integers(0, spec.vocab_size, spec.grid.shape).astype(np.int32)


def clips_per_second(make: Callable[[], int], min_seconds: float = 2.0) -> float:
    """Median rate of three runs of at least a third of `min_seconds` each."""
    make()
    rates = []
    for _ in range(3):
        start, clips = time.process_time(), 0
        while time.process_time() - start < min_seconds / 3:
            clips += make()
        rates.append(clips / (time.process_time() - start))
    return float(np.median(rates))


def measure(name: str, specs: Sequence[ModalitySpec], alphas: AlphasConfig, tokens: int, num_clips: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        pattern = write_random_tokens(Path(folder), specs, num_clips)
        dataset = DatasetConfig(shards=pattern, alphas=alphas, max_input_tokens=tokens, max_target_tokens=tokens)
        clips = list(TokenSet(pattern, specs, in_memory=True))
        masking = UnifiedMasking(specs, dataset)
        rngs = [clip_rng(0, "masking", index) for index in range(len(clips))]

        def mask_all() -> int:
            for clip, rng in zip(clips, rngs, strict=True):
                masking(clip, rng)
            return len(clips)

        batch_size = 32
        masked = [masking(clip, rng) for clip, rng in zip(clips[:batch_size], rngs[:batch_size], strict=True)]
        batch = collate(masked, specs)

        def collate_once() -> int:
            collate(masked, specs)
            return batch_size

        def loader(in_memory: bool) -> Callable[[], int]:
            config = DataConfig(datasets={"random": dataset}, in_memory=in_memory)
            batches = TokenLoader(config, specs, batch_size=batch_size, seed=0).batches()
            return lambda: sum(batch.num_clips for batch in islice(batches, 8))

        full = max(range(len(clips)), key=lambda i: _num_tokens(masking, clips[i], i))
        largest = collate([masking(clips[full], clip_rng(0, "size", full))] * batch_size, specs)
        return {
            "case": name,
            "masking_clips_per_s": round(clips_per_second(mask_all)),
            "collate_clips_per_s": round(clips_per_second(collate_once)),
            "loader_in_memory_clips_per_s": round(clips_per_second(loader(True))),
            "loader_npz_tars_clips_per_s": round(clips_per_second(loader(False))),
            "tokens_per_clip": batch.num_tokens / batch_size,
            "bytes_per_clip": round(batch.transfer_bytes / batch_size),
            "tokens_of_largest_clip": largest.num_tokens / batch_size,
            "bytes_of_largest_clip": round(largest.transfer_bytes / batch_size),
        }


def _num_tokens(masking: UnifiedMasking, clip: object, index: int) -> int:
    masked = masking(clip, clip_rng(0, "size", index))
    return sum(map(len, masked.input_ids.values())) + sum(map(len, masked.target_ids.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-clips", type=int, default=512)
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    full, small = default_specs(), small_specs()
    rows = [
        measure("published", full, published_mixture([s.name for s in full]), 2048, arguments.num_clips),
        measure("small", small, small_mixture([s.name for s in small]), 320, arguments.num_clips),
    ]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({**environment(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
