"""Tokens, pixels, or both as input: `python -m experiments.pixels.compare_inputs [--config FILE]`.

Every choice is trained with the same seeds on the same clips, once for as many steps as the others and on to about as
many seconds; both checkpoints are asked for the same targets of held-out clips. What is finished is not done again;
`max_runs=1` trains one run, and measures the choices whose seeds are all trained.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

import numpy as np

from egom2p.config import from_plain, load_config, run_main, strict
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.jobs.progress import say
from egom2p.metrics.bootstrap import bootstrap_interval, paired_difference_interval
from egom2p.storage import load_json, save_json
from egom2p.training.distributed import Ranks
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask, pretrain
from experiments.training_choices.compare_choices import TimedTask

_LENGTHS = ("steps", "seconds")
_CEILING = "tokenizer round trip"


@strict
class InputChoice:
    """inputs: modalities; num_steps: what about equals the others' seconds."""

    inputs: tuple[str, ...]
    num_steps: int
    settings: list[str] = field(default_factory=list)  # key=value of this choice alone


@strict
class InputsConfig:
    """A study on one world.

    base, settings   the pretraining of all runs
    num_steps        of the comparison at equal steps
    metrics          target -> metric of the tables that is compared, of which less is better
    evaluation       clips and the like, as `run_evaluation.py` takes them, without checkpoints and tasks
    """

    output: str
    base: str
    settings: list[str]
    choices: dict[str, InputChoice]
    num_steps: int
    metrics: dict[str, str]
    evaluation: dict[str, object]
    seeds: int = 3
    max_runs: int | None = None


def compare_inputs(config: InputsConfig) -> Path:
    """Train and measure what is missing; writes results.md and returns it."""
    num_runs = 0
    for seed in range(config.seeds):
        for label, choice in config.choices.items():
            folder = _folder(config, label, seed)
            if not (folder / "seconds.json").is_file() and (config.max_runs is None or num_runs < config.max_runs):
                num_runs += 1
                _train(config, choice, seed, folder)
    values = {label: _values(config, label, choice) for label, choice in config.choices.items()}
    values = {label: found for label, found in values.items() if found}
    if not values:
        return Path(config.output)
    file = Path(config.output, "results.md")
    file.write_text("\n\n".join(_table(config, values, length) for length in _LENGTHS) + "\n")
    say(file.read_text())
    return file


def _folder(config: InputsConfig, label: str, seed: int) -> Path:
    return Path(config.output, label.replace(" ", "_"), f"seed{seed}")


def _train(config: InputsConfig, choice: InputChoice, seed: int, folder: Path) -> None:
    mixture = "data.datasets.world.alphas.transfers.rgb_to_all"
    own = [
        f"{mixture}.inputs=[{','.join(choice.inputs)}]",
        f"training.num_steps={choice.num_steps}",
        f"training.evaluate_every={config.num_steps}",
        f"training.keep_every={config.num_steps}",
        f"training.checkpoint_every={config.num_steps}",
        "training.evaluate_at_start=true",
        f"seed={seed}",
        f"output_dir={folder}",
    ]
    run = load_config(PretrainConfig, config.base, [*config.settings, *choice.settings, *own])
    tasks: list[TimedTask] = []

    def make_task(given: PretrainConfig, ranks: Ranks) -> PretrainTask:
        tasks.append(TimedTask(given, ranks))
        return tasks[-1]

    pretrain(run, make_task)
    # What came before the first step (imports, reading the clips) is the same for all.
    seconds = [value - tasks[0].seconds[0] for value in tasks[0].seconds[1:]]
    save_json(folder / "seconds.json", {"steps": seconds[0], "seconds": seconds[-1]})


def _checkpoint(config: InputsConfig, folder: Path, length: str) -> Path:
    return folder / "final" if length == "seconds" else folder / "checkpoints" / f"step-{config.num_steps:08d}"


