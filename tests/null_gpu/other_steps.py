"""A training step of the tokenizers and of the any-to-any model on the stand-in: one line of JSON for each case.

python other_steps.py [CASE ...], run like train_steps.py.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from null_gpu import Counts, waits

from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.step import apply_gradients

CONNECTORS = ("global_mlp", "st_shuffle", "resampler", "gated_xattn")


def of_tokenizer(name: str) -> dict:
    """Three steps, of which the last is counted; then encoding and decoding."""
    import tiny_tokenizers
    from moving_clips import moving_clips

    clips = moving_clips(4)
    network = getattr(tiny_tokenizers, name)().to("cuda").train()
    network.fit_normalisation(clips)
    batch = network.batch_from_clips(clips, np.random.default_rng(0))
    return counted(network, batch)


def of_anytoany(kind: str, folder: Path) -> dict:
    from model_toys import ConnectorConfig, toy_batch, toy_config

    from egom2p.anytoany.model import build_anytoany

    connector = ConnectorConfig(kind=kind, num_tokens=3, dim=24, num_heads=2)
    model = build_anytoany(toy_config(folder, connector=connector, adapt="lora"), device=torch.device("cuda")).train()
    return counted(model, toy_batch(model))


def of_published(folder: Path) -> dict:
    """The 8B run: LoRA of a Llama 3 8B of random weights in bfloat16, its micro-batch of 4 x 512, its connector."""
    from dataclasses import replace

    from model_toys import toy_config, toy_features

    from egom2p.anytoany.conversations.packing import collate
    from egom2p.anytoany.model import build_anytoany
    from egom2p.anytoany.types import Media, MediaSpan, Rendered
    from egom2p.config import load_config
    from egom2p.training.planning.anytoany_memory import estimate
    from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig

    config = load_config(AnyToAnyTrainingConfig, "default/anytoany/8B_lora.yaml")
    described = replace(
        config.model.language_model,
        pretrained=None,
        sizes=None,
        architecture=config.model.language_model.sizes,
        tokenizer=toy_config(folder).language_model.tokenizer,
    )
    model = build_anytoany(replace(config.model, language_model=described), device=torch.device("cuda")).train()
    length = config.data.chat.max_length
    is_target = np.arange(length) > 4
    spans = (MediaSpan(Media("image", "x"), 1, config.model.connector.max_tokens),)
    rows = [[Rendered(np.full(length, 300, np.int32), is_target, spans)]] * config.training.batch_size
    ids = rows[0][0].ids
    ids[1 : 1 + spans[0].length] = model.media_id
    batch = collate(rows, lambda media: toy_features(0, rows=1, width=model.towers[0].width), pad_id=0)
    planned = estimate(config.model, config.data, config.training)[1].total
    parameters = sum(parameter.numel() for parameter in model.lm.parameters())
    found = counted(model, batch)
    return found | {"peak": torch.cuda.max_memory_allocated(), "planned": planned, "parameters": parameters}


def counted(model: torch.nn.Module, batch) -> dict:
    optimizer = build_optimizer(model, OptimizerConfig())

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            output = model(batch.to("cuda"))
        output.sums.sum().backward()
        apply_gradients(optimizer, learning_rate=1e-4, clip_grad_norm=1.0)
        if hasattr(model, "after_step"):
            model.after_step()

    for _ in range(2):
        step()
    counts = Counts()
    step()
    found = counts.take()
    with waits() as where:
        step()
    return {"step": found, "where": dict(where)}


def main() -> None:
    torch.backends.cudnn.enabled = False  # cuDNN has no stand-in
    torch.backends.cuda.enable_cudnn_sdp(False)
    with tempfile.TemporaryDirectory() as folder:
        for case in sys.argv[1:] or ("tiny_codec", "tiny_trajectory", *CONNECTORS):
            if case == "8B_lora":
                found = of_published(Path(folder) / case)
            else:
                found = of_anytoany(case, Path(folder) / case) if case in CONNECTORS else of_tokenizer(case)
            print(json.dumps({"case": case, **found}), flush=True)


if __name__ == "__main__":
    main()
