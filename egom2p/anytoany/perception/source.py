"""The protocol of perception sources, and the one config that names them.

N feature rows, D their width.

A source turns clips into features on the CPU side; what is trained lives in a tower inside the model (tower.py). A
source whose features are ids (codes, a live encoder) or pixels (a live image tower) has a tower that makes features of
them; of the others the features are what the connector gets.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from egom2p.anytoany.types import KINDS, MediaKind, PerceptionFeatures
from egom2p.config import strict
from egom2p.contracts import AlignedClip, TokenClip
from egom2p.layers.lora import LoraConfig

Clip = AlignedClip | TokenClip


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


@strict
class PerceptionConfig:
    """One source, and the kinds of media that it serves.

    source        `vectors`: precomputed vectors (1024 numbers in ImageBind's files); `codes`: an embedding of the token
                  ids, the cheap baseline; `egom2p_encoder`: states of a trained encoder; `timm_frames`: a timm image
                  tower on every frame of a video or picture
    kinds         empty: all
    width         vectors: width of the features; codes: width of the embedding; timm_frames: None, or a number that is
                  checked
    checkpoint    codes, egom2p_encoder: EgoM2P model directory (for codes its modalities and tokenizers only)
    modality_specs   codes: modalities as plain values, instead of a checkpoint
    modalities    names to perceive, empty: all; what a clip does not have is absent
    layer         egom2p_encoder, timm_frames: states after so many blocks (of a convolutional tower: stages), None: all
    train         egom2p_encoder, timm_frames: frozen | lora | full
    precomputed   egom2p_encoder, timm_frames: features are exported states, not ids or pixels; the encoder or tower is
                  then not part of the model
    tower         timm_frames: name of the timm model; `tower_weights`: its safetensors, None: as timm downloads them,
                  "random": none
    image_size    timm_frames: pixels along each side of the square that the tower sees, None: what it was made for.
                  Pictures of other shapes are squeezed, videos cut to their middle
    tiles         timm_frames: (rows, columns) of such squares that a picture is cut into
    num_frames    timm_frames: frames of a clip of video, evenly spaced; a picture file has at most as many
    clip_s        timm_frames: seconds of a clip of video
    """

    source: Literal["vectors", "codes", "egom2p_encoder", "timm_frames"]
    kinds: tuple[MediaKind, ...] = ()
    width: int | None = None
    checkpoint: str | None = None
    modality_specs: tuple[dict[str, Any], ...] = ()
    modalities: tuple[str, ...] = ()
    layer: int | None = None
    train: Literal["frozen", "lora", "full"] = "frozen"
    lora: LoraConfig | None = None
    precomputed: bool = False
    tower: str | None = None
    tower_weights: str | None = None
    image_size: int | None = None
    tiles: tuple[int, int] = (1, 1)
    num_frames: int = 16
    clip_s: float = 2.0

    def __post_init__(self) -> None:
        needs = {
            "vectors": ("width",),
            "codes": ("width",),
            "egom2p_encoder": ("checkpoint",),
            "timm_frames": ("tower",),
        }[self.source]
        for name in needs:
            if getattr(self, name) is None:
                raise ValueError(f"perception source {self.source} needs {name}")
        if self.source == "codes" and (self.checkpoint is None) == (not self.modality_specs):
            raise ValueError("perception source codes needs either a checkpoint or modality_specs")
        if (self.train == "lora") != (self.lora is not None):
            raise ValueError(f"lora settings belong to train: lora, found train: {self.train} and lora: {self.lora}")
        if self.train != "frozen" and (self.source not in ("egom2p_encoder", "timm_frames") or self.precomputed):
            raise ValueError("only a live egom2p_encoder or timm_frames can be trained (train: lora or full)")
        if min(*self.tiles, self.num_frames, self.image_size or 1) < 1 or self.clip_s <= 0:
            raise ValueError(
                f"image_size, tiles, num_frames and clip_s must be positive, got {self.image_size}, {self.tiles}, "
                f"{self.num_frames} and {self.clip_s}"
            )

    @property
    def gives_ids(self) -> bool:
        """Whether perception features are ids that a tower inside the model turns into features."""
        return self.source == "codes" or (self.source == "egom2p_encoder" and not self.precomputed)

    @property
    def gives_pixels(self) -> bool:
        """Whether perception features are pixels that a tower inside the model turns into features."""
        return self.source == "timm_frames" and not self.precomputed

    @property
    def is_live(self) -> bool:
        """Whether the model turns perception features into features itself."""
        return self.gives_ids or self.gives_pixels

    @property
    def served_kinds(self) -> tuple[str, ...]:
        return self.kinds or KINDS


def as_meant_today(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a stored config; earlier versions had image towers outside of the model, and did not say so."""
    is_earlier_tower = stored["source"] == "timm_frames" and "image_size" not in stored
    return {**stored, "precomputed": True} if is_earlier_tower else dict(stored)


def source_of_kind(sources: Sequence[PerceptionConfig], kind: str) -> int:
    """Number of the source that serves a kind of media; ValueError when none or several do."""
    found = [number for number, config in enumerate(sources) if kind in config.served_kinds]
    if len(found) != 1:
        names = [sources[number].source for number in found] or "none"
        raise ValueError(f"media of kind {kind} need exactly one perception source, found {names}; set `kinds`")
    return found[0]


def build_source(config: PerceptionConfig, *, device: str = "cpu") -> PerceptionSource:
    """The source that perceives clips; vectors come from files and have none."""
    # Imported here: towers and tokenizers are only needed by those who perceive raw clips.
    if config.source == "vectors":
        raise ValueError("vectors are read from files (see perception/vectors.py), not computed from clips")
    if config.source == "timm_frames":
        from egom2p.anytoany.perception.timm_frames import PixelSource, encoded_frames

        return PixelSource(config) if config.gives_pixels else encoded_frames(config, device=device)
    from egom2p.anytoany.perception.token_features import TokenSource

    tokens = TokenSource(config, device=device)
    if config.gives_ids:
        return tokens
    from egom2p.anytoany.perception.tower import encoded_tokens

    return encoded_tokens(config, tokens, device=device)
