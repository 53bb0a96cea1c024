"""The endless stream of language batches: mixed, rendered, packed, and shared among ranks.

The stream is cut into windows of a fixed number of conversations; a window's rows are computed from its number alone.
So every rank knows all rows and takes its own, resuming is a seek, and what is left out changes nobody's share. Which
sample of which data set comes next is round-robin by progress: that of the data set least far through its share. A data
set is passed epoch by epoch, shuffled anew each time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer, refuse_reserved
from egom2p.anytoany.conversations.datasets import ConversationSet, DatasetConfig, open_dataset
from egom2p.anytoany.conversations.packing import best_fit_decreasing, collate, even_order
from egom2p.anytoany.types import LanguageBatch, Media, PerceptionFeatures, Rendered
from egom2p.config import Count, Natural, Positive, strict
from egom2p.data.clip_order import ClipOrder, clip_rng
from egom2p.jobs.workers import from_workers, leave_signals_to_the_parent


@strict
class MixConfig:
    """How often each data set is drawn from.

    weights      data set -> share of the stream (any positive numbers); null: by size
    temperature  without weights the share is size^(1 / temperature): 1 proportional to size, large: all alike
    """

    weights: dict[str, Positive] | None = None
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        if self.weights is not None and self.temperature != 1.0:
            raise ValueError("temperature has a meaning only without weights")


class Mix:
    """The stream over several data sets of known sizes."""

    def __init__(self, sizes: Mapping[str, int], config: MixConfig, *, seed: int) -> None:
        empty = [name for name, size in sizes.items() if size < 1]
        if not sizes or empty:
            raise ValueError(f"data set {empty[0]!r} is empty" if empty else "a mix needs at least one data set")
        weights = config.weights or {name: size ** (1 / config.temperature) for name, size in sizes.items()}
        if set(weights) != set(sizes):
            differing = sorted(set(weights) ^ set(sizes))[0]
            raise ValueError(f"weights name {sorted(weights)}, the data sets are {sorted(sizes)}: see {differing!r}")
        self.names = tuple(sizes)
        self.sizes = dict(sizes)
        self._weights = np.array([weights[name] for name in self.names], dtype=np.float64)
        self._orders = {
            name: ClipOrder((0, size), seed=seed, name=name, shards_per_block=1) for name, size in sizes.items()
        }
        self._position, self._counts = 0, np.zeros(len(self.names), dtype=np.int64)

    def locate(self, position: int) -> tuple[str, int, int]:
        """(data set, how many of its samples came before, sample index) at a position of the stream."""
        if position != self._position:
            self._position, self._counts = position, self.counts(position)
        number = self._next(self._counts)
        name, before = self.names[number], int(self._counts[number])
        self._counts[number] += 1
        self._position += 1
        return name, before, self._orders[name].locate(before)

    def counts(self, position: int) -> np.ndarray:
        """(data sets,) int64: samples of each among the first `position` of the stream."""
        share = position * self._weights / self._weights.sum()
        # The true counts lie within half a sample and half a turn of the shares; the few that are left are walked.
        slack = 1 + len(self.names) / 2 * self._weights / self._weights.sum()
        counts = np.maximum(np.floor(share - slack), 0).astype(np.int64)
        for _ in range(position - int(counts.sum())):
            counts[self._next(counts)] += 1
        return counts

    def _next(self, counts: np.ndarray) -> int:
        return int(np.argmin((counts + 0.5) / self._weights))


@strict
class LanguageDataConfig:
    """Which conversations are trained on, and how they are laid into rows.

    batching     `packed`: rows of `row_tokens` positions, filled with several conversations; `even`: one conversation a
                 row, rows of a batch of similar length; `single`: one conversation a row, as the stream has them
    row_tokens   positions of a packed row
    window       conversations that are packed, or sorted, at once
    num_workers  processes of each rank that render and pack windows ahead; 0: the training process itself
    bad_rows     `skip` leaves out rows that cannot become a conversation, and counts them, instead of an error
    """

    datasets: dict[str, DatasetConfig]
    mix: MixConfig = MixConfig()
    chat: ChatConfig = ChatConfig()
    batching: Literal["packed", "even", "single"] = "packed"
    row_tokens: Count = 2048
    window: Count = 1024
    num_workers: Natural = 0
    bad_rows: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets must name at least one data set")
        if self.batching == "packed" and self.row_tokens < self.chat.max_length:
            raise ValueError(
                f"row_tokens is {self.row_tokens}, but a conversation may have chat.max_length {self.chat.max_length}"
            )


_BAD_ROWS = "data.bad_rows=skip leaves such rows out and counts them"
_MAX_LISTED = 10


def check_rows(config: LanguageDataConfig, reserved: Sequence[str]) -> list[str]:
    """Look at every row of every data set; a line per data set for people. ValueError lists rows that are bad.

    reserved   words of the tokenizer that no text may hold
    """
    said, bad = [], []
    for name, dataset in config.datasets.items():
        try:
            rows = open_dataset(dataset)
        except FileNotFoundError as error:
            said.append(f"{name}: not looked at ({error})")
            continue
        problems = []
        for index in range(len(rows)):
            try:
                conversation = rows.conversation(index, clip_rng(0, name, index))
                for turn in conversation.turns:
                    refuse_reserved(turn, reserved, conversation.key)
            except ValueError as error:
                problems.append(str(error))
        said.append(f"{name}: {len(rows)} rows, {len(problems)} of them bad")
        bad += problems
        if problems and config.bad_rows == "skip":
            said += [f"  left out: {problem}" for problem in problems[:_MAX_LISTED]]
    if bad and config.bad_rows == "error":
        more = [f"... {len(bad)} bad rows in all"] if len(bad) > _MAX_LISTED else []
        raise ValueError("\n".join([*bad[:_MAX_LISTED], *more, _BAD_ROWS]))
    return said


@dataclass(frozen=True)
class RowPlan:
    """Conversations of one row, and how many of the stream are used up with it (those left out belong to some row)."""

    conversations: tuple[Rendered, ...]
    num_consumed: int


class LanguageLoader:
    """Batches of one rank.

    features_of   what perception says about a media item; asked for this rank's rows only
    batch_size   rows of a batch
    nested       renderers that give media fewer perception tokens; each conversation draws one of all renderers
    dropped      (data set, reason) -> conversations left out so far
    """

    def __init__(
        self,
        config: LanguageDataConfig,
        renderer: ChatRenderer,
        features_of: Callable[[Media], PerceptionFeatures],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        nested: Sequence[ChatRenderer] = (),
    ) -> None:
        self._renderers = (renderer, *nested)
        self.config, self.renderer, self.features_of = config, renderer, features_of
        self.datasets: dict[str, ConversationSet] = {
            name: open_dataset(dataset) for name, dataset in config.datasets.items()
        }
        self.mix = Mix({name: len(dataset) for name, dataset in self.datasets.items()}, config.mix, seed=seed)
        self.dropped: Counter[tuple[str, str]] = Counter()
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size

    @property
    def num_conversations(self) -> int:
        """Size of an epoch."""
        return sum(self.mix.sizes.values())

    def batches(self, first_clip: int) -> Iterator[LanguageBatch]:
        """Endless batches from a position of the stream: the sum of `num_clips` of all ranks' batches before."""
        rows = self.rows(first_clip)
        while True:
            share = [next(rows) for _ in range(self._batch_size * self._world_size)]
            own = share[self._rank * self._batch_size : (self._rank + 1) * self._batch_size]
            yield collate(
                [row.conversations for row in own],
                self.features_of,
                pad_id=self.renderer.tokenizer.pad_token_id,
                num_positions=self.config.row_tokens if self.config.batching == "packed" else None,
                num_clips=sum(row.num_consumed for row in own),
            )

    def rows(self, first_clip: int) -> Iterator[RowPlan]:
        """Endless rows of all ranks, in order."""
        first, offset = divmod(first_clip, self.config.window)
        for rows in self._windows(first):
            consumed = 0
            for row in rows:
                if consumed >= offset:
                    yield row
                consumed += row.num_consumed
                if consumed - row.num_consumed < offset < consumed:
                    raise ValueError(
                        f"the stream cannot go on at conversation {first_clip}: no row begins there; the data "
                        "or its batching changed since the checkpoint was written"
                    )
            offset = 0

    def _windows(self, first: int) -> Iterator[list[RowPlan]]:
        """Rows of one window after the other, endlessly."""
        if self.config.num_workers == 0:
            yield from map(self.window_rows, count(first))
            return
        # A window depends on its number alone: any process may make it.
        ahead = DataLoader(
            _CountedWindows(self),
            sampler=count(first),
            batch_size=None,
            collate_fn=_unchanged,  # torch's own converts what it knows, and counts counters twice
            num_workers=self.config.num_workers,
            multiprocessing_context="fork",  # feature stores and renderers cannot be sent to a fresh process
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # a seed is drawn for the workers, the global generator must not move
        )
        for rows, dropped in from_workers(ahead):
            self.dropped.update(dropped)
            yield rows

    def window_rows(self, number: int) -> list[RowPlan]:
        """Rows of a window, in the order in which they are used."""
        positions = range(number * self.config.window, (number + 1) * self.config.window)
        rendered = [found for position in positions if (found := self._render(position)) is not None]
        if not rendered:
            raise ValueError(f"all {len(positions)} conversations of a window were left out: {dict(self.dropped)}")
        lengths = [len(item.ids) for item in rendered]
        if self.config.batching == "packed":
            packed = best_fit_decreasing(lengths, self.config.row_tokens)
            # Full rows come first out of the packing; a batch shall not tell how long its conversations are.
            order = clip_rng(self._seed, "rows", number).permutation(len(packed))
            rows = [packed[row] for row in order]
        elif self.config.batching == "even":
            rows = [[index] for index in even_order(lengths, self._batch_size)]
        else:
            rows = [[index] for index in range(len(rendered))]
        left_out = len(positions) - len(rendered)
        return [
            RowPlan(tuple(rendered[index] for index in row), len(row) + (left_out if position == 0 else 0))
            for position, row in enumerate(rows)
        ]

    def _renderer(self, name: str, before: int) -> ChatRenderer:
        if len(self._renderers) == 1:
            return self.renderer
        rng = clip_rng(self._seed, f"perception tokens of {name}", before)
        return self._renderers[int(rng.integers(len(self._renderers)))]

    def _render(self, position: int) -> Rendered | None:
        """Conversation at a position of the stream; None, counted, where it is left out."""
        name, before, index = self.mix.locate(position)
        try:
            conversation = self.datasets[name].conversation(index, clip_rng(self._seed, f"template of {name}", before))
            rendered = self._renderer(name, before).render(conversation)
        except ValueError as error:
            if self.config.bad_rows == "error":
                raise ValueError(f"{error}. {_BAD_ROWS}") from error
            self.dropped[name, "bad row"] += 1
            return None
        if rendered is None:
            self.dropped[name, "too long"] += 1
        return rendered


class _CountedWindows(Dataset):
    """Rows of a window, and what was left out of it, counted: a worker's counts stay in the worker."""

    def __init__(self, loader: LanguageLoader) -> None:
        self._loader = loader

    def __getitem__(self, number: int) -> tuple[list[RowPlan], Counter[tuple[str, str]]]:
        self._loader.dropped.clear()
        return self._loader.window_rows(number), Counter(self._loader.dropped)  # sent while the next one is made


def _unchanged(made: tuple[list[RowPlan], Counter[tuple[str, str]]]) -> tuple[list[RowPlan], Counter[tuple[str, str]]]:
    return made
