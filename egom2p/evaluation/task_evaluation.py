"""One task of an evaluation: every method's estimate on the same clips, scored.

B clips, K samples per clip, L tokens of one modality, T frames or samples of a stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from egom2p.contracts import AlignedClip, ModalitySpec, TokenClip, Tokenizer, quantity_of_stream
from egom2p.data.shards.folder_set import open_clips
from egom2p.data.unigram_baseline import baseline_cross_entropy, position_counts, position_entropy
from egom2p.evaluation.evaluation_config import EstimatorConfig, EvaluationConfig, split_task
from egom2p.evaluation.quantities import SCORING
from egom2p.evaluation.scoring import Baselines, ProtocolConfig
from egom2p.generation.checkpoints import Checkpoint
from egom2p.generation.request import clip_seed
from egom2p.metrics.bootstrap import bootstrap_interval
from egom2p.metrics.calibration import ClipSpread, calibration
from egom2p.metrics.measurements import Measured, Method
from egom2p.metrics.result_table import MethodKind, TokenLoss, Uncertainty
from egom2p.models.sampling import SamplingConfig

ShownArrays = dict[str, dict[str, np.ndarray]]
"""Clip key -> array name -> array, kept for the page."""


def check_task(task: str, checkpoint: Checkpoint, streams: Sequence[str], *, where: str) -> None:
    """Raise ValueError when a checkpoint cannot be asked for a task, or its answer cannot be scored on these streams.

    streams   what the held-out clips have; where: their store, for the message
    """
    inputs, target = split_task(task)
    wanted = checkpoint.target(target)
    shown = [spec for word in inputs for spec in checkpoint.inputs(word)]
    tokenizers = [checkpoint.tokenizer(spec.name) for spec in (*shown, wanted)]
    if any(spec is wanted or spec.is_input_only and spec.quantity == wanted.quantity for spec in shown):
        raise ValueError(f"task {task}: {target} is input and target; a model that sees the answer says nothing")
    needed = {tokenizer.stream for tokenizer in tokenizers[:-1]} | {_truth_stream(tokenizers[-1])}
    if missing := sorted(needed - set(streams)):
        raise ValueError(f"{where}: held-out clips have {sorted(streams)}, task {task} needs {missing} too")


@dataclass(frozen=True)
class TrainingStatistics:
    """What can be said without the input: baselines by stream, of `num_clips` training clips (0: those of none)."""

    num_clips: int = 0
    baselines: Mapping[str, Baselines] = field(default_factory=dict)

    def estimates(self, truth: AlignedClip, stream: str) -> dict[str, np.ndarray]:
        """Label -> estimate in the shape of the clip's stream, of which only the shape is read."""
        values = truth.streams[stream].values
        quantity = quantity_of_stream(stream, is_text=values.dtype.kind == "U")
        found = self.baselines.get(stream) or SCORING[quantity.name].baselines()
        return found.estimates(values.shape)


def training_statistics(clips: Sequence[AlignedClip], *, max_clips: int | None = None) -> TrainingStatistics:
    """One pass over (evenly spaced) training clips."""
    count = len(clips) if max_clips is None else min(max_clips, len(clips))
    found: dict[str, Baselines] = {}
    for index in np.linspace(0, len(clips) - 1, count).astype(int):
        for name, stream in clips[int(index)].streams.items():
            quantity = quantity_of_stream(name, is_text=stream.values.dtype.kind == "U")
            if quantity.name == "generic" and stream.values.ndim != 2:
                continue  # no track, so no modality can stand for it
            if name not in found:
                found[name] = SCORING[quantity.name].baselines()
            found[name].add(stream)
    return TrainingStatistics(count, found)


