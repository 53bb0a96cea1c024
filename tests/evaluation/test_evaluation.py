"""The evaluation of untrained artifacts: every row is there, scored on the same clips, and says how."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
from tiny_artifacts import invented_clip, make_tiny_world

from egom2p.config import deciding
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import write_clips
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EvaluationConfig, split_task
from egom2p.evaluation.quantities import SCORING
from egom2p.evaluation.scoring import ProtocolConfig
from egom2p.evaluation.task_evaluation import TaskEvaluator, TrainingStatistics, training_statistics
from egom2p.geometry import canonicalise
from egom2p.metrics.measurements import Measured, Method, conclude
from egom2p.metrics.result_table import Metric, Results


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def evaluation(world):
    return run_evaluation(
        EvaluationConfig(
            output=str(world / "evaluation"),
            checkpoints={"tiny": str(world / "model")},
            clips=ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny"),
            train_clips=ClipsConfig(root=str(world / "clips" / "train"), dataset="tiny"),
            train_tokens=str(world / "tokens/train/[rgb,depth,gaze,cam]/tiny/shard-{000000..000000}.tar"),
            num_shown_clips=2,
            batch_size=3,
            device="cpu",
            progress=False,
        )
    )


def test_every_task_has_baselines_ceiling_and_model_rows(evaluation):
    by_task = {task["task"]: task for task in evaluation.results.to_plain()["tasks"]}
    assert list(by_task) == ["rgb2depth", "rgb2camera", "rgb2gaze", "depth2rgb"]
    for task in by_task.values():
        kinds = [row["kind"] for row in task["rows"]]
        assert kinds.count("ceiling") == 1 and kinds.count("model") == 2 and "baseline" in kinds
        assert not any(row["failures"] for row in task["rows"])
        for row in task["rows"]:
            for metric in task["metrics"]:
                value = row["values"][metric["key"]]
                assert value["num_clips"] == task["num_clips"] == 4
                assert value["low"] <= value["mean"] <= value["high"]
        primary = next(metric["key"] for metric in task["metrics"] if metric["is_primary"])
        verdicts = [row["against_baseline"][primary]["verdict"] for row in task["rows"] if row["kind"] == "model"]
        assert set(verdicts) <= {"better", "worse", "tie"}
        assert task["token_losses"][0]["unigram_nats"] > 0
    assert [row["label"] for row in by_task["rgb2camera"]["rows"][:3]] == [
        "stationary",
        "mean velocity",
        "mean trajectory",
    ]
    bound = next(row for row in by_task["rgb2gaze"]["rows"] if row["kind"] == "bound")
    assert bound["values"]["distance"]["mean"] == pytest.approx(0.02 * 2**0.5, abs=1e-4)


def test_an_interrupted_evaluation_goes_on_with_the_missing_tasks(world, evaluation, tmp_path, monkeypatch):
    config = EvaluationConfig(
        output=str(tmp_path / "evaluation"),
        checkpoints={"tiny": str(world / "model")},
        clips=ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny"),
        tasks=("rgb2gaze", "rgb2camera"),
        device="cpu",
        progress=False,
    )
    evaluated: list[str] = []
    real = TaskEvaluator.evaluate

    def evaluate(self, task, *, is_interrupted=False):
        if is_interrupted and task == "rgb2camera":
            raise KeyboardInterrupt
        evaluated.append(task)
        return real(self, task)

    def interrupt():
        monkeypatch.setattr(TaskEvaluator, "evaluate", partialmethod(evaluate, is_interrupted=True))
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(config)
        monkeypatch.setattr(TaskEvaluator, "evaluate", evaluate)
        assert evaluated == ["rgb2gaze"]
        evaluated.clear()

    interrupt()
    again = run_evaluation(config)
    assert evaluated == ["rgb2camera"]
    assert not (tmp_path / "evaluation" / "finished").exists(), "what is complete is measured again when asked again"
    at_once = run_evaluation(replace(config, output=str(tmp_path / "at_once")))
    assert json.dumps(again.results.to_plain()["tasks"]) == json.dumps(at_once.results.to_plain()["tasks"])
    evaluated.clear()
    interrupt()
    run_evaluation(replace(config, seed=1))
    assert evaluated == ["rgb2gaze", "rgb2camera"], "other settings, other numbers"
    shards = shutil.copytree(world / "tokens" / "train", tmp_path / "tokens")
    config = replace(config, train_tokens=str(shards / "[rgb,depth,gaze,cam]/tiny/shard-{000000..000000}.tar"))
    evaluated.clear()
    interrupt()
    (shards / "gaze" / "tiny" / "shard-000000.tar").touch()
    run_evaluation(config)
    assert evaluated == ["rgb2gaze", "rgb2camera"], "tokens were written again, so their unigram baseline may differ"


@pytest.mark.parametrize("alignment", ["rotation", "first_pose", "se3", "sim3"])
def test_where_the_world_of_a_clip_begins_does_not_matter(alignment):
    clip, protocol = invented_clip(3), ProtocolConfig(camera_alignments=(alignment,))
    moved_44 = np.eye(4)
    moved_44[:3, 3] = (4.0, -2.0, 7.0)
    estimate = invented_clip(4).world_from_cam
    poses = clip.streams["camera"]
    moved = replace(clip, streams={"camera": replace(poses, values=moved_44 @ poses.values)})
    found, wanted = (SCORING["camera"].score(estimate, truth, "camera", protocol) for truth in (moved, clip))
    assert found == pytest.approx(wanted, abs=1e-9)


def test_several_samples_are_held_against_the_truth(evaluation):
    for task in evaluation.results.to_plain()["tasks"]:
        (found,) = task["uncertainty"]
        assert found["num_samples"] == 8 and len(found["levels"]) == len(found["coverage"]) == 4
        assert len(found["spread"]) == len(found["error"]) == task["num_clips"]
        assert all(0 <= share <= 1 for share in found["coverage"]) and sorted(found["coverage"]) == list(
            found["coverage"]
        )


def test_files_hold_the_same_numbers(evaluation):
    folder = evaluation.folder
    assert Results.read(folder) == Results.from_plain(json.loads(json.dumps(evaluation.results.to_plain())))
    assert Results.read(folder).tables == evaluation.results.tables
    stored = json.loads((folder / "results.json").read_text())
    assert stored["tasks"][0]["rows"][0]["values"] == evaluation.results.to_plain()["tasks"][0]["rows"][0]["values"]
    with open(folder / "per_clip.csv", newline="") as file:
        lines = [
            line
            for line in csv.DictReader(file)
            if line["method"] == "mean gaze" and line["metric"] == "distance" and line["task"] == "rgb2gaze"
        ]
    mean = np.mean([float(line["value"]) for line in lines])
    row = next(row for row in stored["tasks"][2]["rows"] if row["label"] == "mean gaze")
    assert row["values"]["distance"]["mean"] == pytest.approx(mean)
    page = (folder / "results.md").read_text()
    assert "per-pixel geometric mean depth" in page and "95 %" in page and "unigram baseline per position" in page
    with np.load(folder / "shown" / "clip_100.npz") as arrays:
        assert {"truth|rgb", "truth|camera", "valid|gaze"} <= set(arrays.files)
        estimates = [name for name in arrays.files if name.startswith("estimate|")]
        assert len(estimates) == 8
    assert len(list((folder / "shown").glob("*.npz"))) == 2


def test_the_same_seed_gives_the_same_numbers_in_other_batches(world, evaluation):
    config = EvaluationConfig(
        output=str(world / "again"),
        checkpoints={"tiny": str(world / "model")},
        clips=ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny"),
        tasks=("rgb2gaze",),
        batch_size=1,
        device="cpu",
        progress=False,
    )
    again = run_evaluation(config).results.to_plain()["tasks"][0]["rows"]
    # Without training clips there are the baselines that need none.
    wanted = [row for row in evaluation.results.to_plain()["tasks"][2]["rows"] if row["label"] != "mean gaze"]
    for found, row in zip(again, wanted, strict=True):
        assert found["label"] == row["label"]
        assert found["values"]["distance"]["mean"] == pytest.approx(row["values"]["distance"]["mean"], abs=1e-6)


def test_the_truth_scores_perfectly():
    clip, protocol = invented_clip(3), ProtocolConfig()
    truths = {"depth": clip.depth_m, "camera": clip.world_from_cam, "gaze": clip.gaze, "rgb": clip.rgb}
    for quantity, truth in truths.items():
        values = SCORING[quantity].score(truth, clip, quantity, protocol)
        assert set(values) == {metric.key for metric in SCORING[quantity].metrics(protocol)}
        primary = next(metric for metric in SCORING[quantity].metrics(protocol) if metric.is_primary)
        assert values[primary.key] == pytest.approx(100 if quantity == "rgb" else 0, abs=1e-6)


def test_baselines_are_what_they_are_called():
    clips = [invented_clip(number) for number in range(4)]
    statistics = training_statistics(clips)
    depth = np.stack([clip.depth_m for clip in clips]).reshape(-1, 16, 16)
    estimates = statistics.estimates(clips[0], "depth")
    np.testing.assert_allclose(estimates["per-pixel mean depth"][0], depth.mean(0), rtol=1e-6)
    np.testing.assert_allclose(estimates["per-pixel geometric mean depth"][5], np.exp(np.log(depth).mean(0)), rtol=1e-6)
    gaze = np.concatenate([clip.gaze[clip.gaze_is_valid] for clip in clips])
    np.testing.assert_allclose(statistics.estimates(clips[0], "gaze")["mean gaze"][7], gaze.mean(0), rtol=1e-6)
    moving = statistics.estimates(clips[0], "camera")["mean velocity"]
    ends_m = [canonicalise(clip.world_from_cam)[-1, :3, 3] for clip in clips]
    np.testing.assert_allclose(np.diff(moving[:, :3, 3], axis=0), [np.mean(ends_m, 0) / (len(moving) - 1)] * 59)
    without = AlignedClip("x", {"rgb": clips[0].streams["rgb"]}, None, clips[0].provenance)
    without = training_statistics([without])
    assert list(without.estimates(clips[0], "gaze")) == ["image centre"]


def test_some_baselines_need_no_training_clips():
    clip = invented_clip(0)
    found = {stream: TrainingStatistics().estimates(clip, stream) for stream in ("depth", "gaze", "camera", "rgb")}
    assert {stream: list(rows) for stream, rows in found.items()} == {
        "depth": ["constant depth, 2 m"], "gaze": ["image centre"], "camera": ["stationary"], "rgb": [],
    }  # fmt: skip
    assert (found["depth"]["constant depth, 2 m"] == 2).all()
    assert found["depth"]["constant depth, 2 m"].shape == clip.depth_m.shape
    np.testing.assert_array_equal(found["gaze"]["image centre"], np.full((60, 2), 0.5))
    np.testing.assert_array_equal(found["camera"]["stationary"], np.tile(np.eye(4), (60, 1, 1)))


def test_the_mean_of_poses_is_a_pose():
    poses = np.stack([invented_clip(number).world_from_cam for number in range(3)])
    mean = SCORING["camera"].mean_of_samples(poses)
    assert np.allclose(mean[:, :3, :3] @ mean[:, :3, :3].transpose(0, 2, 1), np.eye(3))


def test_a_verdict_needs_an_interval_without_zero():
    metric, keys = Metric("error", "error", "m", "as told", is_primary=True), ["a", "b", "c", "d"]
    base = Method("base", "baseline", {"error": [1.0, 2.0, 3.0, 4.0]})
    better = Method("better", "model", {"error": [0.5, 1.4, 2.5, 3.5]}, "net")
    noisy = Method("noisy", "model", {"error": [0.0, 3.0, 1.0, 6.0]}, "net")
    measured = Measured("a2b", "generic", keys, keys, [metric], [base, better, noisy])
    rows = {row.label: row for row in conclude(measured, seed=0).rows}
    assert rows["better"].against_baseline["error"].verdict == "better"
    assert rows["noisy"].against_baseline["error"].verdict == "tie"


def test_clips_of_one_recording_have_an_interval_only_where_it_is_asked_for():
    metric, keys = Metric("error", "error", "m", "as told", is_primary=True), ["a", "b", "c", "d"]
    methods = [
        Method("base", "baseline", {"error": [1.0, 2.0, 3.0, 4.0]}),
        Method("better", "model", {"error": [0.5, 1.4, 2.5, 3.5]}, "net"),
    ]
    together, alone = (
        conclude(Measured("a2b", "generic", keys, ["kitchen"] * 4, [metric], methods, drawn=drawn), seed=0)
        for drawn in ("recordings", "clips")
    )
    assert together.rows[1].values["error"].low is None
    assert together.rows[1].against_baseline["error"].verdict == "tie"
    apart = conclude(Measured("a2b", "generic", keys, keys, [metric], methods), seed=0)
    assert alone.rows == apart.rows and alone.num_recordings == 1
    assert "of no other" in Results("", (alone,), {}).markdown()
    assert "drawn together" in Results("", (together,), {}).markdown()


def test_further_checkpoints_are_compared_with_the_first_clip_by_clip():
    metric, keys = Metric("error", "error", "m", "as told", is_primary=True), ["a", "b", "c", "d"]
    before = Method("one step", "model", {"error": [1.0, 2.0, 3.0, 4.0]}, "before")
    after = Method("one step", "model", {"error": [0.5, 1.4, 2.5, 3.5]}, "after")
    table = conclude(Measured("a2b", "generic", keys, keys, [metric], [before, after]), seed=0)
    assert table.rows[0].against_checkpoint is None
    compared = table.rows[1].against_checkpoint
    assert compared.checkpoint == "before" and compared.metrics["error"].verdict == "better"
    assert compared.metrics["error"].difference.mean == pytest.approx(-0.525)
    (sentence,) = table.checkpoints_compared()
    assert sentence.startswith("after: one step minus before: error (m) ↓ -0.525 [") and sentence.endswith("better")


def test_what_changes_no_number_of_a_task_does_not_make_it_stale():
    clips = ClipsConfig(root="a", dataset="b")
    config = EvaluationConfig(output="x", checkpoints={"m": "n"}, clips=clips)
    beside = {"output": "y", "tasks": ("rgb2depth",), "batch_size": 1, "device": "cpu", "title": "t", "page": "p"}
    assert deciding(replace(config, **beside)) == deciding(config)
    for change in ({"seed": 1}, {"num_clips": 3}, {"num_shown_clips": 1}, {"protocol": {"depth_alignments": ["none"]}}):
        assert deciding(EvaluationConfig(**vars(config) | change)) != deciding(config)


def test_tasks_are_read_by_their_words():
    assert split_task("rgb2depth") == (("rgb",), "depth")
    assert split_task("rgb+gaze->tok_2") == (("rgb", "gaze"), "tok_2")
    with pytest.raises(ValueError, match="rgb2depth"):
        split_task("rgb")


def test_what_cannot_be_evaluated_is_an_error_before_any_work(world):
    def run(**changes):
        values = {
            "output": str(world / "never"),
            "checkpoints": {"tiny": str(world / "model")},
            "clips": ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny"),
            "device": "cpu",
            "progress": False,
        }
        run_evaluation(EvaluationConfig(**(values | changes)))

    with pytest.raises(ValueError, match=r"4 of 4 clips .* are also in the training split .* the first is clip_100"):
        run(train_clips=ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny"))
    with pytest.raises(ValueError, match="no modality 'sound'"):
        run(tasks=("rgb2depth", "sound2rgb"))
    with pytest.raises(ValueError, match="task rgb[+]tok_depth2depth: depth is input and target"):
        run(tasks=("rgb+tok_depth2depth",))
    with pytest.raises(ValueError, match="no file matches"):
        run(train_tokens=str(world / "tokens/none/[rgb]/tiny/shard-*.tar"))
    blind = [replace(clip, streams={"gaze": clip.streams["gaze"]}) for clip in map(invented_clip, range(2))]
    write_clips(world / "clips" / "blind", "tiny", blind)
    with pytest.raises(ValueError, match=r"held-out clips have \['gaze'\], task rgb2gaze needs \['rgb'\]"):
        run(clips=ClipsConfig(root=str(world / "clips" / "blind"), dataset="tiny"), tasks=("rgb2gaze",))
    assert not (world / "never").exists()


def test_the_baseline_of_another_tokenizer_is_not_shown(world):
    card = world / "tokens" / "train" / "gaze" / "tiny" / "card.json"
    original = card.read_text()
    card.write_text(json.dumps({**json.loads(original), "tokenizer_fingerprint": "sha256:other"}))
    try:
        config = EvaluationConfig(
            output=str(world / "other"),
            checkpoints={"tiny": str(world / "model")},
            clips=ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny"),
            train_tokens=str(world / "tokens/train/[gaze]/tiny/shard-{000000..000000}.tar"),
            tasks=("rgb2gaze",),
            estimators={"one": {}},
            device="cpu",
            progress=False,
        )
        loss = run_evaluation(config).results.to_plain()["tasks"][0]["token_losses"][0]
    finally:
        card.write_text(original)
    assert loss["unigram_nats"] is None and "sha256:other" in loss["unigram_note"]
