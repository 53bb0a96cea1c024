"""Which of several encoders knows more: `python -m experiments.probe_comparison.compare_probes --config FILE`.

The linear probe of `probe.py` on encoders that read the same tokens, each trained several times (seeds): a clip's value
is the share of those runs that get it right, and differences to the encoder named first are paired clip by clip.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from egom2p.config import run_main, strict, to_plain
from egom2p.evaluation.evaluation_config import ClipsConfig
from egom2p.evaluation.linear_probe import Features, fit_and_predict
from egom2p.evaluation.probe import ProbeClips, ProbeLabelConfig, bag_features, pooled_features, read_probe_clips
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.jobs.progress import say
from egom2p.metrics.measurements import Measured, Method, write_results
from egom2p.metrics.result_table import Metric
from experiments.jepa.feature_spread import feature_spread

_COLUMNS = (Metric("accuracy", "accuracy", "", "share of clips with the right label, mean over runs", True, True),)


@strict
class ProbeComparisonConfig:
    """Fields as in `ProbeConfig`.

    encoders   label -> model directories, runs that differ in their seed alone; of as many runs each
    layer      of the encoders that is probed; None: their output
    """

    output: str
    encoders: dict[str, tuple[str, ...]]
    train: ClipsConfig
    test: ClipsConfig
    inputs: tuple[str, ...]
    layer: int | None = None
    labels: dict[str, ProbeLabelConfig]
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    max_train_clips: int | None = None
    max_test_clips: int | None = None
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        counts = {label: len(runs) for label, runs in self.encoders.items()}
        if not counts or len(set(counts.values())) > 1 or not all(counts.values()):
            raise ValueError(f"encoders need the same number of runs each, at least one, got {counts}")


def run_probe_comparison(config: ProbeComparisonConfig) -> Path:
    """Fit and score; writes results.json, results.md and per_clip.csv; returns the folder.

    Raises ValueError when a recording is in both splits, TokenizerMismatch for encoders of other tokens.
    """
    first = load_checkpoint(next(iter(config.encoders.values()))[0], device=config.device)
    names = [first.spec(word).name for word in config.inputs]
    asked = {"asked": config.labels, "batch_size": config.batch_size, "progress": config.progress}
    train = read_probe_clips(first, config.train, config.max_train_clips, names, **asked)
    test = read_probe_clips(first, config.test, config.max_test_clips, names, **asked)
    if shared := sorted(set(train.recordings) & set(test.recordings)):
        raise ValueError(f"recording {shared[0]} is in train and in test; labels of its clips are not independent")
    runs: dict[str, list[tuple[Features, Features]]] = {}
    for label, locations in config.encoders.items():
        checkpoints = [load_checkpoint(location, device=config.device) for location in locations]
        runs[label] = [_features(checkpoint, train, test, names, config) for checkpoint in checkpoints]
    specs = [spec for spec in first.specs if spec.name in names]
    bags = (bag_features(train.tokens, specs), bag_features(test.tokens, specs))
    results = [_scored(label, runs, bags, train, test, config) for label in config.labels]
    spreads = {label: [feature_spread(features[1]) for features in found] for label, found in runs.items()}
    words = [f"{label}: {'; '.join(_spread_words(run) for run in found)}" for label, found in spreads.items()]
    description = (
        f"Linear probe, fitted to {len(train.tokens)} clips. Spread of the test clips' features, run by "
        f"run: {' | '.join(words)}."
    )
    about = {
        "config": to_plain(config),
        "spreads": spreads,
    }
    folder = Path(config.output)
    write_results(folder, description, about, results, seed=config.seed)
    say(f"wrote {folder}/results.md, results.json, per_clip.csv")
    return folder


def _spread_words(found: dict[str, float]) -> str:
    return f"std_share {found['std_share']:.3f}, effective rank {found['effective_rank']:.1f}"


def _features(
    checkpoint: Checkpoint, train: ProbeClips, test: ProbeClips, names: Sequence[str], config: ProbeComparisonConfig
) -> tuple[Features, Features]:
    found = [pooled_features(checkpoint, part.tokens, names, config.layer, config.batch_size) for part in (train, test)]
    return found[0], found[1]


def _scored(
    label: str,
    runs: dict[str, list[tuple[Features, Features]]],
    bags: tuple[Features, Features],
    train: ProbeClips,
    test: ProbeClips,
    config: ProbeComparisonConfig,
) -> Measured:
    is_train, is_test = ([found is not None for found in part.labels[label]] for part in (train, test))
    wanted, truth = ([found for found in part.labels[label] if found is not None] for part in (train, test))
    if not wanted or not truth:
        raise ValueError(f"label {label}: found {len(wanted)} training and {len(truth)} held-out clips that have one")
    groups, recordings = (
        [name for name, has in zip(part.recordings, kept, strict=True) if has]
        for part, kept in ((train, is_train), (test, is_test))
    )

    def right(features: tuple[Features, Features]) -> np.ndarray:
        found, _ = fit_and_predict(
            features[0][np.array(is_train)],
            wanted,
            features[1][np.array(is_test)],
            groups=groups,
            penalties=config.penalties,
            rng=np.random.default_rng(config.seed),
        )
        return np.array([float(a == b) for a, b in zip(found, truth, strict=True)])

    commonest = Counter(wanted).most_common(1)[0][0]
    methods = [
        Method("commonest label", "baseline", {"accuracy": [float(found == commonest) for found in truth]}),
        Method("tokens, how often each", "baseline", {"accuracy": right(bags).tolist()}),
    ]
    for title, found in runs.items():
        per_run = [right(features) for features in found]
        methods.append(Method("mean of runs", "model", {"accuracy": np.mean(per_run, axis=0).tolist()}, title))
        if len(per_run) > 1:
            methods += [
                Method(f"run {number}", "model", {"accuracy": values.tolist()}, title)
                for number, values in enumerate(per_run)
            ]
    keys = [clip.key for clip, has in zip(test.tokens, is_test, strict=True) if has]
    return Measured(label, "label", keys, recordings, _COLUMNS, methods)


if __name__ == "__main__":
    run_main(
        ProbeComparisonConfig,
        run_probe_comparison,
        default_config="experiments/probe_comparison/compare_probes.yaml",
        description="Compare encoders by a linear probe.",
    )
