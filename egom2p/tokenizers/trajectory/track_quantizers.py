"""Quantizers of a trajectory tokenizer beside the published cosine codebook: residual codes and finite scalars.

B clips, T time steps (groups of samples), Q streams, Z latent width, V codes of one stream.

Every time step gets Q ids. They stand one after the other in the token row (B, T Q), each position with its own meaning
and all of the same vocabulary, so that a model treats them as a longer track.
"""

import functools
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from egom2p.config import Count, strict


@strict
class VqConfig:
    """Published: one cosine codebook with moving averages."""

    kind: Literal["vq"] = "vq"

    @property
    def num_streams(self) -> int:
        return 1


@strict
class ResidualVqConfig:
    """Q codebooks, each for what the ones before it left over (Euclidean, moving averages).

    search_width   encoding follows so many of the best beginnings instead of one (training always follows one)
    """

    kind: Literal["residual_vq"]
    num_streams: Count = 2  # Q, codes of a token
    search_width: Count = 1

    def __post_init__(self) -> None:
        if self.num_streams < 2:
            raise ValueError(f"residual_vq needs at least 2 streams (one stream is kind vq), got {self.num_streams}")
        if self.search_width < 1:
            raise ValueError(f"search_width must be at least 1, got {self.search_width}")


@strict
class FsqConfig:
    """Finite scalars: a few numbers per stream, each rounded to one of its levels; there is no codebook to learn."""

    kind: Literal["fsq"]
    levels: tuple[Count, ...]  # how many values each number can take; a vocabulary is their product
    num_streams: Count = 1  # codes of a token

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"every one of the levels must be at least 3, got {list(self.levels)}")

    @property
    def num_codes(self) -> int:
        """V."""
        return prod(self.levels)


