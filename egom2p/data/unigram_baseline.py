"""The unigram baseline per position: what a model can reach that knows only how often an id stands at a position.

B clips, L positions of one modality, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from egom2p.contracts import ModalitySpec
from egom2p.data.shards.folder_set import FolderSet, open_clips
from egom2p.data.shards.shard_set import ShardSet

# Strengths of the prior that are tried; the baseline is as good as the best of them. The last one forgets the position:
# with few clips and many codes, counts per position alone would be worse than no knowledge at all.
PRIOR_STRENGTHS = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 1e9)
_CLIPS_AT_ONCE = 1000


def position_counts(
    tokens: str | ShardSet | FolderSet | np.ndarray, spec: ModalitySpec, max_clips: int | None = None
) -> csr_array:
    """How often each id stands at each position: counts (L, V), sparse, int64.

    tokens      pattern or set of token shards (its folder `spec.folder` is read), or ids (B, L)
    max_clips   at most so many, spread evenly: the first ones may all be of one recording
    """
    if isinstance(tokens, str):
        tokens = open_clips(tokens)
    num_clips = len(tokens) if max_clips is None else min(max_clips, len(tokens))
    indices = [number * len(tokens) // num_clips for number in range(num_clips)]
    if isinstance(tokens, np.ndarray):
        return _count(tokens[indices], spec)
    counts = csr_array((spec.num_tokens, spec.vocab_size), dtype=np.int64)
    for start in range(0, num_clips, _CLIPS_AT_ONCE):
        rows = indices[start : start + _CLIPS_AT_ONCE]
        ids_BL = np.stack([spec.padded(tokens.read_array(index, spec.folder).reshape(-1)) for index in rows])
        counts = counts + _count(ids_BL, spec)
    return counts


def position_entropy(counts: csr_array) -> float:
    """Mean over positions of the entropy of their tokens, nats (of the sample itself: an optimistic estimate)."""
    dense = csr_array(counts, dtype=np.float64)
    totals_L = np.asarray(dense.sum(axis=1)).reshape(-1)
    # H = log n - sum c log c / n, over the ids that occur.
    weighted = csr_array((dense.data * np.log(dense.data), dense.indices, dense.indptr), shape=dense.shape)
    sums_L = np.asarray(weighted.sum(axis=1)).reshape(-1)
    seen = totals_L > 0
    return float(np.mean(np.log(totals_L[seen]) - sums_L[seen] / totals_L[seen])) if seen.any() else 0.0


def baseline_cross_entropy(
    train_counts: csr_array, ids: np.ndarray, smoothing: float | None = None, *, pad_id: int | None = None
) -> float:
    """Mean -log p of ids (B, L) under the unigram baseline of the training clips, nats; see `unigram_nats`.

    smoothing   strength of the prior; None: the one among several that suits the ids best, the hardest to beat
    pad_id      of a sequence: positions that hold it are left out
    """
    num_positions, _ = train_counts.shape
    if ids.ndim != 2 or ids.shape[1] != num_positions:
        raise ValueError(f"ids have shape {ids.shape}, wanted (clips, {num_positions})")
    is_counted_BL = np.ones(ids.shape, bool) if pad_id is None else ids != pad_id
    positions_N = np.broadcast_to(np.arange(num_positions), ids.shape)[is_counted_BL]
    strengths = PRIOR_STRENGTHS if smoothing is None else (smoothing,)
    return float(unigram_nats(train_counts, ids[is_counted_BL], positions_N, strengths).min() / len(positions_N))


def unigram_nats(
    train_counts: csr_array, ids: np.ndarray, positions: np.ndarray, strengths: Sequence[float] = PRIOR_STRENGTHS
) -> np.ndarray:
    """Summed -log p(id at position) of ids and positions (N,), nats, for each strength s of the prior.

    p = (count at the position + s u) / (clips + s), u: how often the id occurs at any position. An even prior would
    spread over a large vocabulary and make the baseline look worse than it is.
    """
    counts = csr_array(train_counts)
    totals_L = np.asarray(counts.sum(axis=1)).reshape(-1)
    anywhere_V = np.asarray(counts.sum(axis=0)).reshape(-1) + 0.5
    prior_N = (anywhere_V / anywhere_V.sum())[ids]
    found_N = _counts_at(counts, np.asarray(ids, dtype=np.int64), np.asarray(positions, dtype=np.int64))
    return np.array([-np.log((found_N + s * prior_N) / (totals_L[positions] + s)).sum() for s in strengths])


def _counts_at(counts: csr_array, ids_N: np.ndarray, positions_N: np.ndarray) -> np.ndarray:
    """Entries (N,) of a sparse table, by search: its own lookup returns different things in different versions."""
    if not counts.nnz:
        return np.zeros(len(ids_N))
    cells = counts.tocoo()
    known = cells.row.astype(np.int64) * counts.shape[1] + cells.col
    order = np.argsort(known)
    wanted_N = positions_N * counts.shape[1] + ids_N
    nearest_N = np.minimum(np.searchsorted(known[order], wanted_N), len(known) - 1)
    return np.where(known[order][nearest_N] == wanted_N, cells.data[order][nearest_N], 0)


def _count(ids_BL: np.ndarray, spec: ModalitySpec) -> csr_array:
    if ids_BL.shape[1] != spec.num_tokens or ids_BL.min() < 0 or ids_BL.max() >= spec.vocab_size:
        raise ValueError(
            f"{spec.name}: ids of shape {ids_BL.shape} in [{ids_BL.min()}, {ids_BL.max()}], wanted "
            f"(clips, {spec.num_tokens}) in [0, {spec.vocab_size - 1}]"
        )
    flat = (np.arange(spec.num_tokens, dtype=np.int64) * spec.vocab_size + ids_BL).reshape(-1)
    if spec.pad_id is not None:
        flat = flat[ids_BL.reshape(-1) != spec.pad_id]
    cells, counts = np.unique(flat, return_counts=True)
    rows, columns = np.divmod(cells, spec.vocab_size)
    return csr_array((counts, (rows, columns)), shape=(spec.num_tokens, spec.vocab_size))
