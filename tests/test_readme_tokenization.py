"""The commands of README_TOKENIZATION.md are ones the programs accept, and its Python does what it says."""

import re
import shlex
from pathlib import Path

import pytest

from egom2p.config import load_config
from egom2p.pipelines.tokenization import TokenizeConfig
from egom2p.tokenizers.convert_reference import ConvertTokenizerConfig
from egom2p.tokenizers.push import PushConfig
from egom2p.training.tokenizer_task import TokenizerTrainingConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README_TOKENIZATION.md").read_text()
PROGRAMS = {
    "run_training_tokenizer.py": (TokenizerTrainingConfig, None),
    "run_tokenize_data.py": (TokenizeConfig, None),
    "egom2p.tokenizers.convert_reference": (ConvertTokenizerConfig, "default/tokenization/convert/cam_256.yaml"),
    "egom2p.tokenizers.push": (PushConfig, "default/tokenization/push.yaml"),
}


def commands() -> list[list[str]]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(re.sub(r"<[^>]*>", "given", line)) for line in blocks.splitlines() if line.strip()]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:70])
def test_command(words):
    program = next((word for word in words if word in PROGRAMS), None)
    if program is None:
        assert any((ROOT / word).is_file() for word in words) or words[1] == "-m", words
        return
    schema, config = PROGRAMS[program]
    arguments = words[words.index(program) + 1 :]
    if "--config" in arguments:
        position = arguments.index("--config")
        config = ROOT / arguments[position + 1]
        del arguments[position : position + 2]
    load_config(schema, config, arguments)


def test_settings_named_in_the_text_exist():
    fields = set()
    for schema in (TokenizeConfig, TokenizerTrainingConfig):
        fields |= set(schema.__dataclass_fields__)
    for name in ("bad_clips", "num_check_clips", "num_workers", "memory_gb", "dtype", "compile", "layout", "init_from"):
        assert f"`{name}" in TEXT and name in fields


def test_every_tokenization_config_is_named_or_reached():
    """A config that no page mentions is one nobody finds."""
    for file in sorted((ROOT / "cfgs/default/tokenization").rglob("*.yaml")):
        if file.parent.name in ("network", "losses", "text") or file.stem in ("world_small", "push"):
            continue
        if file.stem.endswith("world_small"):
            continue
        assert file.name in TEXT, file
