"""Perception features on disk by reference: shards of safetensors, and a ledger that says which holds which items.

N feature rows, D their width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from egom2p.anytoany.perception.source import PerceptionConfig, as_meant_today
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.config import from_plain, to_plain
from egom2p.contracts import plain_name
from egom2p.jobs.progress import Ledger
from egom2p.storage import load_json, save_json, save_tensors

LEDGER, CARD = "ledger.jsonl", "card.json"


class FeatureStore:
    """Reads what `FeatureWriter` wrote; a file is opened when first asked for, features read when asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.card: dict[str, Any] = load_json(self.folder / CARD)
        self._shard_of = {
            ref: plain_name(entry["shard"], "shard", self.folder / LEDGER)
            for entry in Ledger(self.folder / LEDGER).entries()
            for ref in entry["refs"]
        }
        self._opened: dict[str, Any] = {}

    @property
    def refs(self) -> tuple[str, ...]:
        return tuple(self._shard_of)

    @property
    def width(self) -> int:
        return int(self.card["width"])

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, ref: str) -> bool:
        return ref in self._shard_of

    def __getitem__(self, ref: str) -> PerceptionFeatures:
        shard = self._shard_of.get(ref)
        if shard is None:
            raise KeyError(f"{self.folder}: no features of {ref!r} among {len(self)}")
        if shard not in self._opened:
            self._opened[shard] = safe_open(str(self.folder / shard), framework="pt")
        opened = self._opened[shard]
        features, position, source = (opened.get_tensor(f"{name}/{ref}") for name in ("features", "position", "source"))
        features = features if features.dtype == torch.uint8 else features.float()
        return PerceptionFeatures(features.numpy(), position.numpy(), source.numpy())


class FeatureWriter:
    """Appends shards to a folder: a shard is written whole, then noted in the ledger. One writer at a time.

    card       what the features are: source, names, width, fingerprint, perception; a folder made with another card is
               refused
    """

    def __init__(self, folder: str | Path, card: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self._dtype = Path(folder), dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        card = dict(card) | {"dtype": str(dtype).removeprefix("torch.")}
        if (self.folder / CARD).is_file():
            found = _with_every_field(load_json(self.folder / CARD), where=str(self.folder / CARD))
            other = [name for name in sorted(found.keys() | card.keys()) if found.get(name) != card.get(name)]
            if other:
                raise ValueError(
                    f"{self.folder}: holds features with {other[0]} {found.get(other[0])!r}, these would have "
                    f"{card.get(other[0])!r}; choose another folder"
                )
        else:
            save_json(self.folder / CARD, card)
        self._ledger = Ledger(self.folder / LEDGER)
        entries = list(self._ledger.entries())
        self.done = {ref for entry in entries for ref in entry["refs"]}
        self._num_shards = len(entries)

    def write(self, refs: Sequence[str], items: Sequence[PerceptionFeatures]) -> None:
        """One shard. ValueError for a reference that is there already."""
        if repeated := [ref for ref in refs if ref in self.done] or _repeats(refs):
            raise ValueError(f"{self.folder}: {repeated[0]!r} is there already; references must be unique")
        shard = f"features-{self._num_shards:06d}.safetensors"
        tensors = {}
        for ref, item in zip(refs, items, strict=True):
            tensors[f"features/{ref}"] = torch.from_numpy(item.features).to(self._dtype)
            tensors[f"position/{ref}"] = torch.from_numpy(np.asarray(item.position, np.int16))
            tensors[f"source/{ref}"] = torch.from_numpy(np.asarray(item.source, np.int16))
        save_tensors(self.folder / shard, tensors)
        entry = {"shard": shard, "refs": list(refs), "rows": [len(item.features) for item in items]}
        self._ledger.append([entry])
        self.done.update(refs)
        self._num_shards += 1


def _with_every_field(card: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A card of an earlier version, whose perception lacks what has been added since, with the defaults of that."""
    if "perception" not in card:
        return dict(card)
    config = from_plain(PerceptionConfig, as_meant_today(card["perception"]), where=where)
    return {**card, "perception": to_plain(config)}


def _repeats(refs: Sequence[str]) -> list[str]:
    return [ref for number, ref in enumerate(refs) if ref in refs[:number]]