class TaskEvaluator:
    """Evaluates tasks on fixed clips; tokens of inputs that several tasks share are made once."""

    def __init__(
        self,
        config: EvaluationConfig,
        checkpoints: Mapping[str, Checkpoint],
        clips: Sequence[AlignedClip],
        statistics: TrainingStatistics,
    ) -> None:
        self._config, self._clips, self._statistics = config, clips, statistics
        self._caches = {label: _TokenCache(checkpoint) for label, checkpoint in checkpoints.items()}

    def evaluate(self, task: str) -> tuple[Measured, ShownArrays]:
        """All methods of a task, and what the page shows of the first clips."""
        config = self._config
        inputs, target = split_task(task)
        specs = {label: cache.checkpoint.spec(target) for label, cache in self._caches.items()}
        quantity = next(iter(specs.values())).quantity
        label, cache = next(iter(self._caches.items()))
        stream = _truth_stream(cache.checkpoint.tokenizer(specs[label].name))
        clips = [clip for clip in self._clips if stream in clip]
        if not clips:
            raise ValueError(f"{config.clips.root}: no held-out clip has {stream}, the truth of {task}")
        scorer = ClipScorer(quantity, stream, clips, config.protocol)
        methods = scorer.references(self._statistics)
        token_losses, uncertainty = [], []
        shown: ShownArrays = {clip.key: {} for clip in clips[: config.num_shown_clips]}
        recordings = [clip.provenance.recording for clip in clips]
        groups = recordings if config.drawn == "recordings" else [clip.key for clip in clips]
        for label, cache in self._caches.items():
            tokenizer = cache.checkpoint.tokenizer(specs[label].name)
            truth = cache.tokenize(clips, [specs[label].name])
            conditions = [spec.name for word in inputs for spec in cache.checkpoint.inputs(word)]
            prompts = cache.tokenize(clips, conditions)
            ceiling, _ = tokenizer.decode(_ids(truth, specs[label]))
            methods.append(scorer.method("tokenizer round trip", "ceiling", ceiling, checkpoint=label))
            for name, estimator in config.estimators.items():
                estimate, samples, spreads = _estimate(
                    cache.checkpoint, prompts, specs[label], estimator, config, scorer
                )
                methods.append(scorer.method(name, "model", estimate, checkpoint=label))
                _keep_shown(shown, f"{task}|{label}|{name}", estimate, samples)
                if spreads:
                    uncertainty.append(Uncertainty(checkpoint=label, estimator=name, **vars(calibration(spreads))))
            token_losses.append(_token_loss(label, cache.checkpoint, prompts, truth, specs[label], config, groups))
        return (
            Measured(
                task=task,
                quantity=quantity,
                stream=stream,
                clip_keys=[clip.key for clip in clips],
                recordings=recordings,
                metrics=scorer.metrics,
                methods=methods,
                token_losses=token_losses,
                uncertainty=uncertainty,
                drawn=config.drawn,
            ),
            shown,
        )


def _truth_stream(tokenizer: Tokenizer) -> str:
    """Stream of the clips that a tokenizer's decodes are compared with."""
    return tokenizer.spec.signal.stream or tokenizer.stream


def _keep_shown(shown: ShownArrays, name: str, estimate: np.ndarray, samples: np.ndarray) -> None:
    """Estimates of the first clips, and of tracks the samples too."""
    for row, arrays in enumerate(shown.values()):
        arrays[f"estimate|{name}"] = estimate[row]
        if samples.shape[1] > 1 and estimate[row].ndim < 4 and estimate[row].shape[-1] <= 4:
            arrays[f"samples|{name}"] = samples[row]


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


class ClipScorer:
    """Scores estimates of one quantity on a fixed list of clips."""

    def __init__(self, quantity: str, stream: str, clips: Sequence[AlignedClip], protocol: ProtocolConfig) -> None:
        self.scoring, self.stream, self.clips, self._protocol = SCORING[quantity], stream, clips, protocol
        self.metrics = self.scoring.metrics(protocol)
        self._of_the_set = self.scoring.of_the_set(protocol, clips) if self.scoring.of_the_set else None

    def method(
        self, label: str, kind: MethodKind, estimates: Sequence[np.ndarray], *, checkpoint: str | None = None
    ) -> Method:
        """Per-clip values; a clip that cannot be scored has None everywhere and its reason in `failures`."""
        values: dict[str, list[float | None]] = {metric.key: [] for metric in self.metrics}
        failures = {}
        for clip, estimate in zip(self.clips, estimates, strict=True):
            try:
                found = self.scoring.score(estimate, clip, self.stream, self._protocol)
            except ValueError as error:
                failures[clip.key] = str(error)
                found = {}
            for key, column in values.items():
                column.append(found.get(key))
        # Of a set with clips that cannot be scored there is no distance of the set.
        of_the_set = {} if failures or self._of_the_set is None else self._of_the_set(estimates)
        return Method(label, kind, values, checkpoint, failures, of_the_set)

    def references(self, statistics: TrainingStatistics) -> list[Method]:
        """Rows that no checkpoint makes: baselines, and about the best any method can do."""
        estimates = [statistics.estimates(clip, self.stream) for clip in self.clips]
        rows = [self.method(label, "baseline", [found[label] for found in estimates]) for label in estimates[0]]
        return rows + [self.method(label, "bound", found) for label, found in self.scoring.bounds(self.clips).items()]

    def spread(self, clip: int, samples: np.ndarray) -> ClipSpread | None:
        """Spread and ranks of the samples (K, T, ...) of one clip; None where the truth has no comparable value."""
        rng = np.random.default_rng([clip, len(samples)])
        return self.scoring.spread(samples, self.clips[clip].streams[self.stream], rng)


