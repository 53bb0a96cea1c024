"""The page of an evaluation: `python -m egom2p.viewing.report evaluation=FOLDER [page=FILE]`.

Reads results.json, shown/*.npz and the logs of the training runs that the evaluation names; writes one HTML file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from egom2p.config import run_main, strict
from egom2p.evaluation.quantities import SCORING
from egom2p.metrics.result_table import Comparison, Metric, Results, ResultTable, Row
from egom2p.storage import load_json
from egom2p.viewing import page, plots
from egom2p.viewing.shown_clips import clip_sections


@strict
class ReportConfig:
    """Folder of an evaluation; where the page goes (None: where the evaluation wrote it, else index.html there)."""

    evaluation: str
    page: str | None = None


def write_report(config: ReportConfig) -> Path:
    """Write the page and return its path."""
    folder = Path(config.evaluation)
    results = Results.read(folder)
    config_used, colours = results.about["config"], checkpoint_colours(results)
    sections = [("glance", "At a glance", _glance(results))]
    sections += [
        (f"task-{number}", _task_title(table), _task_section(table, colours))
        for number, table in enumerate(results.tables)
    ]
    training = _training_section(config_used.get("training_runs") or {})
    if training:
        sections.append(("training", "Training", training))
    clips = clip_sections(folder / "shown", results, colours)
    if clips:
        sections.append(("clips", "Held-out clips", clips))
    sections.append(("run", "What was run", _run_section(results)))
    html = page.document(
        config_used.get("title", "EgoM2P evaluation"),
        lead=results.description,
        facts=_facts(results),
        sections=sections,
    )
    target = config.page or config_used.get("page") or folder / "index.html"
    return page.save_page(target, html)


def checkpoint_colours(results: Results) -> dict[str, str]:
    """One colour per checkpoint, the same on the whole page."""
    return dict(zip(results.about["checkpoints"], plots.COLOURS * 10, strict=False))


def _facts(results: Results) -> list[str]:
    about = results.about
    hardware = about["hardware"]
    largest = max(results.tables, key=lambda table: table.num_clips, default=None)
    machine = hardware["accelerator"] or f"CPU, {hardware['threads']} threads"
    facts = [*([largest.counted_clips] if largest else []), machine, f"torch {hardware['torch']}"]
    for label, checkpoint in about["checkpoints"].items():
        facts.append(f"{label}: {checkpoint['num_parameters'] / 1e6:.1f} M parameters")
    return [*facts, f"evaluated in {sum(about['seconds'].values()):.0f} s"]


def _task_title(table: ResultTable) -> str:
    return table.task.replace("->", " → ").replace("2", " → ", 0 if "->" in table.task else 1)


def _glance(results: Results) -> str:
    """Per task: the best row of every checkpoint, the best baseline, the ceiling."""
    cards = []
    for table in results.tables:
        metric = table.primary
        parts = [f"<h3>{escape(_task_title(table))}</h3>"]
        for label in results.about["checkpoints"]:
            row = table.best_row("model", metric, checkpoint=label)
            if row is None:
                continue
            parts.append(f'<div class="small">{escape(row.title)}</div>')
            verdict = _verdict_line(row.against_baseline.get(metric.key))
            parts.append(f'<div class="big">{_number(row, metric)}</div>{verdict}')
        baseline, ceiling = table.best_row("baseline", metric), table.best_row("ceiling", metric)
        lines = [f"best trivial baseline {_number(baseline, metric)} ({baseline.label})"] if baseline else []
        lines += [f"tokenizer ceiling {_number(ceiling, metric)}"] if ceiling else []
        parts.append(f'<p class="small">{escape(metric.title)}<br>{"<br>".join(lines)}</p>')
        cards.append(page.card("".join(parts)))
    lead = page.note(
        "For every task the better of each checkpoint's estimators. Better or worse means that the 95 % interval of "
        "the paired difference to the best trivial baseline leaves out zero (bootstrap over recordings)."
    )
    return lead + f'<div class="cards">{"".join(cards)}</div>'


def _number(row: Row, metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{row.mean(metric):.{metric.decimals}f}{escape(unit)}"


_VERDICT_WORDS = {
    "better": "✓ better than every trivial baseline",
    "worse": "✗ worse than the best trivial baseline",
    "tie": "≈ no difference to the best trivial baseline shown",
}


def _verdict_line(against: Comparison | None) -> str:
    if against is None:
        return '<div class="verdict tie">no baseline to compare with</div>'
    return f'<div class="verdict {against.verdict}">{_VERDICT_WORDS[against.verdict]}</div>'


def _task_section(table: ResultTable, colours: Mapping[str, str]) -> str:
    rows = [
        (row.kind, [_label_cell(row), *[_value_cell(row, metric) for metric in table.metrics]]) for row in table.rows
    ]
    protocol = "; ".join(f"{metric.label}: {metric.protocol}" for metric in table.metrics)
    failures = [f"{row.title}, {key}: {reason}" for row in table.rows for key, reason in row.failures.items()]
    content = page.figure(plots.forest_plot(table, colours))
    content += page.table(["method", *[metric.title for metric in table.metrics]], rows)
    content += _list(table.sentences()) + page.note(
        f"{table.counted_clips}, the same for every row; {protocol}. Failures: {len(failures)}."
    )
    if table.uncertainty:
        content += page.figure(
            plots.calibration_plot(table.uncertainty, SCORING[table.quantity].spread_unit, colours),
            "Left: how often intervals of the samples hold the truth; below the dashed line the model is too sure of "
            "itself. Right: spread and error, one dot per clip; dashed: as large as each other.",
        )
        content += _list(map(str, table.uncertainty))
    if failures:
        content += page.details("failures", "<br>".join(escape(line) for line in failures))
    return page.card(content)


def _list(sentences: Iterable[str]) -> str:
    return f"<ul class='small'>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _label_cell(row: Row) -> str:
    return f'{escape(row.title)}<span class="kind">{escape(row.kind)}</span>'


def _value_cell(row: Row, metric: Metric) -> str:
    value = row.values.get(metric.key)
    if value is None or value.mean is None:
        return "n/a"
    text = f"{value.mean:.{metric.decimals}f}"
    against = row.against_baseline.get(metric.key)
    if against is not None:
        mark = {"better": "✓", "worse": "✗", "tie": "≈"}[against.verdict]
        title = escape(f"{against.verdict}, against {against.baseline}")
        text += f' <span class="verdict {against.verdict}" title="{title}">{mark}</span>'
    if value.low is not None:
        text += f'<br><span class="interval">{value.low:.{metric.decimals}f} – {value.high:.{metric.decimals}f}</span>'
    if value.num_missing:
        text += f'<br><span class="interval">{value.num_missing} clips n/a</span>'
    return text


def _training_section(runs: Mapping[str, str]) -> str:
    content = ""
    for label, folder in runs.items():
        log = Path(folder) / "log.jsonl"
        if not log.is_file():
            raise ValueError(f"{log}: no training log; training_runs names the folder of a run")
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        curves = validation_curves(entries)
        if not curves:
            continue
        last = entries[-1]
        content += f"<h3>{escape(label)}</h3>" + page.note(
            f"{last['step']} steps, {last['clips']} clips, {last['seconds']:.0f} s of training. Validation loss; "
            "dashed: what a model that ignores its input can reach (the unigram baseline per position)."
        )
        content += page.card(page.figure(plots.loss_curves(curves, "clips seen")))
    return content


def validation_curves(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name -> {x clips, y nats, baseline} of the losses that the log's evaluations hold."""
    curves: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.get("kind") != "evaluation":
            continue
        for name, value in entry.items():
            baseline = entry.get(f"{name}/unigram_baseline")
            if "/" in name and baseline is not None and value is not None:
                curve = curves.setdefault(name.replace("/", ": "), {"x": [], "y": [], "baseline": baseline})
                curve["x"].append(entry["clips"])
                curve["y"].append(value)
    return curves


def _run_section(results: Results) -> str:
    about = results.about
    stage_file = about["config"].get("stage_times")
    content = ""
    if stage_file and Path(stage_file).is_file():
        stages = load_json(Path(stage_file))
        rows = [("", [escape(name), f"{value:.1f}"]) for name, value in stages.items()]
        content += "<h3>Stages</h3>" + page.table(["stage", "seconds"], rows)
    content += "<h3>Evaluation</h3>" + page.table(
        ["part", "seconds"], [("", [escape(name), f"{value:.1f}"]) for name, value in about["seconds"].items()]
    )
    plain = json.dumps({"config": about["config"], "hardware": about["hardware"]}, indent=1)
    content += page.details("full configuration", f"<pre>{escape(plain)}</pre>")
    return page.card(content)


if __name__ == "__main__":
    run_main(
        ReportConfig,
        write_report,
        default_config="default/egom2p/evaluation/report.yaml",
        description="Write the page of an evaluation.",
    )
