"""Whether the encoder's features collapse: how far they spread over held-out clips.

An encoder that gives every clip the same state satisfies an objective on features perfectly, and knows nothing.
B clips, N vectors, D width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import ModalitySpec, PackedBatch
from egom2p.data.masking import TransferMasking
from egom2p.data.unified_datasets import DataConfig, EvalLoader
from egom2p.models.egom2p_model import EgoM2P
from egom2p.training.distributed import Ranks
from egom2p.training.task import Measurement


class FeatureSpread:
    """Spread of a clip's mean encoder state, the encoder seeing all tokens of some modalities and no others.

    Measured on the validation sets, all clips together; complete on every rank.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        data: DataConfig,
        specs: Sequence[ModalitySpec],
        *,
        batch_size: int,
        num_registers: int,
        seed: int,
        ranks: Ranks,
    ) -> None:
        if not data.validation:
            raise ValueError(f"feature_spread of {list(inputs)} needs data.validation, which names no set")
        self._ranks, self._group = ranks, f"features of {', '.join(inputs)}"
        self._loaders = [
            EvalLoader(
                dataset.shards,
                specs,
                TransferMasking(specs, inputs, ()),
                batch_size=batch_size,
                num_clips=data.num_validation_clips,
                seed=seed,
                rank=ranks.rank,
                world_size=ranks.world_size,
                num_registers=num_registers,
                folder_names=dataset.folder_names,
            )
            for dataset in data.validation.values()
        ]

    def measure(self, model: EgoM2P) -> Iterator[Measurement]:
        """See `spread_of_sums`; the model is in evaluation mode, without gradient."""
        width, device = model.config.dim, self._ranks.device
        sums = torch.zeros(1 + width + width * width, dtype=torch.float64, device=device)
        for loader in self._loaders:
            for batch in loader:
                batch = batch.to(device)
                pooled_BD = pooled_states(batch, model.encoder_output(batch)).double()
                sums[0] += len(pooled_BD)
                sums[1 : 1 + width] += pooled_BD.sum(0)
                sums[1 + width :] += (pooled_BD.T @ pooled_BD).flatten()
        values = self._ranks.sum_tensor(sums).cpu().numpy()
        found = spread_of_sums(values[0], values[1 : 1 + width], values[1 + width :].reshape(width, width))
        for name, value in found.items():
            yield Measurement(self._group, name, value)


def pooled_states(batch: PackedBatch, states: Tensor) -> Tensor:
    """Mean (B, D) of the states (N, D) of each clip's rows, registers included."""
    lengths_B = batch.input_offsets.diff()
    numbers_B = torch.arange(len(lengths_B), device=states.device)
    clip_N = torch.repeat_interleave(numbers_B, lengths_B, output_size=len(states))
    sums_BD = torch.zeros(len(lengths_B), states.shape[1], device=states.device).index_add_(0, clip_N, states.float())
    return sums_BD / lengths_B[:, None].clamp(min=1)


def feature_spread(features: np.ndarray) -> dict[str, float]:
    """`spread_of_sums` of features (N, D)."""
    rows_ND = np.asarray(features, np.float64)
    return spread_of_sums(len(rows_ND), rows_ND.sum(0), rows_ND.T @ rows_ND)


def spread_of_sums(count: float, sums: np.ndarray, products: np.ndarray) -> dict[str, float]:
    """The same from the number of vectors, their sum (D,) and the sum of their outer products (D, D).

    std_share        root of their variance as a share of their root mean square: 0 when all are equal, 1 without mean
    effective_rank   exp of the entropy of the covariance's spectrum (Roy and Vetterli 2007): how many directions share
                     the variance, 1 ... D; 0 when there is none
    """
    mean_D = sums / count
    square = float(np.trace(products)) / count
    values_D = np.linalg.eigvalsh(products / count - np.outer(mean_D, mean_D)).clip(min=0)
    variance = float(values_D.sum())
    if variance <= 1e-12 * square or variance == 0:
        return {"std_share": 0.0, "effective_rank": 0.0}
    shares = values_D[values_D > 0] / variance
    return {
        "std_share": (variance / square) ** 0.5,
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
    }
