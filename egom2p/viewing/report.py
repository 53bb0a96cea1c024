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
from egom2p.viewing.shown_clips import clip_sections, task_title


@strict
class ReportConfig:
    """Folder of an evaluation; where the page goes (None: where the evaluation wrote it, else index.html there)."""

    evaluation: str  # folder of the evaluation
    page: str | None = None  # null: where the evaluation wrote it, else index.html there


def write_report(config: ReportConfig) -> Path:
    """Write the page and return its path."""
    folder = Path(config.evaluation)
    results = Results.read(folder)
    config_used, colours = results.about["config"], checkpoint_colours(results)
    clips = clip_sections(folder / "shown", results, colours)
    sections = [("clips", "Held-out clips", clips)] if clips else []
    sections.append(("glance", "At a glance", _glance(results, colours)))
    training = _training_section(config_used.get("training_runs") or {})
    if training:
        sections.append(("training", "Training", training))
    sections += [
        (f"task-{number}", task_title(table), _task_section(table, colours))
        for number, table in enumerate(results.tables)
    ]
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


def _glance(results: Results, colours: Mapping[str, str]) -> str:
    """Per task: the best row of every checkpoint with its own ceiling and what it lost in, and the best baseline."""
    cards = []
    for table in results.tables:
        metric = table.primary
        parts = [f"<h3>{escape(task_title(table))}</h3>", f'<div class="small">{escape(metric.title)}</div>']
        for label, colour in colours.items():
            row = table.best_row("model", metric, checkpoint=label)
            if row is not None:
                parts.append(f'<div class="one">{_card_of_checkpoint(table, row, colour)}</div>')
        baseline = table.best_row("baseline", metric)
        if baseline:
            lost_to = f"best trivial baseline: {_number(baseline, metric)} ({escape(baseline.label)})"
            parts.append(f'<div class="small">{lost_to}</div>')
        cards.append(page.card("".join(parts)))
    lead = page.details(
        "how to read this",
        page.note(
            "For every task the better of each checkpoint's estimators. Better or worse means that the 95 % interval "
            "of the paired difference to the best trivial baseline leaves out zero (bootstrap over recordings). The "
            "ceiling is what the checkpoint's own tokenizer reaches when it encodes and decodes the truth."
        ),
    )
    return f'<div class="cards">{"".join(cards)}</div>{lead}'


def _card_of_checkpoint(table: ResultTable, row: Row, colour: str) -> str:
    metric = table.primary
    median, ceiling = row.values[metric.key].median, table.best_row("ceiling", metric, checkpoint=row.checkpoint)
    below = [f"median {median:.{metric.decimals}f}"] if median is not None else []
    below += [f"its own ceiling {_number(ceiling, metric)}"] if ceiling else []
    parts = [
        f"<div>{page.swatch(colour)}<b>{escape(row.checkpoint or '')}</b></div>",
        f'<div class="big">{_plain(row, metric)} <span class="small">{escape(metric.unit)}</span></div>',
        f'<div class="small">{"; ".join(below)}</div>' if below else "",
        _verdict_line(row.against_baseline.get(metric.key)),
    ]
    for other in table.metrics:
        against = row.against_baseline.get(other.key)
        if other.key != metric.key and against is not None and against.verdict != "better":
            sign, word = {"worse": ("✗", "lost"), "tie": ("≈", "undecided")}[against.verdict]
            rival = next((one for one in table.rows if one.kind == "baseline" and one.label == against.baseline), None)
            found = f", {_number(row, other)} against {_number(rival, other)}" if rival else ""
            parts.append(
                f'<div class="verdict {against.verdict}">{sign} {word} in {escape(other.title)}'
                f'<span class="small">{found} of {escape(against.baseline)}</span></div>'
            )
    return "".join([*parts, f'<div class="small">{escape(row.label)}</div>'])


def _number(row: Row, metric: Metric) -> str:
    return f"{_plain(row, metric)} {escape(metric.unit)}".strip()


def _plain(row: Row, metric: Metric) -> str:
    return f"{row.mean(metric):.{metric.decimals}f}"


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
    content += page.details("all metrics", page.table(["method", *[metric.title for metric in table.metrics]], rows))
    more = _list(table.sentences()) + page.note(
        f"{table.counted_clips}, the same for every row; {protocol}. Failures: {len(failures)}."
    )
    content += page.details("comparisons, token losses, protocol", more)
    if table.uncertainty:
        calibration = page.figure(
            plots.calibration_plot(table.uncertainty, SCORING[table.quantity].spread_unit, colours),
            "Left: how often intervals of the samples hold the truth; below the dashed line the model is too sure of "
            "itself. Right: spread and error, one dot per clip; dashed: as large as each other.",
        )
        content += page.details(
            "does the model know what it does not know?", calibration + _list(map(str, table.uncertainty))
        )
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
        curves = training_curves(entries)
        if not curves:
            continue
        last = entries[-1]
        content += f"<h3>{escape(label)}</h3>" + page.card(page.figure(plots.loss_curves(curves, "clips seen")))
        content += page.note(
            f"{last['step']} steps, {last['clips']} clips, {last['seconds']:.0f} s of training. Dark: loss on held-out "
            "clips; light: on what a training step masked, which is another mixture of tasks; dashed: what a model "
            "that ignores its input can reach on the held-out clips (the unigram baseline per position)."
        )
    return content


def training_curves(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name -> {x clips, y nats, baseline} of the losses that the log's evaluations hold, and `train`.

    train   (clips, nats) of every logged step, of the same modality
    """
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
    for name, curve in curves.items():
        loss = f"loss/{name.rpartition(': ')[2]}"
        steps = [entry for entry in entries if entry.get("kind") == "train" and entry.get(loss) is not None]
        if steps:
            curve["train"] = ([entry["clips"] for entry in steps], [entry[loss] for entry in steps])
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
    return page.details("stages, seconds, configuration", page.card(content))


if __name__ == "__main__":
    run_main(
        ReportConfig,
        write_report,
        default_config="default/egom2p/evaluation/report.yaml",
        description="Write the page of an evaluation.",
    )
