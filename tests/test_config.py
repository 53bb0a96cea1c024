"""The command line: composition, overrides, suggestions, exit codes, Hydra's own flags, several ranks."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from egom2p.__main__ import COMMANDS
from egom2p.anytoany.model import AnyToAnyConfig
from egom2p.config import ConfigError, cfgs_root, from_plain, load_config, run_main, save_config, strict, to_plain
from egom2p.config.command_line import recipes
from egom2p.config.composition import find_config_file, quoted
from egom2p.config.key_meanings import described_keys, key_lines
from egom2p.config.schema import all_keys
from egom2p.pipelines.prepare import PrepareConfig
from egom2p.training.tasks.pretrain_config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]


@strict
class OptimConfig:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


@strict
class SetConfig:
    path: str
    weight: float = 1.0


@strict
class JobConfig:
    seed: int
    sets: dict[str, SetConfig]
    output_dir: Path = Path("out")
    optim: OptimConfig = OptimConfig()
    extra: OptimConfig | None = None
    targets: list[str] | None = None


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "fast.yaml").write_text("lr: 0.5\n")
    (tmp_path / "part" / "slow.yaml").write_text("lr: 0.1\n")
    base = "seed: 1\nsets:\n  home: {path: 'a,b'}\n"
    (tmp_path / "base.yaml").write_text(f"defaults:\n  - part@optim: fast\n  - _self_\n{base}")
    file = tmp_path / "child.yaml"
    file.write_text("defaults:\n  - base\n  - _self_\nseed: 2\n")
    return file


def test_files_inherit_and_overrides_win(config_file):
    config = load_config(JobConfig, config_file, ["sets.home.weight=2", "targets=[rgb,cam]", "optim.betas=[0.5,0.6]"])
    assert (config.seed, config.optim.lr, config.optim.betas) == (2, 0.5, (0.5, 0.6))
    assert config.sets["home"] == SetConfig(path="a,b", weight=2.0)
    assert config.targets == ["rgb", "cam"] and config.output_dir == Path("out")


def test_a_pattern_with_brackets_needs_no_quotes(config_file):
    pattern = "tokens/[rgb,cam]/world/shard-{000..003}.tar"
    for given in (pattern, f"'{pattern}'", f'"{pattern}"'):
        assert load_config(JobConfig, config_file, [f"sets.home.path={given}"]).sets["home"].path == pattern


def test_keys_that_no_yaml_names_can_be_set(config_file):
    assert load_config(JobConfig, config_file, ["extra.lr=3", "sets.work.path=x"]).extra.lr == 3
    assert load_config(JobConfig, config_file, ["extra={lr: 4}"]).extra.lr == 4


def test_a_set_of_names_that_is_typed_replaces_that_of_the_file(config_file):
    before = load_config(JobConfig, config_file, []).sets
    assert "home" in before
    typed = load_config(JobConfig, config_file, ["sets={mine: {path: x}}"])
    assert list(typed.sets) == ["mine"] and typed.sets["mine"].path == "x"
    added = load_config(JobConfig, config_file, ["sets.mine.path=x"])
    assert list(added.sets) == [*before, "mine"]
    first, second = "sets={mine: {path: x}}", "sets.mine.path=y"
    assert load_config(JobConfig, config_file, [first, second]).sets["mine"].path == "y"


def test_keys_that_a_yaml_names_can_be_set_too(config_file):
    assert load_config(JobConfig, config_file, ["part@optim=slow"]).optim.lr == 0.1
    assert load_config(JobConfig, config_file, ["sets.home.path='x/[rgb,gaze]/s-{0..2}.tar'"]).sets["home"].path


def test_own_files_are_reached_from_anywhere(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("defaults:\n  - /default/egom2p/models/size@extra: tiny\n  - _self_\n")
    with pytest.raises(ConfigError, match="unknown key `extra.dim`"):
        load_config(JobConfig, file, ["seed=1"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["sed=3"], "unknown key `sed`; did you mean `seed`"),
        (["optim.lrr=3"], "unknown key `optim.lrr`; did you mean `optim.lr`"),
        (["lr=3"], "unknown key `lr`; did you mean `optim.lr`"),
        (["sets.home.wait=3"], "did you mean `sets.home.weight`"),
        (["extra.beta=3"], "did you mean `extra.betas`"),
        (["seed=many"], "`seed`: .*valid integer.*'many'"),
        (["optim.lr=-1"], "`optim`: lr must be positive, got -1"),
        (["part@optim=medium"], "(?s)part/medium.*fast"),
        (["seed"], "not of the form key=value"),
        (["sets.work.weight=1"], "missing key `sets.work.path`"),
        (["seed=[1,"], "(?s)child.yaml.*no viable alternative"),
        (["seed=???"], "`seed` has no value; say seed="),
    ],
)
def test_mistakes_on_the_command_line_are_explained(config_file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(JobConfig, config_file, overrides)


def test_mistakes_in_a_file_are_explained(config_file):
    config_file.write_text("sed: 1\nsets: {home: {pth: x}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(JobConfig, config_file)
    for part in (str(config_file), "`seed`?", "`sets.home.path`?", "missing key `seed`"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="no config file nowhere.yaml"):
        load_config(JobConfig, "nowhere.yaml")


def test_own_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = cfgs_root() / "default/egom2p/generation/any2any.yaml"
    for name in ("default/egom2p/generation/any2any", "cfgs/default/egom2p/generation/any2any.yaml"):
        assert find_config_file(name) == wanted


def test_saved_configs_read_back(config_file, tmp_path):
    config = load_config(JobConfig, config_file, ["extra.lr=3"])
    save_config(config, tmp_path / "saved.yaml")
    save_config(config, tmp_path / "saved.json")
    assert load_config(JobConfig, tmp_path / "saved.yaml") == config
    assert from_plain(JobConfig, json.loads((tmp_path / "saved.json").read_text())) == config
    assert to_plain(config)["optim"]["betas"] == [0.9, 0.95]


def run(config_file, *arguments):
    seen = []
    run_main(JobConfig, seen.append, description="a test", arguments=["--config", str(config_file), *arguments])
    return seen


def test_the_task_receives_the_config(config_file):
    (config,) = run(config_file, "seed=7")
    assert config.seed == 7
    (config,) = run(config_file.with_suffix(""), "extra.lr=7", "seed=3")
    assert config.extra.lr == 7


def test_multirun_runs_every_combination(config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = run(config_file, "--multirun", "seed=3,4", "optim.lr=1,2", "output_dir=out-${seed}-${optim.lr}")
    assert [(config.seed, config.optim.lr) for config in configs] == [(3, 1), (3, 2), (4, 1), (4, 2)]


def test_runs_of_a_sweep_do_not_share_a_folder(config_file, tmp_path, monkeypatch, capsys):
    """The second would go on from the first. Nothing is begun, nor where a later combination is invalid."""
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["optim.lr=1,2"], "two runs of this sweep have the output_dir out"),
        (["optim.lr=1,-2", "output_dir=out-${optim.lr}"], "lr must be positive, got -2"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(config_file, "--multirun", *arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "defaults"], ["--help"], ["--cfg", "job", "--resolve"]])
def test_hydras_own_flags(config_file, flags, capsys):
    assert run(config_file, "seed=9", *flags) == []
    shown = capsys.readouterr().out
    if "defaults" not in flags:
        assert "seed: 9" in shown and "lr: 0.5" in shown
    if "--help" in flags:  # keys that no YAML names too
        assert "a test" in shown and "optim.betas = (0.9, 0.95)" in shown and "extra = null" in shown
        assert "sets.<name>.weight = 1.0" in shown and "seed = (must be given)" in shown


@pytest.mark.parametrize(
    "arguments",
    [["sed=1"], ["--multirun", "sed=1,2"], ["--cfg", "job", "sed=1"], ["--nonsense"]],
)
def test_mistakes_end_with_exit_code_2(config_file, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(config_file, *arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_invalid_config_is_not_shown_as_a_job(config_file, capsys):
    with pytest.raises(SystemExit) as ended:
        run(config_file, "--cfg", "job", "optim.lr=-1")
    shown = capsys.readouterr()
    assert ended.value.code == 2 and "lr must be positive, got -1" in shown.err and "lr: -1" not in shown.out


@pytest.mark.parametrize("flags", [[], ["--multirun"]])
def test_errors_of_the_task(config_file, flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail(error):
        def task(config):
            raise error

        run_main(JobConfig, task, arguments=["--config", str(config_file), *flags])

    with pytest.raises(SystemExit) as ended:
        fail(ValueError("video.mp4: found nothing, wanted frames"))
    assert ended.value.code == 2 and "video.mp4: found nothing" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        fail(RuntimeError("a bug"))


def test_an_interruption_is_one_word(config_file, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_main(JobConfig, interrupted, arguments=["--config", str(config_file)])
    assert ended.value.code == 130 and capsys.readouterr().err.endswith("interrupted\n")


@pytest.mark.parametrize("text", ["a\\nb", "it's", "a\\'b", "end\\", "\\\\x'", "[a]{b}", "x\ny $ 100 %", ""])
def test_quoted_text_arrives_as_it_is(text):
    parsed = OverridesParser.create().parse_override(f"key={quoted(text)}").value()
    assert parsed == text


_TYPED = [
    "Müller/take (1).mp4",
    "a=b",
    "x,y",
    "it's",
    "walk{1}.mp4",
    "[a].mp4",
    "20241101",
    "1e5",
    "true",
    "日本 1",
    "a#b",
]
_TYPED += ["'half", 'say "x".mp4', "back\\slash\\", "a: b", " x", "$HOME", "100%", "a~b", "null.mp4", "(1)", "-1", "!x"]


@pytest.mark.parametrize("text", _TYPED)
def test_text_arrives_as_it_is_typed(config_file, text):
    config = load_config(JobConfig, config_file, [f"sets.a.path={text}", f"output_dir={text}"])
    assert config.sets["a"].path == text and config.output_dir == Path(text)


def test_what_hydra_reads_is_still_read(config_file, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(
        JobConfig,
        config_file,
        ["sets.a.path=~/x", "output_dir='a b'", "targets=[Miller,'x,y']", "seed=3", "extra=null", "sets.b={path: 7x}"],
    )
    assert config.sets["a"].path == f"{tmp_path}/x" and config.output_dir == Path("a b")
    assert config.targets == ["Miller", "x,y"] and config.sets["b"].path == "7x"
    assert load_config(JobConfig, config_file, ["seed=4", "sets.a.path=run_${seed}"]).sets["a"].path == "run_4"


def test_an_empty_path_and_a_word_for_a_list_are_told(config_file):
    for key in ("output_dir", "sets.a.path"):
        with pytest.raises(ConfigError, match=rf"`{key}` has no value; say {key}=\.\.\."):
            load_config(JobConfig, config_file, [f"{key}="])
    for path in ('{a: {path: ""}}', '{a: {path: x}, b: {path: ""}}'):  # in a file
        key = "b" if "b:" in path else "a"
        config_file.write_text(f"seed: 0\nsets: {path}\n")
        with pytest.raises(ConfigError, match=rf"`sets.{key}.path`: wanted a value, found ''"):
            load_config(JobConfig, config_file)
    with pytest.raises(ConfigError, match=r"`targets` is a list, found 'depth'; say targets=\[depth\]"):
        load_config(JobConfig, config_file, ["targets=depth"])


def test_no_config_and_default_config(config_file, capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(JobConfig, print, arguments=[])
    assert ended.value.code == 2 and "--config FILE" in capsys.readouterr().err
    for script in ("run_training_egom2p.py", "run_training_tokenizer.py", "run_training_anytoany.py"):
        assert "quickstart.yaml\n" in recipes(script) and "released" not in recipes("no_such_script.py")
    with pytest.raises(SystemExit) as ended:
        run_main(JobConfig, print, description="what it does", arguments=["--help"])
    assert ended.value.code == 0 and "what it does" in capsys.readouterr().out
    seen = []
    run_main(JobConfig, seen.append, default_config=str(config_file), arguments=["seed=5"])
    assert seen[0].seed == 5


def test_every_rank_composes_and_leaves_no_folders(config_file, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom egom2p.config import run_main, strict\n"
        "@strict\nclass C:\n    seed: int\n    sets: dict\n    optim: dict\n"
        "def task(config):\n    open(f'rank{os.environ[\"RANK\"]}-{config.seed}', 'w').close()\n"
        "run_main(C, task, default_config=None)\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533"]
    repository = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command += [str(script), "--config", str(config_file), "seed=6"]
    subprocess.run(command, cwd=work, check=True, env=environment, timeout=120)
    assert sorted(path.name for path in work.iterdir()) == ["rank0-6", "rank1-6"]


def schemas_of_scripts():
    """Root schema of every runnable script, read from its call of `run_main`."""
    files = [*ROOT.glob("*.py"), *(ROOT / "egom2p").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    for file in sorted(files):
        for name in re.findall(r"run_main\(\s*([A-Z]\w*)", file.read_text(encoding="utf-8")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield pytest.param(module, name, id=name)
    for name, command in COMMANDS.items():
        if command.schema:
            yield pytest.param(*command.schema.split(":"), id=name)


@pytest.mark.parametrize(("module", "name"), schemas_of_scripts())
def test_help_gives_every_key_default_and_meaning(module, name):
    schema = getattr(importlib.import_module(module), name)
    described = described_keys(schema)
    assert {one.key for one in described} >= set(all_keys(schema))
    assert not [one.key for one in described if not re.sub(r"\([^()]* \| [^()]*\)$", "", one.meaning)]
    assert all(one.default for one in described)
    # What is too wide for a terminal of 80 columns is one word.
    assert not [line for line in key_lines(schema, width=80) if len(line) > 80 and " " in line.strip()]


def test_help_says_what_the_schema_says():
    """From a docstring's table, from a comment behind or above a field, from a sentence, from the type."""
    said = {one.key: one for one in described_keys(PretrainConfig)}
    assert said["model.drop_path"].meaning.startswith("rate of stochastic depth")
    assert said["model.drop_path"].meaning.endswith("first")
    assert said["model.position_scale"].meaning == said["model.position_period"].meaning
    assert said["training.compile"].meaning.startswith("blocks: torch.compile of each")
    assert said["training.compile"].meaning.endswith("weights whole (false | blocks | auto)")
    assert said["training.optimizer.muon_lr_scale"].meaning.startswith("Muon's matrices learn at")
    assert said["training.optimizer"].meaning.startswith("AdamW for everything")
    assert (said["model.dim"].default, said["finetune"].default) == ("(must be given)", "null")
    clip = {one.key: one.meaning for one in described_keys(PrepareConfig)}
    assert clip["clip.span"].startswith("`common`: only where all streams") and "any" in clip["clip.span"]


def test_help_shows_the_defaults_of_this_place():
    """A schema inside another one may stand there with other defaults than its own."""
    said = {one.key: one.default for one in described_keys(AnyToAnyConfig)}
    assert (said["lora.rank"], said["lora.target_modules"]) == ("8", "('q_proj', 'v_proj')")
