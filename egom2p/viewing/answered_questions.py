"""Questions with what they are about, the right answer, and what was said under every control, as HTML."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from egom2p.anytoany.types import KINDS
from egom2p.metrics.caption import words_of
from egom2p.viewing import page
from egom2p.viewing.percept_pictures import picture_of

_PLACEHOLDER = re.compile(r"\{(" + "|".join(KINDS) + r")\}")


def answered_questions(folder: Path, table: Mapping[str, Any], key: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the questions of a set of which pictures were kept; empty without any.

    folder    of the evaluation: pictures lie in shown/
    key       metric of which 1 means right
    samples   lines of samples.jsonl
    """
    cards = []
    for sample in (sample for sample in samples if sample["table"] == table["name"]):
        files = [
            folder / "shown" / f"{table['name']}-{sample['row']}-{item}.npz" for item in range(len(sample["media"]))
        ]
        if not files[0].is_file():
            continue
        pictures = "".join(picture_of(file, media) for file, media in zip(files, sample["media"], strict=True))
        asked = _PLACEHOLDER.sub(r"<span class='kind'>\1</span> ", escape(sample["question"])).replace("\n", "<br>")
        words = f"<p>{asked}</p><p><span class='small'>right:</span> <b>{escape(sample['reference'])}</b></p>"
        words += page.table(
            ["shown", "said", ""], [("", _answer(said, key, sample["reference"])) for said in sample["answers"]]
        )
        head = f'<div class="small">{escape(sample["key"])}</div>'
        cards.append(page.card(f'{head}<div class="pair"><div>{pictures}</div><div>{words}</div></div>'))
    if not cards:
        return ""
    about = f"{len(cards)} of {table['num_samples']}, evenly spread over the set, whatever the answers were."
    return "<h3>Questions</h3>" + page.note(about) + "".join(cards)


def _answer(said: Mapping[str, Any], key: str, reference: str) -> list[str]:
    """Who was shown what, the answer with its wrong words bold, and the mark."""
    is_right = said["values"].get(key) == 1
    colour = "better" if is_right else "worse"
    known = set(words_of(reference))
    words = [
        w if is_right or set(words_of(w)) <= known else f"<b>{w}</b>"
        for w in escape(_printable(said["said"])).split(" ")
    ]
    text = " ".join(words).strip() or "<i>nothing</i>"
    f1 = said["values"].get("token_f1")
    score = f'<span class="interval">token F1 {f1:.2f}</span>' if f1 is not None and not is_right else ""
    answer = f'<span class="{colour}" style="white-space: normal; overflow-wrap: anywhere">{text}</span>'
    return [labelled(said), answer, f'<span class="{colour}">{"✓" if is_right else "✗"}</span> {score}']


def _printable(text: str) -> str:
    """An untrained model says control characters, which no page may hold."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def labelled(row: Mapping[str, Any]) -> str:
    """A model's name with the control as a chip."""
    name = escape(row["model"])
    return f'{name}<span class="kind">{escape(row["control"])}</span>' if row["control"] else name
