"""Direct tasks: all places of some modalities -> all places of others."""

from collections.abc import Mapping, Sequence

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
) -> MaskedClip:
    """All places of the inputs -> all places of the targets the clip has, or a random subset of each modality.

    A text as target is always whole.
    """
    sides = Sides()
    present = [name for name in inputs if name in clip.tokens]
    ids = [specs[name].words(clip.tokens[name]) for name in present]
    for name, part in zip(present, ids, strict=True):
        places = _subset(len(part), places_per_input, rng)
        sides.add_input(name, part[places], places)
    wanted = [name for name in targets if name in clip.tokens and name not in inputs]
    texts = [name for name in wanted if specs[name].kind == "sequence"]
    others = [name for name in wanted if specs[name].kind != "sequence"]
    for name in texts:
        parts = mask_sequence(clip.tokens[name], specs[name], 0, specs[name].num_tokens, "all", rng)
        sides.add_target(name, parts.target_ids, np.arange(len(parts.target_ids)), parts.query_ids)
    for name in others:
        places = _subset(len(clip.tokens[name]), places_per_target, rng)
        sides.add_target(name, clip.tokens[name][places], places)
    return sides.clip(clip.key)


def _subset(length: int, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """Ascending places of one modality: all of them, or `count` drawn at random."""
    if count is None or count >= length:
        return np.arange(length)
    return np.sort(rng.choice(length, count, replace=False, shuffle=False))


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
