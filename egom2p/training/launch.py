"""From a trainer's config to a finished run: what the trainers' commands have in common."""

from collections.abc import Callable
from typing import Any, Protocol

from egom2p.config import to_plain
from egom2p.training.distributed import Ranks, ranks_of_launch
from egom2p.training.interruption import end_if_stopped
from egom2p.training.loop import FitResult, fit
from egom2p.training.run_folder import RunFolder
from egom2p.training.task import Task
from egom2p.training.training_config import TrainingConfig


class TrainerConfig(Protocol):
    """What every trainer's root schema has."""

    output_dir: str
    seed: int
    training: TrainingConfig


def train(config: TrainerConfig, make_task: Callable[[Any, Ranks], Task]) -> FitResult:
    """Train `make_task(config, ranks)` on the ranks of this launch, evaluate it and write `<output_dir>/final`.

    Ends the process with a code when a signal stopped it.
    """
    with ranks_of_launch(config.training.device) as ranks:
        # A task may start otherwise where there is a checkpoint.
        RunFolder(config.output_dir, config.training.scratch_dir).fetch(ranks)
        task = make_task(config, ranks)
        result = fit(
            task,
            config.training,
            output_dir=config.output_dir,
            ranks=ranks,
            seed=config.seed,
            settings=to_plain(config),
        )
    end_if_stopped(result.stopped_by)
    return result
