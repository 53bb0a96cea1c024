"""Every shipped YAML says what it is, and the command it names is one the program accepts."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from egom2p.config import load_config
from egom2p.training.tasks.pretrain_task import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "cfgs" / "default").rglob("*.yaml"))
FRAGMENTS = ("models/size", "data/ego/main", "alphas_mixture/main", "tokenization/network", "tokenization/losses")
FRAGMENTS += ("evaluation/shared", "anytoany/templates", "anytoany/download")
RECIPE = "default/egom2p/models/main/ego-b_mod4_500b_clariden_2048_camcv_depthdenoise.yaml"


def header(file: Path) -> str:
    lines = file.read_text().splitlines()
    return "\n".join(line[1:].strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])


def command(file: Path) -> list[str] | None:
    """Words of the command in the header, without what starts python."""
    found = re.search(r"^Command:\s*((?:.*\\\n)*.*)$", header(file), re.MULTILINE)
    if found is None:
        return None
    words = shlex.split(re.sub(r"<[^>]*>", "given", found.group(1)).replace("\\\n", " "))
    programs = [i for i, word in enumerate(words) if word.endswith(".py") or word == "-m"]
    return words[programs[0] :] if programs else None  # a target of the Makefile


def entry_point(words: list[str]) -> tuple[type, str | None, list[str]]:
    """Schema and default config that the named program hands to `run_main`, and the arguments it gets."""
    is_module = words[0] == "-m"
    path = ROOT / (words[1].replace(".", "/") + ".py") if is_module else ROOT / words[0]
    tree = ast.parse(path.read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_main"
    )
    name = call.args[0].id
    defaults = [word.value.value for word in call.keywords if word.arg == "default_config"]
    imported = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    schema = getattr(importlib.import_module(imported.get(name, words[1])), name)
    return schema, defaults[0] if defaults else None, words[2 if is_module else 1 :]


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
        position = arguments.index("--config")
        config = arguments[position + 1]
        del arguments[position : position + 2]
        assert (ROOT / config).resolve() == file.resolve()
    load_config(schema, ROOT / config if (ROOT / config).is_file() else config, arguments)


def test_the_released_recipe_has_the_published_numbers():
    config = load_config(PretrainConfig, RECIPE, ["data.tokens_root=tokens", "tokenizers_root=tokenizers"])
    assert sum(dataset.weight for dataset in config.data.datasets.values()) == pytest.approx(1, abs=1e-3)
    for name, dataset in config.data.datasets.items():
        assert dataset.num_slots == 4096 and dataset.policy == "clamp", name
        assert dataset.alphas == config.data.datasets["egoexo4d"].alphas
        assert dataset.shards.startswith("tokens/train/[")
    length = config.training.length()
    rate = config.training.learning_rate(length, world_size=256)
    slots_per_step = 256 * 4 * 4096
    assert rate.peak == pytest.approx(4e-4)
    assert length.unit == "slots" and length.total / slots_per_step == pytest.approx(119209, abs=1)
    assert length.warmup / slots_per_step == pytest.approx(2384, abs=1)
    assert config.model.mlp_dim == 2048 and config.model.encoder_depth == config.model.decoder_depth == 12
