"""What training needs of a tokenizer network, whatever it tokenizes, and how its reconstructions are summed up.

A network is built from its config alone: `build_network(config)`. It knows its modality (`spec`, still
without a fingerprint), so that names, grids and vocabularies have one source. The order of use:

    network = build_network(config)              # egom2p.tokenizers.pretrained
    network.fit_normalisation(clips)             # once, on training clips, rank 0 or all ranks with the same clips
    batch = network.batch_from_clips(clips, rng) # NumPy work on the CPU: may run in a loader worker
    output = network(batch.to(device))           # LossOutput; through DDP when several ranks train
    loss = sum(w * s / d for w, s, d in zip(network.loss_weights, output.sums, denominators))
    ...optimizer.step()...; network.after_step()
    network.evaluate(held_out_clips)             # physical units
    save_tokenizer(network, directory, ...)      # the loadable artifact

Everything a resumed run needs (codebook, its moving averages, normalisation) is in the state dict.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from egom2p.contracts import AlignedClip, LossOutput, ModalitySpec
from egom2p.layers.padding import to_device


@dataclass(frozen=True)
class TokenizerBatch:
    """Network input of several clips.

    tensors    name -> tensor whose first axis is the clip (or window of a clip)
    counts     K ints, known on the CPU: how many values each loss term runs over (`LossOutput.counts`)
    num_clips  clips the batch was made from
    """

    tensors: Mapping[str, Tensor]
    counts: tuple[int, ...]
    num_clips: int

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "TokenizerBatch":
        return replace(self, tensors={name: to_device(tensor, device) for name, tensor in self.tensors.items()})

    @staticmethod
    def joined(batches: "Sequence[TokenizerBatch]") -> "TokenizerBatch":
        """One batch of several."""
        if len(batches) == 1:
            return batches[0]
        return TokenizerBatch(
            tensors={name: torch.cat([batch.tensors[name] for batch in batches]) for name in batches[0].tensors},
            counts=tuple(sum(column) for column in zip(*(batch.counts for batch in batches), strict=True)),
            num_clips=sum(batch.num_clips for batch in batches),
        )

    def pin_memory(self) -> "TokenizerBatch":
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})


class TrainableTokenizer(nn.Module, ABC):
    """A network that turns one stream of clips into ids and can be trained.

    config         its strict config; `pretrained.build_network(config)` makes an equal, untrained network
    spec           the modality it makes, without fingerprint
    stream         name of the stream it reads
    term_names     K names of the loss terms
    loss_weights   K weights of the terms in the total loss
    """

    config: Any
    spec: ModalitySpec
    stream: str
    term_names: tuple[str, ...]
    loss_weights: tuple[float, ...]

    @abstractmethod
    def fit_normalisation(self, clips: Sequence[AlignedClip]) -> None:
        """Set the normalisation statistics (buffers) from training clips; call before the first step."""

    @abstractmethod
    def batch_from_clips(self, clips: Sequence[AlignedClip], rng: np.random.Generator | None) -> TokenizerBatch:
        """Training input on the CPU. With a generator random windows may be drawn; without, whole clips.

        Raises ValueError naming the clip when its stream is missing, of another size or rate, or not finite.
        """

    @abstractmethod
    def training_terms(self, batch: TokenizerBatch) -> LossOutput:
        """Loss terms as sums with gradient."""

    @abstractmethod
    def encode_batch(self, batch: TokenizerBatch) -> Tensor:
        """Ids (B, L) of whole clips that `batch_from_clips` prepared, on the batch's device, no gradient."""

    @abstractmethod
    def decode_ids(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, T, ...) in the stream's unit and validity (B, T) bool, all in one batch, no gradient."""

    @abstractmethod
    def clip_errors(self, clips: Sequence[AlignedClip], ids: np.ndarray) -> list[dict[str, float]]:
        """Of each clip: errors of decoding its ids (B, L), in physical units."""

    def forward(self, batch: TokenizerBatch) -> LossOutput:
        """The training terms, so that DDP can wrap the module."""
        return self.training_terms(batch)

    def after_step(self) -> None:
        """Hook after an optimizer step (bookkeeping that is not a gradient)."""

    @torch.no_grad()
    def encode_clips(self, clips: Sequence[AlignedClip]) -> np.ndarray:
        """Ids (B, L) int32, all clips in one batch on the module's device."""
        batch = self.batch_from_clips(clips, None).to(next(self.parameters()).device)
        return self.encode_batch(batch).to("cpu", torch.int32).numpy()

    def evaluate(self, clips: Sequence[AlignedClip], *, batch_size: int = 16) -> dict[str, float]:
        """Mean encode-decode errors of clips in physical units, `batch_size` at a time, and the use of the codes, in
        evaluation mode.
        """
        was_training = self.training
        self.eval()
        ids, per_clip = [], []
        for first in range(0, len(clips), batch_size):
            group = clips[first : first + batch_size]
            ids.append(self.encode_clips(group))
            per_clip += self.clip_errors(group, ids[-1])
        self.train(was_training)
        return mean_errors(per_clip) | code_usage(np.concatenate(ids), self.spec.vocab_size)


def check_rate(clips: Sequence[AlignedClip], stream: str, rate_hz: float) -> None:
    """ValueError names the clip whose samples are not so many a second: the same ids would mean another motion."""
    for clip in clips:
        times_s = clip.streams[stream].times_s if stream in clip else ()
        if len(times_s) > 1 and abs((times_s[-1] - times_s[0]) * rate_hz / (len(times_s) - 1) - 1) > 0.05:
            found = (len(times_s) - 1) / max(times_s[-1] - times_s[0], 1e-9)
            raise ValueError(
                f"clip {clip.key}: {stream} has {found:.3g} samples a second, the tokenizer wants {rate_hz:g}"
            )


def mean_errors(per_clip: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each error over the clips where it is defined (not NaN); NaN where it never is."""
    means = {}
    for name in per_clip[0]:
        values = np.array([row[name] for row in per_clip])
        values = values[~np.isnan(values)]
        means[name] = float(values.mean()) if len(values) else float("nan")
    return means


def code_usage(ids: np.ndarray, vocab_size: int) -> dict[str, float]:
    """`codes_used` of a vocabulary and `perplexity` (exp of the entropy of the ids, 1 ... vocab_size)."""
    counts = np.bincount(ids.reshape(-1), minlength=vocab_size)
    frequencies = counts[counts > 0] / counts.sum()
    entropy = -(frequencies * np.log(frequencies)).sum()
    return {"codes_used": float((counts > 0).sum()), "perplexity": float(np.exp(entropy))}
