"""Tables of an evaluation of any-to-any models: means with 95 % intervals, differences, and the files they lie in."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.anytoany.conversations.datasets import trained_on
from egom2p.anytoany.evaluation.questions import Scores
from egom2p.anytoany.evaluation.settings import AnyToAnyEvaluationConfig
from egom2p.anytoany.language.packaged_model import stand_in_note
from egom2p.anytoany.saving import run_folder_of
from egom2p.config import to_plain
from egom2p.metrics.bootstrap import Interval, paired_difference_interval
from egom2p.metrics.measurements import Measured, Method, conclude
from egom2p.metrics.result_table import Difference, Metric, Results, ResultTable, Row, format_interval
from egom2p.storage import atomic_file, load_json, save_json

TRUE = ("true", "text")
DESCRIPTION = "Means with 95 % bootstrap intervals; what belongs together is drawn together."
_LOWER_IS_BETTER = ("nats_per_token", "nats_per_character")


@dataclass(frozen=True)
class Table:
    """One set of questions or texts.

    rows        one per model and control, on the same samples
    groups      of each sample: what is drawn together for the intervals
    references  right answers, empty where there are none
    """

    name: str
    keys: Sequence[str]
    groups: Sequence[str]
    rows: Sequence[Scores]
    references: Sequence[str] = ()


def conclude_table(table: Table, *, seed: int) -> ResultTable:
    """Intervals of every row, and paired differences; a row's label is its control, its checkpoint the model.

    Differences are taken within a model (true features minus each control) and between models (each minus the first).
    """
    names = list(dict.fromkeys(name for row in table.rows for name in row.values))
    metrics = [Metric(name, name.replace("_", " "), "", "", name not in _LOWER_IS_BETTER) for name in names]
    methods = [
        Method(
            row.control or row.model,
            "model" if row.control in TRUE else "baseline",
            row.values,
            row.model if row.control else None,
            of_the_set=dict(row.whole or {}),
        )
        for row in table.rows
    ]
    concluded = conclude(Measured(table.name, "text", table.keys, table.groups, metrics, methods), seed=seed)
    differences = []
    for minuend, subtrahend in _pairs(table.rows):
        values = {
            name: paired_difference_interval(
                minuend.values[name], subtrahend.values[name], np.random.default_rng(seed), groups=table.groups
            )
            for name in minuend.values
            if name in subtrahend.values
        }
        differences.append(Difference(_title(minuend), _title(subtrahend), values))
    return replace(concluded, differences=tuple(differences))


def write_report(folder: Path, tables: Sequence[Table], results: Results) -> None:
    """results.json, results.md and per_sample.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "results.json", results.to_plain())
    with atomic_file(folder / "results.md") as unfinished:
        text = markdown(results.tables, results.about["notes"]) + _harness_lines(results.about["harness"])
        unfinished.write_text(text, encoding="utf-8")
    with atomic_file(folder / "per_sample.csv") as unfinished, unfinished.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["table", "model", "control", "sample", "group", "reference", "output", "metric", "value"])
        for table in tables:
            writer.writerows(_sample_rows(table))


def provenance(config: AnyToAnyEvaluationConfig) -> list[str]:
    """What numbers alone do not tell: models on a stand-in, and which sets each model was trained on."""
    plain, lines = to_plain(config), []
    measured = {name: part["dataset"] for name, part in plain["questions"].items()} | plain["texts"]
    for label, about in config.models.items():
        if note := stand_in_note(about.directory):
            lines.append(f"{label}: {note}")
        run = run_folder_of(about.directory)
        if run is None or not (run / "config.json").is_file():
            lines.append(f"{label}: what it was trained on is not known here")
            continue
        seen = trained_on(load_json(run / "config.json"), measured)
        if rows := [name for name in measured if name in seen]:
            lines.append(f"{label}: TRAINING ROWS in {', '.join(rows)}, which show progress, not generalisation")
        if rows := [name for name in measured if name not in seen]:
            lines.append(f"{label}: its training read no file of {', '.join(rows)} (copies of files are not noticed)")
    return lines


def markdown(tables: Sequence[ResultTable], notes: Sequence[str]) -> str:
    """All tables as text."""
    lines = ["# Evaluation", "", DESCRIPTION, "", *(f"- {note}" for note in notes), ""]
    for table in tables:
        lines += [f"## {table.task}", "", f"{table.num_clips} samples in {table.num_recordings} groups.", ""]
        lines += _value_table(table)
        lines += _difference_table(table)
    return "\n".join(lines)


