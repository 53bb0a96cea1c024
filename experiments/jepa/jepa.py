"""A joint-embedding predictive objective beside (or instead of) the cross entropy of masked tokens.

The decoder, asked for the hidden tokens, also says which features they would have: those that a slow copy of the
encoder, the teacher, gives them when it sees inputs and targets together (as I-JEPA, Assran et al. 2023, and data2vec).
The teacher gets no gradient; after every step it moves a little towards the encoder.

B clips, K modalities, N input and M target rows, D width.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.config import strict
from egom2p.contracts import LossOutput, PackedBatch
from egom2p.layers.padding import inverse_permutation
from egom2p.models.egom2p_model import EgoM2P


@strict
class JepaConfig:
    """loss = token_weight * cross entropy + weight * distance to the teacher's features.

    weight         0: no features are predicted, the loss is the cross entropy's
    token_weight   0: features only; the heads do not train, so the model generates nothing
    decay          teacher = decay * teacher + (1 - decay) * encoder after every step
    distance       of the predicted from the teacher's features, which are brought to mean 0 and variance 1 per row
    """

    weight: float
    token_weight: float = 1.0
    decay: float = 0.99
    distance: Literal["smooth_l1", "cosine"] = "smooth_l1"

    def __post_init__(self) -> None:
        if min(self.weight, self.token_weight) < 0 or self.weight + self.token_weight == 0:
            raise ValueError(
                f"jepa: weights are not negative and one is positive, got weight {self.weight} and token_weight "
                f"{self.token_weight}"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"jepa.decay must be in [0, 1), got {self.decay}")


class Jepa(nn.Module):
    """A model in training, its teacher, and the layer that turns decoder states into features.

    In evaluation mode it is the model. Batches have no tail (`batching: clips`).
    """

    def __init__(self, model: EgoM2P, config: JepaConfig) -> None:
        super().__init__()
        if model.decoder_embeddings.has_sequences:
            texts = [spec.name for spec in model.specs if spec.kind == "sequence"]
            raise ValueError(f"jepa predicts features of grids and tracks; {texts} are texts, whose positions shift")
        self.config = config
        self.model = model
        self.teacher = _encoder_of(model)
        self.predictor = nn.Linear(model.config.dim, model.config.dim)
        nn.init.xavier_uniform_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)
        self.predictor.requires_grad_(config.weight > 0)

    @property
    def num_terms(self) -> int:
        """Loss terms of every modality."""
        return (self.config.token_weight > 0) + (self.config.weight > 0)

    def train(self, mode: bool = True) -> "Jepa":
        super().train(mode)
        self.teacher.eval()  # no stochastic depth
        return self

    def forward(self, batch: PackedBatch) -> LossOutput:
        """Sums and counts of every modality: cross entropy, then distance (`features/<name>`); those with weight."""
        if not self.training:
            return self.model(batch)
        hidden_MD = self.model.decode(batch, self.model.encode(batch))
        sums: list[Tensor] = []
        names: list[str] = []
        if self.config.token_weight > 0:
            tokens = self.model.token_losses(batch, hidden_MD)
            sums, names = [tokens.sums], [*tokens.names]
        if self.config.weight > 0:
            sums.append(self._feature_losses(batch, hidden_MD))
            names += [f"features/{name}" for name in batch.modalities]
        return LossOutput(sums=torch.cat(sums), counts=batch.head_counts * self.num_terms, names=tuple(names))

    def combine(
        self, sums: Tensor, denominators: tuple[int, ...], *, average: Callable[[Tensor, tuple[int, ...]], Tensor]
    ) -> Tensor:
        """One loss (scalar) from the sums of `forward`: `average` of each kind of term, weighted."""
        weights = [weight for weight in (self.config.token_weight, self.config.weight) if weight > 0]
        count = len(sums) // self.num_terms
        parts = zip(weights, sums.split(count), [denominators[:count], denominators[-count:]], strict=False)
        losses = [weight * average(part, rows) for weight, part, rows in parts]
        return losses[0] if len(losses) == 1 else losses[0] + losses[1]

    @torch.no_grad()
    def move_teacher(self) -> None:
        """One step towards the encoder."""
        towards = dict(self.model.named_parameters())
        pairs = [(weights, towards[name]) for name, weights in self.teacher.named_parameters()]
        torch._foreach_lerp_([pair[0] for pair in pairs], [pair[1] for pair in pairs], 1 - self.config.decay)

    def _feature_losses(self, batch: PackedBatch, hidden_MD: Tensor) -> Tensor:
        """Summed distance (K,) float32 of each modality."""
        wanted_MD = self.teacher_features(batch)
        found_MD = self.predictor(hidden_MD).float()
        if self.config.distance == "cosine":
            losses_M = 1 - F.cosine_similarity(found_MD, wanted_MD, dim=-1)
        else:
            losses_M = F.smooth_l1_loss(found_MD, wanted_MD, reduction="none").mean(-1)
        parts = losses_M.index_select(0, batch.head_order).split(batch.head_counts)
        return torch.stack([part.sum() for part in parts])

    @torch.no_grad()
    def teacher_features(self, batch: PackedBatch) -> Tensor:
        """What the teacher makes of the targets (M, D) float32, each row with mean 0 and variance 1."""
        shown, rows_M = with_targets_shown(batch)
        states_MD = self.teacher.encoder_output(shown).index_select(0, rows_M).float()
        return F.layer_norm(states_MD, states_MD.shape[-1:])


def with_targets_shown(batch: PackedBatch) -> tuple[PackedBatch, Tensor]:
    """The batch with its targets among the inputs, and the input rows (M,) where they now stand.

    Inside a clip they stand behind its other inputs: to the encoder, order means nothing.
    """
    device, counts = batch.input_ids.device, (batch.input_ids.shape[0], batch.target_ids.shape[0])
    numbers_B = torch.arange(len(batch.input_lengths), device=device)
    clips = [
        torch.repeat_interleave(numbers_B, offsets.diff(), output_size=count)
        for offsets, count in zip((batch.input_offsets, batch.target_offsets), counts, strict=True)
    ]
    order = torch.argsort(torch.cat(clips), stable=True)

    def joined(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([inputs, targets.to(inputs.dtype)]).index_select(0, order)

    shown = replace(
        batch,
        input_ids=joined(batch.input_ids, batch.target_ids),
        input_position=joined(batch.input_position, batch.target_position),
        input_modality=joined(batch.input_modality, batch.target_modality),
        input_offsets=batch.input_offsets + batch.target_offsets,
        input_lengths=tuple(a + b for a, b in zip(batch.input_lengths, batch.target_lengths, strict=True)),
    )
    return shown, inverse_permutation(order)[counts[0] :]


def _encoder_of(model: EgoM2P) -> EgoM2P:
    """A copy of the model without its decoder, that does not train."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    del teacher.decoder, teacher.decoder_norm, teacher.decoder_proj_context, teacher.decoder_embeddings
    return teacher.eval()
