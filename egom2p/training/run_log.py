"""What a run says about itself: lines on the console, `log.jsonl`, and wandb. Only rank 0 speaks."""

import json
import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from egom2p.config import strict
from egom2p.storage import append_to, atomic_file, errors_name, load_json, parse_json, save_json
from egom2p.training.schedule import Length, Progress
from egom2p.training.task import Measurement


@strict
class WandbConfig:
    """Weights & Biases. `offline` writes into the run's folder, to be sent later by `wandb sync`."""

    mode: Literal["disabled", "offline", "online"] = "disabled"  # whether measurements also go there
    project: str = "egom2p"  # of the run
    entity: str | None = None  # account or team; null: the login's own
    name: str | None = None  # of the run; null: that of the folder
    tags: tuple[str, ...] = ()  # of the run


class RunLog:
    """Writes to console, `log.jsonl` and wandb; every entry carries what was consumed so far."""

    def __init__(
        self,
        folder: Path,
        *,
        length: Length,
        wandb_config: WandbConfig,
        settings: Mapping[str, Any],
        clip_word: str = "clips",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._name = folder / "log.jsonl", folder.name
        self._length, self._clip_word = length, clip_word
        self._console = _console()
        self._wandb = _start_wandb(folder, wandb_config, settings)

    def say(self, text: str) -> None:
        """A line for people, with the name of the run: several may share a terminal (`make -j2`)."""
        self._console.print(f"{self._name}: {text}", markup=False)

    def forget_after(self, step: int) -> None:
        """Drop entries of steps that a killed process logged but no checkpoint holds: they will be made again.

        step   of the checkpoint the run goes on from; -1: there is none
        """
        if not self._file.is_file():
            return
        lines = self._file.read_text(encoding="utf-8").splitlines()
        kept = [line for number, line in enumerate(lines) if _is_complete(line) and self._step_of(line, number) <= step]
        if len(kept) < len(lines):
            with atomic_file(self._file) as unfinished:
                unfinished.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def train(self, progress: Progress, values: Mapping[str, float], *, seconds_left: float) -> None:
        """Means since the last line: `loss`, `loss/<term>`, `lr`, `grad_norm`, `tokens_per_s`, `clips_per_s`, `mfu`,
        `fill` ..."""
        self._write("train", progress, values)
        terms = "  ".join(
            f"{name.removeprefix('loss/')} {value:.3f}" for name, value in values.items() if "loss/" in name
        )
        tokens_per_s = f"{_short(values['tokens_per_s'])} tokens/s  " if values.get("tokens_per_s") else ""
        mfu = f"mfu {100 * values['mfu']:.1f} %  " if "mfu" in values else ""
        skipped = ""
        if values.get("skipped_steps"):
            skipped = f"{values['skipped_steps']} of {values['num_steps']} steps skipped  "
        self.say(
            f"step {progress.step}{self._of_total()} {100 * self._length.fraction(progress):3.0f} %  "
            f"loss {values['loss']:.4f}  {skipped}{terms}  lr {values['lr']:.2e}  {tokens_per_s}"
            f"{values['clips_per_s']:.1f} {self._clip_word}/s  {mfu}left {timedelta(seconds=round(seconds_left))}"
        )

    def evaluation(self, progress: Progress, measurements: Sequence[Measurement]) -> None:
        """Measurements as entries and as a table; a loss stands beside its unigram baseline per position."""
        values: dict[str, float] = {}
        for item in measurements:
            values[f"{item.group}/{item.name}"] = item.value
            if item.unigram_baseline is not None:
                values[f"{item.group}/{item.name}/unigram_baseline"] = item.unigram_baseline
        self._write("evaluation", progress, values)
        title = f"{self._name}: validation after {progress.step} steps, {progress.clips} {self._clip_word}"
        show_measurements(title, measurements, self._console)

    def close(self, *, failed: bool = False) -> None:
        if self._wandb is not None:
            self._wandb.finish(exit_code=1 if failed else 0)

    def _step_of(self, line: str, number: int) -> int:
        entry = parse_json(line, f"{self._file}, line {number + 1}")
        if not isinstance(entry.get("step"), int):
            raise ValueError(
                f"{self._file}, line {number + 1}: no `step`, wanted a number in every entry of a run's log"
            )
        return entry["step"]

    def _of_total(self) -> str:
        return f"/{self._length.total:g}" if self._length.unit == "steps" else ""

    def _write(self, kind: str, progress: Progress, values: Mapping[str, float]) -> None:
        entry = {
            "kind": kind,
            "step": progress.step,
            "clips": progress.clips,
            "tokens": progress.tokens,
            "token_budget": progress.token_budget,
            "seconds": round(progress.seconds, 3),
            "time": round(time.time(), 3),
            **values,
        }
        # JSON knows no NaN; null is what every reader understands.
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.items()
        }
        with errors_name(self._file), append_to(self._file) as opened:
            opened.write(f"{json.dumps(plain)}\n".encode())
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=progress.step)


