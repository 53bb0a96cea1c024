"""The comparison of tokenizers trains what is missing, measures what it says, and keeps the words of its page."""

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from egom2p.config import from_plain, load_config
from egom2p.contracts import AlignedClip, Intrinsics, Provenance, Stream
from egom2p.data.clips.clip_store import write_clips
from egom2p.tokenizers import load_tokenizer
from experiments.rate_distortion.compare_tokenizers import MARKS, compare
from experiments.rate_distortion.rate_distortion import RateDistortionConfig, measured, run_variants

SAMPLES = 12


def walk(number: int) -> AlignedClip:
    rng = np.random.default_rng(number)
    times_s, valid = np.arange(SAMPLES) / 30, np.ones(SAMPLES, bool)
    poses = np.tile(np.eye(4), (SAMPLES, 1, 1))
    poses[:, :3, 3] = rng.normal(0, 0.02, (SAMPLES, 3)).cumsum(axis=0)
    gaze = np.clip(0.5 + 0.02 * rng.normal(size=(SAMPLES, 2)).cumsum(axis=0), 0, 1).astype(np.float32)
    streams = {
        "camera": Stream(poses, valid, times_s, "world_from_cam"),
        "gaze": Stream(gaze, valid, times_s, "image"),
    }
    return AlignedClip(
        f"clip-{number:03d}", streams, Intrinsics(16, 16, 9, 9, 7.5, 7.5), Provenance("toy", str(number))
    )


@pytest.fixture
def config(tmp_path) -> RateDistortionConfig:
    write_clips(tmp_path / "clips", "train", [walk(number) for number in range(20)])
    write_clips(tmp_path / "clips", "val", [walk(100 + number) for number in range(5)])
    network = {
        "num_samples": SAMPLES, "dim": 8, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "latent_dim": 4,
        "num_codes": 16,
    }  # fmt: skip
    root = str(tmp_path / "clips")
    values = {
        "output_dir": str(tmp_path / "runs"),
        "page": str(tmp_path / "page.md"),
        "networks": {
            "camera": network | {"modality": "tok_cam", "quantity": "camera", "folder": "cam"},
            "gaze": network | {"modality": "tok_gaze", "quantity": "gaze", "folder": "gaze"},
        },
        "variants": {
            "cam_vq": {"of": "camera"},
            "cam_residual": {"of": "camera", "seeds": [0, 1], "changes": {"quantizer": {"kind": "residual_vq"}}},
            "gaze_vq": {"of": "gaze"},
        },
        "train": {"root": root, "datasets": ["train"]},
        "held_out": {
            "rooms": {"clips": {"root": root, "datasets": ["val"]}, "quantities": ["camera", "gaze"]},
            "again": {"clips": {"root": root, "datasets": ["train"]}, "quantities": ["camera"]},
            "elsewhere": {
                "clips": {"root": str(tmp_path / "none"), "datasets": ["a"]}, "quantities": ["gaze"],
                "may_be_absent": True,
            },
        },
        "training": {"num_steps": 2, "lr": 1e-3, "batch_size": 4, "num_threads": 1, "device": "cpu"},
    }  # fmt: skip
    return from_plain(RateDistortionConfig, values)


def test_runs_resume_and_the_page_keeps_its_words(config):
    page = Path(config.page)
    page.write_text(f"# Mine\n\nwords above\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nwords below\n")
    compare(config)
    results = {(result["name"], result["seed"]): result for result in run_variants(config)}
    assert set(results) == {("cam_vq", 0), ("cam_residual", 0), ("gaze_vq", 0), ("cam_residual", 1)}
    residual = results["cam_residual", 1]
    assert residual["num_tokens"] == 12 and residual["bits"] == pytest.approx(12 * math.log2(16))
    assert 0 < residual["position_bits"] < 1.2 * residual["bits"]
    assert set(residual["sets"]) == {"rooms", "again"} and set(results["gaze_vq", 0]["sets"]) == {"rooms"}

    text = page.read_text()
    assert "words above" in text and text.endswith("words below\n") and "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `cam_residual` | 12 of 16 | 48 |"))
    ate_cm = [100 * results["cam_residual", seed]["sets"]["rooms"]["errors"]["0"]["ate_m"] for seed in (0, 1)]
    assert f"{np.mean(ate_cm):.1f} ({ate_cm[0]:.1f}, {ate_cm[1]:.1f})" in row
    assert ElementTree.fromstring(page.with_suffix(".svg").read_text()).tag.endswith("svg")

    weights = Path(config.output_dir) / "cam_vq" / "seed0" / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    compare(config)
    assert weights.stat().st_mtime_ns == before and page.read_text() == text


def test_other_settings_are_not_mixed(config):
    next(run_variants(config))
    longer = replace(config, training=replace(config.training, num_steps=3))
    with pytest.raises(ValueError, match="other settings"):
        next(run_variants(longer))
    with pytest.raises(ValueError, match="variant cam_vq"):
        replace(config, networks={"gaze": config.networks["gaze"]})


def test_noise_is_a_share_of_the_tokens(config):
    next(run_variants(config))
    network = load_tokenizer(Path(config.output_dir) / "cam_vq" / "seed0" / "final").network
    clips = [walk(300 + number) for number in range(6)]
    found = measured(network, clips, (0.5,))["errors"]
    ids = network.encode_clips(clips)
    clean = np.mean([row["ate_m"] for row in network.clip_errors(clips, ids)])
    assert found["0"]["ate_m"] == pytest.approx(clean) and found["0.5"]["ate_m"] != found["0"]["ate_m"]


def test_the_comparison_of_the_page_builds_every_variant():
    config = load_config(RateDistortionConfig, "experiments/rate_distortion/compare_tokenizers.yaml", [])
    streams = {config.network(name).quantizer.num_streams for name in config.variants}
    assert streams >= {1, 2} and {config.network(name).quantity for name in config.variants} == {"camera", "gaze"}
