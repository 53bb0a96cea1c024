"""Draw tokens from logits.

R rows, V vocabulary, C candidates (most likely first), P passes of guidance, K draws per row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_FIRST_CANDIDATES = 64


def combine_guided(logits_passes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of the logits (R, V) of several passes; weights sum to 1.

    Classifier-free guidance of scale s is weights (s, 1 - s) of (conditional, unconditional).
    """
    if len(logits_passes) == 1:
        return logits_passes[0]
    # Written as base + w * (other - base), the published form: at a tie the rounding decides.
    *others, base = logits_passes
    guided_RV = base
    for logits_RV, weight in zip(others, weights, strict=False):
        guided_RV = guided_RV + (logits_RV - base) * weight
    return guided_RV


def candidates(logits_RV: Tensor, *, top_k: int | float = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits and ids (R, C) of the tokens that may be drawn, most likely first; excluded ones are -inf.

    top_k  0 keeps all; a number below 1 is a share of the vocabulary
    top_p  smallest set of most likely tokens whose probability (among the top_k) reaches top_p; 1 or 0 keeps all
    Never sorts the vocabulary: the most likely few are taken, and more only while their mass is short of top_p.
    """
    vocab = logits_RV.shape[1]
    limit = _num_kept(top_k, vocab)
    if not 0 < top_p < 1:
        return torch.topk(logits_RV, limit, dim=1)
    size = min(limit, _FIRST_CANDIDATES)
    log_total_R1 = torch.logsumexp(logits_RV, dim=1, keepdim=True)
    while True:
        values_RC, ids_RC = torch.topk(logits_RV, size, dim=1)
        if size == limit:
            if limit < vocab:
                log_total_R1 = torch.logsumexp(values_RC, dim=1, keepdim=True)
            break
        if limit == vocab and bool(((values_RC - log_total_R1).exp().sum(1) >= top_p).all()):
            break
        size = min(limit, size * 8) if limit == vocab else limit
    share_RC = (values_RC - log_total_R1).exp()
    before_RC = share_RC.cumsum(1) - share_RC
    # The first token is always kept; a token is kept while the mass before it has not passed top_p.
    is_kept_RC = before_RC <= top_p
    is_kept_RC[:, 0] = True
    return values_RC.masked_fill(~is_kept_RC, float("-inf")), ids_RC


def _num_kept(top_k: int | float, vocab: int) -> int:
    if top_k < 0:
        raise ValueError(f"top_k must not be negative, got {top_k}")
    if top_k == 0:
        return vocab
    if top_k < 1:
        return max(1, int(top_k * vocab))
    return min(int(top_k), vocab)


def keep_likely(logits_RV: Tensor, *, top_k: int | float = 0, top_p: float = 1.0) -> Tensor:
    """The logits (R, V) with everything outside top_k / top_p at -inf."""
    values_RC, ids_RC = candidates(logits_RV, top_k=top_k, top_p=top_p)
    return torch.full_like(logits_RV, float("-inf")).scatter_(1, ids_RC, values_RC)


def draw(
    logits_RV: Tensor, uniform_RK: Tensor, *, temperature: float, top_k: int | float = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Ids (R, K) drawn from the logits, and the log probability (R, K) of each at temperature 1.

    One uniform number per draw (inverse of the cumulative distribution), so a clip's randomness does not depend on
    the vocabulary or on the other clips of a batch. Temperature 0 takes the most likely token.
    """
    log_total_R1 = torch.logsumexp(logits_RV.float(), dim=1, keepdim=True)
    num_draws = uniform_RK.shape[1]
    if temperature == 0 or top_k == 1:
        ids_RK = logits_RV.argmax(1, keepdim=True).expand(-1, num_draws)
    elif top_k == 0 and not 0 < top_p < 1:
        ids_RK = _draw_inverse(logits_RV / temperature, uniform_RK)
    else:
        # top_p is a share of the distribution that is drawn from, so the temperature comes first (as published).
        values_RC, ids_RC = candidates(logits_RV / temperature, top_k=top_k, top_p=top_p)
        ids_RK = ids_RC.gather(1, _draw_inverse(values_RC, uniform_RK))
    return ids_RK, logits_RV.gather(1, ids_RK).float() - log_total_R1


def _draw_inverse(logits_RC: Tensor, uniform_RK: Tensor) -> Tensor:
    # fp64 sums: with 64,000 terms fp32 loses the tail. Rare enough to afford (one row chunk at a time).
    share_RC = torch.softmax(logits_RC.float(), dim=1).double()
    cumulative_RC = share_RC.cumsum(1)
    wanted_RK = uniform_RK.to(cumulative_RC) * cumulative_RC[:, -1:]
    index_RK = torch.searchsorted(cumulative_RC, wanted_RK, right=True).clamp_(max=logits_RC.shape[1] - 1)
    # Rounding can land past the last candidate; step back onto one that may be drawn.
    last_R1 = (share_RC > 0).long().cumsum(1).argmax(1, keepdim=True)
    return torch.minimum(index_RK, last_R1)
