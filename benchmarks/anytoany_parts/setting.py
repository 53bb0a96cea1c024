"""What all measurements of the any-to-any half share: model shapes, made conversations, and two ways side by side."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.language_tokenizer import train_tokenizer, with_reserved_tokens
from egom2p.anytoany.model import AnyToAny, AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.source import VectorsConfig
from egom2p.anytoany.types import Media, MediaSpan, PerceptionFeatures, Rendered
from egom2p.layers.step_memory import LiveBytes

FEATURE_WIDTH = 1024
NUM_TOKENS = 2  # perception tokens of an item, as published


def _llama(width: int, mlp: int, blocks: int, heads: int, kv_heads: int, vocab_size: int, *, is_tied: bool) -> dict:
    return {
        "model_type": "llama", "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab_size,
        "tie_word_embeddings": is_tied, "max_position_embeddings": 8192,
    }  # fmt: skip


SHAPES: Mapping[str, dict] = {
    "tiny": _llama(256, 704, 4, 4, 2, 8192, is_tied=True),
    "135M": _llama(576, 1536, 30, 9, 3, 49152, is_tied=True),
    "1B": _llama(2048, 8192, 16, 32, 8, 128256, is_tied=True),
    "8B": _llama(4096, 14336, 32, 32, 8, 128256, is_tied=False),
}


@dataclass(frozen=True)
class Setting:
    """dtype: `float32`, or `bfloat16` of weights and products; repeats: how often each way is timed, in turn."""

    shape: str
    device: torch.device
    dtype: str
    repeats: int

    @property
    def width(self) -> int:
        return SHAPES[self.shape]["hidden_size"]

    @property
    def vocab_size(self) -> int:
        return SHAPES[self.shape]["vocab_size"]

    @cached_property
    def tokenizer_folder(self) -> str:
        folder = tempfile.mkdtemp()
        with_reserved_tokens(train_tokenizer(["what does the wearer look at in this video"] * 4, 400)).save_pretrained(
            folder
        )
        return folder

    def model(self, *, adapt: str = "lora", connector: ConnectorConfig | None = None) -> AnyToAny:
        """Random weights of the shape; with adapters, made to do something."""
        language_model = LanguageModelConfig(
            architecture=SHAPES[self.shape],
            tokenizer=self.tokenizer_folder,
            dtype="float32" if adapt == "full" else self.dtype,
        )
        config = AnyToAnyConfig(
            language_model=language_model,
            connector=connector or ConnectorConfig(kind="global_mlp", num_tokens=NUM_TOKENS),
            perception=(VectorsConfig(width=FEATURE_WIDTH),),
            adapt=adapt,
        )
        model = build_anytoany(config, device=self.device)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        return model

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, **ways: Callable[[], Any]) -> dict[str, float]:
        """Median seconds of each way; the ways take turns. On a CPU seconds of processor time, which neighbours on the
        machine change little.
        """
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        for way in ways.values():
            way()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.repeats):
            for name, way in ways.items():
                self.wait()
                started = clock()
                way()
                self.wait()
                times[name].append(clock() - started)
        return {name: statistics.median(found) for name, found in times.items()}

    def peak_bytes(self, way: Callable[[], Any]) -> int:
        """Most bytes of tensors made during a call that are alive at once."""
        with LiveBytes() as live:
            way()
        return live.peak


def conversation(length: int, *, media_id: int, number: int = 0, answer_share: float = 0.4) -> Rendered:
    """Made ids with one media item at the front; the last `answer_share` are what the assistant says."""
    ids = np.random.default_rng(number).integers(1, 250, length).astype(np.int32)
    ids[1 : 1 + NUM_TOKENS] = media_id
    is_target = np.arange(length) >= round(length * (1 - answer_share))
    return Rendered(ids, is_target, (MediaSpan(Media("video", str(number)), 1, NUM_TOKENS),))


def item(number: int, rows: int = 1) -> PerceptionFeatures:
    features = np.random.default_rng(number).normal(size=(rows, FEATURE_WIDTH)).astype(np.float32)
    position = np.zeros((rows, 3), np.int16)
    position[:, 0] = np.arange(rows)
    return PerceptionFeatures(features, position, np.zeros(rows, np.int16))


def lengths_like_captions(count: int, *, cap: int = 512) -> list[int]:
    """Lognormal lengths, median 90 tokens: captions and short dialogues."""
    drawn = np.random.default_rng(0).lognormal(np.log(90), 0.7, count)
    return np.clip(drawn, 12, cap).astype(int).tolist()
