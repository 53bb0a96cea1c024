"""The commands of README_TRAINING.md are ones the programs accept, and the files it names exist."""

import re
import shlex
from pathlib import Path

import pytest

from egom2p.config import load_config
from egom2p.models.convert_reference import ConvertModelConfig
from egom2p.tokenizers.convert_reference import ConvertTokenizerConfig
from egom2p.training.convert_config import ConvertConfigConfig
from egom2p.training.pretrain_task import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README_TRAINING.md").read_text()
PROGRAMS = {
    "run_training_egom2p.py": (PretrainConfig, None),
    "egom2p.models.convert_reference": (ConvertModelConfig, "default/egom2p/convert/released.yaml"),
    "egom2p.tokenizers.convert_reference": (ConvertTokenizerConfig, None),
    "egom2p.training.convert_config": (ConvertConfigConfig, "default/egom2p/convert/config.yaml"),
}


def commands() -> list[list[str]]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(re.sub(r"<[^>]*>", "given", line)) for line in blocks.splitlines() if line.strip()]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_command(words):
    program = next((word for word in words if word in PROGRAMS), None)
    if program is None:
        named = [word for word in words if "/" in word and word.endswith((".py", ".slurm"))]
        assert named and all((ROOT / word).is_file() for word in named)
        return
    schema, config = PROGRAMS[program]
    arguments = words[words.index(program) + 1 :]
    if "--config" in arguments:
        position = arguments.index("--config")
        config = ROOT / arguments[position + 1]
        del arguments[position : position + 2]
    # Of a sweep, the first values.
    overrides = [re.sub(r"=([^,\[{]+),.*", r"=\1", word) for word in arguments if "=" in word]
    load_config(schema, config, overrides)


def test_files_exist():
    linked = re.findall(r"\]\(([^)#]+)\)", TEXT)
    named = re.findall(r"`((?:egom2p|cfgs|benchmarks|train_slurm_script)/[\w./-]+)`", TEXT)
    assert linked and named
    assert not [path for path in [*linked, *named] if not (ROOT / path).exists()]
