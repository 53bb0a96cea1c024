"""Conversations laid into rows, and rows into a batch.

Several conversations share a row; segments and positions keep them apart (the model attends inside a segment only).
R rows of T positions, L ids of one conversation, I media items.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

import numpy as np
import torch

from egom2p.anytoany.types import NO_LOSS, LanguageBatch, Media, PerceptionFeatures, Rendered

Row = Sequence[Rendered]


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the lengths that share each row, longest first; each goes where it leaves the least room.

    ValueError for a length beyond the capacity.
    """
    # Best fit decreasing: at most 11/9 of the fewest rows possible, plus 4 (Johnson et al. 1974). The number breaks
    # ties, so that every rank packs alike.
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, row), ascending
    for index in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a conversation of {length} tokens does not fit a row of {capacity}")
        at = bisect_left(room, (length, -1))  # -1 stands before every row: the first one with just enough room
        if at == len(room):
            free, row = capacity, len(rows)
            rows.append([])
        else:
            free, row = room.pop(at)
        rows[row].append(index)
        insort(room, (free - length, row))
    return rows


def even_order(lengths: Sequence[int], batch_size: int, *, num_strata: int = 5) -> list[int]:
    """Indices in an order in which `batch_size` neighbours are of similar length, and short and long batches alternate.

    Batches sorted by length are visited at 0, 1/n, 2/n ... of the whole, then one further each.
    """
    by_length = sorted(range(len(lengths)), key=lambda number: (lengths[number], number))
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    # Sorted by length, training would see one length at a time.
    stride = -(-len(batches) // num_strata)
    order = [number for first in range(stride) for number in range(first, len(batches), stride)]
    return [index for number in order for index in batches[number]]


def padding_share(rows: Sequence[Row], num_positions: int) -> float:
    """Share of the positions of these rows that hold no token."""
    tokens = sum(len(rendered.ids) for row in rows for rendered in row)
    return 1 - tokens / (len(rows) * num_positions)


def collate(
    rows: Sequence[Row],
    features_of: Callable[[Media], PerceptionFeatures],
    *,
    pad_id: int,
    num_positions: int | None = None,
    num_clips: int | None = None,
) -> LanguageBatch:
    """A batch of packed rows with the perception features of their media.

    num_positions  T; None: the longest row
    num_clips      what to note as consumed; None: the conversations in the rows
    """
    lengths = [sum(len(rendered.ids) for rendered in row) for row in rows]
    positions_T = max(lengths) if num_positions is None else num_positions
    # Rows of one length, packed, keep every shape static: nothing is compiled or allocated anew.
    shape = (len(rows), positions_T)
    ids_RT = np.full(shape, pad_id, dtype=np.int64)
    labels_RT = np.full(shape, NO_LOSS, dtype=np.int64)
    position_RT = np.zeros(shape, dtype=np.int64)
    segments_RT = np.full(shape, -1, dtype=np.int64)
    media: list[Media] = []
    spans: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        start = 0
        for segment, rendered in enumerate(row):
            end = start + len(rendered.ids)
            ids_RT[number, start:end] = rendered.ids
            position_RT[number, start:end] = np.arange(end - start)
            segments_RT[number, start:end] = segment
            # A label is what comes next. The last token of a conversation has none, or it would be asked for the
            # first one of its neighbour.
            labels_RT[number, start : end - 1] = np.where(rendered.is_target[1:], rendered.ids[1:], NO_LOSS)
            media += [span.media for span in rendered.spans]
            spans += [(number, start + span.start, span.length) for span in rendered.spans]
            start = end
    items = [features_of(item) for item in media]
    media_I3 = torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)
    return LanguageBatch(
        ids=torch.from_numpy(ids_RT),
        labels=torch.from_numpy(labels_RT),
        positions=torch.from_numpy(position_RT),
        segments=torch.from_numpy(segments_RT),
        **joined_features(items),
        media_rows=media_I3[:, 0].contiguous(),
        media_starts=media_I3[:, 1].contiguous(),
        media_lengths=media_I3[:, 2].contiguous(),
        kinds=tuple(item.kind for item in media),
        num_clips=sum(len(row) for row in rows) if num_clips is None else num_clips,
        num_targets=int((labels_RT != NO_LOSS).sum()),
        num_tokens=sum(lengths),
        row_lengths=tuple(tuple(len(rendered.ids) for rendered in row) for row in rows),
    )


def joined_features(items: Sequence[PerceptionFeatures]) -> dict[str, torch.Tensor]:
    """Fields of a batch: rows of all perception features end to end, and where each begins.

    Narrow ones (of another source) are padded with zeros.
    """
    offsets = np.cumsum([0, *(len(item.features) for item in items)], dtype=np.int64)
    width = max((item.features.shape[1] for item in items), default=0)
    # One array for all sources, one copy to the device: towers cut off the padding.
    features_NW = np.zeros((int(offsets[-1]), width), np.float32)
    for start, item in zip(offsets[:-1].tolist(), items, strict=True):
        features_NW[start : start + len(item.features), : item.features.shape[1]] = item.features
    position_N3 = np.concatenate([np.zeros((0, 3), np.int64), *(item.position.astype(np.int64) for item in items)])
    source_N = np.concatenate([np.zeros(0, np.int64), *(item.source.astype(np.int64) for item in items)])
    return {
        "features": torch.from_numpy(features_NW),
        "position": torch.from_numpy(position_N3),
        "source": torch.from_numpy(source_N),
        "feature_offsets": torch.from_numpy(offsets),
    }
