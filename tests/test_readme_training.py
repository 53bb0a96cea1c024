"""The commands of README_TRAINING.md are ones the programs accept, and the files it names exist."""

import re
from pathlib import Path

import pytest
from readme_commands import commands_of, config_and_overrides

from egom2p.config import load_config
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.evaluation.probe import ProbeConfig
from egom2p.models.convert_model import ConvertModelConfig
from egom2p.pipelines.convert_config import ConvertConfigConfig
from egom2p.pipelines.tokenization import TokenizeConfig
from egom2p.tokenizers.convert_tokenizer import ConvertTokenizerConfig
from egom2p.training.planning.plan import plan_pretraining
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.text_tokenizer import TextTokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig

ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "cfgs/default/egom2p/models/main/ego-b_mod4_500b_clariden_2048_camcv_depthdenoise.yaml"
TEXT = (ROOT / "README_TRAINING.md").read_text()
PROGRAMS = {
    "run_training_egom2p.py": (PretrainConfig, None),
    "run_training_tokenizer.py": (TokenizerTrainingConfig, None),
    "run_tokenize_data.py": (TokenizeConfig, "default/tokenize/clips.yaml"),
    "run_evaluation.py": (EvaluationConfig, "default/egom2p/evaluation/quickstart.yaml"),
    "egom2p.training.tasks.text_tokenizer": (TextTokenizerTrainingConfig, "default/tokenization/text/captions.yaml"),
    "egom2p.evaluation.probe": (ProbeConfig, "default/egom2p/probe/world_small.yaml"),
    "egom2p.models.convert_model": (ConvertModelConfig, "default/egom2p/convert/released.yaml"),
    "egom2p.tokenizers.convert_tokenizer": (ConvertTokenizerConfig, None),
    "egom2p.pipelines.convert_config": (ConvertConfigConfig, "default/egom2p/convert/config.yaml"),
}


@pytest.mark.parametrize("words", commands_of(TEXT), ids=lambda words: " ".join(words)[:60])
def test_command(words):
    program = next((word for word in words if word in PROGRAMS), None)
    if words[0] == "make":
        targets = "".join(file.read_text() for file in (ROOT / "Makefile", *ROOT.glob("*.mk")))
        assert re.search(rf"^{words[1]}:", targets, re.MULTILINE)
        return
    if program is None:
        words = [word.rstrip(";") for word in words]
        named = [word for word in words if word.endswith((".py", ".slurm"))]
        assert named and all((ROOT / word).is_file() for word in named)
        return
    schema, config = PROGRAMS[program]
    config, arguments = config_and_overrides(words[words.index(program) + 1 :], config)
    # Of a sweep, the first values.
    overrides = [re.sub(r"=([^,\[{]+),.*", r"=\1", word) for word in arguments if "=" in word]
    load_config(schema, config, overrides)


def test_options_named_in_the_text():
    """Every `key=value` in running text is a key of the pretraining, with that value."""
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    named = [word.strip("'") for word in re.findall(r"`('?[a-z_.]+=[^`]+)`", prose)]
    assert len(named) > 15
    overrides = [word for word in named if "<" not in word and not word.startswith("output_dir=s3")]
    for text in overrides:
        words = text.split() if "{" not in text else [text]
        extra = ["finetune=somewhere"] if text.startswith(("lora", "finetune_policy")) else []
        extra += ["training.parallel.kind=fsdp"] if "shard_size" in text else []
        load_config(PretrainConfig, RELEASED, [*words, *extra, "training.blr=null", "training.lr=1e-4"])


def test_a_further_data_set_enters_the_released_mixture(tmp_path):
    entry = next(block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "mine:" in block)
    main = (ROOT / RELEASED).read_text()
    (tmp_path / "mine.yaml").write_text(f"{main}\n{entry}")
    config = load_config(PretrainConfig, tmp_path / "mine.yaml", [])
    assert config.data.datasets["mine"].alphas == config.data.datasets["egogen"].alphas
    assert len(config.data.datasets) == 9


def test_the_memory_table_is_the_computed_one():
    plan = plan_pretraining(load_config(PretrainConfig, RELEASED, ["plan.num_gpus=8"]))
    for size, by_device in plan.memory.items():
        if size != "this run":
            cells = [" / ".join(str(count) for count in fits.values()) for fits in by_device.values()]
            assert f"| {size} | {' | '.join(cells)} |" in TEXT


def test_files_exist():
    linked = re.findall(r"\]\(([^)#]+)\)", TEXT)
    named = re.findall(r"`((?:egom2p|cfgs|benchmarks|train_slurm_script)/[\w./-]+)`", TEXT)
    assert linked and named
    assert not [path for path in [*linked, *named] if not (ROOT / path).exists()]
