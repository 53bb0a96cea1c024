"""Captions and questions about clips of the synthetic world, from what the simulation knows of them.

Streams used: `caption`, `factors` (speed, turn, mover that is looked at) and, where stored, `mover_views` (where each
mover is in the picture). A clip for which an answer would not be clear gives no question. S samples of a clip.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from egom2p.anytoany.conversations.conversation import TemplateConfig, Templates, captioned, fill
from egom2p.anytoany.types import Conversation, Media
from egom2p.config import Count, strict
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore, stored_streams

Question = Literal["caption", "looked_at", "looked_at_choice", "colour", "motion", "order", "position", "row", "side"]
_MAIN_SHARE = 0.6  # of the clip that the eyes are on the one thing a question is about
_ORDER_SHARE = 0.25  # of the clip for each of the two things in an order
_SEEN_SHARE = 0.5  # of the clip that a candidate is in the picture
_STILL_MPS, _WALK_MPS = 0.1, 0.35  # between them it is not clear whether the wearer walks
_STRAIGHT_RAD_PER_S, _TURN_RAD_PER_S = np.radians(6), np.radians(14)
_LETTERS = "ABCDEFGH"
_SIDES = ("on the left", "in the middle", "on the right")
_APART = 0.05  # image widths between neighbours, so that left and right are clear


@strict
class WorldQuestionsConfig:
    """Questions about the clips of some data sets of a clip store.

    questions   a clip is asked each of these that has a clear answer
    min_candidates   `looked_at*`, `colour`: how many things must be in the picture for the question to be asked
    templates   other template files than the usual ones, by question
    split       of the templates
    """

    kind: Literal["world"] = "world"
    root: str
    datasets: tuple[str, ...]
    questions: tuple[Question, ...] = ("caption",)
    min_candidates: Count = 1
    max_clips: Count | None = None
    templates: dict[Question, TemplateConfig] = field(default_factory=dict)
    split: Literal["train", "held_out"] = "train"

    def __post_init__(self) -> None:
        if not self.datasets or not self.questions:
            raise ValueError("datasets and questions must each name at least one")


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a clip.

    targets     (S,) int: mover that is looked at, -1 ahead, -2 away
    speed_mps, turn_rad_per_s   means over the clip, left positive
    names       of the movers
    is_seen     for each mover, whether it is in the picture and unhidden for most of the clip; None: not stored
    across      for each mover, where it is in the picture on average, 0 left to 1 right; None: not stored
    """

    key: str
    caption: str
    targets: np.ndarray
    speed_mps: float
    turn_rad_per_s: float
    names: tuple[str, ...]
    is_seen: tuple[bool, ...] | None
    across: tuple[float, ...] | None = None

    @classmethod
    def of(cls, clip: AlignedClip) -> "ClipFacts":
        """Facts of a clip of the synthetic world; ValueError for another one."""
        if "factors" not in clip:
            raise ValueError(f"clip {clip.key} has no stream `factors`; it is not of the synthetic world")
        factors_S3 = clip.streams["factors"].values
        names = tuple(json.loads(clip.provenance.source)["movers"])
        is_seen = across = None
        if "mover_views" in clip:
            views_SM3 = clip.streams["mover_views"].values.reshape(len(factors_S3), -1, 3)
            is_seen = tuple(bool(share >= _SEEN_SHARE) for share in (views_SM3[:, :, 2] > 0.5).mean(axis=0))
            across = tuple(views_SM3[:, :, 0].mean(axis=0).tolist())
        return cls(
            key=clip.key,
            caption=clip.caption if "caption" in clip else "",
            targets=np.round(factors_S3[:, 2]).astype(int),
            speed_mps=float(factors_S3[:, 0].mean()),
            turn_rad_per_s=float(factors_S3[:, 1].mean()),
            names=names,
            is_seen=is_seen,
            across=across,
        )

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of what could be looked at."""
        seen = self.is_seen or (True,) * len(self.names)
        return tuple(name for name, is_there in zip(self.names, seen, strict=True) if is_there)

    @property
    def looked_at(self) -> str | None:
        """The mover that the eyes are on for most of the clip."""
        movers, counts = np.unique(self.targets, return_counts=True)
        main = int(np.argmax(counts))
        is_clear = movers[main] >= 0 and counts[main] >= _MAIN_SHARE * len(self.targets)
        return self.names[movers[main]] if is_clear else None

    @property
    def motion(self) -> str | None:
        """How the camera moves, where that is clear."""
        speed, turn = self.speed_mps, abs(self.turn_rad_per_s)
        if _STILL_MPS < speed < _WALK_MPS or _STRAIGHT_RAD_PER_S < turn < _TURN_RAD_PER_S:
            return None
        side = "left" if self.turn_rad_per_s > 0 else "right"
        turns = turn >= _TURN_RAD_PER_S
        if speed <= _STILL_MPS:
            return f"it turns {side} on the spot" if turns else "it stands still"
        return f"it moves forward and turns {side}" if turns else "it moves straight forward"

    @property
    def order(self) -> tuple[str, str] | None:
        """Two movers of which one is looked at before the other, each for a good part of the clip."""
        on_movers = self.targets[self.targets >= 0]
        changes = np.flatnonzero(np.diff(on_movers))
        if len(changes) != 1:
            return None
        first, then = on_movers[: changes[0] + 1], on_movers[changes[0] + 1 :]
        is_clear = min(len(first), len(then)) >= _ORDER_SHARE * len(self.targets)
        return (self.names[first[0]], self.names[then[0]]) if is_clear else None

    @property
    def row(self) -> tuple[str, ...] | None:
        """Three things that are seen side by side, from left to right."""
        if self.across is None or len(self.candidates) != len(_SIDES):
            return None
        seen = self.is_seen or ()
        placed = sorted(
            (at, name) for at, name, is_there in zip(self.across, self.names, seen, strict=True) if is_there
        )
        is_clear = all(right[0] - left[0] >= _APART for left, right in zip(placed, placed[1:], strict=False))
        return tuple(name for _, name in placed) if is_clear else None


def answer_to(question: Question, facts: ClipFacts, *, min_candidates: int) -> str | None:
    """The answer in words; None where there is no clear one."""
    if question == "caption":
        return facts.caption or None
    if question in ("looked_at", "looked_at_choice", "colour"):
        found = facts.looked_at
        if found is None or found not in facts.candidates or len(facts.candidates) < min_candidates:
            return None
        return found.split()[0] if question == "colour" else with_article(found)
    if question == "motion":
        return facts.motion
    if question == "position":
        return facts.row and with_article(facts.row[0])
    if question == "side":
        is_in_row = facts.row is not None and facts.looked_at in facts.row
        return _SIDES[(facts.row or ()).index(facts.looked_at)] if is_in_row else None
    if question == "row":
        return facts.row and ", ".join(with_article(name) for name in facts.row)
    order = facts.order
    return f"first {with_article(order[0])}, then {with_article(order[1])}" if order else None


class WorldQuestionSet:
    """Every clear question about every clip; the media item's `ref` is the clip's key."""

    def __init__(self, config: WorldQuestionsConfig) -> None:
        self._config = config
        self.facts = read_facts(config.root, config.datasets, config.max_clips)
        self._rows: list[tuple[ClipFacts, Question, str]] = [
            (facts, question, found)
            for facts in self.facts
            for question in config.questions
            if (found := answer_to(question, facts, min_candidates=config.min_candidates)) is not None
        ]
        self._templates = {question: self._templates_of(question) for question in config.questions}
        if not self._rows:
            raise ValueError(f"{config.root}: no clip of {list(config.datasets)} has a clear answer to a question")

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int, rng: np.random.Generator) -> Conversation:
        facts, question, found = self._rows[index]
        template = self._templates[question].draw(rng)
        texts = {}
        if question == "looked_at_choice":
            options = [with_article(facts.candidates[number]) for number in rng.permutation(len(facts.candidates))]
            texts["options"] = " ".join(
                f"{letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False)
            )
            found = _LETTERS[options.index(found)]
        if question == "position":
            side = int(rng.integers(len(_SIDES)))
            texts["side"], found = _SIDES[side], with_article((facts.row or ())[side])
        key = f"{facts.key}/{question}"
        return captioned(key, fill(template, texts), [Media("video", facts.key)], found)

    def _templates_of(self, question: Question) -> Templates:
        usual = TemplateConfig(file=usual_templates(question), split=self._config.split)
        return Templates(self._config.templates.get(question, usual))


def usual_templates(question: Question) -> str:
    """Name of the file in cfgs/default/anytoany/templates."""
    return "caption_video" if question == "caption" else question


def read_facts(root: str, datasets: Sequence[str], max_clips: int | None = None) -> list[ClipFacts]:
    """Facts of the clips of several data sets; pictures are not touched."""
    facts = []
    for dataset in datasets:
        present = stored_streams(root, dataset)
        wanted = [name for name in ("factors", "caption", "mover_views") if name in present]
        store = ClipStore(root, dataset, streams=wanted)
        facts += [ClipFacts.of(store[index]) for index in range(len(store))[:max_clips]]
    return facts


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
