"""Quantizers of a trajectory tokenizer beside the published cosine codebook: residual codes and finite scalars.

B clips, L time steps (groups of samples), Q streams, Z latent width, V codes of one stream.

Every time step gets Q ids. They stand one after the other in the token row (B, L Q), each place with its own meaning
and all of the same vocabulary, so that a model treats them as a longer track.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from egom2p.config import strict


@strict
class VqConfig:
    """Published: one cosine codebook with moving averages."""

    kind: Literal["vq"] = "vq"

    @property
    def num_streams(self) -> int:
        return 1


@strict
class ResidualVqConfig:
    """Q codebooks, each for what the ones before it left over (Euclidean, moving averages)."""

    kind: Literal["residual_vq"]
    num_streams: int = 2

    def __post_init__(self) -> None:
        if self.num_streams < 2:
            raise ValueError(f"residual_vq needs at least 2 streams (one stream is kind vq), got {self.num_streams}")


@strict
class FsqConfig:
    """Finite scalars: a few numbers per stream, each rounded to one of its levels; there is no codebook to learn."""

    kind: Literal["fsq"]
    levels: tuple[int, ...]
    num_streams: int = 1

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"every one of the levels must be at least 3, got {list(self.levels)}")
        if self.num_streams < 1:
            raise ValueError(f"num_streams must be at least 1, got {self.num_streams}")

    @property
    def num_codes(self) -> int:
        """V."""
        return prod(self.levels)


QuantizerConfig = Annotated[VqConfig | ResidualVqConfig | FsqConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class ChosenCodes:
    """What quantizing latents gives.

    ids              (B, L, Q) int64
    codes            (B, L, Z), with a gradient that goes straight through to the latents
    commitment_sum   squared distances of latents (and residuals) to their codes; 0 where nothing commits
    """

    ids: Tensor
    codes: Tensor
    commitment_sum: Tensor


class ResidualCodes(nn.Module):
    """Codebooks in a row."""

    def __init__(
        self, config: ResidualVqConfig, *, dim: int, num_codes: int, decay: float, threshold: float, kmeans_init: bool
    ) -> None:
        from vector_quantize_pytorch import ResidualVQ  # brings torch's compiler along, which takes seconds

        super().__init__()
        self.books = ResidualVQ(
            dim=dim,
            num_quantizers=config.num_streams,
            codebook_size=num_codes,
            decay=decay,
            threshold_ema_dead_code=threshold,
            kmeans_init=kmeans_init,
            commitment_weight=1.0,
            rotation_trick=False,
        )

    def forward(self, latents_BLZ: Tensor) -> ChosenCodes:
        """In training mode the codebooks' moving averages take a step."""
        quantised, ids_BLQ, losses_Q = self.books(latents_BLZ)
        codes = latents_BLZ + (quantised - latents_BLZ).detach()
        return ChosenCodes(ids_BLQ, codes, losses_Q.sum() * latents_BLZ.numel())

    def vectors(self, ids_BLQ: Tensor) -> Tensor:
        """Codes (B, L, Z): the sum over streams."""
        books = self.books.codebooks
        return torch.stack([books[stream][ids] for stream, ids in enumerate(ids_BLQ.unbind(-1))]).sum(0)

    def lookup(self, latents_BLZ: Tensor) -> Tensor:
        """Ids (B, L, Q); the codebooks stay as they are."""
        residual, ids = latents_BLZ.float(), []
        with torch.autocast(latents_BLZ.device.type, enabled=False):
            for book_VZ in self.books.codebooks:
                ids.append(torch.cdist(residual, book_VZ[None].float()).argmin(dim=-1))
                residual = residual - book_VZ[ids[-1]]
        return torch.stack(ids, dim=-1)

    def cluster_sizes(self) -> Tensor:
        """Averaged uses of every code of every stream."""
        return torch.stack([layer._codebook.cluster_size for layer in self.books.layers])


class FiniteCodes(nn.Module):
    """A linear map to a few numbers, rounding, and a linear map back."""

    def __init__(self, config: FsqConfig, *, dim: int) -> None:
        from vector_quantize_pytorch import FSQ

        super().__init__()
        self.grid = FSQ(list(config.levels), dim=dim, num_codebooks=config.num_streams, keep_num_codebooks_dim=True)

    def forward(self, latents_BLZ: Tensor) -> ChosenCodes:
        codes, ids_BLQ = self.grid(latents_BLZ)
        return ChosenCodes(ids_BLQ.long(), codes, latents_BLZ.new_zeros(()))

    def vectors(self, ids_BLQ: Tensor) -> Tensor:
        """Codes (B, L, Z)."""
        return self.grid.indices_to_codes(ids_BLQ)

    def lookup(self, latents_BLZ: Tensor) -> Tensor:
        """Ids (B, L, Q)."""
        with torch.autocast(latents_BLZ.device.type, enabled=False):
            return self.grid(latents_BLZ.float())[1].long()


def with_noise(ids: Tensor, share: float, num_codes: int) -> tuple[Tensor, Tensor]:
    """Ids of any shape with a share replaced by codes drawn at random, and which were; torch's default generator."""
    is_replaced = torch.rand(ids.shape, device=ids.device) < share
    return torch.where(is_replaced, torch.randint_like(ids, num_codes), ids), is_replaced
