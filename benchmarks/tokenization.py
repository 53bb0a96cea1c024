"""Clips per second from aligned clips to tokens, by stage, against encoding clip by clip; all in one run.

    OMP_NUM_THREADS=1 python benchmarks/tokenization.py --json benchmarks/results/tokenization_cpu.json
    python benchmarks/tokenization.py --size published --json benchmarks/results/tokenization_gpu.json

Times differ between machines and between hours; the ratios in the last columns are what to look at. Stages: `read`
clips from tars, `prepare` them as network input, `encode` prepared batches; `pipeline` is the whole command. `naive`
reads, converts and encodes one clip after the other in fp32. The networks have random weights: speed is the same.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from environment import environment

from egom2p.config import load_config
from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.data.clips.clip_store import ClipStore, write_clips
from egom2p.pipelines.clip_encoding import ClipEncoder, ReadTask, prepare_clips
from egom2p.pipelines.tokenization import TokenizeConfig, load_tokenizers, tokenize
from egom2p.tokenizers import build_network, save_tokenizer
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig

_MADE = ["train.root=x", "train.datasets=[x]", "validation.root=x", "validation.datasets=[x]"]
_CONFIGS = {
    "quickstart": {"tok_rgb": "video/rgb_quickstart", "tok_depth": "video/depth_quickstart",
                   "tok_gaze": "vqvae/gaze/quickstart", "tok_cam": "vqvae/cam_traj/quickstart"},
    "published": {"tok_rgb": "video/rgb_dv4x8x8", "tok_depth": "video/depth_dv4x8x8",
                  "tok_gaze": "vqvae/gaze/gaze_256", "tok_cam": "vqvae/cam_traj/cam_256"},
}  # fmt: skip


def write_tokenizers(root: Path, size: str) -> dict[str, str]:
    for name, file in _CONFIGS[size].items():
        config = load_config(TokenizerTrainingConfig, f"default/tokenization/{file}.yaml", _MADE).network
        if getattr(config, "has_linear_path", False):
            config = replace(config, has_linear_path=False)
        save_tokenizer(build_network(config), root / name)
    return {name: name for name in _CONFIGS[size]}


def made_clip(number: int, pixels: int) -> AlignedClip:
    """Noise over smooth pictures: inflating and converting cost what they cost on real ones."""
    rng = np.random.default_rng(number)
    frames_s, samples_s = np.arange(16) / 8, np.arange(60) / 30
    ramp = np.linspace(0, 200, pixels)[:, None, None] + rng.uniform(0, 40, (16, pixels, pixels, 3))
    depth_m = (2 + np.linspace(0, 3, pixels)[:, None] + 0.01 * rng.normal(size=(16, pixels, pixels))).astype(np.float32)
    poses = np.tile(np.eye(4), (60, 1, 1))
    poses[:, :3, 3] = 0.01 * rng.normal(size=(60, 3)).cumsum(axis=0)
    streams = {
        "rgb": Stream(ramp.astype(np.uint8), np.ones(16, bool), frames_s, "uint8"),
        "depth": Stream(depth_m, np.ones(16, bool), frames_s, "m"),
        "gaze": Stream(rng.uniform(size=(60, 2)).astype(np.float32), rng.random(60) < 0.9, samples_s, "image"),
        "camera": Stream(poses, np.ones(60, bool), samples_s, "world_from_cam"),
    }
    return AlignedClip(f"clip{number:05d}", streams, None, Provenance("made", "made"))


def rate(work: Callable[[], int]) -> float:
    """Clips per second of one call, after a first one that warms up."""
    work()
    _wait()
    started = time.perf_counter()
    count = work()
    _wait()
    return count / (time.perf_counter() - started)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(config: TokenizeConfig, num_naive: int) -> dict[str, float]:
    tokenizers = load_tokenizers(config)
    store = ClipStore(config.clips, "made", streams=sorted({t.stream for t in tokenizers.values()}))
    keys, count = store.keys, len(store)
    device = next(next(iter(tokenizers.values())).network.parameters()).device
    encoder = ClipEncoder(
        tokenizers, device=device, dtype=config.dtype, batch_size=config.batch_size, is_compiled=config.compile
    )
    plain = ClipEncoder(tokenizers, device=device, dtype="fp32", batch_size=1, is_compiled=False)
    few = range(min(count, 4 * config.batch_size))
    tasks = [
        ReadTask(0, tuple(group), tuple(keys[i] for i in group), (False,) * len(group))
        for group in (list(few)[i : i + config.batch_size] for i in range(0, len(few), config.batch_size))
    ]
    prepared = [prepare_clips(store, tokenizers, task) for task in tasks]
    clips = [store[index] for index in few]

    def prepare_all() -> int:
        for tokenizer in tokenizers.values():
            for clip in clips:
                tokenizer.network.batch_from_clips([clip], None)
        return len(clips)

    rows = {
        "read": rate(lambda: len([store[index] for index in few])),
        "prepare": rate(prepare_all),
        "encode": rate(lambda: sum(len(made.keys) for made in prepared if encoder.encode(made))),
    }

    def naive() -> int:
        for index in range(num_naive):
            plain.encode(prepare_clips(store, tokenizers, ReadTask(0, (index,), (keys[index],), (False,))))
        return num_naive

    rows["naive"] = rate(naive)
    for name, tokenizer in tokenizers.items():
        alone = ClipEncoder(
            {name: tokenizer}, device=device, dtype=config.dtype, batch_size=config.batch_size, is_compiled=False
        )
        only = [replace(p, inputs={name: p.inputs[name]}) for p in prepared]
        rows[f"encode {name}"] = rate(lambda alone=alone, only=only: sum(len(p.keys) for p in only if alone.encode(p)))
    with tempfile.TemporaryDirectory() as again:
        (report,) = tokenize(replace(config, output=again, num_check_clips=0))
    rows["pipeline"], rows["waiting_share"] = report.clips_per_s or 0.0, report.waiting_share or 0.0
    return rows


def same_ids(config: TokenizeConfig, dtype: str) -> Mapping[str, float]:
    """Share of ids that are equal to those of fp32."""
    tokenizers = load_tokenizers(config)
    store = ClipStore(config.clips, "made", streams=sorted({t.stream for t in tokenizers.values()}))
    task = ReadTask(0, tuple(range(4)), tuple(store.keys[:4]), (False,) * 4)
    ids = []
    for kind in ("fp32", dtype):
        device = next(next(iter(tokenizers.values())).network.parameters()).device
        encoder = ClipEncoder(tokenizers, device=device, dtype=kind, batch_size=4, is_compiled=False)
        ids.append(encoder.encode(prepare_clips(store, tokenizers, task)))
    return {name: float((ids[0][name] == ids[1][name]).mean()) for name in ids[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(_CONFIGS), default="quickstart")
    parser.add_argument("--num-clips", type=int, default=256)
    parser.add_argument("--num-naive", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--modes", default="fp32", help="comma-separated: fp32, bf16, compiled (bf16 too)")
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pixels = 64 if arguments.size == "quickstart" else 256
        write_clips(root / "clips", "made", (made_clip(n, pixels) for n in range(arguments.num_clips)))
        config = TokenizeConfig(
            clips=str(root / "clips"),
            output=str(root / "tokens"),
            tokenizers=write_tokenizers(root / "tokenizers", arguments.size),
            tokenizers_root=str(root / "tokenizers"),
            batch_size=arguments.batch_size,
            num_workers=arguments.workers,
        )
        for mode in arguments.modes.split(","):
            chosen = replace(config, dtype="fp32" if mode == "fp32" else "bf16", compile=mode == "compiled")
            row = {"case": arguments.size, "mode": mode} | measure(chosen, arguments.num_naive)
            row["pipeline / naive"] = row["pipeline"] / row["naive"]
            row["pipeline / encode"] = row["pipeline"] / row["encode"]
            if mode != "fp32":
                row["ids equal to fp32"] = dict(same_ids(config, "bf16"))
            rows.append(row)
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    if arguments.json:
        about = {"batch_size": arguments.batch_size, "workers": arguments.workers, "num_clips": arguments.num_clips}
        arguments.json.write_text(json.dumps({**environment(), **about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
