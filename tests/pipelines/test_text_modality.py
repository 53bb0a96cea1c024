"""Captions all the way: clips, vocabulary, shards, training, generation of and from text, numbers, pages."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_artifacts import TOKENIZERS, invented_clip

from egom2p.config import from_plain
from egom2p.contracts import Stream
from egom2p.data.clips.clip_store import write_clips
from egom2p.data.clips.video_files import write_video
from egom2p.data.shards.shard_set import shard_pattern
from egom2p.data.token_set import TokenSet
from egom2p.data.unified_datasets import data_specs
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import EstimatorConfig, EvaluationConfig
from egom2p.generation.checkpoints import load_checkpoint
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.models.sampling import SamplingConfig
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.storage import load_json
from egom2p.tokenizers.pretrained import build_network, save_tokenizer
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from egom2p.training.tasks.text_tokenizer import TextTokenizerTrainingConfig, train_text_tokenizer
from egom2p.viewing.generation_page import write_generation_page
from egom2p.viewing.report import ReportConfig, write_report

SENTENCES = ("The wearer looks left.", "the wearer stands still", "the wearer walks and looks at a <red> ball")
NAMES = ("tok_cam", "tok_caption", "tok_gaze", "tok_rgb")


def captioned(number: int):
    clip = invented_clip(number)
    text = Stream(np.array([SENTENCES[number % 3]]), np.ones(1, bool), np.zeros(1), "text")
    kept = {name: clip.streams[name] for name in ("rgb", "gaze", "camera")}
    return replace(clip, streams=kept | {"caption": text})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """clips/{train,val}, tokenizers/*, tokens/{train,val}, run/final."""
    root = tmp_path_factory.mktemp("captions")
    clips = {"train": [captioned(number) for number in range(9)], "val": [captioned(100 + n) for n in range(4)]}
    for split, found in clips.items():
        write_clips(root / "clips" / split, "tiny", found)
    for name in ("rgb", "gaze", "cam"):
        network = build_network(TOKENIZERS[name])
        network.fit_normalisation(clips["train"])
        save_tokenizer(network, root / "tokenizers" / name / "final")
    source = {"root": str(root / "clips" / "train"), "datasets": ["tiny"]}
    values = {"output_dir": str(root / "tokenizers" / "caption"), "train": source}
    values["network"] = {"max_tokens": 16, "num_sentinels": 4}
    (root / "more.txt").write_text("one more sentence\n\n")
    tokenizer = train_text_tokenizer(
        from_plain(TextTokenizerTrainingConfig, values | {"text_files": [str(root / "more.txt")]})
    )
    assert tokenizer.card["training_data"]["num_texts"] == 10
    assert tokenizer.card["metrics"]["exact_round_trip"] == 1.0
    folders = {name: f"{name.removeprefix('tok_')}/final" for name in NAMES}
    for split in clips:
        config = TokenizeConfig(
            clips=str(root / "clips" / split), tokenizers=folders, tokenizers_root=str(root / "tokenizers"),
            output=str(root / "tokens" / split), device="cpu",
        )  # fmt: skip
        (report,) = tokenize(config)
        assert report.round_trip["tok_caption"]["exact_round_trip"] == 1.0
        assert report.modalities["tok_caption"]["num_clips"] == len(clips[split])
    pretrain(from_plain(PretrainConfig, pretrain_values(root)))
    return root


def patterns(root):
    return {s: shard_pattern(root / "tokens" / s, "tiny", ["rgb", "gaze", "cam", "caption"]) for s in ("train", "val")}


def pretrain_values(root) -> dict:
    even = {"input_alphas": [1.0], "target_alphas": [1.0]}
    masking = {
        "alphas": {
            "alphas_mixture": dict.fromkeys(NAMES, even),
            "transfers": {"write": {"weight": 1.0, "inputs": ["tok_rgb"], "targets": ["tok_caption"]}},
        },
        "max_input_tokens": 30,
        "max_target_tokens": 30,
    }
    return {
        "output_dir": str(root / "run"),
        "model": {"dim": 24, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2},
        "tokenizers": {name: str(root / "tokenizers" / name.removeprefix("tok_") / "final") for name in NAMES},
        "data": {
            "datasets": {"tiny": masking | {"shards": patterns(root)["train"]}},
            "validation": {"tiny": masking | {"shards": patterns(root)["val"]}},
        },
        "evaluation": {"tasks": {"rgb2caption": {"inputs": ["tok_rgb"], "targets": ["tok_caption"]}}},
        "training": {"num_steps": 2, "lr": 1e-3, "batch_size": 3, "device": "cpu"},
    }


def test_shards_of_captions_are_read_like_any_other(root):
    specs = data_specs(from_plain(PretrainConfig, pretrain_values(root)).data)
    text = next(spec for spec in specs if spec.name == "tok_caption")
    assert text.kind == "sequence" and text.eos_id is not None and len(text.sentinel_ids) == 4
    tokens = TokenSet(patterns(root)["val"], specs)
    assert tokens.verify() == 4
    tokenizer = load_checkpoint(root / "run" / "final", device="cpu").tokenizer("tok_caption")
    for index in range(4):
        ids_L = tokens[index].tokens["tok_caption"]
        assert ids_L.shape == (16,) and tokenizer.decode_ids(ids_L[None]) == [SENTENCES[(100 + index) % 3].lower()]


def test_training_measures_a_text_beside_its_unigram_baseline(root):
    lines = [line for line in (root / "run" / "log.jsonl").read_text().splitlines() if "rgb2caption" in line]
    assert "rgb2caption/tok_caption/unigram_baseline" in lines[-1]


def config_of(root, output, **changes) -> GenerationConfig:
    values = {"checkpoint": str(root / "run" / "final"), "output": str(root / output), "device": "cpu"}
    return GenerationConfig(**values | {"progress": False} | changes)


def test_captions_are_generated_and_shown(root):
    manifest = run_generation(
        config_of(root, "written", input=str(root / "clips" / "val"), targets=("caption", "gaze"))
    )
    clips = load_json(manifest)["clips"]
    assert len(clips) == 4 and clips[0]["made"] == ["tok_caption", "tok_gaze"]
    folder = manifest.parent / clips[0]["key"]
    text = (folder / "caption.txt").read_text().strip()
    with np.load(folder / "clip.npz") as arrays, np.load(folder / "tokens.npz") as tokens:
        assert str(arrays["caption"][0]) == text and arrays["gaze"].shape == (60, 2)
        assert len(tokens["tok_caption"]) <= 16
    assert "generated caption:" in write_generation_page(manifest.parent).read_text()


def test_a_video_gets_captions(root):
    frames = np.concatenate([invented_clip(number).rgb.repeat(4, 1).repeat(4, 2) for number in range(2)])
    write_video(root / "walk.mp4", frames, 8.0)
    manifest = run_generation(config_of(root, "video", input=str(root / "walk.mp4"), targets=("caption",), join="none"))
    assert [clip["made_streams"] for clip in load_json(manifest)["clips"]] == [["caption"], ["caption"]]


def test_a_caption_is_a_condition(root):
    """From stored clips, and from nothing but lines of text."""
    (root / "wishes.txt").write_text("The wearer stands still\n\nthe wearer looks left.\n")
    stored = config_of(root, "from_clips", input=str(root / "clips" / "val"), targets=("cam",), conditions=("caption",))
    manifest = run_generation(config_of(root, "wished", input=str(root / "wishes.txt"), targets=("cam", "gaze")))
    clips = load_json(manifest)["clips"]
    assert [clip["given"] for clip in clips] == [["tok_caption"]] * 2
    with np.load(manifest.parent / clips[0]["key"] / "clip.npz") as arrays:
        assert arrays["camera"].shape == (60, 4, 4) and str(arrays["caption"][0]) == "The wearer stands still"
    assert "given caption:" in write_generation_page(manifest.parent).read_text()
    assert load_json(run_generation(stored))["clips"][0]["given"] == ["tok_caption"]


def test_captions_are_scored_and_shown_beside_the_truth(root):
    evaluation = run_evaluation(
        EvaluationConfig(
            output=str(root / "evaluation"),
            checkpoints={"tiny": str(root / "run" / "final")},
            clips={"root": str(root / "clips" / "val"), "dataset": "tiny"},
            train_clips={"root": str(root / "clips" / "train"), "dataset": "tiny"},
            train_tokens=patterns(root)["train"],
            tasks=("rgb+gaze2caption", "caption2gaze"),
            estimators={
                "one": EstimatorConfig(),
                "commonest of 3": EstimatorConfig(num_samples=3, sampling=SamplingConfig(temperature=1.0)),
            },
            device="cpu",
            progress=False,
        )
    )
    task = evaluation.results.to_plain()["tasks"][0]
    rows = {row["label"]: row["values"] for row in task["rows"]}
    assert rows["tokenizer round trip"]["exact"]["mean"] == 1.0, "case does not count"
    assert 0 < rows["most frequent text"]["exact"]["mean"] < 1
    assert rows["commonest of 3"]["word_error_rate"]["mean"] > 0
    loss = task["token_losses"][0]
    assert 0 < loss["unigram_nats"] < loss["uniform_nats"] and loss["nats"]["mean"] > 0
    assert evaluation.results.to_plain()["tasks"][1]["quantity"] == "gaze"
    page = write_report(ReportConfig(evaluation=str(evaluation.folder))).read_text()
    assert "the wearer walks and looks at a &lt;red&gt; ball" in page, "truth, escaped"
