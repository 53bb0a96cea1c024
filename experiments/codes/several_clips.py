"""Conversations about several clips of the world of codes: which shows it, what changed, and who is this.

Answers first tell what each clip shows and whether that is what was asked.
"""

from collections.abc import Sequence
from typing import Any, Literal

from egom2p.anytoany.world.factor_world import PARTS, Split
from egom2p.data.clip_order import clip_rng
from experiments.codes.plans_and_things import factors_in, thing_combinations

Row = dict[str, Any]
Style = Literal["bare", "described", "looked_up", "compared"]
POSITIONS = ("first", "second", "third")
_SHOWN = ("shows that the wearer {}", "shows the {}", "was taken {}")
_PART_NAMES = ("the action", "the thing", "the movement")
_NAMES = ("ziko", "ramu", "felo", "wibim", "duga", "pevash", "sorex", "nehy", "talo", "golmip", "sendu", "furla")
_MARKS = ("dotted", "striped", "checked", "plain", "rough", "smooth", "shiny", "dull", "worn", "new", "thin", "thick")
_CLIPS_PER_THING = 12


def which_rows(
    captions: Sequence[Row],
    sets_per_clip: int,
    *,
    style: Style = "compared",
    num_clips: int = 2,
    is_in_words: bool = False,
    seed: int = 0,
) -> list[Row]:
    """Several clips and the question which of them shows something.

    Every set comes in `num_clips` orders with the same question, so that always naming one position is right in one of
    them. Only one of the clips shows what is asked.

    style   `bare`: "the second"; `described`: "opens, then pushes: the second";
            `looked_up`: "shown: opens first, pushes second. pushes second";
            `compared`: "first opens no, second pushes yes. the second"
    is_in_words   practice: words that say what is shown stand in the clips' positions
    """
    rows = []
    for one in captions:
        rng = clip_rng(seed, "which", *one["clip"].encode())
        for attempt in range(sets_per_clip):
            others = [captions[int(index)] for index in rng.integers(len(captions), size=num_clips - 1)]
            found = [[factors_in(clip["clip"])[part] for clip in (one, *others)] for part in range(3)]
            parts = [part for part, values in enumerate(found) if values[0] not in values[1:]]
            if not parts:
                continue
            part = parts[int(rng.integers(len(parts)))]
            for turn, position in enumerate(POSITIONS[:num_clips]):
                shown = [[one, *others][(index - turn) % num_clips]["clip"] for index in range(num_clips)]
                words = [PARTS[part][factors_in(clip)[part]] for clip in shown]
                items = words if is_in_words else ["{video}"] * num_clips
                question = " ".join(
                    f"{name.capitalize()}: {item}" for name, item in zip(POSITIONS, items, strict=False)
                )
                question += f"\nWhich clip {_SHOWN[part].format(words[turn])}?"
                turns = _turns(question, _which_answer(words, turn, style))
                media = [] if is_in_words else [video_of(clip) for clip in shown]
                rows.append({"key": f"which/{one['clip']}/{attempt}/{position}", "turns": turns, "media": media})
    return rows


def changed_rows(captions: Sequence[Row], pairs_per_clip: int, *, seed: int = 0) -> list[Row]:
    """Two clips that differ in one factor or in none, and the question what changed."""
    of_factors: dict[tuple[int, ...], list[str]] = {}
    for row in captions:
        of_factors.setdefault(factors_in(row["clip"]), []).append(row["clip"])
    rows = []
    for row in captions:
        rng, before = clip_rng(seed, "changed", *row["clip"].encode()), factors_in(row["clip"])
        near = [found for found in of_factors if sum(a != b for a, b in zip(found, before, strict=True)) == 1]
        for pair in range(pairs_per_clip):
            after = before if not near or rng.random() < 0.2 else near[int(rng.integers(len(near)))]
            other = of_factors[after][int(rng.integers(len(of_factors[after])))]
            words = [[PARTS[part][factors[part]] for part in range(3)] for factors in (before, after)]
            is_new = [one != two for one, two in zip(before, after, strict=True)]
            seen = [
                f"{one} then {two} {'changed' if is_found else 'same'}"
                for one, two, is_found in zip(*words, is_new, strict=True)
            ]
            found = next((name for name, is_found in zip(_PART_NAMES, is_new, strict=True) if is_found), "nothing")
            said = f"{', '.join(seen)}. {found} changed"
            question = "First: {video} Second: {video}\nWhat changed between the first and the second?"
            media = [video_of(clip) for clip in (row["clip"], other)]
            rows.append({"key": f"changed/{row['clip']}/{pair}", "turns": _turns(question, said), "media": media})
    return rows


