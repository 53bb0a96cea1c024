"""Some shards of one data set: read ahead, encode, keep in the ledger, finish; progress on the way."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from egom2p.contracts import Tokenizer
from egom2p.data.clips.clip_store import ClipStore
from egom2p.jobs.progress import progress_bar, say, take_times, timed
from egom2p.pipelines.clip_encoding import ClipEncoder, PreparedClips, ReadingTimes, ReadTask, prepare_clips, read_ahead
from egom2p.pipelines.token_shards import ClipLedger, TokenShards, keys_hash
from egom2p.storage import only_writer
from egom2p.tokenizers.protocol import mean_errors


@dataclass
class _Work:
    """A shard in work; `hold` keeps other processes from it."""

    number: int
    ledger: ClipLedger
    hold: ExitStack


class ShardJob:
    """The shards of one data set that this process makes.

    num_shards    of the whole data set
    clips_per_s   encoded in the last `run`; None when there was nothing to do
    spent_s       per run: activity -> seconds, over all threads
    """

    def __init__(
        self,
        config: Any,
        store: ClipStore,
        shards: TokenShards,
        encoder: ClipEncoder,
        tokenizers: Mapping[str, Tokenizer],
    ) -> None:
        """config: `pipelines.tokenization.TokenizeConfig`."""
        self._config, self.store, self.shards, self._encoder = config, store, shards, encoder
        self._tokenizers = dict(tokenizers)
        self._keys = store.keys
        self._starts = self._shard_starts()
        self._checked = self._checked_indices()
        self._begun: deque[_Work] = deque()
        self._errors: list[dict[str, dict[str, float]]] = []
        self.num_shards = len(self._starts) - 1
        self.times = ReadingTimes()
        self.clips_per_s: float | None = None
        self.spent_s: list[dict[str, float]] = []

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those of these shards that are not there yet. ValueError where other clips' tokens lie in their place."""
        return [number for number in numbers if self.shards.note(number, self._shard_keys(number)) is None]

    def run(self, numbers: Sequence[int], *, is_shown: bool = False) -> None:
        """Make what is missing of these shards, reading ahead over all of them.

        ValueError for a bad clip under the policy `error`; the ledger keeps the rest.
        """
        missing = self.missing(numbers)
        if not missing:
            return
        take_times()
        total = sum(len(self._shard_keys(number)) for number in missing)
        self.times = ReadingTimes()
        try:
            with progress_bar(f"tokens of {self.store.dataset}", total, is_shown=is_shown) as advance:
                self._encode_all(missing, total, advance)
        finally:
            for work in self._begun:
                work.hold.close()
            self._begun.clear()
            self.spent_s.append(take_times())

    def _encode_all(self, missing: list[int], total: int, advance: Callable[[int], None]) -> None:
        num_encoded = num_done = 0
        reported = started = time.perf_counter()

        def begun(count: int) -> None:
            nonlocal num_done
            num_done += count
            advance(count)

        def prepare(task: ReadTask) -> PreparedClips:
            is_pinned = self._encoder.device.type == "cuda"
            with timed("read and convert"):
                return prepare_clips(self.store, self._tokenizers, task, is_pinned=is_pinned)

        prepared_clips = read_ahead(
            self._tasks(missing, begun),
            prepare,
            num_workers=self._config.num_workers,
            max_bytes=int(self._config.memory_gb * 1e9),
            times=self.times,
        )
        for prepared in prepared_clips:
            while self._begun[0].number != prepared.task.shard:
                self._finish(self._begun.popleft())
            self._keep(prepared, self._begun[0].ledger)
            count = len(prepared.task.indices)
            num_encoded, num_done = num_encoded + count, num_done + count
            advance(count)
            now = time.perf_counter()
            self.clips_per_s = num_encoded / (now - started)
            if now - reported > self._config.report_every_s:
                reported = now
                say(self._progress(num_done, total))
        while self._begun:
            self._finish(self._begun.popleft())

    def _tasks(self, missing: list[int], begun: Callable[[int], None]) -> Iterator[ReadTask]:
        """Batches of the clips that no ledger has yet; opens the ledgers on the way."""
        size = self._config.batch_size
        for number in missing:
            folder = self.shards.work_folder(number)
            hold = ExitStack()
            hold.enter_context(only_writer(folder))
            ledger = ClipLedger(folder, self._header(number))
            self._begun.append(_Work(number, ledger, hold))
            indices = range(self._starts[number], self._starts[number + 1])
            left = [index for index in indices if self._keys[index] not in ledger.keys]
            begun(len(indices) - len(left))
            for first in range(0, len(left), size):
                group = tuple(left[first : first + size])
                keys = tuple(self._keys[index] for index in group)
                yield ReadTask(number, group, keys, tuple(index in self._checked for index in group))

    def _keep(self, prepared: PreparedClips, ledger: ClipLedger) -> None:
        """Encode what was prepared, measure the clips that are to be checked, append all to the ledger."""
        if prepared.refused and self._config.bad_clips == "error":
            raise ValueError(next(iter(prepared.refused.values())))
        rows: list[dict[str, Any]] = []
        if prepared.keys:
            with timed("encode"):
                ids = self._encoder.encode(prepared)
            for row, key in enumerate(prepared.keys):
                rows.append({"key": key, "ids": {self._folder(name): ids_BL[row] for name, ids_BL in ids.items()}})
            if prepared.checked:
                chosen = list(prepared.checked)
                some_ids = {name: ids_BL[chosen] for name, ids_BL in ids.items()}
                with timed("check the round trip"):
                    errors = self._encoder.errors(list(prepared.checked.values()), some_ids, self._tokenizers)
                self._errors += errors
                for row, per_modality in zip(chosen, errors, strict=True):
                    rows[row]["errors"] = per_modality
        rows += [{"key": key, "ids": {}, "refused": why} for key, why in prepared.refused.items()]
        with timed("write"):
            ledger.append(rows)

    def _finish(self, work: _Work) -> None:
        with work.hold, timed("write"):
            self.shards.finish(work.number, self._shard_keys(work.number), work.ledger)

    def _progress(self, num_done: int, total: int) -> str:
        left = timedelta(seconds=round((total - num_done) / max(self.clips_per_s or 0, 1e-9)))
        text = (
            f"tokens of {self.store.dataset}: {num_done} of {total} clips, {self.clips_per_s:.1f} clips/s, {left} "
            f"left, waited for clips {100 * self.times.waiting_share:.0f} %"
        )
        for name in self._tokenizers:
            rows = [errors[name] for errors in self._errors if name in errors]
            if rows:
                text += f"; {name} " + ", ".join(f"{key} {value:.4g}" for key, value in mean_errors(rows).items())
        return text

    def _header(self, number: int) -> dict[str, Any]:
        """What the ids of a shard depend on; a ledger of anything else is not continued."""
        prints = {self._folder(name): tokenizer.fingerprint for name, tokenizer in self._tokenizers.items()}
        return {"source": keys_hash(self._shard_keys(number)), "fingerprints": prints, "dtype": self._config.dtype}

    def _folder(self, name: str) -> str:
        return self._tokenizers[name].spec.folder

    def _shard_keys(self, number: int) -> list[str]:
        return self._keys[self._starts[number] : self._starts[number + 1]]

    def _shard_starts(self) -> list[int]:
        """Tars keep their shards; plain files, which count as one shard, are cut into equal ones."""
        starts, size = list(self.store.shard_starts), self._config.clips_per_shard
        if self.store.is_sharded:
            return starts
        return [*range(0, len(self._keys), size), len(self._keys)]

    def _checked_indices(self) -> frozenset[int]:
        """Evenly spread over the data set, whatever rank has them."""
        count, total = min(self._config.num_check_clips, len(self._keys)), len(self._keys)
        return frozenset(round((position + 0.5) * total / count - 0.5) for position in range(count))
