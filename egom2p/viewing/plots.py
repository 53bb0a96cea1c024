"""Plots as inline SVG and HTML; pictures for videos: depth in colour, gaze dots, tiles of one size.

F frames, H, W pixels, S samples of a track, K samples of one estimate. Colours are Okabe and Ito's, which colour-blind
readers tell apart; ink and lines are those of the page (`page.py`), light or dark. A plot is at most `_WIDTH_IN`
wide, so that its words stay readable on a phone; several stand beside each other where there is room.
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from egom2p.metrics.result_table import ResultTable, Uncertainty

TRUTH = "#000000"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_KIND_COLOURS = {"baseline": "#8a94a0", "ceiling": "#009E73", "bound": "#CC79A7"}
DEPTH_MAP = "cividis"

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": "#47525f",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": "#47525f",
    "xtick.color": "#47525f",
    "ytick.color": "#47525f",
    "axes.grid": True,
    "grid.color": "#e8ecf0",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "path.simplify": False,  # every sample is a point of its path: the page's clock finds it there
} | {f"axes3d.{axis}axis.panecolor": (0.5, 0.5, 0.5, 0.06) for axis in "xyz"}
# What drawings are coloured with -> the page's own, which change with the reader's preference.
_PAGE_COLOURS = {"#000000": "ink", "#47525f": "soft", "#9aa5b1": "axis", "#e8ecf0": "line", "#8a94a0": "axis"}
_WIDTH_IN = 4.6
# Ids of what moves with a player's clock: a line across an axes, what it runs along, and a path that a dot runs along.
CLOCK, SPAN, PATH = "clock", "span", "path"
_INVALID = np.array([40, 40, 40], np.uint8)


def forest_plot(table: ResultTable, colours: Mapping[str, str]) -> str:
    """Means, intervals and medians over clips of all rows of a table, of its primary metric, as HTML."""
    metric = table.primary
    known = [(row, row.values[metric.key]) for row in table.rows if row.mean(metric) is not None]
    ends = [value for _, found in known for value in (found.mean, found.low, found.high) if value is not None]
    low, reach = min(ends, default=0), (max(ends, default=1) - min(ends, default=0)) or 1.0

    def at(value: float) -> float:  # per cent of the track; 3 on both sides are free
        return 3 + 94 * (value - low) / reach

    best = table.best_row("baseline", metric)
    base = "" if best is None else f'<i class="base" style="left:{at(best.mean(metric)):.2f}%"></i>'
    lines = []
    for row, found in known:
        colour = colours.get(row.checkpoint or "", "") if row.kind == "model" else ""
        colour = colour or _KIND_COLOURS.get(row.kind, COLOURS[0])
        shown, bar = f"{found.mean:.{metric.decimals}f}", ""
        if found.low is not None:
            width = at(found.high) - at(found.low)
            bar = f'<i class="bar" style="left:{at(found.low):.2f}%;width:{width:.2f}%;background:{colour}"></i>'
            shown += f' <span class="small">{found.low:.{metric.decimals}f} – {found.high:.{metric.decimals}f}</span>'
        if found.median is not None:
            shown += f'<span class="small">, median {found.median:.{metric.decimals}f}</span>'
        dot = f'<i class="dot" style="left:{at(found.mean):.2f}%;background:{colour}"></i>'
        name = f'<span class="name">{escape(row.title)}<span class="kind">{row.kind}</span></span>'
        lines.append(
            f'<div class="{row.kind}">{name}<span class="track">{base}{bar}{dot}</span><span>{shown}</span></div>'
        )
    dashed = "; dashed: best trivial baseline" if best is not None else ""
    return (
        f'<div class="forest">{"".join(lines)}</div>'
        f'<p class="small">{escape(metric.title)}: mean and its 95 % interval{dashed}</p>'
    )


def loss_curves(curves: Mapping[str, Mapping[str, Any]], x_label: str) -> str:
    """Losses: name -> {x, y, baseline}, and perhaps `train` -> (x, y) of every line of the log; a plot each, as HTML.

    The loss that ignoring the input can reach is dashed.
    """
    plots = []
    for name, curve in curves.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(3.6, 2.5))
            axes = figure.add_subplot()
            if "train" in curve:
                axes.plot(*curve["train"], color=COLOURS[5], lw=1.3)
            marker = "o" if len(curve["x"]) < 40 else ""
            axes.plot(curve["x"], curve["y"], color=COLOURS[1], lw=1.8, marker=marker, ms=3.5)
            if curve.get("baseline") is not None:
                axes.axhline(curve["baseline"], color=COLOURS[0], lw=1.3, ls=(0, (4, 3)))
            axes.set_title(name, fontsize=10, loc="left")
            axes.set_xlabel(x_label)
            axes.set_ylabel("nats per token")
            plots.append(_svg(figure))
    return _beside(plots)


def _beside(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(plots)}</div>'


def trajectory_plot(
    truth: np.ndarray,
    estimates: Mapping[str, tuple[np.ndarray, np.ndarray | None, str]],
    *,
    label: str = "truth",
    colour: str = TRUTH,
) -> str:
    """Top view and 3-D view of poses (S, 4, 4) relative to the first; estimates: name -> (poses, samples, colour).

    label, colour   of the first argument, where that is not the truth

    Camera axes: x right, y down, z forward; drawn with z forward (up in the top view) and height up.
    """
    everything = [truth] + [poses for poses, _, _ in estimates.values()]
    with matplotlib.rc_context(STYLE):
        above, aside = Figure(figsize=(3.6, 3.4)), Figure(figsize=(3.6, 3.4))
        top, space = above.add_subplot(), aside.add_subplot(projection="3d")
        for name, (poses, samples, own) in estimates.items():
            for sample in samples if samples is not None else ():
                top.plot(sample[:, 0, 3], sample[:, 2, 3], color=own, lw=0.7, alpha=0.3)
            _draw_path(top, space, poses, own, name)
        _draw_path(top, space, truth, colour, label)
        top.set_aspect("equal", adjustable="datalim")
        top.set_xlabel("right of the start (m)")
        top.set_ylabel("ahead of the start (m)")
        top.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0))
        _equal_box(space, np.concatenate([poses[:, :3, 3] for poses in everything]))
        space.set_xlabel("right (m)")
        space.set_ylabel("ahead (m)")
        space.set_zlabel("up (m)")
        space.locator_params(nbins=4)
        return _beside([_svg(above), _svg(aside)])


def _draw_path(top: Any, space: Any, poses: np.ndarray, colour: str, name: str) -> None:
    right_S, down_S, ahead_S = poses[:, 0, 3], poses[:, 1, 3], poses[:, 2, 3]
    top.plot(right_S, ahead_S, color=colour, lw=1.9, label=name, gid=f"{PATH}{len(top.lines)}")
    looks = slice(0, None, max(1, len(poses) // 6))
    top.quiver(
        right_S[looks],
        ahead_S[looks],
        poses[looks, 0, 2],
        poses[looks, 2, 2],
        color=colour,
        scale=16,
        width=0.006,
        alpha=0.75,
    )
    space.plot(right_S, ahead_S, -down_S, color=colour, lw=1.7)
    space.scatter([right_S[-1]], [ahead_S[-1]], [-down_S[-1]], color=colour, s=16)


def _equal_box(space: Any, points_N3: np.ndarray) -> None:
    points_N3 = points_N3[:, [0, 2, 1]] * [1, 1, -1]
    middle_3, reach = (points_N3.max(0) + points_N3.min(0)) / 2, max(float(np.ptp(points_N3, axis=0).max()) / 2, 0.05)
    space.set_xlim(middle_3[0] - reach, middle_3[0] + reach)
    space.set_ylim(middle_3[1] - reach, middle_3[1] + reach)
    space.set_zlim(middle_3[2] - reach, middle_3[2] + reach)


def gaze_plot(
    times_s: np.ndarray,
    truth: np.ndarray,
    is_valid: np.ndarray,
    estimates: Mapping[str, tuple[np.ndarray, np.ndarray | None, str]],
    **settings: Any,
) -> str:
    """u and v over time: truth (S, 2) with gaps where invalid, estimates name -> (S, 2), samples (K, S, 2), colour.

    settings   label and colour, as of `trajectory_plot`; band, as of `track_plot`
    """
    words = ("right (u)", "down (v)")
    return track_plot(times_s, truth, is_valid, estimates, channels=words, limits=(-0.05, 1.05), **settings)


def track_plot(
    times_s: np.ndarray,
    truth: np.ndarray,
    is_valid: np.ndarray,
    estimates: Mapping[str, tuple[np.ndarray, np.ndarray | None, str]],
    *,
    channels: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    band: tuple[np.ndarray, np.ndarray] | None = None,
    label: str = "truth",
    colour: str = TRUTH,
) -> str:
    """Every channel of a track over time, one below the other; arguments as of `gaze_plot`, with C channels.

    channels   their names; None: numbers. limits: of the values, the same for all channels; None: as they fall
    band       lower and upper end (S, C) of a range around the track
    """
    words = channels or [f"channel {number}" for number in range(truth.shape[1])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 0.6 + 1.35 * len(words)))
        for row, (word, truth_S) in enumerate(zip(words, truth.T, strict=True)):
            axes = figure.add_subplot(len(words), 1, row + 1)
            for name, (points, samples, own) in estimates.items():
                if samples is not None and len(samples) > 1:
                    low, high = np.quantile(samples[:, :, row], [0.1, 0.9], axis=0)
                    axes.fill_between(times_s, low, high, color=own, alpha=0.15, lw=0)
                axes.plot(times_s, points[:, row], color=own, lw=1.6, label=name)
            if band is not None:
                low, high = (np.where(is_valid, end[:, row], np.nan) for end in band)
                axes.fill_between(times_s, low, high, color=colour, alpha=0.2, lw=0, label="range")
            axes.plot(times_s, np.where(is_valid, truth_S, np.nan), color=colour, lw=1.9, label=label)
            if limits is not None:
                axes.set_ylim(*limits)
            axes.plot([times_s[0], times_s[-1]], [axes.get_ylim()[0]] * 2, alpha=0, lw=0.1, gid=f"{SPAN}{row}")
            axes.axvline(times_s[0], color="#9aa5b1", lw=1, gid=f"{CLOCK}{row}")
            axes.set_ylabel(word)
            if row == 0:
                axes.legend(fontsize=9, ncols=1 if len(estimates) > 1 else 2, loc="lower left", bbox_to_anchor=(0, 1.0))
            if row + 1 < len(words):
                axes.set_xticklabels([])
            else:
                axes.set_xlabel("seconds; gaps: not valid")
        figure.tight_layout(h_pad=0.6)
        return _svg(figure)


def calibration_plot(found: Sequence[Uncertainty], unit: str, colours: Mapping[str, str]) -> str:
    """Coverage of the samples' intervals, and error against spread per clip."""
    with matplotlib.rc_context(STYLE):
        left, right = Figure(figsize=(3.6, 3.2)), Figure(figsize=(3.6, 3.2))
        covered, clips = left.add_subplot(), right.add_subplot()
        covered.plot([0, 1], [0, 1], color="#8a94a0", lw=1, ls=(0, (4, 3)), label="calibrated")
        for number, one in enumerate(found):
            colour, marker = colours.get(one.checkpoint, COLOURS[0]), "osD^v"[number % 5]
            covered.plot(one.levels, one.coverage, marker=marker, ms=4.5, lw=1.6, color=colour, label=one.checkpoint)
            clips.plot(one.spread, one.error, marker, ms=3.4, alpha=0.55, mew=0, color=colour)
        covered.set(xlim=(0, 1), ylim=(0, 1), xlabel="share an interval should hold", ylabel="share it holds")
        covered.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0))
        tail = f" ({unit})" if unit else ""
        clips.set(xlabel=f"spread of the samples{tail}", ylabel=f"error of their mean{tail}")
        clips.set_xlim(left=0)
        clips.set_ylim(bottom=0)
        clips.axline((0, 0), slope=1, color="#8a94a0", lw=1, ls=(0, (4, 3)))
        return _beside([_svg(left), _svg(right)])


