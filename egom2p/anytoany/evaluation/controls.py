"""What a model is shown instead of what there was, to see how much of an answer it owes to what it perceives.

`true`, `shuffled` (every item shows another one of the set), `zero` (features, or ids, are 0); for one modality of a
source of ids `shuffled <modality>` (its rows are another item's) and `without <modality>` (its rows are absent).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from egom2p.anytoany.types import Media, PerceptionFeatures
from egom2p.data.clip_order import clip_rng

FeaturesOf = Callable[[Media], PerceptionFeatures]
_WHOLE = ("true", "shuffled", "zero")
UNSEEN = "without media"  # what a plain language model gets: the words of a question alone


def check_control(control: str) -> str:
    """The control itself; ValueError for a word that is none."""
    verb, _, modality = control.partition(" ")
    if control not in _WHOLE and not (verb in ("shuffled", "without") and modality):
        raise ValueError(
            f"control must be one of {', '.join(_WHOLE)}, 'shuffled <modality>', 'without <modality>', got {control!r}"
        )
    return control


def controlled(
    features_of: FeaturesOf,
    control: str,
    items: Iterable[Media],
    names_of: Callable[[Media], Sequence[str]] | None = None,
) -> FeaturesOf:
    """Perception features of the items of a set under a control.

    names_of   names that `PerceptionFeatures.source` indexes; needed where the control names a modality
    """
    check_control(control)
    if control == "true":
        return features_of
    if control == "zero":
        return lambda media: _emptied(features_of(media))
    partner = partners(items)
    if control == "shuffled":
        return lambda media: features_of(partner[media])
    verb, _, modality = control.partition(" ")

    def changed(media: Media) -> PerceptionFeatures:
        names = list(names_of(media)) if names_of else []
        if modality not in names:
            raise ValueError(f"control {control!r}: {media.kind} is perceived as {names}, which has no {modality}")
        number = names.index(modality)
        other = features_of(partner[media]) if verb == "shuffled" else None
        return _with_rows_of(features_of(media), other, number)

    return changed


def partners(items: Iterable[Media]) -> dict[Media, Media]:
    """Another item of the same kind for each; nobody keeps its own where there are two.

    The items stand in a ring of random order and each gets its neighbour: a shift in their own order would meet the
    regular order in which a set lists its factors, and leave some of them as they were.
    """
    unique = list(dict.fromkeys(items))
    partner: dict[Media, Media] = {}
    for kind in dict.fromkeys(item.kind for item in unique):
        same = [item for item in unique if item.kind == kind]
        ring = [same[number] for number in clip_rng(0, f"partners among {kind}").permutation(len(same))]
        partner |= dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    return partner


def _emptied(item: PerceptionFeatures) -> PerceptionFeatures:
    return replace(item, features=np.zeros_like(item.features))


def _with_rows_of(item: PerceptionFeatures, other: PerceptionFeatures | None, number: int) -> PerceptionFeatures:
    """The features with the rows of one source taken from another item, or without them."""
    parts = [(item, item.source != number)]
    if other is not None:
        parts.append((other, other.source == number))
    features, position, source = (
        np.concatenate([getattr(part, name)[is_kept] for part, is_kept in parts])
        for name in ("features", "position", "source")
    )
    if not len(source):
        raise ValueError("perception of this modality alone has nothing left without it")
    order = np.argsort(source, kind="stable")
    return PerceptionFeatures(features[order], position[order], source[order])
