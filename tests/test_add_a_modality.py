"""docs/ADD_A_MODALITY.md, block by block, as a user would run it; only the numbers are smaller."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ADD_A_MODALITY.md"
BLOCK = re.compile(r"^```(python|yaml|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Text of the page -> what the test says instead; each must be there.
SMALLER = {
    '(("train", 60), ("val", 12))': '(("train", 4), ("val", 2))',
    "np.arange(0, 12, 0.01)": "np.arange(0, 4.2, 0.01)",
    "source.world.num_rooms=50": "source.world.num_rooms=2 source.world.duration_s=2 num_workers=1",
    "num_steps: 600, warmup: 20, lr: 3.0e-3, batch_size: 32": "num_steps: 4, lr: 3.0e-3, batch_size: 4, device: cpu",
    "num_steps: 600, warmup: 20, lr: 2.0e-3, batch_size: 16, evaluate_every: 200": "num_steps: 4, lr: 0.01",
    "until: 50}": "until: 2}",
    "num_steps: 300, warmup: 20, lr: 1.0e-3, batch_size: 16": "num_steps: 4, lr: 1.0e-3, batch_size: 2, device: cpu",
}
FURTHER = {"run_evaluation.py": ["device=cpu", "progress=false"], "generate.py": ["device=cpu", "progress=false"]}


def blocks() -> list[tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    for words, fewer in SMALLER.items():
        assert text.count(words) == 1, words
        text = text.replace(words, fewer)
    return [(kind, content) for kind, content in BLOCK.findall(text)]


def run_command(line: str, monkeypatch) -> None:
    words = shlex.split(line)
    assert words[0] == "python", line
    program, arguments = (words[1], words[2:]) if words[1] != "-m" else (words[2], words[3:])
    monkeypatch.setattr(sys, "argv", [program, *arguments, *FURTHER.get(program, [])])
    if words[1] == "-m":
        runpy.run_module(program, run_name="__main__")
    else:
        runpy.run_path(str(ROOT / program), run_name="__main__")


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cfgs", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    for kind, content in blocks():
        if kind == "python":
            exec(compile(content, str(PAGE), "exec"), {})
        elif kind == "yaml":
            path = tmp_path / content.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        else:
            for line in content.splitlines():
                run_command(line, monkeypatch)

    card = json.loads((tmp_path / "outputs/imu/run/final/model.json").read_text())
    specs = {spec["name"]: spec for spec in card["modalities"]}
    assert sorted(specs) == ["tok_cam", "tok_depth", "tok_gaze", "tok_imu", "tok_rgb"]
    assert specs["tok_imu"]["quantity"] == "generic" and specs["tok_imu"]["grid"] == [15]
    results = json.loads((tmp_path / "outputs/imu/evaluation/results.json").read_text())
    cam2imu, imu2cam = results["tasks"]
    rows = {row["label"]: row for row in cam2imu["rows"]}
    assert rows["mean value"]["kind"] == "baseline" and rows["tokenizer round trip"]["values"]["rms_error"]["mean"] > 0
    assert cam2imu["token_losses"][0]["unigram_nats"] > 0 and imu2cam["quantity"] == "camera"
    page = (tmp_path / "outputs/imu/evaluation/index.html").read_text()
    assert "channel 2" in page and "imu. Band" in page, "lines of a generic track"
    generated = tmp_path / "outputs/imu/generated"
    assert "channel 2" in (generated / "index.html").read_text()
    tables = sorted(generated.rglob("imu.csv"))
    assert tables and tables[0].read_text().startswith("timestamps,channel_0,channel_1,channel_2,valid")


def test_the_page_names_what_exists():
    """Fast part: files and keys of the page are known, also where the slow test is not run."""
    for kind, content in blocks():
        if kind == "bash":
            for line in content.splitlines():
                words = shlex.split(line)
                program = f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1]
                assert (ROOT / program).is_file(), line
                configs = [word for word in words if word.startswith("cfgs/")]
                assert all((ROOT / config).is_file() for config in configs), line
