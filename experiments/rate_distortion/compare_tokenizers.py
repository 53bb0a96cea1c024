"""Trains what is missing of a comparison of trajectory tokenizers and writes its page: tables and a plot.

python -m experiments.rate_distortion.compare_tokenizers --config experiments/rate_distortion/compare_tokenizers.yaml

The tables replace what stands between two marks of the page; the words around them stay.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from egom2p.config import run_main
from egom2p.jobs.progress import say
from egom2p.storage import atomic_file
from egom2p.viewing.plots import COLOURS, STYLE
from experiments.rate_distortion.rate_distortion import RateDistortionConfig, absent_sets, references, run_variants

MARKS = ("<!-- tables -->", "<!-- end of tables -->")
# Errors of each quantity: key, title, factor to the unit of the title, digits.
COLUMNS = {
    "camera": (
        ("ate_m", "ATE (cm)", 100, 1),
        ("rotation_deg", "rotation (deg)", 1, 1),
        ("rpe_m", "RPE-t (cm)", 100, 2),
        ("rpe_deg", "RPE-r (deg)", 1, 2),
    ),
    "gaze": (("gaze_error", "error (% of the image)", 100, 2), ("gaze_deg", "error (deg)", 1, 2)),
}
_MARKERS = {"vq": "o", "residual_vq": "s", "fsq": "D"}


def compare(config: RateDistortionConfig) -> None:
    """Run, print every result as it comes, write the page."""
    for name, root in absent_sets(config).items():
        say(f"{name} is not there, left out: {root}")
    results = references(config)
    for result in run_variants(config):
        results.append(result)
        say(f"{result['name']}, seed {result['seed']}: {result['bits']:.0f} bits")
    if config.page is not None:
        write_page(Path(config.page), results)
        say(f"page: {config.page}")


def write_page(page: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Put tables and plot into the page; a page that is not there begins with the marks."""
    plot = page.with_suffix(".svg")
    text = page.read_text() if page.is_file() else "\n".join(("# Rate and distortion", "", *MARKS, ""))
    before, found, rest = text.partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not (found and ended):
        raise ValueError(f"{page}: wanted the lines {MARKS[0]} and {MARKS[1]}, between which the tables go")
    tables = tables_of(results)
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(plot) as unfinished:
        unfinished.write_text(rate_plot(results))
    with atomic_file(page) as unfinished:
        picture = f"![error against bits per clip]({plot.name})"
        unfinished.write_text("\n".join((before + MARKS[0], "", picture, "", tables, "", MARKS[1] + after)))


