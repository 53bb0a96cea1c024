"""Modalities, their tokens, and what every tokenizer promises.

L tokens of one modality, V vocabulary size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from egom2p.contracts.checks import plain_name
from egom2p.contracts.clips import AlignedClip
from egom2p.contracts.quantities import QUANTITIES, Quantity

Kind = Literal["grid", "track", "sequence", "patches"]
_KINDS = ("grid", "track", "sequence", "patches")


@dataclass(frozen=True)
class TokenGrid:
    """How the positions of one modality lie: (t, h, w) for video, (length,) for tracks and text.

    A position is the row-major index into this grid (t first).
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"a token grid is (length,) or (t, h, w) with positive sizes, got {self.shape}")

    @property
    def num_tokens(self) -> int:
        return prod(self.shape)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31  # ids are int32


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_COUNT, _TEXT = (_is_count, "a whole number below 2^31"), (_is_text, "text")
# What each key of a spec may be in a card; its meaning is checked by the spec itself.
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": _TEXT,
    "kind": _TEXT,
    "quantity": _TEXT,
    "folder": _TEXT,
    "vocab_size": _COUNT,
    "num_streams": _COUNT,
    "pad_id": (_or_none(_is_count), _COUNT[1]),
    "eos_id": (_or_none(_is_count), _COUNT[1]),
    "tokenizer_fingerprint": (_or_none(_is_text), "text"),
    "rate_hz": (_or_none(lambda value: type(value) in (int, float) and 0 < value < 1e9), "a positive number or null"),
    "grid": (
        lambda value: isinstance(value, list | tuple) and all(map(_is_count, value)) and prod(value) < 1 << 24,
        "(length,) or (t, h, w), below 2^24 tokens",
    ),
    "sentinel_ids": (lambda value: isinstance(value, list | tuple) and all(map(_is_count, value)), "a list of ids"),
    "conventions": (lambda value: isinstance(value, Mapping), "words by key"),
    "patch_shape": (
        lambda value: isinstance(value, list | tuple) and all(map(_is_count, value)) and prod(value) < 1 << 24,
        "(frames, pixels, pixels, channels), below 2^24 values",
    ),
}
_REQUIRED = ("name", "kind", "quantity", "grid", "vocab_size", "folder")