def _estimate(
    checkpoint: Checkpoint,
    prompts: Sequence[TokenClip],
    spec: ModalitySpec,
    estimator: EstimatorConfig,
    config: EvaluationConfig,
    scorer: ClipScorer,
) -> tuple[np.ndarray, np.ndarray, list[ClipSpread]]:
    """Mean of the decoded samples (B, T, ...), the samples (B', K, T, ...) of the clips that are shown, and for
    several samples the spread of every clip.
    """
    plan, count = estimator.sampling.plan(spec.name), estimator.num_samples
    means, shown, spreads = [], [], []
    for start in range(0, len(prompts), config.batch_size):
        part = prompts[start : start + config.batch_size]
        repeated = [prompt for prompt in part for _ in range(count)]
        seeds = [clip_seed(config.seed, start + row, sample) for row in range(len(part)) for sample in range(count)]
        made = checkpoint.sampler.generate(repeated, [plan], seeds)
        values, _ = checkpoint.tokenizer(spec.name).decode(_ids(made, spec))
        samples = values.reshape(len(part), count, *values.shape[1:])
        means.append(np.stack([scorer.scoring.mean_of_samples(clip_samples) for clip_samples in samples]))
        shown.append(samples[: max(0, config.num_shown_clips - start)])
        if count > 1:
            spreads += [scorer.spread(start + row, clip_samples) for row, clip_samples in enumerate(samples)]
    known = [found for found in spreads if found is not None]
    return np.concatenate(means), np.concatenate(shown), known


def _token_loss(
    label: str,
    checkpoint: Checkpoint,
    prompts: Sequence[TokenClip],
    truth: Sequence[TokenClip],
    spec: ModalitySpec,
    config: EvaluationConfig,
    groups: Sequence[str],
) -> TokenLoss:
    """Mean -log p of the true tokens, all positions asked at once, beside what ignoring the input can reach."""
    nats, accuracy = [], []
    for start in range(0, len(prompts), config.batch_size):
        part = slice(start, start + config.batch_size)
        true_ids = [clip.tokens[spec.name] for clip in truth[part]]
        found = checkpoint.sampler.log_likelihood(prompts[part], SamplingConfig().plan(spec.name), true_ids)
        nats += [float(-log_probs.mean()) for log_probs, _ in found]
        accuracy += [float(is_right.mean()) for _, is_right in found]
    baseline, entropy, note = _unigram_baseline(checkpoint, truth, spec, config)
    rng = np.random.default_rng(config.seed)
    return TokenLoss(
        checkpoint=label,
        target=spec.name,
        nats=bootstrap_interval(nats, rng, groups=groups),
        accuracy=bootstrap_interval(accuracy, rng, groups=groups),
        uniform_nats=float(np.log(spec.vocab_size)),
        unigram_nats=baseline,
        position_entropy_nats=entropy,
        unigram_note=note,
    )


def _unigram_baseline(
    checkpoint: Checkpoint, truth: Sequence[TokenClip], spec: ModalitySpec, config: EvaluationConfig
) -> tuple[float | None, float | None, str]:
    """Cross entropy of the held-out tokens under their unigram baseline per position, its entropy, a note."""
    if config.train_tokens is None:
        return None, None, "no train_tokens given"
    tokens = open_clips(config.train_tokens)
    if spec.folder not in tokens.folders:
        return None, None, f"{config.train_tokens} has no folder {spec.folder}"
    made_by = tokens.card(spec.folder).get("tokenizer_fingerprint")
    wanted = checkpoint.tokenizer(spec.name).fingerprint
    if made_by is not None and made_by != wanted:
        return None, None, f"{config.train_tokens} was made by tokenizer {made_by}, this checkpoint has {wanted}"
    counts = position_counts(tokens, spec)
    return baseline_cross_entropy(counts, _ids(truth, spec), pad_id=spec.pad_id), position_entropy(counts), ""


def _ids(clips: Sequence[TokenClip], spec: ModalitySpec) -> np.ndarray:
    return np.stack([spec.padded(clip.tokens[spec.name]) for clip in clips])