def tables_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: for each quantity one table of the first held-out set, and one of the further sets."""
    parts = []
    for quantity, columns in COLUMNS.items():
        runs = _by_variant([result for result in results if result["settings"]["quantity"] == quantity])
        if not runs:
            continue
        sets = {name: about["num_clips"] for run in runs.values() for name, about in run[0]["sets"].items()}
        first, *further = sets
        shares = [share for share in next(iter(runs.values()))[0]["sets"][first]["errors"] if share != "0"]
        parts += [f"### {quantity}, {first}: {sets[first]} clips", "", _main_table(runs, first, columns, shares)]
        if further:
            parts += ["", f"### {quantity}, real tracks", "", _further_table(runs, sets, further, columns)]
        parts.append("")
    return "\n".join(parts).rstrip()


def _main_table(runs: Mapping[str, list], name: str, columns: Sequence, shares: Sequence[str]) -> str:
    key, title, factor, digits = columns[0]
    noisy = [f"{title.split(' (')[0]}, {float(share):.0%} wrong tokens" for share in shares]
    head = ["tokenizer", "tokens", "bits", "bits, position code", *(column[1] for column in columns), *noisy]
    rows = []
    for variant, seeds in runs.items():
        about = seeds[0]
        tokens = f"{about['num_tokens']} of {about['num_codes']}" if about["bits"] else "none"
        cells = [f"`{variant}`" if about["bits"] else variant, tokens, f"{about['bits']:.0f}"]
        cells.append(_cell(seeds, lambda run: run["position_bits"], 0))
        for column in columns:
            cells.append(_cell(seeds, _error(name, "0", column), column[3]))
        cells += [_cell(seeds, _error(name, share, (key, title, factor, digits)), digits) for share in shares]
        rows.append(cells)
    return _markdown(head, rows)


def _further_table(runs: Mapping[str, list], sets: Mapping[str, int], names: Sequence[str], columns: Sequence) -> str:
    columns = [column for column in columns if column[0] != "rotation_deg"]  # ATE and RPE say enough, the table is wide
    head = ["tokenizer", "bits"]
    head += [f"{name} ({sets[name]} clips): {title}" for name in names for _, title, _, _ in columns]
    rows = []
    for variant, seeds in runs.items():
        cells = [f"`{variant}`" if seeds[0]["bits"] else variant, f"{seeds[0]['bits']:.0f}"]
        for name in names:
            cells += [_cell(seeds, _error(name, "0", column), column[3]) for column in columns]
        rows.append(cells)
    return _markdown(head, rows)


def rate_plot(results: Sequence[Mapping[str, Any]]) -> str:
    """SVG: error of the first held-out set against bits, a panel for each of three errors."""
    panels = [("camera", column) for column in (COLUMNS["camera"][0], COLUMNS["camera"][2])]
    panels.append(("gaze", COLUMNS["gaze"][0]))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "rate"}):
        figure = Figure(figsize=(11.5, 4.6))
        for number, (quantity, column) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            shown = [result for result in results if result["settings"]["quantity"] == quantity and result["bits"]]
            _draw_panel(axes, _by_variant(shown), column)
            axes.set_title(f"{quantity}: {column[1]}", fontsize=10, loc="left")
            if number == 0:
                for label, marker, colour in _legend():
                    axes.plot([], [], marker, color=colour, ms=6, label=label)
                axes.legend(fontsize=7, loc="lower left")
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw_panel(axes: Any, runs: Mapping[str, list], column: Sequence) -> None:
    """A mark for every seed, a name for every variant; names of one rate stand apart from each other."""
    error = {name: _error(next(iter(seeds[0]["sets"])), "0", column) for name, seeds in runs.items()}
    means = {name: float(np.mean([error[name](run) for run in seeds])) for name, seeds in runs.items()}
    highest = max(means.values(), default=1.0)
    heights: dict[float, float] = {}
    for name in sorted(runs, key=lambda name: means[name]):
        seeds = runs[name]
        bits, style = seeds[0]["bits"], _position(seeds[0]["settings"])
        axes.plot([bits] * len(seeds), [error[name](run) for run in seeds], style["marker"], color=style["color"], ms=6)
        heights[bits] = max(means[name], heights.get(bits, -1.0) + 0.045 * highest)
        axes.text(bits + 9, heights[bits], name.split("_", 1)[1], fontsize=7, color="#47525f", va="center")
    axes.set_xlabel("bits per clip of 2 s")
    axes.set_ylim(0, 1.12 * highest)
    axes.set_xlim(90, max((seeds[0]["bits"] for seeds in runs.values()), default=240) + 130)


def _position(settings: Mapping[str, Any]) -> dict[str, str]:
    """Marker: which quantizer; colour: whether it codes poses (or points), or motions."""
    colour = COLOURS[0] if settings.get("camera_channels") == "motion" else COLOURS[1]
    return {"marker": _MARKERS[settings["quantizer"]["kind"]], "color": colour}


def _legend() -> list[tuple[str, str, str]]:
    kinds = {"vq": "one codebook", "residual_vq": "residual codebooks", "fsq": "finite scalars"}
    rows = [(label, _MARKERS[kind], COLOURS[1]) for kind, label in kinds.items()]
    return [*rows, ("motions instead of poses", "o", COLOURS[0])]


def _by_variant(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Variant -> its seeds, by bits."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda result: result["bits"]):
        runs.setdefault(result["name"], []).append(result)
    return runs


def _error(name: str, share: str, column: Sequence) -> Callable[[Mapping[str, Any]], float]:
    key, _, factor, _ = column
    return lambda run: run["sets"][name]["errors"][share].get(key, float("nan")) * factor


def _cell(seeds: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float], digits: int) -> str:
    """The mean over seeds, and all of them where there are several."""
    values = [value(run) for run in seeds]
    if not np.isfinite(values).all():
        return "n/a"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{each:.{digits}f}' for each in values)})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    run_main(
        RateDistortionConfig,
        compare,
        default_config="experiments/rate_distortion/compare_tokenizers.yaml",
        description="Compare trajectory tokenizers: bits per clip against error.",
    )