@dataclass(frozen=True)
class ModalitySpec:
    """Everything the rest of the project may know about a modality.

    name                   key in configs and batches, e.g. `tok_depth`
    kind                   how it is masked and decoded: `grid`, `track` or `sequence`; `patches` is input only: uint8
                           values of pieces of a video, which no tokenizer has quantised
    quantity               what it measures, a name of `contracts.quantities`; `signal` is its record
    grid                   token grid; for a sequence (maximum length,)
    vocab_size             V; ids are 0 ... V-1. 0 for patches, which have values in place of ids
    folder                 folder on disk below the root of a data set
    rate_hz                rate of the signal the tokens stand for (frames or track samples per second); None for text
    tokenizer_fingerprint  identity of the tokenizer that makes these ids; None when unknown
    pad_id, eos_id, sentinel_ids   sequences only
    num_streams            tracks only: how many neighbouring positions stand for the same samples (residual codes: 2)
    conventions            free words for people: value range, unit, frame
    patch_shape            patches only: (frames, pixels down, pixels across, channels) at one position
    """

    name: str
    kind: Kind
    quantity: str
    grid: TokenGrid
    vocab_size: int
    folder: str
    rate_hz: float | None = None
    tokenizer_fingerprint: str | None = None
    pad_id: int | None = None
    eos_id: int | None = None
    sentinel_ids: tuple[int, ...] = ()
    conventions: Mapping[str, str] = field(default_factory=dict)
    num_streams: int = 1
    patch_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        plain_name(self.name, "modality")
        plain_name(self.folder, f"{self.name}: folder")
        if self.kind not in _KINDS:
            raise ValueError(f"{self.name}: kind must be one of {_KINDS}, got {self.kind!r}")
        if self.quantity not in QUANTITIES:
            raise ValueError(f"{self.name}: quantity must be one of {tuple(QUANTITIES)}, got {self.quantity!r}")
        is_patches = self.kind == "patches"
        if (
            bool(self.patch_shape) != is_patches
            or is_patches
            and (len(self.patch_shape) != 4 or not all(self.patch_shape))
        ):
            raise ValueError(f"{self.name}: kind {self.kind!r} does not fit the patch_shape {self.patch_shape}")
        if (self.vocab_size < 1) != is_patches:
            wanted = "0 for patches" if is_patches else "positive"
            raise ValueError(f"{self.name}: vocab_size must be {wanted}, got {self.vocab_size}")
        if (self.kind in ("grid", "patches")) != (len(self.grid.shape) == 3):
            raise ValueError(f"{self.name}: kind {self.kind!r} does not fit the grid {self.grid.shape}")
        if self.num_streams != 1 and (
            self.kind != "track" or self.num_streams < 1 or self.num_tokens % self.num_streams
        ):
            raise ValueError(f"{self.name}: {self.num_streams} streams do not fit a {self.kind} of {self.num_tokens}")
        if self.kind == "sequence" and (self.pad_id is None or self.eos_id is None):
            raise ValueError(f"{self.name}: a sequence needs pad_id and eos_id")

    @property
    def signal(self) -> Quantity:
        return QUANTITIES[self.quantity]

    @property
    def num_tokens(self) -> int:
        """L: number of positions."""
        return self.grid.num_tokens

    @property
    def is_input_only(self) -> bool:
        """Nothing that could be asked for: values without a vocabulary."""
        return self.kind == "patches"

    @property
    def num_codes(self) -> int:
        """Different numbers that stored arrays hold: ids, or bytes of patches."""
        return 256 if self.is_input_only else self.vocab_size

    @property
    def num_values(self) -> int:
        """P: uint8 values of one patch."""
        return prod(self.patch_shape) if self.is_input_only else 0

    def words(self, ids: np.ndarray) -> np.ndarray:
        """Ids (L,) of a sequence before its eos or padding; of other kinds all."""
        if self.kind != "sequence":
            return ids
        ends = np.flatnonzero((ids == self.eos_id) | (ids == self.pad_id))
        return ids[: ends[0]] if len(ends) else ids

    def padded(self, ids: np.ndarray) -> np.ndarray:
        """Ids (L,): a sequence that is shorter than its grid gets padding at its end."""
        if self.kind != "sequence" or len(ids) >= self.num_tokens:
            return ids
        return np.concatenate([ids, np.full(self.num_tokens - len(ids), self.pad_id, ids.dtype)])

    def filled(self, code: int) -> np.ndarray:
        """What a clip holds whose tokens are all alike: ids (L,) int32, or patches (L, P) uint8."""
        shape, dtype = (self.num_tokens, self.num_values), np.uint8
        if not self.is_input_only:
            shape, dtype = (self.num_tokens,), np.int32
        return np.full(shape, code % self.num_codes, dtype)

    def with_fingerprint(self, fingerprint: str | None) -> "ModalitySpec":
        return replace(self, tokenizer_fingerprint=fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is its inverse."""
        return {
            "name": self.name,
            "kind": self.kind,
            "quantity": self.quantity,
            "grid": list(self.grid.shape),
            "vocab_size": self.vocab_size,
            "folder": self.folder,
            "rate_hz": self.rate_hz,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "pad_id": self.pad_id,
            "eos_id": self.eos_id,
            "sentinel_ids": list(self.sentinel_ids),
            "conventions": dict(self.conventions),
            **({"num_streams": self.num_streams} if self.num_streams != 1 else {}),
            **({"patch_shape": list(self.patch_shape)} if self.patch_shape else {}),
        }

    @classmethod
    def from_dict(cls, values: Any, where: object = "modality") -> "ModalitySpec":
        """The spec of plain values; ValueError names `where` they were read, and the key that is wrong."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: a modality is a mapping, found {values!r:.80}")
        for key in _REQUIRED:
            if key not in values:
                raise ValueError(f"{where}: missing key `{key}`")
        for key, value in values.items():
            if key not in _FIELDS:
                raise ValueError(f"{where}: unknown key `{key}`; known are {sorted(_FIELDS)}")
            is_right, wanted = _FIELDS[key]
            if not is_right(value):
                raise ValueError(f"{where}: `{key}` is {value!r:.80}, wanted {wanted}")
        known = dict(values)
        try:
            known["grid"] = TokenGrid(tuple(known["grid"]))
            known["sentinel_ids"] = tuple(known.get("sentinel_ids", ()))
            known["patch_shape"] = tuple(known.get("patch_shape", ()))
            return cls(**known)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True)
class TokenClip:
    """Tokens of one clip.

    tokens        modality name -> ids (L,) int32 in position order; an absent modality has no entry.
                  A sequence may be shorter than its grid; patches have values (L, P) uint8.
    fingerprints  modality name -> fingerprint of the tokenizer that made them (None: unknown)
    """

    key: str
    tokens: Mapping[str, np.ndarray]
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain_name(self.key, "clip key")


class TokenizerMismatch(ValueError):
    """Tokens were made by another tokenizer than the one that is to read them."""


@runtime_checkable
class Tokenizer(Protocol):
    """Signals to ids and back; normalisation lives inside.

    `spec.quantity` says which stream of a clip it reads (`spec.quantity`, or `stream` for a generic track).
    """

    spec: ModalitySpec
    fingerprint: str
    stream: str

    def encode(self, clips: list[AlignedClip]) -> np.ndarray:
        """Ids (B, L) int32, of patches values (B, L, P) uint8, of a list of clips that all have the stream."""
        ...

    def decode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, T, ...) in the stream's unit and convention, and validity (B, T) bool, from ids (B, L)."""
        ...


def check_fingerprint(modality: str, *, found: str | None, wanted: str | None, where: str) -> None:
    """Raise TokenizerMismatch when both fingerprints are known and differ."""
    if found is not None and wanted is not None and found != wanted:
        raise TokenizerMismatch(
            f"{where}: tokens of {modality} were made by tokenizer {found}, but tokenizer {wanted} is expected; "
            f"tokenize the data again or name the tokenizer that made it"
        )
