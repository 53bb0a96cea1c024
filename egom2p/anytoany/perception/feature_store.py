"""Perception features on disk by reference: shards of safetensors, and a ledger that says which holds which items.

`FeatureLookup` finds those of a media item: in the stores, or, for vectors and live image towers, in its file.

N feature rows, D their width.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from egom2p.anytoany.codebooks import CodebookConfig, Codebooks
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.chat import Spelling
from egom2p.anytoany.perception.media_files import PixelFiles, VectorFiles, picture_key
from egom2p.anytoany.perception.source import (
    EncoderConfig,
    PerceptionConfig,
    TimmFramesConfig,
    TokenConfig,
    VectorsConfig,
    source_of_kind,
    stored_config,
)
from egom2p.anytoany.perception.token_features import perceived_names as names_of_tokens
from egom2p.anytoany.types import Media, PerceptionFeatures
from egom2p.contracts import plain_name
from egom2p.jobs.progress import Ledger
from egom2p.storage import load_json, save_json, save_tensors

_CACHED_BYTES = 2**29
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
            found = load_json(self.folder / CARD)
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


def _repeats(refs: Sequence[str]) -> list[str]:
    return [ref for number, ref in enumerate(refs) if ref in refs[:number]]


class FeatureLookup:
    """What the sources of a model say about media items.

    stores   folders of exported features; vectors, and pictures and videos of a live `timm_frames`, need none

    ValueError names a store that another source wrote than the model perceives with.
    """

    def __init__(self, sources: Sequence[PerceptionConfig], stores: Sequence[str], connector: ConnectorConfig) -> None:
        self._sources, self._connector = tuple(sources), connector
        self._stores = [FeatureStore(folder) for folder in stores]
        self._vectors = {
            number: VectorFiles(source.width)
            for number, source in enumerate(sources)
            if isinstance(source, VectorsConfig)
        }
        self._pixels = {n: PixelFiles(source) for n, source in enumerate(sources) if source.gives_pixels}
        self._cache: OrderedDict[Media, PerceptionFeatures] = OrderedDict()
        self._num_cached_bytes = 0
        for store in self._stores:
            # Codes may also be there for the vocabulary alone.
            if not any(_fits(store, source) for source in self._sources) and not _holds_ids(store):
                raise ValueError(
                    f"{store.folder}: holds features of {store.card['source']} for {store.card['names']}, which no "
                    f"source of the model perceives: {[source.source for source in self._sources]}"
                )

    def features(self, media: Media) -> PerceptionFeatures:
        """ValueError names an item that no store holds."""
        if media not in self._cache:
            item = self._cache[media] = self._find(media)
            self._num_cached_bytes += item.features.nbytes
            while self._num_cached_bytes > _CACHED_BYTES and len(self._cache) > 1:
                self._num_cached_bytes -= self._cache.popitem(last=False)[1].features.nbytes
            return item
        return self._cache[media]

    def span_length(self, media: Media, wanted: int | None = None) -> int:
        """Positions of an item in the text; only connectors whose count depends on the features look at it.

        wanted   one of the connector's nested counts, in place of the full one
        """
        if self._connector.kind == "st_shuffle":
            return self._connector.span_length(self.features(media), media.kind)
        return 1 if self._connector.kind == "gated_xattn" else wanted or self._connector.tokens_of_kind(media.kind)

    def codes(self, media: Media, modality: str) -> np.ndarray:
        """Ids (L,) of one modality of an item, in position order, from a store of ids."""
        store = next(
            (s for s in self._stores if _holds_ids(s) and media.ref in s and modality in s.card["names"]), None
        )
        if store is None:
            raise ValueError(
                f"no codes of {modality} of {media.ref!r} in the stores {[str(s.folder) for s in self._stores]}"
            )
        return (
            select_modalities(store[media.ref], store.card["names"], [modality]).features[:, 0].round().astype(np.int32)
        )

    def _find(self, media: Media) -> PerceptionFeatures:
        number = source_of_kind(self._sources, media.kind)
        if number in self._vectors:
            return self._vectors[number][media.ref]
        source = self._sources[number]
        refs = (media.ref, picture_key(media.ref))
        found = [(store, ref) for store in self._stores for ref in refs if ref in store and _fits(store, source)]
        if not found and number in self._pixels:
            return self._pixels[number][media.ref]
        if not found:
            folders = [str(store.folder) for store in self._stores] or "none (see `features`)"
            raise ValueError(f"no features of {media.kind} {media.ref!r} in the stores {folders}")
        store, ref = found[0]
        item = store[ref]
        return select_modalities(item, store.card["names"], _names(source)) if source.gives_ids else item


def spellings(books: Codebooks, lookup: FeatureLookup) -> dict[str, Spelling]:
    """For every kind of media with a codebook: its items as ids of the vocabulary."""

    def spelling(config: CodebookConfig) -> Spelling:
        def ids_of(media: Media) -> list[int]:
            codes = lookup.codes(media, config.modality)
            if len(codes) != config.num_tokens:
                raise ValueError(
                    f"{media.ref!r} has {len(codes)} codes of {config.modality}, wanted {config.num_tokens}"
                )
            return books.ids(config.kind, codes).tolist()

        return ids_of

    return {kind: spelling(config) for kind, config in books.configs.items()}


def perceived_names(sources: Sequence[PerceptionConfig], kind: str) -> tuple[str, ...]:
    """What `PerceptionFeatures.source` indexes for a kind of media: modalities, or the name of the source itself."""
    source = sources[source_of_kind(sources, kind)]
    return _names(source) if isinstance(source, TokenConfig) else (source.source,)


def _holds_ids(store: FeatureStore) -> bool:
    return _written_by(store).gives_ids


def _written_by(store: FeatureStore) -> PerceptionConfig:
    return stored_config(store.card["perception"], where=str(store.folder))


def _fits(store: FeatureStore, source: PerceptionConfig) -> bool:
    """Whether a store was written by a source; ids also serve a source that perceives only some of the modalities."""
    if isinstance(source, VectorsConfig) or _holds_ids(store) != source.gives_ids:
        return False
    if source.gives_ids:
        return set(_names(source)) <= set(store.card["names"])
    written_by = _written_by(store)
    if isinstance(source, TimmFramesConfig) and isinstance(written_by, TimmFramesConfig):
        return _picture_settings(written_by) == _picture_settings(source)
    if isinstance(source, EncoderConfig) and isinstance(written_by, EncoderConfig):
        return written_by.layer == source.layer and store.card["names"] == list(_names(source))
    return written_by.source == source.source


def _picture_settings(source: TimmFramesConfig) -> tuple[Any, ...]:
    """What decides on the rows that a picture gives."""
    return source.precomputed, source.tower, source.layer, source.image_size, source.tiles


def _names(source: TokenConfig) -> tuple[str, ...]:
    return names_of_tokens(source)


def select_modalities(item: PerceptionFeatures, names: Sequence[str], wanted: Sequence[str]) -> PerceptionFeatures:
    """The rows of some modalities, with their numbers among those; ValueError where none is left."""
    if tuple(names) == tuple(wanted):
        return item
    number_of = {names.index(name): number for number, name in enumerate(wanted) if name in names}
    is_kept_N = [int(source) in number_of for source in item.source]
    source_N = item.source[is_kept_N].copy()
    for old, new in number_of.items():
        source_N[item.source[is_kept_N] == old] = new
    if not len(source_N):
        raise ValueError(f"the features have none of the modalities {list(wanted)}")
    return PerceptionFeatures(item.features[is_kept_N], item.position[is_kept_N], source_N)
