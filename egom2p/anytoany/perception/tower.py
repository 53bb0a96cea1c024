"""What stands between perception features and connector inside the model, and is trained with it.

N feature rows of all media items, I media items, D width, K modalities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.anytoany.perception.source import Clip, PerceptionConfig, PerceptionSource
from egom2p.anytoany.perception.token_features import TokenSource, perceived_specs
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.contracts import ModalitySpec, PackedBatch
from egom2p.layers.lora import attach_lora
from egom2p.models.egom2p_model import EgoM2P, load_model
from egom2p.models.encoder_embeddings import EncoderEmbeddings
from egom2p.storage import fingerprint_of


@dataclass(frozen=True)
class FeatureRows:
    """Perception features of I media items laid end to end.

    features (N, D)   position (N, 3)   source (N,)   lengths   I ints, rows of each item, on the CPU
    """

    features: Tensor
    position: Tensor
    source: Tensor
    lengths: tuple[int, ...]


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


class CodeTower(Tower):
    """A learned embedding of every id: (N, 1) ids -> (N, D)."""

    def __init__(self, specs: Sequence[ModalitySpec], width: int) -> None:
        super().__init__()
        self.width, self.num_sources = width, len(specs)
        self.embeddings = EncoderEmbeddings(specs, width, num_registers=0)
        nn.init.normal_(self.embeddings.token_table)

    def forward(self, rows: FeatureRows) -> Tensor:
        no_offsets = rows.source.new_zeros(1)
        return self.embeddings(_ids(rows), rows.source, no_offsets)


class EncoderTower(Tower):
    """States of EgoM2P's encoder over whatever modalities a clip has: (N, 1) ids -> (N, D).

    The decoder is left out. A frozen encoder stays in evaluation mode; one that is trained draws stochastic depth.
    """

    def __init__(self, encoder: EgoM2P, config: PerceptionConfig) -> None:
        super().__init__()
        specs = [spec for spec in encoder.specs if not config.modalities or spec.name in config.modalities]
        depth = len(encoder.encoder)
        if config.layer is not None and not 1 <= config.layer <= depth:
            raise ValueError(f"perception.layer must be in 1 ... {depth} (blocks of the encoder), got {config.layer}")
        self.width, self.num_sources, self.is_trained = encoder.config.dim, len(specs), config.train != "frozen"
        self.encoder = encoder
        encoder.encoder = encoder.encoder[: config.layer]
        encoder.decoder = nn.ModuleList()
        encoder.decoder_embeddings = encoder.decoder_proj_context = encoder.decoder_norm = None
        encoder.requires_grad_(self.is_trained)
        if config.lora is not None:
            attach_lora(encoder, config.lora)
        number_of = [encoder.modalities.index(spec.name) for spec in specs]
        strides = [_strides(spec) for spec in specs]
        self.register_buffer("modality_of_source", torch.tensor(number_of, dtype=torch.int32), persistent=False)
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.int32), persistent=False)

    def train(self, mode: bool = True) -> "EncoderTower":
        super().train(mode)
        self.encoder.train(mode and self.is_trained)
        return self

    def forward(self, rows: FeatureRows) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            batch, rows_N = self._batch(rows)
            return self.encoder.encoder_output(batch)[rows_N]

    def _batch(self, rows: FeatureRows) -> tuple[PackedBatch, Tensor]:
        """The encoder's input, and where the feature rows lie in it (registers stand first in their clip)."""
        num_registers, num_modalities = self.encoder.config.num_registers, len(self.encoder.modalities)
        device = rows.features.device
        lengths = tuple(length + num_registers for length in rows.lengths)
        total = sum(lengths)
        owner_N = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
        rows_N = torch.from_numpy(np.arange(len(owner_N)) + (owner_N + 1) * num_registers).to(device)
        source_N = rows.source.int()
        position_N = (rows.position.int() * self.strides[source_N]).sum(-1, dtype=torch.int32)
        starts = np.cumsum([0, *lengths])[:-1]
        registers = np.zeros(total, np.int32)
        registers[(starts[:, None] + np.arange(num_registers)).reshape(-1)] = np.tile(
            np.arange(num_registers), len(lengths)
        )
        positions = torch.from_numpy(registers).to(device).index_copy(0, rows_N, position_N)
        kinds = torch.full((total,), num_modalities, dtype=torch.int32, device=device)
        ids = torch.zeros(total, dtype=torch.int32, device=device).index_copy(0, rows_N, _ids(rows))
        nothing = torch.zeros(0, dtype=torch.int32, device=device)
        num_clips = len(lengths)
        offsets = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)
        batch = PackedBatch(
            input_ids=ids,
            input_position=positions,
            input_modality=kinds.index_copy(0, rows_N, self.modality_of_source[source_N]),
            input_offsets=offsets,
            target_ids=nothing,
            target_position=nothing,
            target_modality=nothing,
            target_offsets=torch.zeros_like(offsets),
            query_ids=nothing,
            segment_offsets=torch.zeros(num_clips * num_modalities + 1, dtype=torch.int32, device=device),
            head_order=nothing.long(),
            head_counts=(0,) * num_modalities,
            input_lengths=lengths,
            target_lengths=(0,) * num_clips,
            segment_lengths=(0,) * (num_clips * num_modalities),
            modalities=self.encoder.modalities,
        )
        return batch, rows_N


