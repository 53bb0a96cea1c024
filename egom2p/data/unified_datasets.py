"""Mixtures of token data sets as endless, seekable batches for training and finite, fixed ones for evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from math import gcd
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from egom2p.config import Count, NotNegative, strict
from egom2p.contracts import MaskedClip, ModalitySpec, PackedBatch
from egom2p.data.clip_order import ClipOrder, LaneOrder, MixtureOrder, clip_rng
from egom2p.data.collate import BatchShape, collate
from egom2p.data.masking import Masking, UnifiedMasking
from egom2p.data.masking_config import MaskingConfig
from egom2p.data.modality_info import build_specs, specs_from_shards
from egom2p.data.token_batches import ClipSize, choose_shape, fit_clips, runs
from egom2p.data.token_set import TokenSet
from egom2p.data.transfer_masking import TransferMasking
from egom2p.jobs.workers import from_workers, leave_signals_to_the_parent, made_ahead


@strict
class DatasetConfig(MaskingConfig):
    """One data set: where its tokens lie, its share of the mixture, and how its clips are masked.

    shards         pattern, e.g. `tokens/[rgb,depth]/world/shard-{000000..000003}.tar`
    weight         share of the mixture, relative to the other data sets
    folder_names   modality -> folder where it differs from the modality's own
    """

    shards: str
    weight: NotNegative = 1.0
    folder_names: dict[str, str] | None = None


@strict
class DataConfig:
    """A mixture of data sets.

    tokens_root           folder of the shards, for patterns that say `${...tokens_root}`
    modalities            name -> fields of ModalitySpec; null: as the cards beside the training shards tell
    validation            data sets with fixed maskings for the token losses; weights play no part
    num_validation_clips  at most this many of each validation set, spread over it
    shards_per_block      clips are shuffled among this many shards
    in_memory             keep all tokens in memory (small sets)
    access                `indexed`: clips are read one by one. `streaming`: whole shards one after the other, through
                          webdataset, for object stores; batches of clips only
    streaming_lanes       readers of shards, each with two blocks of them in memory; null: one per worker of every rank
    index_cache           folder for the packed indexes of shards in folders that cannot be written to, and for copies
                          of those in buckets; without it they stay in memory
    """

    datasets: dict[str, DatasetConfig]
    validation: dict[str, DatasetConfig] = field(default_factory=dict)
    tokens_root: str | None = None
    num_validation_clips: Count = 1024
    modalities: dict[str, dict[str, Any] | None] | None = None
    shards_per_block: Count = 8
    in_memory: bool = False
    access: Literal["indexed", "streaming"] = "indexed"
    streaming_lanes: Count | None = None
    index_cache: str | None = None

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("a mixture needs at least one data set")
        if self.shards_per_block < 1 or self.num_validation_clips < 1:
            raise ValueError(
                f"shards_per_block and num_validation_clips are positive, got {self.shards_per_block} and "
                f"{self.num_validation_clips}"
            )
        if self.access == "indexed" and self.streaming_lanes is not None:
            raise ValueError(f"streaming_lanes is positive, and of access=streaming, got {self.streaming_lanes}")
        if self.access == "streaming" and self.in_memory:
            raise ValueError("access=streaming reads tokens as they are needed, in_memory all at once: choose one")


def data_specs(config: DataConfig) -> tuple[ModalitySpec, ...]:
    """Specs of the modalities of a mixture, sorted by name. Raises ValueError when cards of two data sets differ."""
    if config.modalities is not None:
        return build_specs(config.modalities)
    found: dict[str, tuple[ModalitySpec, str]] = {}
    for dataset in config.datasets.values():
        for spec in specs_from_shards(dataset.shards, index_cache=config.index_cache):
            known, source = found.setdefault(spec.name, (spec, dataset.shards))
            wanted, here = known.to_dict(), spec.to_dict()
            if differing := [f"{key} {here[key]} (there {wanted[key]})" for key in wanted if here[key] != wanted[key]]:
                raise ValueError(f"{dataset.shards}: {spec.name} differs from {source} in {', '.join(differing)}")
    return build_specs({name: spec for name, (spec, _) in found.items()})


@dataclass(frozen=True)
class _Streaming:
    """How clips are streamed.

    run     consecutive clips of a lane: those of one rank's batch
    held    lanes that one worker serves
    """

    num_lanes: int
    run: int
    held: int

    def identity(self) -> dict[str, int]:
        """What the order of the clips depends on, beside the data and the seed."""
        return {"lanes": self.num_lanes, "clips of a lane in a row": self.run}


class _ClipOrders:
    """Global clip index -> data set and clip in it."""

    def __init__(
        self, config: DataConfig, shard_starts: Mapping[str, Sequence[int]], seed: int, num_lanes: int
    ) -> None:
        self._mixture = MixtureOrder({name: dataset.weight for name, dataset in config.datasets.items()}, seed=seed)
        self._orders = {}
        for name, starts in shard_starts.items():
            # Streamed shards of a block are read by every lane that passes through it: no block is larger than a lane.
            size = min(config.shards_per_block, max(1, (len(starts) - 1) // num_lanes))
            self._orders[name] = ClipOrder(starts, seed=seed, name=name, shards_per_block=size)

    def dataset(self, index: int) -> str:
        return self._mixture.locate(index)[0]

    def locate(self, index: int) -> tuple[str, int]:
        name, position = self._mixture.locate(index)
        return name, self._orders[name].locate(position)


class _MaskedClips:
    """Global clip index -> the masked clip; a function of the seed and the index alone."""

    def __init__(
        self, config: DataConfig, specs: Sequence[ModalitySpec], *, seed: int, streaming: _Streaming | None = None
    ) -> None:
        self.specs, self.seed = tuple(specs), seed
        # Of every lane this block of shards and the next one.
        streams = None if streaming is None else 2 * config.shards_per_block * streaming.held
        self._token_budgets = {name: dataset.token_budget for name, dataset in config.datasets.items()}
        self.sets: dict[str, TokenSet] = {}
        self._maskings: dict[str, UnifiedMasking] = {}
        for name, dataset in config.datasets.items():
            tokens = TokenSet(
                dataset.shards,
                specs,
                folder_names=dataset.folder_names,
                in_memory=config.in_memory,
                index_cache=config.index_cache,
                streams=streams,
            )
            tokens.verify()
            self.sets[name] = tokens
            self._maskings[name] = UnifiedMasking(specs, dataset)
            self._maskings[name].check(tokens.modalities, where=f"data set {name}")
        starts = {name: tokens.shard_starts for name, tokens in self.sets.items()}
        num_lanes = 1 if streaming is None else streaming.num_lanes
        self._orders = _ClipOrders(config, starts, seed, num_lanes)
        self._orders_ahead = _ClipOrders(config, starts, seed, num_lanes)  # each remembers the block it was asked for

    def __getitem__(self, index: int) -> MaskedClip:
        name, clip = self._orders.locate(index)
        return self._maskings[name](self.sets[name][clip], clip_rng(self.seed, "masking", index))

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to stream the shards of clips that will be asked for."""
        for name, clip in map(self._orders_ahead.locate, indices):
            self.sets[name].ahead(clip)

    def token_budget(self, indices: Sequence[int]) -> int:
        """Sum of the budgets of these clips, filled or not."""
        return sum(self._token_budgets[self._orders.dataset(index)] for index in indices)

    def size(self, index: int) -> ClipSize:
        """Rows of a clip; without reading it, where its masking can tell."""
        name = self._orders.dataset(index)
        rows = self._maskings[name].sizes(self.sets[name].modalities, clip_rng(self.seed, "masking", index))
        if rows is not None:
            num_inputs, num_targets, patches = rows
            return ClipSize(num_inputs, num_targets, num_inputs, num_targets, patches)
        clip, texts = self[index], {spec.name for spec in self.specs if spec.kind == "sequence"}
        inputs, targets = clip.input_ids, clip.target_ids
        return ClipSize(
            sum(len(ids) for ids in inputs.values()),
            sum(len(ids) for ids in targets.values()),
            sum(len(ids) for name, ids in inputs.items() if name not in texts),
            sum(len(ids) for name, ids in targets.items() if name not in texts),
            tuple(len(inputs.get(spec.name, ())) for spec in self.specs if spec.kind == "patches"),
        )


