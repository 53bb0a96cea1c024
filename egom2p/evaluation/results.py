"""Results of an evaluation: what one number is, the tables, and the files they are written to."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.metrics.bootstrap import Interval, bootstrap_interval, paired_difference_interval
from egom2p.metrics.perceptual import STABLE_VIDEOS
from egom2p.storage import atomic_file, save_json

MethodKind = Literal["baseline", "ceiling", "bound", "model"]


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    key        unique in its task, e.g. `abs_rel/median`
    protocol   how it is measured, in words: alignment, unit, over what it is averaged
    is_primary used for the one-line verdict of a task
    """

    key: str
    label: str
    unit: str
    protocol: str
    higher_is_better: bool = False
    is_primary: bool = False
    decimals: int = 3


@dataclass(frozen=True)
class Method:
    """One row of a table: per-clip values of every metric (None where a clip has no value).

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
class TaskResult:
    """All methods of one task on the same clips.

    recordings     of each clip: clips of one are not independent, so intervals draw whole recordings
    stream         of the clips that estimates are compared with
    token_losses   plain dicts, one per checkpoint
    uncertainty    plain dicts as `metrics.calibration.Calibration`, one per checkpoint and estimator of several samples
    """

    task: str
    quantity: str
    clip_keys: Sequence[str]
    recordings: Sequence[str]
    metrics: Sequence[Metric]
    methods: Sequence[Method]
    token_losses: Sequence[Mapping[str, Any]] = ()
    uncertainty: Sequence[Mapping[str, Any]] = ()
    stream: str = ""


def summarise(result: TaskResult, *, seed: int) -> dict[str, Any]:
    """Means with 95 % intervals, and for every ceiling and model how it stands to the best baseline of each metric."""
    rows = []
    for method in result.methods:
        intervals = {
            metric.key: bootstrap_interval(
                method.values[metric.key], np.random.default_rng(seed), groups=result.recordings
            )
            for metric in result.metrics
            if metric.key in method.values
        }
        rows.append(
            {
                "label": method.label,
                "kind": method.kind,
                "checkpoint": method.checkpoint,
                "values": {key: asdict(interval) for key, interval in intervals.items()},
                "against_baseline": {},
                "failures": dict(method.failures),
                "of_the_set": dict(method.of_the_set),
                "against_checkpoint": None,
            }
        )
    for metric in result.metrics:
        best = best_baseline(result, metric)
        if best is None:
            continue
        for method, row in zip(result.methods, rows, strict=True):
            if method.kind == "model" and metric.key in method.values:
                row["against_baseline"][metric.key] = _compare(method, best, metric, result.recordings, seed)
    for method, row in zip(result.methods, rows, strict=True):
        first = _of_first_checkpoint(result, method)
        if first is not None:
            compared = {
                metric.key: _compare(method, first, metric, result.recordings, seed) for metric in result.metrics
            }
            row["against_checkpoint"] = {"checkpoint": first.checkpoint, "metrics": compared}
    return {
        "task": result.task,
        "quantity": result.quantity,
        "num_clips": len(result.clip_keys),
        "num_recordings": len(set(result.recordings)),
        "stream": result.stream,
        "metrics": [asdict(metric) for metric in result.metrics],
        "rows": rows,
        "token_losses": [dict(loss) for loss in result.token_losses],
        "uncertainty": [dict(found) for found in result.uncertainty],
    }


def best_baseline(result: TaskResult, metric: Metric) -> Method | None:
    """The trivial baseline with the best mean of this metric."""
    scored = []
    for method in result.methods:
        known = [value for value in method.values.get(metric.key, ()) if value is not None]
        if method.kind == "baseline" and known:
            scored.append((float(np.mean(known)), method))
    if not scored:
        return None
    choose = max if metric.higher_is_better else min
    return choose(scored, key=lambda pair: pair[0])[1]


def _of_first_checkpoint(result: TaskResult, method: Method) -> Method | None:
    """The same estimator of the checkpoint that was named first; None for that checkpoint itself."""
    models = [other for other in result.methods if other.kind == "model"]
    if method.kind != "model" or method.checkpoint == models[0].checkpoint:
        return None
    same = (other for other in models if other.checkpoint == models[0].checkpoint and other.label == method.label)
    return next(same, None)


def _compare(method: Method, baseline: Method, metric: Metric, recordings: Sequence[str], seed: int) -> dict[str, Any]:
    """Paired difference to the baseline; better or worse only when its 95 % interval leaves out 0."""
    difference = paired_difference_interval(
        method.values[metric.key], baseline.values[metric.key], np.random.default_rng(seed), groups=recordings
    )
    return {
        "baseline": baseline.label,
        "difference": asdict(difference),
        "verdict": verdict(difference, metric.higher_is_better),
    }


def verdict(difference: Interval, higher_is_better: bool) -> str:
    """`better`, `worse`, or `tie` when the interval of the difference holds 0 (or is unknown)."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "tie"
    return "better" if (difference.low > 0) == higher_is_better else "worse"


