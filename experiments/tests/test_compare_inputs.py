"""Inputs compared: one tiny study from training to page, and what a share of a gap is."""

import pytest
import yaml
from tiny_artifacts import NUM_FRAMES, SIZE, make_tiny_world

from egom2p.config import from_plain
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.tokenizers import PatchesConfig, PatchTokenizer
from experiments.pixels.compare_inputs import InputsConfig, _gap, compare_inputs


def test_a_gap_is_closed_by_what_was_gained_of_it():
    worse, better, best = ({f"room{n}_0": value + 0.01 * n for n in range(4)} for value in (0.3, 0.2, 0.1))
    assert _gap(better, worse, best) == "50% [50%, 50%]"


@pytest.mark.slow
def test_a_study_from_runs_to_page(tmp_path):
    make_tiny_world(tmp_path)
    config = PatchesConfig(num_frames=NUM_FRAMES, height=SIZE, width=SIZE, rate_hz=8.0, patch=(4, 8, 8))
    PatchTokenizer(config).save(tmp_path / "tokenizers" / "rgb_patches")
    names = {"tok_cam": "cam", "tok_depth": "depth", "tok_rgb": "rgb", "rgb_patches": "rgb_patches"}
    clips, tokens = str(tmp_path / "clips" / "train"), str(tmp_path / "all")
    tokenize(TokenizeConfig(clips=clips, output=tokens, tokenizers=names, tokenizers_root=str(tmp_path / "tokenizers")))
    see = {"weight": 1.0, "inputs": ["tok_rgb"], "targets": ["tok_depth", "tok_cam"]}
    world = {
        "shards": f"{tokens}/[cam,depth,rgb,rgb_patches]/tiny/shard-000000.tar",
        "alphas": {"transfers": {"rgb_to_all": see}}, "max_input_tokens": 32, "max_target_tokens": 42,
    }  # fmt: skip
    base = {
        "output_dir": "unused", "model": {"dim": 24, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2},
        "tokenizers_root": str(tmp_path / "tokenizers"), "tokenizers": names,
        "data": {"datasets": {"world": world}, "validation": {"world": world}},
        "training": {"lr": 1e-3, "batch_size": 2, "num_steps": 2, "schedule": "constant", "device": "cpu"},
    }  # fmt: skip
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    evaluated = {"root": str(tmp_path / "clips" / "val"), "dataset": "tiny"}
    study = {
        "output": str(tmp_path / "study"), "base": str(tmp_path / "base.yaml"), "settings": [],
        "choices": {
            "tokens": {"inputs": ["tok_rgb"], "num_steps": 3},
            "both": {"inputs": ["tok_rgb", "rgb_patches"], "num_steps": 2},
        },
        "num_steps": 2, "seeds": 1,
        "metrics": {"depth": "abs_rel/median", "camera": "rpe_r_deg/first_pose"},
        "evaluation": {"clips": evaluated, "estimators": {"one": {}}, "device": "cpu", "progress": False},
    }  # fmt: skip
    assert not compare_inputs(from_plain(InputsConfig, study | {"max_runs": 0})).is_file()
    text = compare_inputs(from_plain(InputsConfig, study)).read_text()
    assert text.count("| tokens (1) |") == text.count("| both (1) |") == 2 and text.count("tokenizer round trip") == 2
