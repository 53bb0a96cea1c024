"""Which of several encoders knows more: `python -m experiments.probe_comparison.compare_probes --config FILE`.

The linear probe of `probe.py` on encoders that read the same tokens, each trained several times (seeds): a clip's value
is the share of those runs that get it right, and differences to the encoder named first are paired clip by clip.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from egom2p.config import run_main, strict, to_plain
from egom2p.evaluation.linear_probe import Features
from egom2p.evaluation.probe import LabelProbe, ProbeClips, ProbeDataConfig, bag_features, pooled_features, read_splits
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.jobs.progress import say
from egom2p.metrics.measurements import Measured, Method, write_results
from egom2p.metrics.result_table import Metric
from experiments.jepa.feature_spread import feature_spread

_COLUMNS = (Metric("accuracy", "accuracy", "", "share of clips with the right label, mean over runs", True, True),)


@strict
class ProbeComparisonConfig(ProbeDataConfig):
    """`ProbeDataConfig` has the other keys.

    encoders   label -> model directories, runs that differ in their seed alone; of as many runs each
    layer      of the encoders that is probed; None: their output
    """

    encoders: dict[str, tuple[str, ...]]
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {label: len(runs) for label, runs in self.encoders.items()}
        if not counts or len(set(counts.values())) > 1 or not all(counts.values()):
            raise ValueError(f"encoders need the same number of runs each, at least one, got {counts}")


def run_probe_comparison(config: ProbeComparisonConfig) -> Path:
    """Fit and score; writes results.json, results.md and per_clip.csv; returns the folder.

    Raises ValueError when a recording is in both splits, TokenizerMismatch for encoders of other tokens.
    """
    first = load_checkpoint(next(iter(config.encoders.values()))[0], device=config.device)
    names, train, test = read_splits(first, config)
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
    probe = LabelProbe(label, train, test, config)
    bag = Method("tokens, how often each", "baseline", {"accuracy": probe.is_right(*bags)[0]})
    methods = [probe.commonest(), bag]
    for title, found in runs.items():
        per_run = [probe.is_right(*features)[0] for features in found]
        methods.append(Method("mean of runs", "model", {"accuracy": np.mean(per_run, axis=0).tolist()}, title))
        if len(per_run) > 1:
            methods += [
                Method(f"run {number}", "model", {"accuracy": values}, title) for number, values in enumerate(per_run)
            ]
    return Measured(label, "label", probe.keys, probe.recordings, _COLUMNS, methods)


if __name__ == "__main__":
    run_main(
        ProbeComparisonConfig,
        run_probe_comparison,
        default_config="experiments/probe_comparison/compare_probes.yaml",
        description="Compare encoders by a linear probe.",
    )
