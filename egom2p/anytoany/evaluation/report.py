"""Tables of an evaluation of any-to-any models: means with 95 % intervals, differences, and the files they lie in."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egom2p.anytoany.evaluation.questions import Scores
from egom2p.metrics.bootstrap import bootstrap_interval, paired_difference_interval
from egom2p.storage import atomic_file, save_json

_TRUE = ("true", "text")


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


def summarise(table: Table, *, seed: int) -> dict[str, Any]:
    """Plain values of a table: intervals of every row, and paired differences.

    Differences are taken within a model (true features minus each control) and between models (each minus the first).
    """
    rows = [
        {
            "model": row.model,
            "control": row.control,
            "values": {
                name: asdict(bootstrap_interval(values, np.random.default_rng(seed), groups=table.groups))
                for name, values in row.values.items()
            },
            "of_the_set": dict(row.whole or {}),
        }
        for row in table.rows
    ]
    differences = []
    for minuend, subtrahend in _pairs(table.rows):
        shared = [name for name in minuend.values if name in subtrahend.values]
        values = {
            name: asdict(
                paired_difference_interval(
                    minuend.values[name], subtrahend.values[name], np.random.default_rng(seed), groups=table.groups
                )
            )
            for name in shared
        }
        differences.append({"minuend": _title(minuend), "subtrahend": _title(subtrahend), "values": values})
    return {
        "name": table.name,
        "num_samples": len(table.keys),
        "num_groups": len(set(table.groups)),
        "rows": rows,
        "differences": differences,
    }


def write_report(
    folder: Path, tables: Sequence[Table], summaries: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
    """results.json, results.md and per_sample.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "results.json", {"about": about, "tables": list(summaries)})
    with atomic_file(folder / "results.md") as unfinished:
        unfinished.write_text(markdown(summaries) + _harness_lines(about["harness"]), encoding="utf-8")
    with atomic_file(folder / "per_sample.csv") as unfinished, unfinished.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["table", "model", "control", "sample", "group", "reference", "output", "metric", "value"])
        for table in tables:
            writer.writerows(_sample_rows(table))


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """All tables as text."""
    lines = ["# Evaluation", "", "Means with 95 % bootstrap intervals; what belongs together is drawn together.", ""]
    for table in summaries:
        lines += [f"## {table['name']}", "", f"{table['num_samples']} samples in {table['num_groups']} groups.", ""]
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


def glance(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The first metric of every set, aligned for a terminal, with the differences that each row has a part in."""
    blocks = []
    for table in summaries:
        metric = next(iter(table["rows"][0]["values"]))
        beside: dict[str, list[str]] = {}
        for row in table["differences"]:
            found, (model, other) = _cell(row["values"].get(metric), sign="+"), (row["minuend"], row["subtrahend"])
            is_control = model.rpartition(", ")[0] == other.rpartition(", ")[0]
            beside.setdefault(other if is_control else model, []).append(
                f"true minus this {found}" if is_control else f"this minus {other} {found}"
            )
        lines = [[row["model"], row["control"], _cell(row["values"].get(metric))] for row in table["rows"]]
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        title = f"{table['name']}: {metric.replace('_', ' ')}, {table['num_samples']} in {table['num_groups']} groups"
        blocks.append(title)
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            reported = "; ".join(beside.get(f"{line[0]}, {line[1]}", ()))
            blocks.append(f"  {'  '.join([*cells, reported]).rstrip()}")
    return "\n".join(blocks)


def _pairs(rows: Sequence[Scores]) -> list[tuple[Scores, Scores]]:
    """What is subtracted from what."""
    true = {row.model: row for row in rows if row.control in _TRUE}
    pairs = [(true[row.model], row) for row in rows if row.model in true and row.control not in _TRUE]
    if true:
        first, *others = true.values()
        pairs += [(row, first) for row in others]
        # A control of another model against the first model: shuffled gaze against no gaze.
        pairs += [(row, first) for row in rows if row.control not in (*_TRUE, "") and row.model != first.model]
    return pairs


def _value_table(table: Mapping[str, Any]) -> list[str]:
    names = list(dict.fromkeys(name for row in table["rows"] for name in row["values"]))
    whole = list(dict.fromkeys(name for row in table["rows"] for name in row["of_the_set"]))
    lines = [
        "| model | perception features | " + " | ".join([*names, *whole]) + " |",
        "|---" * (2 + len(names) + len(whole)) + "|",
    ]
    for row in table["rows"]:
        cells = [_cell(row["values"].get(name)) for name in names]
        cells += [f"{row['of_the_set'][name]:.3f}" if name in row["of_the_set"] else "" for name in whole]
        lines.append(f"| {row['model']} | {row['control'] or 'none'} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _difference_table(table: Mapping[str, Any]) -> list[str]:
    if not table["differences"]:
        return []
    names = list(dict.fromkeys(name for row in table["differences"] for name in row["values"]))
    lines = ["| difference | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for row in table["differences"]:
        cells = [_cell(row["values"].get(name), sign="+") for name in names]
        lines.append(f"| {row['minuend']} minus {row['subtrahend']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(interval: Mapping[str, Any] | None, *, sign: str = "") -> str:
    if interval is None or interval["mean"] is None:
        return ""
    mean = f"{interval['mean']:{sign}.3f}"
    if interval["low"] is None:
        return mean
    return f"{mean} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


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