class EncodedSource:
    """Perception features of what a tower makes of a live source's, for features that are computed once and stored."""

    def __init__(self, raw: PerceptionSource, tower: Tower, *, fingerprint: str, device: str = "cpu") -> None:
        self.names, self.width, self.fingerprint = raw.names, tower.width, fingerprint
        self._raw, self._device = raw, torch.device(device)
        self._tower = tower.to(self._device).eval()

    @torch.no_grad()
    def perceive(self, clips: Sequence[Clip]) -> list[PerceptionFeatures]:
        items = self._raw.perceive(clips)
        states = self._tower(rows_of(items, self._device)).float().cpu().numpy()
        ends = np.cumsum([len(item.features) for item in items])
        return [
            PerceptionFeatures(part, item.position, item.source)
            for part, item in zip(np.split(states, ends[:-1]), items, strict=True)
        ]


def encoded_tokens(config: PerceptionConfig, tokens: TokenSource, *, device: str = "cpu") -> EncodedSource:
    """States of EgoM2P's encoder."""
    model = load_model(str(config.checkpoint), device)
    settings = {"tokens": tokens.fingerprint, "layer": config.layer, "modalities": list(config.modalities)}
    fingerprint = fingerprint_of(model.state_dict(), settings)
    return EncodedSource(tokens, EncoderTower(model, config), fingerprint=fingerprint, device=device)


def plain_tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights and buffers of an image tower under timm's names, without adapters, out of its module's state."""
    return {
        name.removeprefix("tower.").replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.startswith("tower.") and "lora_" not in name
    }


def rows_of(items: Sequence[PerceptionFeatures], device: torch.device | str = "cpu") -> FeatureRows:
    """Perception features laid end to end on a device."""
    parts = [np.concatenate([getattr(p, name) for p in items]) for name in ("features", "position", "source")]
    features, position, source = (torch.from_numpy(part).to(device) for part in parts)
    return FeatureRows(features, position, source, tuple(len(item.features) for item in items))


def build_tower(config: PerceptionConfig, *, with_weights: bool = True) -> Tower:
    """The part of a source that belongs to the model.

    with_weights   False: an image tower is not downloaded, only its sizes are right
    """
    if config.source == "timm_frames":
        from egom2p.anytoany.perception.timm_frames import TimmTower, tower_width

        is_live = config.gives_pixels
        return TimmTower(config, with_weights=with_weights) if is_live else FeatureTower(tower_width(config))
    if config.source == "codes":
        return CodeTower(perceived_specs(config), int(config.width or 0))
    if config.source == "egom2p_encoder" and not config.precomputed:
        return EncoderTower(load_model(str(config.checkpoint)), config)
    if config.source == "egom2p_encoder":
        encoder = load_model(str(config.checkpoint))
        return FeatureTower(encoder.config.dim, num_sources=len(perceived_specs(config)))
    return FeatureTower(int(config.width or 0))


def _ids(rows: FeatureRows) -> Tensor:
    if rows.features.shape[1] != 1:
        raise ValueError(f"ids are one number per row, found {rows.features.shape[1]}")
    return rows.features[:, 0].round().int()


def _strides(spec: ModalitySpec) -> tuple[int, int, int]:
    """Position = t, y, x times these."""
    if len(spec.grid.shape) == 1:
        return 1, 0, 0
    _, height, width = spec.grid.shape
    return height * width, width, 1
