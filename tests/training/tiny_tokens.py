"""Token shards of two invented modalities, of which one is a function of the other; and a config to train on them."""

from pathlib import Path
from typing import Any

import numpy as np

from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.data.shards.shard_set import ShardWriter, encode_array

SMELL = ModalitySpec(
    "tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell", tokenizer_fingerprint="sha256:a"
)
DRIFT = ModalitySpec("tok_drift", "track", "generic", TokenGrid((5,)), 7, "drift", tokenizer_fingerprint="sha256:b")


def write_tokens(
    root: Path, dataset: str, num_clips: int, *, seed: int, specs: tuple[ModalitySpec, ...] = (SMELL, DRIFT)
):
    """A clip has one smell, now and then another; it tells the drift. A model that ignores its input cannot know it."""
    rng = np.random.default_rng(seed)
    with ShardWriter(root, dataset, {spec.folder: "npy" for spec in specs}, 16) as writer:
        for spec in specs:
            writer.card(spec.folder, spec.to_dict())
        for number in range(num_clips):
            theme = rng.integers(0, 13)
            smell = np.where(rng.random(24) < 0.8, theme, rng.integers(0, 13, 24)).astype(np.int32)
            ids = {"smell": smell, "drift": np.full(5, theme // 2, dtype=np.int32)}
            writer.write(f"{dataset}-{number:04d}", {spec.folder: encode_array(ids[spec.folder]) for spec in specs})


def write_sets(root: Path) -> Path:
    """A training set of 48 clips and one of 16 for validation."""
    write_tokens(root, "train", 48, seed=0)
    write_tokens(root, "val", 16, seed=1)
    return root


def pretrain_values(root: Path, output_dir: Path, **training: Any) -> dict[str, Any]:
    """Plain config values of a tiny run."""
    masking = {
        "shards": str(root / "[drift,smell]" / "train" / "shard-*.tar"),
        "max_input_tokens": 24,
        "max_target_tokens": 12,
        "alphas": {
            "alphas_mixture": {
                name: {"input_alphas": [1.0], "target_alphas": [1.0]} for name in ("tok_smell", "tok_drift")
            },
            "transfers": {"smell2drift": {"weight": 1.0, "inputs": ["tok_smell"], "targets": ["tok_drift"]}},
        },
    }
    return {
        "output_dir": str(output_dir),
        "seed": 3,
        "model": {
            "dim": 24, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "mlp_ratio": 2.0,
            "activation": "swiglu", "use_bias": False, "qk_norm": False, "drop_path": 0.1, "num_registers": 1,
        },
        "data": {
            "datasets": {"train": masking},
            "validation": {"val": masking | {"shards": masking["shards"].replace("/train/", "/val/")}},
            "num_validation_clips": 16,
            "in_memory": True,
        },
        "evaluation": {"tasks": {"smell2drift": {"inputs": ["tok_smell"], "targets": ["tok_drift"]}}},
        "training": {"num_steps": 6, "lr": 0.01, "batch_size": 4, "log_every": 1, "device": "cpu"} | training,
    }  # fmt: skip
