"""The page of generated clips: `python -m egom2p.viewing.generation_page folder=FOLDER`.

Reads manifest.json and every clip.npz; writes index.html beside them.
"""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from egom2p.config import Count, Positive, run_main, strict
from egom2p.data.clips.video_files import encode_webm
from egom2p.generation.generation_outputs import TRUTH_OF
from egom2p.generation.sample_ranges import HIGH, LOW
from egom2p.geometry import canonicalise
from egom2p.storage import inside, load_json
from egom2p.viewing import page, plots
from egom2p.viewing.page import Tile
from egom2p.viewing.plots import coloured_depth, depth_range, enlarged, samples_at_frames, with_gaze

_TILE_HEIGHT, _COLUMNS = 256, 4
_FRAMES_AT_ONCE = 32
_MOST_PIXELS = 1 << 22
_COLOURS = {"truth": plots.TRUTH, "given": plots.TRUTH, "generated": plots.COLOURS[0]}  # of dots and lines alike
_OVERLAPS = {  # of a joined result, as `stitching` reports them -> unit
    "overlap_m": "m", "overlap_deg": "deg", "overlap_log": "log", "overlap": "image sizes",
}  # fmt: skip


@strict
class GenerationPageConfig:
    """Folder that generate.py wrote; at most so many clips are shown, and the first seconds of each."""

    folder: str
    max_clips: Count = 24
    max_s: Positive = 120.0  # seconds


def write_generation_page(folder: str | Path, *, max_clips: int = 24, max_s: float = 120.0) -> Path:
    """Write index.html of the first clips, and of each its first `max_s` seconds, and return its path."""
    folder = Path(folder)
    manifest = load_json(folder / "manifest.json")
    shown = manifest["clips"][:max_clips]
    files = {clip["key"]: inside(folder, clip["key"], "clip.npz") for clip in shown}
    depths = [depth_m for file in files.values() if (depth_m := _depth_sample(file, max_s)) is not None]
    range_m = depth_range(depths) if depths else (1.0, 2.0)
    words = [f"Made by {manifest['checkpoint']}.", manifest["about_checkpoint"], *manifest["notes"]]
    body = "".join(page.card(page.note(text)) for text in words if text)
    body += page.figure(plots.depth_colour_bar(*range_m), "Depth, the same scale in every tile.") if depths else ""
    for clip in shown:
        nothing = "nothing else" if manifest["settings"]["inpainting"] else "nothing"
        words = f"given {', '.join(clip['given']) or nothing}; generated {', '.join(clip['made'])}"
        about = load_json(inside(folder, clip["key"], "clip.json"))
        words += _inpainted(manifest["settings"]) + _windows(about) + _ranges(about)
        arrays, duration_s = _first_seconds(files[clip["key"]], max_s)
        words += f". The first {max_s:g} of {duration_s:.0f} s are shown" if duration_s > max_s else ""
        body += f"<h3>{escape(clip['key'])}</h3>" + page.card(
            page.note(words) + _clip(arrays, range_m, clip["made_streams"])
        )
    settings = manifest["settings"]
    html = page.document(
        "Generated clips",
        lead=f"{', '.join(settings['targets'])} from {settings['input'] or 'recordings'}.",
        facts=[_counted(manifest["num_clips"], "clip"), f"{len(shown)} shown", f"seed {settings['seed']}"],
        sections=[("clips", "Clips", body)],
    )
    return page.save_page(folder / "index.html", html)


def _first_seconds(file: Path, max_s: float, *, only: str | None = None) -> tuple[dict[str, np.ndarray], float]:
    """Arrays of a clip's streams up to `max_s`, of one stream or of all, and how long the clip is; the rest of a long
    one is not read."""
    arrays = {}
    with zipfile.ZipFile(file) as archive, np.load(file) as whole:
        times_s = {name.removesuffix("_times_s"): whole[name] for name in whole.files if name.endswith("_times_s")}
        start_s = min((float(values[0]) for values in times_s.values()), default=0.0)
        end_s = max((float(values[-1]) for values in times_s.values()), default=0.0)
        for stream, own_s in times_s.items():
            if only in (None, stream):
                count = int(np.searchsorted(own_s, start_s + max_s - 1e-6))
                with archive.open(f"{stream}.npy") as member:
                    rows = _first_rows(member, count)
                arrays[stream] = whole[stream][:count] if rows is None else rows
                arrays[f"{stream}_is_valid"] = whole[f"{stream}_is_valid"][:count]
                arrays[f"{stream}_times_s"] = own_s[:count]
    return arrays, end_s - start_s


