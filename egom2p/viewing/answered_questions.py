"""Questions with what they are about, the right answer, and what was answered under every control, as HTML.

What a model was shown is a picture: a row of frames with the gaze, or coloured codes. F frames, N codes.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from egom2p.anytoany.types import KINDS
from egom2p.metrics.caption import words_of
from egom2p.metrics.result_table import ResultTable
from egom2p.viewing import page, plots
from egom2p.viewing.plots import enlarged, with_gaze

_PLACEHOLDER = re.compile(r"\{(" + "|".join(KINDS) + r")\}")
_HEIGHT_PX, _COLUMNS, _GAP_PX = 150, 3, 4
_CELL_PX, _BLOCK_GAP_PX, _ROW_GAP_PX, _NAMES_PX = 26, 10, 12, 92
_EDGE = 'stroke="#c3cbd4" stroke-width="0.5"'
_MAX_CODES = 400  # more are a texture, not something to read
# Light enough for black figures; codes that are the same have the same colour, others mostly not.
_CODE_COLOURS = ("#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffff99", "#d9d9d9", "#80cdc1", "#f1b6da")
_CODE_COLOURS += ("#dfc27d", "#7fbfff", "#ffffff", "#c7e9b4")


def answered_questions(folder: Path, table: ResultTable, samples: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the questions of a set of which pictures were kept; empty without any.

    folder    of the evaluation: pictures lie in shown/
    table     its first metric is 1 where an answer is right
    samples   lines of samples.jsonl
    """
    cards = []
    for sample in (sample for sample in samples if sample["table"] == table.task):
        files = [folder / "shown" / f"{table.task}-{sample['row']}-{item}.npz" for item in range(len(sample["media"]))]
        if not files[0].is_file():
            continue
        pictures = "".join(picture_of(file, media) for file, media in zip(files, sample["media"], strict=True))
        asked = _PLACEHOLDER.sub(r"<span class='kind'>\1</span> ", escape(sample["question"])).replace("\n", "<br>")
        words = f"<p>{asked}</p><p><span class='small'>right:</span> <b>{escape(sample['reference'])}</b></p>"
        words += page.table(
            ["shown", "output"],
            [("", _answer(output, table.primary.key, sample["reference"])) for output in sample["answers"]],
        )
        head = f'<div class="small">{escape(sample["key"])}</div>'
        cards.append(page.card(f'{head}<div class="pair"><div>{pictures}</div><div>{words}</div></div>'))
    if not cards:
        return ""
    about = f"{len(cards)} of {table.num_clips}, evenly spread over the set, whatever the answers were."
    return "<h3>Questions</h3>" + page.note(about) + "".join(cards)


def conversation(folder: Path, tables: Sequence[ResultTable], samples: Sequence[Mapping[str, Any]]) -> str:
    """HTML of one kept clip and all that was asked about it, with the answers to true features; empty without any.

    Of the clips with the most questions the first: whether the answers are right plays no part in it.
    """
    metrics = {table.task: table.primary.key for table in tables}
    of_clip: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        is_kept = (
            len(sample["media"]) == 1 and (folder / "shown" / f"{sample['table']}-{sample['row']}-0.npz").is_file()
        )
        if is_kept and any(output["control"] == "true" for output in sample["answers"]):
            of_clip.setdefault(sample["media"][0]["ref"], []).append(sample)
    if not of_clip:
        return ""
    asked = max(of_clip.values(), key=len)
    turns = ""
    for sample in asked:
        question = _PLACEHOLDER.sub("", escape(sample["question"])).strip().replace("\n", "<br>")
        turns += f'<p class="turn asked">{question}</p>'
        for output in (output for output in sample["answers"] if output["control"] == "true"):
            is_right = output["values"].get(metrics[sample["table"]]) == 1
            mark = "✓" if is_right else f"✗ right: {escape(sample['reference'])}"
            turns += f'<p class="turn"><span class="small">{escape(output["model"])}</span><br>'
            turns += f"{escape(_printable(output['output'])) or '<i>nothing</i>'}"
            turns += f'<br><span class="small {"better" if is_right else "worse"}">{mark}</span></p>'
    first = asked[0]
    picture = picture_of(folder / "shown" / f"{first['table']}-{first['row']}-0.npz", first["media"][0])
    return page.card(f'<div class="pair"><div>{picture}</div><div class="talk">{turns}</div></div>')


