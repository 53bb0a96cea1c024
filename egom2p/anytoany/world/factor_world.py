"""A world of codes: the smallest in which a language model must combine what it perceives.

A clip is a few codes of known factors, a tenth of them wrong. Captions name an action, an object and a direction;
some combinations are kept back. `looked_at` shows several objects side by side, and only the gaze says which is meant.
A clip is a function of its name.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Literal, get_args

import numpy as np

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.data.clip_order import clip_rng

Ask = Literal["caption", "looked_at"]
Split = Literal["train", "unseen"]
ACTIONS = ("picks up", "puts down", "pushes", "opens", "wipes", "turns over")
OBJECTS = ("red mug", "blue bowl", "green box", "white plate", "black pan", "yellow jar")
DIRECTIONS = ("walking forward", "turning left", "turning right", "standing still")
PARTS = (ACTIONS, OBJECTS, DIRECTIONS)
NUM_SLOTS = 3
NUM_TIMES = 4
_WRONG_SHARE = 0.1
_UNSEEN_EVERY = 5


def factor_specs() -> tuple[ModalitySpec, ...]:
    """Modalities of the world, sorted by name: what the head camera sees, how it moves, where the eyes are."""
    track, grid = TokenGrid((NUM_TIMES,)), TokenGrid((NUM_TIMES, 1, NUM_SLOTS))
    return (
        ModalitySpec("code_cam", "track", "camera", track, len(DIRECTIONS), "cam"),
        ModalitySpec("code_gaze", "track", "gaze", track, NUM_SLOTS, "gaze"),
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
    """Factors of all clips of a split.

    `caption`: (action, object, direction); `looked_at`: (object of each slot ..., slot that is looked at)
    """
    if ask == "caption":
        return of_split(ask, product(range(len(ACTIONS)), range(len(OBJECTS)), range(len(DIRECTIONS))), split)
    objects = [row for row in product(range(len(OBJECTS)), repeat=NUM_SLOTS) if len(set(row)) == NUM_SLOTS]
    return of_split(ask, [(*row, slot) for row, slot in product(objects, range(NUM_SLOTS))], split)


def of_split(ask: str, every: Iterable[tuple[int, ...]], split: Split) -> list[tuple[int, ...]]:
    """Every fifth combination is unseen, spread so that each value occurs in training."""
    every = list(every)
    unseen = set(clip_rng(0, f"unseen {ask}").permutation(len(every))[::_UNSEEN_EVERY].tolist())
    return [factors for number, factors in enumerate(every) if (number in unseen) == (split == "unseen")]


def answer(ask: Ask, factors: tuple[int, ...]) -> str:
    """The caption of the factors."""
    if ask == "caption":
        action, thing, direction = factors
        return f"the wearer {ACTIONS[action]} the {OBJECTS[thing]} while {DIRECTIONS[direction]}"
    return f"the {OBJECTS[factors[factors[-1]]]}"


def factors_of(name: str, asks: Sequence[str] = get_args(Ask)) -> tuple[int, ...]:
    """Numbers in the name of a clip: its factors, without the last one, which counts clips of the same factors."""
    ask, _, *numbers = name.split("-")
    if ask not in asks or not all(number.isdigit() for number in numbers):
        raise ValueError(f"{name!r} is no clip of the world of codes")
    return tuple(int(number) for number in numbers[:-1])


def factor_clip(name: str) -> TokenClip:
    """The codes of a clip; ValueError for a name that is no clip of this world."""
    factors, ask = factors_of(name), name.partition("-")[0]
    rng = clip_rng(0, name)
    if ask == "caption":
        action, thing, direction = factors
        return scene_clip(name, action, thing, direction, rng=rng)
    *things, slot = factors
    rgb_TX = np.stack([noisy_codes(thing, len(ACTIONS), len(OBJECTS), rng) for thing in things], axis=1)
    return TokenClip(name, {"code_gaze": noisy_codes(slot, 0, NUM_SLOTS, rng), "code_rgb": rgb_TX.reshape(-1)})


def scene_clip(
    name: str, action: int, thing: int, direction: int, *, mark: int | None = None, rng: np.random.Generator
) -> TokenClip:
    """What the hands do with a thing while the wearer moves; beside it a mark of the thing, or nothing."""
    seen = [noisy_codes(action, 0, len(ACTIONS), rng), noisy_codes(thing, len(ACTIONS), len(OBJECTS), rng)]
    # -1: nothing there
    last = np.full(NUM_TIMES, -1) if mark is None else noisy_codes(mark, 0, len(ACTIONS) + len(OBJECTS), rng)
    rgb_TX = np.stack([*seen, last], axis=1)
    return TokenClip(
        name, {"code_cam": noisy_codes(direction, 0, len(DIRECTIONS), rng), "code_rgb": rgb_TX.reshape(-1)}
    )


def noisy_codes(value: int, first: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) codes of a value; at some of them that of another value."""
    wrong_T, other_T = rng.random(NUM_TIMES), rng.integers(count, size=NUM_TIMES)
    return (first + np.where(wrong_T < _WRONG_SHARE, other_T, value)).astype(np.int32)
