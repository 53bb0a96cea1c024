"""One stage of data work, in one of three places: processes of this machine, the tasks of a Slurm array, a Ray cluster.

A stage is items (recordings, shards) and a function that makes one of them; it returns at once for what is there, so
that a run which was killed, an array of which a task failed, and a Ray task that is tried again go on where they were.
Who waits for whom and where a task runs is the place's own business.
"""

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from egom2p.jobs.workers import Workers, collect_ticks

Item, Result = TypeVar("Item"), TypeVar("Result")
_SUBMITTED = 1000  # tasks that Ray knows of at a time: enough for nodes that come, and no list of a million
_RETRIES = 5  # of a task whose process or node died; one that kills its process every time is an error


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PlaceConfig:
    """Where a stage runs.

    run_on         `processes` of this machine (and ranks of torchrun); `slurm`: this is one task of an array and does
                   its share; `ray`: tasks of a Ray cluster
    ray_address    `auto`: the cluster that this machine belongs to; none: one of this machine alone
    cpus, gpus     of one Ray task
    """

    run_on: Literal["processes", "slurm", "ray"] = "processes"
    ray_address: str | None = None
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0

    def share(self) -> tuple[int, int]:
        """Number of this process among those that share the items out, and how many they are."""
        number, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.run_on != "slurm":
            return number, count
        if "SLURM_ARRAY_TASK_ID" not in os.environ:
            raise ValueError("run_on=slurm is for tasks of a Slurm array (sbatch --array=0-15 ...), this is none")
        task, first, step, tasks = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
        )
        last = int(os.environ.get("SLURM_ARRAY_TASK_MAX", first + step * (tasks - 1)))
        if last != first + step * (tasks - 1):
            raise ValueError(
                f"a Slurm array of {tasks} tasks from {first} to {last} leaves numbers out, and with them a part of "
                "the work; submit an even one (--array=0-15), which makes only what is missing"
            )
        return (task - first) // step * count + number, tasks * count

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """The share of this process; of items that are the same, in the same order, whenever a process begins."""
        number, count = self.share()
        return items[number::count]


def run_stage(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    place: PlaceConfig,
    *,
    num_workers: int = 0,
    prepare: Callable[..., None],
    arguments: tuple = (),
    on_tick: Callable[[int], None],
) -> Iterator[Result]:
    """Results of `work(item)` in the order of the items. Who shares them with others gives its own (`place.mine`).

    `work` and `prepare` are functions of a module; `prepare(*arguments)` is called in every process before its first
    item. `on_tick` gets what `workers.tick` counts anywhere. The error of an item is raised when its turn comes.
    """
    if place.run_on == "ray":
        yield from _on_ray(items, work, place, (prepare, arguments), on_tick)
        return
    with Workers(num_workers, prepare, arguments) as workers:
        yield from workers.run(work, items, on_tick=on_tick)


def _on_ray(items: Sequence, work: Callable, place: PlaceConfig, preparation: tuple, on_tick: Callable) -> Iterator:
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ValueError("run_on=ray needs the package ray: pip install 'egom2p[ray]'") from error

    if not ray.is_initialized():
        ray.init(address=place.ray_address, log_to_driver=False)
    stage = ray.put((uuid.uuid4().hex, *preparation, work))
    submit = ray.remote(_ray_task).options(num_cpus=place.cpus, num_gpus=place.gpus, max_retries=_RETRIES).remote
    left = iter(items)
    waiting = deque(submit(stage, item) for item in islice(left, _SUBMITTED))
    try:
        while waiting:
            result, count = ray.get(waiting[0])
            waiting.popleft()
            waiting.extend(submit(stage, item) for item in islice(left, 1))
            on_tick(count)
            yield result
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise ValueError(f"a task on Ray was lost {_RETRIES + 1} times: {error}") from error
    finally:
        for task in waiting:
            ray.cancel(task)


_prepared: str | None = None  # the stage that this Ray process is ready for


def _ray_task(stage: tuple, item: Any) -> tuple[Any, int]:
    global _prepared
    name, prepare, arguments, work = stage
    if _prepared != name:
        prepare(*arguments)
        _prepared = name
    with collect_ticks() as count:
        result = work(item)
    return result, count()