QuantizerConfig = Annotated[VqConfig | ResidualVqConfig | FsqConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class ChosenCodes:
    """What quantizing latents gives.

    ids              (B, T, Q) int64
    codes            (B, T, Z), with a gradient that goes straight through to the latents
    commitment_sum   squared distances of latents (and residuals) to their codes; 0 where nothing commits
    """

    ids: Tensor
    codes: Tensor
    commitment_sum: Tensor


def build_track_quantizer(
    config: QuantizerConfig, *, dim: int, num_codes: int, decay: float, threshold: float, kmeans_init: bool
) -> nn.Module:
    """The quantizer of latents of width `dim`: the library's own for vq, else ResidualCodes or FiniteCodes.

    decay, threshold, kmeans_init   of codebooks: moving averages, uses below which a code is replaced, first rows
    """
    if isinstance(config, FsqConfig):
        return FiniteCodes(config, dim=dim)
    # Imported here: it brings torch's compiler along, which takes seconds, also for those who only ask for help.
    from vector_quantize_pytorch import ResidualVQ, VectorQuantize

    codebook = {
        "dim": dim,
        "codebook_size": num_codes,
        "decay": decay,
        "threshold_ema_dead_code": threshold,
        "kmeans_init": kmeans_init,
        "rotation_trick": False,
    }
    if isinstance(config, ResidualVqConfig):
        books = ResidualVQ(num_quantizers=config.num_streams, commitment_weight=1.0, **codebook)
        for layer in books.layers:
            _ask_nothing_of_a_gpu(layer._codebook)
        return ResidualCodes(books, search_width=config.search_width)
    quantizer = VectorQuantize(use_cosine_sim=True, commitment_weight=0.0, **codebook)
    _ask_nothing_of_a_gpu(quantizer._codebook)
    return quantizer


def _ask_nothing_of_a_gpu(codebook: nn.Module) -> None:
    """The library asks the device at every step whether its codebook has begun and whether a code is dead: each time
    the host waits. On a GPU the first is asked once, and codes are replaced without asking."""
    codebook.__class__ = _without_questions(type(codebook))


@functools.cache
def _without_questions(kind: type[nn.Module]) -> type[nn.Module]:
    class Codebook(kind):
        has_begun = False

        def init_embed_(self, samples: Tensor, mask: Tensor | None = None) -> None:
            if not (samples.is_cuda and self.has_begun):
                super().init_embed_(samples, mask=mask)
                self.has_begun = True

        def expire_codes_(self, samples: Tensor, seq_mask: Tensor | None = None) -> None:
            # Of several ranks the library draws from the samples of all.
            is_shared = torch.distributed.is_available() and torch.distributed.is_initialized()
            if not samples.is_cuda or is_shared or seq_mask is not None:
                super().expire_codes_(samples, seq_mask=seq_mask)
            elif self.has_dead_code_replacement and self.training:
                replace_dead_codes(self, samples)

    return Codebook


def replace_dead_codes(codebook: nn.Module, samples: Tensor) -> None:
    """Codes below the threshold become samples (1, ..., Z) drawn without repetition, as the library does it: the same
    rule, but shapes do not depend on how many are dead. Where samples are fewer, the rest waits for a later step."""
    samples_NZ = samples.flatten(0, -2).to(codebook.embed)
    samples_NZ = F.normalize(samples_NZ, dim=-1) if codebook.use_cosine_sim else samples_NZ
    num_samples = samples_NZ.shape[0]
    is_dead_V = codebook.cluster_size[0] < codebook.threshold_ema_dead_code
    # Dead codes take their turns in a random order, so that none has to wait for ever.
    turn_V = torch.empty_like(is_dead_V, dtype=torch.int64)
    order_V = torch.randperm(len(is_dead_V), device=is_dead_V.device)
    turn_V[order_V] = is_dead_V[order_V].cumsum(0) - 1
    is_replaced_V1 = (is_dead_V & (turn_V < num_samples))[:, None]
    drawn_N = torch.randperm(num_samples, device=is_dead_V.device)
    sampled_VZ = samples_NZ[drawn_N[turn_V.clamp(0, num_samples - 1)]]
    uses = codebook.reset_cluster_size
    codebook.embed.data[0] = torch.where(is_replaced_V1, sampled_VZ, codebook.embed[0])
    codebook.embed_avg.data[0] = torch.where(is_replaced_V1, sampled_VZ * uses, codebook.embed_avg[0])
    codebook.cluster_size.data[0] = codebook.cluster_size[0].masked_fill(is_replaced_V1[:, 0], uses)


class ResidualCodes(nn.Module):
    """Codebooks in a row: `books` is the library's ResidualVQ."""

    def __init__(self, books: nn.Module, *, search_width: int = 1) -> None:
        super().__init__()
        self.books, self.search_width = books, search_width

    def forward(self, latents_BTZ: Tensor) -> ChosenCodes:
        """In training mode the codebooks' moving averages take a step."""
        quantised, ids_BTQ, losses_Q = self.books(latents_BTZ)
        codes = latents_BTZ + (quantised - latents_BTZ).detach()
        return ChosenCodes(ids_BTQ, codes, losses_Q.sum() * latents_BTZ.numel())

    def vectors(self, ids_BTQ: Tensor) -> Tensor:
        """Codes (B, T, Z): the sum over streams; an id of -1 adds nothing (a rate below the full one)."""
        books = self.books.codebooks
        chosen = [books[stream][ids] * (ids >= 0)[..., None] for stream, ids in enumerate(ids_BTQ.unbind(-1))]
        return torch.stack(chosen).sum(0)

    @torch.no_grad()
    def fit(self, latents_NZ: Tensor, *, num_rounds: int = 12) -> None:
        """Codebook after codebook by k-means of what is left of latents; the same latents always give the same rows."""
        generator = torch.Generator().manual_seed(0)
        rest_NZ = latents_NZ.float()
        for layer in self.books.layers:
            codebook = layer._codebook
            num_codes = codebook.embed.shape[1]
            if len(rest_NZ) < num_codes:
                raise ValueError(f"found {len(rest_NZ)} latents, wanted at least {num_codes} to fit codebooks to")
            rows_VZ = rest_NZ[torch.randperm(len(rest_NZ), generator=generator)[:num_codes]]
            for _ in range(num_rounds):
                nearest_N = _nearest(rest_NZ, rows_VZ)
                uses_V = torch.bincount(nearest_N, minlength=num_codes).to(rest_NZ)
                sums_VZ = torch.zeros_like(rows_VZ).index_add_(0, nearest_N, rest_NZ)
                drawn_V = torch.randint(len(rest_NZ), (num_codes,), generator=generator)
                rows_VZ = torch.where(uses_V[:, None] > 0, sums_VZ / uses_V.clamp(min=1)[:, None], rest_NZ[drawn_V])
            # Uses of a batch in which every code has one: what the moving average of uses will be near.
            uses_V = num_codes * uses_V / len(rest_NZ)
            codebook.embed.data[0].copy_(rows_VZ)
            codebook.embed_avg.data[0].copy_(rows_VZ * uses_V[:, None])
            codebook.cluster_size.data[0].copy_(uses_V)
            codebook.initted.fill_(True)
            rest_NZ = rest_NZ - rows_VZ[_nearest(rest_NZ, rows_VZ)]

    def lookup(self, latents_BTZ: Tensor) -> Tensor:
        """Ids (B, T, Q); the codebooks stay as they are."""
        clips, steps, _ = latents_BTZ.shape
        rest_NKZ = latents_BTZ.float().flatten(0, 1)[:, None]
        ids_NKQ = torch.empty((clips * steps, 1, 0), dtype=torch.int64, device=latents_BTZ.device)
        with torch.autocast(latents_BTZ.device.type, enabled=False):
            for book_VZ in self.books.codebooks.float():
                distance_NKV = torch.cdist(rest_NKZ, book_VZ[None])
                kept = min(self.search_width, distance_NKV[0].numel())
                best_NK = distance_NKV.flatten(1).topk(kept, largest=False).indices
                beginning_NK, code_NK = best_NK // len(book_VZ), best_NK % len(book_VZ)
                rest_NKZ = torch.take_along_dim(rest_NKZ, beginning_NK[..., None], dim=1) - book_VZ[code_NK]
                ids_NKQ = torch.take_along_dim(ids_NKQ, beginning_NK[..., None], dim=1)
                ids_NKQ = torch.cat([ids_NKQ, code_NK[..., None]], dim=-1)
        return ids_NKQ[:, 0].unflatten(0, (clips, steps))

    def cluster_sizes(self) -> Tensor:
        """Averaged uses of every code of every stream."""
        return torch.stack([layer._codebook.cluster_size for layer in self.books.layers])


def _nearest(latents_NZ: Tensor, rows_VZ: Tensor) -> Tensor:
    """Row (N,) nearest to each latent; in parts, since all distances at once may not fit."""
    lengths_V = rows_VZ.square().sum(-1)
    parts = (torch.addmm(lengths_V, part, rows_VZ.T, alpha=-2).argmin(-1) for part in latents_NZ.split(16384))
    return torch.cat(list(parts))


class FiniteCodes(nn.Module):
    """A linear map to a few numbers, rounding, and a linear map back."""

    def __init__(self, config: FsqConfig, *, dim: int) -> None:
        from vector_quantize_pytorch import FSQ  # as above

        super().__init__()
        self.grid = FSQ(list(config.levels), dim=dim, num_codebooks=config.num_streams, keep_num_codebooks_dim=True)

    def forward(self, latents_BTZ: Tensor) -> ChosenCodes:
        codes, ids_BTQ = self.grid(latents_BTZ)
        return ChosenCodes(ids_BTQ.long(), codes, latents_BTZ.new_zeros(()))

    def vectors(self, ids_BTQ: Tensor) -> Tensor:
        """Codes (B, T, Z)."""
        return self.grid.indices_to_codes(ids_BTQ)

    def lookup(self, latents_BTZ: Tensor) -> Tensor:
        """Ids (B, T, Q)."""
        with torch.autocast(latents_BTZ.device.type, enabled=False):
            return self.grid(latents_BTZ.float())[1].long()


def with_noise(ids: Tensor, share: float, num_codes: int) -> tuple[Tensor, Tensor]:
    """Ids of any shape with a share replaced by codes drawn at random, and which were; torch's default generator."""
    is_replaced = torch.rand(ids.shape, device=ids.device) < share
    return torch.where(is_replaced, torch.randint_like(ids, num_codes), ids), is_replaced
