"""More clips of the world of codes: plans of movement, and things that are known again by a mark of their own.

`plan` is movement alone, of camera and eyes in two halves, without wrong codes. `mine` shows a thing of some sort with
a mark, by which it is known again in another scene.
"""

from itertools import product

import numpy as np

from egom2p.anytoany.world.factor_world import (
    ACTIONS,
    DIRECTIONS,
    NUM_SLOTS,
    NUM_TIMES,
    OBJECTS,
    Split,
    factor_clip,
    factors_of,
    of_split,
    scene_clip,
)
from egom2p.contracts import TokenClip
from egom2p.data.clip_order import clip_rng

NUM_MARKS = len(ACTIONS) + len(OBJECTS)
_ASKS = ("caption", "plan", "mine")


def plan_combinations(split: Split) -> list[tuple[int, ...]]:
    """(direction, slot) of the first half and of the second."""
    return of_split("plan", product(*[range(len(DIRECTIONS)), range(NUM_SLOTS)] * 2), split)


def thing_combinations(split: Split) -> list[tuple[int, ...]]:
    """(object, mark) without the scene, a third of the marks of each object unseen."""
    every = product(range(len(OBJECTS)), range(NUM_MARKS))
    return [factors for factors in every if (sum(factors) % 3 == 0) == (split == "unseen")]


def factors_in(name: str) -> tuple[int, ...]:
    """Factors of a caption's clip, of a plan, or of a thing with its scene: (object, mark, action, direction)."""
    return factors_of(name, _ASKS)


def code_clip(name: str) -> TokenClip:
    """The codes of any clip of the experiments; ValueError for a name that is none."""
    ask, rng = name.partition("-")[0], clip_rng(0, name)
    if ask == "mine":
        thing, mark, action, direction = factors_in(name)
        return scene_clip(name, action, thing, direction, mark=mark, rng=rng)
    if ask == "plan":
        factors = factors_in(name)
        way_H, slot_H = (np.asarray(factors[start::2], np.int32) for start in (0, 1))
        halves = NUM_TIMES // 2
        return TokenClip(name, {"code_cam": way_H.repeat(halves), "code_gaze": slot_H.repeat(halves)})
    return factor_clip(name)
