"""Cross entropy of every modality on its own rows, never with more than a chunk of logits in memory.

K modalities, M target rows sorted modality-major, D width, V rows of the table of all vocabularies, C rows of a chunk.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from egom2p.layers.padding import to_device

LossType = Literal["mod", "token", "weighted_mod"]

# Logits in memory at once: 1024 rows of the published video vocabulary.
CHUNK_ELEMENTS = 2**26

# `weighted_mod` brings every modality to the scale of this vocabulary, the published one of tracks.
_REFERENCE_VOCAB_SIZE = 256


def modality_cross_entropy(
    hidden: Tensor,
    table: Tensor,
    target_ids: Tensor,
    *,
    counts: Sequence[int],
    vocab_sizes: Sequence[int],
    chunk_elements: int = CHUNK_ELEMENTS,
    is_compiled: bool = False,
) -> Tensor:
    """Summed cross entropy (K,) float32, in nats, of each modality.

    hidden       (M, D) rows sorted modality-major
    table        (V, D) all heads, one below the other in the order of the modalities
    target_ids   (M,) int64, counted inside the modality's vocabulary
    counts       K ints: rows of each modality
    is_compiled  what is done to a chunk of logits goes through torch.compile: one reading and one writing of them
    Gradients of hidden and table are made in the same pass over the chunks, so no logits are kept or made twice.
    """
    wants_grad = torch.is_grad_enabled() and (hidden.requires_grad or table.requires_grad)
    chunks = tuple(_chunks(counts, vocab_sizes, chunk_elements))
    error_of = _compiled_error() if is_compiled else _softmax_error
    sizes = tuple(counts), tuple(vocab_sizes)
    return _ModalityCrossEntropy.apply(
        hidden, table, target_ids, sizes, chunks, error_of, wants_grad, product_dtype(hidden)
    )


@torch.no_grad()
def row_cross_entropy(
    hidden: Tensor,
    table: Tensor,
    target_ids: Tensor,
    *,
    counts: Sequence[int],
    vocab_sizes: Sequence[int],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Cross entropy (M,) float32 of every row, without gradient; arguments as `modality_cross_entropy`."""
    losses_M = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
    weight_VD = table.to(product_dtype(hidden))
    for _, rows, columns in _chunks(counts, vocab_sizes, chunk_elements):
        logits_CV = (hidden[rows].to(weight_VD.dtype) @ weight_VD[columns].T).float()
        losses_M[rows] = F.cross_entropy(logits_CV, target_ids[rows], reduction="none")
    return losses_M


def combine_losses(
    sums: Tensor,
    denominators: Tensor | Sequence[float],
    *,
    loss_type: LossType = "mod",
    vocab_sizes: Sequence[int] = (),
    reference_denominator: bool = False,
) -> Tensor:
    """One loss (scalar) from summed losses (K,) and the rows (K,) they are to be divided by.

    mod            mean over modalities of the mean over their rows
    weighted_mod   the same, each modality first divided by log(vocabulary) and multiplied by log(256)
    token          mean over all rows
    Modalities without rows do not count. With reference_denominator they count as 0, as published; then `token` also
    weights rows by their vocabulary size, a published quirk.
    """
    device = sums.device
    rows_K = to_device(denominators, device, torch.float32)
    if rows_K.shape != sums.shape:
        raise ValueError(f"{tuple(sums.shape)[0]} losses need as many denominators, got {tuple(rows_K.shape)}")
    means_K = sums / rows_K.clamp(min=1)  # a modality without rows has sum 0, and 0 / 1 keeps its gradient finite
    if loss_type == "token":
        weights_K = rows_K
        if reference_denominator:
            weights_K = rows_K * _vocabularies(sums, vocab_sizes)
        return (means_K * weights_K).sum() / weights_K.sum().clamp(min=1)
    if loss_type == "weighted_mod":
        means_K = means_K * (math.log(_REFERENCE_VOCAB_SIZE) / _vocabularies(sums, vocab_sizes).clamp(min=2).log())
    elif loss_type != "mod":
        raise ValueError(f"loss type must be mod, token or weighted_mod, got {loss_type!r}")
    num_present = len(sums) if reference_denominator else (rows_K > 0).sum().clamp(min=1)
    return means_K.sum() / num_present