class _ClipBatches(Dataset):
    """First global clip index of a global batch -> this rank's part of it."""

    def __init__(self, clips: _MaskedClips, *, batch_size: int, rank: int, world_size: int, num_registers: int) -> None:
        self._clips, self._num_registers = clips, num_registers
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def __getitem__(self, first_clip: int) -> PackedBatch:
        indices = [first_clip + number * self._world_size + self._rank for number in range(self._batch_size)]
        clips = [self._clips[index] for index in indices]
        return collate(clips, self._clips.specs, self._num_registers, self._clips.token_budget(indices))


class _StreamedBatches(Dataset):
    """As `_ClipBatches`, in the order of lanes: a rank's part of a global batch is a run of one lane.

    ahead   global batches after which this worker's next block of shards may begin
    """

    def __init__(
        self,
        clips: _MaskedClips,
        streaming: _Streaming,
        *,
        ahead: int,
        rank: int,
        world_size: int,
        num_registers: int,
    ) -> None:
        self._clips, self._run, self._num_registers = clips, streaming.run, num_registers
        num_clips = sum(tokens.num_clips for tokens in clips.sets.values())
        self._order = LaneOrder(num_lanes=streaming.num_lanes, run=streaming.run, num_clips=num_clips)
        self._rank, self._step, self._ahead = rank, streaming.run * world_size, ahead

    def __getitem__(self, first_clip: int) -> PackedBatch:
        indices = self._indices(first_clip)
        # All shards of the batch are on their way before the first is waited for.
        self._clips.ahead(indices)
        clips = [self._clips[index] for index in indices]
        self._clips.ahead(self._indices(first_clip + self._ahead * self._step))
        return collate(clips, self._clips.specs, self._num_registers, self._clips.token_budget(indices))

    def _indices(self, first_clip: int) -> list[int]:
        first = first_clip + self._rank * self._run
        return [self._order.locate(index) for index in range(first, first + self._run)]