def _answer(output: Mapping[str, Any], key: str, reference: str) -> list[str]:
    """Who was shown what; the mark, and the answer with its wrong words bold."""
    is_right = output["values"].get(key) == 1
    colour = "better" if is_right else "worse"
    known = set(words_of(reference))
    words = [
        w if is_right or set(words_of(w)) <= known else f"<b>{w}</b>"
        for w in escape(_printable(output["output"])).split(" ")
    ]
    text = " ".join(words).strip() or "<i>nothing</i>"
    f1 = output["values"].get("token_f1")
    score = f'<span class="interval">token F1 {f1:.2f}</span>' if f1 is not None and not is_right else ""
    mark = "✓" if is_right else "✗"
    answer = f'<span class="{colour}" style="white-space: normal; overflow-wrap: anywhere">{mark} {text}</span> {score}'
    return [labelled(output["model"], output["control"]), answer]


def _printable(text: str) -> str:
    """An untrained model says control characters, which no page may hold."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def labelled(model: str, control: str) -> str:
    """A model's name with the control as a chip."""
    return f'{escape(model)}<span class="kind">{escape(control)}</span>' if control else escape(model)


def picture_of(file: Path, media: Mapping[str, str]) -> str:
    """HTML of one media item from the arrays that the evaluation kept."""
    name = f"{media['kind']} {media['ref']}"
    arrays = dict(np.load(file)) if file.is_file() else {}
    if "frames" in arrays:
        return _sheet(arrays, name)
    if "ids" in arrays and len(arrays["ids"]) <= _MAX_CODES:
        return _codes(arrays, name)
    caption = f"{len(arrays['ids'])} codes, too many to show" if "ids" in arrays else "nothing to look at"
    return f'<p class="small">{escape(name)}: {caption}</p>'


def _sheet(arrays: Mapping[str, np.ndarray], name: str) -> str:
    frames_FHWC = enlarged(arrays["frames"], _HEIGHT_PX)
    caption = f"{len(frames_FHWC)} frames from left to right, row by row"
    if "gaze" in arrays:
        frames_FHWC = with_gaze(frames_FHWC, arrays["gaze"], arrays["gaze_is_valid"], plots.TRUTH, filled=True)
        caption += "; dot: gaze"
    height, width = frames_FHWC.shape[1:3]
    columns = min(_COLUMNS, len(frames_FHWC))
    rows = -(-len(frames_FHWC) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP_PX) - _GAP_PX, rows * (height + _GAP_PX) - _GAP_PX), "white")
    for number, frame in enumerate(frames_FHWC):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(frame), (column * (width + _GAP_PX), row * (height + _GAP_PX)))
    written = io.BytesIO()
    sheet.save(written, "JPEG", quality=85)
    data = base64.b64encode(written.getvalue()).decode("ascii")
    picture = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _codes(arrays: Mapping[str, np.ndarray], name: str) -> str:
    """One line per modality, time from left to right, a block of rows and columns for each time."""
    parts, top, right = [], 0, 0
    for number, modality in enumerate(arrays["names"].tolist()):
        is_own = arrays["source"] == number
        if not is_own.any():
            continue
        ids_N, position_N3 = arrays["ids"][is_own], arrays["position"][is_own].astype(int)
        _, height, width = (int(size) for size in position_N3.max(axis=0) + 1)
        middle = top + height * _CELL_PX / 2 + 4
        parts.append(f'<text x="0" y="{middle:.0f}" fill="var(--soft, #5b6776)">{escape(modality)}</text>')
        for code, (t, y, x) in zip(ids_N.tolist(), position_N3.tolist(), strict=True):
            left = _NAMES_PX + t * (width * _CELL_PX + _BLOCK_GAP_PX) + x * _CELL_PX
            right = max(right, left + _CELL_PX)
            parts.append(_cell(left, top + y * _CELL_PX, code))
        top += height * _CELL_PX + _ROW_GAP_PX
    svg = f'<svg viewBox="0 0 {right} {top}" width="{right}" height="{top}" font-size="11" role="img">'
    label = f"<title>{escape(name)}</title>"
    return f"<figure>{svg}{label}{''.join(parts)}</svg><figcaption>codes, time from left to right</figcaption></figure>"


def _cell(left: int, top: int, code: int) -> str:
    colour = _CODE_COLOURS[code % len(_CODE_COLOURS)]
    square = (
        f'<rect x="{left}" y="{top}" width="{_CELL_PX - 1}" height="{_CELL_PX - 1}" rx="3" fill="{colour}" {_EDGE}/>'
    )
    middle = left + (_CELL_PX - 1) / 2
    return f'{square}<text x="{middle}" y="{top + 17}" text-anchor="middle">{code}</text>'
