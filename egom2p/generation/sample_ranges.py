"""Several samples of one target as their mean and the range that should hold the truth.

K samples, T frames or samples of a stream.

The range reaches from the lowest sample to the highest, each moved away from their mean by the factor that an
evaluation found to hold STRETCHED_SHARE of the true values (metrics/calibration.py). The factor belongs to a quantity,
to a number of samples, and to clips like those that were evaluated: elsewhere it promises nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egom2p.contracts import ModalitySpec, Quantity
from egom2p.geometry import canonicalise, mean_poses
from egom2p.metrics.calibration import STRETCHED_SHARE
from egom2p.storage import load_json

LOW, HIGH = "_low", "_high"  # behind the name of a stream: the ends of its range
_METRICS = "metrics.json"
Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RangeNote:
    """What a range is, for clip.json and the page.

    stretch      None: not calibrated, the plain range of the samples; then share is None too
    measured_on  data set whose held-out clips told the factor
    """

    num_samples: int
    share: float | None
    stretch: float | None
    measured_on: str | None
    unit: str


def range_notes(directory: Path, specs: Sequence[ModalitySpec], num_samples: int) -> dict[str, RangeNote]:
    """Modality -> its range, by the evaluation beside a checkpoint; a factor belongs to its number of samples."""
    file = directory / _METRICS
    card = load_json(file) if file.is_file() else {"tasks": []}
    factors: dict[str, float] = {}
    try:
        for task in card["tasks"]:
            for found in task.get("uncertainty", ()):
                if found["num_samples"] == num_samples and found["stretch"] is not None:
                    factors.setdefault(task["quantity"], float(found["stretch"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error!r}; wanted the tasks of an evaluation with their uncertainty") from None
    if wrong := {name: factor for name, factor in factors.items() if not 0 < factor < np.inf}:
        raise ValueError(f"{file}: found factors {wrong}, wanted positive ones")
    notes = {}
    for spec in specs:
        if spec.signal.has_range:
            stretch = factors.get(spec.quantity)
            share, known = (None, None) if stretch is None else (STRETCHED_SHARE, card.get("clips"))
            unit = "m, positions from the first pose" if spec.signal.is_relative else spec.signal.unit
            notes[spec.name] = RangeNote(num_samples, share, stretch, known, unit)
    return notes


def summary(quantity: Quantity, samples: Sequence[Part], stretch: float | None) -> dict[str, Part]:
    """ "" -> the mean, and LOW, HIGH -> the ends of the range, of decoded samples: values (T, ...), validity (T,) each.

    Depth in the logarithm, where its errors are alike near and far; 0 stays 0. Of poses the range is that of positions
    (T, 3) seen from each sample's first pose, the mean that of whole poses. Of pictures the mean alone, of texts the
    first sample.
    """
    values, is_valid = (np.stack(column) for column in zip(*samples, strict=True))
    is_valid_T = is_valid.mean(axis=0) >= 0.5
    if quantity.layout == "text":
        return {"": (values[0], is_valid[0])}
    if quantity.is_relative:
        poses = np.stack([canonicalise(sample) for sample in values])
        low, high = _range(poses[..., :3, 3], np.ones(poses.shape[:2], bool), stretch)[1:]
        return {"": (mean_poses(poses), is_valid_T), LOW: (low, is_valid_T), HIGH: (high, is_valid_T)}
    if quantity.is_logarithmic:
        known = values > 0
        ends = _range(np.log(np.where(known, values, 1.0)), known, stretch)
        mean, low, high = (np.where(known.any(axis=0), np.exp(end), 0.0).astype(values.dtype) for end in ends)
    else:
        ends = _range(values.astype(np.float64), is_valid, stretch)
        rounded = np.rint if values.dtype.kind in "ui" else lambda end: end
        mean, low, high = (rounded(end).astype(values.dtype) for end in ends)
    if not quantity.has_range:
        return {"": (mean, is_valid_T)}
    return {"": (mean, is_valid_T), LOW: (low, is_valid_T), HIGH: (high, is_valid_T)}


def _range(values: np.ndarray, is_known: np.ndarray, stretch: float | None) -> tuple[np.ndarray, ...]:
    """Mean, low and high (T, ...) of the samples (K, T, ...) that are known; 0 where none is."""
    is_known = np.broadcast_to(is_known.reshape(*is_known.shape, *[1] * (values.ndim - is_known.ndim)), values.shape)
    count = is_known.sum(axis=0)
    mean = np.where(is_known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    low, high = np.where(is_known, values, np.inf).min(axis=0), np.where(is_known, values, -np.inf).max(axis=0)
    factor = 1.0 if stretch is None else stretch
    low, high = (
        np.where(count > 0, mean + factor * (np.where(count > 0, end, mean) - mean), 0.0) for end in (low, high)
    )
    return mean, low, high
