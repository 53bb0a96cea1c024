"""Pieces of a self-contained HTML page: everything inline, nothing is fetched."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from egom2p.storage import atomic_file

_STYLE = """
:root { --ink: #1c2430; --soft: #5b6776; --line: #dfe4ea; --paper: #ffffff; --back: #f4f6f8; --accent: #0072b2;
        --good: #00705a; --bad: #b34a00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 0 20px 60px; }
header { background: #16212e; color: #fff; padding: 40px 0 30px; margin-bottom: 28px; }
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
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); }
.cards .card { margin: 0; }
.card > h3:first-child { margin-top: 0; }
.big { font-size: 1.7rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.2; }
.verdict { font-weight: 650; }
.better { color: var(--good); } .worse { color: var(--bad); } .tie { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.89rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number { white-space: nowrap; }
td.label { min-width: 11em; }
td .interval { color: var(--soft); font-size: 0.84em; }
tr.model td:first-child { font-weight: 650; } tr.ceiling, tr.bound { color: #4a5563; background: #fafbfc; }
.kind { display: inline-block; font-size: 0.75rem; color: var(--soft); border: 1px solid var(--line);
        border-radius: 5px; padding: 0 6px; margin-left: 6px; font-weight: 400; white-space: nowrap; }
figure { margin: 0; } figure svg, figure img { max-width: 100%; height: auto; display: block; }
video { width: 100%; border-radius: 8px; background: #000; display: block; image-rendering: auto; }
.panels { display: grid; font-size: 0.8rem; color: var(--soft); text-align: center; margin-top: 5px; gap: 4px; }
.pair { display: grid; gap: 16px; align-items: start;
        grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));  }
.key i { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; margin: 0 5px 0 12px;
         vertical-align: -1px; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: #f0f2f5; padding: 12px; border-radius: 8px; font-size: 0.8rem; }
footer { color: var(--soft); font-size: 0.85rem; margin-top: 40px; }
@media (max-width: 600px) { header h1 { font-size: 1.5rem; }
  main, header > div { padding-left: 14px; padding-right: 14px; }
  .card { padding: 13px; } }
"""

# Plays what is visible, so that a page with dozens of videos stays light; without script the controls remain.
_SCRIPT = """
const seen = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting) { entry.target.play().catch(() => {}); } else { entry.target.pause(); }
}), {threshold: 0.2});
document.querySelectorAll('video').forEach(video => seen.observe(video));
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
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
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


_PANEL_WIDTH_PX = 480  # of small pictures enlarged further nothing new is seen


def video(webm: bytes, panels: Sequence[str]) -> str:
    """A looping video whose panels lie side by side, with a label under each."""
    data = base64.b64encode(webm).decode("ascii")
    labels = "".join(f"<span>{escape(label)}</span>" for label in panels)
    return (
        f'<figure style="max-width: {_PANEL_WIDTH_PX * len(panels)}px">'
        f'<video src="data:video/webm;base64,{data}" loop muted playsinline controls preload="auto" '
        f'aria-label="{escape(", ".join(panels))}"></video>'
        f'<div class="panels" style="grid-template-columns: repeat({len(panels)}, 1fr)">{labels}</div></figure>'
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
