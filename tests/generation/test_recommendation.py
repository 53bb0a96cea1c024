"""What a checkpoint recommends, which pretrained one is taken, and that several samples cost little more than one."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import invented_clip, make_tiny_world

from egom2p.config import load_config
from egom2p.data.clips.clip_store import write_clips
from egom2p.data.clips.video_files import write_video
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.generation import generation
from egom2p.generation.checkpoints import PRETRAINED, load_checkpoint, pretrained_checkpoint
from egom2p.generation.clip_generation import fill_tokens, generate_clips
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.generation.loaded_model import load_model
from egom2p.generation.partial_prompts import InpaintingMask
from egom2p.generation.request import Request
from egom2p.models.sampling import Recommendation, SamplingConfig
from egom2p.models.weights import recommendation
from egom2p.pipelines.export_model import ExportModelConfig
from egom2p.storage import load_json, save_json
from egom2p.viewing.generation_page import write_generation_page

MEAN = {"num_samples": 3, "num_steps": 2, "temperature": 1.0, "chain": False}
GREEDY, HOT = SamplingConfig(), SamplingConfig(temperature=1.0, num_steps=2)
TRACKS = ("cam", "gaze")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = make_tiny_world(tmp_path_factory.mktemp("recommended"), num_val=1)
    shutil.copytree(root / "model", root / "plain")
    card = load_json(root / "model" / "model.json")
    save_json(
        root / "model" / "model.json", card | {"generation": MEAN, "about": {"summary": "Good for <nothing> at all."}}
    )
    frames = np.random.default_rng(0).integers(0, 255, (34, 32, 32, 3), dtype=np.uint8)
    write_video(root / "walk.mp4", frames, 8.0)
    return root


@pytest.fixture(scope="module")
def checkpoint(world):
    return load_checkpoint(world / "model", device="cpu")


def _config(world, output, **changes) -> GenerationConfig:
    values = {"checkpoint": str(world / "model"), "input": str(world / "walk.mp4"), "targets": TRACKS}
    return GenerationConfig(**values | {"output": str(world / output), "device": "cpu", "progress": False} | changes)


PART = {"gaze": InpaintingMask(seconds=(1.0, 2.0))}
SETTLED = {  # what is asked -> samples, sampling of the last target, chain
    "nothing": ({}, 3, HOT, False),
    "as many as recommended": ({"num_samples": 3}, 3, HOT, False),
    "another number": ({"num_samples": 2}, 2, HOT, False),
    "one": ({"num_samples": 1}, 1, GREEDY, False),
    "a chain": ({"chain": True}, 3, HOT, True),
    "another temperature": ({"sampling": {"default": SamplingConfig(temperature=0.5)}}, 3, None, False),
    "the most likely tokens": ({"sampling": {"default": GREEDY}}, 1, GREEDY, False),
    "the most likely ones of one target": ({"sampling": {"cam": GREEDY}}, 1, GREEDY, False),
    "a part of a target": ({"inpainting": PART, "join": "none"}, 1, GREEDY, False),
    "windows that go on": ({"join": "condition"}, 1, GREEDY, False),
    "pictures": ({"targets": ("cam", "rgb")}, 1, GREEDY, False),
}


@pytest.mark.parametrize("case", SETTLED)
def test_what_nobody_says_is_as_the_checkpoint_recommends(checkpoint, case):
    asked, num_samples, sampling, chain = SETTLED[case]
    request = Request(**{"targets": TRACKS} | asked)
    found = request.settled(checkpoint)
    wanted = sampling or request.sampling["default"]
    assert (found.num_samples, found.chain) == (num_samples, chain)
    assert found.plans(found.specs(checkpoint))[-1] == wanted.plan(found.specs(checkpoint)[-1].name)
    assert found.settled(checkpoint) == found


def test_a_checkpoint_that_recommends_nothing_is_asked_as_ever(world):
    plain = load_checkpoint(world / "plain", device="cpu")
    found = Request(targets=TRACKS).settled(plain)
    assert (found.num_samples, found.chain, found.sampling) == (1, True, {"default": GREEDY})
    with pytest.raises(ValueError, match="num_samples=2 samples of temperature 0 are all the same"):
        Request(targets=TRACKS, num_samples=2).settled(plain)


def test_several_samples_that_are_asked_for_and_cannot_be_are_an_error(checkpoint):
    with pytest.raises(ValueError, match="samples of temperature 0 are all the same, found it for tok_cam"):
        Request(targets=TRACKS, num_samples=2, sampling={"cam": GREEDY}).settled(checkpoint)


STRANGE = {
    "a list": ([], "wanted keys and their values"),
    "too many samples": ({"num_samples": 10**9, "temperature": 1.0}, "num_samples must be 1 ... 256, found 1000000000"),
    "none": ({"num_samples": 0}, "num_samples"),
    "too many steps": ({"num_steps": 10**9}, "num_steps must be 1 ... 256"),
    "samples that are alike": ({"num_samples": 4}, "4 samples of temperature 0 are all the same"),
    "below zero": ({"temperature": -1.0}, "temperature"),
    "next to nothing": ({"temperature": 1e-9}, "temperature is 0 .* or at least"),
    "no number": ({"temperature": "warm"}, "temperature.*'warm'"),
    "unknown key": ({"num_sample": 4}, "num_sample.*did you mean `num_samples`"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strangers_recommendation_is_looked_at(world, tmp_path, case):
    values, said = STRANGE[case]
    folder = shutil.copytree(world / "plain", tmp_path / "model")
    save_json(folder / "model.json", load_json(folder / "model.json") | {"generation": values})
    with pytest.raises(ValueError, match=rf"model\.json: generation(?s:.)*{said}"):
        recommendation(folder)


def test_the_command_and_python_do_what_is_recommended(world, capsys):
    manifest = run_generation(_config(world, "made"))
    words = "mean of 3 samples, as it was measured"
    assert words in capsys.readouterr().err and words in load_json(manifest)["checkpoint"]
    assert load_json(manifest)["settings"]["num_samples"] == 3
    folder = manifest.parent / "walk"
    with np.load(folder / "clip.npz") as arrays, np.load(folder / "tokens.npz") as tokens:
        clip = load_model(world / "model", device="cpu").generate(str(world / "walk.mp4"), targets=TRACKS)
        np.testing.assert_allclose(arrays["camera"], clip.world_from_cam, atol=1e-5)
        np.testing.assert_allclose(arrays["gaze_high"], clip.streams["gaze_high"].values, atol=1e-5)
        assert tokens["tok_cam"].shape[-2] == 3
    said = dict(num_samples=3, sampling={"default": HOT}, chain=False)
    explicit = run_generation(_config(world, "explicit", **said))
    with np.load(explicit.parent / "walk" / "tokens.npz") as asked, np.load(folder / "tokens.npz") as tokens:
        assert all(np.array_equal(asked[name], tokens[name]) for name in tokens.files)
    page = write_generation_page(manifest.parent).read_text()
    assert words in page and "Good for &lt;nothing&gt; at all." in page
    one = load_json(run_generation(_config(world, "one", sampling={"cam": GREEDY})))
    assert "one sample, not the mean of 3 that it was measured with: temperature 0 is asked for tok_cam" in str(one)


def test_a_prompt_is_tokenized_once_and_its_samples_are_the_same_in_any_batch(world, checkpoint, monkeypatch):
    counted, encode = [], type(checkpoint.tokenizers["tok_rgb"]).encode
    monkeypatch.setattr(
        type(checkpoint.tokenizers["tok_rgb"]),
        "encode",
        lambda self, clips: counted.append((self.spec.name, len(clips))) or encode(self, clips),
    )
    clips = [invented_clip(number) for number in range(2)]
    request = Request(targets=TRACKS, conditions=("rgb",), join="none").settled(checkpoint)
    together = fill_tokens(checkpoint, clips, request, [4, 5])
    assert sorted(counted) == [("tok_rgb", 1), ("tok_rgb", 1)]
    for size in (1, 4):
        (alone,) = fill_tokens(checkpoint, clips[1:], replace(request, batch_size=size), [5])
        assert all(np.array_equal(alone.tokens[name], together[1].tokens[name]) for name in ("tok_cam", "tok_gaze"))
    assert len({ids.tobytes() for ids in together[0].tokens["tok_cam"]}) == 3, "samples differ"
    one = replace(request, num_samples=1)
    (first,) = fill_tokens(checkpoint, clips[1:], one, [5])
    assert np.array_equal(first.tokens["tok_gaze"], together[1].tokens["tok_gaze"][0])


def test_targets_of_the_input_alone_do_not_see_each_other(checkpoint):
    def gaze_beside(sampling, *, chain):
        asked = {"cam": sampling, "gaze": SamplingConfig(temperature=1.0)}
        request = Request(
            targets=TRACKS, conditions=("rgb",), sampling=asked, num_samples=1, chain=chain, join="none", seed=7
        )
        made = generate_clips(checkpoint, [invented_clip(number) for number in range(6)], request)
        return np.stack([clip.tokens.tokens["tok_gaze"] for clip in made])

    assert np.array_equal(gaze_beside(GREEDY, chain=False), gaze_beside(HOT, chain=False))
    assert not np.array_equal(gaze_beside(GREEDY, chain=True), gaze_beside(HOT, chain=True))


def test_the_first_pretrained_checkpoint_that_has_what_is_asked(world, tmp_path, monkeypatch):
    """Of the real ones, by cards and inputs; nothing is generated."""
    loaded = {name: load_checkpoint(pretrained_checkpoint(name), device="cpu") for name in PRETRAINED}
    monkeypatch.setattr(generation, "load_checkpoint", lambda folder, **options: loaded[Path(folder).name])
    write_clips(
        tmp_path / "depth", "some", [replace(clip := invented_clip(0), streams={"depth": clip.streams["depth"]})]
    )
    write_clips(tmp_path / "clips", "some", [invented_clip(0)])
    spec = loaded["world_small"].spec("rgb")
    np.savez(tmp_path / "tokens.npz", rgb=np.zeros(spec.num_tokens, np.int32))
    cases = [
        ("world_real", {"targets": ("depth", "cam", "gaze")}),
        ("world_real", {"targets": ("depth",), "conditions": ("rgb",)}),
        ("world_real", {"targets": ("camera",), "input": str(tmp_path / "clips")}),
        ("world_small", {"targets": ("rgb",)}),
        ("world_small", {"targets": ("depth", "rgb")}),
        ("world_small", {"targets": ("cam",), "conditions": ("depth",), "input": str(tmp_path / "clips")}),
        ("world_small", {"targets": ("cam",), "conditions": ()}),
        ("world_small", {"targets": ("cam",), "input": str(tmp_path / "depth")}),
        ("world_small", {"targets": ("cam",), "input": str(tmp_path / "tokens.npz")}),
    ]
    for name, asked in cases:
        found, why = generation._checkpoint(_config(world, "x", checkpoint=None, **asked))
        assert found is loaded[name], asked
        assert (why.startswith(", the first of world_real, world_small")) == (name == "world_real")
        assert ("world_real does not do this" in why) == (name == "world_small") and str(tmp_path) not in why
    with pytest.raises(ValueError, match="rgb_motion, rgb_patches is input only"):
        loaded["world_real"].target("rgb")


def test_the_default_run_end_to_end(tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 255, (18, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "walk.mp4", frames, 8.0)
    made = ["input=" + str(tmp_path / "walk.mp4"), "targets=[cam]", f"output={tmp_path / 'out'}", "device=cpu"]
    config = load_config(GenerationConfig, "default/egom2p/generation/any2any.yaml", [*made, "progress=false"])
    manifest = load_json(run_generation(config))
    best = load_checkpoint("world_real", device="cpu")
    assert best.recommended.num_samples > 1 and best.summary
    assert manifest["settings"]["num_samples"] == best.recommended.num_samples
    assert manifest["checkpoint"].startswith("pretrained world_real, the first of")
    assert f"checkpoint: {manifest['checkpoint']}" in capsys.readouterr().err
    assert manifest["about_checkpoint"] == best.summary
    assert {"camera_range.csv", "camera.tum"} <= set(manifest["clips"][0]["files"])


def test_what_is_recommended_is_what_the_configs_measure():
    """Factors of ranges belong to a number of samples; presets with sampling of their own make one sample."""
    wanted = load_config(ExportModelConfig, "default/egom2p/export/world_real.yaml").recommended
    assert wanted is not None and recommendation(pretrained_checkpoint("world_real")) == wanted
    assert recommendation(pretrained_checkpoint("world_small")) is None
    for file in ("world_real", "world_real_clips"):
        config = load_config(EvaluationConfig, f"default/egom2p/evaluation/{file}.yaml", ["clips.root=x"])
        measured = [(one.num_samples, one.sampling) for one in config.estimators.values()]
        assert (wanted.num_samples, wanted.sampling(wanted.num_samples)) in measured
    folder = Path("default/egom2p/generation")
    for name in ("rgb2depth", "rgb2cam", "rgb2gaze", "depth2rgb", "rgb2all_chain"):
        asked = ["checkpoint=x", "input=x", "output=x"]
        config = load_config(GenerationConfig, folder / f"{name}.yaml", asked)
        assert config.num_samples == 1 and config.sampling


def test_a_temperature_for_a_mean_is_none_for_a_single_sample():
    found = Recommendation(num_samples=32, num_steps=4, temperature=0.7)
    assert found.sampling(32) == SamplingConfig(num_steps=4, temperature=0.7) == found.sampling(2)
    assert found.sampling(1) == GREEDY and Recommendation(temperature=0.7).sampling(1).temperature == 0.7
