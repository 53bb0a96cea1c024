"""The linear probe: the classifier against sums done another way, labels, and a run on untrained artifacts."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from tiny_artifacts import invented_clip, make_tiny_world

from egom2p.config import from_plain, load_config
from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.evaluation.linear_probe import fit_and_predict
from egom2p.evaluation.probe import ProbeConfig, ProbeLabelConfig, run_probe
from egom2p.metrics.result_table import Results


def blobs(rng, count, num_features=4):
    """Three classes around three corners; rows, labels, groups of four rows each."""
    codes = rng.integers(0, 3, count)
    rows = rng.normal(0, 0.5, (count, num_features)) + 3 * np.eye(3, num_features)[codes]
    return rows, [f"class {code}" for code in codes], [f"group {number // 4}" for number in range(count)]


def test_it_finds_what_is_linear_and_nothing_in_noise(rng):
    train, labels, groups = blobs(rng, 120)
    test, truth, _ = blobs(rng, 60)
    settings = {"groups": groups, "penalties": (1e-3, 1e-1), "rng": rng}
    found, penalty = fit_and_predict(train, labels, test, **settings)
    assert np.mean([a == b for a, b in zip(found, truth, strict=True)]) > 0.95 and penalty in (1e-3, 1e-1)
    noise, _ = fit_and_predict(rng.normal(size=(120, 4)), labels, rng.normal(size=(60, 4)), **settings)
    assert np.mean([a == b for a, b in zip(noise, truth, strict=True)]) < 0.6


def test_two_classes_are_split_where_calculus_says(rng):
    """Points +a and -a, equally many: the weight w of class differences solves sigmoid(-2aw) a = penalty w / 2."""
    from egom2p.evaluation import linear_probe

    a, penalty = 1.5, 0.3
    rows = np.array([[a]] * 10 + [[-a]] * 10)
    weights_EC = linear_probe._fit(rows, np.array([0] * 10 + [1] * 10), 2, penalty)
    difference = weights_EC[0, 0] - weights_EC[0, 1]
    assert a / (1 + np.exp(a * difference)) == pytest.approx(penalty * difference / 2, rel=1e-3)
    assert weights_EC[1, 0] == pytest.approx(weights_EC[1, 1], abs=1e-4)


def test_many_features_give_the_same_answer_as_in_full(rng):
    """More features than rows: the shortcut through the row space changes nothing."""
    from egom2p.evaluation import linear_probe

    rows, labels, _ = blobs(rng, 30, num_features=80)
    test = rng.normal(size=(7, 80))
    codes = np.unique(labels, return_inverse=True)[1]
    full_logits = linear_probe._logits(test, linear_probe._fit(rows, codes, 3, 0.1))
    for train, held_out in ((rows, test), (csr_array(rows), csr_array(test))):
        short, short_test = linear_probe._in_row_space(train, held_out)
        assert short.shape[1] <= 30
        found = linear_probe._logits(short_test, linear_probe._fit(short, codes, 3, 0.1))
        assert np.abs(found - full_logits).max() < 2e-2


def clip_with(name: str, values: np.ndarray, is_valid: np.ndarray | None = None) -> AlignedClip:
    valid = np.ones(len(values), bool) if is_valid is None else is_valid
    return AlignedClip("c", {name: Stream(values, valid, np.arange(len(values)) / 30, "")}, None, Provenance("d", "r"))


def test_labels_are_read_as_told():
    cell = ProbeLabelConfig(kind="cell", stream="gaze", rows=2, columns=3)
    gaze = np.array([[0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    assert cell.label_of(clip_with("gaze", gaze, np.array([True, True, False]))) == "row 0, column 2"
    assert cell.label_of(clip_with("gaze", gaze, np.zeros(3, bool))) is None
    assert cell.label_of(clip_with("gaze", np.array([[1.0, 1.0]]))) == "row 1, column 2"
    text = ProbeLabelConfig(kind="text", stream="caption", pattern="^the wearer (.*) and looks")
    assert text.label_of(clip_with("caption", np.array(["the wearer stands still and looks ahead"]))) == "stands still"
    assert text.label_of(clip_with("caption", np.array(["nobody"]))) is None
    with pytest.raises(ValueError, match="clip c has no gaze for its label"):
        cell.label_of(clip_with("caption", np.array(["x"])))
    for wrong in ({"kind": "cell", "pattern": "x"}, {"kind": "text"}, {"kind": "text", "pattern": "("}):
        with pytest.raises(ValueError, match="pattern"):
            ProbeLabelConfig(stream="gaze", **wrong)


def test_a_probe_from_clips_to_table(tmp_path):
    root = make_tiny_world(tmp_path, num_train=12, num_val=6)
    values = {
        "output": str(root / "probe"),
        "checkpoint": str(root / "model"),
        "train": {"root": str(root / "clips" / "train"), "dataset": "tiny"},
        "test": {"root": str(root / "clips" / "val"), "dataset": "tiny"},
        "inputs": ["gaze", "cam"],
        "layers": [0, None],
        "labels": {"region": {"kind": "cell", "stream": "gaze"}},
        "device": "cpu",
        "progress": False,
    }
    results = run_probe(from_plain(ProbeConfig, values))
    (table,), found = results.tables, results.about["labels"]["region"]
    titles = [row.label for row in table.rows]
    assert titles == ["commonest label", *[f"tokens, {w}" for w in ("how often each", "which where")],
                      "encoder, layer 0", "encoder, output"]  # fmt: skip
    assert table.num_clips == table.num_recordings == 6 and found["num_train"] == 12
    assert [bool(row.against_baseline) for row in table.rows] == [False] * 3 + [True] * 2
    assert Results.read(root / "probe").tables == results.tables
    assert "| commonest label | baseline |" in (root / "probe" / "results.md").read_text()
    assert invented_clip(0).provenance.recording == "recording0"
    with pytest.raises(ValueError, match="recording recording0 is in train and in test"):
        run_probe(from_plain(ProbeConfig, values | {"test": values["train"]}))


def test_the_config_is_valid():
    config = load_config(ProbeConfig, "default/egom2p/probe/world_small.yaml", [])
    assert config.layers[-1] is None and set(config.labels) == {"gaze region", "action"}
