"""The whole chain at the tiniest sizes: recordings of video and an invented track, to tokens, model, numbers, pages."""

import json

import numpy as np

from egom2p.config import from_plain
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.clips.video_files import write_video
from egom2p.data.shards.shard_set import shard_pattern
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.pipelines.prepare import PrepareConfig, prepare
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import train_tokenizer
from egom2p.viewing.generation_page import write_generation_page
from egom2p.viewing.report import ReportConfig, write_report

# 9 frames of 16 x 32 pixels become 3 x 2 x 4 tokens, 18 samples become 6.
CLIP = {"height": 16, "width": 32, "duration_s": 1.125, "stride_s": 1.125, "video_rate_hz": 8, "track_rate_hz": 16}
NETWORKS = {
    "tok_rgb": {
        "architecture": "video_codec", "modality": "tok_rgb", "quantity": "rgb", "folder": "rgb",
        "num_frames": 9, "height": 16, "width": 32, "rate_hz": 8, "levels": [13], "channels": 8,
        "channel_multipliers": [1, 1], "num_blocks": 1, "attention": False, "latent_channels": 4,
    },
    "tok_smell": {
        "architecture": "trajectory_vqvae", "modality": "tok_smell", "quantity": "generic", "folder": "smell",
        "stream": "smell", "num_channels": 2, "num_samples": 18, "rate_hz": 16, "samples_per_token": 3, "dim": 16,
        "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "latent_dim": 4, "num_codes": 7,
    },
}  # fmt: skip
TRAINING = {"num_steps": 2, "lr": 1e-3, "batch_size": 2, "device": "cpu"}


def _record(root, name, rng):
    """Three seconds of one grey that changes, and a smell that tells it."""
    (root / name).mkdir(parents=True)
    shade = rng.uniform(40, 200) + 30 * np.sin(np.arange(24) / 4)
    frames = np.broadcast_to(shade[:, None, None, None], (24, 16, 32, 3)).astype(np.uint8)
    write_video(root / name / "video.mp4", frames, 8.0)
    rows = [f"{k / 20:.3f},{np.interp(k / 20, np.arange(24) / 8, shade) / 255:.4f},{k % 7 / 7:.4f}" for k in range(58)]
    (root / name / "smell.csv").write_text("\n".join(["timestamps,strength,kind", *rows]) + "\n")


def test_an_invented_modality_goes_all_the_way(tmp_path, rng):
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            _record(tmp_path / "recordings" / split, f"{split}{number}", rng)
        source = {"kind": "plain_folder", "root": str(tmp_path / "recordings" / split)}
        report = prepare(
            PrepareConfig(source=source, clip=CLIP, output=str(tmp_path / "clips" / split), dataset="tiny")
        )
        assert report.num_clips == 2 * count and report.datasets["tiny"]["streams"] == ["rgb", "smell"]
    clips = {split: {"root": str(tmp_path / "clips" / split), "dataset": "tiny"} for split in ("train", "val")}

    for name, network in NETWORKS.items():
        sources = {
            key: {"root": clips[split]["root"], "datasets": ["tiny"]}
            for key, split in (("train", "train"), ("validation", "val"))
        }
        values = {"output_dir": str(tmp_path / name), "network": network, **sources, "training": TRAINING}
        train_tokenizer(from_plain(TokenizerTrainingConfig, values))
    tokenizers = {name: str(tmp_path / name / "final") for name in NETWORKS}
    patterns = {}
    for split in clips:
        output = tmp_path / "tokens" / split
        tokenize(TokenizeConfig(clips=clips[split]["root"], tokenizers=tokenizers, output=str(output), device="cpu"))
        patterns[split] = shard_pattern(output, "tiny", ["rgb", "smell"])

    even = {"input_alphas": [1.0], "target_alphas": [1.0]}
    data = {"alphas": {"alphas_mixture": dict.fromkeys(NETWORKS, even)}, "max_input_tokens": 8, "max_target_tokens": 8}
    values = {
        "output_dir": str(tmp_path / "run"),
        "model": {"dim": 24, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2},
        "tokenizers": tokenizers,
        "data": {
            "datasets": {"tiny": data | {"shards": patterns["train"]}},
            "validation": {"tiny": data | {"shards": patterns["val"]}},
        },
        "training": TRAINING,
    }
    result = pretrain(from_plain(PretrainConfig, values))
    assert {item.name for item in result.measurements} == set(NETWORKS)

    evaluation = run_evaluation(
        EvaluationConfig(
            output=str(tmp_path / "evaluation"),
            checkpoints={"tiny": str(tmp_path / "run" / "final")},
            clips=clips["val"],
            train_clips=clips["train"],
            train_tokens=patterns["train"],
            tasks=("rgb2smell", "smell2rgb"),
            training_runs={"tiny": str(tmp_path / "run")},
            device="cpu",
            progress=False,
        )
    )
    for task, baseline in zip(evaluation.results.to_plain()["tasks"], ("mean value", "mean frame"), strict=True):
        kinds = {row["label"]: row["kind"] for row in task["rows"]}
        assert kinds[baseline] == "baseline" and {"ceiling", "model"} <= set(kinds.values())
        assert task["num_clips"] == 4 and task["num_recordings"] == 2
        assert not any(row["failures"] for row in task["rows"])
        assert task["token_losses"][0]["unigram_nats"] > 0
    assert "RMS error" in write_report(ReportConfig(evaluation=str(evaluation.folder))).read_text()

    config = GenerationConfig(
        checkpoint=str(tmp_path / "run" / "final"),
        input=str(tmp_path / "recordings" / "val" / "val0" / "video.mp4"),
        output=str(tmp_path / "generated"),
        targets=("smell",),
        join="none",
        device="cpu",
        progress=False,
    )
    manifest = run_generation(config)
    made = json.loads(manifest.read_text())["clips"]
    assert [clip["made"] for clip in made] == [["tok_smell"], ["tok_smell"]]
    with np.load(manifest.parent / made[0]["key"] / "clip.npz") as arrays:
        truth = ClipStore(clips["val"]["root"], "tiny")[0]
        assert arrays["smell"].shape == truth.streams["smell"].values.shape == (18, 2)
    assert "generated" in write_generation_page(manifest.parent).read_text()
