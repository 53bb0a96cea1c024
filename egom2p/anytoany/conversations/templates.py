"""Instructions in many words: templates in YAML files, some kept back for evaluation.

A file has lists `train` and `held_out`; every template of a file has the same placeholders. Placeholders of media
(`{video}`, `{gaze}` ...) are filled when a conversation is made, others (`{question}` ...) by `fill`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from egom2p.anytoany.conversations.conversation import PLACEHOLDER
from egom2p.anytoany.types import KINDS
from egom2p.config import cfgs_root, from_plain, load_plain, strict

_BRACES = re.compile(r"\{(\w+)\}")
_FOLDER = "default/anytoany/templates"


@strict
class TemplateFile:
    """Content of a template file."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()


@strict
class TemplateConfig:
    """Which templates are drawn from. `limit`: only the first ones of the split."""

    file: str  # a path, or the name of a file in cfgs/default/anytoany/templates
    split: Literal["train", "held_out"] = "train"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 (null: all templates), got {self.limit}")


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
