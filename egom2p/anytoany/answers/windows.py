"""Captions of long videos: window by window, neighbours that say the same joined."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import PerceivedClip, Responder


@dataclass(frozen=True)
class WindowCaption:
    """What was said about a stretch of a recording, in seconds of its clock."""

    start_s: float
    end_s: float
    text: str


def caption_windows(
    responder: Responder,
    clips: Iterable[PerceivedClip],
    config: AnswerConfig,
    *,
    prompt: str,
    kind: str = "video",
    num_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[WindowCaption]:
    """One caption per window, in order; only `config.batch_size` windows are in memory.

    num_tokens   perception tokens of each window, as of `Responder.question`
    seed         of the first window; each further one has the next
    """
    waiting = iter(clips)
    number = 0
    while part := list(islice(waiting, config.batch_size)):
        questions = [responder.question(prompt, [(kind, clip.percept)], num_tokens=num_tokens) for clip in part]
        seeds = range(seed + number, seed + number + len(part))
        for clip, said in zip(part, responder.answer(questions, config, seeds=list(seeds)), strict=True):
            yield WindowCaption(clip.start_s, clip.end_s, said.text)
        number += len(part)


def joined(captions: Iterable[WindowCaption]) -> Iterator[WindowCaption]:
    """Neighbours with the same text become one stretch, told as soon as the next one begins.

    Where windows overlap, a stretch ends where the next begins.
    """
    stretch: WindowCaption | None = None
    for caption in captions:
        if stretch is not None and stretch.text == caption.text:
            stretch = replace(stretch, end_s=caption.end_s)
            continue
        if stretch is not None:
            yield replace(stretch, end_s=min(stretch.end_s, caption.start_s))
        stretch = caption
    if stretch is not None:
        yield stretch
