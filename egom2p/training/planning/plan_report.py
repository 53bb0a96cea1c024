"""What a planned run would be, and that as tables on the terminal."""

import os
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from egom2p.training.planning.plan_checks import DatasetFacts
from egom2p.training.planning.training_memory import USABLE_SHARE, Footprint

_GIGA = 1e9


@dataclass
class Plan:
    """What a run would be. `problems` keep it from starting; `notes` are worth knowing."""

    title: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    datasets: list[DatasetFacts] = field(default_factory=list)
    footprints: dict[str, Footprint] = field(default_factory=dict)  # way to train -> memory of one device
    memory: dict[str, dict[float, dict[str, int]]] = field(default_factory=dict)  # size -> GB -> way -> most clips
    num_gpus: int = 1


def report_plan(plan: Plan) -> None:
    """Print a plan, on rank 0; ValueError that lists its problems, on every rank."""
    if os.environ.get("RANK", "0") == "0":
        show_plan(plan)
    if plan.problems:
        raise ValueError(f"{len(plan.problems)} problems keep this run from starting:\n  " + "\n  ".join(plan.problems))


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Print facts, data, memory, notes and problems, whichever there are."""
    console = console or Console(highlight=False)
    table = Table(title=f"plan of {plan.title}", title_justify="left", show_header=False)
    for name, value in plan.facts:
        table.add_row(name, value)
    console.print(table)
    if plan.datasets:
        console.print(_datasets(plan))
    if plan.footprints:
        console.print(_footprints(plan))
    if any(plan.memory.values()):
        console.print(_memory(plan))
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    verdict = (
        f"{len(plan.problems)} problems, listed below" if plan.problems else "nothing keeps this run from starting"
    )
    console.print(f"{verdict}; no device was touched", markup=False)


def _datasets(plan: Plan) -> Table:
    table = Table(title="data", title_justify="left")
    for name in ("data set", "weight", "shards", "clips"):
        table.add_column(name, justify="left" if name == "data set" else "right")
    for facts in plan.datasets:
        clips = f"{'about ' if facts.is_estimate else ''}{facts.num_clips:,}" if facts.num_shards else "not usable"
        table.add_row(facts.name, f"{facts.weight:g}", str(facts.num_shards), clips)
    return table


def _footprints(plan: Plan) -> Table:
    """Ways to train side by side: the five of them are as wide as a terminal of 80 columns."""
    table = Table(title="memory of one device with this batch, GB", title_justify="left")
    table.add_column("")
    for way in plan.footprints:
        table.add_column(way, justify="right")
    for part in (*vars(next(iter(plan.footprints.values()))), "total"):
        values = (getattr(footprint, part) for footprint in plan.footprints.values())
        table.add_row(part, *(f"{value / _GIGA:.2f}" for value in values))
    return table


def _memory(plan: Plan) -> Table:
    """Most clips per device; 0: not even one."""
    title = f"most clips per device with full budgets, in {USABLE_SHARE:.0%} of its memory (computed, not measured)"
    table = Table(title=title, title_justify="left")
    table.add_column("size")
    table.add_column("trained by")
    sizes = list(next(iter(plan.memory.values())))
    for gigabytes in sizes:
        table.add_column(f"{gigabytes:g} GB", justify="right")
    for size, fits in plan.memory.items():
        for number, way in enumerate(next(iter(fits.values()))):
            table.add_row("" if number else size, way, *(str(fits[gigabytes][way]) for gigabytes in sizes))
    return table