def write_results(folder: Path, summary: Mapping[str, Any], results: Sequence[TaskResult]) -> None:
    """results.json, results.md and per_clip.csv below `folder`."""
    save_json(folder / "results.json", dict(summary))
    with atomic_file(folder / "results.md") as unfinished:
        Path(unfinished).write_text(markdown(summary), encoding="utf-8")
    with (
        atomic_file(folder / "per_clip.csv") as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["task", "method", "kind", "checkpoint", "clip", "metric", "value"])
        for result in results:
            for method in result.methods:
                for key, values in method.values.items():
                    for clip_key, value in zip(result.clip_keys, values, strict=True):
                        cell = "" if value is None else repr(float(value))
                        writer.writerow(
                            [result.task, method.label, method.kind, method.checkpoint or "", clip_key, key, cell]
                        )


_MARKS = {"better": " ✓", "worse": " ✗", "tie": " ≈"}


def markdown(summary: Mapping[str, Any]) -> str:
    """The tables as a Markdown page."""
    lines = ["# Evaluation", "", str(summary["description"]), ""]
    for task in summary["tasks"]:
        metrics = task["metrics"]
        lines += [f"## {task['task']}: {counted_clips(task)}", ""]
        lines += ["| method | kind | " + " | ".join(column_title(metric) for metric in metrics) + " |"]
        lines += ["|---|---|" + "---|" * len(metrics)]
        for row in task["rows"]:
            cells = [_cell(row, metric) for metric in metrics]
            lines.append(f"| {row_title(row)} | {row['kind']} | " + " | ".join(cells) + " |")
        lines += [
            "",
            "Columns: " + "; ".join(f"{metric['label']}: {metric['protocol']}" for metric in metrics) + ".",
            "",
        ]
        lines += [medians_sentence(task), ""]
        lines += [f"- {sentence}" for sentence in comparison_sentences(task)]
        for loss in task["token_losses"]:
            lines.append(f"- {token_loss_sentence(loss)}")
        lines += [f"- {uncertainty_sentence(found)}" for found in task["uncertainty"]]
        lines += [f"- {sentence}" for sentence in set_sentences(task)]
        failures = sum(len(row["failures"]) for row in task["rows"])
        lines += ["", f"Clips that could not be scored, over all methods: {failures}.", ""]
    lines += [
        "Brackets are 95 % bootstrap intervals; clips of one recording are drawn together. ✓ / ✗: better / worse than "
        "the best trivial baseline of that column (95 % interval of the paired difference leaves out 0); ≈: no "
        "difference shown.",
        "",
    ]
    return "\n".join(lines)


def counted_clips(task: Mapping[str, Any]) -> str:
    return f"{task['num_clips']} held-out clips of {task['num_recordings']} recordings"


def row_title(row: Mapping[str, Any]) -> str:
    return f"{row['checkpoint']}: {row['label']}" if row["checkpoint"] else str(row["label"])


def column_title(metric: Mapping[str, Any]) -> str:
    arrow = "↑" if metric["higher_is_better"] else "↓"
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['label']}{unit} {arrow}"


