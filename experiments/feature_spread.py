"""How far feature vectors spread: a collapsed encoder gives every input the same one, or a few directions only.

N vectors, D width.
"""

import numpy as np


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
