"""What a caption tells, and the table of two kinds of models."""

import json

import numpy as np
import pytest

from experiments.world_captions.compare_captions import Described, captions_of_language, row_of, table, told

TRUTH = {
    "room1_00_000000": "the wearer walks and turns left and looks at a pink moving ball",
    "room2_00_000000": "the wearer stands still and looks at an orange moving box",
}


def test_motion_and_thing_are_told_apart():
    assert told(TRUTH["room1_00_000000"]) == ("the wearer walks and turns left", ("pink", "ball"))
    assert told("The wearer stands still and looks at an orange moving box.") == (
        "the wearer stands still",
        ("orange", "box"),
    )
    assert told("the wearer stands still") == ("the wearer stands still", ())


def test_scores_of_captions():
    said = dict(TRUTH, room2_00_000000="the wearer stands still and looks at an orange moving ball")
    row = row_of(Described("m", 0, "true", said), TRUTH, np.random.default_rng(0))
    assert [row[name][0] for name in ("exact_match", "motion", "thing", "colour")] == [0.5, 1.0, 0.5, 1.0]
    assert "| m | 0 | true | " in table([row]) and "0.500 [" in table([row])
    with pytest.raises(ValueError, match="described 1 of 2 clips"):
        row_of(Described("m", 0, "true", {"room1_00_000000": "x"}), TRUTH, np.random.default_rng(0))


def test_answers_are_read_by_control(tmp_path):
    row = {"table": "captions", "media": [{"kind": "video", "ref": "a"}]}
    row["answers"] = [{"control": control, "output": control} for control in ("true", "shuffled", "", "without media")]
    (tmp_path / "samples.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps({'table': 'motion'})}\n")
    found = list(captions_of_language("m", 3, tmp_path / "samples.jsonl"))
    assert [(one.control, one.captions, one.seed) for one in found] == [
        ("true", {"a": "true"}, 3),
        ("shuffled", {"a": "shuffled"}, 3),
    ]
    (tmp_path / "other.jsonl").write_text(json.dumps({"table": "motion"}))
    with pytest.raises(ValueError, match="no answers of the table `captions`"):
        captions_of_language("m", 0, tmp_path / "other.jsonl")
