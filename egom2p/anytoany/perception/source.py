"""What perception sources are: their configs, one per kind, and what stands between them and the connector.

N feature rows, D their width, I media items.

A source turns clips into features on the CPU side; what is trained lives in a tower inside the model. A source whose
features are ids (codes, a live encoder) or pixels (a live image tower) has a tower that makes features of them; of the
others the features are what the connector gets. `build_perception` makes sources and towers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from egom2p.anytoany.types import KINDS, MediaKind, PerceptionFeatures
from egom2p.config import Count, Positive, from_plain, strict
from egom2p.contracts import AlignedClip, TokenClip
from egom2p.layers.lora import LoraConfig

Clip = AlignedClip | TokenClip
Training = Literal["frozen", "lora", "full"]


@strict
class ServedKinds:
    """What every config of a source says. kinds: of media that it serves, empty: all."""

    kinds: tuple[MediaKind, ...] = ()

    @property
    def served_kinds(self) -> tuple[str, ...]:
        return self.kinds or KINDS

    @property
    def gives_ids(self) -> bool:
        """Whether features are ids that a tower inside the model turns into features."""
        return False

    @property
    def gives_pixels(self) -> bool:
        """Whether features are pixels that a tower inside the model turns into features."""
        return False


@strict
class VectorsConfig(ServedKinds):
    """Precomputed vectors of so many numbers (1024 in ImageBind's files)."""

    source: Literal["vectors"] = "vectors"
    width: Count  # numbers of a vector, 1024 in ImageBind's files


@strict
class CodesConfig(ServedKinds):
    """An embedding of the token ids, the cheap baseline.

    width            of the embedding
    checkpoint       EgoM2P model directory, for its modalities and tokenizers only
    modality_specs   modalities as plain values, instead of a checkpoint
    modalities       names to perceive, empty: all; what a clip does not have is absent
    """

    source: Literal["codes"] = "codes"
    width: Count
    checkpoint: str | None = None
    modality_specs: tuple[dict[str, Any], ...] = ()
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (not self.modality_specs):
            raise ValueError("perception source codes needs either a checkpoint or modality_specs")

    @property
    def gives_ids(self) -> bool:
        return True


@strict
class TrainableSource(ServedKinds):
    """What encoder and image tower have in common.

    layer         states after so many blocks (of a convolutional tower: stages), None: all
    precomputed   features are exported states, not ids or pixels; encoder or tower is then not part of the model
    """

    layer: int | None = None
    train: Training = "frozen"  # what of it learns
    lora: LoraConfig | None = None
    precomputed: bool = False

    def __post_init__(self) -> None:
        if (self.train == "lora") != (self.lora is not None):
            raise ValueError(f"lora settings belong to train: lora, found train: {self.train} and lora: {self.lora}")
        if self.train != "frozen" and self.precomputed:
            raise ValueError(
                "only a live encoder or tower can be trained (train: lora or full), not precomputed features"
            )


@strict
class EncoderConfig(TrainableSource):
    """States of a trained EgoM2P encoder (`checkpoint`: its model directory) over some modalities, empty: all.

    fovea   a modality of pictures whose states where the eyes are come once more, as a modality `fovea` with one row
            for each time. What is looked at is in these states and in no mean over columns (docs/results/anytoany.md);
            needs `precomputed` and the tokenizer of the gaze. Clips without gaze have none
    """

    source: Literal["egom2p_encoder"] = "egom2p_encoder"
    checkpoint: str  # its model directory
    modalities: tuple[str, ...] = ()  # empty: all of the checkpoint
    fovea: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fovea is not None and not self.precomputed:
            raise ValueError("perception.fovea is written with exported states: it needs precomputed: true")
        if self.fovea is not None and self.modalities and self.fovea not in self.modalities:
            raise ValueError(f"perception.fovea {self.fovea} is none of the modalities {list(self.modalities)}")

    @property
    def gives_ids(self) -> bool:
        return not self.precomputed


@strict
class TimmFramesConfig(TrainableSource):
    """A timm image tower on every frame of a video or picture.

    tower           name of the timm model
    tower_weights   its safetensors, None: as timm downloads them, "random": none
    width           None, or a number that is checked
    image_size      pixels along each side of the square that the tower sees, None: what it was made for. Pictures of
                    other shapes are squeezed, videos cut to their middle
    tiles           (rows, columns) of such squares that a picture is cut into
    num_frames      of a clip of video, evenly spaced; a picture file has at most as many
    clip_s          seconds of a clip of video
    """

    source: Literal["timm_frames"] = "timm_frames"
    tower: str
    tower_weights: str | None = None
    width: Count | None = None
    image_size: Count | None = None
    tiles: tuple[Count, Count] = (1, 1)
    num_frames: Count = 16
    clip_s: Positive = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()

    @property
    def gives_pixels(self) -> bool:
        return not self.precomputed


PerceptionConfig = Annotated[
    VectorsConfig | CodesConfig | EncoderConfig | TimmFramesConfig, Field(discriminator="source")
]
TokenConfig = CodesConfig | EncoderConfig
"""Sources of the tokens of EgoM2P's modalities."""


@strict
class _Stored:
    perception: PerceptionConfig


def stored_config(values: dict[str, Any], *, where: str) -> PerceptionConfig:
    """The config that a file holds as plain values; ValueError names the file."""
    return from_plain(_Stored, {"perception": values}, where=where).perception


class PerceptionSource(Protocol):
    """Clips to perception features.

    names        what `PerceptionFeatures.source` indexes
    width        D of its perception features
    fingerprint  identity of what it computes
    """

    names: tuple[str, ...]
    width: int
    fingerprint: str

    def perceive(self, clips: Sequence[Clip]) -> list[PerceptionFeatures]: ...


@dataclass(frozen=True)
class FeatureRows:
    """Perception features of I media items laid end to end.

    features (N, D)   position (N, 3)   source (N,)   lengths   I ints, rows of each item, on the CPU
    """

    features: Tensor
    position: Tensor
    source: Tensor
    lengths: tuple[int, ...]


def rows_of(items: Sequence[PerceptionFeatures], device: torch.device | str = "cpu") -> FeatureRows:
    """Perception features laid end to end on a device."""
    parts = [np.concatenate([getattr(p, name) for p in items]) for name in ("features", "position", "source")]
    features, position, source = (torch.from_numpy(part).to(device) for part in parts)
    return FeatureRows(features, position, source, tuple(len(item.features) for item in items))


class Tower(nn.Module):
    """What all towers have, and all that is asked of them beside their `forward` of rows to features (N, width).

    row_width   numbers of a feature row that it is given
    """

    width: int
    num_sources: int = 1
    row_width: int = 1


class FeatureTower(Tower):
    """Features that were computed before: they pass as they are."""

    def __init__(self, width: int, num_sources: int = 1) -> None:
        super().__init__()
        self.width, self.row_width, self.num_sources = width, width, num_sources

    def forward(self, rows: FeatureRows) -> Tensor:
        if rows.features.shape[1] != self.width:
            raise ValueError(f"rows of {rows.features.shape[1]} numbers, this model perceives {self.width}")
        return rows.features


def source_of_kind(sources: Sequence[PerceptionConfig], kind: str) -> int:
    """Number of the source that serves a kind of media; ValueError when none or several do."""
    found = [number for number, config in enumerate(sources) if kind in config.served_kinds]
    if len(found) != 1:
        names = [sources[number].source for number in found] or "none"
        raise ValueError(f"media of kind {kind} need exactly one perception source, found {names}; set `kinds`")
    return found[0]
