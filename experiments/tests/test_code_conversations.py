"""Conversations about the world of codes say what the clips show; planted errors are errors."""

import json
from collections import Counter, defaultdict

import numpy as np

from egom2p.anytoany.conversations.datasets import InterleavedConfig, InterleavedSet
from egom2p.anytoany.perception.feature_store import FeatureStore
from egom2p.anytoany.world.factor_world import ACTIONS, DIRECTIONS, OBJECTS, factor_clip, factor_rows
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig, write_rows
from experiments.codes.code_conversations import (
    balanced_rows,
    conversation_clips,
    corrupted_rows,
    dialogue_rows,
    experiment_rows,
    plan_rows,
)
from experiments.codes.code_data import CodeDataConfig, build_code_data
from experiments.codes.plans_and_things import code_clip

CAPTIONS = factor_rows("caption", "train", 2)


def shown(ref):
    """What a clip shows, from its name alone."""
    action, thing, way = (int(number) for number in ref.split("-")[2:5])
    return {ACTIONS[action], OBJECTS[thing], DIRECTIONS[way]}


def test_a_stated_share_of_captions_is_wrong_and_the_others_are_untouched():
    rows = corrupted_rows(CAPTIONS, 0.3)
    wrong = [row["is_corrupted"] for row in rows]
    assert sum(wrong) == round(0.3 * len(CAPTIONS))
    for row, true, is_wrong in zip(rows, CAPTIONS, wrong, strict=True):
        assert row["clip"] == true["clip"]
        assert (row["description"] != true["description"]) == is_wrong
    texts = {row["description"] for row in CAPTIONS}
    assert {row["description"] for row in rows} <= texts


def test_a_dialogue_asks_for_each_factor_once_and_becomes_a_conversation(tmp_path):
    rows = dialogue_rows(CAPTIONS)
    orders = set()
    for row in rows:
        said = [turn["text"].removeprefix("the ") for turn in row["turns"] if turn["role"] == "assistant"]
        assert set(said) == shown(row["media"][0]["ref"]) and len(said) == 3
        orders.add(tuple(next(n for n, part in enumerate((ACTIONS, OBJECTS, DIRECTIONS)) if s in part) for s in said))
    assert len(orders) == 6
    opened = InterleavedSet(InterleavedConfig(files=(str(write_rows(tmp_path / "dialogues.jsonl", rows)),)))
    conversation = opened.conversation(0, np.random.default_rng(0))
    assert len(conversation.media) == 1 and len(conversation.turns) == 6


def test_plans_say_what_their_codes_hold_and_unseen_ones_are_not_trained_on():
    split_rows = {split: plan_rows(split) for split in ("train", "unseen")}
    texts = {split: {row["turns"][1]["text"] for row in rows["read"]} for split, rows in split_rows.items()}
    assert not texts["train"] & texts["unseen"]
    for row in split_rows["unseen"]["read"]:
        tokens = code_clip(row["media"][0]["ref"]).tokens
        halves = [
            f"{DIRECTIONS[way]} and looking {('left', 'ahead', 'right')[slot]}"
            for way, slot in zip(tokens["code_cam"][[0, 3]], tokens["code_gaze"][[0, 3]], strict=True)
        ]
        assert row["turns"][1]["text"] == f"first {halves[0]}, then {halves[1]}"


def test_held_out_rows_are_about_held_out_clips():
    files = experiment_rows({split: factor_rows("caption", split, 1) for split in ("train", "unseen")})
    known = {row["clip"] for split in ("train", "unseen") for row in factor_rows("caption", split, 1)}
    known |= set(conversation_clips())
    for name, rows in files.items():
        split = "unseen" if "unseen" in name else "train"
        refs = [row["clip"] for row in rows] if "noisy" in name else [m["ref"] for row in rows for m in row["media"]]
        assert rows and all(ref.split("-")[1] == split for ref in refs), name
        assert set(refs) <= known, name


def test_without_the_gaze_the_balanced_set_is_right_in_a_third_at_most():
    rows = balanced_rows()
    answers, seen = defaultdict(Counter), {}
    for row in rows:
        *things, slot = (int(number) for number in row["clip"].split("-")[2:-1])
        answers[tuple(things)][row["description"]] += 1
        assert row["description"] == f"the {OBJECTS[things[slot]]}"
        tokens = factor_clip(row["clip"]).tokens
        assert set(tokens) == {"code_gaze", "code_rgb"}
        seen[row["clip"]] = np.bincount(tokens["code_gaze"], minlength=3).argmax() == slot
    assert len(rows) == len(seen) == 360
    assert all(set(counts.values()) == {1} and len(counts) == 3 for counts in answers.values())
    assert np.mean(list(seen.values())) > 0.95, "the gaze tells it"


def test_the_data_of_the_tables_is_whole_and_made_once(tmp_path):
    config = CodeDataConfig(
        output=str(tmp_path), held_out_clips=1, synthetic=SyntheticDataConfig(clips_per_combination=1, vocab_size=300)
    )
    made = build_code_data(config)
    times = [path.stat().st_mtime_ns for path in made if path.is_file()]
    names = {path.name for path in made}
    assert {"captions_train.jsonl", "which_train.jsonl", "reference_unseen.jsonl", "tokenizer_reference"} <= names
    store = FeatureStore(tmp_path / "features")
    rows = [json.loads(line) for path in made if path.is_file() for line in path.read_text().splitlines()]
    shown = {row["clip"] for row in rows if "clip" in row} | {m["ref"] for row in rows for m in row.get("media", ())}
    assert shown <= set(store.refs) and any(ref.startswith("mine") for ref in shown)
    assert build_code_data(config) == made
    assert [path.stat().st_mtime_ns for path in made if path.is_file()] == times
