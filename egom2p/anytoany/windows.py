"""Captions of long videos: window by window, neighbours that say the same joined."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from egom2p.anytoany.generation import AnswerConfig
from egom2p.anytoany.responder import PerceivedClip, Responder


@dataclass(frozen=True)
class WindowCaption:
    """What was said about a stretch of a recording, in seconds of its clock."""

    start_s: float
    end_s: float
    text: str


def caption_windows(
    responder: Responder, clips: Iterable[PerceivedClip], config: AnswerConfig, *, prompt: str, kind: str = "video"
) -> Iterator[WindowCaption]:
    """One caption per window, in order; only `config.batch_size` windows are in memory."""
    waiting = iter(clips)
    number = 0
    while part := list(islice(waiting, config.batch_size)):
        questions = [responder.question(prompt, [(kind, clip.percept)]) for clip in part]
        seeds = range(number, number + len(part))
        for clip, said in zip(part, responder.answer(questions, config, seeds=list(seeds)), strict=True):
            yield WindowCaption(clip.start_s, clip.end_s, said.text)
        number += len(part)


def joined(captions: Iterable[WindowCaption]) -> list[WindowCaption]:
    """Neighbours with the same text become one stretch; where windows overlap, a stretch ends where the next begins."""
    stretches: list[WindowCaption] = []
    for caption in captions:
        if stretches and stretches[-1].text == caption.text:
            stretches[-1] = replace(stretches[-1], end_s=caption.end_s)
            continue
        if stretches and stretches[-1].end_s > caption.start_s:
            stretches[-1] = replace(stretches[-1], end_s=caption.start_s)
        stretches.append(caption)
    return stretches
