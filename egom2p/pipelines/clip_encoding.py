"""Clips -> ids: threads read and prepare the next batches while the device encodes, in the wanted precision.

Inflating and converting happen in NumPy and torch, which let other threads run. What waits to be encoded is counted in
bytes, and reading pauses at a limit.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egom2p.contracts import AlignedClip, Tokenizer
from egom2p.data.clips.clip_store import ClipStore
from egom2p.tokenizers.protocol import TokenizerBatch


@dataclass(frozen=True)
class ReadTask:
    """Clips of one shard that are encoded together; `is_checked` says of which the round trip is measured."""

    shard: int
    indices: tuple[int, ...]
    keys: tuple[str, ...]
    is_checked: tuple[bool, ...]


@dataclass(frozen=True)
class PreparedClips:
    """Clips that every tokenizer accepts, as its input.

    inputs     modality -> network input of the clips, or their finished ids (B, L) where there is no network
    refused    key -> why: unreadable, or not what a tokenizer takes
    checked    row of `keys` -> clip, for measuring
    """

    task: ReadTask
    keys: tuple[str, ...]
    inputs: Mapping[str, TokenizerBatch | np.ndarray]
    refused: Mapping[str, str]
    checked: Mapping[int, AlignedClip]
    num_bytes: int


@dataclass
class ReadingTimes:
    """What reading cost the one who waits for it."""

    waited_s: float = 0.0
    largest_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def waiting_share(self) -> float:
        """Share of the time since the start in which the encoder had nothing to do."""
        return self.waited_s / max(time.perf_counter() - self.started, 1e-9)


def prepare_clips(
    store: ClipStore, tokenizers: Mapping[str, Tokenizer], task: ReadTask, *, is_pinned: bool = False
) -> PreparedClips:
    """Read and convert the clips of a task; a bad clip is set aside with its reason, it harms no other."""
    keys: list[str] = []
    refused: dict[str, str] = {}
    checked: dict[int, AlignedClip] = {}
    parts: dict[str, list[Any]] = {name: [] for name in tokenizers}
    num_bytes = 0
    for index, key, is_checked in zip(task.indices, task.keys, task.is_checked, strict=True):
        try:
            clip = store[index]
            made = {name: _input(tokenizer, clip) for name, tokenizer in tokenizers.items()}
        except ValueError as error:
            refused[key] = str(error)
            continue
        if is_checked:
            checked[len(keys)] = clip
            num_bytes += sum(np.asarray(stream.values).nbytes for stream in clip.streams.values())
        keys.append(key)
        for name, part in made.items():
            parts[name].append(part)
    inputs = {name: _joined(rows, is_pinned) for name, rows in parts.items() if rows}
    num_bytes += sum(_size(rows) for rows in inputs.values())
    return PreparedClips(task, tuple(keys), inputs, refused, checked, num_bytes)


def read_ahead(
    tasks: Iterable[ReadTask],
    prepare: Callable[[ReadTask], PreparedClips],
    *,
    num_workers: int,
    max_bytes: int,
    times: ReadingTimes,
) -> Iterator[PreparedClips]:
    """Prepared clips of the tasks in order. No more is begun while what is prepared or in work fills `max_bytes`.

    A task in work counts as the largest one so far; one task is always under way, however large it is.
    """
    if num_workers == 0:
        for task in tasks:
            started = time.perf_counter()
            prepared = prepare(task)
            times.waited_s += time.perf_counter() - started
            times.largest_bytes = max(times.largest_bytes, prepared.num_bytes)
            yield prepared
        return
    waiting: deque[Future[PreparedClips]] = deque()
    coming, largest = iter(tasks), 0
    with ThreadPoolExecutor(num_workers) as readers:
        try:
            while True:
                # Twice as many as readers: each finds work at once when it is done.
                while len(waiting) < 2 * num_workers and (
                    not waiting or _held(waiting, largest) + largest <= max_bytes
                ):
                    task = next(coming, None)
                    if task is None:
                        break
                    waiting.append(readers.submit(prepare, task))
                    if not largest:
                        break  # nobody knows yet how large one is
                if not waiting:
                    return
                started = time.perf_counter()
                prepared = waiting[0].result()
                times.waited_s += time.perf_counter() - started
                largest = max(largest, prepared.num_bytes)
                times.largest_bytes = max(times.largest_bytes, _held(waiting, largest))
                waiting.popleft()
                yield prepared
        finally:
            for future in waiting:
                future.cancel()


def _held(waiting: deque[Future[PreparedClips]], largest: int) -> int:
    return sum(future.result().num_bytes if _is_ready(future) else largest for future in waiting)


def _is_ready(future: Future) -> bool:
    return future.done() and future.exception() is None


def _input(tokenizer: Tokenizer, clip: AlignedClip) -> TokenizerBatch | np.ndarray:
    network = getattr(tokenizer, "network", None)
    if network is not None:
        return network.batch_from_clips([clip], None)
    return tokenizer.encode([clip])


def _joined(rows: list[Any], is_pinned: bool) -> TokenizerBatch | np.ndarray:
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    batch = TokenizerBatch.joined(rows)
    return batch.pin_memory() if is_pinned else batch


def _size(rows: TokenizerBatch | np.ndarray) -> int:
    return rows.nbytes if isinstance(rows, np.ndarray) else sum(tensor.nbytes for tensor in rows.tensors.values())


class ClipEncoder:
    """Encodes with several tokenizers at once.

    dtype        bf16 computes the networks under autocast: faster on GPUs; ids at the edge of a level or between two
                 codes may differ from those of fp32
    is_compiled  the networks' encoders go through torch.compile; batches are then filled up to `batch_size`
    """

    def __init__(
        self,
        tokenizers: Mapping[str, Tokenizer],
        *,
        device: torch.device,
        dtype: str,
        batch_size: int,
        is_compiled: bool,
    ) -> None:
        self.tokenizers, self.device, self.batch_size, self.is_compiled = (
            dict(tokenizers),
            device,
            batch_size,
            is_compiled,
        )
        self._is_bf16 = dtype == "bf16"
        for network in self._networks().values():
            if is_compiled:
                network.encoder.compile(dynamic=False)

    def encode(self, prepared: PreparedClips) -> dict[str, np.ndarray]:
        """Modality -> ids (B, L) int32, or values of patches (B, L, P), of the clips in `prepared`."""
        networks = self._networks()
        ids: dict[str, Any] = {}
        # fp32 is what it says: convolutions would round their inputs to 10 bits (TF32), and ids would change.
        products = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=self._is_bf16)
        with products, torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._is_bf16):
            for name, inputs in prepared.inputs.items():
                ids[name] = (
                    inputs if isinstance(inputs, np.ndarray) else self._encoded(networks[name].encode_batch, inputs)
                )
        # Fetched after all were sent off, so that the device has work while the host waits.
        return {
            name: rows if isinstance(rows, np.ndarray) else rows.to("cpu", torch.int32).numpy()
            for name, rows in ids.items()
        }

    def errors(
        self, clips: Sequence[AlignedClip], ids: Mapping[str, np.ndarray], tokenizers: Mapping[str, Tokenizer]
    ) -> list[dict[str, dict[str, float]]]:
        """Per clip: modality -> errors of decoding its ids (rows of `ids` in the order of the clips)."""
        networks = self._networks()
        errors: list[dict[str, dict[str, float]]] = [{} for _ in clips]
        for name, tokenizer in tokenizers.items():
            if name in networks:
                rows = networks[name].clip_errors(clips, ids[name])
            elif hasattr(tokenizer, "evaluate"):
                rows = [_without_usage(tokenizer.evaluate([clip])) for clip in clips]
            else:
                continue
            for per_clip, row in zip(errors, rows, strict=True):
                per_clip[name] = row
        return errors

    def _encoded(self, encode_batch: Callable[[TokenizerBatch], Tensor], inputs: TokenizerBatch) -> Tensor:
        count = inputs.num_clips
        if self.is_compiled and count < self.batch_size:
            # Every other number of clips would be compiled anew.
            inputs = TokenizerBatch.joined([inputs] * -(-self.batch_size // count))
            inputs = TokenizerBatch(
                {name: tensor[: self.batch_size] for name, tensor in inputs.tensors.items()}, (), self.batch_size
            )
        return encode_batch(inputs.to(self.device))[:count]

    def _networks(self) -> dict[str, Any]:
        named = {name: getattr(tokenizer, "network", None) for name, tokenizer in self.tokenizers.items()}
        return {name: network for name, network in named.items() if network is not None}


def _without_usage(measured: Mapping[str, float]) -> dict[str, float]:
    """Of a single clip the use of the codes says nothing."""
    return {name: value for name, value in measured.items() if name not in ("codes_used", "perplexity", "dead_codes")}
