"""Questions about several clips have one right answer, which follows from what the clips show."""

import re

import numpy as np
import pytest

from egom2p.anytoany.world.factor_world import PARTS, factor_rows
from experiments.codes.plans_and_things import code_clip, factors_in
from experiments.codes.reference_text import passages, reference_rows
from experiments.codes.several_clips import POSITIONS, changed_rows, named_rows, thing_clips, which_rows

CAPTIONS = factor_rows("caption", "train", 2)


def shown(item):
    return {words[value] for words, value in zip(PARTS, factors_in(item["ref"]), strict=True)}


def texts_of(row):
    return row["turns"][0]["text"], row["turns"][1]["text"]


@pytest.mark.parametrize("num_clips", [2, 3])
def test_one_clip_shows_what_is_asked_and_permuted_clips_permute_the_answer(num_clips):
    rows = which_rows(CAPTIONS, 2, num_clips=num_clips)
    for start in range(0, len(rows), num_clips):
        orders = rows[start : start + num_clips]
        assert len({texts_of(row)[0] for row in orders}) == 1
        assert len({frozenset(item["ref"] for item in row["media"]) for row in orders}) == 1
        for position, row in zip(POSITIONS, orders, strict=False):
            asked, said = texts_of(row)
            is_there = [any(f" {word}?" in asked for word in shown(item)) for item in row["media"]]
            assert [POSITIONS[n] for n in np.flatnonzero(is_there)] == [position]
            assert said.endswith(f". the {position}")
            for told, item, is_it in zip(said.partition(". ")[0].split(", "), row["media"], is_there, strict=True):
                _, _, words = told.partition(" ")
                assert any(words == f"{word} {'yes' if is_it else 'no'}" for word in shown(item))


def test_the_other_styles_give_the_same_answers_to_the_same_questions():
    ends = []
    for style in ("compared", "bare", "described", "looked_up"):
        rows = which_rows(CAPTIONS, 1, style=style)
        ends.append([(texts_of(row)[0], row["media"], texts_of(row)[1].split()[-1]) for row in rows])
    assert all(end == ends[0] for end in ends)
    in_words = which_rows(CAPTIONS, 1, is_in_words=True)
    assert [texts_of(row)[1].split()[-1] for row in in_words] == [end[2] for end in ends[0]]
    assert not any(row["media"] or "{video}" in texts_of(row)[0] for row in in_words)


def test_what_changed_is_what_differs():
    found = set()
    for row in changed_rows(CAPTIONS, 2):
        before, after = (factors_in(item["ref"]) for item in row["media"])
        differing = [part for part in range(3) if before[part] != after[part]]
        named = ["the action", "the thing", "the movement"][differing[0]] if differing else "nothing"
        assert len(differing) <= 1 and texts_of(row)[1].endswith(f". {named} changed")
        found.add(named)
    assert len(found) == 4


def test_a_name_belongs_to_the_thing_that_is_shown_again():
    settings = ({}, {"is_removed": True}, {"is_told": False}, {"is_in_words": True})
    for row, removed, bare, in_words in zip(*(named_rows("train", 50, **more) for more in settings), strict=True):
        asked, said = texts_of(row)
        names = re.findall(r"\w+, (\w+):", asked)
        *known, new = (factors_in(item["ref"])[:2] for item in row["media"])
        assert len(names) == 3 and len({thing[0] for thing in (*known, new)}) == 1, "the others are of the same sort"
        assert known.count(new) == 1 and said.endswith(f". {names[known.index(new)]}")
        assert row["media"][-1] not in row["media"][:-1], "another clip of it"
        assert texts_of(bare) == (asked, names[known.index(new)])
        assert texts_of(removed)[0] == asked and texts_of(removed)[1].split()[-1] == said.split()[-1]
        assert new not in [factors_in(item["ref"])[:2] for item in removed["media"][:-1]]
        *marks, mark = re.findall(r": (\w+)", texts_of(in_words)[0])
        told = [
            f"{position} {name} {one} {'yes' if one == mark else 'no'}"
            for position, name, one in zip(POSITIONS, names, marks, strict=True)
        ]
        assert texts_of(in_words)[1] == said and said.startswith(f"this {mark}. {', '.join(told)}. ")
        assert in_words["media"] == [] and "{video}" not in "".join(texts_of(in_words))


def test_things_of_the_evaluation_are_new_but_their_marks_and_sorts_are_not():
    things = {
        split: {factors_in(item["ref"])[:2] for row in named_rows(split, 300) for item in row["media"]}
        for split in ("train", "unseen")
    }
    assert not things["train"] & things["unseen"]
    for part in range(2):
        assert {thing[part] for thing in things["unseen"]} <= {thing[part] for thing in things["train"]}


def test_a_mark_makes_a_thing_known_again_in_spite_of_wrong_codes():
    clips = [
        (factors_in(name)[1], code_clip(name).tokens["code_rgb"].reshape(4, 3)[:, 2]) for name in thing_clips("unseen")
    ]
    assert np.mean([np.bincount(codes).argmax() == mark for mark, codes in clips]) > 0.97
    assert np.mean([(codes == mark).all() for mark, codes in clips]) < 0.8


def test_the_manual_is_split_by_topic_and_keeps_its_words():
    topics = {
        split: {row["conversations"][0]["value"] for row in reference_rows(split)} for split in ("train", "unseen")
    }
    assert topics["train"] and topics["unseen"] and not topics["train"] & topics["unseen"]
    text = "one  two\n*****\n  three\n" * 40
    found = passages(text)
    assert len(found) > 1 and " ".join(found).split() == ["one", "two", "three"] * 40
