"""Training a tokenizer on aligned clips: its root schema and its task for the loop."""

from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.config import to_plain
from egom2p.contracts import AlignedClip, LossOutput
from egom2p.jobs.workers import made_ahead
from egom2p.tokenizers.pretrained import build_network, card_config, load_tokenizer, save_tokenizer
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer
from egom2p.tokenizers.video.codec_losses import CodecWithLosses
from egom2p.tokenizers.video.video_codec import VideoCodec
from egom2p.training.distributed import Ranks
from egom2p.training.loop import FitResult, train
from egom2p.training.planning.plan import dry_run_tokenizer
from egom2p.training.schedule import Progress
from egom2p.training.task import BatchSize, Measurement, Task, seeded
from egom2p.training.tasks.clip_inputs import ClipInputs
from egom2p.training.tasks.tokenizer_config import ClipSequence, TokenizerTrainingConfig


def train_tokenizer(config: TokenizerTrainingConfig) -> FitResult:
    """Train, measure and write `<output_dir>/final`; ends the process with a code when a signal stopped it."""
    if config.dry_run:
        dry_run_tokenizer(config)
        return FitResult(Progress(), 0, ())
    return train(config, TokenizerTask)


class TokenizerTask(Task):
    """A tokenizer network as the loop's `Task`."""

    def __init__(self, config: TokenizerTrainingConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        with seeded(config.seed, 0):
            network = build_network(config.network)
            self.model: nn.Module = network
            if config.losses is not None:
                assert isinstance(network, VideoCodec)
                self.model = CodecWithLosses(network, config.losses)
        self.network: TrainableTokenizer = network
        self.clips = ClipSequence(config.train, network.stream)
        self.num_train_clips = len(self.clips)
        self.validation_clips = ClipSequence(config.validation, network.stream)
        self.inputs = ClipInputs(self.clips, network, seed=config.seed, cache_bytes=int(config.cache_gb * 1e9))
        if config.init_from is None:
            network.fit_normalisation(self._spread(config.normalisation_clips))
        else:
            _take_weights(network, config.init_from)
        self.metrics: dict[str, float] = {}

    def data_identity(self) -> dict[str, Any]:
        return {"train": {"clips": len(self.clips)}, "validation": {"clips": len(self.validation_clips)}}

    def batches(self, first_clip: int) -> Iterator[TokenizerBatch]:
        step_clips = self.config.training.batch_size * self.ranks.world_size
        starts = count(first_clip, step_clips)
        shares = (range(start + self.ranks.rank, start + step_clips, self.ranks.world_size) for start in starts)
        yield from made_ahead(self._batch, shares, num_threads=self.config.training.num_workers)

    def _batch(self, positions: range) -> TokenizerBatch:
        batch = self.inputs.batch(positions)
        return batch.pin_memory() if self.ranks.device.type == "cuda" else batch

    def counts(self, batch: TokenizerBatch) -> tuple[int, ...]:
        return self.model.counts(batch) if isinstance(self.model, CodecWithLosses) else batch.counts

    def size(self, batch: TokenizerBatch) -> BatchSize:
        tokens = batch.num_clips * self.network.spec.num_tokens
        return BatchSize(clips=batch.num_clips, tokens=tokens, token_budget=tokens)

    def loss(self, model: nn.Module, batch: TokenizerBatch) -> LossOutput:
        return model(batch)

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        terms = zip(self.model.loss_weights, sums.unbind(), denominators, strict=True)
        return torch.stack([weight * total / max(count, 1) for weight, total, count in terms]).sum()

    def after_step(self) -> None:
        self.model.after_step()

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        """Encode-decode errors in physical units and the use of the codebook; every rank measures the same clips."""
        self.metrics = self.network.evaluate(list(self.validation_clips))
        return [Measurement("reconstruction", name, value) for name, value in self.metrics.items()]

    def check_checkpoint(self, directory: Path) -> None:
        found, wanted = to_plain(card_config(directory)), to_plain(self.config.network)
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{directory} is a tokenizer with {key}={found.get(key)!r}, the config says {wanted[key]!r}; choose "
                f"another output_dir or remove the old run"
            )

    def export(self, directory: Path) -> None:
        data = {
            "clips": {name: to_plain(getattr(self.config, name)) for name in ("train", "validation")},
            "num_clips": len(self.clips),
            "seed": self.config.seed,
            "num_steps": self.config.training.num_steps,
        }
        if self.config.init_from is not None:
            data["init_from"] = self.config.init_from
        save_tokenizer(self.network, directory, training_data=data, metrics=self.metrics, licence=self.config.licence)

    def _spread(self, count: int) -> list[AlignedClip]:
        """About `count` training clips, evenly spread."""
        stride = max(1, len(self.clips) // max(count, 1))
        return [self.clips[index] for index in range(0, len(self.clips), stride)]


def _take_weights(network: nn.Module, source: str) -> None:
    """Weights, normalisation and codebook of a finished tokenizer; ValueError when its network is another one."""
    try:
        network.load_state_dict(load_tokenizer(source).network.state_dict())
    except RuntimeError as error:
        raise ValueError(f"init_from {source}: its weights do not fit this network: {error}") from error
