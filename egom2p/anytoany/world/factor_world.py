"""A world of codes: the smallest in which a language model must combine what it perceives.

A clip is a few codes of known factors, a tenth of them wrong. Captions name an action, an object and a direction;
some combinations are kept back. `looked_at` shows several objects side by side, and only the gaze says which is meant.
`plan` is movement alone, of camera and eyes in two halves, without wrong codes. `mine` shows a thing of some sort with
a mark of its own, by which it is known again in another scene.
A clip is a function of its name.
"""

from itertools import product
from typing import Any, Literal

import numpy as np

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.data.clip_order import clip_rng

Ask = Literal["caption", "looked_at", "plan", "mine"]
Split = Literal["train", "unseen"]
ACTIONS = ("picks up", "puts down", "pushes", "opens", "wipes", "turns over")
OBJECTS = ("red mug", "blue bowl", "green box", "white plate", "black pan", "yellow jar")
DIRECTIONS = ("walking forward", "turning left", "turning right", "standing still")
PARTS = (ACTIONS, OBJECTS, DIRECTIONS)
MARKS = len(ACTIONS) + len(OBJECTS)
_NUM_SLOTS = 3
_TIMES = 4
_WRONG_SHARE = 0.1
_UNSEEN_EVERY = 5


def factor_specs() -> tuple[ModalitySpec, ...]:
    """Modalities of the world, sorted by name: what the head camera sees, how it moves, where the eyes are."""
    track, grid = TokenGrid((_TIMES,)), TokenGrid((_TIMES, 1, _NUM_SLOTS))
    return (
        ModalitySpec("code_cam", "track", "camera", track, len(DIRECTIONS), "cam"),
        ModalitySpec("code_gaze", "track", "gaze", track, _NUM_SLOTS, "gaze"),
        ModalitySpec("code_rgb", "grid", "rgb", grid, len(ACTIONS) + len(OBJECTS), "rgb"),
    )


def factor_rows(ask: Ask, split: Split, clips_per_combination: int) -> list[dict[str, Any]]:
    """Rows {clip, description}: the clip's name, and what it shows or what is looked at."""
    return [
        # Clips of the splits differ in their noise too, not only in their combinations.
        {"clip": "-".join([ask, split, *map(str, factors), str(number)]), "description": answer(ask, factors)}
        for number in range(clips_per_combination)
        for factors in combinations(ask, split)
    ]


def combinations(ask: Ask, split: Split) -> list[tuple[int, ...]]:
    """Factors of all clips of a split; every fifth combination is unseen, spread so that each value occurs in training.

    `caption`: (action, object, direction); `looked_at`: (object of each slot ..., slot that is looked at);
    `plan`: (direction, slot) of the first half and of the second; `mine`: (object, mark) without the scene, a third
    of the marks of each object unseen
    """
    if ask == "caption":
        every = list(product(range(len(ACTIONS)), range(len(OBJECTS)), range(len(DIRECTIONS))))
    elif ask == "plan":
        every = list(product(*[range(len(DIRECTIONS)), range(_NUM_SLOTS)] * 2))
    elif ask == "mine":
        every = list(product(range(len(OBJECTS)), range(MARKS)))
        return [factors for factors in every if (sum(factors) % 3 == 0) == (split == "unseen")]
    else:
        objects = [row for row in product(range(len(OBJECTS)), repeat=_NUM_SLOTS) if len(set(row)) == _NUM_SLOTS]
        every = [(*row, slot) for row, slot in product(objects, range(_NUM_SLOTS))]
    unseen = set(clip_rng(0, f"unseen {ask}").permutation(len(every))[::_UNSEEN_EVERY].tolist())
    return [factors for number, factors in enumerate(every) if (number in unseen) == (split == "unseen")]


def answer(ask: Ask, factors: tuple[int, ...]) -> str:
    """What is to be said of the factors."""
    if ask == "caption":
        action, thing, direction = factors
        return f"the wearer {ACTIONS[action]} the {OBJECTS[thing]} while {DIRECTIONS[direction]}"
    return f"the {OBJECTS[factors[factors[-1]]]}"


def factors_of(name: str) -> tuple[int, ...]:
    """Numbers in the name of a clip: its factors, without the last one, which counts clips of the same factors."""
    ask, _, *numbers = name.split("-")
    if ask not in ("caption", "looked_at", "plan", "mine") or not all(number.isdigit() for number in numbers):
        raise ValueError(f"{name!r} is no clip of the world of codes")
    return tuple(int(number) for number in numbers[:-1])


def factor_clip(name: str) -> TokenClip:
    """The codes of a clip; ValueError for a name that is no clip of this world."""
    factors, ask = factors_of(name), name.partition("-")[0]
    rng = clip_rng(0, name)
    if ask in ("caption", "mine"):
        thing, *mark, action, direction = factors if ask == "mine" else (factors[1], factors[0], factors[2])
        seen = [_noisy(action, 0, len(ACTIONS), rng), _noisy(thing, len(ACTIONS), len(OBJECTS), rng)]
        # -1: nothing there
        rgb_TX = np.stack([*seen, _noisy(mark[0], 0, MARKS, rng) if mark else np.full(_TIMES, -1)], axis=1)
        return TokenClip(name, {"code_cam": _noisy(direction, 0, len(DIRECTIONS), rng), "code_rgb": rgb_TX.reshape(-1)})
    if ask == "plan":
        way_H, slot_H = (np.asarray(factors[start::2], np.int32) for start in (0, 1))
        return TokenClip(name, {"code_cam": way_H.repeat(_TIMES // 2), "code_gaze": slot_H.repeat(_TIMES // 2)})
    *things, slot = factors
    rgb_TX = np.stack([_noisy(thing, len(ACTIONS), len(OBJECTS), rng) for thing in things], axis=1)
    return TokenClip(name, {"code_gaze": _noisy(slot, 0, _NUM_SLOTS, rng), "code_rgb": rgb_TX.reshape(-1)})


def _noisy(value: int, first: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) codes of a value; at some of them that of another value."""
    wrong_T, other_T = rng.random(_TIMES), rng.integers(count, size=_TIMES)
    return (first + np.where(wrong_T < _WRONG_SHARE, other_T, value)).astype(np.int32)
