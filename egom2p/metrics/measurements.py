"""From a value per clip to a table: means with 95 % intervals, and how every row stands to the others."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.metrics.bootstrap import Interval, bootstrap_interval, paired_difference_interval
from egom2p.metrics.result_table import (
    CheckpointComparison,
    Comparison,
    Drawn,
    MethodKind,
    Metric,
    Results,
    ResultTable,
    Row,
    TokenLoss,
    Uncertainty,
    common_from_plain,
)
from egom2p.storage import atomic_file


@dataclass(frozen=True)
class Method:
    """Per-clip values of every metric (None where a clip has no value): a row before anything is concluded.

    label       what made the estimate
    kind        baseline (ignores the input), ceiling (encode-decode of the truth), bound (best any method can do),
                model
    checkpoint  label of the checkpoint, None for baselines
    failures    clip key -> why it could not be scored
    of_the_set  metrics of all clips together, e.g. `fvd`
    """

    label: str
    kind: MethodKind
    values: Mapping[str, Sequence[float | None]]
    checkpoint: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    of_the_set: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """All methods of one task on the same clips.

    recordings     of each clip: clips of one are not independent, so intervals draw whole recordings
    drawn          or clips, where recordings are too few for an interval: it then speaks of these recordings only
    stream         of the clips that estimates are compared with
    """

    task: str
    quantity: str
    clip_keys: Sequence[str]
    recordings: Sequence[str]
    metrics: Sequence[Metric]
    methods: Sequence[Method]
    token_losses: Sequence[TokenLoss] = ()
    uncertainty: Sequence[Uncertainty] = ()
    stream: str = ""
    drawn: Drawn = "recordings"

    @property
    def groups(self) -> Sequence[str]:
        """What each clip is drawn together with."""
        return self.recordings if self.drawn == "recordings" else self.clip_keys

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Measured":
        """From the values of `asdict`."""
        return cls(**common_from_plain(found) | {"methods": tuple(Method(**method) for method in found["methods"])})


def write_results(
    folder: Path, description: str, about: Mapping[str, Any], measured: Sequence[Measured], *, seed: int
) -> Results:
    """Conclude, and write results.json, results.md and per_clip.csv below `folder`."""
    results = Results(description, tuple(conclude(found, seed=seed) for found in measured), about)
    results.write(folder)
    with (
        atomic_file(folder / "per_clip.csv") as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["task", "method", "kind", "checkpoint", "clip", "metric", "value"])
        for found in measured:
            writer.writerows(_clip_lines(found))
    return results


def conclude(measured: Measured, *, seed: int) -> ResultTable:
    """Means with 95 % intervals, and for every model how it stands to the best baseline of each metric."""
    return ResultTable(
        task=measured.task,
        quantity=measured.quantity,
        num_clips=len(measured.clip_keys),
        num_recordings=len(set(measured.recordings)),
        stream=measured.stream,
        drawn=measured.drawn,
        metrics=tuple(measured.metrics),
        rows=tuple(_row(measured, method, seed) for method in measured.methods),
        token_losses=tuple(measured.token_losses),
        uncertainty=tuple(measured.uncertainty),
    )


def verdict(difference: Interval, higher_is_better: bool) -> Literal["better", "worse", "tie"]:
    """`better`, `worse`, or `tie` when the interval of the difference holds 0 (or is unknown)."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "tie"
    return "better" if (difference.low > 0) == higher_is_better else "worse"


def best_baseline(measured: Measured, metric: Metric) -> Method | None:
    """The trivial baseline with the best mean of this metric."""
    scored = []
    for method in measured.methods:
        known = [value for value in method.values.get(metric.key, ()) if value is not None]
        if method.kind == "baseline" and known:
            scored.append((float(np.mean(known)), method))
    return (max if metric.higher_is_better else min)(scored, key=lambda pair: pair[0], default=(0, None))[1]


def _row(measured: Measured, method: Method, seed: int) -> Row:
    """Every interval draws from a generator of its own, so that a row is the same whatever stands beside it."""
    metrics = [metric for metric in measured.metrics if metric.key in method.values]
    values = {
        metric.key: bootstrap_interval(method.values[metric.key], np.random.default_rng(seed), groups=measured.groups)
        for metric in metrics
    }
    against = {}
    if method.kind == "model":
        for metric in metrics:
            best = best_baseline(measured, metric)
            if best is not None:
                against[metric.key] = _compare(method, best, metric, measured.groups, seed)
    first, compared = _of_first_checkpoint(measured, method), None
    if first is not None:
        shared = [metric for metric in metrics if metric.key in first.values]
        found = {metric.key: _compare(method, first, metric, measured.groups, seed) for metric in shared}
        compared = CheckpointComparison(first.checkpoint or "", found)
    return Row(
        method.label,
        method.kind,
        method.checkpoint,
        values,
        against,
        dict(method.failures),
        dict(method.of_the_set),
        compared,
    )


def _of_first_checkpoint(measured: Measured, method: Method) -> Method | None:
    """The same estimator of the checkpoint that was named first; None for that checkpoint itself."""
    models = [other for other in measured.methods if other.kind == "model"]
    if method.kind != "model" or method.checkpoint == models[0].checkpoint:
        return None
    same = (other for other in models if other.checkpoint == models[0].checkpoint and other.label == method.label)
    return next(same, None)


def _compare(method: Method, other: Method, metric: Metric, groups: Sequence[str], seed: int) -> Comparison:
    difference = paired_difference_interval(
        method.values[metric.key], other.values[metric.key], np.random.default_rng(seed), groups=groups
    )
    return Comparison(other.label, difference, verdict(difference, metric.higher_is_better))


def _clip_lines(measured: Measured) -> Iterator[list[str]]:
    for method in measured.methods:
        about = [measured.task, method.label, method.kind, method.checkpoint or ""]
        for key, values in method.values.items():
            for clip_key, value in zip(measured.clip_keys, values, strict=True):
                yield [*about, clip_key, key, "" if value is None else repr(float(value))]
