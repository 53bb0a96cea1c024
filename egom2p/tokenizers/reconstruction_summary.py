"""Summaries of an evaluation: mean errors over clips, and how many codes are used and how evenly."""

from collections.abc import Mapping, Sequence

import numpy as np


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
