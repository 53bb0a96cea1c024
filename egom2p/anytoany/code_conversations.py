"""Conversations about clips of the world of codes, rows of `interleaved` data sets, and captions with planted errors.

Everything here is made by rules from the names of clips; no language model wrote any of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from egom2p.anytoany.factor_world import ACTIONS, DIRECTIONS, OBJECTS, Split, combinations
from egom2p.data.clip_order import clip_rng

_CORRUPTED_SHARE = 0.3
_PAIRS_PER_CLIP: dict[Split, int] = {"train": 2, "unseen": 8}
Row = dict[str, Any]
_PARTS = (ACTIONS, OBJECTS, DIRECTIONS)
_ASKED = (
    ("What do the hands do?", "Which action can be seen?"),
    ("What is in the hands?", "Which thing does the wearer handle?"),
    ("How does the wearer move?", "And the way the camera goes?"),
)
_SHOWN = ("shows that the wearer {}", "shows the {}", "was taken {}")
_SLOTS = ("left", "ahead", "right")


def experiment_rows(captions: Mapping[Split, Sequence[Row]]) -> dict[str, list[Row]]:
    """File name -> rows of the data sets of the experiments; `captions`: rows {clip, description} of each split."""
    files = {"captions_noisy.jsonl": corrupted_rows(captions["train"], _CORRUPTED_SHARE)}
    for split, rows in captions.items():
        files[f"dialogues_{split}.jsonl"] = dialogue_rows(rows)
        for name, is_told in (("which", False), ("which_told", True)):
            files[f"{name}_{split}.jsonl"] = which_rows(rows, _PAIRS_PER_CLIP[split], is_told=is_told)
        files |= {f"{name}_{split}.jsonl": plans for name, plans in plan_rows(split).items()}
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
            said = _PARTS[part][_factors(caption)[part]]
            turns.append({"role": "assistant", "text": f"the {said}" if part == 1 else said})
        rows.append({"key": f"{caption['clip']}/dialogue", "turns": turns, "media": [_video(caption)]})
    return rows


def which_rows(captions: Sequence[Row], pairs_per_clip: int, *, is_told: bool = False) -> list[Row]:
    """Two clips and the question which of them shows something; every pair in both orders, with the same question.

    is_told   the answer first tells what each of the two shows
    """
    rows = []
    for number, one in enumerate(captions):
        rng = clip_rng(0, "which", *one["clip"].encode())
        for pair in range(pairs_per_clip):
            other = captions[int(rng.integers(len(captions)))]
            differing = [p for p in range(3) if _factors(one)[p] != _factors(other)[p]]
            if not differing:
                continue
            part = differing[int(rng.integers(len(differing)))]
            shown = _SHOWN[part].format(_PARTS[part][_factors(one)[part]])
            for order, media in (("first", (one, other)), ("second", (other, one))):
                seen = ", then ".join(_PARTS[part][_factors(clip)[part]] for clip in media)
                said = f"{seen}: the {order}" if is_told else f"the {order}"
                turns = [
                    {"role": "user", "text": f"First: {{video}} Second: {{video}}\nWhich clip {shown}?"},
                    {"role": "assistant", "text": said},
                ]
                key = f"which/{number}/{pair}/{order}"
                rows.append({"key": key, "turns": turns, "media": [_video(clip) for clip in media]})
    return rows


def plan_rows(split: Split) -> dict[str, list[Row]]:
    """`say`: a plan in words, the codes of gaze and camera to be said; `read`: the other way round."""
    found: dict[str, list[Row]] = {"say": [], "read": []}
    for factors in combinations("plan", split):
        clip = "-".join(["plan", split, *map(str, factors), "0"])
        text = plan_text(factors)
        media = [{"kind": kind, "ref": clip} for kind in ("gaze", "cam")]
        pairs = {"say": (f"Move: {text}.", "{gaze}{cam}"), "read": ("{gaze}{cam}\nWhich movement is this?", text)}
        for name, (question, said) in pairs.items():
            turns = [{"role": "user", "text": question}, {"role": "assistant", "text": said}]
            found[name].append({"key": f"{clip}/{name}", "turns": turns, "media": media})
    return found


def plan_clips() -> list[str]:
    """Names of all clips of plans."""
    return [row["media"][0]["ref"] for split in ("train", "unseen") for row in plan_rows(split)["say"]]


def plan_text(factors: Sequence[int]) -> str:
    """A plan of two halves, each a direction and where the eyes are."""
    halves = [f"{DIRECTIONS[way]} and looking {_SLOTS[slot]}" for way, slot in (factors[:2], factors[2:])]
    return f"first {halves[0]}, then {halves[1]}"


def _factors(caption: Row) -> tuple[int, ...]:
    return tuple(int(number) for number in caption["clip"].split("-")[2:5])


def _video(caption: Row) -> dict[str, str]:
    return {"kind": "video", "ref": caption["clip"]}
