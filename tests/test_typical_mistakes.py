"""What a new user gets wrong in the first hour: each is one line that names it and what to say instead."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egom2p.config import run_main
from egom2p.config.command_line import foreseen
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.reader_choice import AnySource, open_reader
from egom2p.generation.generation import GenerationConfig, run_generation

ROOT = Path(__file__).resolve().parents[1]
ANY2ANY = "default/egom2p/generation/any2any.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_video("walk.mp4", np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), np.uint8), 8.0)
    Image.new("RGB", (32, 32)).save("photo.png")
    Path("empty").mkdir()
    Path("text.mp4").write_text("hello")
    Path("cut.mp4").write_bytes(Path("walk.mp4").read_bytes()[:200])
    return tmp_path


GENERATE = {
    "a video that is not there": (["input=nope.mp4"], "nope.mp4: no such video"),
    "the path alone": (["walk.mp4"], "'walk.mp4' is not of the form key=value; did you mean input=walk.mp4?"),
    "dashes before a key": (["--input", "walk.mp4"], "--input; keys are said without dashes: key=value"),
    "a key misspelt": (["inptu=walk.mp4"], "unknown key `inptu`; did you mean `input`?"),
    "a word in place of a list": (["input=walk.mp4", "targets=depth"], "say targets=[depth]"),
    "a target misspelt": (["input=walk.mp4", "targets=[dpeth]"], "no modality 'dpeth'; did you mean 'depth'?"),
    "a target misspelt in its settings": (["input=walk.mp4", "sampling.dpeth.top_p=0.5"], "did you mean 'depth'?"),
    "a word in place of a number": (["input=walk.mp4", "batch_size=many"], "`batch_size`: Input should be a valid int"),
    "a picture": (["input=photo.png"], "photo.png: is one picture; wanted a video, or a folder of pictures"),
    "an empty folder": (["input=empty"], "empty: is an empty folder; wanted videos, pictures, recordings"),
    "text called a video": (["input=text.mp4"], "text.mp4: not a readable video"),
    "half a video": (["input=cut.mp4"], "An mp4 without its index was cut short"),
    "nothing to start from": ([], "say what to start from: either input=<path> or source="),
    "no GPU": (["input=walk.mp4", "device=cuda"], "use device=auto or cpu"),
    "a model that is not there": (["input=walk.mp4", "checkpoint=out/of/sight"], "out/of/sight: no such folder"),
    "a config that is not there": (["--config", "cfgs/default/egom2p/generation/rgb2dpeth.yaml"], "rgb2depth.yaml"),
    "no config at all": (["--config", "photo.png"], "photo.png: a config is a .yaml file"),
}


@pytest.mark.parametrize("mistake", GENERATE)
def test_of_generate(here, mistake, capsys):
    words, wanted = GENERATE[mistake]
    if mistake == "no GPU" and __import__("torch").cuda.is_available():
        pytest.skip("a GPU is here")
    targets = [] if any(word.startswith("targets") for word in words) else ["targets=[depth]"]
    with pytest.raises(SystemExit) as ended:
        run_main(GenerationConfig, run_generation, default_config=ANY2ANY, arguments=[*words, *targets, "output=out"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and wanted in error
    assert [line for line in error.splitlines() if not line.startswith("(HYDRA_FULL_ERROR")][0].startswith("error: ")
    assert len(error.splitlines()) <= 2 and not Path("out", "manifest.json").exists()


@pytest.mark.parametrize(
    "root, wanted",
    [
        ("nowhere", "nowhere: no such folder of recordings"),
        ("walk.mp4", r"walk.mp4: is a file; wanted a folder of recordings or videos, such as \."),
        ("empty", r"empty: found \[\], wanted a folder of recordings, plain or in one of the formats"),
    ],
)
def test_of_prepare(here, root, wanted):
    with pytest.raises(ValueError, match=wanted):
        open_reader(AnySource(kind="any", root=root))


def test_a_folder_that_cannot_be_made_is_named_without_numbers(here):
    with pytest.raises(FileNotFoundError) as raised:
        Path("/proc/nothing/out").mkdir()
    assert foreseen(raised.value) == "/proc/nothing/out: No such file or directory"


def test_a_target_misspelt_names_the_nearest():
    asked = subprocess.run(["make", f"PYTHON={sys.executable}", "qickstart"], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode and "no target qickstart, did you mean quickstart" in asked.stderr


def test_torchrun_ends_with_the_reason(here, monkeypatch, capsys):
    """Its own forty lines close with what stands in this file; the reason does not scroll away."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(here / "error.json"))
    with pytest.raises(SystemExit):
        run_main(GenerationConfig, run_generation, default_config=ANY2ANY, arguments=["inptu=x"])
    noted = json.loads((here / "error.json").read_text())
    assert noted["message"] == "error: unknown key `inptu`; did you mean `input`?" and isinstance(
        noted["timestamp"], int
    )