class _ModalityCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, table, target_ids, sizes, chunks, error_of, wants_grad, precision):
        sums_K = hidden.new_zeros(len(sizes[0]), dtype=torch.float32)
        # Once, where autocast would cast the table again for every chunk.
        weight_VD = table.to(precision)
        rows_MD = hidden.to(precision)
        grad_hidden = torch.zeros_like(rows_MD) if wants_grad else None
        grad_table = torch.zeros_like(table) if wants_grad else None
        for modality, rows, columns in chunks:
            loss, error_CV = error_of(rows_MD[rows] @ weight_VD[columns].T, target_ids[rows, None])
            sums_K[modality] += loss
            if wants_grad:
                torch.mm(error_CV, weight_VD[columns], out=grad_hidden[rows])
                _add_product(grad_table[columns], error_CV, rows_MD[rows])
            del error_CV  # before the next chunk is made: there is room for one
        ctx.grads = (grad_hidden, grad_table)
        ctx.sizes = sizes
        return sums_K

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_sums):
        if ctx.grads is None:
            raise RuntimeError("the losses of a batch can be differentiated once")
        grad_hidden, grad_table = ctx.grads
        ctx.grads = None
        counts, vocab_sizes = ctx.sizes
        # From above comes one number per modality (weight, denominator): a factor of the finished gradients.
        parts = zip(grad_hidden.split(counts), grad_table.split(vocab_sizes), grad_sums.unbind(), strict=True)
        for hidden_part, table_part, grad_sum in parts:
            hidden_part.mul_(grad_sum)
            table_part.mul_(grad_sum)
        return grad_hidden, grad_table, None, None, None, None, None, None


def _chunks(
    counts: Sequence[int], vocab_sizes: Sequence[int], chunk_elements: int
) -> Iterator[tuple[int, slice, slice]]:
    """(modality, its rows of hidden, its rows of the table) of every chunk; sizes are known on the CPU."""
    first_row = first_column = 0
    for modality, (count, vocab_size) in enumerate(zip(counts, vocab_sizes, strict=True)):
        columns = slice(first_column, first_column + vocab_size)
        step = max(1, chunk_elements // max(1, vocab_size))  # patches, never a target, have no vocabulary
        for start in range(0, count, step):
            yield modality, slice(first_row + start, first_row + min(start + step, count)), columns
        first_row += count
        first_column += vocab_size


def _softmax_error(logits_CV: Tensor, targets_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy (scalar float32) of a chunk, and softmax minus one-hot in its place and precision."""
    if logits_CV.is_cuda and logits_CV.dtype != torch.float32:
        # Nine passes over float32 copies of the logits are left out: reads them once, and writes and reads one copy.
        log_probability_CV = logits_CV.log_softmax(-1, dtype=torch.float32)
        of_target_C1 = log_probability_CV.gather(1, targets_C1)
        error_CV = torch.exp(log_probability_CV, out=logits_CV)  # rounded while it is written
        # Where the target is nearly certain its error is a small difference: taken before rounding.
        error_CV.scatter_(1, targets_C1, of_target_C1.expm1().to(error_CV.dtype))
        return -of_target_C1.sum(), error_CV
    wide_CV = logits_CV.float()
    normaliser_C1 = wide_CV.logsumexp(dim=-1, keepdim=True)
    loss = (normaliser_C1 - wide_CV.gather(1, targets_C1)).sum()
    error_CV = wide_CV.sub_(normaliser_C1).exp_()
    error_CV.scatter_add_(1, targets_C1, error_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
    return loss, error_CV.to(logits_CV.dtype)


def _softmax_error_to_compile(logits_CV: Tensor, targets_C1: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a compiler: nothing in place but the last, a comparison instead of scattering."""
    wide_CV = logits_CV.float()
    normaliser_C1 = wide_CV.logsumexp(dim=-1, keepdim=True)
    loss = (normaliser_C1 - wide_CV.gather(1, targets_C1)).sum()
    is_target_CV = targets_C1 == torch.arange(logits_CV.shape[1], device=logits_CV.device)
    log_probability_CV = wide_CV - normaliser_C1
    error_CV = torch.where(is_target_CV, log_probability_CV.expm1(), log_probability_CV.exp())
    return loss, logits_CV.copy_(error_CV)


@functools.cache
def _compiled_error() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_softmax_error_to_compile, dynamic=True)


def _add_product(total_VD: Tensor, error_CV: Tensor, rows_CD: Tensor) -> None:
    if total_VD.dtype == error_CV.dtype:
        total_VD.addmm_(error_CV.T, rows_CD)
    elif total_VD.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):  # summed in float32 inside of the product
        torch.addmm(total_VD, error_CV.T, rows_CD, out_dtype=total_VD.dtype, out=total_VD)
    else:
        total_VD.add_(error_CV.T @ rows_CD)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Precision of matrix products here: that of autocast, or of the rows."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _vocabularies(sums: Tensor, vocab_sizes: Sequence[int]) -> Tensor:
    if len(vocab_sizes) != len(sums):
        raise ValueError(f"{len(sums)} losses need as many vocabulary sizes, got {len(vocab_sizes)}")
    return to_device(vocab_sizes, sums.device, torch.float32)
