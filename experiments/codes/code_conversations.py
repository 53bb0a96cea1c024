"""Conversations about clips of the world of codes, rows of `interleaved` data sets, and captions with planted errors.

Everything here is made by rules from the names of clips; no language model wrote any of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from egom2p.anytoany.world.factor_world import DIRECTIONS, PARTS, Split, answer, combinations
from egom2p.data.clip_order import clip_rng
from experiments.codes.plans_and_things import factors_in, plan_combinations
from experiments.codes.several_clips import changed_rows, named_rows, thing_clips, video_of, which_rows

_CORRUPTED_SHARE = 0.3
_SETS_PER_CLIP: dict[Split, int] = {"train": 4, "unseen": 1}
_NUM_NAMED_ROWS: dict[Split, int] = {"train": 8000, "unseen": 500}
Row = dict[str, Any]
_ASKED = (
    ("What do the hands do?", "Which action can be seen?"),
    ("What is in the hands?", "Which thing does the wearer handle?"),
    ("How does the wearer move?", "And the way the camera goes?"),
)
_SLOTS = ("left", "ahead", "right")


def experiment_rows(captions: Mapping[Split, Sequence[Row]]) -> dict[str, list[Row]]:
    """File name -> rows of the data sets of the experiments; `captions`: rows {clip, description} of each split."""
    files = {"captions_noisy.jsonl": corrupted_rows(captions["train"], _CORRUPTED_SHARE)}
    for split, rows in captions.items():
        sets_per_clip = _SETS_PER_CLIP[split]
        files[f"dialogues_{split}.jsonl"] = dialogue_rows(rows)
        files[f"which_bare_{split}.jsonl"] = which_rows(rows, sets_per_clip, style="bare")
        files[f"which_described_{split}.jsonl"] = which_rows(rows, sets_per_clip, style="described")
        files[f"which_looked_up_{split}.jsonl"] = which_rows(rows, sets_per_clip, style="looked_up")
        files[f"which_{split}.jsonl"] = which_rows(rows, sets_per_clip)
        files[f"which_of_three_{split}.jsonl"] = which_rows(rows, sets_per_clip, num_clips=3)
        files[f"changed_{split}.jsonl"] = changed_rows(rows, sets_per_clip)
        files[f"named_{split}.jsonl"] = named_rows(split, _NUM_NAMED_ROWS[split])
        files[f"named_bare_{split}.jsonl"] = named_rows(split, _NUM_NAMED_ROWS[split], is_told=False)
        files |= {f"{name}_{split}.jsonl": plans for name, plans in plan_rows(split).items()}
    files["which_in_words_train.jsonl"] = which_rows(captions["train"], 2, is_in_words=True)
    files["named_in_words_train.jsonl"] = named_rows("train", _NUM_NAMED_ROWS["train"] // 2, is_in_words=True)
    files["named_removed_unseen.jsonl"] = named_rows("unseen", _NUM_NAMED_ROWS["unseen"], is_removed=True)
    return files


def corrupted_rows(captions: Sequence[Row], share: float, *, seed: int = 0) -> list[Row]:
    """The rows with `is_corrupted`; a share of them have the caption of a clip that shows something else."""
    rng = clip_rng(seed, "corrupted captions")
    is_corrupted = set(rng.permutation(len(captions))[: round(share * len(captions))].tolist())
    rows = []
    for number, row in enumerate(captions):
        others = [other["description"] for other in captions if other["description"] != row["description"]]
        wrong = others[int(rng.integers(len(others)))]
        found = number in is_corrupted
        rows.append({**row, "description": wrong if found else row["description"], "is_corrupted": found})
    return rows


def dialogue_rows(captions: Sequence[Row]) -> list[Row]:
    """A dialogue of three questions about each clip, in any order, each in one of its wordings."""
    rows = []
    for caption in captions:
        rng = clip_rng(0, "dialogue", *caption["clip"].encode())
        turns = []
        for part in rng.permutation(3).tolist():
            question = _ASKED[part][int(rng.integers(2))]
            turns.append({"role": "user", "text": question if turns else "{video}\n" + question})
            said = PARTS[part][factors_in(caption["clip"])[part]]
            turns.append({"role": "assistant", "text": f"the {said}" if part == 1 else said})
        rows.append({"key": f"{caption['clip']}/dialogue", "turns": turns, "media": [video_of(caption["clip"])]})
    return rows


def plan_rows(split: Split) -> dict[str, list[Row]]:
    """`say`: a plan in words, the codes of gaze and camera to be said; `read`: the other way round."""
    found: dict[str, list[Row]] = {"say": [], "read": []}
    for factors in plan_combinations(split):
        clip = "-".join(["plan", split, *map(str, factors), "0"])
        text = plan_text(factors)
        media = [{"kind": kind, "ref": clip} for kind in ("gaze", "cam")]
        pairs = {"say": (f"Move: {text}.", "{gaze}{cam}"), "read": ("{gaze}{cam}\nWhich movement is this?", text)}
        for name, (question, said) in pairs.items():
            turns = [{"role": "user", "text": question}, {"role": "assistant", "text": said}]
            found[name].append({"key": f"{clip}/{name}", "turns": turns, "media": media})
    return found


def conversation_clips() -> list[str]:
    """Names of the clips that these rows show beside those of the captions: plans, and things with names."""
    splits: tuple[Split, ...] = ("train", "unseen")
    plans = [row["media"][0]["ref"] for split in splits for row in plan_rows(split)["say"]]
    return [*plans, *(clip for split in splits for clip in thing_clips(split))]


def plan_text(factors: Sequence[int]) -> str:
    """A plan of two halves, each a direction and where the eyes are."""
    halves = [f"{DIRECTIONS[way]} and looking {_SLOTS[slot]}" for way, slot in (factors[:2], factors[2:])]
    return f"first {halves[0]}, then {halves[1]}"


def balanced_rows() -> list[Row]:
    """New clips, of every three objects one for each that may be looked at.

    Without the gaze nobody is right more often than in a third of them.
    """
    every = sorted([*combinations("looked_at", "train"), *combinations("looked_at", "unseen")])
    return [
        {
            "clip": "-".join(["looked_at", "balanced", *map(str, factors), "0"]),
            "description": answer("looked_at", factors),
        }
        for factors in every
    ]


def repeated_rows(captions: Sequence[Row]) -> list[Row]:
    """Conversations that can be answered from their text alone."""
    texts = sorted({row["description"] for row in captions})
    return [
        {
            "conversations": [
                {"from": "human", "value": f"Say again: {text}"},
                {"from": "gpt", "value": text},
            ]
        }
        for text in texts
    ]
