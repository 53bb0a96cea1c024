"""Captions of long videos: window by window, neighbours that say the same joined."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference, PerceivedClip


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
        for clip, answer in zip(part, inference.answer(questions, config, seeds=list(seeds)), strict=True):
            yield WindowCaption(clip.start_s, clip.end_s, answer.text)
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
