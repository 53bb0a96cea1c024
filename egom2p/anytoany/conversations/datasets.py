"""Data sets of conversations: captions, instructions in the LLaVA format, interleaved media, text alone.

A data set gives the conversation of a row; what is random in it (the template) comes from the generator it is handed.
"""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from egom2p.anytoany.conversations.conversation import (
    TemplateConfig,
    Templates,
    captioned,
    checked,
    conversation_of,
    fill,
)
from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.types import Conversation, Media, MediaKind, Role, Turn
from egom2p.anytoany.world.world_questions import WorldQuestionsConfig, WorldQuestionSet
from egom2p.config import strict
from egom2p.contracts import plain_name

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_LLAMA3_TURN = re.compile(
    r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>(?P<text>.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL
)


class ConversationSet(Protocol):
    """Conversations by number."""

    def __len__(self) -> int: ...

    def conversation(self, index: int, rng: np.random.Generator) -> Conversation:
        """ValueError names the file and the row that cannot become a conversation."""
        ...


@strict
class CaptionsConfig:
    """Rows with a media item and a caption, as the video captions of the published trainer.

    ref     column that names the media item; null: the row itself is the item (`<file>#<row>`), as where its vector
            stands in the same row
    folder  where the media files lie that `ref` names; null: `ref` is a path as it stands, or a name in a feature store
    """

    kind: Literal["captions"] = "captions"
    files: tuple[str, ...]
    media: MediaKind = "video"
    ref: str | None = None
    folder: str | None = None
    caption: str = "description"  # column of the caption
    templates: TemplateConfig = TemplateConfig(file="caption_video")


@strict
class InstructConfig:
    """Rows with a list of turns ({from: human | gpt, value: text}), in the format of LLaVA.

    The tag `<image>` stands for the row's media item; where the turns have several, `refs` must name as many.
    turns   column of the turns; the published files call it `caption`, LLaVA itself `conversations`
    ref     column with the name of the media item, or with a list of names; null: the row itself (`<file>#<row>`)
    folder  where the media files lie that `ref` names; null: as for captions
    """

    kind: Literal["instruct"] = "instruct"
    files: tuple[str, ...]
    media: MediaKind = "image"
    ref: str | None = None
    folder: str | None = None
    turns: str = "caption"
    tag: str = "<image>"  # mark in the text that stands for a media item


@strict
class InterleavedConfig:
    """Rows {key, turns: [{role, text}], media: [{kind, ref}]}; the texts hold `{video}`, `{gaze}` ... in order.

    folder  where the media files lie that `ref` names; null: as for captions
    """

    kind: Literal["interleaved"] = "interleaved"
    files: tuple[str, ...]
    folder: str | None = None


@strict
class TextConfig:
    """Rows with turns and no media, so that the language model keeps what it knew. Same turns as `instruct`.

    turns   column of the turns; null: columns `input` and `output` hold the text in Llama 3's chat form
    """

    kind: Literal["text"] = "text"
    files: tuple[str, ...]
    turns: str | None = "conversations"


DatasetConfig = Annotated[
    CaptionsConfig | InstructConfig | InterleavedConfig | TextConfig | WorldQuestionsConfig,
    Field(discriminator="kind"),
]


def open_dataset(config: Any) -> ConversationSet:
    """The data set a config describes."""
    kinds = {
        CaptionsConfig: CaptionSet,
        InstructConfig: InstructSet,
        InterleavedConfig: InterleavedSet,
        TextConfig: TextSet,
        WorldQuestionsConfig: WorldQuestionSet,
    }
    return kinds[type(config)](config)


class CaptionSet:
    """One question and its caption per row."""

    def __init__(self, config: CaptionsConfig) -> None:
        self._config = config
        self._rows = TableFiles(config.files, [name for name in (config.caption, config.ref) if name])
        self._templates = Templates(config.templates)

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int, rng: np.random.Generator) -> Conversation:
        row, key = self._rows[index], row_name(self._rows, index)
        media = Media(
            self._config.media, media_ref(row[self._config.ref], self._config.folder, key) if self._config.ref else key
        )
        caption = plain_text(row[self._config.caption], key, self._config.caption).strip()
        return captioned(key, fill(self._templates.draw(rng), {}), [media], caption)


class InstructSet:
    """Turns of people and the model, about one media item or several."""

    def __init__(self, config: InstructConfig) -> None:
        self._config = config
        self._rows = TableFiles(config.files, [name for name in (config.turns, config.ref) if name])

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int, rng: np.random.Generator) -> Conversation:
        row, key, config = self._rows[index], row_name(self._rows, index), self._config
        refs = row[config.ref] if config.ref else key
        refs = refs if isinstance(refs, list) else [refs]
        refs = [media_ref(ref, config.folder, key) if config.ref else str(ref) for ref in refs]
        texts = texts_of(row[config.turns], key)
        num_tags = sum(text.count(config.tag) for _, text in texts)
        if num_tags == 0:
            # Some rows leave the tag out: the item then opens the first question.
            first = next(number for number, (role, _) in enumerate(texts) if role == "user")
            texts[first] = ("user", f"{config.tag * len(refs)}\n{texts[first][1]}")
            num_tags = len(refs)
        if num_tags != len(refs):
            raise ValueError(f"{key}: {num_tags} tags {config.tag!r} for {len(refs)} media items; wanted one for each")
        return conversation_of(key, texts, [Media(config.media, ref) for ref in refs], tag=config.tag)


