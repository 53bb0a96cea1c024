"""A tiny any-to-any model and what it perceives, for the tests of the model side."""

from functools import lru_cache

import numpy as np
import torch

from egom2p.anytoany.codebooks import CodebookConfig, codebook_sizes
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.language_tokenizer import train_tokenizer, with_reserved_tokens
from egom2p.anytoany.model import AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.source import VectorsConfig
from egom2p.anytoany.types import Conversation, Media, PerceptionFeatures, Turn

WIDTH = 10
LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GAZE = CodebookConfig(kind="gaze", modality="tok_gaze", size=13, num_tokens=4, fingerprint="sha256:a")
CAM = CodebookConfig(kind="cam", modality="tok_cam", size=7, num_tokens=3, fingerprint="sha256:b")
BOOKS = (GAZE, CAM)
VECTORS = VectorsConfig(width=WIDTH)


@lru_cache
def _base_tokenizer_file(folder, codebooks):
    tokenizer = train_tokenizer(["the wearer looks at the red mug and turns left. "] * 4, 300)
    path = folder / f"tokenizer{len(codebooks)}"
    with_reserved_tokens(tokenizer, codebooks=codebook_sizes(codebooks)).save_pretrained(path)
    return str(path)


def toy_config(folder, *, architecture=LLAMA, codebooks=(), connector=None, perception=(VECTORS,), **more):
    """`folder`: where the tokenizer is written, once."""
    language_model = more.pop("language_model", None) or LanguageModelConfig(
        architecture=architecture, tokenizer=_base_tokenizer_file(folder, codebooks)
    )
    return AnyToAnyConfig(
        language_model=language_model,
        connector=connector or ConnectorConfig(num_tokens=3, dim=24, num_heads=2),
        perception=perception,
        codebooks=codebooks,
        **{"adapt": "full", **more},
    )


def toy_model(folder, *, noise=0.1, **settings):
    """A model whose every trained number is moved, so that nothing is 0 or 1 by chance."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_anytoany(toy_config(folder, **settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * noise
    return model


def toy_features(number: int, *, rows: int | None = None, width: int = WIDTH) -> PerceptionFeatures:
    rng = np.random.default_rng(number)
    rows = rows or 1 + number % 4
    position = np.zeros((rows, 3), np.int16)
    position[:, 0] = np.arange(rows)
    return PerceptionFeatures(rng.normal(size=(rows, width)).astype(np.float32), position, np.zeros(rows, np.int16))


def features_of(media: Media) -> PerceptionFeatures:
    return toy_features(int(media.ref))


def renderer_of(model, shown=features_of, *, wanted=None) -> ChatRenderer:
    connector = model.config.connector
    return ChatRenderer(
        model.tokenizer,
        lambda media: connector.span_length(shown(media), media.kind, wanted),
        ChatConfig(max_length=400),
    )


def talks(count: int = 3) -> list[Conversation]:
    """Conversations with 0, 1, 2 ... media items and words of different lengths."""
    made = []
    for number in range(count):
        media = tuple(Media("video", str(number + extra)) for extra in range(number % 3))
        question = (*media, "look " * (number + 1))
        made.append(Conversation(str(number), (Turn("user", question), Turn("assistant", (f"mug {number}",)))))
    return made


def toy_batch(model, rows=((0, 1), (2,)), *, count: int = 3):
    rendered = [renderer_of(model).render(talk) for talk in talks(count)]
    return collate([[rendered[number] for number in row] for row in rows], features_of, pad_id=0)
