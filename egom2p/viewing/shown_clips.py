"""Held-out clips: input, truth, and what each checkpoint made of it, as tiles on one timeline.

F frames, H, W pixels, S samples of a track, K samples of one estimate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from egom2p.data.clips.video_files import encode_webm
from egom2p.metrics.result_table import Results, ResultTable
from egom2p.viewing import page, plots
from egom2p.viewing.page import Tile
from egom2p.viewing.plots import coloured_depth, depth_range, enlarged, mosaic, samples_at_frames, with_gaze

_TILE_HEIGHT = 256
_CRF = 26

Arrays = Mapping[str, np.ndarray]
# Checkpoint -> (estimate, samples or None, estimator)
Estimates = dict[str, tuple[np.ndarray, np.ndarray | None, str]]


@dataclass(frozen=True)
class _Shown:
    """What a view shows: the clip, a task's estimates and their colours, metres of the common colour scale of depth."""

    arrays: Arrays
    table: ResultTable
    found: Estimates
    colours: Mapping[str, str]
    range_m: tuple[float, float]

    @property
    def lines(self) -> dict[str, tuple[np.ndarray, np.ndarray | None, str]]:
        """As plots take estimates: checkpoint -> (estimate, samples, colour)."""
        return {label: (values, samples, self.colours[label]) for label, (values, samples, _) in self.found.items()}


def clip_sections(folder: Path, results: Results, colours: Mapping[str, str]) -> str:
    """HTML of all shown clips, the further ones folded; empty without any."""
    clips = {path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}
    if not clips:
        return ""
    depths = [arrays["truth|depth"] for arrays in clips.values() if "truth|depth" in arrays]
    range_m = depth_range(depths) if depths else (1.0, 2.0)
    cards = [
        f"<h3>{escape(key)}</h3>" + page.card(_clip(clips[key], results, colours, range_m))
        for key in results.about["shown_clips"]
        if key in clips
    ]
    scale = page.figure(plots.depth_colour_bar(*range_m), "Depth, the same scale in every tile.") if depths else ""
    more = page.details(f"{len(cards) - 1} more clips", "".join(cards[1:])) if len(cards) > 1 else ""
    return scale + "".join(cards[:1]) + more


def task_title(table: ResultTable) -> str:
    """`rgb2depth` as a reader would write it."""
    return table.task.replace("->", " → ").replace("2", " → ", 0 if "->" in table.task else 1)


