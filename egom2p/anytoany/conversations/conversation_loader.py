"""The endless stream of language batches: mixed, rendered, packed, and shared among ranks.

The stream is cut into windows of a fixed number of conversations; a window's rows are computed from its number alone.
So every rank knows all rows and takes its own, resuming is a seek, and what is left out changes nobody's share.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset

from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.conversations.datasets import ConversationSet, DatasetConfig, open_dataset
from egom2p.anytoany.conversations.mixing import Mix, MixConfig
from egom2p.anytoany.conversations.packing import best_fit_decreasing, collate, even_order
from egom2p.anytoany.types import LanguageBatch, Media, PerceptionFeatures, Rendered
from egom2p.config import strict
from egom2p.data.clip_order import clip_rng
from egom2p.jobs.workers import leave_signals_to_the_parent


@strict
class LanguageDataConfig:
    """Which conversations are trained on, and how they are laid into rows.

    batching    `packed`: rows of `row_tokens` positions, filled with several conversations; `even`: one conversation a
                row, rows of a batch of similar length; `single`: one conversation a row, as the stream has them
    window      conversations that are packed, or sorted, at once
    num_workers processes of each rank that render and pack windows ahead; 0: the training process itself
    bad_rows    `skip` leaves out rows that cannot become a conversation, and counts them, instead of an error
    """

    datasets: dict[str, DatasetConfig]
    mix: MixConfig = MixConfig()
    chat: ChatConfig = ChatConfig()
    batching: Literal["packed", "even", "single"] = "packed"
    row_tokens: int = 2048
    window: int = 1024
    num_workers: int = 0
    bad_rows: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets must name at least one data set")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")
        if self.batching == "packed" and self.row_tokens < self.chat.max_length:
            raise ValueError(
                f"row_tokens is {self.row_tokens}, but a conversation may have chat.max_length {self.chat.max_length}"
            )


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
        for rows, dropped in ahead:
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
        except ValueError:
            if self.config.bad_rows == "error":
                raise
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
