"""The page: complete, self-contained, and alive in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import make_tiny_world

from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EvaluationConfig
from egom2p.viewing.plots import coloured_depth, depth_range, enlarged, side_by_side, with_gaze
from egom2p.viewing.report import ReportConfig, validation_curves, write_report

_ENTRIES = [
    {"kind": "train", "step": 1, "clips": 4, "loss": 3.0},
    {
        "kind": "evaluation",
        "step": 1,
        "clips": 4,
        "rgb2depth/tok_depth": 3.0,
        "rgb2depth/tok_depth/unigram_baseline": 2.5,
    },
    {
        "kind": "evaluation",
        "step": 2,
        "clips": 8,
        "rgb2depth/tok_depth": 2.4,
        "rgb2depth/tok_depth/unigram_baseline": 2.5,
    },
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = make_tiny_world(tmp_path_factory.mktemp("world"))
    (root / "run").mkdir()
    lines = [json.dumps({"seconds": 1.0, **entry}) for entry in _ENTRIES]
    (root / "run" / "log.jsonl").write_text("\n".join(lines) + "\n")
    config = EvaluationConfig(
        output=str(root / "evaluation"),
        checkpoints={"just <trained>": str(root / "model"), "pretrained": str(root / "model")},
        clips=ClipsConfig(root=str(root / "clips" / "val"), dataset="tiny"),
        train_clips=ClipsConfig(root=str(root / "clips" / "train"), dataset="tiny"),
        training_runs={"just trained": str(root / "run")},
        num_shown_clips=2,
        device="cpu",
        progress=False,
    )
    run_evaluation(config)
    return write_report(ReportConfig(evaluation=config.output))


def test_the_page_holds_everything_and_fetches_nothing(page):
    html = page.read_text()
    for anchor in ("glance", "task-0", "task-3", "training", "clips", "run"):
        assert f'id="{anchor}"' in html
    assert html.count("<video") == 2 * 3 and html.count("data:video/webm;base64,") == 2 * 3
    assert html.count("<svg") == 4 + 4 + 1 + 1 + 2 * 2  # tables, calibration, training, depth scale, clips
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert "just &lt;trained&gt;" in html and "<trained>" not in html
    for words in ("per-pixel geometric mean depth", "stationary", "mean trajectory", "tokenizer round trip", "ceiling"):
        assert words in html


def test_curves_come_with_the_loss_of_ignoring_the_input():
    curves = validation_curves(_ENTRIES)
    assert curves == {"rgb2depth: tok_depth": {"x": [4, 8], "y": [3.0, 2.4], "baseline": 2.5}}


def test_a_missing_log_is_named(page, tmp_path):
    summary = json.loads((page.parent / "results.json").read_text())
    summary["config"]["training_runs"] = {"gone": str(tmp_path / "gone")}
    (tmp_path / "results.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="gone/log.jsonl"):
        write_report(ReportConfig(evaluation=str(tmp_path)))


def test_depth_colours_say_near_far_and_invalid():
    depth_m = np.array([[[1.0, 4.0, 0.0]]], np.float32)
    colours = coloured_depth(depth_m, 1.0, 4.0)[0, 0]
    assert colours[0].tolist() != colours[1].tolist() and colours[2].tolist() == [40, 40, 40]
    near_m, far_m = depth_range([depth_m])
    assert 1.0 <= near_m < far_m <= 4.0


def test_gaze_is_drawn_where_it_points_and_only_when_valid():
    frames = np.full((2, 32, 32, 3), 90, np.uint8)
    drawn = with_gaze(frames, np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([True, False]), "#ff0000", filled=True)
    assert drawn[0, 24, 8].tolist() == [255, 0, 0] and (drawn[1] == 90).all()
    assert side_by_side([enlarged(frames, 64), enlarged(frames, 64)]).shape == (2, 64, 134, 3)


@pytest.mark.slow
def test_the_page_lives_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to open the page with")
    check = (
        "<script>addEventListener('load', () => setTimeout(() => { const all = [...document.querySelectorAll('video')];"
        "document.title = 'videos ' + all.length + ' ready ' + all.filter(v => v.readyState >= 2 && !v.error).length;"
        "}, 2500));</script></body>"
    )
    copy = tmp_path / "index.html"
    copy.write_text(page.read_text().replace("</body>", check))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    outcome = subprocess.run(
        [browser, *quiet, "--enable-logging=stderr", "--virtual-time-budget=6000", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>videos 6 ready 6</title>" in outcome.stdout
    assert "CONSOLE" not in outcome.stderr
