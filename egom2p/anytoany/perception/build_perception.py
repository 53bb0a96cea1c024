"""From a source's config to the source and its tower: the one place that knows every kind of perception."""

from collections.abc import Sequence

import numpy as np
import torch

from egom2p.anytoany.perception.source import (
    Clip,
    CodesConfig,
    EncoderConfig,
    FeatureTower,
    PerceptionConfig,
    PerceptionSource,
    TimmFramesConfig,
    Tower,
    VectorsConfig,
    rows_of,
)
from egom2p.anytoany.perception.timm_frames import PixelSource, TimmTower, plain_tower_state, tower_width
from egom2p.anytoany.perception.token_features import (
    FOVEA,
    CodeTower,
    EncoderTower,
    Fovea,
    TokenSource,
    perceived_names,
    perceived_specs,
)
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.models.egom2p_model import load_model
from egom2p.storage import fingerprint_of


def build_source(config: PerceptionConfig, *, device: str = "cpu") -> PerceptionSource:
    """The source that perceives clips; vectors come from files and have none."""
    if isinstance(config, VectorsConfig):
        raise ValueError("vectors are read from files (see perception/media_files.py), not computed from clips")
    raw = PixelSource(config) if isinstance(config, TimmFramesConfig) else TokenSource(config, device=device)
    if config.gives_ids or config.gives_pixels:
        return raw
    if isinstance(config, TimmFramesConfig):
        tower: Tower = TimmTower(config)
        settings = {"tower": config.tower, "layer": config.layer, "pixels": raw.fingerprint}
        fingerprint = fingerprint_of(plain_tower_state(tower.state_dict()), settings)
    else:
        model = load_model(config.checkpoint, device)
        settings = {"tokens": raw.fingerprint, "layer": config.layer, "modalities": list(config.modalities)}
        settings |= {} if config.fovea is None else {"fovea": config.fovea}
        # Of the whole model, before the tower leaves out what it does not need.
        fingerprint = fingerprint_of(model.state_dict(), settings)
        tower = EncoderTower(model, config)
        if config.fovea is not None:
            return EncodedSource(raw, tower, fingerprint=fingerprint, device=device, fovea=Fovea(config, raw))
    return EncodedSource(raw, tower, fingerprint=fingerprint, device=device)


def build_tower(config: PerceptionConfig, *, with_weights: bool = True) -> Tower:
    """The part of a source that belongs to the model.

    with_weights   False: an image tower is not downloaded, only its sizes are right
    """
    if isinstance(config, TimmFramesConfig):
        is_live = config.gives_pixels
        return TimmTower(config, with_weights=with_weights) if is_live else FeatureTower(tower_width(config))
    if isinstance(config, CodesConfig):
        return CodeTower(perceived_specs(config), config.width)
    if isinstance(config, EncoderConfig):
        encoder = load_model(config.checkpoint)
        if config.gives_ids:
            return EncoderTower(encoder, config)
        return FeatureTower(encoder.config.dim, num_sources=len(perceived_names(config)))
    return FeatureTower(config.width)


class EncodedSource:
    """Perception features of what a tower makes of a live source's, for features that are computed once and stored."""

    def __init__(
        self,
        raw: PerceptionSource,
        tower: Tower,
        *,
        fingerprint: str,
        device: str = "cpu",
        fovea: Fovea | None = None,
    ) -> None:
        self.names = raw.names if fovea is None else (*raw.names, FOVEA)
        self.width, self.fingerprint = tower.width, fingerprint
        self._raw, self._fovea, self._device = raw, fovea, torch.device(device)
        self._tower = tower.to(self._device).eval()

    @torch.no_grad()
    def perceive(self, clips: Sequence[Clip]) -> list[PerceptionFeatures]:
        tokens = clips if self._fovea is None else self._fovea.tokens(clips)
        items = self._raw.perceive(tokens)
        states = self._tower(rows_of(items, self._device)).float().cpu().numpy()
        ends = np.cumsum([len(item.features) for item in items])
        encoded = [
            PerceptionFeatures(part, item.position, item.source)
            for part, item in zip(np.split(states, ends[:-1]), items, strict=True)
        ]
        return encoded if self._fovea is None else self._fovea.added(tokens, encoded)
