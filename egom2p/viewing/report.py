"""The page of an evaluation: `python -m egom2p.viewing.report evaluation=FOLDER [page=FILE]`.

Reads results.json, shown/*.npz and the logs of the training runs that the evaluation names; writes one HTML file.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from egom2p.config import run_main, strict
from egom2p.evaluation import spreads
from egom2p.evaluation.results import (
    column_title,
    comparison_sentences,
    counted_clips,
    medians_sentence,
    row_title,
    set_sentences,
    token_loss_sentence,
    uncertainty_sentence,
)
from egom2p.storage import load_json
from egom2p.viewing import page, plots
from egom2p.viewing.shown_clips import clip_sections


@strict
class ReportConfig:
    """Folder of an evaluation; where the page goes (None: where the evaluation said, else index.html in the folder)."""

    evaluation: str
    page: str | None = None


def write_report(config: ReportConfig) -> Path:
    """Write the page and return its path."""
    folder = Path(config.evaluation)
    summary = load_json(folder / "results.json")
    colours = checkpoint_colours(summary)
    sections = [("glance", "At a glance", _glance(summary))]
    sections += [
        (f"task-{number}", _task_title(task), _task_section(task, colours))
        for number, task in enumerate(summary["tasks"])
    ]
    training = _training_section(summary["config"].get("training_runs") or {})
    if training:
        sections.append(("training", "Training", training))
    clips = clip_sections(folder / "shown", summary, colours)
    if clips:
        sections.append(("clips", "Held-out clips", clips))
    sections.append(("run", "What was run", _run_section(summary)))
    html = page.document(
        summary["config"].get("title", "EgoM2P evaluation"),
        lead=summary["description"],
        facts=_facts(summary),
        sections=sections,
    )
    target = config.page or summary["config"].get("page") or folder / "index.html"
    return page.save_page(target, html)


def checkpoint_colours(summary: Mapping[str, Any]) -> dict[str, str]:
    """One colour per checkpoint, the same on the whole page."""
    return dict(zip(summary["checkpoints"], plots.COLOURS * 10, strict=False))


def _facts(summary: Mapping[str, Any]) -> list[str]:
    hardware = summary["hardware"]
    largest = max(summary["tasks"], key=lambda task: task["num_clips"], default=None)
    machine = hardware["accelerator"] or f"CPU, {hardware['threads']} threads"
    facts = [*([counted_clips(largest)] if largest else []), machine, f"torch {hardware['torch']}"]
    for label, checkpoint in summary["checkpoints"].items():
        facts.append(f"{label}: {checkpoint['num_parameters'] / 1e6:.1f} M parameters")
    return [*facts, f"evaluated in {sum(summary['seconds'].values()):.0f} s"]


def _primary(task: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((metric for metric in task["metrics"] if metric["is_primary"]), task["metrics"][0])


def _task_title(task: Mapping[str, Any]) -> str:
    return task["task"].replace("->", " → ").replace("2", " → ", 0 if "->" in task["task"] else 1)


def _glance(summary: Mapping[str, Any]) -> str:
    """Per task: the best row of every checkpoint, the best baseline, the ceiling."""
    cards = []
    for task in summary["tasks"]:
        metric = _primary(task)
        parts = [f"<h3>{escape(_task_title(task))}</h3>"]
        for label in summary["checkpoints"]:
            row = _best_row([r for r in task["rows"] if r["checkpoint"] == label and r["kind"] == "model"], metric)
            if row is None:
                continue
            against = row["against_baseline"].get(metric["key"])
            parts.append(f'<div class="small">{escape(row_title(row))}</div>')
            parts.append(f'<div class="big">{_number(row, metric)}</div>{_verdict_line(against)}')
        baseline = _best_row([r for r in task["rows"] if r["kind"] == "baseline"], metric)
        ceiling = _best_row([r for r in task["rows"] if r["kind"] == "ceiling"], metric)
        lines = [f"best trivial baseline {_number(baseline, metric)} ({baseline['label']})"] if baseline else []
        lines += [f"tokenizer ceiling {_number(ceiling, metric)}"] if ceiling else []
        parts.append(f'<p class="small">{escape(column_title(metric))}<br>{"<br>".join(lines)}</p>')
        cards.append(page.card("".join(parts)))
    lead = page.note(
        "For every task the better of each checkpoint's estimators. Better or worse means that the 95 % interval of "
        "the paired difference to the best trivial baseline leaves out zero (bootstrap over recordings)."
    )
    return lead + f'<div class="cards">{"".join(cards)}</div>'


def _best_row(rows: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> Mapping[str, Any] | None:
    known = [row for row in rows if row["values"].get(metric["key"], {}).get("mean") is not None]
    if not known:
        return None
    choose = max if metric["higher_is_better"] else min
    return choose(known, key=lambda row: row["values"][metric["key"]]["mean"])


def _number(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{row['values'][metric['key']]['mean']:.{metric['decimals']}f}{escape(unit)}"


_VERDICT_WORDS = {
    "better": "✓ better than every trivial baseline",
    "worse": "✗ worse than the best trivial baseline",
    "tie": "≈ no difference to the best trivial baseline shown",
}


def _verdict_line(against: Mapping[str, Any] | None) -> str:
    if against is None:
        return '<div class="verdict tie">no baseline to compare with</div>'
    return f'<div class="verdict {against["verdict"]}">{_VERDICT_WORDS[against["verdict"]]}</div>'


def _task_section(task: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    metrics = task["metrics"]
    rows = [
        (row["kind"], [_label_cell(row), *[_value_cell(row, metric) for metric in metrics]]) for row in task["rows"]
    ]
    protocol = "; ".join(f"{metric['label']}: {metric['protocol']}" for metric in metrics)
    told = [medians_sentence(task), *comparison_sentences(task)]
    told += [token_loss_sentence(loss) for loss in task["token_losses"]] + set_sentences(task)
    losses = "".join(f"<li>{escape(sentence)}</li>" for sentence in told)
    failures = [f"{row_title(row)}, {key}: {reason}" for row in task["rows"] for key, reason in row["failures"].items()]
    content = page.figure(plots.forest_plot(task["rows"], _primary(task), colours))
    content += page.table(["method", *[column_title(metric) for metric in metrics]], rows)
    content += f"<ul class='small'>{losses}</ul>" + page.note(
        f"{counted_clips(task)}, the same for every row; {protocol}. Failures: {len(failures)}."
    )
    if task["uncertainty"]:
        content += page.figure(
            plots.calibration_plot(task["uncertainty"], spreads.UNITS[task["quantity"]], colours),
            "Left: how often intervals of the samples hold the truth; below the dashed line the model is too sure of "
            "itself. Right: spread and error, one dot per clip; dashed: as large as each other.",
        )
        told = "".join(f"<li>{escape(uncertainty_sentence(found))}</li>" for found in task["uncertainty"])
        content += f"<ul class='small'>{told}</ul>"
    if failures:
        content += page.details("failures", "<br>".join(escape(line) for line in failures))
    return page.card(content)


def _label_cell(row: Mapping[str, Any]) -> str:
    return f'{escape(row_title(row))}<span class="kind">{escape(row["kind"])}</span>'


def _value_cell(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    value = row["values"].get(metric["key"])
    if value is None or value["mean"] is None:
        return "n/a"
    decimals = metric["decimals"]
    text = f"{value['mean']:.{decimals}f}"
    against = row["against_baseline"].get(metric["key"])
    if against is not None:
        mark = {"better": "✓", "worse": "✗", "tie": "≈"}[against["verdict"]]
        title = escape(f"{against['verdict']}, against {against['baseline']}")
        text += f' <span class="verdict {against["verdict"]}" title="{title}">{mark}</span>'
    if value["low"] is not None:
        text += f'<br><span class="interval">{value["low"]:.{decimals}f} – {value["high"]:.{decimals}f}</span>'
    if value["num_missing"]:
        text += f'<br><span class="interval">{value["num_missing"]} clips n/a</span>'
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
            "dashed: what a model that ignores its input can reach (cross entropy under the training marginals)."
        )
        content += page.card(page.figure(plots.loss_curves(curves, "clips seen")))
    return content


def validation_curves(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name -> {x clips, y nats, marginal} of the losses that the log's evaluations hold."""
    curves: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.get("kind") != "evaluation":
            continue
        for name, value in entry.items():
            marginal = entry.get(f"{name}/unigram_baseline")
            if "/" in name and marginal is not None and value is not None:
                curve = curves.setdefault(name.replace("/", ": "), {"x": [], "y": [], "marginal": marginal})
                curve["x"].append(entry["clips"])
                curve["y"].append(value)
    return curves


def _run_section(summary: Mapping[str, Any]) -> str:
    seconds = dict(summary["seconds"])
    stage_file = summary["config"].get("stage_times")
    content = ""
    if stage_file and Path(stage_file).is_file():
        stages = load_json(Path(stage_file))
        rows = [("", [escape(name), f"{value:.1f}"]) for name, value in stages.items()]
        content += "<h3>Stages</h3>" + page.table(["stage", "seconds"], rows)
    content += "<h3>Evaluation</h3>" + page.table(
        ["part", "seconds"], [("", [escape(name), f"{value:.1f}"]) for name, value in seconds.items()]
    )
    plain = json.dumps({"config": summary["config"], "hardware": summary["hardware"]}, indent=1)
    content += page.details("full configuration", f"<pre>{escape(plain)}</pre>")
    return page.card(content)


if __name__ == "__main__":
    run_main(
        ReportConfig,
        write_report,
        default_config="default/egom2p/evaluation/report.yaml",
        description="Write the page of an evaluation.",
    )
