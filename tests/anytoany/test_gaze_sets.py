"""Sets for questions about gaze: what is where, and a set that nobody can answer without the gaze."""

from collections import Counter, defaultdict

import numpy as np

from egom2p.anytoany.world.factor_world import OBJECTS, factor_clip
from egom2p.anytoany.world.synthetic_data import _balanced_rows
from egom2p.anytoany.world.world_questions import ClipFacts, answer_to

NAMES = ("red ball", "orange box", "pink barrel")


def facts(across, seen=(True, True, True)):
    targets = np.zeros(60, int)
    return ClipFacts("c", "", targets, 0.0, 0.0, NAMES, seen, across)


def test_three_things_side_by_side_have_an_order():
    assert facts((0.8, 0.2, 0.5)).row == ("orange box", "pink barrel", "red ball")
    assert answer_to("position", facts((0.8, 0.2, 0.5)), min_candidates=3) == "an orange box"
    assert answer_to("row", facts((0.8, 0.2, 0.5)), min_candidates=3) == "an orange box, a pink barrel, a red ball"
    assert facts((0.8, 0.2, 0.21)).row is None, "too close to be left and right"
    assert facts((0.8, 0.2, 0.5), (True, False, True)).row is None
    assert facts(None).row is None and answer_to("position", facts(None), min_candidates=1) is None


def test_without_the_gaze_the_balanced_set_is_right_in_a_third_at_most():
    rows = _balanced_rows()
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
