"""The page of any-to-any evaluations: complete, self-contained, safe with any text, pictures where there are any."""

import json
import re

import numpy as np
import pytest

from egom2p.metrics.bootstrap import Interval
from egom2p.metrics.result_table import Difference, Metric, Results, ResultTable, Row
from egom2p.storage import save_json
from egom2p.viewing.anytoany_page import AnyToAnyPageConfig, write_anytoany_page

EVIL = "<script>alert('x')</script>"


def row(model, control, mean, metric="exact_match"):
    kind, checkpoint = "model" if control in ("true", "text") else "baseline", model if control else None
    values = {metric: Interval(mean, mean - 0.1, mean + 0.1, 9)}
    return Row(control or model, kind, checkpoint, values, {}, {}, {})


def answer(model, control, said, is_right):
    return {"model": model, "control": control, "output": said, "values": {"exact_match": is_right, "token_f1": 0.5}}


@pytest.fixture
def folder(tmp_path):
    """An evaluation as the pipeline writes it: a set with frames, codes and a vector, and a set of texts."""
    run, folder = tmp_path / "run", tmp_path / "evaluation"
    (run / "final").mkdir(parents=True)
    log = [{"kind": "train", "step": step, "loss/text": 3.0 / step} for step in (1, 2, 3)]
    log.append({"kind": "evaluation", "step": 3, "held/loss": 0.4, "held, shuffled features/loss": 0.9})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    rows = [row("m", "true", 0.8), row("m", "shuffled", 0.3), row("commonest answer", "", 0.2)]
    owed = Difference("m, true", "m, shuffled", {"exact_match": Interval(0.5, 0.4, 0.6, 9)})
    right, nats = Metric("exact_match", "exact match", "", "", True), Metric("nats_per_token", "nats per token", "", "")
    texts = (row("m", "text", 6.5, "nats_per_token"),)
    tables = (
        ResultTable("looked_at", "text", 9, 3, "", (right,), tuple(rows), differences=(owed,)),
        ResultTable("passages", "text", 2, 2, "", (nats,), texts),
    )
    about = {"config": {"models": {"m": {"directory": str(run / "final")}}}, "seconds": {"m": 2.0}, "machine": "CPU"}
    about["notes"] = [f"m: a STAND-IN {EVIL}"]
    save_json(folder / "results.json", Results("", tables, about).to_plain())
    (folder / "shown").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 20, 3), dtype=np.uint8)
    np.savez(
        folder / "shown/looked_at-0-0.npz", frames=frames, gaze=np.full((4, 2), 0.5), gaze_is_valid=np.ones(4, bool)
    )
    codes = {"ids": np.array([7, 8, 3]), "position": np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]]), "source": [0, 0, 1]}
    np.savez(folder / "shown/looked_at-4-0.npz", names=np.array(["code_rgb", "code_gaze"]), **codes)
    np.savez(folder / "shown/looked_at-8-0.npz")
    samples = [
        {
            "table": "looked_at",
            "row": number,
            "key": f"clip{number}",
            "question": "{video}\nWhat is looked at?",
            "media": [{"kind": "video", "ref": f"clip{number}"}],
            "reference": "the red mug",
            "answers": [
                answer("m", "true", "the red mug", 1.0),
                answer("m", "shuffled", f"the blue \x00\x17 {EVIL}", 0.0),
            ],
        }
        for number in range(9)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def test_the_page_shows_what_was_perceived_asked_and_said(folder):
    html = write_anytoany_page(AnyToAnyPageConfig(evaluation=str(folder))).read_text()
    assert (folder / "index.html").is_file()
    talk, _, sets = html.partition('id="glance"')
    assert 'id="conversation"' in talk and "data:image/jpeg;base64," in talk and "What is looked at?" in talk
    assert "the red mug" in talk and "blue" not in talk, "the answers to true features, of one clip"
    assert sets.count("data:image/jpeg;base64,") == 1 and ">code_gaze<" in html and "clip8: nothing to look at" in html
    assert "3 of 9, evenly spread" in html and sets.count("What is looked at?") == 3, "only what pictures were kept of"
    assert sets.count("✓ the red mug") == 3 and sets.count("✗ the <b>blue</b>") == 3
    assert "<b>blue</b>" in html and "<b>the</b>" not in html, "words that the right answer has are no mistakes"
    assert "✓ owed to perception: +0.500 [+0.400, +0.600]" in html
    assert "nats per token" in html and "6.500" in html
    assert "m: a STAND-IN &lt;script&gt;" in html
    assert 'id="training"' in html
    assert re.search(r">\s*held\s*<", html)
    assert "\x00" not in html and "\x17" not in html
    assert EVIL not in html and "&lt;script&gt;" in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html), "nothing is loaded from elsewhere"


def test_several_evaluations_make_one_page(folder, tmp_path):
    config = AnyToAnyPageConfig(evaluation=(str(folder), str(folder)), page=str(tmp_path / "both.html"), title="Both")
    html = write_anytoany_page(config).read_text()
    assert html.count("<h2>evaluation: looked at</h2>") == 2 and "4 sets" in html and "<h1>Both</h1>" in html
    anchors = re.findall(r'<section id="([^"]+)"', html)
    assert len(set(anchors)) == len(anchors)


def test_what_is_missing_is_left_out_or_named(folder, tmp_path):
    (folder / "samples.jsonl").unlink()  # of an evaluation made before there were any
    results = json.loads((folder / "results.json").read_text())
    results["config"]["models"]["m"]["directory"] = str(tmp_path / "gone" / "final")
    save_json(folder / "results.json", results)
    html = write_anytoany_page(AnyToAnyPageConfig(evaluation=str(folder))).read_text()
    assert 'id="training"' not in html and "What is looked at?" not in html
    with pytest.raises(ValueError, match="no results.json"):
        write_anytoany_page(AnyToAnyPageConfig(evaluation=str(tmp_path)))
    with pytest.raises(ValueError, match="found none"):
        write_anytoany_page(AnyToAnyPageConfig(evaluation=()))
