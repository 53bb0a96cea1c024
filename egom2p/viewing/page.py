"""Pieces of a self-contained HTML page: everything inline, nothing is fetched."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from egom2p.storage import atomic_file

_STYLE, _SCRIPT = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))


def document(title: str, *, lead: str, facts: Sequence[str], sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole page; sections are (anchor, heading, HTML body)."""
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{content}</section>' for anchor, heading, content in sections
    )
    chips = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><div><h1>{escape(title)}</h1><p>{escape(lead)}</p><ul class="facts">{chips}</ul></div></header>'
        f"<main><nav>{links}</nav>{body}<footer>One file; nothing is loaded from elsewhere.</footer></main>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def save_page(path: str | Path, html: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        Path(unfinished).write_text(html, encoding="utf-8")
    return path


def card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def figure(svg: str, caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{below}</figure>"


@dataclass(frozen=True)
class Tile:
    """What a tile of a player shows, whether that was `given`, is the `truth` or was `generated`, and its colour."""

    label: str
    origin: str = ""
    colour: str | None = None

    @property
    def caption(self) -> str:
        """HTML."""
        chip = f'<span class="kind">{escape(self.origin)}</span>' if self.origin else ""
        return swatch(self.colour) + escape(self.label) + chip


def swatch(colour: str | None) -> str:
    return f'<i class="swatch" style="background:{colour}"></i>' if colour else ""


def player(
    webm: bytes,
    rows: Sequence[tuple[str, Sequence[Tile]]],
    *,
    columns: int,
    size: tuple[int, int],
    start_s: float = 0.0,
    below: str = "",
) -> str:
    """All pictures of a clip as tiles of one size on one timeline.

    webm      one video that holds the tiles beside and below each other, as `plots.mosaic` lays them out
    rows      heading ("" for none) and tiles, at most `columns`
    size      width and height of a tile in the video, pixels
    start_s   what is shown before anything plays
    below     HTML of plots, whose clocks and paths follow the timeline
    """
    width, height = size
    parts = []
    for row, (heading, tiles) in enumerate(rows):
        parts.append(f"<h4>{escape(heading)}</h4>" if heading else "")
        for column, tile in enumerate(tiles):
            name = escape(f"{heading} {tile.label} {tile.origin}".strip())
            parts.append(
                f'<figure><canvas width="{width}" height="{height}" data-x="{column * width}" '
                f'data-y="{row * height}" role="img" aria-label="{name}">'
                f"</canvas><figcaption>{tile.caption}</figcaption></figure>"
            )
    order = "; ".join(", ".join(tile.label for tile in tiles) for _, tiles in rows)
    data = base64.b64encode(webm).decode("ascii")
    return (
        f'<div class="player" style="--columns: {columns}" data-start="{start_s:g}">'
        f'<video src="data:video/webm;base64,{data}" loop muted playsinline controls preload="auto"></video>'
        f'<p class="note order">Row by row: {escape(order)}.</p><div class="tiles">{"".join(parts)}</div>'
        '<div class="timeline"><button type="button" aria-label="play">▶</button>'
        '<input type="range" min="0" max="1000" step="1" value="0" aria-label="time"><output></output></div>'
        f"{below}</div>"
    )


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table of HTML cells; each row with its class."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f'<tr class="{name}">'
        + "".join(f'<td class="{"number" if column else "label"}">{cell}</td>' for column, cell in enumerate(cells))
        + "</tr>"
        for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
