"""From text with placeholders to turns with media, what every conversation must fulfil, and templates of instructions.

A template file has lists `train` and `held_out` (kept back for evaluation); every template of a file has the same
placeholders. Those of media (`{video}`, `{gaze}` ...) are filled when a conversation is made, others (`{question}` ...)
by `fill`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.anytoany.types import KINDS, Conversation, Media, Role, Turn
from egom2p.config import Count, cfgs_root, from_plain, load_plain, strict

_BRACES = re.compile(r"\{(\w+)\}")
_FOLDER = "default/anytoany/templates"
PLACEHOLDER = re.compile(r"\{(" + "|".join(KINDS) + r")\}")


def conversation_of(
    key: str, texts: Sequence[tuple[Role, str]], media: Sequence[Media], *, tag: str | None = None
) -> Conversation:
    """A conversation from (role, text) pairs; the placeholders `{video}`, `{gaze}` ... take the media in order.

    tag   stands for a media item of any kind instead of the placeholders, such as `<image>`

    ValueError names the conversation when there are more or fewer placeholders than media, or one of another kind.
    """
    waiting = iter(media)
    pattern = PLACEHOLDER if tag is None else re.compile(f"({re.escape(tag)})")
    turns = tuple(Turn(role, _parts(text, pattern, waiting, key)) for role, text in texts)
    left = len(list(waiting))
    if left:
        placed = len(media) - left
        raise ValueError(f"conversation {key}: {len(media)} media items for {placed} placeholders; wanted one for each")
    return checked(Conversation(key, turns))


def captioned(key: str, question: str, media: Sequence[Media], answer: str) -> Conversation:
    """One question with placeholders, and an answer that is taken as it stands, whatever braces it has."""
    waiting = iter(media)
    asked = Turn("user", _parts(question, PLACEHOLDER, waiting, key))
    if next(waiting, None) is not None:
        raise ValueError(f"conversation {key}: {question!r} has fewer placeholders than {len(media)} media items")
    return checked(Conversation(key, (asked, Turn("assistant", (answer,)))))


def checked(conversation: Conversation) -> Conversation:
    """The conversation itself; ValueError names what is wrong with it.

    System text may only come first, user and assistant take turns, and the assistant says something.
    """
    turns, key = conversation.turns, conversation.key
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    roles = [turn.role for turn in spoken]
    wanted = [("user", "assistant")[number % 2] for number in range(len(roles))]
    if not roles or roles != wanted:
        raise ValueError(f"conversation {key}: turns are {roles}; wanted user and assistant by turns, user first")
    if "assistant" not in roles:
        raise ValueError(f"conversation {key}: the assistant says nothing, so there is nothing to learn")
    for number, turn in enumerate(turns):
        if not any(isinstance(part, Media) or part.strip() for part in turn.parts):
            raise ValueError(f"conversation {key}: turn {number} ({turn.role}) is empty")
    return conversation


def question_of(conversation: Conversation) -> Conversation:
    """The conversation without the assistant's last words: what a model is given to answer."""
    if not conversation.turns or conversation.turns[-1].role != "assistant":
        raise ValueError(f"conversation {conversation.key}: the last turn is not the assistant's")
    return Conversation(conversation.key, conversation.turns[:-1])


def answer_of(conversation: Conversation) -> str:
    """Text of the assistant's last turn."""
    question_of(conversation)
    return "".join(part for part in conversation.turns[-1].parts if isinstance(part, str)).strip()


def _parts(text: str, pattern: re.Pattern[str], waiting: Iterator[Media], key: str) -> tuple[str | Media, ...]:
    parts: list[str | Media] = []
    end = 0
    for found in pattern.finditer(text):
        item = next(waiting, None)
        if item is None:
            raise ValueError(f"conversation {key}: no media item is left for the placeholder {found.group()}")
        if pattern is PLACEHOLDER and item.kind != found.group(1):
            raise ValueError(f"conversation {key}: {found.group()} stands where the media item is of kind {item.kind}")
        parts += [text[end : found.start()], item]
        end = found.end()
    parts.append(text[end:])
    return tuple(part for part in parts if not isinstance(part, str) or part)


@strict
class TemplateFile:
    """Content of a template file."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()


@strict
class TemplateConfig:
    """Which templates are drawn from. `limit`: only the first ones of the split."""

    file: str  # a path, or the name of a file in cfgs/default/anytoany/templates
    split: Literal["train", "held_out"] = "train"  # which list of the file
    limit: Count | None = None


class Templates:
    """The templates of one split."""

    def __init__(self, config: TemplateConfig) -> None:
        path = template_path(config.file)
        self.texts = getattr(load_templates(path), config.split)[: config.limit]
        if not self.texts:
            raise ValueError(f"{path}: has no templates in its list {config.split!r}")

    def __len__(self) -> int:
        return len(self.texts)

    def draw(self, rng: np.random.Generator) -> str:
        """One of them. Give a generator made from the sample's number, never one that a rank advances."""
        return self.texts[int(rng.integers(len(self.texts)))]


def fill(template: str, texts: Mapping[str, str]) -> str:
    """Put texts into the placeholders that are not media; ValueError names one that is not given."""

    def text_of(found: re.Match[str]) -> str:
        name = found.group(1)
        if name in KINDS:
            return found.group()
        if name not in texts:
            raise ValueError(f"template {template!r}: nothing to put into {{{name}}}; given are {sorted(texts)}")
        # What looks like a placeholder of media in the text itself is none.
        return PLACEHOLDER.sub(r"\1", texts[name])

    return _BRACES.sub(text_of, template)


def template_path(file: str) -> Path:
    """A path as it is, a bare name in the folder of the package's templates."""
    path = Path(file)
    return path if path.suffix else cfgs_root() / _FOLDER / f"{file}.yaml"


@lru_cache
def load_templates(path: Path) -> TemplateFile:
    """Read and check a template file; ValueError names the file and the template."""
    loaded = from_plain(TemplateFile, load_plain(path), where=str(path))
    every = (*loaded.train, *loaded.held_out)
    if not loaded.train:
        raise ValueError(f"{path}: the list `train` is empty")
    if len(set(every)) < len(every):
        twice = next(text for text in every if every.count(text) > 1)
        raise ValueError(f"{path}: {twice!r} stands there twice; train and held-out templates must differ")
    wanted = sorted(_BRACES.findall(every[0]))
    for text in every:
        if sorted(_BRACES.findall(text)) != wanted:
            raise ValueError(f"{path}: {text!r} has other placeholders than the first template, which has {wanted}")
    return loaded
