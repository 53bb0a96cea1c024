"""Benchmark tables: checkpoints, trivial baselines and tokenizer ceilings on the same held-out clips.

B clips, K samples per clip, L tokens of one modality, T frames or samples of a stream.
"""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egom2p.config import strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip
from egom2p.data.clip_store import ClipStore
from egom2p.data.folder_set import open_clips
from egom2p.data.marginals import marginal_cross_entropy, place_entropy, place_marginals
from egom2p.geometry import canonicalise, mean_poses
from egom2p.metrics.bootstrap import bootstrap_interval
from egom2p.models.generation_plans import SamplingConfig
from egom2p.pipelines.baselines import TrainingStatistics, baseline_estimates, training_statistics
from egom2p.pipelines.checkpoints import Checkpoint, load_checkpoint
from egom2p.pipelines.progress import progress_bar
from egom2p.pipelines.results import Method, TaskResult, summarise, write_results
from egom2p.pipelines.scores import STREAM_OF_QUANTITY, ProtocolConfig, metrics_of, score


@strict
class EstimatorConfig:
    """How one estimate per clip is made: `num_samples` generations with different seeds, decoded and averaged."""

    num_samples: int = 1
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")


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
    train_clips      training split, for the trivial baselines (None: no baselines)
    train_tokens     pattern of training token shards, for the place marginals (None: not shown)
    tasks            `rgb2depth`; several inputs as `rgb+gaze2camera`; names, quantities or folders
    estimators       label -> how a checkpoint's estimate is made
    num_clips        evenly spaced among the held-out clips; None: all
    num_shown_clips  clips whose predictions are kept for the page
    training_runs    label -> folder of a training run, whose `log.jsonl` the page shows as curves
    stage_times      JSON file, stage -> seconds, shown on the page
    page             where the page is written; None: index.html in `output`
    """

    output: str
    checkpoints: dict[str, str]
    clips: ClipsConfig
    train_clips: ClipsConfig | None = None
    train_tokens: str | None = None
    tasks: tuple[str, ...] = ("rgb2depth", "rgb2cam", "rgb2gaze", "depth2rgb")
    estimators: dict[str, EstimatorConfig] = field(
        default_factory=lambda: {
            "most likely tokens, 1 step": EstimatorConfig(),
            "mean of 8 samples, T=1, 1 step": EstimatorConfig(num_samples=8, sampling=SamplingConfig(temperature=1.0)),
        }
    )
    protocol: ProtocolConfig = ProtocolConfig()
    num_clips: int | None = 96
    num_shown_clips: int = 6
    max_train_clips: int | None = 1000
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"
    progress: bool = True
    title: str = "EgoM2P evaluation"
    description: str = ""
    training_runs: dict[str, str] | None = None
    stage_times: str | None = None
    page: str | None = None

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


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated: the summary (as in results.json) and where it lies."""

    folder: Path
    summary: Mapping[str, Any]