class InterleavedSet:
    """Any order of text and media."""

    def __init__(self, config: InterleavedConfig) -> None:
        self._folder = config.folder
        self._rows = TableFiles(config.files, ["turns", "media"], ["key"])

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int, rng: np.random.Generator) -> Conversation:
        row = self._rows[index]
        where = row_name(self._rows, index)
        turns = rows_of_keys(row["turns"], ("role", "text"), where, "turns")
        items = rows_of_keys(row["media"], ("kind", "ref"), where, "media")
        texts = [(_role(turn["role"], where), plain_text(turn["text"], where, "text")) for turn in turns]
        media = [
            Media(plain_text(item["kind"], where, "kind"), media_ref(item["ref"], self._folder, where))
            for item in items
        ]
        return conversation_of(str(row.get("key", where)), texts, media)


class TextSet:
    """Conversations without media."""

    def __init__(self, config: TextConfig) -> None:
        self._config = config
        self._rows = TableFiles(config.files, [config.turns] if config.turns else ["input", "output"])

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int, rng: np.random.Generator) -> Conversation:
        key, row = row_name(self._rows, index), self._rows[index]
        if self._config.turns:
            turns = row[self._config.turns]
        else:
            turns = llama3_turns("".join(plain_text(row[name], key, name) for name in ("input", "output")))
        texts = texts_of(turns, key)
        return checked(Conversation(key, tuple(Turn(role, (text,)) for role, text in texts)))


def trained_on(run: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of the measured data sets whose rows are training rows: they read a file (or clips) that the run read.

    Files are compared by path; a copy of training rows under another name is not noticed.

    run        the run's config.json
    measured   name -> plain config of a data set, or of a text task
    """
    used = {source for dataset in run["data"]["datasets"].values() for source in _sources(dataset)}
    return {name for name, dataset in measured.items() if not used.isdisjoint(_sources(dataset))}


def _sources(dataset: Mapping[str, Any]) -> set[Path]:
    """Files and folders of stored clips that the rows of a data set (its plain config) come from."""
    files = [file for pattern in dataset.get("files", ()) for file in glob.glob(pattern) or [pattern]]
    clips = [Path(dataset["root"], name) for name in dataset["datasets"]] if "root" in dataset else []
    return {Path(source).resolve() for source in (*files, *clips)}


def row_name(rows: TableFiles, index: int) -> str:
    """`<file>#<row>`: a row's name, and the name of the media item that stands in it."""
    number, row = rows.locate(index)
    return f"{rows.files[number]}#{row}"


def plain_text(value: Any, key: str, column: str) -> str:
    """A text that a row holds. Tables are full of null, NaN and lists, which must not be trained on as words."""
    if not isinstance(value, str):
        raise ValueError(f"{key}: {column!r} is {'NaN' if value != value else repr(value)[:80]}, wanted a text")
    return value


def media_ref(name: Any, folder: str | None, key: str) -> str:
    """Reference of a media item that a row names: a text or number, and below `folder` no way out of it."""
    if type(name) is int:
        name = str(name)
    name = plain_text(name, key, "reference of a media item")
    if folder is None:
        return name
    for part in name.split("/"):
        plain_name(part, "part of a reference of a media item", key)
    return str(Path(folder) / name)


def rows_of_keys(value: Any, keys: Sequence[str], key: str, column: str) -> list[dict[str, Any]]:
    """A list of mappings that have certain keys."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and set(keys) <= item.keys() for item in value):
        raise ValueError(f"{key}: {column!r} is {repr(value)[:80]}, wanted a list of {{{', '.join(keys)}}}")
    return value


def texts_of(turns: Any, key: str) -> list[tuple[Role, str]]:
    """(role, text) of turns written as {from, value} or {role, content}."""
    texts = []
    for turn in rows_of_keys(turns, (), key, "turns"):
        role, text = (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
        if text is None:
            raise ValueError(f"{key}: a turn is {{from, value}} or {{role, content}}, found {sorted(turn)}")
        texts.append((_role(role, key), plain_text(text, key, "text of a turn")))
    return texts


def llama3_turns(text: str) -> list[dict[str, str]]:
    """Turns of a text in Llama 3's chat form."""
    return [{"role": found["role"], "content": found["text"].strip()} for found in _LLAMA3_TURN.finditer(text)]


def _role(name: Any, key: str) -> Role:
    if not isinstance(name, str) or name not in _ROLES:
        raise ValueError(f"{key}: role must be one of {sorted(_ROLES)}, found {name!r}")
    return _ROLES[name]
