"""Every YAML says what it is, and the command it names is one the program accepts."""

from pathlib import Path

import pytest
from readme_commands import command, config_and_overrides, entry_point, header

from egom2p.config import load_config
from egom2p.training.tasks.pretrain_config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "cfgs" / "default").rglob("*.yaml"))
FRAGMENTS = ("models/size", "data/ego/main", "alphas_mixture/main", "tokenization/network", "tokenization/losses")
FRAGMENTS += ("evaluation/shared", "anytoany/templates", "anytoany/download")
RECIPE = "default/egom2p/models/main/ego-b_mod4_500b_clariden_2048_camcv_depthdenoise.yaml"


def named(files):
    return pytest.mark.parametrize("file", files, ids=lambda file: str(file.relative_to(ROOT / "cfgs/default")))


@named(CONFIGS)
def test_header(file):
    text = header(file)
    if any(part in str(file.parent) for part in FRAGMENTS):
        assert text
        return
    for word in ("Purpose:", "Command:", "Hardware:", "Time:"):
        assert word in text, f"{file}: the header has no {word}"
    assert "Expected" in text or "Result" in text, f"{file}: the header does not say what comes out"


@named([file for file in CONFIGS if command(file)])
def test_the_command_in_the_header_is_accepted(file):
    schema, config, arguments = entry_point(command(file))
    if "--config" in arguments:
        config, arguments = config_and_overrides(arguments, config)
        assert config.resolve() == file.resolve()
    load_config(schema, config, arguments)


def test_the_released_recipe_has_the_published_numbers():
    config = load_config(PretrainConfig, RECIPE, ["data.tokens_root=tokens", "tokenizers_root=tokenizers"])
    assert sum(dataset.weight for dataset in config.data.datasets.values()) == pytest.approx(1, abs=1e-3)
    for name, dataset in config.data.datasets.items():
        assert dataset.token_budget == 4096 and dataset.policy == "clamp", name
        assert dataset.alphas == config.data.datasets["egoexo4d"].alphas
        assert dataset.shards.startswith("tokens/train/[")
    length = config.training.length()
    rate = config.training.learning_rate(length, world_size=256)
    budget_per_step = 256 * 4 * 4096
    assert rate.peak == pytest.approx(4e-4)
    assert length.unit == "token_budget" and length.total / budget_per_step == pytest.approx(119209, abs=1)
    assert length.warmup / budget_per_step == pytest.approx(2384, abs=1)
    assert config.model.mlp_dim == 2048 and config.model.encoder_depth == config.model.decoder_depth == 12
