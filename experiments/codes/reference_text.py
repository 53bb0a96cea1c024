"""Text that a language model can know: the manual of Python, which every Python brings along, cut into passages.

For the question what fine-tuning on clips does to the knowledge of text; no download.
"""

from typing import Any

from egom2p.anytoany.world.factor_world import Split
from egom2p.data.clip_order import clip_rng

_PASSAGE_CHARACTERS = 300
_UNSEEN_EVERY = 8


def reference_rows(split: Split) -> list[dict[str, Any]]:
    """Rows {conversations}: asked to go on about a topic, the passage. Topics of `unseen` never occur in training."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    unseen = {names[index] for index in clip_rng(0, "unseen topics").permutation(len(names))[::_UNSEEN_EVERY].tolist()}
    return [
        {
            "conversations": [
                {"from": "human", "value": f"Go on about {name.lower()}."},
                {"from": "gpt", "value": passage},
            ]
        }
        for name in names
        if (name in unseen) == (split == "unseen")
        for passage in passages(topics[name])
    ]


def passages(text: str) -> list[str]:
    """Lines joined to passages of some hundred characters; runs of blanks and lines of rules become one blank."""
    found, waiting = [], ""
    for line in text.splitlines():
        words = [word for word in line.split() if set(word) - set("*=-~^+|")]
        waiting = " ".join([waiting, *words]).strip()
        if len(waiting) >= _PASSAGE_CHARACTERS:
            found.append(waiting)
            waiting = ""
    return [*found, *([waiting] if waiting else [])]
