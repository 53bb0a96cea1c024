"""The page: complete, self-contained, and alive in a browser."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import make_tiny_world

from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EvaluationConfig
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.generation.partial_prompts import InpaintingMask
from egom2p.metrics.result_table import Results
from egom2p.viewing.generation_page import write_generation_page
from egom2p.viewing.plots import COLOURS, TRUTH, coloured_depth, depth_range, mosaic, with_gaze
from egom2p.viewing.report import ReportConfig, training_curves, write_report

_ENTRIES = [
    {"kind": "train", "step": 1, "clips": 4, "loss": 3.0, "loss/tok_depth": 3.1},
    {"kind": "train", "step": 2, "clips": 8, "loss": 2.8, "loss/tok_depth": None},
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
    anchors = ("clips", "glance", "training", "task-0", "task-3", "run")
    positions = [html.index(f'id="{anchor}"') for anchor in anchors]
    assert positions == sorted(positions), "videos come first"
    # Of a clip one video, of which every tile is a part: input, truth and two models for depth, gaze and rgb.
    assert html.count("<video") == html.count("data:video/webm;base64,") == html.count('type="range"') == 2
    assert html.count("<canvas") == 2 * 3 * 4
    assert html.count("<svg") == 2 * 4 + 1 + 1 + 2 * (2 + 1)  # calibration, training, depth scale, clips
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert "just &lt;trained&gt;" in html and "<trained>" not in html
    for words in ("per-pixel geometric mean depth", "stationary", "mean trajectory", "tokenizer round trip", "ceiling"):
        assert words in html


def test_a_card_says_what_was_lost_and_whose_the_ceiling_is(page):
    """Every metric in which the shown row is not better stands on its card, as the table has it."""
    html, results = page.read_text(), Results.read(page.parent)
    cards = html[html.index('id="glance"') : html.index('id="training"')].split('<div class="card">')[1:]
    assert len(cards) == len(results.tables)
    for card, table in zip(cards, results.tables, strict=True):
        metric = table.primary
        rows = [table.best_row("model", metric, checkpoint=label) for label in results.about["checkpoints"]]
        for kind, word in (("worse", "✗ lost in"), ("tie", "≈ undecided in")):
            others = [m for m in table.metrics if m.key != metric.key]
            found = [m for row in rows for m in others if row.against_baseline[m.key].verdict == kind]
            assert card.count(word) == len(found)
        for row in rows:
            ceiling = table.best_row("ceiling", metric, checkpoint=row.checkpoint)
            assert f"its own ceiling {ceiling.mean(metric):.{metric.decimals}f}" in card
            assert f"median {row.values[metric.key].median:.{metric.decimals}f}" in card


def test_curves_hold_every_line_of_the_log_and_the_loss_of_ignoring_the_input():
    curves = training_curves(_ENTRIES)
    wanted = {"x": [4, 8], "y": [3.0, 2.4], "baseline": 2.5, "train": ([4], [3.1])}
    assert curves == {"rgb2depth: tok_depth": wanted}


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


def test_tiles_are_of_one_size_whatever_their_pictures_are():
    wide, square = np.full((2, 16, 33, 3), 200, np.uint8), np.full((2, 32, 32, 3), 90, np.uint8)
    whole = mosaic([[square, wide], [wide]], 64)
    assert whole.shape == (2, 2 * 64, 2 * 132, 3)
    assert (whole[:, :64, 34:98] == 90).all() and (whole[:, :64, :34] == 0).all() and (whole[:, 64:, :132] == 200).all()
    assert (whole[:, 64:, 132:] == 0).all()


# Opens what is folded, looks at everything a reader would, scrubs the first player to its middle.
_LOOK = """
<script>addEventListener('load', () => setTimeout(() => {
  document.querySelectorAll('details').forEach(one => one.open = true);
  const rgb = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255)).reduce(
    (sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255];
  };
  const pale = [], small = [];
  document.querySelectorAll('body *').forEach(element => {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join('');
    if (!text || ['SCRIPT', 'STYLE', 'OPTION'].includes(element.tagName) || !element.getClientRects().length) return;
    const style = getComputedStyle(element), svg = element.closest('svg');
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) pale.push(`${text.slice(0, 30)} ${contrast.toFixed(2)}`);
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (parseFloat(style.fontSize) * scale < 8) small.push(`${text.slice(0, 30)} ${style.fontSize} ${scale}`);
  });
  const players = [...document.querySelectorAll('.player')].map(player => {
    const sizes = [...player.querySelectorAll('canvas')].map(one => one.getBoundingClientRect());
    const spread = side => Math.max(...sizes.map(s => s[side])) - Math.min(...sizes.map(s => s[side]));
    const bar = player.querySelector('input').getBoundingClientRect();
    const pixels = [...player.querySelectorAll('canvas')].map(
      one => new Set(one.getContext('2d').getImageData(0, 0, one.width, one.height).data).size);
    return {live: player.classList.contains('live'), tiles: sizes.length,
            spread: Math.max(spread('width'), spread('height')), width: sizes[0].width,
            colours: Math.min(...pixels), bar: bar.width};
  });
  const player = document.querySelector('.player'), range = player.querySelector('input');
  range.value = 500;
  range.dispatchEvent(new Event('input'));
  setTimeout(() => {
    const video = player.querySelector('video');
    top.document.title = JSON.stringify({
      width: innerWidth, scroll: document.documentElement.scrollWidth, pale, small, players,
      dark: matchMedia('(prefers-color-scheme: dark)').matches,
      at: video.currentTime / video.duration, paused: video.paused,
      marks: player.querySelectorAll('[id*="-clock"][transform], [id*="-path"] ~ path[transform]').length});
  }, 1000);
}, 2500));</script></body>"""


@pytest.fixture(scope="module")
def generated(page) -> Path:
    root = page.parents[1]
    config = GenerationConfig(
        output=str(root / "generated"),
        checkpoint=str(root / "model"),
        input=str(root / "clips" / "val"),
        targets=("depth", "cam", "gaze"),
        conditions=("rgb",),
        max_clips=2,
        device="cpu",
        progress=False,
    )
    return write_generation_page(run_generation(config).parent)


def test_the_truth_of_what_was_generated_stands_beside_it(generated):
    html = generated.read_text()
    assert re.findall(r'role="img" aria-label="(.*?)"', html)[:6] == [
        "rgb given", "depth generated", "depth truth", "gaze on rgb generated", "gaze on rgb truth", "rgb given",
    ]  # fmt: skip
    # As dots of gaze and on every other page: what was made has a colour, the truth is the page's ink.
    inked, made, other = (html.count(f"stroke: {at}") for at in (f"var(--ink, {TRUTH})", *map(str.lower, COLOURS[:2])))
    assert made > 0 and inked > 0 and other == 0


def test_of_a_stream_given_in_part_the_first_frame_made_is_shown_first(page):
    root = page.parents[1]
    config = GenerationConfig(
        output=str(root / "in part"),
        checkpoint=str(root / "model"),
        input=str(root / "clips" / "val"),
        targets=("rgb",),
        conditions=(),
        join="none",
        inpainting={"rgb": InpaintingMask(seconds=(1.0, 2.0))},
        max_clips=1,
        device="cpu",
        progress=False,
    )
    html = write_generation_page(run_generation(config).parent).read_text()
    labels = re.findall(r'role="img" aria-label="(.*?)"', html)
    assert labels[labels.index("rgb generated in part") + 1] == "rgb truth"
    assert float(re.search(r'data-start="(.*?)"', html).group(1)) == pytest.approx(1.0, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_pages_live_in_a_browser(page, generated, tmp_path, width, is_dark):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to open the page with")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    quiet += ["--window-size=1400,1000", *(["--blink-settings=preferredColorScheme=0"] if is_dark else [])]
    for one in (page, generated):
        copy = tmp_path / f"{one.parent.name}.html"
        looked = escape(one.read_text().replace("</body>", _LOOK))
        # A window cannot be as narrow as a phone, a frame can.
        head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        copy.write_text(f'{head}<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{looked}"></iframe>')
        outcome = subprocess.run(
            [browser, *quiet, "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom", copy.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = json.loads(unescape(re.search(r"<title>(.*?)</title>", outcome.stdout).group(1)))
        assert (found["width"], found["dark"]) == (width, is_dark)
        assert found["scroll"] <= width, "no horizontal scrolling"
        assert found["pale"] == [] and found["small"] == []
        assert len(found["players"]) == 2
        for player in found["players"]:
            assert player["live"] and player["tiles"] >= 3 and player["spread"] < 1 and player["colours"] > 2
            assert player["width"] >= 130 and player["bar"] >= 100
        assert found["at"] == pytest.approx(0.5, abs=0.01) and found["paused"] and found["marks"] >= 3
        assert "CONSOLE" not in outcome.stderr
