"""Whether an input is like what a model was trained on: how far its perception features lie from those of training.

An item is, of each modality, the mean of its features' rows as the connector gets them. Its distance is Mahalanobis's,
with a covariance that is shrunk towards a round one: in real video of people single numbers stay within what training
had (7 of 17 clips beyond the limit), their combinations do not (17 of 17). What is farther than 99 % of held-out items
is called unlike; that says nothing of inputs that are near.

W width of features, I items, K directions in which training items differ.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.perception.feature_store import perceived_names
from egom2p.anytoany.perception.source import rows_of, source_of_kind
from egom2p.anytoany.types import Media, PerceptionFeatures
from egom2p.storage import load_tensors, save_tensors

FILE = "familiarity.safetensors"
MAX_ITEMS = 256  # of training, and of what is held out
_MIN_ITEMS = 8
_LIMIT_SHARE = 0.99  # of known items that are called alike
_SMALLEST_LIMIT = 0.1  # where all items are the same
_SHRINKAGE = 0.1  # of the mean variance, in every direction


@dataclass(frozen=True)
class Spread:
    """Where the training items of one modality lie.

    mean         (W,)
    directions   (K, W) orthonormal, along which they differ
    share        (K,) of the squared deviation along each that is not counted, as training items differ there too
    floor        () variance that every direction has
    limit        () distance that 99 % of held-out items, and of training items, stay below
    """

    mean: np.ndarray
    directions: np.ndarray
    share: np.ndarray
    floor: np.ndarray
    limit: np.ndarray

    @classmethod
    def of(cls, train_IW: np.ndarray, held_out_IW: np.ndarray) -> "Spread":
        mean_W = train_IW.mean(axis=0)
        _, size_K, directions_KW = np.linalg.svd(train_IW - mean_W, full_matrices=False)
        variance_K = size_K**2 / len(train_IW)
        floor = max(_SHRINKAGE * variance_K.sum() / len(mean_W), 1e-12)
        spread = cls(mean_W, directions_KW, variance_K / (variance_K + floor), np.array(floor), np.array(0.0))
        # Few held-out items may all lie near by chance: those of training count too.
        known = [[spread.distance(item_W) for item_W in items_IW] for items_IW in (train_IW, held_out_IW)]
        limits = [np.quantile(part, _LIMIT_SHARE) for part in known]
        return replace(spread, limit=np.array(max(_SMALLEST_LIMIT, *limits)))

    def distance(self, item_W: np.ndarray) -> float:
        """About 1 for an item of training, whatever the width."""
        centred_W = item_W - self.mean
        # The inverse of (covariance + floor), applied without making the matrix (Woodbury).
        squared = (centred_W @ centred_W - self.share @ (self.directions @ centred_W) ** 2) / self.floor
        return float(np.sqrt(max(squared, 0.0) / len(item_W)))


@dataclass(frozen=True)
class Familiarity:
    """spreads   (number of a perception source, number of a modality in it) -> where its training items lie"""

    spreads: dict[tuple[int, int], Spread]

    @classmethod
    def measure(
        cls,
        model: AnyToAny,
        train: Iterable[Media],
        held_out: Iterable[Media],
        features_of: Callable[[Media], PerceptionFeatures],
    ) -> "Familiarity":
        """Of the first 256 items of each; where nothing is held out every fourth training item is."""
        seen, others = (_means_of_many(model, items, features_of) for items in (train, held_out))
        spreads = {}
        for name, items_IW in seen.items():
            if len(items_IW) < _MIN_ITEMS:
                continue
            kept_IW, tried_IW = items_IW, others.get(name)
            if tried_IW is None:
                kept_IW, tried_IW = np.delete(items_IW, np.s_[::4], axis=0), items_IW[::4]
            spreads[name] = Spread.of(kept_IW, tried_IW)
        return cls(spreads)

    def note(self, model: AnyToAny, kind: str, item: PerceptionFeatures, name: str) -> str | None:
        """A line for people where an item of a kind of media, called `name`, is unlike those of training, or lacks what
        they had; None where it is like them, or nothing is known of its source."""
        number = source_of_kind(model.config.perception, kind)
        names, means = perceived_names(model.config.perception, kind), _means(model, number, item)
        found = []
        for at, modality in enumerate(names):
            spread = self.spreads.get((number, at))
            if spread is None:
                continue
            if at not in means:
                found.append(f"no {modality} in it")
            elif not (distance := spread.distance(means[at])) <= spread.limit:
                found.append(f"{modality} {distance / spread.limit:.1f} times as far off as 99 % of what is known")
        told = f"{name} is unlike what the model was trained on ({'; '.join(found)}): the answer is a guess"
        return told if found else None

    def save(self, folder: Path) -> None:
        tensors = {
            f"{source}/{modality}/{part}": torch.from_numpy(np.asarray(values, np.float32))
            for (source, modality), spread in self.spreads.items()
            for part, values in asdict(spread).items()
        }
        if tensors:
            save_tensors(folder / FILE, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> "Familiarity | None":
        """What stands in a model's directory; None where nothing was measured."""
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        parts: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        try:
            for name, tensor in load_tensors(file).items():
                source, modality, part = name.split("/")
                parts.setdefault((int(source), int(modality)), {})[part] = tensor.numpy()
            spreads = {name: Spread(**values) for name, values in parts.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}; wanted the tensors of `Familiarity.save`") from None
        for name, spread in spreads.items():
            is_finite = all(np.isfinite(values).all() for values in asdict(spread).values())
            fits = spread.directions.shape == (*spread.share.shape, *spread.mean.shape)
            if not (is_finite and fits and spread.floor > 0 and spread.limit > 0):
                raise ValueError(f"{file}: source and modality {name}: not finite, not positive, or of other widths")
        return cls(spreads)


@torch.no_grad()
def _means(model: AnyToAny, number: int, item: PerceptionFeatures) -> dict[int, np.ndarray]:
    """Number of a modality -> (W,) float32 mean of its rows in an item; those without rows are not there."""
    features_NW = model.towers[number](rows_of([item], model.device)).float().cpu().numpy()
    return {int(at): features_NW[item.source == at].mean(axis=0) for at in np.unique(item.source)}


def _means_of_many(
    model: AnyToAny, items: Iterable[Media], features_of: Callable[[Media], PerceptionFeatures]
) -> dict[tuple[int, int], np.ndarray]:
    """(number of a perception source, of a modality) -> (I, W) of the first items that have it."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    num_items: dict[int, int] = {}
    for media in dict.fromkeys(items):
        number = source_of_kind(model.config.perception, media.kind)
        num_items[number] = num_items.get(number, 0) + 1
        if num_items[number] <= MAX_ITEMS:
            for at, mean_W in _means(model, number, features_of(media)).items():
                found.setdefault((number, at), []).append(mean_W)
    return {name: np.stack(means) for name, means in found.items()}
