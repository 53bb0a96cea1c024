"""Which recordings train a model and which measure it, and what two sides of that have in common.

Recordings of one participant (or one environment) go to one side. Which, is told by a hash of the group's name alone:
recordings that come later change nothing for those that are there, on any machine.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import combinations
from typing import Literal

from egom2p.config import Share, strict
from egom2p.contracts import plain_name

_KINDS = ("participant", "environment")


@strict
class SplitConfig:
    """Shares of the groups of recordings.

    by        what a group is. auto: participant where every recording's name tells it, else environment, else each
              recording is a group of its own
    fractions  side -> share of the groups; what is left of 1 is `train`
    assign    group -> side, whatever the hash says
    pattern   regular expression on names of recordings with a group (?P<participant>...) or (?P<environment>...), by
              default that of the format
    leaks     the same video on both sides is an error, or reported
    """

    by: Literal["auto", "participant", "environment", "recording"] = "auto"
    fractions: dict[str, Share] = field(default_factory=lambda: {"validation": 0.1, "test": 0.1})
    assign: dict[str, str] = field(default_factory=dict)
    pattern: str | None = None
    salt: str = ""  # another one draws other sides
    leaks: Literal["error", "report"] = "error"

    def __post_init__(self) -> None:
        for side in (*self.fractions, *self.assign.values()):
            plain_name(side, "side of a split")
        if min(self.fractions.values(), default=0) < 0 or sum(self.fractions.values()) > 1:
            raise ValueError(f"fractions must be shares of 1, got {self.fractions}")
        try:
            known = set(re.compile(self.pattern or "").groupindex)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        if self.pattern is not None and not known & set(_KINDS):
            raise ValueError(f"pattern {self.pattern!r}: wanted a group (?P<participant>...) or (?P<environment>...)")


def groups_of(name: str, pattern: str) -> dict[str, str]:
    """Participant and environment that the name of a recording tells; those it does not are not there."""
    found = re.search(pattern, name) if pattern else None
    return {kind: text for kind, text in found.groupdict().items() if text and kind in _KINDS} if found else {}


def sides_of(names: Sequence[str], split: SplitConfig, pattern: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """What a group is here, name -> group, name -> side.

    Raises ValueError naming the recordings whose group is asked for and not known.
    """
    known = {name: groups_of(name, split.pattern or pattern) for name in names}
    by = split.by
    if by == "auto":
        by = next((kind for kind in _KINDS if names and all(kind in known[name] for name in names)), "recording")
    if unknown := [name for name in names if by != "recording" and by not in known[name]]:
        raise ValueError(
            f"split.by={by}: names of {len(unknown)} of {len(names)} recordings do not tell it, the first "
            f"{unknown[0]!r}; split.pattern says how they do, split.by=recording is for those that do not"
        )
    groups = {name: name if by == "recording" else known[name][by] for name in names}
    return by, groups, {name: _side(group, split) for name, group in groups.items()}


def _side(group: str, split: SplitConfig) -> str:
    if group in split.assign:
        return split.assign[group]
    digest = hashlib.sha256(f"{split.salt}\n{group}".encode()).digest()
    place, edge = int.from_bytes(digest[:8]) / 2**64, 0.0
    for side, share in sorted(split.fractions.items()):
        edge += share
        if place < edge:
            return side
    return "train"


def find_leaks(sides: Mapping[str, str], pattern: str, hashes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Sentences on what two sides share: the same video, and the same participant or environment.

    hashes: recording -> hash of its pictures; empty where there are none.
    """
    videos: dict[str, list[str]] = {}
    for name, found in hashes.items():
        if found:
            videos.setdefault(found, []).append(name)
    same = [
        f"{first} ({sides[first]}) and {second} ({sides[second]}) show the same video"
        for names in videos.values()
        for first, second in combinations(sorted(names), 2)
        if sides[first] != sides[second]
    ]
    shared = []
    for kind in _KINDS:
        of_group: dict[str, set[str]] = {}
        for name, side in sides.items():
            if (group := groups_of(name, pattern).get(kind)) is not None:
                of_group.setdefault(group, set()).add(side)
        crossing = {group: sorted(found) for group, found in sorted(of_group.items()) if len(found) > 1}
        shared += [f"{kind} {group} is in {' and '.join(found)}" for group, found in crossing.items()]
    return same, shared
