"""Network input of training clips in a computed order, kept in memory where it fits.

Reading and inflating a clip costs more than a small network's step on it. So a clip is kept after its first use: as
the network's input where nothing random enters it, else as the clip itself (uint8, and float16 instead of float32).
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from egom2p.contracts import AlignedClip
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer


class ClipInputs:
    """Batches by global position: position p is a clip of epoch p // n; order and windows depend on the seed only.

    Several threads may ask at a time.
    """

    def __init__(
        self, clips: Sequence[AlignedClip], network: TrainableTokenizer, *, seed: int, cache_bytes: int
    ) -> None:
        self._clips, self._network, self._seed = clips, network, seed
        self._bytes_left = cache_bytes
        self._kept_inputs: dict[int, TokenizerBatch] = {}
        self._kept_clips: dict[int, AlignedClip] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._lock = threading.Lock()  # of what is kept, and of the bytes that are left

    def batch(self, positions: Iterable[int]) -> TokenizerBatch:
        """Joined network input of the clips at these positions."""
        return TokenizerBatch.joined([self._input(position) for position in positions])

    def clip_index(self, position: int) -> int:
        """Which clip stands at a position: every epoch is a permutation of all clips."""
        epoch, position = divmod(position, len(self._clips))
        order = self._order
        if order[0] != epoch:
            order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._clips)))
            self._order = order
        return int(order[1][position])

    def _input(self, position: int) -> TokenizerBatch:
        index = self.clip_index(position)
        kept = self._kept_inputs.get(index)
        if kept is not None:
            return kept
        rng = np.random.default_rng([self._seed, position])
        untouched = rng.bit_generator.state
        made = self._network.batch_from_clips([self._clip(index)], rng)
        # A generator that was not used cannot have entered the result.
        if rng.bit_generator.state == untouched:
            size = sum(tensor.nbytes for tensor in made.tensors.values())
            with self._lock:
                if size <= self._bytes_left and index not in self._kept_inputs:
                    self._bytes_left -= size
                    self._kept_inputs[index] = made
                    self._release(index)
        return made

    def _clip(self, index: int) -> AlignedClip:
        kept = self._kept_clips.get(index)
        if kept is not None:
            return _restored(kept)
        compact = _compact(self._clips[index])
        size = _num_bytes(compact)
        with self._lock:
            if size <= self._bytes_left and index not in self._kept_clips:
                self._bytes_left -= size
                self._kept_clips[index] = compact
        return _restored(compact)  # also the first time: a resumed run must see the same numbers

    def _release(self, index: int) -> None:
        if index in self._kept_clips:
            self._bytes_left += _num_bytes(self._kept_clips.pop(index))


def _compact(clip: AlignedClip) -> AlignedClip:
    """Images of floats (depth) at half precision: 0.05 %, below the noise of any sensor."""
    streams = {
        name: replace(stream, values=stream.values.astype(np.float16))
        if stream.values.ndim >= 3 and stream.values.dtype == np.float32
        else stream
        for name, stream in clip.streams.items()
    }
    return replace(clip, streams=streams)


def _restored(clip: AlignedClip) -> AlignedClip:
    streams = {
        name: replace(stream, values=stream.values.astype(np.float32)) if stream.values.dtype == np.float16 else stream
        for name, stream in clip.streams.items()
    }
    return replace(clip, streams=streams)


def _num_bytes(clip: AlignedClip) -> int:
    return sum(np.asarray(stream.values).nbytes for stream in clip.streams.values())
