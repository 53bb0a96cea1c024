"""An exported folder stands alone, is small, and gives the model's answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_artifacts import invented_clip, make_tiny_world

from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EstimatorConfig, EvaluationConfig
from egom2p.generation.checkpoints import load_checkpoint, pretrained_checkpoint
from egom2p.generation.clip_generation import generate_clips
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.generation.request import Request
from egom2p.models.egom2p_model import load_model
from egom2p.models.sampling import Recommendation
from egom2p.models.weights import recommendation, save_model
from egom2p.pipelines.export_model import ExportModelConfig, export_model
from egom2p.pipelines.publish import publish
from egom2p.storage import load_tensors

WORDS = {"title": "A tiny one", "data": "invented clips", "commands": ("make tiny",), "limits": "untrained"}
WORDS |= {"summary": "Good for tests."}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("world"), num_val=2)


def export_config(world, output, **changes) -> ExportModelConfig:
    return ExportModelConfig(**{"checkpoint": str(world / "model"), "output": str(output)} | WORDS | changes)


def test_the_folder_stands_alone_and_answers_like_the_model(world, tmp_path, capsys):
    made = export_model(export_config(world, tmp_path / "made"))
    assert " MB (" in capsys.readouterr().err
    folder = shutil.move(made, tmp_path / "elsewhere")
    stored = load_tensors(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    original, exported = load_checkpoint(world / "model", device="cpu"), load_checkpoint(folder, device="cpu")
    assert exported.specs == original.specs and set(exported.tokenizers) == set(original.tokenizers)
    for name, weight in load_model(folder).state_dict().items():
        wanted = original.model.state_dict()[name]
        assert weight.dtype == wanted.dtype
        torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-6)
    for name in ("tok_rgb", "tok_cam"):
        source = {"tok_rgb": "rgb", "tok_cam": "cam"}[name]
        for file in ("model.safetensors", "tokenizer.json"):
            copied = (folder / "tokenizers" / name / file).read_bytes()
            assert copied == (world / "tokenizers" / source / file).read_bytes()
    made_clip = generate_clips(exported, [invented_clip(0)], Request(targets=("depth",), conditions=("rgb",)))[0]
    assert np.isfinite(made_clip.clip.depth_m).all()
    assert exported.summary == "Good for tests." and exported.recommended == Recommendation()
    card = (folder / "CARD.md").read_text()
    assert "Good for tests." in card and "it takes the most likely tokens in one step" in card
    for words in ("# A tiny one", "invented clips", "make tiny", "untrained", "Apache-2.0", "No evaluation was given"):
        assert words in card


def test_what_is_recommended_is_in_the_folder_on_the_card_and_in_what_is_exported_or_published_of_it(world, tmp_path):
    wanted = Recommendation(num_samples=5, num_steps=2, temperature=0.5, chain=False)
    folder = export_model(export_config(world, tmp_path / "made", recommended=wanted))
    again = export_model(export_config(world, tmp_path / "again", checkpoint=str(folder)))
    assert (
        recommendation(folder) == recommendation(again) == load_checkpoint(folder, device="cpu").recommended == wanted
    )
    assert "the mean of 5 samples at temperature 0.5 in 2 steps, every target of the input alone" in (
        (again / "CARD.md").read_text()
    )
    found = publish(again, "me/tiny", dry_run=True)
    assert "model.json" in found.files and "the mean of 5 samples" in found.readme


def test_the_card_tells_what_an_evaluation_measured(world, tmp_path):
    clips = ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny")
    checkpoints = {"mine": str(world / "model"), "other": str(world / "copy")}
    shutil.copytree(world / "model", world / "copy")
    run_evaluation(
        EvaluationConfig(
            output=str(tmp_path / "evaluation"), checkpoints=checkpoints, clips=clips,
            train_clips=ClipsConfig(root=str(world / "clips" / "train"), dataset="tiny"),
            tasks=("rgb2depth",), estimators={"most likely": EstimatorConfig()}, device="cpu", progress=False,
        )
    )  # fmt: skip
    folder = export_model(export_config(world, tmp_path / "made", evaluation=str(tmp_path / "evaluation")))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {row["checkpoint"] for row in metrics["tasks"][0]["rows"]} == {None, "made"}
    card = (folder / "CARD.md").read_text()
    assert (
        "## Measured" in card and "### rgb2depth: 2 held-out clips" in card and "| made: most likely | model |" in card
    )
    with pytest.raises(ValueError, match=r"results\.json: evaluated .*, not .*elsewhere"):
        shutil.copytree(world / "model", world / "elsewhere")
        export_model(
            ExportModelConfig(
                checkpoint=str(world / "elsewhere"), output=str(tmp_path / "no"),
                evaluation=str(tmp_path / "evaluation"), **WORDS,
            )
        )  # fmt: skip


def test_too_large_a_folder_is_refused_and_not_written(world, tmp_path):
    with pytest.raises(ValueError, match=r"would have \d\.\d+ MB \(.*tokenizers.*\), max_mb allows 0\.01"):
        export_model(export_config(world, tmp_path / "made", max_mb=0.01))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_float16_cannot_hold_are_refused(world, tmp_path):
    model = load_model(world / "model")
    with torch.no_grad():
        model.decoder_proj_context.weight[0, 0] = 1e5
    shutil.copytree(world / "tokenizers", tmp_path / "tokenizers")
    positions = {f"tok_{name}": f"../tokenizers/{name}" for name in ("rgb", "depth", "gaze", "cam")}
    save_model(model, tmp_path / "model", positions)
    with pytest.raises(ValueError, match="decoder_proj_context.weight reaches 1e\\+05, which torch.float16"):
        export_model(export_config(tmp_path, tmp_path / "made"))


def test_a_model_without_tokenizers_is_refused(world, tmp_path):
    save_model(load_model(world / "model"), tmp_path / "model")
    with pytest.raises(ValueError, match=r"names no tokenizer for \['tok_cam'"):
        export_model(export_config(tmp_path, tmp_path / "made"))


def test_generation_uses_the_pretrained_checkpoint(tmp_path):
    folder = Path(__file__).resolve().parents[2] / "checkpoints" / "world_small"
    if folder.is_dir():
        assert pretrained_checkpoint("world_small") == folder
        assert load_checkpoint(folder, device="cpu").tokenizers.keys() == {
            spec.name for spec in load_model(folder).specs
        }
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20e6
        return
    with pytest.raises(ValueError, match=r"no checkpoint 'world_small' comes with .*checkpoint=<folder>"):
        run_generation(GenerationConfig(input="walk.mp4", output=str(tmp_path), targets=("depth",)))
