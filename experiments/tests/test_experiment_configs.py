"""Every YAML of the experiments says what it is, and the command it names is one the program accepts."""

from pathlib import Path

import pytest
from readme_commands import ROOT, command, config_and_overrides, entry_point, header

from egom2p.config import load_config

EXPERIMENTS = ROOT / "experiments"
CONFIGS = sorted(EXPERIMENTS.rglob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(EXPERIMENTS)))
def test_the_command_in_the_header_is_accepted(file: Path):
    for word in ("Purpose:", "Command:", "Hardware:", "Time:"):
        assert word in header(file), f"{file}: the header has no {word}"
    assert "Expected" in header(file) or "Result" in header(file)
    schema, default, arguments = entry_point(command(file))
    config, overrides = config_and_overrides(arguments, default)
    assert (ROOT / config).resolve() == file.resolve()
    load_config(schema, ROOT / config, overrides)


def test_the_page_names_every_study():
    text = (EXPERIMENTS / "README.md").read_text()
    studies = {file.parent.name for file in CONFIGS}
    assert len(studies) > 5 and all(f"`{study}/`" in text for study in studies)
