"""Every command that README.md and its pages print: the program exists and accepts exactly these words."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from readme_commands import commands_of, config_and_overrides, entry_point

from egom2p.__main__ import COMMANDS as BY_NAME
from egom2p.config import load_config
from egom2p.data.clips.video_files import write_video
from egom2p.training.tasks.pretrain_config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/EXAMPLES").glob("*.md")])
MAKEFILES = "".join(file.read_text() for file in (ROOT / "Makefile", *ROOT.glob("*.mk")))
STARTS = ("python ", "torchrun ", "egom2p ", "make ", "sbatch ", "OMP_NUM_THREADS=1 torchrun ")
LEFT_OUT = {"", "...", "dry_run=true"}


def commands() -> list[tuple[str, list[str]]]:
    """Of the bash blocks, and of the text between backticks; `<config>` is the quickstart's, `...` says nothing."""
    found = []
    for page in PAGES:
        text = re.sub("<config>|\\$main", "quickstart", page.read_text(encoding="utf-8"))
        inline = [code for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
        blocks = [words for words in commands_of(text) if f"{' '.join(words)} ".startswith(STARTS)]
        spoken = [commands_of(f"```bash\n{code}\n```") for code in inline if code.startswith(STARTS)]
        found += [(page.name, words) for words in [*blocks, *(words for one in spoken for words in one)]]
    return found


COMMANDS = commands()


def test_the_pages_hold_commands():
    assert {page for page, _ in COMMANDS} >= {page.name for page in ROOT.glob("README*.md")} and len(COMMANDS) > 80


@pytest.mark.parametrize("page, words", COMMANDS, ids=lambda part: "" if isinstance(part, str) else " ".join(part)[:90])
def test_a_command_is_accepted(page, words):
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word and word != "..."):
            rule = re.escape(target) if not target.startswith("finetune-x") else "finetune-x%"
            assert re.search(rf"^(?:[a-z_ -]+ )?{rule}(?: [a-z_ -]+)?:", MAKEFILES, re.MULTILINE), target
    elif words[0] == "sbatch":
        if "--wrap" in words:
            _check_program([word for word in shlex.split(words[-1]) if word not in LEFT_OUT])
        else:
            assert (ROOT / words[1]).is_file()
    elif words[0] == "egom2p":
        assert words[1] in BY_NAME or words[1] in ("COMMAND", "--help", "...")
    else:
        _check_program([word for word in words if word not in LEFT_OUT])


def _check_program(words: list[str]) -> None:
    starts = [i for i, word in enumerate(words) if word.endswith(".py") or word == "-m"]
    words = words[next(i for i in starts if words[i] != "-m" or not words[i + 1].startswith("torch")) :]
    if words[0] == "-m" and words[1] in ("egom2p", "pip", "ruff", "pytest", "venv"):
        return
    file = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
    assert file.is_file(), file
    if "run_main(" not in file.read_text() or {"--help", "-h"} & set(words) or words[-1] == "--config":
        return
    schema, default, arguments = entry_point(words)
    if "--config" in arguments and not (ROOT / arguments[arguments.index("--config") + 1]).is_file():
        return  # a placeholder, or one that the page has its reader write and that has a test of its own
    config, overrides = config_and_overrides(arguments, default)
    overrides = [word for word in overrides if "=" in word]
    if "--multirun" in arguments:
        overrides = [re.sub(r"=([^,\[{]+),.*", r"=\1", word) for word in overrides]
    if config is None:
        return
    try:
        load_config(schema, config, overrides)
    except ValueError as error:
        # What the page leaves to its reader may be missing; a key or value that is printed may not be wrong.
        assert "has no value" in str(error) or "say what to start from" in str(error), error


def test_size_data_and_alphas_are_swapped_by_what_the_page_prints():
    """The three overrides of README.md: each changes what it names and nothing else of the three."""
    text = (ROOT / "README.md").read_text()
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if block.startswith("main="))
    main, *lines = block.strip().splitlines()
    assert len(lines) == 3
    main = ROOT / main.removeprefix("main=")
    whole = load_config(PretrainConfig, main)
    swapped = [load_config(PretrainConfig, main, line.split("$main ")[1].split()) for line in lines]
    size, data, alphas = swapped
    assert [one.model == whole.model for one in swapped] == [False, True, True] and size.model.dim < whole.model.dim
    assert [one.data == whole.data for one in swapped] == [True, False, False] and set(data.data.datasets) == {"world"}
    changed = [name for name, one in whole.data.datasets.items() if alphas.data.datasets[name] != one]
    assert changed == ["egogen"] and len(whole.data.datasets) == 8


@pytest.mark.slow
def test_what_needs_no_more_than_a_video_runs_as_printed(tmp_path, monkeypatch):
    """The rows of README.md for a video, from a folder that holds `walk.mp4` and nothing else."""
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 48, 3), np.uint8)
    write_video(tmp_path / "walk.mp4", frames, 8.0)
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"\| `((?:python|egom2p)[^`]+)` \|", text)
    for wanted, made in (
        ("python generate.py input=walk.mp4", "index.html"),
        ("python -m egom2p.viewing.rerun_folders", "*/*.rrd"),
    ):
        (command,) = [row for row in rows if row.startswith(wanted)]
        command = command.replace("python ", f"{shutil.which('python3') and sys.executable} ").replace(
            " generate.py", f" {ROOT}/generate.py"
        )
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "outputs/walk").glob(made))
    (line,) = re.findall(r"`(egom2p\.load_model[^`]+)`", text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(f"import egom2p\nmade = {line}\n")
    made = runpy.run_path("line.py")["made"]
    assert made.depth_m.min() >= 0 and made.world_from_cam.shape[1:] == (4, 4)
