"""The drift table on short recordings with untrained artifacts: rows, files, shared windows, errors."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_artifacts import SIZE, make_tiny_world

from egom2p.data.recordings.synthetic import SyntheticReader
from egom2p.evaluation.drift_evaluation import DriftConfig, run_drift

_WORLD = {"num_rooms": 2, "first_seed": 5, "duration_s": 4.0, "camera": {"height": SIZE, "width": SIZE}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("drift"), num_train=2, num_val=1)


def _config(world, output: str, **changes) -> DriftConfig:
    values = {
        "checkpoint": str(world / "model"),
        "output": str(world / output),
        "recordings": {"rooms": {"source": {"kind": "synthetic", "world": _WORLD}, "segments_m": [0.05]}},
        "rows": {
            "stitch": {"overlap_s": 1.0},
            "stitch, sim3": {"overlap_s": 1.0, "stitching": {"camera": "sim3", "depth": "scale"}},
            "condition": {"join": "condition", "overlap_s": 1.0},
            "round trip": {"overlap_s": 1.0, "is_ceiling": True},
            "round trip, graph": {"overlap_s": 1.75, "is_ceiling": True, "stitching": {"camera": "graph"}},
        },
        "device": "cpu",
        "progress": False,
    }
    return DriftConfig(**(values | changes))


def test_every_row_has_every_number_of_every_recording(world, monkeypatch):
    from egom2p.models.generate import Sampler

    num_generated, generate = [], Sampler.generate
    monkeypatch.setattr(
        Sampler,
        "generate",
        lambda self, prompts, *rest, **more: (
            num_generated.append(len(prompts)) or generate(self, prompts, *rest, **more)
        ),
    )
    folder = run_drift(_config(world, "out"))
    # Three windows a recording: once for both stitched rows, once one by one, and never for the round trip.
    assert num_generated == [3, 1, 1, 1] * 2
    summary = json.loads((folder / "results.json").read_text())
    assert [task["task"] for task in summary["tasks"]] and {task["quantity"] for task in summary["tasks"]} == {
        "camera",
        "depth",
        "gaze",
    }
    rows = list(csv.DictReader((folder / "per_clip.csv").read_text().splitlines()))
    camera = [row for row in rows if row["task"] == "rooms, camera" and row["metric"] == "ate_m"]
    assert {(row["method"], row["kind"]) for row in camera} == {
        ("stationary", "baseline"),
        ("stitch", "model"),
        ("stitch, sim3", "model"),
        ("condition", "model"),
        ("round trip", "ceiling"),
        ("round trip, graph", "ceiling"),
    }
    assert len({row["clip"] for row in camera}) == 2 and all(np.isfinite(float(row["value"])) for row in camera)
    filled = {(row["task"], row["metric"]) for row in rows if row["value"]}
    assert filled == {(row["task"], row["metric"]) for row in rows}, "every column is measured, under the same key"
    text = (folder / "results.md").read_text()
    assert "2 recordings, 4.0 s" in text and "scale spread" in text and "overlap" in text


def test_every_table_counts_the_recordings_that_have_its_truth(world, monkeypatch, capsys):
    read = SyntheticReader.read
    lacking = {0: {"gaze"}, 2: {"gaze", "depth", "camera"}}

    def reduced(self, index):
        recording = read(self, index)
        streams = {name: stream for name, stream in recording.streams.items() if name not in lacking.get(index, ())}
        return replace(recording, streams=streams)

    monkeypatch.setattr(SyntheticReader, "read", reduced)
    rooms = {"rooms": {"source": {"kind": "synthetic", "world": _WORLD | {"num_rooms": 3}}, "segments_m": [0.05]}}
    folder = run_drift(_config(world, "uneven", recordings=rooms, rows={"stitch": {"overlap_s": 1.0}}))
    tasks = json.loads((folder / "results.json").read_text())["tasks"]
    assert {task["quantity"]: task["num_clips"] for task in tasks} == {"camera": 2, "depth": 2, "gaze": 1}
    assert "left out" in capsys.readouterr().err


def test_recordings_without_truth_are_refused(world):
    nothing = {"rooms": {"input": str(world / "absent")}}
    with pytest.raises(ValueError, match="found no video"):
        run_drift(_config(world, "x", recordings=nothing))
    with pytest.raises(ValueError, match="either from a source or from an input"):
        _config(world, "x", recordings={"rooms": {}})
