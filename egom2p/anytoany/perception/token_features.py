"""Tokens of EgoM2P's modalities as perception: plain codes, embedded, or states of its encoder.

L tokens of one modality, N feature rows of all media items, K modalities, D width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.anytoany.perception.source import Clip, CodesConfig, EncoderConfig, FeatureRows, TokenConfig, Tower
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.contracts import AlignedClip, ModalitySpec, PackedBatch, TokenClip, Tokenizer, check_fingerprint
from egom2p.layers.lora import attach_lora
from egom2p.models.egom2p_model import EgoM2P, load_model
from egom2p.models.encoder_embeddings import EncoderEmbeddings
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan
from egom2p.models.weights import tokenizer_locations
from egom2p.storage import fingerprint_of, load_json
from egom2p.storage.atomic import with_pretrained
from egom2p.tokenizers.pretrained import load_tokenizer

FOVEA = "fovea"


def perceived_specs(config: TokenConfig) -> tuple[ModalitySpec, ...]:
    """The modalities to perceive, in the model's order."""
    if isinstance(config, CodesConfig) and config.modality_specs:
        specs = [ModalitySpec.from_dict(values) for values in config.modality_specs]
    else:
        card = load_json(with_pretrained(str(config.checkpoint)) / "model.json")
        specs = [ModalitySpec.from_dict(values) for values in card["modalities"]]
    known = [spec.name for spec in specs]
    if unknown := [name for name in config.modalities if name not in known]:
        raise ValueError(f"perception.modalities: no modality {unknown[0]!r}; known: {', '.join(known)}")
    if pixels := [spec.name for spec in specs if spec.is_input_only and spec.name in config.modalities]:
        raise ValueError(f"perception.modalities: {pixels[0]} are pixels; features are made of ids")
    chosen = [spec for spec in specs if not config.modalities or spec.name in config.modalities]
    return tuple(spec for spec in chosen if not spec.is_input_only)


def perceived_names(config: TokenConfig) -> tuple[str, ...]:
    """What `PerceptionFeatures.source` indexes."""
    has_fovea = isinstance(config, EncoderConfig) and config.fovea is not None
    return (*(spec.name for spec in perceived_specs(config)), *((FOVEA,) if has_fovea else ()))


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


class Fovea:
    """Rows of a grid modality where the eyes are: one for each of its T times, of the cell that the gaze lies in.

    The gaze is what the clip's own gaze tokens decode to: its median over the part of the clip that a time stands for.
    """

    def __init__(self, config: EncoderConfig, source: "TokenSource") -> None:
        card = load_json(with_pretrained(config.checkpoint) / "model.json")
        gaze = [values["name"] for values in card["modalities"] if values["quantity"] == "gaze"]
        by_name = {spec.name: number for number, spec in enumerate(source.specs)}
        if config.fovea not in by_name or len(source.specs[by_name[config.fovea]].grid.shape) != 3:
            raise ValueError(f"perception.fovea: {config.fovea} is no modality of pictures among {list(by_name)}")
        self._gaze = next((name for name in gaze if name in by_name), None)
        if self._gaze is None:
            raise ValueError(f"perception.fovea needs the gaze among the modalities {list(by_name)}, found none")
        self._pictures, self._number = by_name[config.fovea], len(source.specs)
        self._grid = source.specs[self._pictures].grid.shape
        self._source = source

    def tokens(self, clips: Sequence[Clip]) -> list[TokenClip]:
        return self._source.tokens(clips)

    def added(self, clips: Sequence[TokenClip], items: Sequence[PerceptionFeatures]) -> list[PerceptionFeatures]:
        """The features of the clips, and behind them those where the eyes are."""
        return [self._added(clip, item) for clip, item in zip(clips, items, strict=True)]

    def _added(self, clip: TokenClip, item: PerceptionFeatures) -> PerceptionFeatures:
        of_pictures_N = np.flatnonzero(item.source == self._pictures)
        row_of = {tuple(item.position[row].tolist()): row for row in of_pictures_N}
        rows = [(cell[0], row_of[cell]) for cell in self._cells(clip) if cell in row_of]
        if not rows:
            return item
        position_R3 = np.zeros((len(rows), 3), np.int16)
        position_R3[:, 0] = [time for time, _ in rows]
        return PerceptionFeatures(
            np.concatenate([item.features, item.features[[row for _, row in rows]]]),
            np.concatenate([item.position, position_R3]),
            np.concatenate([item.source, np.full(len(rows), self._number, np.int16)]),
        )

    def _cells(self, clip: TokenClip) -> list[tuple[int, int, int]]:
        """(time, y, x) of the cells that are looked at, at the times when the gaze is known."""
        ids_L = np.asarray(clip.tokens.get(self._gaze, ())).reshape(-1)
        if not len(ids_L) or (ids_L < 0).any():
            return []
        values_1S2, is_valid_1S = self._source.tokenizers[self._gaze].decode(ids_L[None])
        num_times, height, width = self._grid
        cells = []
        parts = zip(np.array_split(values_1S2[0], num_times), np.array_split(is_valid_1S[0], num_times), strict=True)
        for time, (values_S2, is_valid_S) in enumerate(parts):
            if is_valid_S.any():
                u, v = np.median(values_S2[is_valid_S], axis=0)
                row, column = (int(np.clip(at * size, 0, size - 1)) for at, size in ((v, height), (u, width)))
                cells.append((time, row, column))
        return cells


class TokenSource:
    """Perception features of ids from token clips, or from signals through the checkpoint's tokenizers."""

    width = 1

    def __init__(self, config: TokenConfig, *, device: str = "cpu") -> None:
        self.specs = perceived_specs(config)
        self.names = tuple(spec.name for spec in self.specs)
        self.fingerprint = fingerprint_of({}, {"source": "codes", "specs": [spec.to_dict() for spec in self.specs]})
        self._checkpoint, self._device = config.checkpoint, torch.device(device)
        self._tokenizers: dict[str, Tokenizer] | None = None
        self._sampler: Sampler | None = None

    def perceive(self, clips: Sequence[Clip]) -> list[PerceptionFeatures]:
        return [features_of_tokens(clip, self.specs) for clip in self.tokens(clips)]

    def tokens(self, clips: Sequence[Clip]) -> list[TokenClip]:
        """Token clips as they are; signals tokenized, what a clip does not have absent."""
        return [self._tokenized(clip) if isinstance(clip, AlignedClip) else clip for clip in clips]

    def completed(self, clip: Clip) -> tuple[TokenClip, tuple[str, ...]]:
        """The clip's tokens, and what it lacked, which the checkpoint's own model predicts from the others.

        The likeliest tokens, each modality in one step and a condition of the next, as the model's card measures them.
        """
        (tokens,) = self.tokens([clip])
        missing = tuple(spec.name for spec in self.specs if spec.name not in tokens.tokens)
        if not missing or not tokens.tokens or self._checkpoint is None:
            return tokens, ()
        if self._sampler is None:
            self._sampler = Sampler(load_model(self._checkpoint, self._device).eval())
        (made,) = self._sampler.generate([tokens], [TargetPlan(target=name) for name in missing], [0])
        return made, missing

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

    def __init__(self, encoder: EgoM2P, config: EncoderConfig) -> None:
        super().__init__()
        specs = [spec for spec in encoder.specs if not spec.is_input_only]
        specs = [spec for spec in specs if not config.modalities or spec.name in config.modalities]
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
