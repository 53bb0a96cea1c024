"""Tokens of a data set on disk as TokenClips, checked before anything is trained on them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egom2p.contracts import ModalitySpec, TokenClip, check_fingerprint
from egom2p.data.shards.folder_set import open_clips


class TokenSet:
    """Token clips of the shards (or files) a pattern names, by index.

    A modality whose folder the pattern does not list is absent from every clip; a folder that no spec asks for is not
    read. Raises ValueError when a card tells another vocabulary, grid or rate than the spec, TokenizerMismatch for
    another tokenizer, and ValueError with shard and key for ids outside 0 ... V-1 or of another count.

    folder_names   modality -> folder where it differs from the spec's, e.g. another depth
    in_memory      read all tokens now (and check all): reading then costs nothing
    index_cache    folder for indexes that cannot lie beside their shards
    streams        take clips from so many whole shards in memory, see `ahead`; None: read one by one
    """

    def __init__(
        self,
        pattern: str,
        specs: Sequence[ModalitySpec],
        *,
        folder_names: Mapping[str, str] | None = None,
        in_memory: bool = False,
        index_cache: str | None = None,
        streams: int | None = None,
    ) -> None:
        self._clips = open_clips(pattern, index_cache=index_cache, streams=streams)
        named = folder_names or {}
        if unknown := sorted(set(named) - {spec.name for spec in specs}):
            raise ValueError(f"{pattern}: folder_names has {unknown}, modalities are {[spec.name for spec in specs]}")
        folders = [(spec, named.get(spec.name, spec.folder)) for spec in specs]
        self._specs = [(spec, folder) for spec, folder in folders if folder in self._clips.folders]
        if not self._specs:
            wanted = [folder for _, folder in folders]
            raise ValueError(f"{pattern}: none of its folders {list(self._clips.folders)} is one of {wanted}")
        self._fingerprints = {spec.name: self._check_card(spec, folder) for spec, folder in self._specs}
        self._memory = [self._read(index) for index in range(self.num_clips)] if in_memory else None

    @property
    def num_clips(self) -> int:
        return self._clips.num_clips

    def __len__(self) -> int:
        return self.num_clips

    @property
    def shard_starts(self) -> tuple[int, ...]:
        return self._clips.shard_starts

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities every clip has."""
        return tuple(spec.name for spec, _ in self._specs)

    def __getitem__(self, index: int) -> TokenClip:
        return self._read(index) if self._memory is None else self._memory[index]

    def ahead(self, index: int) -> None:
        """Begin to stream the shards of a clip."""
        self._clips.ahead(index, [folder for _, folder in self._specs])

    def verify(self) -> int:
        """Compare the keys of all folders; returns the number of clips."""
        return self._clips.verify()

    def identity(self) -> dict[str, Any]:
        """Plain values that change when shards come, go or hold other clips, or cards say something else."""
        starts = self.shard_starts
        sizes = [int(end - start) for start, end in zip(starts, starts[1:], strict=False)]
        cards = {folder: _digest(self._clips.card(folder)) for _, folder in self._specs}
        return {"clips": self.num_clips, "shards": len(sizes), "clips_per_shard": _digest(sizes), "cards": cards}

    @property
    def gaps(self) -> tuple[str, ...]:
        """Names of shards that are missing between others, in every folder alike."""
        return self._clips.gaps

    def _read(self, index: int) -> TokenClip:
        tokens = {spec.name: self._ids(index, spec, folder) for spec, folder in self._specs}
        return TokenClip(self._clips.key(index), tokens, self._fingerprints)

    def _ids(self, index: int, spec: ModalitySpec, folder: str) -> np.ndarray:
        if spec.kind == "patches":
            return self._patches(index, spec, folder)
        ids = self._clips.read_array(index, folder).reshape(-1)
        wanted = f"wanted {spec.num_tokens} ids of {spec.name} in 0 ... {spec.vocab_size - 1}"
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{self._clips.where(index, folder)}: ids are {ids.dtype}, {wanted}")
        fits = 0 < len(ids) <= spec.num_tokens if spec.kind == "sequence" else len(ids) == spec.num_tokens
        if not fits:
            raise ValueError(f"{self._clips.where(index, folder)}: {len(ids)} ids, {wanted}")
        # Read as unsigned a negative id is a large one, so that one pass sees both ends.
        if int(ids.view(ids.dtype.str.replace("i", "u")).max()) >= spec.vocab_size:
            low, high = int(ids.min()), int(ids.max())
            raise ValueError(f"{self._clips.where(index, folder)}: ids from {low} to {high}, {wanted}")
        return ids.astype(np.int32, copy=False)

    def _patches(self, index: int, spec: ModalitySpec, folder: str) -> np.ndarray:
        values, wanted = self._clips.read_array(index, folder), (spec.num_tokens, spec.num_values)
        if values.dtype != np.uint8 or values.shape != wanted:
            raise ValueError(
                f"{self._clips.where(index, folder)}: values are {values.dtype} {values.shape}, wanted uint8 {wanted}, "
                f"the patches of {spec.name}"
            )
        return values

    def _check_card(self, spec: ModalitySpec, folder: str) -> str | None:
        card = self._clips.card(folder)
        where = f"{self._clips.pattern}, folder {folder}"
        found = card.get("tokenizer_fingerprint")
        check_fingerprint(spec.name, found=found, wanted=spec.tokenizer_fingerprint, where=where)
        told = spec.to_dict()
        for field, wanted in ((name, told.get(name)) for name in ("vocab_size", "grid", "patch_shape", "rate_hz")):
            if field in card and card[field] != wanted:
                raise ValueError(f"{where}: card.json tells {field} {card[field]}, but {spec.name} has {wanted}")
        return found


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
