"""Two comparisons of checkpoints on untrained artifacts: frame prediction, and linear probes of encoders."""

import csv
import json

import numpy as np
import pytest
import torch
from tiny_artifacts import make_tiny_world

from egom2p.config import from_plain
from egom2p.data.clips.clip_store import ClipStore
from egom2p.generation.checkpoints import load_checkpoint
from egom2p.metrics.video import frame_psnr_db
from experiments.frame_prediction.compare_frames import FramePredictionConfig, run_frame_prediction
from experiments.probe_comparison.compare_probes import ProbeComparisonConfig, run_probe_comparison


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("world"), num_train=12, num_val=4)


def frames_config(root, output, **further):
    values = {
        "output": str(output),
        "checkpoints": {"one": str(root / "model"), "same": str(root / "model")},
        "clips": {"root": str(root / "clips" / "val"), "dataset": "tiny"},
        "hidden_s": [1.0, 2.0],
        "plans": {"frames": {"scheme": "frames"}, "hot": {"scheme": "roar", "num_steps": 2, "temperature": 1.0}},
        "num_timed": 2,
        "device": "cpu",
        "progress": False,
    }
    return from_plain(FramePredictionConfig, values | further)


def test_frame_prediction(world, tmp_path):
    folder = run_frame_prediction(frames_config(world, tmp_path / "found"))
    likelihood, pictures = json.loads((folder / "results.json").read_text())["tasks"]
    rows = {(row["checkpoint"], row["label"]): row["values"] for row in pictures["rows"]}
    clips = ClipStore(world / "clips" / "val", "tiny", streams=["rgb"])
    # 16 frames at 8 Hz: the eighth is the last one known.
    held = [frame_psnr_db(np.repeat(clip.rgb[7:8], 8, 0), clip.rgb[8:]).mean() for clip in clips]
    assert rows[None, "last known frame held"]["psnr_db"]["mean"] == pytest.approx(np.mean(held))
    assert rows["one", "frames"]["seconds"]["num_clips"] == 2 and rows["one", "frames"]["seconds"]["mean"] > 0
    for label in ("frames", "hot"):  # equal seeds, equal pictures
        assert rows["one", label]["psnr_db"] == rows["same", label]["psnr_db"]
    assert rows["one", "frames"]["psnr_db"] != rows["one", "hot"]["psnr_db"]
    one = likelihood["rows"][0]["values"]
    # An untrained model is nearly even over the vocabulary; the first known frames are not hidden.
    spec = load_checkpoint(world / "model", device="cpu").spec("rgb")
    assert one["nats/1"]["mean"] == pytest.approx(np.log(spec.vocab_size), abs=0.5)
    steps = [one[f"nats/{step}"]["mean"] for step in (2, 3, 4)]
    assert one["nats/hidden"]["mean"] == pytest.approx(np.mean(steps)) != one["nats/at_once"]["mean"]


def test_likelihood_sees_only_what_lies_before(world, tmp_path):
    """Frame 1 given frame 0 is the model's own cross entropy there; computed here from its logits."""
    folder = run_frame_prediction(frames_config(world, tmp_path / "found", checkpoints={"one": str(world / "model")}))
    with (folder / "per_clip.csv").open() as file:
        found = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "nats/1"]
    checkpoint = load_checkpoint(world / "model", device="cpu")
    spec, clips = checkpoint.spec("rgb"), list(ClipStore(world / "clips" / "val", "tiny", streams=["rgb"]))
    size = spec.num_tokens // spec.grid.shape[0]
    for clip, value in zip(checkpoint.tokenize(clips, [spec.name]), found, strict=True):
        ids_L = clip.tokens[spec.name]
        shown = np.where(np.arange(len(ids_L)) < size, ids_L, -1).astype(np.int32)
        prompt = type(clip)(clip.key, {spec.name: shown}, clip.fingerprints)
        plan = frames_config(world, "").plans["frames"].plan(spec.name)
        logits = checkpoint.sampler.logits([prompt], plan, [np.arange(size, 2 * size)])[0]
        truth = torch.from_numpy(ids_L[size : 2 * size]).long()
        assert value == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), abs=1e-5)


@pytest.mark.parametrize("hidden_s", [(0.0, 2.0), (3.0, 4.0), (0.5, 1.0)])
def test_hidden_seconds_that_leave_nothing_to_go_on_from(world, tmp_path, hidden_s):
    with pytest.raises(ValueError, match="must leave some first frames and run to the end of the clip"):
        run_frame_prediction(frames_config(world, tmp_path, hidden_s=hidden_s))


def probe_config(root, output, encoders, **further):
    values = {
        "output": str(output),
        "encoders": encoders,
        "train": {"root": str(root / "clips" / "train"), "dataset": "tiny"},
        "test": {"root": str(root / "clips" / "val"), "dataset": "tiny"},
        "inputs": ["gaze"],
        "labels": {"region": {"kind": "cell", "stream": "gaze", "rows": 1, "columns": 2}},
        "penalties": [0.1],
        "device": "cpu",
        "progress": False,
    }
    return from_plain(ProbeComparisonConfig, values | further)


def test_the_same_encoder_twice_makes_no_difference(world, tmp_path):
    model = str(world / "model")
    folder = run_probe_comparison(probe_config(world, tmp_path / "found", {"a": [model, model], "b": [model, model]}))
    summary = json.loads((folder / "results.json").read_text())
    (task,) = summary["tasks"]
    rows = {(row["checkpoint"], row["label"]): row for row in task["rows"]}
    assert [*rows] == [(None, "commonest label"), (None, "tokens, how often each"),
                       *[(name, row) for name in "ab" for row in ("mean of runs", "run 0", "run 1")]]  # fmt: skip
    against = rows["b", "mean of runs"]["against_checkpoint"]
    assert against["checkpoint"] == "a" and against["metrics"]["accuracy"]["difference"]["mean"] == 0
    assert summary["spreads"]["a"] == summary["spreads"]["b"] and 0 < summary["spreads"]["a"][0]["std_share"] < 1


def test_encoders_need_as_many_runs_each(world, tmp_path):
    with pytest.raises(ValueError, match="the same number of runs each, at least one, got {'a': 1, 'b': 2}"):
        probe_config(world, tmp_path, {"a": ["x"], "b": ["y", "z"]})
    model = str(world / "model")
    leak = {"test": {"root": str(world / "clips" / "train"), "dataset": "tiny"}}
    with pytest.raises(ValueError, match="is in train and in test"):
        run_probe_comparison(probe_config(world, tmp_path, {"a": [model]}, **leak))
