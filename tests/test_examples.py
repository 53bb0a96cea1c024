"""The examples of docs/EXAMPLES run, from a folder that begins empty, and write the pictures that their page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs/EXAMPLES"
PAGE = (EXAMPLES / "README.md").read_text()
MAX_BYTES = 150_000
# Of each its pictures, and what is made shorter here: words of the script -> words in their place.
SHORTER = {
    "depth_and_path": (["depth.jpg", "path.jpg"], {"first_seed=400_005": "first_seed=400_005, duration_s=3.0"}),
    "finetune": (
        ["finetune.jpg"],
        {
            '("train", 500_000, 40), ("val", 600_000, 10)': '("train", 500_000, 4), ("val", 600_000, 2)',
            "training.num_steps=150": "training.num_steps=4",
            "training.warmup=10": "training.warmup=1",
            "training.log_every=5": "training.log_every=1",
            "evaluate_every=150": "evaluate_every=4",
            "checkpoint_every=150": "checkpoint_every=4",
            "num_clips=40": "num_clips=4",
        },
    ),
    "ask_about_a_clip": (
        ["ask_about_a_clip.jpg"],
        {
            '("train", 0, 375), ("val", 300_000, 24)': '("train", 0, 8), ("val", 300_000, 4)',
            'f"{CFGS}/world.yaml")': 'f"{CFGS}/world.yaml", "training.num_steps=4", "training.warmup=1")',
        },
    ),
}


def test_the_page_shows_small_pictures_of_every_example():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(SHORTER) == set(re.findall(r"\]\((\w+)\.py\)", PAGE))
    pictures = re.findall(r"!\[[^\]]+\]\(pictures/([\w.]+)\)", PAGE)
    assert sorted(pictures) == sorted(name for names, _ in SHORTER.values() for name in names)
    assert sorted(path.name for path in (EXAMPLES / "pictures").iterdir()) == sorted(pictures)
    assert all((EXAMPLES / "pictures" / name).stat().st_size < MAX_BYTES for name in pictures)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_an_example_runs(tmp_path, name):
    pictures, shorter = SHORTER[name]
    text = (EXAMPLES / f"{name}.py").read_text()
    for words, fewer in shorter.items():
        assert text.count(words) == 1, words
        text = text.replace(words, fewer)
    (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parents[1])}
    command = [sys.executable, "-P", str(tmp_path / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path / "run", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = {path.name: path.stat().st_size for path in (tmp_path / "pictures").iterdir()}
    assert set(made) == set(pictures) and all(3_000 < size < MAX_BYTES for size in made.values())
