"""Bad input at the command line: one message that names file, found and wanted, exit code 2, nothing written.

The scripts run in this process, as `python run_*.py ...` would run them.
"""

import json
import re
import runpy
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import SIZE, make_tiny_world

from egom2p.data.clips.video_files import write_video
from egom2p.geometry import write_tum

_REPO = Path(__file__).resolve().parents[1]
_FOLDERS = ("cam", "depth", "gaze", "rgb")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("world"), num_train=3, num_val=2)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Run a script with arguments; it must end with exit code 2 and one message, which is returned."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            if script.endswith(".py"):
                runpy.run_path(str(_REPO / script), run_name="__main__")
            else:
                sys.modules.pop(script, None)  # runpy warns of a module that is loaded already
                runpy.run_module(script, run_name="__main__")
        message = capsys.readouterr().err
        assert ended.value.code == 2, message
        assert message.count("error: ") == 1 and "Traceback" not in message
        return message

    return run


def _recording(folder: Path, *, num_frames: int = 60, suffix: str = ".mp4") -> Path:
    folder.mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (num_frames, 32, 32, 3), dtype=np.uint8)
    write_video(folder / f"video{suffix}", frames, 30)
    write_tum(folder / "trajectory.txt", np.arange(num_frames) / 30, np.tile(np.eye(4), (num_frames, 1, 1)))
    return folder


def _prepare(root: Path, output: Path, *more: str) -> tuple[str, ...]:
    config = "cfgs/default/data_preparation/plain_folder.yaml"
    sizes = (f"clip.height={SIZE}", f"clip.width={SIZE}", "num_workers=0")
    return (
        "run_prepare_data.py",
        "--config",
        config,
        f"source.root={root}",
        f"output={output}",
        "dataset=x",
        *sizes,
    ) + more


def _tokenize(world: Path, clips: Path, output: Path, *more: str) -> tuple[str, ...]:
    roots = (f"clips={clips}", f"output={output}", f"tokenizers_root={world / 'tokenizers'}")
    folders = [f"tokenizers.tok_{folder}={folder}" for folder in _FOLDERS]
    return ("run_tokenize_data.py", "--config", "cfgs/default/tokenize/clips.yaml", *roots, *folders, *more)


def _pretrain(world: Path, tokens: Path, output: Path, *more: str) -> tuple[str, ...]:
    shards = f"{tokens}/[rgb,depth,gaze,cam]/tiny/shard-*.tar"
    overrides = [f"data.datasets.world.shards={shards}", f"data.validation.world.shards={shards}"]
    overrides += [f"tokenizers_root={world / 'tokenizers'}", *(f"tokenizers.tok_{name}={name}" for name in _FOLDERS)]
    overrides += [f"output_dir={output}", "training.num_steps=1", "training.device=cpu", "training.wandb.mode=disabled"]
    return ("run_training_egom2p.py", "--config", "cfgs/default/egom2p/models/main/quickstart.yaml", *overrides, *more)


def _generate(world: Path, source: str | Path, output: Path, *more: str) -> tuple[str, ...]:
    job = (f"checkpoint={world / 'model'}", f"input={source}", f"output={output}", "device=cpu")
    return ("generate.py", *job, "targets=[depth]", *more)


