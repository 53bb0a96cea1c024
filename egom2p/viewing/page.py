"""Pieces of a self-contained HTML page: everything inline, nothing is fetched."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from egom2p.storage import atomic_file

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #56616f; --line: #dfe4ea; --paper: #ffffff; --back: #f4f6f8;
        --accent: #00639c; --good: #00664f; --bad: #a34300; --axis: #9aa5b1; --faint: #f0f2f5; --head: #16212e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf1; --soft: #a3afbc; --line: #313b47; --paper: #1a212a; --back: #11161c; --accent: #6bb8ee;
          --good: #4cc9a0; --bad: #f39a62; --axis: #6c7886; --faint: #222b35; --head: #0b0f14; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); overflow-wrap: break-word;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 0 20px 60px; }
header { background: var(--head); color: #fff; padding: 30px 0 22px; margin-bottom: 12px; }
header > div { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header h1 { margin: 0 0 8px; font-size: 2rem; letter-spacing: -0.02em; }
header p { margin: 0 0 14px; max-width: 75ch; color: #c9d3de; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; margin: 0; padding: 0; }
.facts li { background: #26364a; border-radius: 99px; padding: 3px 13px; font-size: 0.86rem; color: #e3eaf2; }
nav { position: sticky; top: 0; z-index: 2; background: var(--back); border-bottom: 1px solid var(--line);
      display: flex; gap: 18px; overflow-x: auto; padding: 10px 0; margin-bottom: 18px; font-size: 0.92rem; }
nav a { color: var(--accent); text-decoration: none; white-space: nowrap; }
h2 { font-size: 1.4rem; margin: 40px 0 6px; letter-spacing: -0.01em; }
h3 { font-size: 1.08rem; margin: 22px 0 6px; }
p.note, figcaption, .small { color: var(--soft); font-size: 0.9rem; }
p.note { margin-top: 0; max-width: 80ch; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 18px; margin: 14px 0; }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); }
.cards .card { margin: 0; }
.card > h3:first-child { margin-top: 0; }
.big { font-size: 1.6rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.2; }
.big .small { font-weight: 400; letter-spacing: 0; }
.one { margin: 12px 0; }
.verdict { font-weight: 650; }
.better { color: var(--good); } .worse { color: var(--bad); } .tie { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.89rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number { white-space: nowrap; }
td.label { min-width: 11em; }
td .interval { color: var(--soft); font-size: 0.84em; }
tr.model td:first-child { font-weight: 650; } tr.ceiling, tr.bound { background: var(--faint); }
.kind { display: inline-block; font-size: 0.75rem; color: var(--soft); border: 1px solid var(--line);
        border-radius: 5px; padding: 0 6px; margin-left: 6px; font-weight: 400; white-space: nowrap; }
figure { margin: 0; } figure svg, figure img { max-width: 100%; height: auto; display: block; }
.plots { display: grid; gap: 14px 22px; align-items: start;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
.plots svg { width: 100%; max-width: 420px; }
.pair { display: grid; gap: 16px; align-items: start;
        grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.forest > div { display: grid; grid-template-columns: minmax(9em, 2fr) 3fr minmax(11em, auto); gap: 2px 14px;
                align-items: center; font-size: 0.89rem; padding: 3px 0; font-variant-numeric: tabular-nums; }
.forest .track { position: relative; height: 18px; background: var(--faint); border-radius: 4px; }
.forest i { position: absolute; } .forest .base { top: 0; bottom: 0; border-left: 1px dashed var(--soft); }
.forest .bar { top: 6px; height: 6px; border-radius: 3px; opacity: 0.55; }
.forest .dot { top: 3px; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%; }
.forest .model .name { font-weight: 650; }
.player video { width: 100%; border-radius: 8px; background: #000; display: block; }
.player.live video { position: absolute; width: 1px; height: 1px; opacity: 0; pointer-events: none; }
.tiles { display: none; gap: 4px 12px; grid-template-columns: repeat(var(--columns), 1fr);
         max-width: calc(var(--columns) * 360px); }
.player.live .tiles { display: grid; } .player.live .order { display: none; }
.tiles h4 { grid-column: 1 / -1; margin: 8px 0 0; font-size: 0.95rem; }
.tiles canvas { width: 100%; height: auto; display: block; border-radius: 8px; background: #000; }
.tiles figcaption { font-size: 0.82rem; line-height: 1.35; padding: 2px 0 6px; }
.timeline { display: none; align-items: center; gap: 12px; margin: 6px 0 10px; padding: 6px 0;
            position: sticky; bottom: 0; background: var(--paper); }
.player.live .timeline { display: flex; }
.timeline button { min-width: 44px; height: 36px; border: 1px solid var(--line); border-radius: 8px; cursor: pointer;
                   background: var(--faint); color: var(--ink); font-size: 1rem; }
.timeline input { flex: 1; min-width: 0; accent-color: var(--accent); }
.timeline output { font-size: 0.86rem; color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.swatch { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; margin-right: 5px;
          vertical-align: -1px; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: var(--faint); padding: 12px; border-radius: 8px; font-size: 0.8rem; }
footer { color: var(--soft); font-size: 0.85rem; margin-top: 40px; }
@media (max-width: 700px) { header h1 { font-size: 1.5rem; }
  main, header > div { padding-left: 14px; padding-right: 14px; }
  .card { padding: 13px; }
  .tiles { grid-template-columns: repeat(min(2, var(--columns)), 1fr); }
  .forest > div { grid-template-columns: 1fr auto; } .forest .track { grid-column: 1 / -1; grid-row: 2; } }
"""

