"""Who may import whom, and where the heavy packages live."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "egom2p"

# Rooms in layers; a room may import its own layer's left neighbours only where no bar stands between them.
MAY_IMPORT = {
    "contracts": set(),
    "geometry": {"contracts"},
    "config": {"contracts"},
    "storage": {"contracts"},
    "jobs": {"contracts", "storage"},
    "layers": {"contracts", "config"},
}
_FOUNDATION = {"contracts", "geometry", "config", "layers", "storage", "jobs"}
MAY_IMPORT |= {room: _FOUNDATION for room in ("tokenizers", "data", "models", "metrics")}
_MIDDLE = _FOUNDATION | {"tokenizers", "data", "models", "metrics"}
MAY_IMPORT |= {room: _MIDDLE for room in ("generation", "anytoany")}
_UPPER = _MIDDLE | {"generation", "anytoany"}
MAY_IMPORT |= {room: _UPPER for room in ("evaluation", "training")}
MAY_IMPORT["pipelines"] = _UPPER | {"evaluation", "training"}
MAY_IMPORT["viewing"] = _UPPER | {"evaluation", "training", "pipelines"}

HOME = {
    "hydra": "config",
    "omegaconf": "config",
    "boto3": "storage",
    "botocore": "storage",
    "huggingface_hub": "storage",
    "decord": "data",
    "av": "data",
    "torchcodec": "data",
    "trimesh": "data",
    "cv2": "tokenizers",
    "wandb": "training",
    "rerun": "viewing",
    "matplotlib": "viewing",
    "transformers": "anytoany",
    "peft": "layers",
    "ray": "jobs",
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"setup"}


def _imported(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(), filename=str(path))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path):
    room = path.relative_to(PACKAGE).parts[0]
    if room.endswith(".py"):
        return  # the package's own front door
    assert room in MAY_IMPORT, f"{path} lies in a room the design does not know"
    for name in _imported(path):
        parts = name.split(".")
        if parts[0] == "egom2p" and len(parts) > 1:
            assert parts[1] == room or parts[1] in MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {name}"
        assert HOME.get(parts[0], room) == room, f"{parts[0]} lives in {HOME.get(parts[0])}, not in {room}"
        assert parts[0] not in SCRIPTS, f"{path.relative_to(ROOT)} imports the script {name}"


def test_nothing_needs_the_experiments():
    """They import the product, never the reverse; nor does anything that is installed hold them."""
    others = [*FILES, *ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert not [path for path in others for name in _imported(path) if name.split(".")[0] == "experiments"]
    assert not [path for path in ROOT.glob("*.mk") if "experiments" in path.read_text()]
    assert 'include=["egom2p", "egom2p.*"]' in (ROOT / "setup.py").read_text()


def test_scripts_only_parse_and_call():
    for name in SCRIPTS:
        lines = (ROOT / f"{name}.py").read_text().splitlines()
        assert len(lines) <= 60, f"{name}.py has {len(lines)} lines; an idea in it belongs into the package"


def test_no_room_without_a_name():
    nameless = {"utils", "misc", "common", "helpers"}
    assert not [path for path in FILES if path.stem in nameless or set(path.parts) & nameless]


def test_help_does_not_wait_for_packages_that_only_work_needs():
    """Each of these takes seconds to import; where they are used they are imported inside the function."""
    slow = {"timm", "torchvision", "torch._dynamo", "vector_quantize_pytorch", "wandb", "boto3", "transformers", "ray"}
    program = f"import sys\nfor name in {sorted(SCRIPTS)}: __import__(name)\nprint(sorted({slow!r} & set(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
