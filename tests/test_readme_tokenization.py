"""The commands of README_TOKENIZATION.md are ones the programs accept, and its Python does what it says."""

from pathlib import Path

import pytest
from readme_commands import commands_of, config_and_overrides

from egom2p.config import load_config
from egom2p.pipelines.tokenization import TokenizeConfig
from egom2p.tokenizers.convert_tokenizer import ConvertTokenizerConfig
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README_TOKENIZATION.md").read_text()
PROGRAMS = {
    "run_training_tokenizer.py": (TokenizerTrainingConfig, None),
    "run_tokenize_data.py": (TokenizeConfig, None),
    "egom2p.tokenizers.convert_tokenizer": (ConvertTokenizerConfig, "default/tokenization/convert/cam_256.yaml"),
}


@pytest.mark.parametrize("words", commands_of(TEXT), ids=lambda words: " ".join(words)[:70])
def test_command(words):
    program = next((word for word in words if word in PROGRAMS), None)
    if program is None:
        assert any((ROOT / word).is_file() for word in words) or words[1] == "-m", words
        return
    schema, config = PROGRAMS[program]
    config, arguments = config_and_overrides(words[words.index(program) + 1 :], config)
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
        if file.parent.name in ("network", "losses", "text") or file.stem in ("world_small",):
            continue
        if file.stem.endswith("world_small"):
            continue
        assert file.name in TEXT, file