def _cell(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    value = row["values"].get(metric["key"])
    if value is None or value["mean"] is None:
        return "n/a"
    text = format_interval(value, metric["decimals"])
    against = row["against_baseline"].get(metric["key"])
    missing = f" ({value['num_missing']} n/a)" if value["num_missing"] else ""
    return text + missing + (_MARKS[against["verdict"]] if against else "")


def format_interval(value: Mapping[str, Any], decimals: int) -> str:
    """`0.123 [0.110, 0.140]`; without brackets where the spread is unknown."""
    text = f"{value['mean']:.{decimals}f}"
    if value["low"] is not None:
        text += f" [{value['low']:.{decimals}f}, {value['high']:.{decimals}f}]"
    return text


def token_loss_sentence(loss: Mapping[str, Any]) -> str:
    """One line on how the model's token loss stands to what a model that ignores its input can reach."""
    text = (
        f"{loss['checkpoint']}: token loss of {loss['target']} {format_interval(loss['nats'], 3)} nats, "
        f"accuracy {loss['accuracy']['mean']:.1%}; uniform {loss['uniform_nats']:.3f}"
    )
    if loss["unigram_nats"] is None:
        return text + f"; unigram baseline per position not known ({loss['unigram_note']})"
    difference = loss["nats"]["mean"] - loss["unigram_nats"]
    side = "below" if difference < 0 else "above"
    return text + f"; unigram baseline per position {loss['unigram_nats']:.3f}: {abs(difference):.3f} {side} it"


def uncertainty_sentence(found: Mapping[str, Any]) -> str:
    """One line on whether the spread of the samples tells the error."""
    level, covered = found["levels"][-1], found["coverage"][-1]
    text = (
        f"{found['checkpoint']}, {found['estimator']}: the range of {found['num_samples']} samples should hold "
        f"{level:.0%} of the true values, it holds {covered:.0%}"
    )
    if found["correlation"] is None:
        return text
    return text + f"; rank correlation of spread and error over clips {found['correlation']:.2f}"


def set_sentences(task: Mapping[str, Any]) -> list[str]:
    """One line per metric of all clips together; there is no interval, because clips have no value of their own."""
    names = dict.fromkeys(name for row in task["rows"] for name in row["of_the_set"])
    sentences = []
    for name in names:
        values = [(row_title(row), row["of_the_set"][name]) for row in task["rows"] if name in row["of_the_set"]]
        told = ", ".join(f"{title} {value:.2f}" for title, value in values)
        sentences.append(f"{name} over {task['num_clips']} clips (lower is better): {told}")
    if names and task["num_clips"] < STABLE_VIDEOS:
        sentences.append(f"with fewer than {STABLE_VIDEOS} clips such a distance moves more by chance than by quality")
    return sentences


def medians_sentence(task: Mapping[str, Any]) -> str:
    """The primary metric's median over clips, which a few lost clips do not carry away."""
    metric = next((metric for metric in task["metrics"] if metric["is_primary"]), task["metrics"][0])
    values = [(row_title(row), row["values"].get(metric["key"], {}).get("median")) for row in task["rows"]]
    told = ", ".join(f"{title} {value:.{metric['decimals']}f}" for title, value in values if value is not None)
    return f"Medians over clips of {metric['label']}: {told}."


def comparison_sentences(task: Mapping[str, Any]) -> list[str]:
    """How every further checkpoint stands to the one named first, clip by clip, in the primary metric."""
    metric = next((metric for metric in task["metrics"] if metric["is_primary"]), task["metrics"][0])
    sentences = []
    for row in task["rows"]:
        if row["against_checkpoint"] is None:
            continue
        found = row["against_checkpoint"]["metrics"][metric["key"]]
        if found["difference"]["mean"] is None:
            continue
        words = {"tie": "no difference shown"}.get(found["verdict"], found["verdict"])
        difference = format_interval(found["difference"], metric["decimals"])
        first = row["against_checkpoint"]["checkpoint"]
        sentences.append(f"{row_title(row)} minus {first}: {column_title(metric)} {difference}, {words}")
    return sentences
