"""What is shown instead of the truth is what its name says."""

import numpy as np
import pytest

from egom2p.anytoany.evaluation.controls import check_control, controlled, partners
from egom2p.anytoany.types import Media, PerceptionFeatures

NAMES = ("rgb", "gaze")


def features_of(media: Media) -> PerceptionFeatures:
    """Rows whose numbers tell the item, of two modalities."""
    number = float(media.ref)
    source = np.array([0, 0, 0, 1, 1], np.int16)
    features = (number * 10 + np.arange(5)).astype(np.float32)[:, None] + 1
    position = np.stack([np.arange(5)] * 3, axis=1).astype(np.int16)
    return PerceptionFeatures(features, position, source)


ITEMS = [Media("video", str(number)) for number in range(12)] + [Media("image", str(number)) for number in range(3)]


def shown(control, item=ITEMS[2]):
    return controlled(features_of, control, ITEMS, lambda media: NAMES)(item)


def test_everybody_gets_another_item_of_its_kind():
    partner = partners(ITEMS)
    assert set(partner) == set(ITEMS) and set(partner.values()) == set(ITEMS)
    assert all(found != item and found.kind == item.kind for item, found in partner.items())
    assert partners(ITEMS) == partner


def test_shuffling_does_not_keep_the_factors_of_a_regular_list():
    """Items listed factor by factor: a plain shift by half of them would give each one of its own class."""
    items = [Media("video", str(number)) for number in range(360)]
    kept = np.mean([int(item.ref) % 3 == int(found.ref) % 3 for item, found in partners(items).items()])
    assert 0.23 < kept < 0.43


def test_each_control_does_what_it_says():
    own, other = features_of(ITEMS[2]), features_of(partners(ITEMS)[ITEMS[2]])
    assert shown("true").features.tolist() == own.features.tolist()
    assert shown("shuffled").features.tolist() == other.features.tolist()
    zero = shown("zero")
    assert not zero.features.any() and zero.position.tolist() == own.position.tolist()
    mixed = shown("shuffled gaze")
    assert mixed.features[:3].tolist() == own.features[:3].tolist()
    assert mixed.features[3:].tolist() == other.features[3:].tolist()
    assert mixed.source.tolist() == own.source.tolist() and mixed.position.tolist() == own.position.tolist()
    first = shown("shuffled rgb")  # rows stay in the order of their modalities
    assert first.source.tolist() == own.source.tolist() and first.features[3:].tolist() == own.features[3:].tolist()
    left = shown("without gaze")
    assert left.features.tolist() == own.features[:3].tolist() and left.source.tolist() == [0, 0, 0]


@pytest.mark.parametrize("control", ["", "swapped", "without", "shuffled ", "zero gaze"])
def test_a_word_that_is_no_control_is_refused(control):
    with pytest.raises(ValueError, match="control must be one of"):
        check_control(control)


def test_a_modality_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="has no cam"):
        shown("shuffled cam")
