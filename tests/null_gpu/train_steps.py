"""A few steps of the real loop on the stand-in: one line of JSON for every case named, or all.

    python train_steps.py [CASE ...]

Run by test_null_gpu.py under its environment; by hand: `python tests/null_gpu/run.py train_steps.py b32`.
"""

import contextlib
import gc
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo
from loader import published_mixture, write_random_tokens
from null_gpu import Counts, Traffic, waits

from egom2p.data.modality_info import build_specs
from egom2p.data.unified_datasets import DataConfig, DatasetConfig
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.training import loop
from egom2p.training.distributed import ranks_of_launch
from egom2p.training.ema import EmaConfig
from egom2p.training.optim import OptimizerConfig
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask
from egom2p.training.training_config import TrainingConfig

SIZES = {
    "base": {"dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12},
    "tiny": {"dim": 192, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 3},
}
PIXELS = {
    "kind": "patches", "quantity": "rgb", "folder": "rgb_patches", "grid": [8, 8, 8], "vocab_size": 0,
    "patch_shape": [2, 8, 8, 3],
}  # fmt: skip
RAGGED = {"alphas": (0.01, 0.1, 1.0, 10.0), "policy": "clamp"}
SMALL = {"size": "tiny", "budget": 256, "batch_size": 4}
CASES = {
    "b4": {"batch_size": 4},
    "b8": {"batch_size": 8},
    "b16": {"batch_size": 16},
    "b32": {"batch_size": 32},
    "b4 eager": {"batch_size": 4, "compile": False},
    "b32 eager": {"batch_size": 32, "compile": False},
    "b32 mlp": {"batch_size": 32, "activation_checkpointing": "mlp"},
    "b32 mlp eager": {"batch_size": 32, "activation_checkpointing": "mlp", "compile": False},
    "b32 recompute": {"batch_size": 32, "activation_checkpointing": True},
    "b4 ragged": {"batch_size": 4, **RAGGED},
    "b8 fp32 ragged": {"batch_size": 8, "dtype": "fp32", "alphas": (0.1, 1.0), "policy": "clamp"},
    "b8 muon": {"batch_size": 8, "optimizer": {"kind": "muon"}},
    "tokens 32768": {"batching": "tokens", "batch_tokens": 32768, **RAGGED},
    "tiny": SMALL,
    "tiny varied": {**SMALL, **RAGGED, "num_steps": 16},
    "tiny varied tokens": {**SMALL, **RAGGED, "num_steps": 16, "batching": "tokens", "batch_tokens": 2048},
    "tiny eager": {**SMALL, "compile": False},
    "tiny muon": {**SMALL, "compile": False, "optimizer": {"kind": "muon"}, "ema": True, "accumulation": 2},
    "tiny fp16": {**SMALL, "compile": False, "dtype": "fp16"},
    "tiny fp32": {**SMALL, "dtype": "fp32", "compile": False, **RAGGED},
    "tiny ragged": {**SMALL, **RAGGED, "compile": False},
    "tiny tokens": {**SMALL, **RAGGED, "compile": False, "batching": "tokens", "batch_tokens": 2048},
    "tiny options": {**SMALL, "compile": False, "model": {"qk_norm": True, "num_registers": 4, "drop_path": 0.1}},
    "tiny recompute": {**SMALL, "compile": False, "activation_checkpointing": True},
    "tiny mlp": {**SMALL, "compile": False, "activation_checkpointing": "mlp"},
    "tiny pixels": {**SMALL, "compile": False, "has_pixels": True},
    "tiny pixels tokens": {
        **SMALL,
        **RAGGED,
        "compile": False,
        "has_pixels": True,
        "batching": "tokens",
        "batch_tokens": 2048,
    },
    "odd heads": {**SMALL, "compile": False, "model": {"num_heads": 16}},  # 12 wide
    "wide heads": {**SMALL, "compile": False, "model": {"dim": 320, "num_heads": 1}},
}


def run(
    case: str,
    folder: Path,
    *,
    size: str = "base",
    budget: int = 2048,
    num_steps: int = 4,
    alphas: tuple[float, ...] = (10.0,),
    policy: str = "waterfill",
    ema: bool = False,
    has_pixels: bool = False,
    optimizer: dict | None = None,
    model: dict | None = None,
    **training: object,
) -> dict:
    """What the last step of a short run did, its log line, and the peak memory of all steps."""
    video = {"grid": [5, 8, 8], "vocab_size": 1000} if size == "tiny" else None
    modalities = {"tok_rgb": video, "tok_depth": video, "tok_gaze": None, "tok_cam": None}
    if has_pixels:
        modalities["rgb_patches"] = PIXELS
    specs = build_specs(modalities)
    names = [spec.name for spec in specs]
    pattern = folder / f"{size}{has_pixels}"
    shards = write_random_tokens(pattern, specs, 32) if not pattern.exists() else None
    shards = shards or _shards_of(pattern, specs)
    dataset = DatasetConfig(
        shards=shards,
        alphas=published_mixture(names, list(alphas)),
        max_input_tokens=budget,
        max_target_tokens=budget,
        policy=policy,
    )
    config = PretrainConfig(
        output_dir=str(folder / case.replace(" ", "_")),
        model=ModelConfig(**{**SIZES[size], **(model or {})}),
        data=DataConfig(datasets={"random": dataset}, in_memory=True, modalities=modalities),
        training=TrainingConfig(
            **{"dtype": "bf16", "device": "cuda", "num_steps": num_steps, "log_every": num_steps, **training},
            lr=1e-4,
            checkpoint_minutes=None,
            optimizer=OptimizerConfig(**(optimizer or {})),
            ema=EmaConfig(decay=0.99) if ema else None,
        ),
    )
    rows: list[dict] = []
    counts = Counts()
    step, log_line = loop._Run._step, loop._Run._log_line

    def counted_step(self, window, *rest):
        with contextlib.ExitStack() as stack:
            where, traffic = None, None
            if len(rows) == num_steps - 1:  # counted apart: the spies cost launches of their own
                where, traffic = stack.enter_context(waits()), stack.enter_context(Traffic())
            counts.take()
            begin = time.process_time()
            step(self, window, *rest)
            host_ms = 1e3 * (time.process_time() - begin)
            row = {"host_ms": round(host_ms, 1), **counts.take(), "clips": sum(batch.num_clips for batch in window)}
        if traffic is not None:
            row |= {"where": dict(where), "gigabytes": round(traffic.gigabytes, 1)}
            forward = [name for name in traffic.calls if "attention" in name and "backward" not in name]
            row["attention_calls"] = sum(traffic.calls[name] for name in forward)
            row["most"] = [
                (name, round(size / 1e9, 2), traffic.calls[name]) for name, size in traffic.bytes.most_common(40)
            ]
        row["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        rows.append(row)

    def counted_log_line(self, rate):
        counts.take()
        log_line(self, rate)
        rows.append(counts.take())

    torch.cuda.reset_peak_memory_stats()
    patched = {"_step": counted_step, "_log_line": counted_log_line}
    patched |= {"evaluate": lambda self: None, "save_checkpoint": lambda self, **options: None}
    patched["_check_weights"] = lambda self, *found: None  # nothing computed, nothing is finite
    saved = {name: getattr(loop._Run, name) for name in patched}
    export, loop.export = loop.export, lambda *args, **kwargs: None
    for name, function in patched.items():
        setattr(loop._Run, name, function)
    try:
        with ranks_of_launch("cuda") as ranks:
            task = PretrainTask(config, ranks)
            loop.fit(task, config.training, output_dir=config.output_dir, ranks=ranks, seed=0, settings={})
    finally:
        loop.export = export
        for name, function in saved.items():
            setattr(loop._Run, name, function)
    peak = torch.cuda.max_memory_allocated()
    del task
    gc.collect()
    torch.cuda.empty_cache()
    last = rows[num_steps - 1]
    return {
        "case": case,
        "step": rows[num_steps - 2],
        "host_ms": min(row["host_ms"] for row in rows[1 : num_steps - 1]),
        "peak_gb": round(peak / 1e9, 3),
        "log_line": rows[num_steps],
        "graphs": [row["graphs"] for row in rows[:num_steps]],
        **{key: last[key] for key in ("where", "gigabytes", "attention_calls", "most")},
    }


def _shards_of(folder: Path, specs) -> str:
    from egom2p.data.shards.shard_set import shard_pattern

    return shard_pattern(folder, "random", [spec.folder for spec in specs])


def main() -> None:
    EgoM2P._initialize = lambda self: None  # kernels do nothing anyway
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN has no stand-in
    folder = Path(tempfile.mkdtemp())
    try:
        for case in sys.argv[1:] or CASES:
            print(json.dumps(run(case, folder, **CASES[case])), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
