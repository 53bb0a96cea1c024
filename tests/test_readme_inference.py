"""The commands of README_INFERENCE.md are ones the programs accept, and its pictures are there."""

import re

import pytest
from readme_commands import ROOT, commands_of, config_and_overrides

from egom2p.config import load_config
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.generation.generation import GenerationConfig
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.viewing.rerun_folders import RerunConfig

TEXT = (ROOT / "README_INFERENCE.md").read_text()
PROGRAMS = {
    "generate.py": (GenerationConfig, "default/egom2p/generation/any2any.yaml"),
    "run_evaluation.py": (EvaluationConfig, "default/egom2p/evaluation/quickstart.yaml"),
    "run_training_egom2p.py": (PretrainConfig, None),
    "egom2p.viewing.rerun_folders": (RerunConfig, "default/egom2p/generation/rerun.yaml"),
}


@pytest.mark.parametrize("words", commands_of(TEXT), ids=lambda words: " ".join(words)[:70])
def test_command(words):
    program = next((word for word in words if word in PROGRAMS), None)
    if program is None:
        assert words[0] in ("pip", "rerun"), words
        return
    schema, default = PROGRAMS[program]
    load_config(schema, *config_and_overrides(words[words.index(program) + 1 :], default))


def test_pictures():
    pictures = re.findall(r"\]\((docs/pictures/[^)]+)\)", TEXT)
    assert len(pictures) > 10
    assert [name for name in pictures if not (ROOT / name).is_file()] == []
