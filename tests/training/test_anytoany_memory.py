"""The memory that a dry run tells against what torch holds in real steps."""

import numpy as np
import pytest
import torch

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.language_tokenizer import train_tokenizer, with_reserved_tokens
from egom2p.anytoany.model import AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.source import VectorsConfig
from egom2p.anytoany.types import Media, MediaSpan, PerceptionFeatures, Rendered
from egom2p.config import from_plain
from egom2p.layers.step_memory import LiveBytes
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.planning.anytoany_memory import estimate
from egom2p.training.step import apply_gradients
from egom2p.training.training_config import TrainingConfig

LLAMA = {"model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "hidden_size": 192, "intermediate_size": 512, "vocab_size": 2000, "tie_word_embeddings": True}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 192, "n_layer": 4, "n_head": 4, "vocab_size": 2000}
GPT2 |= {name: 0.0 for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop")}
ROWS, POSITIONS, WIDTH = 3, 128, 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    with_reserved_tokens(train_tokenizer(["the wearer looks at the red mug"] * 4, 300)).save_pretrained(folder)
    return str(folder)


def model_config(tokenizer, architecture, dtype, adapt, *, recompute):
    return AnyToAnyConfig(
        language_model=LanguageModelConfig(
            architecture=architecture, tokenizer=tokenizer, dtype=dtype, gradient_checkpointing=recompute
        ),
        connector=ConnectorConfig(kind="global_mlp", num_tokens=2),
        perception=(VectorsConfig(width=WIDTH),),
        adapt=adapt,
    )


def full_rows(model):
    """Rows as long as they may be, of which all but the question is a target."""
    rng, rows = np.random.default_rng(0), []
    for number in range(ROWS):
        ids = rng.integers(0, 250, POSITIONS).astype(np.int32)
        ids[1:3] = model.media_id
        span = MediaSpan(Media("video", str(number)), 1, 2)
        rows.append([Rendered(ids, np.arange(POSITIONS) > 2, (span,))])
    item = PerceptionFeatures(np.ones((1, WIDTH), np.float32), np.zeros((1, 3), np.int16), np.zeros(1, np.int16))
    return collate(rows, lambda _: item, pad_id=0)


def most_bytes(model, *, is_mixed):
    """Most bytes alive during an optimizer step of two micro-batches, after a first one has made the moments."""
    batch, optimizer = full_rows(model), build_optimizer(model, OptimizerConfig())
    with LiveBytes() as live:
        for _ in range(2):
            live.peak = live.now
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                    total = model(batch).sums.sum()
                total.backward()
            del total
            apply_gradients(optimizer, learning_rate=1e-3, clip_grad_norm=1.0)
    return live.peak + sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("dtype", "adapt", "is_mixed"),
    [
        ("float32", "lora", False),
        ("bfloat16", "lora", True),
        ("float32", "full", False),
        ("float32", "full", True),
        ("float32", "frozen", False),
    ],
)
def test_a_step_holds_what_the_dry_run_says(tokenizer, dtype, adapt, is_mixed, recompute):
    config = model_config(tokenizer, LLAMA, dtype, adapt, recompute=recompute)
    check(config, is_mixed=is_mixed)


def test_another_family(tokenizer):
    config = model_config(tokenizer, GPT2, "float32", "full", recompute=False)
    check(config, is_mixed=False)


def check(config, *, is_mixed):
    with torch.random.fork_rng():
        model = build_anytoany(config).train()
    data = from_plain(
        LanguageDataConfig,
        {
            "datasets": {"a": {"kind": "captions", "files": ["none"]}},
            "chat": {"max_length": POSITIONS},
            "batching": "even",
        },
    )
    values = {"num_steps": 1, "warmup": 0, "lr": 1e-3, "batch_size": ROWS, "dtype": "bf16" if is_mixed else "fp32"}
    _, found = estimate(config, data, from_plain(TrainingConfig, values))
    assert found.weights == sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    assert found.gradients == trained and found.optimizer == 2 * trained
    with_average = from_plain(TrainingConfig, values | {"ema": {"decay": 0.9}})
    assert estimate(config, data, with_average)[1].total == found.total + trained
    measured = most_bytes(model, is_mixed=is_mixed)
    states = found.weights + found.gradients + found.optimizer
    assert found.total == pytest.approx(measured, rel=0.1)
    # Weights alone would make any estimate look good.
    assert found.total - states == pytest.approx(measured - states, rel=0.25)
