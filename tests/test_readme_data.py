"""The page "Your video, start to finish" of README_DATA.md, typed as it is printed."""

import importlib
import json
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
from readme_commands import commands_of

from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.reader_choice import FORMATS
from egom2p.data.recordings.trajectories import TrajectoriesReader

ROOT = Path(__file__).resolve().parents[1]
READERS = (*FORMATS, TrajectoriesReader)
TEXT = (ROOT / "README_DATA.md").read_text(encoding="utf-8")
PAGE = re.search(r"## 4\. Your video, start to finish\n(.*?)\n## ", TEXT, re.DOTALL).group(1)


def _run(words, monkeypatch):
    """As a shell would, without starting a process each time."""
    assert words[0] == "python"
    if words[1] == "-m":
        importlib.import_module(words[2]).main(words[3:])
        return
    monkeypatch.setattr(sys, "argv", words[1:])
    try:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, words


def test_your_video_start_to_finish(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cfgs", "checkpoints"):
        os.symlink(ROOT / name, tmp_path / name)
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (12, 24, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))
    write_video(tmp_path / "walk.mp4", (np.roll(texture, 2 * number, axis=1) for number in range(75)), 30)
    commands = commands_of(PAGE)
    assert len(commands) == 6
    for words in commands:
        _run(words, monkeypatch)
    made = tmp_path / "outputs" / "own" / "generated"
    assert {"depth", "gaze", "camera"} <= set(np.load(made / "walk" / "clip.npz").files)
    picture = json.loads((made / "walk" / "clip.json").read_text())["picture"]
    assert (picture["source_width"], picture["source_height"], picture["left"]) == (240, 120, 60)
    assert (made / "index.html").is_file() and (made / "walk" / "gaze_source.csv").is_file()
    losses = [json.loads(line) for line in (tmp_path / "outputs/own/run/log.jsonl").read_text().splitlines()]
    assert {key for row in losses for key in row if key.startswith("loss/tok_")} == {
        f"loss/tok_{name}" for name in ("rgb", "depth", "gaze", "cam")
    }


def test_the_sections_are_numbered_in_order():
    numbers = re.findall(r"^## (\d+)\. ", TEXT, re.MULTILINE)
    assert numbers == [str(number + 1) for number in range(len(numbers))]


def test_the_table_of_formats_names_every_reader_and_its_config():
    rows = re.findall(
        r"^\| ((?:`[a-z0-9_]+`(?:, )?)+) \|", TEXT.split("| `FORMAT` |")[1].split("\n\n")[0], re.MULTILINE
    )
    named = [name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)]
    kinds = [reader.source.__annotations__["kind"].__args__[0] for reader in READERS]
    assert sorted(named) == sorted([*kinds, "random_motion"])  # which reads nothing
    for kind in kinds:
        assert (ROOT / f"cfgs/default/data_preparation/{kind}.yaml").is_file(), kind
    tried = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/data").glob("test_*.py"))
    untried = [
        kind
        for kind, reader in zip(kinds, READERS, strict=True)
        if f'"{kind}"' not in tried and reader.__name__ not in tried
    ]
    assert untried == []
