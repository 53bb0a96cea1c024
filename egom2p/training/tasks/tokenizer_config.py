"""Root schema of a tokenizer's training, and the clips it names."""

from collections.abc import Sequence

from egom2p.config import Count, Natural, NotNegative, strict
from egom2p.contracts import AlignedClip
from egom2p.data.clips.clip_store import ClipStore
from egom2p.tokenizers.pretrained import TokenizerNetworkConfig
from egom2p.tokenizers.video.codec_losses import CodecLossesConfig
from egom2p.training.training_config import PlanConfig, TrainingConfig


@strict
class ClipSourceConfig:
    """Aligned clips on disk, as the preparation of data wrote them."""

    root: str
    datasets: tuple[str, ...]
    max_clips: Count | None = None  # the first ones of each data set; null: all

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError(f"datasets of {self.root} must name at least one data set")


@strict
class TokenizerTrainingConfig:
    """Root schema of `run_training_tokenizer.py`."""

    output_dir: str
    seed: Natural = 0
    network: TokenizerNetworkConfig
    train: ClipSourceConfig
    validation: ClipSourceConfig
    normalisation_clips: Count = 2000  # training clips whose statistics normalise the signal
    cache_gb: NotNegative = 4.0  # clips kept in memory; what does not fit is read again from disk
    licence: str | None = None  # of the weights, for their card
    init_from: str | None = None  # start from the weights of this tokenizer (folder, or owner/name on the Hub)
    losses: CodecLossesConfig | None = None  # of video codecs, beside the reconstruction error
    training: TrainingConfig

    dry_run: bool = False  # check everything and tell what the run would be; train nothing
    plan: PlanConfig = PlanConfig()

    def __post_init__(self) -> None:
        if self.training.batching != "clips":
            raise ValueError(
                "training.batching=tokens is for pretraining; tokenizers count clips (training.batch_size)"
            )
        if self.losses is not None and self.network.architecture != "video_codec":
            raise ValueError(f"losses are for video codecs, network.architecture is {self.network.architecture!r}")


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
