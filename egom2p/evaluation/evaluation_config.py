"""What an evaluation is asked: checkpoints, clips, tasks, estimators, protocol."""

from dataclasses import field

from egom2p.config import Count, Natural, not_deciding, strict
from egom2p.evaluation.scoring import ProtocolConfig
from egom2p.jobs.workers import Dtype
from egom2p.metrics.result_table import Drawn
from egom2p.models.sampling import SamplingConfig
from egom2p.storage import RemoteConfig


@strict
class EstimatorConfig:
    """How one estimate per clip is made: `num_samples` generations with different seeds, decoded and averaged."""

    num_samples: Count = 1
    sampling: SamplingConfig = SamplingConfig()


@strict
class ClipsConfig:
    """A data set of aligned clips: `root/<stream>/<dataset>/shard-*.tar`."""

    root: str
    dataset: str


@strict
class EvaluationConfig:
    """One evaluation.

    checkpoints      label -> model directory; labels appear in the tables
    clips            held-out clips; the same ones for every method
    train_clips      training split, for its trivial baselines (None: only those that need no training clips)
    train_tokens     pattern of training token shards, for the unigram baselines per position (None: not shown)
    tasks            `rgb2depth`; several inputs as `rgb+gaze2camera`; names, quantities or folders
    estimators       label -> how a checkpoint's estimate is made
    num_clips        evenly spaced among the held-out clips; None: all
    num_shown_clips  clips whose predictions are kept for the page
    num_workers      processes that share the tasks, one thread each; 0: this process, all threads
    training_runs    label -> folder of a training run, whose `log.jsonl` the page shows as curves
    stage_times      JSON file, stage -> seconds, shown on the page
    drawn            what intervals draw: whole recordings; or clips, for a set of one or two recordings
    page             where the page is written; None: index.html in `output`
    dtype            of the models' weights; auto: bf16 on a GPU, else fp32. Decides results by their fingerprints

    A finished task is kept for an evaluation that asks the same; fields that are `not_deciding` change no number of it.
    """

    output: str = not_deciding()
    checkpoints: dict[str, str]
    clips: ClipsConfig
    train_clips: ClipsConfig | None = None
    train_tokens: str | None = None
    tasks: tuple[str, ...] = not_deciding(("rgb2depth", "rgb2camera", "rgb2gaze", "depth2rgb"))
    estimators: dict[str, EstimatorConfig] = field(
        default_factory=lambda: {
            "most likely tokens, 1 step": EstimatorConfig(),
            "mean of 8 samples, T=1, 1 step": EstimatorConfig(num_samples=8, sampling=SamplingConfig(temperature=1.0)),
        }
    )
    protocol: ProtocolConfig = ProtocolConfig()
    num_clips: Count | None = 96
    num_shown_clips: Natural = 6
    max_train_clips: Count | None = 1000
    batch_size: Count = not_deciding(32)
    num_workers: Natural = not_deciding(0)
    drawn: Drawn = "recordings"
    seed: Natural = 0
    device: str = not_deciding("auto")
    dtype: Dtype = not_deciding("auto")
    remote: RemoteConfig = not_deciding(RemoteConfig())  # waiting for and asking of S3
    progress: bool = not_deciding(True)
    title: str = not_deciding("EgoM2P evaluation")
    description: str = not_deciding("")
    training_runs: dict[str, str] | None = not_deciding(None)
    stage_times: str | None = not_deciding(None)
    page: str | None = not_deciding(None)

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ValueError("checkpoints must name at least one model directory (label: path)")
        for task in self.tasks:
            split_task(task)


def split_task(task: str) -> tuple[tuple[str, ...], str]:
    """Inputs and target of `rgb+gaze2camera` (or `rgb+gaze->camera`, for names that hold a 2)."""
    parts = task.split("->") if "->" in task else task.split("2")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a task reads <input>[+<input>]2<target>, e.g. rgb2depth, got {task!r}")
    return tuple(parts[0].split("+")), parts[1]
