"""Held-out clips side by side: input, truth, and what each checkpoint made of it.

F frames, H, W pixels, S samples of a track, K samples of one estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from egom2p.data.clips.video_files import encode_webm
from egom2p.metrics.result_table import Results, ResultTable
from egom2p.viewing import page, plots
from egom2p.viewing.plots import coloured_depth, depth_range, enlarged, samples_at_frames, side_by_side, with_gaze

_PANEL_HEIGHT = 192
_CRF = 24

Arrays = Mapping[str, np.ndarray]
# Checkpoint -> (estimate, samples or None, estimator)
Estimates = dict[str, tuple[np.ndarray, np.ndarray | None, str]]


@dataclass(frozen=True)
class _Shown:
    """Stream of the clips that a view shows, and the metres of the common colour scale of depth."""

    stream: str
    range_m: tuple[float, float]


def clip_sections(folder: Path, results: Results, colours: Mapping[str, str]) -> str:
    """HTML of all shown clips; empty without any."""
    clips = {path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}
    if not clips:
        return ""
    depths = [arrays["truth|depth"] for arrays in clips.values() if "truth|depth" in arrays]
    range_m = depth_range(depths) if depths else (1.0, 2.0)
    content = _legend(colours)
    if depths:
        content += page.card(page.figure(plots.depth_colour_bar(*range_m), "Depth, the same scale in every picture."))
    for key in results.about["shown_clips"]:
        if key in clips:
            content += f"<h3>{escape(key)}</h3>" + page.card(_clip(clips[key], results, colours, range_m))
    return content


def _legend(colours: Mapping[str, str]) -> str:
    keys = "".join(f'<i style="background:{colour}"></i>{escape(label)}' for label, colour in colours.items())
    return f'<p class="note key"><i style="background:#000"></i>truth{keys}</p>'


def _clip(arrays: Arrays, results: Results, colours: Mapping[str, str], range_m: tuple[float, float]) -> str:
    parts = []
    for table in results.tables:
        found = best_estimates(arrays, table)
        if not found:
            continue
        title = f"<div class='small'><b>{escape(table.task)}</b>, {escape(_estimator_words(found))}</div>"
        view = _VIEWS.get(table.quantity, _track)
        parts.append(f"<div>{title}{view(arrays, found, colours, _Shown(table.stream, range_m))}</div>")
    return f'<div class="pair">{"".join(parts)}</div>'


def best_estimates(arrays: Arrays, table: ResultTable) -> Estimates:
    """Per checkpoint the estimator with the best primary metric of the whole evaluation."""
    found: Estimates = {}
    for label in dict.fromkeys(row.checkpoint for row in table.rows if row.kind == "model"):
        best = table.best_row("model", table.primary, checkpoint=label)
        name = f"{table.task}|{label}|{best.label if best else ''}"
        if best is not None and f"estimate|{name}" in arrays:
            found[label] = (arrays[f"estimate|{name}"], _samples(arrays, name.rsplit("|", 1)[0]), best.label)
    return found


def _samples(arrays: Arrays, prefix: str) -> np.ndarray | None:
    """Samples of any estimator of this checkpoint and task: they show how sure it is."""
    names = [name for name in arrays if name.startswith(f"samples|{prefix}|")]
    return arrays[names[0]] if names else None


def _estimator_words(found: Estimates) -> str:
    return "; ".join(f"{label}: {estimator}" for label, (_, _, estimator) in found.items())


def _rate_hz(times_s: np.ndarray) -> float:
    return (len(times_s) - 1) / float(times_s[-1] - times_s[0]) if len(times_s) > 1 else 8.0


def _video(panels: Mapping[str, np.ndarray], rate_hz: float) -> str:
    frames = side_by_side([enlarged(panel, _PANEL_HEIGHT) for panel in panels.values()])
    return page.video(encode_webm(frames, rate_hz, crf=_CRF), list(panels))


def _depth(arrays: Arrays, found: Estimates, colours: Mapping[str, str], shown: _Shown) -> str:
    panels = {"rgb": arrays["truth|rgb"]} if "truth|rgb" in arrays else {}
    panels |= {label: coloured_depth(estimate, *shown.range_m) for label, (estimate, _, _) in found.items()}
    panels["truth"] = coloured_depth(arrays["truth|depth"], *shown.range_m)
    return _video(panels, _rate_hz(arrays["times_s|depth"]))


def _rgb(arrays: Arrays, found: Estimates, colours: Mapping[str, str], shown: _Shown) -> str:
    panels = {"depth": coloured_depth(arrays["truth|depth"], *shown.range_m)} if "truth|depth" in arrays else {}
    panels |= {label: estimate for label, (estimate, _, _) in found.items()}
    panels["truth"] = arrays["truth|rgb"]
    return _video(panels, _rate_hz(arrays["times_s|rgb"]))


def _gaze(arrays: Arrays, found: Estimates, colours: Mapping[str, str], shown: _Shown) -> str:
    times_s, is_valid = arrays["times_s|gaze"], arrays["valid|gaze"]
    content = ""
    if "truth|rgb" in arrays:
        at = samples_at_frames(times_s, arrays["times_s|rgb"])
        frames = enlarged(arrays["truth|rgb"], _PANEL_HEIGHT * 2)
        frames = with_gaze(frames, arrays["truth|gaze"][at], is_valid[at], plots.TRUTH, filled=True)
        for label, (estimate, _, _) in found.items():
            all_valid = np.ones(len(at), bool)
            frames = with_gaze(frames, estimate[at], all_valid, colours[label], filled=False)
        webm = encode_webm(frames, _rate_hz(arrays["times_s|rgb"]), crf=_CRF)
        content += page.video(webm, ["black dot: true gaze; rings: estimates"])
    lines = {label: (estimate, samples, colours[label]) for label, (estimate, samples, _) in found.items()}
    return content + page.figure(
        plots.gaze_plot(times_s, arrays["truth|gaze"], is_valid, lines), "Band: 10 to 90 % of the samples."
    )


def _camera(arrays: Arrays, found: Estimates, colours: Mapping[str, str], shown: _Shown) -> str:
    lines = {label: (estimate, samples, colours[label]) for label, (estimate, samples, _) in found.items()}
    svg = plots.trajectory_plot(arrays["truth|camera"], lines)
    return page.figure(svg, "Relative to the first pose; arrows show where the camera looks, thin lines are samples.")


def _track(arrays: Arrays, found: Estimates, colours: Mapping[str, str], shown: _Shown) -> str:
    lines = {label: (estimate, samples, colours[label]) for label, (estimate, samples, _) in found.items()}
    truth, is_valid, times_s = (arrays[f"{part}|{shown.stream}"] for part in ("truth", "valid", "times_s"))
    svg = plots.track_plot(times_s, truth, is_valid, lines)
    return page.figure(svg, f"{shown.stream}. Band: 10 to 90 % of the samples.")


def _text(arrays: Arrays, found: Estimates, colours: Mapping[str, str], shown: _Shown) -> str:
    rows = [("", ["truth", escape(str(arrays[f"truth|{shown.stream}"][0]))])]
    rows += [("", [escape(label), escape(str(estimate[0]))]) for label, (estimate, _, _) in found.items()]
    return page.table(["", shown.stream], rows)


# A quantity without a view of its own is shown as lines over time.
_VIEWS = {"rgb": _rgb, "depth": _depth, "gaze": _gaze, "camera": _camera, "text": _text}
