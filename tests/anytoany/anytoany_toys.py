"""Small things the tests of the any-to-any data side share: a tokenizer, conversations, perception features."""

from functools import lru_cache

import numpy as np

from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.language.language_tokenizer import train_tokenizer, with_reserved_tokens
from egom2p.anytoany.types import Conversation, Media, PerceptionFeatures, Turn

TEXTS = [
    "what does the wearer do in this video, and what is looked at?",
    "the wearer picks up the red mug while turning left",
    "describe the clip: a blue bowl is pushed over the table",
]


@lru_cache
def toy_tokenizer():
    return with_reserved_tokens(train_tokenizer(TEXTS * 4, 400))


def toy_renderer(*, span=3, **config):
    return ChatRenderer(toy_tokenizer(), lambda media: span, ChatConfig(**config))


VIDEO = Media("video", "clip")


def talk(key="a", question=("what is this? ", VIDEO), answer="a red mug"):
    return Conversation(key, (Turn("user", question), Turn("assistant", (answer,))))


def toy_features(media: Media) -> PerceptionFeatures:
    rng = np.random.default_rng(list(media.ref.encode()))
    return PerceptionFeatures(
        rng.normal(size=(4, 5)).astype(np.float32), np.zeros((4, 3), np.int16), np.zeros(4, np.int16)
    )
