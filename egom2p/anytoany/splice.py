"""Perception tokens put in their positions: the one function of training, evaluation, generation and serving.

R rows of T positions, I media items, M perception tokens of all items, D width.
"""

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import check_shape
from egom2p.layers.padding import to_device


def splice(
    embeddings: Tensor,
    tokens: Tensor,
    *,
    ids: Tensor,
    media_id: int,
    media_rows: Tensor,
    media_starts: Tensor,
    media_lengths: Tensor,
) -> Tensor:
    """Embeddings (R, T, D) with perception tokens (M, D) at the media items' spans; everything else as it was.

    ids      (R, T): the spans must hold `media_id`, and nothing else may
    media_*  (I,) int64 on the CPU: row, first position, number of positions of each item, in the order of `tokens`

    ValueError when tokens and positions differ in number, or a span leaves its row; on an accelerator ids that do not
    fit stop the run at the next wait.
    """
    sizes = check_shape("embeddings", embeddings, "r t d")
    check_shape("ids", ids, "r t", r=sizes["r"], t=sizes["t"])
    check_shape("tokens", tokens, "m d", d=sizes["d"])
    # Spans are known on the CPU, where they were made: asking the device for them would wait for all work before.
    lengths_I = media_lengths.numpy()
    total = int(lengths_I.sum())
    if total != tokens.shape[0]:
        raise ValueError(
            f"{tokens.shape[0]} perception tokens for {total} reserved positions of {len(lengths_I)} media items"
        )
    positions_M = _positions(media_rows.numpy(), media_starts.numpy(), lengths_I, sizes["r"], sizes["t"])
    positions_M = to_device(positions_M, embeddings.device)
    _check_ids(ids.flatten(), positions_M, media_id, total)
    spliced = embeddings.flatten(0, 1).index_copy(0, positions_M, tokens.to(embeddings.dtype))
    return spliced.view_as(embeddings)


def _positions(
    rows_I: np.ndarray, starts_I: np.ndarray, lengths_I: np.ndarray, num_rows: int, width: int
) -> np.ndarray:
    """(M,) positions counted through all rows."""
    ends_I = starts_I + lengths_I
    is_outside = (rows_I < 0) | (rows_I >= num_rows) | (starts_I < 0) | (ends_I > width) | (lengths_I < 1)
    if is_outside.any():
        number = int(np.flatnonzero(is_outside)[0])
        raise ValueError(
            f"media item {number} should lie in row {rows_I[number]} at {starts_I[number]} ... {ends_I[number]}, "
            f"but there are {num_rows} rows of {width} positions"
        )
    # The counter of all positions minus those of the items before is the number inside an item: no loop over items.
    before_I = np.cumsum(lengths_I) - lengths_I
    return np.repeat(rows_I * width + starts_I - before_I, lengths_I) + np.arange(int(lengths_I.sum()))


def _check_ids(ids_N: Tensor, positions_M: Tensor, media_id: int, total: int) -> None:
    """No reserved position is left out, none that is not reserved is overwritten, none is written twice."""
    is_media_N = ids_N == media_id
    is_written_N = torch.zeros_like(is_media_N).index_fill(0, positions_M, True)
    fits = (is_media_N == is_written_N).all() & (is_written_N.sum() == total)
    if ids_N.device.type == "cpu" and not fits:
        raise ValueError(
            f"the text holds {int(is_media_N.sum())} reserved media ids, the media items' spans cover "
            f"{int(is_written_N.sum())} positions, {int((is_media_N & is_written_N).sum())} of them reserved ids"
        )
    # On an accelerator reading `fits` would wait; this stops the run without.
    torch._assert_async(fits, "reserved media ids and the spans of media items differ")
