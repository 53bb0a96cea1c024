"""The encoder alone: clips as features for other models, any modalities, any layer.

N tokens of one clip, R registers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec, TokenClip
from egom2p.models.egom2p_model import EgoM2P
from egom2p.models.prompt_batches import UNKNOWN, KnownTokens, PromptRow, pack_prompts, state_of


@dataclass(frozen=True)
class ClipFeatures:
    """Encoder states of one clip, float32 on the CPU.

    rows        (N, D) one per token, sorted by modality, then position
    modality    (N,) int64 index into the model's modalities
    position    (N,) int64 position in the grid of the modality
    registers   (R, D)
    pooled      (D,) mean of the rows
    """

    rows: Tensor
    modality: Tensor
    position: Tensor
    registers: Tensor

    @property
    def pooled(self) -> Tensor:
        return self.rows.mean(0)


def encode_clip(
    model: EgoM2P, clip: TokenClip, *, modalities: Sequence[str] | None = None, layer: int | None = None
) -> ClipFeatures:
    """Features of one clip; see `encode_clips`."""
    return encode_clips(model, [clip], modalities=modalities, layer=layer)[0]


def encode_clips(
    model: EgoM2P,
    clips: Sequence[TokenClip],
    *,
    modalities: Sequence[str] | None = None,
    layer: int | None = None,
    batch_size: int = 32,
) -> list[ClipFeatures]:
    """Features of clips, each as if it were alone.

    modalities   names of those that are shown to the encoder; None: all that a clip has
    layer        None: after the last block and the final norm; else after so many blocks (0: embeddings), no norm

    Raises ValueError for a layer or modality the model does not have, a clip that lacks a named one or has no token,
    TokenizerMismatch for tokens of another tokenizer.
    """
    depth = len(model.encoder)
    if layer is not None and not 0 <= layer <= depth:
        raise ValueError(f"layer must be in 0 ... {depth}, got {layer}")
    if unknown := sorted(set(modalities or ()) - set(model.modalities)):
        raise ValueError(f"the model has no modalities {unknown}, only {list(model.modalities)}")
    rows = [PromptRow(_known_tokens(clip, model.specs, modalities)) for clip in clips]
    found: list[ClipFeatures] = []
    for first in range(0, len(rows), batch_size):
        found += _encoded(model, rows[first : first + batch_size], layer)
    return found


@torch.no_grad()
def _encoded(model: EgoM2P, rows: Sequence[PromptRow], layer: int | None) -> list[ClipFeatures]:
    num_registers = model.config.num_registers
    batch = pack_prompts(rows, model.modalities, num_registers=num_registers)
    was_training = model.training
    model.eval()
    states_ND = model.encoder_output(batch.to(next(model.parameters()).device), layer=layer).float().cpu()
    model.train(was_training)
    parts = []
    for clip, length in enumerate(batch.input_lengths):
        start = int(batch.input_offsets[clip])
        tokens, registers = slice(start + num_registers, start + length), slice(start, start + num_registers)
        parts.append(
            ClipFeatures(
                rows=states_ND[tokens],
                modality=batch.input_modality[tokens].long(),
                position=batch.input_position[tokens].long(),
                registers=states_ND[registers],
            )
        )
    return parts


def _known_tokens(
    clip: TokenClip, specs: Sequence[ModalitySpec], modalities: Sequence[str] | None
) -> tuple[KnownTokens, ...]:
    state = state_of(clip, specs)
    if missing := sorted(set(modalities or ()) - set(state.tokens)):
        raise ValueError(f"clip {clip.key} has no {', '.join(missing)}, only {sorted(state.tokens)}")
    parts = []
    for index, spec in enumerate(specs):
        if spec.name in state.tokens and (modalities is None or spec.name in modalities):
            ids_L = spec.words(state.tokens[spec.name])
            positions = np.flatnonzero(ids_L != UNKNOWN)
            parts.append(KnownTokens(index, ids_L[positions], positions))
    if not sum(len(part.ids) for part in parts):
        raise ValueError(f"clip {clip.key}: no tokens to encode")
    return tuple(part for part in parts if len(part.ids))
