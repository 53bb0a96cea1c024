"""Direct tasks: all places of some modalities -> all places of others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from egom2p.contracts import MaskedClip, ModalitySpec, TokenClip
from egom2p.data.sequence_masking import mask_sequence


class TransferMasking:
    """A fixed task: all places of the input modalities a clip has -> all places of the target modalities it has."""

    def __init__(self, specs: Sequence[ModalitySpec], inputs: Sequence[str], targets: Sequence[str]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        if unknown := sorted({*inputs, *targets} - set(self._specs)):
            raise ValueError(f"transfer names {unknown}, but the modalities are {sorted(self._specs)}")
        if both := sorted(set(inputs) & set(targets)):
            raise ValueError(f"a transfer's inputs and targets are disjoint, {both} is in both")
        self._inputs, self._targets = tuple(inputs), tuple(targets)

    def __call__(self, clip: TokenClip, rng: np.random.Generator) -> MaskedClip:
        return transfer_places(clip, self._inputs, self._targets, self._specs, rng)


def transfer_places(
    clip: TokenClip,
    inputs: Sequence[str],
    targets: Sequence[str],
    specs: Mapping[str, ModalitySpec],
    rng: np.random.Generator,
    *,
    places_per_input: int | None = None,
    places_per_target: int | None = None,
    next_frame: bool = False,
) -> MaskedClip:
    """All places of the inputs -> all places of the targets the clip has, or a random subset of each modality.

    A text as target is always whole. With next_frame a modality on both sides is cut at a random time.
    """
    sides = Sides()
    cuts = draw_cuts(inputs, targets, specs, clip.tokens, rng) if next_frame else {}
    present = [name for name in inputs if name in clip.tokens]
    ids = [specs[name].words(clip.tokens[name]) for name in present]
    for name, part in zip(present, ids, strict=True):
        places = _subset(cuts[name].before if name in cuts else np.arange(len(part)), places_per_input, rng)
        sides.add_input(name, part[places], places)
    wanted = [name for name in targets if name in clip.tokens and (name in cuts or name not in inputs)]
    texts = [name for name in wanted if specs[name].kind == "sequence"]
    others = [name for name in wanted if specs[name].kind != "sequence"]
    for name in texts:
        parts = mask_sequence(clip.tokens[name], specs[name], 0, specs[name].num_tokens, "all", rng)
        sides.add_target(name, parts.target_ids, np.arange(len(parts.target_ids)), parts.query_ids)
    for name in others:
        places = cuts[name].frame if name in cuts else np.arange(len(clip.tokens[name]))
        places = _subset(places, places_per_target, rng)
        sides.add_target(name, clip.tokens[name][places], places)
    return sides.clip(clip.key)


@dataclass(frozen=True)
class Cut:
    """Places of one modality: those of all frames before a certain one, and those of that one."""

    before: np.ndarray
    frame: np.ndarray


def draw_cuts(
    inputs: Sequence[str],
    targets: Sequence[str],
    specs: Mapping[str, ModalitySpec],
    present: Collection[str],
    rng: np.random.Generator,
) -> dict[str, Cut]:
    """Cuts of the modalities that are on both sides, each at a random frame but the first."""
    cuts = {}
    for name in inputs:
        if name in targets and name in present:
            num_frames = specs[name].grid.shape[0]
            size = specs[name].num_tokens // num_frames
            first = size * int(rng.integers(1, num_frames))
            cuts[name] = Cut(np.arange(first), np.arange(first, first + size))
    return cuts


def _subset(places: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """Ascending places of one modality: all of these, or `count` of them drawn at random."""
    if count is None or count >= len(places):
        return places
    return places[np.sort(rng.choice(len(places), count, replace=False, shuffle=False))]


class Sides:
    """Collects the two sides of a clip; a modality without tokens on a side gets no entry there."""

    def __init__(self) -> None:
        self.input_ids: dict[str, np.ndarray] = {}
        self.input_places: dict[str, np.ndarray] = {}
        self.target_ids: dict[str, np.ndarray] = {}
        self.target_places: dict[str, np.ndarray] = {}
        self.query_ids: dict[str, np.ndarray] = {}

    def add_input(self, name: str, ids: np.ndarray, places: np.ndarray) -> None:
        if len(ids):
            self.input_ids[name], self.input_places[name] = ids, places

    def add_target(self, name: str, ids: np.ndarray, places: np.ndarray, queries: np.ndarray | None = None) -> None:
        if len(ids):
            self.target_ids[name], self.target_places[name] = ids, places
            self.query_ids[name] = np.full(len(ids), -1, dtype=np.int32) if queries is None else queries

    def clip(self, key: str) -> MaskedClip:
        return MaskedClip(key, self.input_ids, self.input_places, self.target_ids, self.target_places, self.query_ids)
