"""What the parts of the any-to-any model exchange.

N feature rows, D their width, L ids of one conversation, R packed rows of T positions, I media items of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import check_shape
from egom2p.layers.padding import to_device

MediaKind = Literal["video", "image", "audio", "gaze", "cam", "depth"]
KINDS: tuple[str, ...] = get_args(MediaKind)
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
NO_LOSS = -100


@dataclass(frozen=True)
class PerceptionFeatures:
    """What a perception source says about one media item.

    features  (N, D) float32; of a source of plain codes (N, 1), the ids as numbers; of a live image tower uint8 pixels
    position     (N, 3) int16: t, y, x of each row in its source's grid
    source    (N,) int16: index into the names of the source (modalities, or one name)
    """

    features: np.ndarray
    position: np.ndarray
    source: np.ndarray

    def __post_init__(self) -> None:
        rows = check_shape("features", self.features, "n d")["n"]
        check_shape("position", self.position, "n 3", n=rows)
        check_shape("source", self.source, "n", n=rows)


@dataclass(frozen=True)
class Media:
    """A media item of a conversation; `ref` names it in the feature store (a clip's key, or a file)."""

    kind: MediaKind
    ref: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of media {self.ref!r} must be one of {KINDS}, got {self.kind!r}")


@dataclass(frozen=True)
class Turn:
    role: Role
    parts: tuple[str | Media, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, got {self.role!r}")


@dataclass(frozen=True)
class Conversation:
    """Text and media in turns; `key` is unique in its data set."""

    key: str
    turns: tuple[Turn, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        """Media items in reading order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Media))


@dataclass(frozen=True)
class MediaSpan:
    """Where a media item's perception tokens stand: `length` reserved ids from `start`, the tags outside."""

    media: Media
    start: int
    length: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids.

    ids        (L,) int32
    is_target  (L,) bool: tokens the assistant says, its end of turn included
    spans      in reading order
    """

    ids: np.ndarray
    is_target: np.ndarray
    spans: tuple[MediaSpan, ...] = ()

    def __post_init__(self) -> None:
        length = check_shape("ids", self.ids, "l")["l"]
        check_shape("is_target", self.is_target, "l", l=length)


@dataclass(frozen=True)
class LanguageBatch:
    """Conversations packed into rows, and the perception features of their media items laid end to end.

    ids              (R, T) int: padding is any valid id
    labels           (R, T) int64: what is predicted FROM this position (already shifted), -100 without a loss
    positions        (R, T) int: restarts at 0 with each conversation
    segments         (R, T) int: number of the conversation inside its row, -1 for padding
    features         (N, D) float32      position (N, 3) int      source (N,) int
    feature_offsets  (I+1,) int64        rows of each media item
    media_rows, media_starts, media_lengths   (I,) int64: row, first position and number of positions of its span
    kinds            I kinds of media
    num_clips        conversations       num_targets  labels other than -100      num_tokens  positions not padding
    row_lengths      R tuples: positions of each conversation of a row in order (padding is the rest of the row); where
                     it is None the model works it out from `segments`, which waits for the device

    The tensors that index media (`feature_offsets`, `media_*`) stay on the CPU: shapes follow from them.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    segments: Tensor
    features: Tensor
    position: Tensor
    source: Tensor
    feature_offsets: Tensor
    media_rows: Tensor
    media_starts: Tensor
    media_lengths: Tensor
    kinds: tuple[str, ...]
    num_clips: int
    num_targets: int
    num_tokens: int
    row_lengths: tuple[tuple[int, ...], ...] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "LanguageBatch":
        return self._each(lambda tensor: to_device(tensor, device))

    def pin_memory(self) -> "LanguageBatch":
        return self._each(Tensor.pin_memory)

    def _each(self, send: Callable[[Tensor], Any]) -> "LanguageBatch":
        stay = {"feature_offsets", "media_rows", "media_starts", "media_lengths"}
        names = (item.name for item in fields(self) if item.name not in stay)
        values = {name: getattr(self, name) for name in names}
        return replace(self, **{name: send(value) for name, value in values.items() if isinstance(value, Tensor)})
