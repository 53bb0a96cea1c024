"""benchmarks/training.py with tiny sizes: both sides do the same work. Counts and losses, never times."""

import json
import random

import pytest
import training as benchmark

SIDES = benchmark.SIDES


def said(name: str, side: str, turns: int = 2) -> list[dict]:
    random.seed(0)
    make, _ = benchmark.ROWS[name]
    (found,) = [[work(turn) for turn in range(turns)] for work in make(benchmark.SIZES["tiny"], side)]
    return found


@pytest.mark.parametrize(
    ("name", "clips"), [("dense 512, 2 clips", 2), ("dense 2048, 1 clip", 1), ("published mixture 2048, 1 clip", 1)]
)
def test_a_step_is_the_same_on_both_sides(name, clips):
    ours, theirs = (said(name, side, turns=3) for side in SIDES)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["tokens"] == other["tokens"] > 0 and mine["clips"] == other["clips"] == clips
    # Then AdamW's first update, which is the sign of a gradient, makes rounding visible.
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
    assert ours[2]["loss"] == pytest.approx(theirs[2]["loss"], rel=1e-3)
    assert ours[1]["loss"] != ours[0]["loss"]


def test_dense_rows_are_full():
    """512 / 64 = 8 input and as many target tokens of each of two clips."""
    assert said("dense 512, 2 clips", "ours", turns=1)[0]["tokens"] == 2 * (8 + 8)


def test_half_precision_on_both_sides():
    ours, theirs = (said("bf16: dense 2048, 1 clip", side, turns=1)[0] for side in SIDES)
    assert ours["tokens"] == theirs["tokens"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)


@pytest.mark.parametrize(("name", "tokens"), [("rgb to cam", 30), ("rgb to depth", 48)])
def test_a_generation_is_as_long_on_both_sides(name, tokens):
    assert [said(name, side, turns=1)[0]["tokens"] for side in SIDES] == [tokens, tokens]


def test_loaders_give_as_many_clips():
    assert [said("loader", side, turns=1)[0]["clips"] for side in SIDES] == [64, 64]


@pytest.mark.slow
def test_a_row_is_measured_in_two_processes_and_goes_on_where_it_stopped(tmp_path):
    file = tmp_path / "found.json"
    words = ["--json", str(file), "--rows", "dense 512", "--size", "tiny"]
    benchmark.main([*words, "--seconds", "0"])
    begun = json.loads(file.read_text())["tiny"]["dense 512, 2 clips"]
    assert begun["turns"] == 1 and begun["of_turns"] == 3
    benchmark.main(words)
    (row,) = json.loads(file.read_text())["tiny"].values()
    assert row["turns"] == 3 and row["loss_difference"] < 1e-6
    assert row["commit"] and row["torch"] and row["threads"] == 1
    for side in SIDES:
        assert row[side]["steps"][0] == begun[side]["steps"][0] and len(row[side]["steps"]) == 3
        assert row[side]["total_clips"] == 6 and row[side]["total_tokens"] == 96 and row[side]["peak_gb"] > 0
    benchmark.main(words)  # complete: nothing is run