def named_rows(
    split: Split,
    num_rows: int,
    *,
    is_told: bool = True,
    is_in_words: bool = False,
    is_removed: bool = False,
    seed: int = 0,
) -> list[Row]:
    """Three things of one sort get made-up names, a clip each; a new clip shows one of them: who is it?

    Names are dealt anew in every conversation. Things of `unseen` never occur in training, and the new clip has a scene
    and wrong codes of its own.

    is_told      the answer first tells the mark of each and whether it is the same: "this striped. first ziko
                 plain no, second ramu striped yes, third felo worn no. ramu"; otherwise it is "ramu" alone
    is_in_words  practice: words for the marks stand in the clips' positions
    is_removed   another thing is shown under the name that is asked for, so that nobody can know it
    """
    things: dict[int, list[tuple[int, ...]]] = {}
    for factors in thing_combinations(split):
        things.setdefault(factors[0], []).append(factors)
    rows = []
    for number in range(num_rows):
        rng = clip_rng(seed, f"named {split}", number)
        sort = things[int(rng.integers(len(things)))]
        *known, stranger = [sort[int(index)] for index in rng.permutation(len(sort))[: len(POSITIONS) + 1]]
        called = [_NAMES[int(index)] for index in rng.permutation(len(_NAMES))[: len(POSITIONS)]]
        asked = int(rng.integers(len(POSITIONS)))
        new = known[asked]
        if is_removed:
            known[asked] = stranger
        clips = [_thing_clip(split, thing, int(rng.integers(_CLIPS_PER_THING // 2))) for thing in known]
        clips.append(_thing_clip(split, new, int(rng.integers(_CLIPS_PER_THING // 2, _CLIPS_PER_THING))))
        told = [_MARKS[mark] for _, mark in (*known, new)]
        items = told if is_in_words else ["{video}"] * len(told)
        heads = [f"{position.capitalize()}, {name}" for position, name in zip(POSITIONS, called, strict=True)]
        question = " ".join(f"{head}: {item}" for head, item in zip([*heads, "\nThis"], items, strict=True))
        said = called[asked]
        if is_told:
            flags = ["yes" if thing == new else "no" for thing in known]
            seen = [" ".join(words) for words in zip(POSITIONS, called, told, flags, strict=False)]
            said = f"this {told[-1]}. {', '.join(seen)}. {said}"
        key = "-".join(["named/mine", split, *map(str, new), str(number)])
        media = [] if is_in_words else [video_of(clip) for clip in clips]
        rows.append({"key": key, "turns": _turns(f"{question} Who is it?", said), "media": media})
    return rows


def thing_clips(split: Split) -> list[str]:
    """Names of all clips of things that can be given a name."""
    return [_thing_clip(split, thing, n) for thing in thing_combinations(split) for n in range(_CLIPS_PER_THING)]


def video_of(clip: str) -> dict[str, str]:
    return {"kind": "video", "ref": clip}


def _thing_clip(split: Split, thing: tuple[int, ...], number: int) -> str:
    rng = clip_rng(0, f"scene of {thing}", number)
    scene = (int(rng.integers(len(PARTS[0]))), int(rng.integers(len(PARTS[2]))))
    return "-".join(["mine", split, *map(str, (*thing, *scene)), str(number)])


def _which_answer(words: Sequence[str], asked: int, style: Style) -> str:
    if style == "bare":
        return f"the {POSITIONS[asked]}"
    if style == "described":
        return f"{', then '.join(words)}: the {POSITIONS[asked]}"
    if style == "looked_up":
        seen = [f"{word} {position}" for word, position in zip(words, POSITIONS, strict=False)]
        return f"shown: {', '.join(seen)}. {seen[asked]}"
    seen = [f"{POSITIONS[n]} {word} {'yes' if n == asked else 'no'}" for n, word in enumerate(words)]
    return f"{', '.join(seen)}. the {POSITIONS[asked]}"


def _turns(question: str, said: str) -> list[dict[str, str]]:
    return [{"role": "user", "text": question}, {"role": "assistant", "text": said}]