class _TokenBatches(IterableDataset):
    """This rank's batches of fixed shape from a global clip index on; workers take turns."""

    def __init__(
        self, clips: _MaskedClips, shape: BatchShape, *, first_clip: int, rank: int, world_size: int, num_registers: int
    ) -> None:
        self._clips, self._shape, self._num_registers = clips, shape, num_registers
        self._first_clip, self._rank, self._world_size = first_clip, rank, world_size

    def __iter__(self) -> Iterator[PackedBatch]:
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first, step = number * self._world_size + self._rank, num_workers * self._world_size
        for run in islice(runs(self._clips.size, self._shape, self._first_clip), first, None, step):
            indices = range(run.first, run.end)
            drawn = [self._clips[index] for index in indices]
            clips, num_trimmed = fit_clips(drawn, run, self._shape, self._clips.specs, self._clips.seed)
            token_budget = self._clips.token_budget(indices)
            yield collate(clips, self._clips.specs, self._num_registers, token_budget, self._shape, num_trimmed)


STREAMING = "streaming lanes"  # beside the data sets in what a checkpoint says of the data


def _streaming(config: DataConfig, batch_size: int, world_size: int, num_workers: int) -> _Streaming | None:
    if config.access == "indexed":
        return None
    workers = world_size * max(1, num_workers)
    lanes = config.streaming_lanes or workers
    # A number of lanes that is no multiple of the workers lets several of them read the same shards.
    return _Streaming(lanes, batch_size, held=lanes // gcd(lanes, workers))


class TokenLoader:
    """Endless packed batches of a mixture.

    Which clips a global batch holds, and how each is masked, is a function of (seed, global clip index) alone: any
    number of workers gives the same batches, and ranks only share them out.
    Cards are compared with the specs when the loader is made, before the first batch.

    batch_size     clips per rank; a global batch has batch_size * world_size, rank r of W takes clips r, r+W, ...
    batch_tokens   tokens (input plus target) of a batch instead: every tensor has the same shape in every batch, and
                   the number of clips varies. Batch b of the mixture goes to rank b mod W
    """

    def __init__(
        self,
        config: DataConfig,
        specs: Sequence[ModalitySpec],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        num_registers: int = 0,
        pin_memory: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or num_workers < 0:
            raise ValueError(
                f"batch_size >= 1, 0 <= rank < world_size and num_workers >= 0 wanted, got {batch_size}, {rank}, "
                f"{world_size}, {num_workers}"
            )
        self._clips_per_step = batch_size * world_size
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self._streaming = _streaming(config, batch_size, world_size, num_workers)
        if self._streaming is not None and batch_tokens is not None:
            raise ValueError("data.access=streaming gives batches of clips; training.batching=tokens needs indexed")
        self._clips = _MaskedClips(config, specs, seed=seed, streaming=self._streaming)
        self._position = {"rank": rank, "world_size": world_size, "num_registers": num_registers}
        if self._streaming is None:
            self._dataset: Dataset = _ClipBatches(self._clips, batch_size=batch_size, **self._position)
        else:
            ahead = self._batches_ahead(config, self._streaming)
            self._dataset = _StreamedBatches(self._clips, self._streaming, ahead=ahead, **self._position)
        self.shape = None if batch_tokens is None else choose_shape(self._clips.size, batch_tokens)

    @property
    def num_clips(self) -> dict[str, int]:
        """Clips on disk of each data set."""
        return {name: tokens.num_clips for name, tokens in self._clips.sets.items()}

    def identity(self) -> dict[str, Any]:
        """Plain values that change with the data on the disk."""
        known = {name: tokens.identity() for name, tokens in self._clips.sets.items()}
        return known if self._streaming is None else {**known, STREAMING: self._streaming.identity()}

    def _batches_ahead(self, config: DataConfig, streaming: _Streaming) -> int:
        """Half a block of the largest data set, a multiple of the lanes: the same worker's, and early enough."""
        largest = max(self._clips.sets.values(), key=len)
        block = len(largest) * config.shards_per_block // (len(largest.shard_starts) - 1)
        turns = max(1, block // (2 * streaming.run))
        return turns * streaming.held * max(1, self._num_workers)

    @property
    def notes(self) -> list[str]:
        """What a person should know of the data before they are trained on."""
        return [
            f"data set {name}: {len(gaps)} shards are missing between others: {', '.join(gaps[:3])}"
            for name, tokens in self._clips.sets.items()
            if (gaps := tokens.gaps)
        ]

    def batches(self, first_clip: int = 0) -> Iterator[PackedBatch]:
        """Batches from a global clip index on: the number of clips all ranks have consumed before."""
        if self.shape is None:
            dataset: Dataset = self._dataset
            firsts = count(first_clip, self._clips_per_step)
            made: Iterator[PackedBatch] = map(self._dataset.__getitem__, firsts)
        else:
            dataset, firsts = _TokenBatches(self._clips, self.shape, first_clip=first_clip, **self._position), None
            made = iter(dataset)
        if self._num_workers == 0:
            yield from (batch.pin_memory() for batch in made) if self._pin_memory else made
            return
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=firsts,
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
            worker_init_fn=leave_signals_to_the_parent,
            # The loader draws a seed for its workers, which never use it; the global generator must not move.
            generator=torch.Generator(),
        )
        yield from from_workers(loader)


class EvalLoader:
    """Finite batches with fixed clips and fixed maskings; iterating again gives the same ones.

    Clips are spread evenly over the set. Rank r of W takes clips r, r+W, ... of each global batch; a rank whose share
    of the last one is empty gets one batch less. Raises ValueError for folders whose keys differ, and for clips that
    the masking could never give a target.
    """

    def __init__(
        self,
        pattern: str,
        specs: Sequence[ModalitySpec],
        masking: MaskingConfig | Masking,
        *,
        batch_size: int,
        num_clips: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_registers: int = 0,
        folder_names: dict[str, str] | None = None,
        index_cache: str | None = None,
    ) -> None:
        self._tokens = TokenSet(pattern, specs, folder_names=folder_names, index_cache=index_cache)
        self._tokens.verify()
        self._masking = UnifiedMasking(specs, masking) if isinstance(masking, MaskingConfig) else masking
        if isinstance(self._masking, UnifiedMasking):
            self._masking.check(self._tokens.modalities, where=pattern)
        self._token_budget = masking.token_budget if isinstance(masking, MaskingConfig) else 0
        self._specs, self._seed, self._num_registers = tuple(specs), seed, num_registers
        total = self._tokens.num_clips
        self.num_clips = min(num_clips, total)
        indices = [number * total // self.num_clips for number in range(self.num_clips)]
        clips_per_step = batch_size * world_size
        shares = [
            list(enumerate(indices))[start : start + clips_per_step][rank::world_size]
            for start in range(0, self.num_clips, clips_per_step)
        ]
        self._shares = [share for share in shares if share]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities every clip has."""
        return self._tokens.modalities

    @property
    def takes_whole_texts(self) -> bool:
        """Whether a text that is a target is one from its first word to its end."""
        return isinstance(self._masking, TransferMasking)

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[PackedBatch]:
        return map(self._batch, self._shares)

    def batches(self, *, num_threads: int = 0, pin_memory: bool = False) -> Iterator[PackedBatch]:
        """The same, made ahead by threads, in memory from which a GPU copies without the host's help."""

        def make(share: Sequence[tuple[int, int]]) -> PackedBatch:
            batch = self._batch(share)
            return batch.pin_memory() if pin_memory else batch

        return made_ahead(make, self._shares, num_threads=num_threads)

    def _batch(self, share: Sequence[tuple[int, int]]) -> PackedBatch:
        clips = [
            self._masking(self._tokens[index], clip_rng(self._seed, "fixed masking", number)) for number, index in share
        ]
        return collate(clips, self._specs, self._num_registers, self._token_budget * len(clips))


def fixed_batches(
    pattern: str, specs: Sequence[ModalitySpec], masking: MaskingConfig | Masking, **settings: Any
) -> Iterator[PackedBatch]:
    """One pass of an EvalLoader with these settings."""
    return iter(EvalLoader(pattern, specs, masking, **settings))
