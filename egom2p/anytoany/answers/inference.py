"""From a prompt with placeholders and files of media to answers, for the command line, the server and evaluations.

D width of a feature row.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from egom2p.anytoany.answers.answer_generation import Answer, AnswerConfig, Question, answer
from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.conversations.conversation import captioned, question_of
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.perception.build_perception import build_source
from egom2p.anytoany.perception.familiarity import Familiarity
from egom2p.anytoany.perception.media_files import VectorFiles, read_clips
from egom2p.anytoany.perception.source import Clip, PerceptionSource, TokenConfig, VectorsConfig, source_of_kind
from egom2p.anytoany.perception.token_features import TokenSource
from egom2p.anytoany.types import KINDS, Media, PerceptionFeatures
from egom2p.contracts import AlignedClip

_VECTOR_FILES = (".npy", ".npz", ".parquet", ".jsonl", ".json")
_WORD_IN_BRACES = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class PerceivedClip:
    """Perception features, and the seconds of its recording that it covers (0, 0 where there is no clock).

    predicted   modalities that the file did not hold, and EgoM2P predicted from the others
    """

    key: str
    features: PerceptionFeatures
    start_s: float = 0.0
    end_s: float = 0.0
    predicted: tuple[str, ...] = ()


class Inference:
    """A model that answers prompts; perception sources are opened when something is to be perceived.

    familiarity   what the model's training data was like; None: not known
    predict       modalities of EgoM2P that a file lacks (gaze and camera of a video) are predicted by its own model
    """

    def __init__(self, model: AnyToAny, familiarity: Familiarity | None = None, *, predict: bool = True) -> None:
        self.model, self.familiarity, self.predict = model, familiarity, predict
        self._sources: dict[int, PerceptionSource] = {}
        self._tokens: dict[int, TokenSource] = {}

    def question(
        self, prompt: str, media: Sequence[tuple[str, PerceptionFeatures]] = (), *, num_tokens: int | None = None
    ) -> Question:
        """A question out of a prompt whose placeholders (`{video}`, `{gaze}` ...) take (kind, features) in order.

        num_tokens   perception tokens of each item, one of the connector's nested counts; None: all
        """
        features = [found for _, found in media]
        items = [Media(kind, str(number)) for number, (kind, _) in enumerate(media)]
        connector = self.model.config.connector
        renderer = ChatRenderer(
            self.model.tokenizer,
            lambda item: connector.span_length(features[int(item.ref)], item.kind, num_tokens),
            ChatConfig(),
        )
        conversation = question_of(captioned("prompt", prompt, items, "-"))
        return Question(renderer.render_question(conversation), tuple(features))

    def note(self, kind: str, clip: PerceivedClip, name: str) -> str | None:
        """A line for people where an input called `name` is not like the training data, where that is not known, or
        where EgoM2P predicted a part of it."""
        unlike = "nothing in the model's directory says what its training data was like: it may know nothing of this"
        if self.familiarity is not None:
            unlike = self.familiarity.note(self.model, kind, clip.features, name)
        lacking = f"{name} holds no {', '.join(clip.predicted)}: EgoM2P predicted them" if clip.predicted else None
        return "; ".join(part for part in (lacking, unlike) if part) or None

    def answer(
        self, questions: Sequence[Question], config: AnswerConfig, *, seeds: Sequence[int] | None = None
    ) -> list[Answer]:
        return answer(self.model, questions, config, seeds=seeds)

    def perceive_file(self, kind: str, path: str, *, stride_s: float | None = None) -> Iterator[PerceivedClip]:
        """The clips of a file, as the model's source for this kind of media wants them; a long video gives several."""
        number = source_of_kind(self.model.config.perception, kind)
        config = self.model.config.perception[number]
        if isinstance(config, VectorsConfig):
            suffix = Path(path.partition("#")[0]).suffix
            if suffix not in _VECTOR_FILES:
                raise ValueError(
                    f"{path}: this model perceives {kind} as vectors of {config.width} numbers; "
                    f"wanted one of {', '.join(_VECTOR_FILES)}"
                )
            yield PerceivedClip(path, VectorFiles(config.width)[path])
            return
        if number not in self._sources:
            self._sources[number] = build_source(config, device=str(self.model.device))
            if self.predict and isinstance(config, TokenConfig):
                self._tokens[number] = TokenSource(config, device=str(self.model.device))
        for clip in read_clips(path, config, stride_s=stride_s):
            (start_s, end_s), key, predicted = _span_s(clip), clip.key, ()
            if number in self._tokens:
                clip, predicted = self._tokens[number].completed(clip)
            yield PerceivedClip(key, self._sources[number].perceive([clip])[0], start_s, end_s, predicted)


def typed_prompt(prompt: str) -> str:
    r"""A prompt as it was typed in a shell: `\n` is a line break. ValueError for a placeholder with a slip in it."""
    text = prompt.replace("\\n", "\n")
    if not text.strip():
        raise ValueError("prompt is empty")
    for word in _WORD_IN_BRACES.findall(text):
        if word not in KINDS and (near := get_close_matches(word.lower(), KINDS, n=1, cutoff=0.7)):
            raise ValueError(f"prompt: {{{word}}} is no placeholder; did you mean {{{near[0]}}}?")
    return text


def _span_s(clip: Clip) -> tuple[float, float]:
    """First time of a clip's streams, and the end of its last sample."""
    if not isinstance(clip, AlignedClip) or not clip.streams:
        return 0.0, 0.0
    starts, ends = [], []
    for stream in clip.streams.values():
        times_s = stream.times_s
        period_s = float(times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else 0.0
        starts.append(float(times_s[0]))
        ends.append(float(times_s[-1]) + period_s)
    return min(starts), max(ends)


@dataclass(frozen=True)
class WindowCaption:
    """The caption of a segment of a recording, in seconds of its clock."""

    start_s: float
    end_s: float
    text: str


def caption_windows(
    inference: Inference,
    clips: Iterable[PerceivedClip],
    config: AnswerConfig,
    *,
    prompt: str,
    kind: str = "video",
    num_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[WindowCaption]:
    """One caption per window, in order; only `config.batch_size` windows are in memory.

    num_tokens   perception tokens of each window, as of `Inference.question`
    seed         of the first window; each further one has the next
    """
    waiting = iter(clips)
    number = 0
    while part := list(islice(waiting, config.batch_size)):
        questions = [inference.question(prompt, [(kind, clip.features)], num_tokens=num_tokens) for clip in part]
        seeds = range(seed + number, seed + number + len(part))
        for clip, found in zip(part, inference.answer(questions, config, seeds=list(seeds)), strict=True):
            yield WindowCaption(clip.start_s, clip.end_s, found.text)
        number += len(part)


def joined(captions: Iterable[WindowCaption]) -> Iterator[WindowCaption]:
    """Neighbours with the same text become one segment, given out as soon as the next one begins.

    Where windows overlap, a segment ends where the next begins.
    """
    segment: WindowCaption | None = None
    for caption in captions:
        if segment is not None and segment.text == caption.text:
            segment = replace(segment, end_s=caption.end_s)
            continue
        if segment is not None:
            yield replace(segment, end_s=min(segment.end_s, caption.start_s))
        segment = caption
    if segment is not None:
        yield segment
