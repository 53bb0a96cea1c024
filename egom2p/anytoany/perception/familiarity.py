"""Whether an input is like what a model was trained on: how far its perception features lie from those of training.

An item is the mean of its features' rows, source by source, as the connector gets them. Its distance is the root mean
square of that vector's deviations, each in standard deviations over training items: about 1 for one of them. What is
farther than nearly all held-out items is called unlike; that says nothing of inputs that are near.

S sources (modalities) of a perception source, W width of its features, I items.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
_LIMIT_SHARE = 0.99  # of held-out items that are called alike
_SMALLEST_SCALE = 0.05  # of the median deviation: a number that never changed in training is no proof of anything


@dataclass(frozen=True)
class Familiarity:
    """Statistics of the training items of each perception source that had any.

    mean, scale   number of a source -> (S, W) float32
    limit         number of a source -> distance that 99 % of held-out items, and of training items, stay below
    """

    mean: dict[int, np.ndarray]
    scale: dict[int, np.ndarray]
    limit: dict[int, float]

    @classmethod
    def measure(
        cls,
        model: AnyToAny,
        train: Iterable[Media],
        held_out: Iterable[Media],
        features_of: Callable[[Media], PerceptionFeatures],
    ) -> "Familiarity":
        """Of the first 256 items of each; a source without held-out items is judged by every fourth training item."""
        found = cls({}, {}, {})
        seen = _by_source(model, train, features_of)
        others = _by_source(model, held_out, features_of)
        for number, vectors_ISW in seen.items():
            kept_ISW, tried_ISW = vectors_ISW, others.get(number)
            if tried_ISW is None:
                if len(vectors_ISW) < 8:
                    continue
                kept_ISW, tried_ISW = np.delete(vectors_ISW, np.s_[::4], axis=0), vectors_ISW[::4]
            # A source that no item has stays NaN, and counts in no distance.
            mean_SW, scale_SW = _nan(np.nanmean, kept_ISW), _nan(np.nanstd, kept_ISW)
            found.mean[number] = mean_SW
            found.scale[number] = np.maximum(scale_SW, max(_SMALLEST_SCALE * float(np.nanmedian(scale_SW)), 1e-6))
            # Few held-out items may all lie near by chance: those of training count too.
            distances = [[found._of(number, item) for item in items] for items in (tried_ISW, kept_ISW)]
            found.limit[number] = max(float(np.quantile(part, _LIMIT_SHARE)) for part in distances)
        return found

    def note(self, model: AnyToAny, kind: str, item: PerceptionFeatures, name: str) -> str | None:
        """A line for people where an item of a kind of media, called `name`, is unlike those of training, or lacks what
        they had; None where it is like them, or nothing is known of its source."""
        number = source_of_kind(model.config.perception, kind)
        if number not in self.mean:
            return None
        means_SW = _means(model, number, item)
        lacks_S = np.isnan(means_SW).all(axis=1) & ~np.isnan(self.mean[number]).all(axis=1)
        names = perceived_names(model.config.perception, kind)
        absent = [modality for modality, is_gone in zip(names, lacks_S, strict=True) if is_gone]
        distance, limit = self._of(number, means_SW), self.limit[number]
        found = [f"it has no {', '.join(absent)}, which the training had"] if absent else []
        if not distance <= limit:
            far = f"its features lie {distance:.1f} deviations from the training's"
            found.append(f"{far}, 99 % of known ones less than {limit:.1f}")
        told = f"{name} is unlike what the model was trained on ({'; '.join(found)}): the answer is a guess"
        return told if found else None

    def save(self, folder: Path) -> None:
        tensors = {}
        for number in self.mean:
            parts = {"mean": self.mean[number], "scale": self.scale[number], "limit": np.array([self.limit[number]])}
            tensors |= {f"{number}/{name}": torch.from_numpy(part.astype(np.float32)) for name, part in parts.items()}
        if tensors:
            save_tensors(folder / FILE, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> "Familiarity | None":
        """What stands in a model's directory; None where nothing was measured."""
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        found = cls({}, {}, {})
        for name, tensor in load_tensors(file).items():
            number, _, part = name.partition("/")
            values = tensor.numpy()
            getattr(found, part)[int(number)] = float(values[0]) if part == "limit" else values
        return found

    def _of(self, number: int, means_SW: np.ndarray) -> float:
        return float(np.sqrt(np.nanmean(np.square((means_SW - self.mean[number]) / self.scale[number]))))


def _nan(reduce: Callable[..., np.ndarray], vectors_ISW: np.ndarray) -> np.ndarray:
    """nanmean or nanstd over items, NaN without a warning for what none of them has."""
    is_there_SW = ~np.isnan(vectors_ISW).all(axis=0)
    return np.where(is_there_SW, reduce(np.where(is_there_SW, vectors_ISW, 0.0), axis=0), np.nan).astype(np.float32)


@torch.no_grad()
def _means(model: AnyToAny, number: int, item: PerceptionFeatures) -> np.ndarray:
    """(S, W) float32 mean features of each source of an item, NaN where it has no rows."""
    tower = model.towers[number]
    features_NW = tower(rows_of([item], model.device)).float().cpu().numpy()
    means_SW = np.full((tower.num_sources, features_NW.shape[1]), np.nan, np.float32)
    for source in np.unique(item.source):
        means_SW[source] = features_NW[item.source == source].mean(axis=0)
    return means_SW


def _by_source(
    model: AnyToAny, items: Iterable[Media], features_of: Callable[[Media], PerceptionFeatures]
) -> dict[int, np.ndarray]:
    """Number of a perception source -> (I, S, W) of the first items that it perceives."""
    found: dict[int, list[np.ndarray]] = {}
    for media in dict.fromkeys(items):
        number = source_of_kind(model.config.perception, media.kind)
        if len(found.setdefault(number, [])) < MAX_ITEMS:
            found[number].append(_means(model, number, features_of(media)))
    return {number: np.stack(vectors) for number, vectors in found.items()}
