"""The commands without a checkout: the same as the scripts, listed at once."""

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import egom2p.config
from egom2p.__main__ import COMMANDS, _found, main
from egom2p.config.command_line import recipes

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "prepare": "run_prepare_data.py",
    "tokenize-train": "run_training_tokenizer.py",
    "tokenize": "run_tokenize_data.py",
    "train": "run_training_egom2p.py",
    "generate": "generate.py",
    "evaluate": "run_evaluation.py",
    "caption-train": "run_training_anytoany.py",
    "download": "egom2p/anytoany/download.py",
    "caption": "egom2p/anytoany/generate.py",
    "caption-evaluate": "egom2p/anytoany/evaluation/anytoany_evaluation.py",
}


def name_of(thing) -> str:
    """Of a class or function, wherever it was run from; the scripts' own `main` is the console's under another name."""
    return {"_generate": "main", "_evaluate": "main"}.get(thing.__qualname__, thing.__qualname__)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_does_what_its_script_does(name, monkeypatch):
    calls = []

    def note(schema, task, *, default_config=None, description="", arguments=None, program=None):
        calls.append((name_of(schema), name_of(task), default_config))

    monkeypatch.setattr(egom2p.config, "run_main", note)
    runpy.run_path(str(ROOT / SCRIPTS[name]), run_name="__main__")
    main([name, "output=x"])
    assert len(calls) == 2 and calls[0] == calls[1]


def test_the_list_is_complete_and_there_at_once():
    """Under a second, interpreter and all: torch alone takes longer."""
    before = os.times()
    command = [sys.executable, "-X", "importtime", "-m", "egom2p", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
    assert set(re.findall(r"^  (\S+)  ", shown.stdout, re.MULTILINE)) == set(COMMANDS)
    assert not re.search(r"\| +(torch|hydra|numpy|pydantic)$", shown.stderr, re.MULTILINE)
    assert set(SCRIPTS) < set(COMMANDS)
    for one in COMMANDS.values():
        if ":" in one.task:
            assert callable(_found(one.task))
        else:
            assert 'if __name__ == "__main__":' in Path(find_spec(one.task).origin).read_text()
        # Who must say --config is shown which there are.
        assert one.schema is None or one.default_config or "cfgs/default" in recipes(one.program)
    assert '"egom2p = egom2p.__main__:main"' in (ROOT / "setup.py").read_text()


def test_a_misspelt_command_names_the_right_one(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tokenise"])
    assert ended.value.code == 2 and "did you mean tokenize?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "prepare" in capsys.readouterr().out