def _without_key(path: Path, key: str) -> None:
    """Take one clip out of a tar."""
    with tarfile.open(path) as old, tarfile.open(path.with_suffix(".new"), "w") as new:
        for member in old:
            if not member.name.startswith(key):
                new.addfile(member, old.extractfile(member))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_truncated_video(world, fails, tmp_path, suffix):
    video = _recording(tmp_path / "in" / "bad", suffix=suffix) / f"video{suffix}"
    _recording(tmp_path / "in" / "good")
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    found = rf"{re.escape(str(video))}: .*found \d+ (complete )?frames, wanted"
    assert re.search(found, fails(*_prepare(tmp_path / "in", tmp_path / "out")))
    assert re.search(found, fails(*_generate(world, video, tmp_path / "out")))
    assert re.search(found, fails("egom2p.pipelines.convert_samples", video, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_trajectory_with_nan(fails, tmp_path):
    path = _recording(tmp_path / "in" / "a") / "trajectory.txt"
    lines = path.read_text().splitlines()
    lines[20] = lines[20].replace(" 0.0 ", " nan ", 1)
    path.write_text("\n".join(lines))
    message = fails(*_prepare(tmp_path / "in", tmp_path / "out"))
    assert f"{path}, line 21: found" in message and "nan" in message and "wanted finite numbers" in message
    assert not (tmp_path / "out").exists()


def test_a_recording_shorter_than_a_clip(world, fails, tmp_path):
    short = _recording(tmp_path / "in" / "short", num_frames=20)
    message = fails(*_prepare(tmp_path / "in", tmp_path / "out"))
    assert f"{short}: found camera 0.000-0.650 s, rgb 0.000-0.650 s; wanted 2 s" in message
    assert "skip_short=true" in message and not (tmp_path / "out").exists()
    assert "wanted 2 s" in fails(*_generate(world, short / "video.mp4", tmp_path / "out"))


def test_an_unknown_config_key(world, fails, tmp_path):
    message = fails(*_prepare(tmp_path, tmp_path / "out", "clip.hight=3"))
    assert "unknown key `clip.hight`; did you mean `clip.height`?" in message
    message = fails(*_pretrain(world, tmp_path, tmp_path / "out", "training.nun_steps=3"))
    assert "did you mean `training.num_steps`?" in message
    (tmp_path / "mine.yaml").write_text("source: {kind: plain_folder, roots: here}\nclip: {height: 8, width: 8}\n")
    message = fails("run_prepare_data.py", "--config", tmp_path / "mine.yaml", "output=out", "dataset=x")
    assert "mine.yaml: missing key `source.root`" in message
    assert "unknown key `source.roots`; did you mean `source.root`?" in message


def test_a_tar_with_a_missing_key(world, fails, tmp_path):
    shutil.copytree(world / "clips" / "train", tmp_path / "clips")
    bad = tmp_path / "clips" / "gaze" / "tiny" / "shard-000000.tar"
    _without_key(bad, "clip_001")
    message = fails(*_tokenize(world, tmp_path / "clips", tmp_path / "out"))
    assert f"{bad}: clip clip_001 has no gaze (1 missing)" in message
    shutil.copytree(world / "tokens" / "train", tmp_path / "tokens")
    bad = tmp_path / "tokens" / "depth" / "tiny" / "shard-000000.tar"
    _without_key(bad, "clip_002")
    for more in ("data.in_memory=true", "data.in_memory=false"):
        message = fails(*_pretrain(world, tmp_path / "tokens", tmp_path / "out", more))
        assert message.count(f"{bad}: clip clip_002 has no depth (1 missing)") == 1
    message = fails(*_generate(world, f"{tmp_path}/tokens/[rgb,depth]/tiny/shard-*.tar", tmp_path / "out"))
    assert "clip clip_002 has no depth" in message
    assert not (tmp_path / "out").exists()


def test_a_modality_without_tokenizer(world, fails, tmp_path):
    clips, out = world / "clips" / "train", tmp_path / "out"
    message = fails(*_tokenize(world, clips, out, "tokenizers.tok_depth=deep"))
    assert f"tokenizer of tok_depth: {world / 'tokenizers' / 'deep'} has no tokenizer.json" in message
    assert "['cam', 'depth', 'gaze', 'rgb']" in message
    message = fails(*_tokenize(world, clips, out, "modalities=[tok_rgb,tok_smell]"))
    assert "['tok_smell'] have no tokenizer; tokenizers are given for ['tok_cam'" in message
    message = fails(*_pretrain(world, world / "tokens" / "train", out, "~tokenizers.tok_gaze"))
    assert "modality tok_gaze of the data has no tokenizer; `tokenizers` names ['tok_cam', 'tok_depth'" in message
    shutil.copytree(world / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["tokenizers"] = {
        name: str(world / "tokenizers" / name.removeprefix("tok_")) for name in ("tok_rgb", "tok_cam")
    }
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    message = fails(*_generate(tmp_path, clips, out, "conditions=[rgb]"))
    assert "modality tok_depth has no tokenizer; model.json names tokenizers for ['tok_cam', 'tok_rgb']" in message
    assert not out.exists()


def test_a_shard_made_by_another_tokenizer(world, fails, tmp_path):
    shutil.copytree(world / "tokens" / "train", tmp_path / "tokens")
    path = tmp_path / "tokens" / "depth" / "tiny" / "card.json"
    card = json.loads(path.read_text())
    wanted, card["tokenizer_fingerprint"] = card["tokenizer_fingerprint"], "sha256:0123456789abcdef"
    path.write_text(json.dumps(card))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").rglob("*.tar")}
    said = f"made by tokenizer sha256:0123456789abcdef, but tokenizer {wanted} is expected"
    out = tmp_path / "out"
    message = fails(*_pretrain(world, tmp_path / "tokens", out))
    assert said in message and f"{tmp_path}/tokens/[rgb,depth,gaze,cam]/tiny/shard-*.tar" in message
    message = fails(*_tokenize(world, world / "clips" / "train", tmp_path / "tokens"))
    assert said in message and str(path.parent) in message
    pattern = f"{tmp_path}/tokens/[depth]/tiny/shard-*.tar"
    message = fails(*_generate(world, pattern, out, "targets=[rgb]"))
    assert said in message and pattern in message
    assert not out.exists() and before == {file: file.stat().st_mtime_ns for file in before}


def test_an_option_that_a_format_does_not_have(fails, tmp_path):
    video = _recording(tmp_path / "in") / "video.mp4"
    message = fails("egom2p.pipelines.convert_samples", video, tmp_path / "out", "--rate-hz", "30")
    assert f"the format of {video} does not take ['rate_hz']" in message and not (tmp_path / "out").exists()