def _clip(arrays: Arrays, results: Results, colours: Mapping[str, str], range_m: tuple[float, float]) -> str:
    """Tiles of all tasks that have pictures, below them plots and texts."""
    at = "truth|rgb" if "truth|rgb" in arrays else "truth|depth"
    times_s = arrays[at.replace("truth", "times_s")] if at in arrays else np.zeros(0)
    rows: dict[str, list[tuple[Tile, np.ndarray]]] = {}
    below, words = [], []
    for table in results.tables:
        shown = _Shown(arrays, table, best_estimates(arrays, table), colours, range_m)
        if not shown.found:
            continue
        tiles = _TILES[table.quantity](shown, times_s) if len(times_s) and table.quantity in _TILES else []
        title = task_title(table)
        if tiles:
            rows[title] = tiles
        if drawn := _PLOTS.get(table.quantity, _track)(shown):
            below.append(f"<div><b>{escape(title)}</b>{drawn}</div>")
        words.append(f"{title}: {_estimator_words(shown.found)}")
    plots_below = f'<div class="pair">{"".join(below)}</div>' if below else ""
    plots_below += page.details("estimators", page.note(". ".join(words)))
    if not rows:
        return plots_below
    frames = mosaic([[pictures for _, pictures in row] for row in rows.values()], _TILE_HEIGHT)
    columns = max(map(len, rows.values()))
    return page.player(
        encode_webm(frames, _rate_hz(times_s), crf=_CRF),
        [(title, [tile for tile, _ in row]) for title, row in rows.items()],
        columns=columns,
        size=(frames.shape[2] // columns, _TILE_HEIGHT),
        below=plots_below,
    )


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


_Tiles = list[tuple[Tile, np.ndarray]]


def _pictures(stream: str, given: str) -> Callable[[_Shown, np.ndarray], _Tiles]:
    """Tiles of the input, the truth and every estimate, each frame the one nearest in time."""

    def tiles(shown: _Shown, times_s: np.ndarray) -> _Tiles:
        def painted(name: str, values: np.ndarray) -> np.ndarray:
            at = samples_at_frames(shown.arrays[f"times_s|{name}"], times_s)
            return coloured_depth(values[at], *shown.range_m) if name == "depth" else values[at]

        known = {name: shown.arrays[f"truth|{name}"] for name in (given, stream) if f"truth|{name}" in shown.arrays}
        found = [(Tile(given, "given"), painted(given, known[given]))] if given in known else []
        found.append((Tile(stream, "truth"), painted(stream, known[stream])))
        for label, (estimate, _, colour) in shown.lines.items():
            found.append((Tile(label, "generated", colour), painted(stream, estimate)))
        return found

    return tiles


def _gaze_tiles(shown: _Shown, times_s: np.ndarray) -> _Tiles:
    """The pictures with the true gaze, and for every estimate with both."""
    arrays = shown.arrays
    if "truth|rgb" not in arrays:
        return []
    at = samples_at_frames(arrays["times_s|gaze"], times_s)
    frames, is_valid = enlarged(arrays["truth|rgb"], _TILE_HEIGHT), np.ones(len(at), bool)
    truth = with_gaze(frames, arrays["truth|gaze"][at], arrays["valid|gaze"][at], plots.TRUTH, filled=True)
    found = [(Tile("rgb", "given"), frames), (Tile("black dot: gaze", "truth"), truth)]
    for label, (estimate, _, colour) in shown.lines.items():
        pictures = with_gaze(truth, estimate[at], is_valid, colour, filled=False)
        found.append((Tile(f"ring: {label}", "generated", colour), pictures))
    return found


def _gaze(shown: _Shown) -> str:
    times_s, is_valid = shown.arrays["times_s|gaze"], shown.arrays["valid|gaze"]
    svg = plots.gaze_plot(times_s, shown.arrays["truth|gaze"], is_valid, shown.lines)
    return page.figure(svg, "Band: 10 to 90 % of the samples.")


def _camera(shown: _Shown) -> str:
    svg = plots.trajectory_plot(shown.arrays["truth|camera"], shown.lines)
    return page.figure(svg, "Relative to the first pose; arrows show where the camera looks, thin lines are samples.")


def _track(shown: _Shown) -> str:
    stream = shown.table.stream
    truth, is_valid, times_s = (shown.arrays[f"{part}|{stream}"] for part in ("truth", "valid", "times_s"))
    return page.figure(
        plots.track_plot(times_s, truth, is_valid, shown.lines), f"{stream}. Band: 10 to 90 % of the samples."
    )


def _text(shown: _Shown) -> str:
    stream = shown.table.stream
    rows = [("", ["truth", escape(str(shown.arrays[f"truth|{stream}"][0]))])]
    rows += [("", [escape(label), escape(str(estimate[0]))]) for label, (estimate, _, _) in shown.found.items()]
    return page.table(["", stream], rows)


_TILES: Mapping[str, Callable[[_Shown, np.ndarray], _Tiles]] = {
    "rgb": _pictures("rgb", "depth"), "depth": _pictures("depth", "rgb"), "gaze": _gaze_tiles,
}  # fmt: skip
# A quantity without tiles or a plot of its own is shown as lines over time.
_PLOTS: Mapping[str, Callable[[_Shown], str]] = {
    "gaze": _gaze, "camera": _camera, "text": _text, "rgb": lambda _: "", "depth": lambda _: "",
}  # fmt: skip