def run_evaluation(config: EvaluationConfig) -> Evaluation:
    """Evaluate and write results.json, results.md, per_clip.csv and shown/*.npz below `config.output`."""
    seconds: dict[str, float] = {}
    folder = Path(config.output)
    _check_training_runs(config)
    checkpoints = {
        label: load_checkpoint(directory, device=config.device) for label, directory in config.checkpoints.items()
    }
    with _timed(seconds, "read held-out clips"):
        clips = _held_out_clips(config)
    statistics = None
    if config.train_clips is not None:
        with _timed(seconds, "baselines from the training split"):
            store = ClipStore(config.train_clips.root, config.train_clips.dataset)
            statistics = training_statistics(store, max_clips=config.max_train_clips)
    shown = _Shown(clips[: config.num_shown_clips])
    tokens = {label: _TokenCache(checkpoint) for label, checkpoint in checkpoints.items()}
    results = []
    with progress_bar("evaluate tasks", len(config.tasks), is_shown=config.progress) as advance:
        for task in config.tasks:
            with _timed(seconds, task):
                results.append(_evaluate_task(task, config, tokens, clips, statistics, shown))
            advance(1)
    summary = {
        "description": config.description or "Held-out clips, the same for every row.",
        "config": to_plain(config),
        "hardware": _hardware(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "num_train_clips": statistics.num_clips if statistics else 0,
        "checkpoints": {label: _describe(checkpoint) for label, checkpoint in checkpoints.items()},
        "tasks": [summarise(result, seed=config.seed) for result in results],
        "shown_clips": [clip.key for clip in shown.clips],
    }
    write_results(folder, summary, results)
    shown.write(folder / "shown")
    return Evaluation(folder, summary)


def _evaluate_task(
    task: str,
    config: EvaluationConfig,
    tokens: Mapping[str, "_TokenCache"],
    clips: Sequence[AlignedClip],
    statistics: TrainingStatistics | None,
    shown: "_Shown",
) -> TaskResult:
    inputs, target = split_task(task)
    specs = {label: cache.checkpoint.spec(target) for label, cache in tokens.items()}
    quantity = next(iter(specs.values())).quantity
    stream = STREAM_OF_QUANTITY[quantity]
    clips = [clip for clip in clips if stream in clip]
    if not clips:
        raise ValueError(f"{config.clips.root}: no held-out clip has {stream}, the truth of {task}")
    scorer = _Scorer(quantity, clips, config.protocol)
    methods, token_losses = [], []
    if statistics is not None:
        methods += _baselines(scorer, statistics)
    methods += _bounds(scorer)
    for label, cache in tokens.items():
        checkpoint = cache.checkpoint
        truth = cache.tokenize(clips, [specs[label].name])
        prompts = cache.tokenize(clips, [checkpoint.spec(word).name for word in inputs])
        ceiling, _ = checkpoint.tokenizer(specs[label].name).decode(_ids(truth, specs[label]))
        methods.append(scorer.method("tokenizer round trip", "ceiling", ceiling, checkpoint=label))
        for name, estimator in config.estimators.items():
            estimate, samples = _estimate(checkpoint, prompts, specs[label], estimator, config)
            methods.append(scorer.method(name, "model", estimate, checkpoint=label))
            shown.add(task, label, name, clips, estimate, samples)
        token_losses.append(_token_loss(label, checkpoint, prompts, truth, specs[label], config))
    return TaskResult(
        task=task,
        quantity=quantity,
        clip_keys=[clip.key for clip in clips],
        metrics=metrics_of(quantity, config.protocol),
        methods=methods,
        token_losses=token_losses,
    )


class _TokenCache:
    """Tokens of the held-out clips: several tasks share inputs, and encoding video is slow."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._known: dict[tuple[str, str], tuple[np.ndarray, str | None]] = {}

    def tokenize(self, clips: Sequence[AlignedClip], names: Sequence[str]) -> list[TokenClip]:
        """As `Checkpoint.tokenize`; every clip must have the named modalities."""
        for name in names:
            missing = [clip for clip in clips if (clip.key, name) not in self._known]
            for found in self.checkpoint.tokenize(missing, [name]):
                if name not in found.tokens:
                    raise ValueError(f"held-out clip {found.key} has no {name}, an input of the task")
                self._known[found.key, name] = (found.tokens[name], found.fingerprints[name])
        return [
            TokenClip(
                clip.key,
                {name: self._known[clip.key, name][0] for name in names},
                {name: self._known[clip.key, name][1] for name in names},
            )
            for clip in clips
        ]


class _Scorer:
    """Scores estimates of one quantity on a fixed list of clips."""

    def __init__(self, quantity: str, clips: Sequence[AlignedClip], protocol: ProtocolConfig) -> None:
        self.quantity, self.clips, self._protocol = quantity, clips, protocol
        self._keys = [metric.key for metric in metrics_of(quantity, protocol)]

    def method(
        self, label: str, kind: Any, estimates: Sequence[np.ndarray], *, checkpoint: str | None = None
    ) -> Method:
        """Per-clip values; a clip that cannot be scored has None everywhere and its reason in `failures`."""
        values: dict[str, list[float | None]] = {key: [] for key in self._keys}
        failures = {}
        for clip, estimate in zip(self.clips, estimates, strict=True):
            try:
                found: Mapping[str, float | None] = score(self.quantity, estimate, clip, self._protocol)
            except ValueError as error:
                failures[clip.key] = str(error)
                found = {}
            for key in self._keys:
                values[key].append(found.get(key))
        return Method(label, kind, values, checkpoint, failures)


def _baselines(scorer: _Scorer, statistics: TrainingStatistics) -> list[Method]:
    estimates = [baseline_estimates(scorer.quantity, statistics, clip) for clip in scorer.clips]
    return [scorer.method(label, "baseline", [found[label] for found in estimates]) for label in estimates[0]]


def _bounds(scorer: _Scorer) -> list[Method]:
    """The gaze a world's own law points at: about the best an estimate from the picture can be."""
    if scorer.quantity != "gaze" or not all("gaze_law" in clip for clip in scorer.clips):
        return []
    law = [np.asarray(clip.streams["gaze_law"].values) for clip in scorer.clips]
    return [scorer.method("law of the world, without its noise", "bound", law)]


def _estimate(
    checkpoint: Checkpoint,
    prompts: Sequence[TokenClip],
    spec: ModalitySpec,
    estimator: EstimatorConfig,
    config: EvaluationConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the decoded samples (B, T, ...), and the samples (B', K, T, ...) of the clips that are shown."""
    plan, count = estimator.sampling.plan(spec.name), estimator.num_samples
    means, shown = [], []
    for start in range(0, len(prompts), config.batch_size):
        part = prompts[start : start + config.batch_size]
        repeated = [prompt for prompt in part for _ in range(count)]
        seeds = [clip_seed(config.seed, start + row, sample) for row in range(len(part)) for sample in range(count)]
        made = checkpoint.sampler.generate(repeated, [plan], seeds)
        values, _ = checkpoint.tokenizer(spec.name).decode(_ids(made, spec))
        samples = values.reshape(len(part), count, *values.shape[1:])
        means.append(np.stack([mean_of_samples(spec.quantity, clip_samples) for clip_samples in samples]))
        shown.append(samples[: max(0, config.num_shown_clips - start)])
    return np.concatenate(means), np.concatenate(shown)


def clip_seed(seed: int, clip: int, sample: int) -> int:
    """Seed of one sample of one clip; different for every combination."""
    return (seed * 1_000_003 + clip) * 10_007 + sample


def mean_of_samples(quantity: str, samples: np.ndarray) -> np.ndarray:
    """Mean (T, ...) of K estimates (K, T, ...): of poses the chordal mean of rotations, else of the values."""
    if len(samples) == 1:
        return samples[0]
    if quantity == "camera":
        return mean_poses(samples)
    mean = samples.mean(0, dtype=np.float64)
    return np.round(mean).astype(np.uint8) if quantity == "rgb" else mean.astype(samples.dtype)


def _token_loss(
    label: str,
    checkpoint: Checkpoint,
    prompts: Sequence[TokenClip],
    truth: Sequence[TokenClip],
    spec: ModalitySpec,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Mean -log p of the true tokens, all places asked at once, beside what ignoring the input can reach."""
    nats, accuracy = [], []
    for start in range(0, len(prompts), config.batch_size):
        part = slice(start, start + config.batch_size)
        true_ids = [clip.tokens[spec.name] for clip in truth[part]]
        found = checkpoint.sampler.log_likelihood(prompts[part], SamplingConfig().plan(spec.name), true_ids)
        nats += [float(-log_probs.mean()) for log_probs, _ in found]
        accuracy += [float(is_right.mean()) for _, is_right in found]
    marginal, entropy, note = _marginal(checkpoint, truth, spec, config)
    rng = np.random.default_rng(config.seed)
    return {
        "checkpoint": label,
        "target": spec.name,
        "nats": vars(bootstrap_interval(nats, rng)),
        "accuracy": vars(bootstrap_interval(accuracy, rng)),
        "uniform_nats": float(np.log(spec.vocab_size)),
        "marginal_nats": marginal,
        "marginal_entropy_nats": entropy,
        "marginal_note": note,
    }


def _marginal(
    checkpoint: Checkpoint, truth: Sequence[TokenClip], spec: ModalitySpec, config: EvaluationConfig
) -> tuple[float | None, float | None, str]:
    """Cross entropy of the held-out tokens under the training marginals of their places, their entropy, a note."""
    if config.train_tokens is None:
        return None, None, "no train_tokens given"
    tokens = open_clips(config.train_tokens)
    made_by = tokens.card(spec.folder).get("tokenizer_fingerprint")
    wanted = checkpoint.tokenizer(spec.name).fingerprint
    if made_by is not None and made_by != wanted:
        return None, None, f"{config.train_tokens} was made by tokenizer {made_by}, this checkpoint has {wanted}"
    counts = place_marginals(tokens, spec)
    return marginal_cross_entropy(counts, _ids(truth, spec)), place_entropy(counts), ""


def _ids(clips: Sequence[TokenClip], spec: ModalitySpec) -> np.ndarray:
    return np.stack([clip.tokens[spec.name] for clip in clips])


def _check_training_runs(config: EvaluationConfig) -> None:
    """A page without its curves should fail before the evaluation, not after it."""
    for folder in (config.training_runs or {}).values():
        if not (Path(folder) / "log.jsonl").is_file():
            raise ValueError(f"{folder}/log.jsonl: no training log there (training_runs=null leaves the curves out)")


def _held_out_clips(config: EvaluationConfig) -> list[AlignedClip]:
    store = ClipStore(config.clips.root, config.clips.dataset)
    count = len(store) if config.num_clips is None else min(config.num_clips, len(store))
    return [store[int(index)] for index in np.linspace(0, len(store) - 1, count).astype(int)]


class _Shown:
    """Truth, estimates and samples of a few clips, kept for the page: one npz per clip."""

    def __init__(self, clips: Sequence[AlignedClip]) -> None:
        self.clips = clips
        self._arrays: dict[str, dict[str, np.ndarray]] = {clip.key: _truth_arrays(clip) for clip in clips}

    def add(
        self,
        task: str,
        checkpoint: str,
        estimator: str,
        clips: Sequence[AlignedClip],
        estimate: np.ndarray,
        samples: np.ndarray,
    ) -> None:
        for row, clip in enumerate(clips[: len(samples)]):
            if clip.key in self._arrays:
                name = f"{task}|{checkpoint}|{estimator}"
                self._arrays[clip.key][f"estimate|{name}"] = estimate[row]
                if samples.shape[1] > 1 and estimate[row].ndim < 4 and estimate[row].shape[-1] <= 4:
                    self._arrays[clip.key][f"samples|{name}"] = samples[row]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.npz"):
            stale.unlink()
        for key, arrays in self._arrays.items():
            np.savez_compressed(folder / f"{key}.npz", **arrays)


def _truth_arrays(clip: AlignedClip) -> dict[str, np.ndarray]:
    arrays = {}
    for name in ("rgb", "depth", "gaze", "camera"):
        if name in clip:
            stream = clip.streams[name]
            arrays[f"truth|{name}"] = canonicalise(stream.values) if name == "camera" else np.asarray(stream.values)
            arrays[f"valid|{name}"] = stream.is_valid
            arrays[f"times_s|{name}"] = stream.times_s - stream.times_s[0]
    return arrays


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "directory": str(checkpoint.directory),
        "num_parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "modalities": [spec.to_dict() for spec in checkpoint.specs],
    }


def _hardware() -> dict[str, Any]:
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "accelerator": accelerator,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds of a block."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