def show_measurements(title: str, measurements: Sequence[Measurement], console: Console | None = None) -> None:
    """A table on the console; nothing where nothing was measured."""
    if measurements:
        (console or _console()).print(_table(title, measurements))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _table(title: str, measurements: Sequence[Measurement]) -> Table:
    has_baselines = any(item.unigram_baseline is not None for item in measurements)
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("measured")
    table.add_column("loss (nats)" if has_baselines else "value", justify="right")
    if has_baselines:
        table.add_column("unigram baseline per position", justify="right")
        table.add_column("gained from input", justify="right")
    previous = None
    for item in measurements:
        cells = [item.group if item.group != previous else "", item.name, f"{item.value:.4g}"]
        if has_baselines and item.unigram_baseline is not None:
            cells += [f"{item.unigram_baseline:.4g}", f"{item.unigram_baseline - item.value:+.3f}"]
        table.add_row(*cells)
        previous = item.group
    return table


def _start_wandb(folder: Path, config: WandbConfig, settings: Mapping[str, Any]) -> Any:
    """One wandb run across restarts: its id is kept in the run's folder."""
    if config.mode == "disabled":
        return None
    # Imported here: it is slow, and most runs do without it.
    import wandb

    note = folder / "wandb.json"
    if not note.is_file():
        save_json(note, {"id": uuid.uuid4().hex[:8]})
    known = load_json(note)
    if not isinstance(known, dict) or not isinstance(known.get("id"), str):
        raise ValueError(f"{note}: found {known!r:.80}, wanted the `id` of a wandb run")
    return wandb.init(
        id=known["id"],
        resume="allow" if config.mode == "online" else None,
        mode=config.mode,
        project=config.project,
        entity=config.entity,
        name=config.name or folder.name,
        tags=list(config.tags),
        dir=str(folder),
        config=dict(settings),
        settings=wandb.Settings(silent=True, console="off"),
    )


def _is_complete(line: str) -> bool:
    """A killed process may leave half a line at the end."""
    return line.startswith("{") and line.endswith("}")


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def changed_settings(old: Any, new: Any, name: str = "") -> list[str]:
    """Lines `key: old -> new` for every value in which two nested settings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        changes = [changed_settings(old.get(key), new.get(key), f"{name}.{key}" if name else key) for key in keys]
        return [line for lines in changes for line in lines]
    return [] if old == new else [f"{name}: {old} -> {new}"]


# What a run is: a run that goes on with another of these is a mixture that no config describes. Its length, its batch
# (other machines have other ranks), what is told and kept, and where things lie may change on the way.
_OF_THE_RUN = re.compile(
    r"(seed|model|network|(training\.)?(lr|blr|schedule|warmup_start_lr|min_lr|optimizer|ema|batching|reference_denominator))"
    r"(\..+)?"
)
_PATHS = ("checkpoint", "pretrained", "tokenizer", "tower_weights", "finetune")


def check_same_run(folder: Path, changes: Sequence[str]) -> None:
    """ValueError where settings that make the run what it is have changed; `changes`: as `changed_settings` says."""
    parted = [(change.partition(": ")[0], change) for change in changes]
    wrong = [
        change
        for key, change in parted
        if _OF_THE_RUN.fullmatch(key)
        and key.rpartition(".")[2] not in _PATHS
        and not change.startswith(f"{key}: None ->")
    ]
    if wrong:
        raise ValueError(
            f"{folder}: holds a run with other settings ({'; '.join(wrong)}); choose another output_dir, or set them "
            "back: a run goes on with another length, batch or machine, not as another one "
            "(training.allow_changes=true does it nevertheless)"
        )