def _values(config: InputsConfig, label: str, choice: InputChoice) -> dict[tuple[str, str, str], dict[str, float]]:
    """(length, target, method) -> clip -> metric, of a model the mean over seeds."""
    seeds = range(config.seeds)
    if not all((_folder(config, label, seed) / "seconds.json").is_file() for seed in seeds):
        return {}
    output = Path(config.output, "evaluations", f"{label.replace(' ', '_')}-{config.seeds}")
    inputs = "+".join(choice.inputs)
    tasks = {f"{inputs}->{target}": target for target in config.metrics}
    checkpoints = {
        f"{length} {seed}": str(_checkpoint(config, _folder(config, label, seed), length))
        for seed in seeds
        for length in _LENGTHS
    }
    values = {**config.evaluation, "checkpoints": checkpoints, "tasks": list(tasks), "output": str(output)}
    if not (output / "per_clip.csv").is_file():
        run_evaluation(from_plain(EvaluationConfig, values))
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with open(output / "per_clip.csv", newline="") as file:
        for row in csv.DictReader(file):
            target = tasks[row["task"]]
            if row["metric"] == config.metrics[target] and row["value"]:
                length = row["checkpoint"].split()[0] if row["checkpoint"] else _LENGTHS[0]
                method = "model" if row["kind"] == "model" else row["method"]
                found[length, target, method][row["clip"]].append(float(row["value"]))
    return {key: {clip: float(np.mean(rows)) for clip, rows in clips.items()} for key, clips in found.items()}


def _table(
    config: InputsConfig, values: Mapping[str, Mapping[tuple[str, str, str], Mapping[str, float]]], length: str
) -> str:
    """Rows: baselines, ceiling, choices; the first choice is what the others are held against."""
    metrics = [f"{target}: {metric}" for target, metric in config.metrics.items()]
    lines = [
        f"## At equal {length}",
        "",
        f"| input (seeds) | steps | processor s | {' | '.join(f'{name} | gap closed' for name in metrics)} |",
        f"|{'---|' * (3 + 2 * len(metrics))}",
    ]
    first = next(iter(values))
    known = values[first]
    methods = [*dict.fromkeys(method for _, _, method in known if method not in ("model", _CEILING)), _CEILING]
    for method in methods:
        cells = [f"{method}", "", ""]
        for target in config.metrics:
            part = known.get((_LENGTHS[0], target, method))
            cells += [_interval(part) if part else "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    for label, found in values.items():
        folders = [_folder(config, label, seed) for seed in range(config.seeds)]
        seconds = [load_json(path / "seconds.json")[length] for path in folders]
        num_steps = config.num_steps if length == "steps" else config.choices[label].num_steps
        cells = [f"{label} ({len(seconds)})", str(num_steps), f"{np.mean(seconds):.0f}"]
        for target in config.metrics:
            own, other, best = (found[length, target, "model"], known[length, target, "model"],
                                known[length, target, _CEILING])  # fmt: skip
            cells += [_interval(own), "" if label == first else _gap(own, other, best)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(clips: Mapping[str, float]) -> str:
    rooms = [key.rsplit("_", 1)[0] for key in clips]
    found = bootstrap_interval(list(clips.values()), np.random.default_rng(0), groups=rooms)
    return f"{found.mean:.3f}" + ("" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]")


def _gap(own: Mapping[str, float], other: Mapping[str, float], best: Mapping[str, float]) -> str:
    """Share of the way from the other model to the ceiling, nothing where there is no way to go; its interval is that
    of the gain over the mean gap.
    """
    keys = sorted(own.keys() & other.keys() & best.keys())
    rooms = [key.rsplit("_", 1)[0] for key in keys]
    rng = np.random.default_rng(0)
    gain = paired_difference_interval([other[key] for key in keys], [own[key] for key in keys], rng, groups=rooms)
    gap = float(np.mean([other[key] - best[key] for key in keys]))
    if gap <= 0:
        return ""
    return f"{gain.mean / gap:.0%}" + ("" if gain.low is None else f" [{gain.low / gap:.0%}, {gain.high / gap:.0%}]")


if __name__ == "__main__":
    run_main(
        InputsConfig,
        compare_inputs,
        default_config="experiments/pixels/compare_inputs.yaml",
        description=str(__doc__),
    )
