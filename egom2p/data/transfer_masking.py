"""Direct tasks: all positions of some modalities -> all positions of others."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from egom2p.contracts import MaskedClip, ModalitySpec, TokenClip
from egom2p.data.sequence_masking import mask_sequence


class TransferMasking:
    """A fixed task: all positions of a clip's input modalities -> all positions of its target modalities."""

    def __init__(self, specs: Sequence[ModalitySpec], inputs: Sequence[str], targets: Sequence[str]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        if unknown := sorted({*inputs, *targets} - set(self._specs)):
            raise ValueError(f"transfer names {unknown}, but the modalities are {sorted(self._specs)}")
        check_targets(targets, self._specs)
        if both := sorted(set(inputs) & set(targets)):
            raise ValueError(f"a transfer's inputs and targets are disjoint, {both} is in both")
        self._inputs, self._targets = tuple(inputs), tuple(targets)

    def __call__(self, clip: TokenClip, rng: np.random.Generator) -> MaskedClip:
        return transfer_positions(clip, self._inputs, self._targets, self._specs, rng)


def check_targets(names: Iterable[str], specs: Mapping[str, ModalitySpec]) -> None:
    """Raise ValueError for a target of which there is nothing to predict."""
    if found := sorted(name for name in names if specs[name].is_input_only):
        raise ValueError(f"{found[0]} is a target, but patches are input only; a video is predicted as tokens")


def transfer_positions(
    clip: TokenClip,
    inputs: Sequence[str],
    targets: Sequence[str],
    specs: Mapping[str, ModalitySpec],
    rng: np.random.Generator,
    *,
    positions_per_input: int | None = None,
    positions_per_target: int | None = None,
    next_frame: bool = False,
) -> MaskedClip:
    """All positions of the inputs -> all positions of the targets the clip has, or a random subset of each modality.

    A text as target is always whole. With next_frame a modality on both sides is cut at a random time.
    """
    sides = Sides()
    cuts = draw_cuts(inputs, targets, specs, clip.tokens, rng) if next_frame else {}
    present = [name for name in inputs if name in clip.tokens]
    ids = [specs[name].words(clip.tokens[name]) for name in present]
    for name, part in zip(present, ids, strict=True):
        positions = _subset(cuts[name].before if name in cuts else np.arange(len(part)), positions_per_input, rng)
        sides.add_input(name, part[positions], positions)
    wanted = [name for name in targets if name in clip.tokens and (name in cuts or name not in inputs)]
    texts = [name for name in wanted if specs[name].kind == "sequence"]
    others = [name for name in wanted if specs[name].kind != "sequence"]
    for name in texts:
        parts = mask_sequence(clip.tokens[name], specs[name], 0, specs[name].num_tokens, "all", rng)
        sides.add_target(name, parts.target_ids, np.arange(len(parts.target_ids)), parts.query_ids)
    for name in others:
        positions = cuts[name].frame if name in cuts else np.arange(len(clip.tokens[name]))
        positions = _subset(positions, positions_per_target, rng)
        sides.add_target(name, clip.tokens[name][positions], positions)
    return sides.clip(clip.key)


@dataclass(frozen=True)
class Cut:
    """Positions of one modality: those of all frames before a certain one, and those of that one."""

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


def _subset(positions: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """Ascending positions of one modality: all of these, or `count` of them drawn at random."""
    if count is None or count >= len(positions):
        return positions
    return positions[np.sort(rng.choice(len(positions), count, replace=False, shuffle=False))]


class Sides:
    """Collects the two sides of a clip; a modality without tokens on a side gets no entry there."""

    def __init__(self) -> None:
        self.input_ids: dict[str, np.ndarray] = {}
        self.input_positions: dict[str, np.ndarray] = {}
        self.target_ids: dict[str, np.ndarray] = {}
        self.target_positions: dict[str, np.ndarray] = {}
        self.query_ids: dict[str, np.ndarray] = {}

    def add_input(self, name: str, ids: np.ndarray, positions: np.ndarray) -> None:
        if len(ids):
            self.input_ids[name], self.input_positions[name] = ids, positions

    def add_target(self, name: str, ids: np.ndarray, positions: np.ndarray, queries: np.ndarray | None = None) -> None:
        if len(ids):
            self.target_ids[name], self.target_positions[name] = ids, positions
            self.query_ids[name] = np.full(len(ids), -1, dtype=np.int32) if queries is None else queries

    def clip(self, key: str) -> MaskedClip:
        return MaskedClip(
            key, self.input_ids, self.input_positions, self.target_ids, self.target_positions, self.query_ids
        )
