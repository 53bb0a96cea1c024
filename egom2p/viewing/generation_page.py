"""The page of generated clips: `python -m egom2p.viewing.generation_page folder=FOLDER`.

Reads manifest.json and every clip.npz; writes index.html beside them.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.config import run_main, strict
from egom2p.data.clips.video_files import encode_webm
from egom2p.geometry import canonicalise
from egom2p.storage import load_json
from egom2p.viewing import page, plots
from egom2p.viewing.plots import coloured_depth, depth_range, enlarged, samples_at_frames, side_by_side, with_gaze

_PANEL_HEIGHT = 224
_FRAMES_AT_ONCE = 32
_OVERLAPS = {  # of a joined result, as `stitching` reports them -> unit
    "overlap_m": "m", "overlap_deg": "deg", "overlap_log_aligned": "log", "overlap": "image sizes",
}  # fmt: skip


@strict
class GenerationPageConfig:
    """Folder that generate.py wrote; at most so many clips are shown."""

    folder: str
    max_clips: int = 24


def write_generation_page(folder: str | Path, *, max_clips: int = 24) -> Path:
    """Write index.html of the first clips and return its path."""
    folder = Path(folder)
    manifest = load_json(folder / "manifest.json")
    shown = manifest["clips"][:max_clips]
    clips = {clip["key"]: dict(np.load(folder / clip["key"] / "clip.npz")) for clip in shown}
    depths = [arrays["depth"] for arrays in clips.values() if "depth" in arrays]
    range_m = depth_range(depths) if depths else (1.0, 2.0)
    bar = page.figure(plots.depth_colour_bar(*range_m), "Depth, the same scale in every picture.") if depths else ""
    body = "".join(page.card(page.note(note)) for note in manifest["notes"])
    body += page.card(bar) if depths else ""
    for clip in shown:
        nothing = "nothing else" if manifest["settings"]["inpainting"] else "nothing"
        words = f"given {', '.join(clip['given']) or nothing}; generated {', '.join(clip['made'])}"
        words += _inpainted(manifest["settings"]) + _windows(load_json(folder / clip["key"] / "clip.json"))
        body += f"<h3>{escape(clip['key'])}</h3>" + page.card(
            page.note(words) + _clip(clips[clip["key"]], range_m, clip["made_streams"])
        )
    settings = manifest["settings"]
    html = page.document(
        "Generated clips",
        lead=f"{', '.join(settings['targets'])} from {settings['input'] or 'recordings'}, by {settings['checkpoint']}.",
        facts=[_counted(manifest["num_clips"], "clip"), f"{len(shown)} shown", f"seed {settings['seed']}"],
        sections=[("clips", "Clips", body)],
    )
    return page.save_page(folder / "index.html", html)


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
    """Pictures side by side with the gaze point, then tracks as plots."""
    panels: dict[str, Callable[[slice], np.ndarray]] = {}
    if "rgb" in arrays and "gaze" in arrays:
        panels[f"rgb with {_origin('gaze', made)} gaze"] = lambda rows: _rgb_with_gaze(arrays, rows)
    elif "rgb" in arrays:
        panels[f"{_origin('rgb', made)} rgb"] = lambda rows: enlarged(arrays["rgb"][rows], _PANEL_HEIGHT)
    if "depth" in arrays:
        panels[f"{_origin('depth', made)} depth"] = lambda rows: enlarged(
            coloured_depth(arrays["depth"][rows], *range_m), _PANEL_HEIGHT
        )
    content = ""
    if panels:
        times_s = arrays["rgb_times_s" if "rgb" in arrays else "depth_times_s"]
        rate_hz = (len(times_s) - 1) / float(times_s[-1] - times_s[0]) if len(times_s) > 1 else 8.0
        num_frames = min(len(arrays[name]) for name in ("rgb", "depth") if name in arrays)
        # Part by part: enlarged, the frames of two minutes are hundreds of megabytes.
        parts = [
            slice(first, min(first + _FRAMES_AT_ONCE, num_frames)) for first in range(0, num_frames, _FRAMES_AT_ONCE)
        ]
        frames = (frame for rows in parts for frame in side_by_side([panel(rows) for panel in panels.values()]))
        content += page.video(encode_webm(frames, rate_hz), list(panels))
    if "camera" in arrays:
        content += page.figure(
            plots.trajectory_plot(canonicalise(arrays["camera"]), {}, label=_origin("camera", made)),
            "Camera relative to its first pose.",
        )
    if "gaze" in arrays:
        times_s = _from_start(arrays["gaze_times_s"])
        content += page.figure(
            plots.gaze_plot(times_s, arrays["gaze"], arrays["gaze_is_valid"], {}, label=_origin("gaze", made))
        )
    for name in made:
        if name not in ("rgb", "depth", "gaze", "camera") and arrays[name].ndim == 2:
            times_s = _from_start(arrays[f"{name}_times_s"])
            svg = plots.track_plot(times_s, arrays[name], arrays[f"{name}_is_valid"], {}, label="generated")
            content += page.figure(svg, name)
    texts = [name for name, values in arrays.items() if values.dtype.kind == "U" and f"{name}_times_s" in arrays]
    words = [f"<p><b>{_origin(name, made)} {escape(name)}:</b> {escape(str(arrays[name][0]))}</p>" for name in texts]
    return "".join(words) + f'<div class="pair">{content}</div>'


def _rgb_with_gaze(arrays: dict[str, Any], rows: slice) -> np.ndarray:
    at = samples_at_frames(_from_start(arrays["gaze_times_s"]), _from_start(arrays["rgb_times_s"]))[rows]
    rgb = enlarged(arrays["rgb"][rows], _PANEL_HEIGHT)
    return with_gaze(rgb, arrays["gaze"][at], arrays["gaze_is_valid"][at], plots.COLOURS[0], filled=True)


def _origin(stream: str, made: Sequence[str]) -> str:
    return "generated" if stream in made else "given"


def _from_start(times_s: np.ndarray) -> np.ndarray:
    return times_s - times_s[0]


if __name__ == "__main__":
    run_main(
        GenerationPageConfig,
        lambda config: write_generation_page(config.folder, max_clips=config.max_clips),
        default_config="default/egom2p/generation/page.yaml",
        description="Write the page of generated clips.",
    )
