"""The protocol of perception sources, and the one config that names them.

N percept rows, D their width.

A source turns clips into percepts on the CPU side; what is trained lives in a tower inside the model (tower.py). A
source whose percepts are ids (codes, a live encoder) has a tower that makes features of them; of the others the
percept's features are what the connector gets.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from egom2p.anytoany.nouns import KINDS, MediaKind, Percept
from egom2p.config import strict
from egom2p.contracts import AlignedClip, TokenClip
from egom2p.layers.lora import LoraConfig

Clip = AlignedClip | TokenClip


class PerceptionSource(Protocol):
    """Clips to percepts.

    names        what `Percept.source` indexes
    width        D of its percepts
    fingerprint  identity of what it computes
    """

    names: tuple[str, ...]
    width: int
    fingerprint: str

    def perceive(self, clips: Sequence[Clip]) -> list[Percept]: ...


@strict
class PerceptionConfig:
    """One source, and the kinds of media that it serves.

    source        `vectors`: precomputed vectors (1024 numbers in ImageBind's files); `codes`: an embedding of the token
                  ids, the cheap baseline; `egom2p_encoder`: states of a trained encoder; `timm_frames`: a timm image
                  tower on every frame
    kinds         empty: all
    width         vectors, timm_frames: width of the features; codes: width of the embedding
    checkpoint    codes, egom2p_encoder: EgoM2P model directory (for codes its modalities and tokenizers only)
    modality_specs   codes: modalities as plain values, instead of a checkpoint
    modalities    names to perceive, empty: all; what a clip does not have is absent
    layer         egom2p_encoder: states after so many blocks, None: after all
    train         egom2p_encoder: frozen | lora | full
    precomputed   egom2p_encoder: percepts are exported states, not ids; the encoder is then not part of the model
    tower         timm_frames: name of the timm model; `tower_weights`: its safetensors, None: as timm downloads them,
                  "random": none
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

    def __post_init__(self) -> None:
        needs = {
            "vectors": ("width",),
            "codes": ("width",),
            "egom2p_encoder": ("checkpoint",),
            "timm_frames": ("tower", "width"),
        }[self.source]
        for name in needs:
            if getattr(self, name) is None:
                raise ValueError(f"perception source {self.source} needs {name}")
        if self.source == "codes" and (self.checkpoint is None) == (not self.modality_specs):
            raise ValueError("perception source codes needs either a checkpoint or modality_specs")
        if (self.train == "lora") != (self.lora is not None):
            raise ValueError(f"lora settings belong to train: lora, found train: {self.train} and lora: {self.lora}")
        if self.train != "frozen" and (self.source != "egom2p_encoder" or self.precomputed):
            raise ValueError("only a live egom2p_encoder can be trained (train: lora or full)")

    @property
    def gives_ids(self) -> bool:
        """Whether percepts are ids that a tower inside the model turns into features."""
        return self.source == "codes" or (self.source == "egom2p_encoder" and not self.precomputed)

    @property
    def served_kinds(self) -> tuple[str, ...]:
        return self.kinds or KINDS


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
    if config.source == "timm_frames":
        from egom2p.anytoany.perception.timm_frames import TimmFrames

        return TimmFrames(config, device=device)
    if config.source == "vectors":
        raise ValueError("vectors are read from files (see perception/vectors.py), not computed from clips")
    from egom2p.anytoany.perception.token_percepts import TokenSource

    tokens = TokenSource(config, device=device)
    if config.gives_ids:
        return tokens
    from egom2p.anytoany.perception.tower import EncodedSource

    return EncodedSource(config, tokens, device=device)
