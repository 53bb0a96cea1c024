"""Training a tokenizer on aligned clips: its root schema and its task for the loop."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from egom2p.config import from_plain, strict, to_plain
from egom2p.contracts import AlignedClip, LossOutput
from egom2p.data.clips.clip_store import ClipStore
from egom2p.storage import load_json
from egom2p.tokenizers.pretrained import TokenizerNetworkConfig, build_network, load_tokenizer, save_tokenizer
from egom2p.tokenizers.protocol import TokenizerBatch, TrainableTokenizer
from egom2p.tokenizers.video.codec_losses import CodecLossesConfig, CodecWithLosses
from egom2p.tokenizers.video.video_codec import VideoCodec
from egom2p.training.distributed import Ranks
from egom2p.training.launch import train
from egom2p.training.loop import FitResult
from egom2p.training.planning.plan_config import PlanConfig
from egom2p.training.randomness import seeded
from egom2p.training.schedule import Progress
from egom2p.training.task import BatchSize, Measurement, Task
from egom2p.training.tasks.clip_inputs import ClipInputs
from egom2p.training.training_config import TrainingConfig


@strict
class ClipSourceConfig:
    """Aligned clips on disk, as the preparation of data wrote them."""

    root: str
    datasets: tuple[str, ...]
    max_clips: int | None = None  # the first ones of each data set; null: all

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError(f"datasets of {self.root} must name at least one data set")


@strict
class TokenizerTrainingConfig:
    """Root schema of `run_training_tokenizer.py`."""

    output_dir: str
    seed: int = 0
    network: TokenizerNetworkConfig
    train: ClipSourceConfig
    validation: ClipSourceConfig
    normalisation_clips: int = 2000  # training clips whose statistics normalise the signal
    cache_gb: float = 4.0  # clips kept in memory; what does not fit is read again from disk
    licence: str | None = None  # of the weights, for their card
    init_from: str | None = None  # start from the weights of this tokenizer (folder, or owner/name on the Hub)
    losses: CodecLossesConfig | None = None  # of video codecs, beside the reconstruction error
    training: TrainingConfig

    dry_run: bool = False  # check everything and tell what the run would be; train nothing
    plan: PlanConfig = PlanConfig()

    def __post_init__(self) -> None:
        if self.losses is not None and self.network.architecture != "video_codec":
            raise ValueError(f"losses are for video codecs, network.architecture is {self.network.architecture!r}")


def train_tokenizer(config: TokenizerTrainingConfig) -> FitResult:
    """Train, measure and write `<output_dir>/final`; ends the process with a code when a signal stopped it."""
    if config.dry_run:
        from egom2p.training.planning.tokenizer_plan import dry_run_tokenizer  # it imports this file

        dry_run_tokenizer(config)
        return FitResult(Progress(), 0, ())
    return train(config, TokenizerTask)


class TokenizerTask(Task):
    """A tokenizer network as the loop's `Task`."""

    def __init__(self, config: TokenizerTrainingConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        with seeded(config.seed, 0):
            network = build_network(config.network)
            assert isinstance(network, nn.Module)
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

    def batches(self, first_clip: int) -> Iterator[TokenizerBatch]:
        step_clips = self.config.training.batch_size * self.ranks.world_size
        start = first_clip
        while True:
            positions = range(start + self.ranks.rank, start + step_clips, self.ranks.world_size)
            yield self.inputs.batch(positions)
            start += step_clips

    def counts(self, batch: TokenizerBatch) -> tuple[int, ...]:
        return self.model.counts(batch) if isinstance(self.model, CodecWithLosses) else batch.counts

    def size(self, batch: TokenizerBatch) -> BatchSize:
        tokens = batch.num_clips * self.network.spec.num_tokens
        return BatchSize(clips=batch.num_clips, tokens=tokens, slots=tokens)

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
        card_file = directory / "tokenizer.json"
        schema = type(self.config.network)
        found = to_plain(from_plain(schema, load_json(card_file)["config"], where=str(card_file)))
        wanted = to_plain(self.config.network)
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


class ClipSequence(Sequence[AlignedClip]):
    """The clips of several data sets, one after the other, with one stream each."""

    def __init__(self, config: ClipSourceConfig, stream: str) -> None:
        self._rows: list[tuple[ClipStore, int]] = []
        for dataset in config.datasets:
            store = ClipStore(config.root, dataset, streams=[stream])
            count = len(store) if config.max_clips is None else min(len(store), config.max_clips)
            self._rows += [(store, index) for index in range(count)]
        if not self._rows:
            raise ValueError(f"{config.root}: data sets {list(config.datasets)} hold no clips")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> AlignedClip:
        store, row = self._rows[index]
        return store[row]