def _first_rows(member: IO[bytes], count: int) -> np.ndarray | None:
    """The first rows of an array in a file of numpy's, as long as it has them; None where its columns come first."""
    np.lib.format.read_magic(member)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if is_fortran or dtype.hasobject:
        return None
    rows = min(count, shape[0])
    content = member.read(rows * math.prod(shape[1:]) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(rows, *shape[1:]).copy()


def _depth_sample(file: Path, max_s: float) -> np.ndarray | None:
    """Depth that tells the colours: all that is shown, of a large clip frames evenly apart."""
    depth_m = _first_seconds(file, max_s, only="depth")[0].get("depth")
    return None if depth_m is None else depth_m[:: math.ceil(depth_m.size / _MOST_PIXELS)].copy()


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _inpainted(settings: Mapping[str, Any]) -> str:
    """Which part of a target was made, where the rest of it was given."""
    parts = []
    for word, part in settings["inpainting"].items():
        when = "" if part["seconds"] is None else " from {:g} to {:g} s".format(*part["seconds"])
        box = part["box"]
        where = "" if box is None else f" in u {box[0]:g} to {box[2]:g}, v {box[1]:g} to {box[3]:g} of the picture"
        parts.append(f"{word}{when}{where}")
    return f"; only {', '.join(parts)} is made, the rest of it is given" if parts else ""


def _ranges(note: Mapping[str, Any]) -> str:
    """What the ranges promise, and of what."""
    found = note.get("ranges", {})
    if not found:
        return ""
    count = next(iter(found.values()))["num_samples"]
    plain = [stream for stream, about in found.items() if about["stretch"] is None]
    moved = {stream: about for stream, about in found.items() if about["stretch"] is not None}
    words = []
    if moved:
        factors = ", ".join(f"{stream} {about['stretch']:.2f}" for stream, about in moved.items())
        about = next(iter(moved.values()))
        on = f", {about['measured_on']} only" if about["measured_on"] else ""
        words.append(
            f"moved away from their mean ({factors} times as far), which holds {about['share']:.0%} of the true values "
            f"of clips like those it was measured on{on}; of other clips nothing is promised"
        )
    if plain:
        words.append(f"of {', '.join(plain)} as they are, not calibrated (the card names no factor for as many)")
    return f". Ranges: {count} samples, {'; '.join(words)}"


def _windows(note: Mapping[str, Any]) -> str:
    """From how many windows a long result was joined, and how far neighbours were apart on what they share."""
    windows_s = note.get("windows_s", ())
    if len(windows_s) < 2:
        return ""
    parts = []
    for stream, found in note["overlaps"].items():
        means = {label: found["mean"].get(key) for key, label in _OVERLAPS.items()}
        parts += [f"{stream} {value:.3g} {unit}" for unit, value in means.items() if value is not None]
    apart = f"; neighbours differ on their overlap by {', '.join(parts)} (mean over overlaps)" if parts else ""
    starts = f"beginning at {windows_s[0]:g} to {windows_s[-1]:g} s"
    return f". Joined from {len(windows_s)} windows, {starts}{apart}"


def _clip(arrays: dict[str, Any], range_m: tuple[float, float], made: Sequence[str]) -> str:
    """Pictures as tiles, the truth beside what was made where the input held it, then tracks as plots."""
    at = "rgb" if "rgb" in arrays else "depth"
    times_s = arrays.get(f"{at}_times_s", np.zeros(0))
    content = ""
    if "camera" in arrays:
        poses, origin = canonicalise(arrays["camera"]), _origin("camera", made)
        svg = plots.trajectory_plot(poses, _true_line(arrays, "camera"), label=origin, colour=_COLOURS[origin])
        content += page.figure(svg, "Camera relative to its first pose.")
        if band := _band(arrays, "camera"):
            track_s, words = _from_start(arrays["camera_times_s"]), ("x (m)", "y (m)", "z (m)")
            drawn = {"label": f"{origin} position", "colour": _COLOURS[origin], "channels": words, "band": band}
            truth = {name: (line[:, :3, 3], None, own) for name, (line, _, own) in _true_line(arrays, "camera").items()}
            content += page.figure(
                plots.track_plot(track_s, poses[:, :3, 3], arrays["camera_is_valid"], truth, **drawn)
            )
    tracks = [name for name in made if name not in ("rgb", "depth", "gaze", "camera") and arrays[name].ndim == 2]
    for name in [*(["gaze"] if "gaze" in arrays else []), *tracks]:
        track_s, origin = _from_start(arrays[f"{name}_times_s"]), _origin(name, made)
        draw = plots.gaze_plot if name == "gaze" else plots.track_plot
        is_valid, truth = arrays[f"{name}_is_valid"], _true_line(arrays, name)
        drawn = {"label": f"{origin} {name}", "colour": _COLOURS[origin], "band": _band(arrays, name)}
        content += page.figure(draw(track_s, arrays[name], is_valid, truth, **drawn))
    below = f'<div class="pair">{content}</div>' if content else ""
    tiles = _tiles(arrays, range_m, made, times_s)
    if tiles:
        rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
        columns = len(rows[0])
        # Part by part: enlarged, the frames of two minutes are hundreds of megabytes.
        parts = (slice(first, first + _FRAMES_AT_ONCE) for first in range(0, len(times_s), _FRAMES_AT_ONCE))
        mosaics = (plots.mosaic([[draw(part) for _, draw in row] for row in rows], _TILE_HEIGHT) for part in parts)
        first = next(mosaics)
        rate_hz = (len(times_s) - 1) / float(times_s[-1] - times_s[0]) if len(times_s) > 1 else 8.0
        below = page.player(
            encode_webm(chain(first, (frame for part in mosaics for frame in part)), rate_hz),
            [("", [tile for tile, _ in row]) for row in rows],
            columns=columns,
            size=(first.shape[2] // columns, _TILE_HEIGHT),
            start_s=max(_num_given(arrays, name) or 0 for name in ("rgb", "depth")) / rate_hz,
            below=below,
        )
    texts = [name for name, values in arrays.items() if values.dtype.kind == "U" and f"{name}_times_s" in arrays]
    words = [
        f"<p><b>{_origin(name, made)} {escape(name.removeprefix(TRUTH_OF))}:</b> {escape(str(arrays[name][0]))}</p>"
        for name in texts
    ]
    return "".join(words) + below


def _band(arrays: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends of the range of a stream that was sampled several times."""
    return (arrays[name + LOW], arrays[name + HIGH]) if name + LOW in arrays else None


def _true_line(arrays: dict[str, Any], name: str) -> dict[str, tuple[np.ndarray, None, str]]:
    """What the input held of a track that was made, as plots take it; nothing where it held none."""
    values = arrays.get(TRUTH_OF + name)
    if values is None:
        return {}
    is_valid = arrays[f"{TRUTH_OF}{name}_is_valid"]
    values = canonicalise(values) if name == "camera" else np.where(is_valid[:, None], values, np.nan)
    return {"truth": (values, None, _COLOURS["truth"])}


def _num_given(arrays: dict[str, Any], name: str) -> int | None:
    """Frames before the first that was made, of a stream that was given in part (inpainting); None: of any other."""
    if TRUTH_OF + name not in arrays:
        return None
    pairs = zip(arrays[name], arrays[TRUTH_OF + name], strict=True)
    is_given = np.array([np.array_equal(made, truth, equal_nan=made.dtype.kind == "f") for made, truth in pairs])
    return int(is_given.argmin()) if is_given.any() else None


_Drawn = tuple[Tile, Callable[[slice], np.ndarray]]


def _tiles(
    arrays: dict[str, Any], range_m: tuple[float, float], made: Sequence[str], times_s: np.ndarray
) -> list[_Drawn]:
    """What is given, then each stream that was made, with the truth after it; every frame the one nearest in time."""

    def pictures(name: str) -> Callable[[slice], np.ndarray]:
        at, values = samples_at_frames(arrays[f"{name}_times_s"], times_s), arrays[name]
        if values.ndim == 3:
            return lambda part: coloured_depth(values[at[part]], *range_m)
        return lambda part: values[at[part]]

    def gaze_on_rgb(name: str, colour: str) -> Callable[[slice], np.ndarray]:
        at, rgb = samples_at_frames(arrays[f"{name}_times_s"], times_s), pictures("rgb")
        gaze, is_valid = arrays[name][at], arrays[f"{name}_is_valid"][at]
        return lambda part: with_gaze(
            enlarged(rgb(part), _TILE_HEIGHT), gaze[part], is_valid[part], colour, filled=True
        )

    found: list[_Drawn] = []
    for name in sorted((name for name in ("rgb", "depth") if name in arrays), key=lambda name: name in made):
        origin = "generated in part" if _num_given(arrays, name) is not None else _origin(name, made)
        found.append((Tile(name, origin), pictures(name)))
        if name + LOW in arrays:
            at = samples_at_frames(arrays[f"{name}_times_s"], times_s)
            ends = arrays[name + LOW][at], arrays[name + HIGH][at]
            widest = max(1.1, round(float(np.quantile(plots.range_factor(*ends), 0.99)), 1))
            width = partial(_width, *ends, widest)
            found.append((Tile(f"{name}: how wide its range is, bright {widest:g} times", origin), width))
        if TRUTH_OF + name in arrays:
            found.append((Tile(name, "truth"), pictures(TRUTH_OF + name)))
    if "rgb" in arrays and "gaze" in arrays:
        for name in ("gaze", TRUTH_OF + "gaze"):
            if name in arrays:
                origin = _origin(name, made)
                found.append((Tile("gaze on rgb", origin), gaze_on_rgb(name, _COLOURS[origin])))
    return found


def _width(low_m: np.ndarray, high_m: np.ndarray, widest: float, part: slice) -> np.ndarray:
    return plots.coloured_range(low_m[part], high_m[part], widest)


def _origin(stream: str, made: Sequence[str]) -> str:
    if stream.startswith(TRUTH_OF):
        return "truth"
    return "generated" if stream in made else "given"


def _from_start(times_s: np.ndarray) -> np.ndarray:
    return times_s - times_s[0]


if __name__ == "__main__":
    run_main(
        GenerationPageConfig,
        lambda config: write_generation_page(config.folder, max_clips=config.max_clips, max_s=config.max_s),
        default_config="default/egom2p/generation/page.yaml",
        description="Write the page of generated clips.",
    )