# One video holds all tiles of a clip; each canvas shows its part of the frame, so nothing can drift apart, and a page
# of fifty tiles needs six decoders. Marks in the plots (`plots.CLOCK`, `plots.PATH`) follow the same clock.
_SCRIPT = """
const numbers = element => element.querySelector('path').getAttribute('d').match(/-?[\\d.]+/g).map(Number);
const is_still = matchMedia('(prefers-reduced-motion: reduce)').matches;
document.querySelectorAll('.player').forEach(player => {
  const video = player.querySelector('video'), tiles = [...player.querySelectorAll('canvas')];
  const [button, range, time] = ['button', 'input', 'output'].map(name => player.querySelector(name));
  const clocks = [...player.querySelectorAll('[id*="-clock"]')].map(mark => {
    const [left, , right] = numbers(mark.parentNode.querySelector('[id*="-span"]'));
    return share => mark.setAttribute('transform', `translate(${share * (right - left)} 0)`);
  });
  const paths = [...player.querySelectorAll('[id*="-path"]')].map(path => {
    const xy = numbers(path), last = xy.length / 2 - 1, dot = path.querySelector('path').cloneNode();
    const colour = path.querySelector('path').style.stroke;
    dot.removeAttribute('clip-path');
    dot.setAttribute('style', `fill: ${colour}; stroke: var(--paper); stroke-width: 1.5`);
    dot.setAttribute('d', 'M -4 0 a 4 4 0 1 0 8 0 a 4 4 0 1 0 -8 0');
    path.parentNode.append(dot);
    return share => { const at = 2 * Math.round(share * last);
                      dot.setAttribute('transform', `translate(${xy[at]} ${xy[at + 1]})`); };
  });
  const draw = () => {
    tiles.forEach(tile => tile.getContext('2d').drawImage(video, +tile.dataset.x, +tile.dataset.y, tile.width,
                                                          tile.height, 0, 0, tile.width, tile.height));
    const share = Math.min(1, video.currentTime / video.duration || 0);
    range.value = 1000 * share;
    time.textContent = `${video.currentTime.toFixed(1)} of ${(video.duration || 0).toFixed(1)} s`;
    [...clocks, ...paths].forEach(move => move(share));
  };
  const step = () => { draw(); if (!video.paused) requestAnimationFrame(step); };
  const start = () => { player.classList.add('live'); video.controls = false; draw();
                        if (+player.dataset.start) video.currentTime = +player.dataset.start; };
  if (video.readyState >= 2) start(); else video.addEventListener('loadeddata', start);
  video.addEventListener('play', () => { button.textContent = '❚❚'; button.ariaLabel = 'pause'; step(); });
  video.addEventListener('pause', () => { button.textContent = '▶'; button.ariaLabel = 'play'; draw(); });
  video.addEventListener('seeked', draw);
  let is_stopped = is_still;
  button.addEventListener('click', () => { is_stopped = !video.paused; is_stopped ? video.pause() : video.play(); });
  range.addEventListener('input', () => { is_stopped = true; video.pause();
                                          video.currentTime = range.value / 1000 * video.duration; });
  new IntersectionObserver(([entry]) => {
    if (entry.isIntersecting && !is_stopped) video.play().catch(() => {}); else video.pause();
  }, {threshold: 0.1}).observe(player);
});
"""


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
