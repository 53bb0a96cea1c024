"""Choices of a training run held against each other: `python -m experiments.training_choices.compare_choices`.

Every choice is trained with the same seeds on the same clips and measured on the same held-out tasks along the way.
Runs that are finished are not trained again; `max_runs=1` trains one and writes what there is.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

import numpy as np
from torch import nn

from egom2p.config import load_config, run_main, strict
from egom2p.jobs.progress import say
from egom2p.storage import load_json, save_json
from egom2p.training.distributed import Ranks
from egom2p.training.task import Measurement
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask, pretrain

Curve = dict[str, list[float]]
"""Of one run: `clips`, `tokens` (real ones), `seconds` (of the processor, in training only) and `loss` (nats, mean over
the held-out tasks), one value per measurement."""


@strict
class StudyConfig:
    """settings: of all its runs; choices: label -> its own; the first is what the others are held against."""

    choices: dict[str, list[str]]
    settings: list[str] = field(default_factory=list)
    seeds: int = 3


@strict
class ChoicesConfig:
    """base: the pretraining whose settings all runs share, but for `settings`."""

    output: str
    base: str
    studies: dict[str, StudyConfig]
    settings: list[str] = field(default_factory=list)  # key=value for all runs
    max_runs: int | None = None  # stop after so many; null: all


class TimedTask(PretrainTask):
    """Notes the processor time that training took, without evaluations."""

    def __init__(self, config: PretrainConfig, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        self.seconds: list[float] = []
        self._trained_s, self._resumed_s = 0.0, time.process_time()

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        self._trained_s += time.process_time() - self._resumed_s
        self.seconds.append(self._trained_s)
        found = super().evaluate(model)
        self._resumed_s = time.process_time()
        return found


def compare_choices(config: ChoicesConfig) -> Path:
    """Train what is missing; writes results.md and the curves; returns the file."""
    num_runs = 0
    tables = []
    for name, study in config.studies.items():
        curves: dict[str, list[Curve]] = {label: [] for label in study.choices}
        for seed in range(study.seeds):
            for label, settings in study.choices.items():
                folder = Path(config.output, *(part.replace(" ", "_") for part in (name, label)), f"seed{seed}")
                if not (folder / "curve.json").is_file():
                    if config.max_runs is not None and num_runs >= config.max_runs:
                        continue
                    num_runs += 1
                    _train(config, [*study.settings, *settings], seed, folder)
                curves[label].append(load_json(folder / "curve.json"))
        tables.append(f"## {name}\n\n{table(curves)}")
    file = Path(config.output, "results.md")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(tables) + "\n")
    say(file.read_text())
    return file


def _train(config: ChoicesConfig, settings: Sequence[str], seed: int, folder: Path) -> None:
    own = [f"seed={seed}", f"output_dir={folder}", "training.evaluate_at_start=true", "training.resume=false"]
    run = load_config(PretrainConfig, config.base, [*config.settings, *settings, *own])
    tasks: list[TimedTask] = []

    def make_task(given: PretrainConfig, ranks: Ranks) -> PretrainTask:
        tasks.append(TimedTask(given, ranks))
        return tasks[-1]

    pretrain(run, make_task)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if line["kind"] == "evaluation"]
    asked = [f"{task}/{target}" for task, both in run.evaluation.tasks.items() for target in both.targets]
    # What came before the first step (imports, reading the clips) is the same for all.
    seconds = [value - tasks[0].seconds[0] for value in tasks[0].seconds]
    curve = {key: [line[key] for line in measured] for key in ("clips", "tokens")}
    losses = [float(np.mean([line[name] for name in asked])) for line in measured]
    save_json(folder / "curve.json", {**curve, "seconds": seconds, "loss": losses})


def table(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Rows: choices. Equal tokens, equal seconds: where the shortest of all runs ended."""
    done = {label: runs for label, runs in curves.items() if runs}
    if not done:
        return "nothing is trained yet"
    least = {unit: min(run[unit][-1] for runs in done.values() for run in runs) for unit in ("tokens", "seconds")}
    first = next(iter(done))
    lines = [
        f"| choice (seeds) | clips | real tokens | processor s | loss at the end | at {least['tokens']:,.0f} tokens | "
        f"at {least['seconds']:.0f} s | clips to the end loss of {first} | seconds to it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, runs in done.items():
        cells = [f"{label} ({len(runs)})"]
        cells += [f"{np.mean([run[unit][-1] for run in runs]):,.0f}" for unit in ("clips", "tokens", "seconds")]
        cells.append(_spread([run["loss"][-1] for run in runs]))
        cells += [_spread([float(np.interp(least[unit], run[unit], run["loss"])) for run in runs]) for unit in least]
        # The run of the same seed: what one seed's clips teach both.
        pairs = list(zip(runs, done[first], strict=False))
        for unit in ("clips", "seconds"):
            shares = [units_to(run, unit, to["loss"][-1]) / to[unit][-1] for run, to in pairs]
            reached = [share for share in shares if np.isfinite(share)]
            missed = f", {len(shares) - len(reached)} never" if len(reached) < len(shares) else ""
            cells.append(f"{_spread(reached, digits=2)} times{missed}" if reached else "never")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def units_to(run: Curve, unit: str, loss: float) -> float:
    """Clips or seconds after which a run first has a loss, between two measurements linearly; infinite: never."""
    for number, value in enumerate(run["loss"]):
        if value <= loss:
            if number == 0:
                return run[unit][0]
            before, after = run["loss"][number - 1 : number + 1]
            return float(np.interp(before - loss, [0.0, before - after], run[unit][number - 1 : number + 1]))
    return float("inf")


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and range over seeds."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    mean = f"{np.mean(values):.{digits}f}"
    return mean if low == high else f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    run_main(
        ChoicesConfig,
        compare_choices,
        default_config="experiments/training_choices/compare_choices.yaml",
        description=str(__doc__),
    )
