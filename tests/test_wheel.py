"""`pip install .` is the whole project: what the wheel holds, and its commands in an empty folder, no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("egom2p", "cfgs", "checkpoints")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools would put what an earlier build left behind into it too."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, "setup.py", "pyproject.toml", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--no-index"]
    command += ["--disable-pip-version-check", "-w", str(folder), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(wheel.parent / "site")
    (wheel.parent / "empty").mkdir()
    return wheel.parent / "site"


def run(installed: Path, *words: str) -> subprocess.CompletedProcess:
    """A command of the wheel, in a folder that begins empty; `-P` keeps the working directory out of sys.path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    folder = installed.with_name("empty")
    return subprocess.run(
        [sys.executable, "-P", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_package_its_configs_and_the_pretrained_checkpoint_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
        entry_points = next(packed.read(name) for name in names if name.endswith(".dist-info/entry_points.txt"))
    wanted = set()
    for folder, inside in zip(SOURCES, ("egom2p", "egom2p/cfgs", "egom2p/pretrained"), strict=True):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        wanted |= {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert b"egom2p = egom2p.__main__:main" in entry_points


@pytest.mark.slow
def test_every_command_explains_itself(installed):
    code = """
import sys
from egom2p.__main__ import COMMANDS, main
for name in COMMANDS:
    print("##", name, flush=True)
    sys.argv = ["egom2p", name, "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (name, ended.code)
"""
    told = run(installed, "-c", code)
    assert told.returncode == 0, told.stderr
    parts = dict(part.split("\n", 1) for part in told.stdout.split("## ")[1:])
    assert len(parts) > 12 and all(len(text) > 100 for text in parts.values())
    assert "usage: egom2p publish" in parts["publish"]


def test_a_first_hour_without_a_checkout(installed):
    assert "tokenize-train" in run(installed, "-m", "egom2p", "--help").stdout
    asked = run(installed, "-m", "egom2p", "train")
    assert asked.returncode == 2 and "cfgs/default/egom2p/models/main/quickstart.yaml" in asked.stderr
    config = ("--config", "cfgs/default/data_preparation/synthetic.yaml")
    size = ("source.world.num_rooms=1", "output=clips", "num_workers=1")
    prepared = run(installed, "-m", "egom2p", "prepare", *config, *size)
    assert prepared.returncode == 0, prepared.stderr
    assert (installed.with_name("empty") / "clips" / "meta" / "synthetic" / "prepare_report.json").is_file()


@pytest.mark.slow
def test_the_pretrained_checkpoint_and_its_tokenizers_come_with_the_wheel(installed):
    config = ("--config", "cfgs/default/data_preparation/synthetic.yaml")
    assert run(installed, "-m", "egom2p", "prepare", *config, "source.world.num_rooms=1", "output=own").returncode == 0
    words = ("input=own", "targets=[gaze]", "conditions=[rgb]", "output=made", "max_clips=1")
    made = run(installed, "-m", "egom2p", "generate", *words)
    assert made.returncode == 0 and "page: made/index.html" in made.stderr, made.stderr
    assert "Warning" not in made.stderr
    assert (installed.with_name("empty") / "made" / "index.html").stat().st_size > 10_000
    tokenize = ("tokenize", "--config", "cfgs/default/tokenize/own_video.yaml", "clips=own", "output=tokens")
    assert run(installed, "-m", "egom2p", *tokenize).returncode == 0
    train = ("train", "--config", "cfgs/default/egom2p/models/main/own_video.yaml", "dry_run=true")
    tokens = "tokens/[rgb,depth,gaze,cam]/synthetic/shard-*.tar"
    planned = run(installed, "-m", "egom2p", *train, f"data.datasets.world.shards={tokens}", "~data.datasets.mine")
    assert planned.returncode == 0 and "tok_rgb" in planned.stdout + planned.stderr, planned.stderr
    missing = run(installed, "-m", "egom2p", "tokenize", "clips=own", "output=tokens")
    assert missing.returncode == 2 and "say tokenizers_root=" in missing.stderr
