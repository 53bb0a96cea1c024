"""How many tokens of each modality a clip gives as input and as target: mixtures of Dirichlet distributions.

K modalities.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

BudgetPolicy = Literal["clamp", "waterfill"]
# The published draws are float32 and stay below 1, so even at tiny alphas one token is left over for a further draw.
_LARGEST_SHARE = 1 - 2.0**-24
_SMALLEST_SHARE = 1e-300


def draw_budgets(
    total: int, alphas: Sequence[float], limits: Sequence[int], *, policy: BudgetPolicy, rng: np.random.Generator
) -> list[int]:
    """Tokens per modality, K ints: shares of a Dirichlet draw, floored; each token left over goes to the argmax of a
    further draw (published); then every modality is held to its limit.

    alphas   K concentrations; 0: the modality gets nothing
    limits   K ints, most tokens a modality can give
    policy   `clamp`: what exceeds a limit is lost (published). `waterfill`: it goes to modalities with room, by their
             shares, so the sum is min(total, what the limits of drawn modalities hold)
    """
    # Plain Python: K is a handful, where one numpy call costs more than the whole loop.
    counts = [0] * len(alphas)
    drawn = [k for k, alpha in enumerate(alphas) if alpha > 0]
    if total == 0 or not drawn:
        return counts
    concentrations = [alphas[k] for k in drawn]
    shares = [min(share, _LARGEST_SHARE) for share in rng.dirichlet(concentrations).tolist()]
    given = [int(share * total) for share in shares]
    # Published: each token that flooring lost goes to the largest share of a draw of its own.
    left = total - sum(given)
    for row in rng.dirichlet(concentrations, size=left).argmax(axis=1).tolist():
        given[row] += 1
    room = [limits[k] for k in drawn]
    given = [min(count, limit) for count, limit in zip(given, room, strict=True)]
    if policy == "waterfill" and sum(given) < total:
        given = _waterfill(given, room, shares, total)
    for k, count in zip(drawn, given, strict=True):
        counts[k] = count
    return counts


def _waterfill(counts: list[int], limits: list[int], shares: list[float], total: int) -> list[int]:
    """Raise counts below their limits, in proportion to shares, until they sum to `total` or nothing has room."""
    counts = list(counts)
    wanted_sum = min(total, sum(limits))
    # Ends: a round either fills a modality or hands out all that is left; K rounds at most.
    while (surplus := wanted_sum - sum(counts)) > 0:
        rows = [row for row, limit in enumerate(limits) if counts[row] < limit]
        # A share can underflow to 0 at small alphas; such a modality still takes what no other has room for.
        weights = [max(shares[row], _SMALLEST_SHARE) for row in rows]
        wanted = [surplus * weight / sum(weights) for weight in weights]
        added = [int(want) for want in wanted]
        order = sorted(range(len(rows)), key=lambda i: added[i] - wanted[i])
        for i in order[: surplus - sum(added)]:
            added[i] += 1
        for row, count in zip(rows, added, strict=True):
            counts[row] = min(counts[row] + count, limits[row])
    return counts