def _harness_lines(harness: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> str:
    """Numbers of the public harnesses: model -> harness -> task -> metric."""
    lines = []
    for label, packages in harness.items():
        for package, tasks in packages.items():
            lines += [f"\n## {package}: {label}\n", "| task | metric | value |", "|---|---|---|"]
            for task, found in tasks.items():
                numbers = {name: value for name, value in found.items() if isinstance(value, float)}
                lines += [f"| {task} | {name} | {value:.5g} |" for name, value in numbers.items()]
    return "\n".join([*lines, ""]) if lines else ""


def glance(tables: Sequence[ResultTable]) -> str:
    """The first metric of every set, aligned for a terminal, with the differences that each row has a part in."""
    blocks = []
    for table in tables:
        metric = table.primary
        beside: dict[str, list[str]] = {}
        for row in table.differences:
            found, (model, other) = _cell(row.values.get(metric.key), sign="+"), (row.minuend, row.subtrahend)
            is_control = model.rpartition(", ")[0] == other.rpartition(", ")[0]
            beside.setdefault(other if is_control else model, []).append(
                f"true minus this {found}" if is_control else f"this minus {other} {found}"
            )
        lines = [[*model_and_control(row), _cell(row.values.get(metric.key))] for row in table.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        blocks.append(f"{table.task}: {metric.label}, {table.num_clips} in {table.num_recordings} groups")
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            reported = "; ".join(beside.get(f"{line[0]}, {line[1]}", ()))
            blocks.append(f"  {'  '.join([*cells, reported]).rstrip()}")
    return "\n".join(blocks)


def model_and_control(row: Row) -> tuple[str, str]:
    """Who was asked, and what was shown instead; a row without a model, e.g. the commonest answer, has no control."""
    return (row.checkpoint, row.label) if row.checkpoint else (row.label, "")


def _pairs(rows: Sequence[Scores]) -> list[tuple[Scores, Scores]]:
    """What is subtracted from what."""
    true = {row.model: row for row in rows if row.control in TRUE}
    pairs = [(true[row.model], row) for row in rows if row.model in true and row.control not in TRUE]
    if true:
        first, *others = true.values()
        pairs += [(row, first) for row in others]
        # A control of another model against the first model: shuffled gaze against no gaze.
        pairs += [(row, first) for row in rows if row.control not in (*TRUE, "") and row.model != first.model]
    return pairs


def _value_table(table: ResultTable) -> list[str]:
    names = [metric.key for metric in table.metrics]
    whole = list(dict.fromkeys(name for row in table.rows for name in row.of_the_set))
    lines = [
        "| model | perception features | " + " | ".join([*names, *whole]) + " |",
        "|---" * (2 + len(names) + len(whole)) + "|",
    ]
    for row in table.rows:
        model, control = model_and_control(row)
        cells = [_cell(row.values.get(name)) for name in names]
        cells += [f"{row.of_the_set[name]:.3f}" if name in row.of_the_set else "" for name in whole]
        lines.append(f"| {model} | {control or 'none'} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _difference_table(table: ResultTable) -> list[str]:
    if not table.differences:
        return []
    names = list(dict.fromkeys(name for row in table.differences for name in row.values))
    lines = ["| difference | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for row in table.differences:
        cells = [_cell(row.values.get(name), sign="+") for name in names]
        lines.append(f"| {row.minuend} minus {row.subtrahend} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(interval: Interval | None, *, sign: str = "") -> str:
    return "" if interval is None or interval.mean is None else format_interval(interval, 3, sign=sign)


def _title(row: Scores) -> str:
    return f"{row.model}, {row.control}" if row.control else row.model


def _sample_rows(table: Table) -> list[list[Any]]:
    rows = []
    for scores in table.rows:
        for name, values in scores.values.items():
            for number, (key, group, value) in enumerate(zip(table.keys, table.groups, values, strict=True)):
                reference = table.references[number] if table.references else ""
                output = scores.outputs[number] if scores.outputs else ""
                rows.append([table.name, scores.model, scores.control, key, group, reference, output, name, value])
    return rows
