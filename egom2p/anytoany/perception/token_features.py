"""Clips as plain codes: ids of every modality with their positions.

L tokens of one modality, N rows of a clip.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from egom2p.anytoany.perception.source import Clip, PerceptionConfig
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip, Tokenizer, check_fingerprint
from egom2p.models.weights import tokenizer_locations
from egom2p.storage import fingerprint_of, load_json
from egom2p.tokenizers.pretrained import load_tokenizer


def perceived_specs(config: PerceptionConfig) -> tuple[ModalitySpec, ...]:
    """The modalities to perceive, in the model's order."""
    if config.modality_specs:
        specs = [ModalitySpec.from_dict(values) for values in config.modality_specs]
    else:
        card = load_json(Path(str(config.checkpoint)) / "model.json")
        specs = [ModalitySpec.from_dict(values) for values in card["modalities"]]
    known = [spec.name for spec in specs]
    if unknown := [name for name in config.modalities if name not in known]:
        raise ValueError(f"perception.modalities: no modality {unknown[0]!r}; known: {', '.join(known)}")
    return tuple(spec for spec in specs if not config.modalities or spec.name in config.modalities)


def features_of_tokens(clip: TokenClip, specs: Sequence[ModalitySpec]) -> PerceptionFeatures:
    """Ids (N, 1) of the modalities that the clip has, by modality, positions ascending; without -1 (unknown)."""
    parts = []
    for number, spec in enumerate(specs):
        if spec.name not in clip.tokens:
            continue
        found = clip.fingerprints.get(spec.name)
        check_fingerprint(spec.name, found=found, wanted=spec.tokenizer_fingerprint, where=f"clip {clip.key}")
        ids_L = np.asarray(clip.tokens[spec.name]).reshape(-1)
        if len(ids_L) > spec.num_tokens or (len(ids_L) and int(ids_L.max()) >= spec.vocab_size):
            raise ValueError(
                f"clip {clip.key}: {len(ids_L)} ids of {spec.name} up to {ids_L.max(initial=-1)}, "
                f"wanted at most {spec.num_tokens} below {spec.vocab_size}"
            )
        known_N = np.flatnonzero(ids_L >= 0)
        position_N3 = np.zeros((len(known_N), 3), np.int16)
        axes = np.unravel_index(known_N, spec.grid.shape)
        position_N3[:, : len(axes)] = np.stack(axes, axis=1)
        parts.append((ids_L[known_N, None].astype(np.float32), position_N3, np.full(len(known_N), number, np.int16)))
    if not parts:
        wanted = [spec.name for spec in specs]
        raise ValueError(f"clip {clip.key} has {sorted(clip.tokens)}, none of the perceived modalities {wanted}")
    features, position, source = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return PerceptionFeatures(features, position, source)


class TokenSource:
    """Perception features of ids from token clips, or from signals through the checkpoint's tokenizers."""

    width = 1

    def __init__(self, config: PerceptionConfig, *, device: str = "cpu") -> None:
        self.specs = perceived_specs(config)
        self.names = tuple(spec.name for spec in self.specs)
        self.fingerprint = fingerprint_of({}, {"source": "codes", "specs": [spec.to_dict() for spec in self.specs]})
        self._checkpoint, self._device = config.checkpoint, torch.device(device)
        self._tokenizers: dict[str, Tokenizer] | None = None

    def perceive(self, clips: Sequence[Clip]) -> list[PerceptionFeatures]:
        return [features_of_tokens(clip, self.specs) for clip in self.tokens(clips)]

    def tokens(self, clips: Sequence[Clip]) -> list[TokenClip]:
        """Token clips as they are; signals tokenized, what a clip does not have absent."""
        return [self._tokenized(clip) if isinstance(clip, AlignedClip) else clip for clip in clips]

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """Tokenizers of the perceived modalities by name, loaded when first asked for."""
        if self._tokenizers is None:
            if self._checkpoint is None:
                raise ValueError("signals need tokenizers: name a checkpoint in perception, or give tokens")
            folders = tokenizer_locations(self._checkpoint)
            self._tokenizers = {}
            for spec in self.specs:
                if spec.name in folders:
                    tokenizer = load_tokenizer(folders[spec.name], device=self._device)
                    check_fingerprint(
                        spec.name,
                        found=spec.tokenizer_fingerprint,
                        wanted=tokenizer.fingerprint,
                        where=self._checkpoint,
                    )
                    self._tokenizers[spec.name] = tokenizer
        return self._tokenizers

    def _tokenized(self, clip: AlignedClip) -> TokenClip:
        present = {name: tokenizer for name, tokenizer in self.tokenizers.items() if tokenizer.stream in clip}
        tokens = {name: tokenizer.encode([clip])[0] for name, tokenizer in present.items()}
        return TokenClip(clip.key, tokens, {name: tokenizer.fingerprint for name, tokenizer in present.items()})
