"""What a language model was shown, as a picture in a page: a row of frames with the gaze, or coloured codes.

F frames, N codes.
"""

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from egom2p.viewing import plots
from egom2p.viewing.panels import enlarged, with_gaze

_HEIGHT_PX, _COLUMNS, _GAP_PX = 150, 3, 4
_CELL_PX, _BLOCK_GAP_PX, _ROW_GAP_PX, _NAMES_PX = 26, 10, 12, 92
_EDGE = 'stroke="#c3cbd4" stroke-width="0.5"'
_MAX_CODES = 400  # more are a texture, not something to read
# Light enough for black figures; codes that are the same have the same colour, others mostly not.
_CODE_COLOURS = ("#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffff99", "#d9d9d9", "#80cdc1", "#f1b6da")
_CODE_COLOURS += ("#dfc27d", "#7fbfff", "#ffffff", "#c7e9b4")


def picture_of(file: Path, media: Mapping[str, str]) -> str:
    """HTML of one media item from the arrays that the evaluation kept (see pipelines/anytoany_shown.py)."""
    name = f"{media['kind']} {media['ref']}"
    arrays = dict(np.load(file)) if file.is_file() else {}
    if "frames" in arrays:
        return _sheet(arrays, name)
    if "ids" in arrays and len(arrays["ids"]) <= _MAX_CODES:
        return _codes(arrays, name)
    told = f"{len(arrays['ids'])} codes, too many to show" if "ids" in arrays else "nothing to look at"
    return f'<p class="small">{escape(name)}: {told}</p>'


def _sheet(arrays: Mapping[str, np.ndarray], name: str) -> str:
    frames_FHWC = enlarged(arrays["frames"], _HEIGHT_PX)
    told = f"{len(frames_FHWC)} frames from left to right, row by row"
    if "gaze" in arrays:
        frames_FHWC = with_gaze(frames_FHWC, arrays["gaze"], arrays["gaze_is_valid"], plots.TRUTH, filled=True)
        told += "; dot: gaze"
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
    return f"<figure>{picture}<figcaption>{told}</figcaption></figure>"


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
        parts.append(f'<text x="0" y="{middle:.0f}" fill="#5b6776">{escape(modality)}</text>')
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
