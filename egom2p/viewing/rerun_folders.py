"""Rerun recordings of what generate.py or run_evaluation.py wrote: `python -m egom2p.viewing.rerun_folders folder=F`.

For generated clips: what was given and what was made. For an evaluation: the shown clips, truth against every
checkpoint's best estimate, on one timeline.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.config import Count, run_main, strict
from egom2p.contracts import Intrinsics, Stream, quantity_of_stream
from egom2p.generation.generation_outputs import TRUTH_OF
from egom2p.generation.sample_ranges import HIGH, LOW
from egom2p.jobs.progress import say
from egom2p.metrics.result_table import Results
from egom2p.storage import inside, load_json
from egom2p.viewing import plots
from egom2p.viewing.report import checkpoint_colours
from egom2p.viewing.rerun_recording import Source, write_rerun
from egom2p.viewing.shown_clips import best_estimates

_TRUTH = "#FFFFFF"  # the viewer is dark


@strict
class RerunConfig:
    """Folder that generate.py or run_evaluation.py wrote; `recording.rrd` is written beside every clip.

    max_clips  at most so many clips
    """

    folder: str
    max_clips: Count = 24


def write_rerun_recordings(config: RerunConfig) -> list[Path]:
    """Write the recordings of a folder and return their paths."""
    folder = Path(config.folder)
    if (folder / "manifest.json").is_file():
        return [_generated(folder, clip) for clip in load_json(folder / "manifest.json")["clips"][: config.max_clips]]
    if (folder / "results.json").is_file():
        results = Results.read(folder)
        return [_evaluated(folder / "shown", key, results) for key in results.about["shown_clips"][: config.max_clips]]
    raise ValueError(f"{folder}: found neither manifest.json (generate.py) nor results.json (run_evaluation.py)")


def _generated(folder: Path, clip: Mapping[str, Any]) -> Path:
    folder = inside(folder, clip["key"])  # as the manifest, which may be somebody else's, calls it
    arrays = dict(np.load(folder / "clip.npz"))
    names = [name for name in arrays if f"{name}_times_s" in arrays]
    streams = {
        name: Stream(arrays[name], arrays[f"{name}_is_valid"], arrays[f"{name}_times_s"], _unit(arrays[name]))
        for name in names
    }
    made = {name: stream for name, stream in streams.items() if name in clip["made_streams"]}
    truth = {name.removeprefix(TRUTH_OF): stream for name, stream in streams.items() if name.startswith(TRUTH_OF)}
    ranges = {name + end for name in made for end in (LOW, HIGH)}
    given = {name: s for name, s in streams.items() if name not in {*made, *ranges} and not name.startswith(TRUTH_OF)}
    sources = {"given": Source(given, colour=plots.COLOURS[1])} if given else {}
    sources |= {"truth": Source(truth, context=given, colour=_TRUTH)} if truth else {}
    sources["generated"] = Source(made, context=given, colour=plots.COLOURS[0])
    camera = load_json(folder / "clip.json").get("intrinsics")
    return write_rerun(inside(folder, "recording.rrd"), sources, intrinsics=_intrinsics(camera), name=clip["key"])


def _evaluated(folder: Path, key: str, results: Results) -> Path:
    arrays = dict(np.load(inside(folder, f"{key}.npz")))
    truth = {
        stream: Stream(arrays[f"truth|{stream}"], arrays[f"valid|{stream}"], arrays[f"times_s|{stream}"], "")
        for stream in (name.partition("|")[2] for name in arrays if name.startswith("truth|"))
        if quantity_of_stream(stream).stream is not None
    }
    sources = {"truth": Source(truth, colour=_TRUTH)}
    colours = checkpoint_colours(results)
    for table in results.tables:
        stream = table.stream
        if stream not in truth:
            continue
        for label, (estimate, _, _) in best_estimates(arrays, table).items():
            found = {stream: Stream(estimate, np.ones(len(estimate), bool), truth[stream].times_s, "")}
            sources[_entity(f"{label} {table.task}")] = Source(found, context=truth, colour=colours[label])
    camera = json.loads(str(arrays["intrinsics"])) if "intrinsics" in arrays else None
    return write_rerun(inside(folder, f"{key}.rrd"), sources, intrinsics=_intrinsics(camera), name=key)


def _entity(words: str) -> str:
    """Words as one part of an entity path."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in words.replace("->", "_to_"))


def _unit(values: np.ndarray) -> str:
    return "text" if values.dtype.kind == "U" else ""


def _intrinsics(found: Mapping[str, Any] | None) -> Intrinsics | None:
    if found is None:
        return None
    return Intrinsics(**{**found, "distortion": tuple(found["distortion"])})


def main(config: RerunConfig) -> None:
    for path in write_rerun_recordings(config):
        say(f"rerun {path}")


if __name__ == "__main__":
    run_main(
        RerunConfig,
        main,
        default_config="default/egom2p/generation/rerun.yaml",
        description="Write rerun recordings of generated or evaluated clips.",
    )