def depth_colour_bar(near_m: float, far_m: float) -> str:
    """The scale shared by all depth pictures of a page, in metres."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(_WIDTH_IN, 0.75))
        axes = figure.add_axes((0.03, 0.55, 0.94, 0.3))
        mapped = ScalarMappable(LogNorm(near_m, far_m), cmap=DEPTH_MAP)
        bar = figure.colorbar(mapped, cax=axes, orientation="horizontal")
        ticks = np.geomspace(near_m, far_m, 6)
        bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.set_xticklabels([f"{tick:.1f} m" for tick in ticks])
        bar.outline.set_visible(False)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """SVG markup without XML header, with ids that stay unique when many plots share a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(f": {colour}", f": var(--{name}, {colour})")
    mark = f"p{zlib.crc32(text.encode()):x}"  # the same in every run, so that a page made again is the same file
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{mark}-\1"', text)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{mark}-\1)", text)


def coloured_depth(depth_m: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 of depth (F, H, W): logarithmic scale, invalid pixels dark grey."""
    share = np.log(np.maximum(depth_m, 1e-6) / near_m) / np.log(far_m / near_m)
    colours = matplotlib.colormaps[DEPTH_MAP](np.clip(share, 0, 1))[..., :3]
    return np.where((depth_m > 0)[..., None], np.round(colours * 255), _INVALID).astype(np.uint8)


def depth_range(depths_m: Sequence[np.ndarray]) -> tuple[float, float]:
    """Nearest and farthest metres of a common colour scale: 1 % and 99 % of all valid depths."""
    valid = np.concatenate([depth_m[depth_m > 0] for depth_m in depths_m])
    near_m, far_m = np.quantile(valid, [0.01, 0.99]) if len(valid) else (1.0, 2.0)
    return float(near_m), float(max(far_m, near_m * 1.1))


def range_factor(low_m: np.ndarray, high_m: np.ndarray) -> np.ndarray:
    """How many times the low end of a range of depth its high end is; 1 where either is unknown."""
    is_known = (low_m > 0) & (high_m > 0)
    return np.where(is_known, high_m, 1.0) / np.where(is_known, low_m, 1.0)


def coloured_range(low_m: np.ndarray, high_m: np.ndarray, widest: float) -> np.ndarray:
    """How far the ends of a range of depth (F, H, W) lie apart, as colours (F, H, W, 3) uint8: from nothing (dark) to a
    factor of `widest` (bright), black where unknown."""
    is_known = (low_m > 0) & (high_m > 0)
    share = np.clip(np.log(range_factor(low_m, high_m)) / np.log(widest), 0, 1)
    return (matplotlib.colormaps["magma"](share)[..., :3] * 255 * is_known[..., None]).astype(np.uint8)


def enlarged(frames: np.ndarray, height: int) -> np.ndarray:
    """Frames (F, H, W, 3) resized to a height; the pixels of small clips stay visible as they are."""
    scale = height / frames.shape[1]
    size = (max(2, round(frames.shape[2] * scale)), height)
    kind = Image.Resampling.NEAREST if scale >= 2 and float(scale).is_integer() else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, kind)) for frame in frames])


def mosaic(rows: Sequence[Sequence[np.ndarray]], height: int) -> np.ndarray:
    """Frames of one video (F, rows x height, columns x width, 3) of tiles (F, H, W, 3), each in the middle of its own.

    height   of a tile, even; all are as wide as the widest picture, a row's missing tiles are black
    """
    tiles = [[enlarged(tile, height) for tile in row] for row in rows]
    width = max(tile.shape[2] for row in tiles for tile in row)
    width += width % 2  # colour is stored at half the resolution: an odd tile would bleed into the next
    whole = np.zeros((len(tiles[0][0]), len(rows) * height, max(map(len, rows)) * width, 3), np.uint8)
    for line, row in enumerate(tiles):
        for column, tile in enumerate(row):
            left = column * width + (width - tile.shape[2]) // 2
            whole[:, line * height : (line + 1) * height, left : left + tile.shape[2]] = tile
    return whole


def with_gaze(frames: np.ndarray, gaze: np.ndarray, is_valid: np.ndarray, colour: str, *, filled: bool) -> np.ndarray:
    """Frames with one gaze point per frame (F, 2) in [0, 1]: a filled dot, or a ring; nothing where invalid."""
    drawn = frames.copy()
    height, width = frames.shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    paint = np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)
    outer, inner = 0.034 * height, 0.022 * height
    for frame, (u, v), valid in zip(drawn, gaze, is_valid, strict=True):
        if not valid:
            continue
        distance = np.hypot(columns + 0.5 - u * width, rows + 0.5 - v * height)
        frame[distance <= outer * 1.35] = 255 if filled else 0
        frame[distance <= outer] = paint
        if not filled:
            is_hole = distance <= inner
            frame[is_hole] = 255
    return drawn


def samples_at_frames(times_s: np.ndarray, frame_times_s: np.ndarray) -> np.ndarray:
    """Index of the track sample nearest to each frame."""
    return np.abs(times_s[None] - frame_times_s[:, None]).argmin(axis=1)
