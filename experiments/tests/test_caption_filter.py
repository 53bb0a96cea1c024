"""The filter of captions keeps the likeliest rows, whole and in order, and says how well losses tell errors."""

import json

import numpy as np
import pytest
import torch
from model_toys import WIDTH, toy_model

from egom2p.anytoany.conversations.datasets import CaptionsConfig
from egom2p.anytoany.saving import save_anytoany
from experiments.codes.caption_filter import CaptionFilterConfig, area_under_curve, caption_nats, filter_captions


def test_the_area_is_how_often_a_wrong_caption_is_less_likely():
    rng = np.random.default_rng(0)
    scores, is_wrong = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[is_wrong] for b in scores[~is_wrong]]
    assert area_under_curve(scores, is_wrong) == pytest.approx(np.mean(pairs))
    assert area_under_curve(is_wrong.astype(float), is_wrong) == 1.0
    assert area_under_curve(scores, np.ones(60, bool)) is None


def test_the_likeliest_rows_are_kept_whole_and_in_order(tmp_path):
    rng = np.random.default_rng(0)
    words = ("the wearer", "looks at", "the red mug", "turns left", "zzz!")
    rows = [
        {
            "description": " ".join(rng.permutation(words)[:3]),
            "embedding": rng.normal(size=WIDTH).tolist(),
            "bad": n % 3 == 0,
        }
        for n in range(10)
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with torch.random.fork_rng():
        save_anytoany(toy_model(tmp_path), tmp_path / "model")
    config = CaptionFilterConfig(
        model=str(tmp_path / "model"),
        dataset=CaptionsConfig(files=(str(file),)),
        output=str(tmp_path / "kept.jsonl"),
        keep_share=0.6,
        planted="bad",
    )
    found, nats = filter_captions(config), caption_nats(config)
    likeliest = sorted(np.argsort(nats)[:6].tolist())
    assert [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()] == [
        rows[n] for n in likeliest
    ]
    assert (found.num_rows, found.num_kept, found.wrong_before) == (10, 6, 0.4)
    assert found.wrong_after == pytest.approx(np.mean([rows[n]["bad"] for n in likeliest]))
    with pytest.raises(ValueError, match="keep_share"):
        CaptionFilterConfig(model="m", dataset=config.dataset, output="o.jsonl", keep_share=0.0)
