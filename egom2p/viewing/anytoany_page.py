"""The page of any-to-any evaluations: `python -m egom2p.viewing.anytoany_page evaluation=FOLDER [page=FILE]`.

Reads results.json, samples.jsonl and shown/ of one folder or several, and the logs of the training runs that the models
lie in; writes one HTML file with pictures of what was perceived, questions, answers under every control, and intervals.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from egom2p.anytoany.evaluation.controls import UNSEEN
from egom2p.anytoany.evaluation.report import model_and_control
from egom2p.anytoany.saving import run_folder_of
from egom2p.config import run_main, strict
from egom2p.metrics.bootstrap import Interval
from egom2p.metrics.measurements import verdict
from egom2p.metrics.result_table import Difference, Results, ResultTable, Row, format_interval
from egom2p.viewing import page, plots
from egom2p.viewing.answered_questions import answered_questions, conversation, labelled


@strict
class AnyToAnyPageConfig:
    """What is shown where.

    evaluation   folder of an evaluation, or several for one page
    page         file; null: index.html in the (first) folder
    title        of the page
    """

    evaluation: str | tuple[str, ...]
    page: str | None = None
    title: str = "Questions about what was perceived"

    @property
    def folders(self) -> list[Path]:
        names = [self.evaluation] if isinstance(self.evaluation, str) else list(self.evaluation)
        if not names:
            raise ValueError(
                "evaluation: wanted a folder that egom2p.anytoany.evaluation.anytoany_evaluation wrote, found none"
            )
        return [Path(name) for name in names]


def write_anytoany_page(config: AnyToAnyPageConfig) -> Path:
    """Write the page and return its path. ValueError names a folder that holds no evaluation."""
    cards: list[str] = []
    notes: list[str] = []
    sections: list[tuple[str, str, str]] = []
    talks = ""
    trained: dict[str, list[dict[str, Any]]] = {}
    machines, seconds = [], 0.0
    for folder in config.folders:
        if not (folder / "results.json").is_file():
            raise ValueError(f"{folder}: no results.json; wanted a folder that the evaluation wrote")
        results = Results.read(folder)
        models = results.about["config"]["models"]
        notes += results.about["notes"]
        samples = _samples(folder)
        talks += conversation(folder, results.tables, samples)
        for table in results.tables:
            title = _words(table.task) if len(config.folders) == 1 else f"{_words(folder.name)}: {_words(table.task)}"
            cards += _glance(table, title, list(models))
            shown = answered_questions(folder, table, [row for row in samples if row["table"] == table.task])
            sections.append((f"set-{len(sections)}", title, _measured(table, models) + shown))
        trained |= {label: log for label, about in models.items() if (log := _training_log(about["directory"]))}
        machines.append(results.about.get("machine", "unknown machine"))
        seconds += sum(results.about["seconds"].values())
    num_sets = len(sections)
    sections.insert(0, ("glance", "At a glance", _glance_section(cards, notes)))
    if talks:
        about = page.note("Of the clips below the first with the most questions, whatever the answers were.")
        sections.insert(0, ("conversation", "A conversation", about + talks))
    if trained:
        sections.append(("training", "Training", _training(trained)))
    sections.append(("run", "What was run", _run(config.folders)))
    lead = "What the models say, and how much of it they owe to what they are shown: the same questions with true, "
    lead += "shuffled (another item's) and zero features."
    facts = [f"{num_sets} sets", *dict.fromkeys(machines), f"evaluated in {seconds:.0f} s"]
    html = page.document(config.title, lead=lead, facts=facts, sections=sections)
    return page.save_page(config.page or config.folders[0] / "index.html", html)


def _samples(folder: Path) -> list[dict[str, Any]]:
    file = folder / "samples.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _words(name: str) -> str:
    return name.replace("_", " ")


def _glance_section(cards: Sequence[str], notes: Sequence[str]) -> str:
    note = page.note(
        "What counts is the difference between true and shuffled features: a good score without it is the prior of the "
        "text. Better means that its 95 % interval (bootstrap over groups of questions) leaves out zero."
    )
    note += "".join(page.note(line) for line in dict.fromkeys(notes))
    return note + f'<div class="cards">{"".join(cards)}</div>'


def _glance(table: ResultTable, title: str, labels: Sequence[str]) -> list[str]:
    """Per model that was asked with controls a card; one card for all models that were asked texts."""
    metric = table.primary
    of_text = [row for row in table.rows if row.label == "text"]
    if of_text:
        lines = [f"{escape(row.checkpoint or '')} {row.mean(metric):.3f}" for row in of_text]
        head = f'<h3>{escape(title)}</h3><div class="small">{escape(metric.label)}</div>'
        return [page.card(f"{head}<p>{'<br>'.join(lines)}</p>")]
    cards = []
    for label in labels:
        main = next((row for row in table.rows if (row.checkpoint, row.label) == (label, "true")), None)
        if main is None:
            continue  # a plain language model, asked without media: in the list of others below
        parts = [f'<h3>{escape(title)}</h3><div class="small">{escape(label)}, {escape(metric.label)}</div>']
        parts.append(f'<div class="big">{main.mean(metric):.3f}</div>')
        parts += [_owed(row.values[metric.key]) for row in table.differences if _is_owed(row, label)]
        others = [
            row for row in table.rows if row is not main and (row.checkpoint in (label, None) or row.label == UNSEEN)
        ]
        lines = [f"{escape(_title(row))} {row.mean(metric):.3f}" for row in others]
        cards.append(page.card("".join(parts) + f'<p class="small">{"<br>".join(lines)}</p>'))
    return cards


def _title(row: Row) -> str:
    return (
        f"{row.label} features"
        if row.checkpoint and row.label != UNSEEN
        else f"{row.checkpoint or ''} {row.label}".strip()
    )


def _is_owed(difference: Difference, label: str) -> bool:
    return (difference.minuend, difference.subtrahend) == (f"{label}, true", f"{label}, shuffled")


def _owed(difference: Interval) -> str:
    if difference.low is None:
        return ""
    how = verdict(difference, higher_is_better=True)
    words = {"better": "✓ owed to perception", "worse": "✗ worse than with shuffled features"}
    note = words.get(how, "≈ nothing shown to be owed to perception")
    return f'<div class="verdict {how}">{note}: {format_interval(difference, 3, sign="+")}</div>'


def _measured(table: ResultTable, models: Mapping[str, Any]) -> str:
    """Plot and tables of a set."""
    colours = dict(zip(models, plots.COLOURS * 10, strict=False))
    names = list(dict.fromkeys(name for row in table.rows for name in (*row.values, *row.of_the_set)))
    cells = [
        (
            "model" if row.kind == "model" else "bound",
            [labelled(*model_and_control(row)), *[_value(row, name) for name in names]],
        )
        for row in table.rows
    ]
    is_scored = any(row.mean(table.primary) is not None for row in table.rows)
    content = page.figure(plots.forest_plot(table, colours)) if is_scored else ""
    content += page.table(["features", *[_words(name) for name in names]], cells)
    content += page.note(f"{table.num_clips} questions in {table.num_recordings} groups.")
    if table.differences:
        shared = [name for name in names if any(name in row.values for row in table.differences)]
        lines = [
            (
                "",
                [
                    f"{escape(row.minuend)} minus {escape(row.subtrahend)}",
                    *[_interval(row.values.get(n), "+") for n in shared],
                ],
            )
            for row in table.differences
        ]
        content += page.details("paired differences", page.table(["", *[_words(name) for name in shared]], lines))
    return page.card(content)


def _value(row: Row, name: str) -> str:
    return f"{row.of_the_set[name]:.3f}" if name in row.of_the_set else _interval(row.values.get(name))


def _interval(found: Interval | None, sign: str = "") -> str:
    if found is None or found.mean is None:
        return ""
    mean = f"{found.mean:{sign}.3f}"
    if found.low is None:
        return mean
    return f'{mean} <span class="interval">[{found.low:{sign}.3f}, {found.high:{sign}.3f}]</span>'


def _training_log(directory: str) -> list[dict[str, Any]]:
    """Lines of the log of the run in which a model lies, as `final` or as a checkpoint."""
    run = run_folder_of(directory)
    lines = [] if run is None else (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def _training(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    content = page.note(
        "Loss while training, and on the evaluation sets of the run; dashed: what the trained model reaches there with "
        "shuffled features, so the gap is what it owes to perception."
    )
    for label, log in trained.items():
        rows = [row for row in log if row["kind"] == "train" and "loss/text" in row]
        curves = {"training": {"x": [row["step"] for row in rows], "y": [row["loss/text"] for row in rows]}}
        tested = [row for row in log if row["kind"] == "evaluation"]
        sets = [name.removesuffix("/loss") for name in (tested[-1] if tested else ()) if name.endswith("/loss")]
        for name in (name for name in sets if "features" not in name):
            known = [row for row in tested if f"{name}/loss" in row]
            curves[name] = {"x": [row["step"] for row in known], "y": [row[f"{name}/loss"] for row in known]}
            curves[name]["baseline"] = known[-1].get(f"{name}, shuffled features/loss")
        content += f"<h3>{escape(label)}</h3>" + page.card(page.figure(plots.loss_curves(curves, "optimizer steps")))
    return content


def _run(folders: Sequence[Path]) -> str:
    content = page.note("The config of each evaluation; all answers are in samples.jsonl beside its results.")
    for folder in folders:
        text = json.dumps(Results.read(folder).about["config"], indent=2)
        content += page.details(folder.name, f"<pre>{escape(text)}</pre>")
    return page.card(content)


if __name__ == "__main__":
    run_main(
        AnyToAnyPageConfig,
        write_anytoany_page,
        default_config="default/anytoany/viewing/page.yaml",
        description=str(__doc__),
    )
