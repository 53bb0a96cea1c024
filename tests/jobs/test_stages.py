"""A stage gives the same in every place: nothing lost, nothing made twice, whoever dies and whoever comes."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from egom2p.jobs.progress import take_times, time_shares, timed
from egom2p.jobs.stages import PlaceConfig, run_stage
from egom2p.jobs.workers import tick

_folder: Path


def open_folder(folder):
    global _folder
    _folder = Path(folder)


def make(number):
    """Makes a file named by the number; whoever makes it twice finds it. Number 3 dies the first time, half way."""
    path = _folder / f"made-{number}"
    if path.exists():
        return number
    if number == 3 and not (_folder / "died").exists():
        (_folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        raise ValueError("number 5 is not to be had")
    end = time.monotonic() + 90
    while number > 9 and (_folder / "two nodes").exists() and _nodes() == {_node()} and time.monotonic() < end:
        time.sleep(0.05)  # the second node needs some seconds to begin
    with path.open("x") as opened:
        opened.write(_node())
    tick()
    return number


def _node():
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


def _nodes():
    return {path.read_text() for path in _folder.glob("made-*")} - {""}


def run(items, place, folder, **settings):
    ticks = []
    found = list(
        run_stage(items, make, place, prepare=open_folder, arguments=(folder,), on_tick=ticks.append, **settings)
    )
    return found, sum(ticks)


def test_results_come_in_order_and_what_is_there_is_not_made_again(tmp_path):
    (tmp_path / "made-1").touch()
    (tmp_path / "died").touch()
    assert run(range(5), PlaceConfig(), tmp_path) == ([0, 1, 2, 3, 4], 4)
    assert run(range(5), PlaceConfig(), tmp_path) == ([0, 1, 2, 3, 4], 0)


@pytest.mark.parametrize(("first", "step", "tasks", "ranks"), [(0, 1, 3, 1), (1, 2, 4, 1), (5, 1, 2, 2), (0, 1, 1, 1)])
def test_the_tasks_of_an_array_share_the_items(monkeypatch, first, step, tasks, ranks):
    shares = []
    for task in range(first, first + step * tasks, step):
        for rank in range(ranks):
            values = {"ID": task, "MIN": first, "STEP": step, "COUNT": tasks, "MAX": first + step * (tasks - 1)}
            for name, value in values.items():
                monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(ranks))
            shares += PlaceConfig(run_on="slurm").mine(range(10))
    assert sorted(shares) == list(range(10))


@pytest.mark.parametrize("task", [0, 3, 7])
def test_an_array_with_gaps_is_refused_by_each_task(monkeypatch, task):
    for name, value in {"ID": task, "MIN": 0, "MAX": 7, "STEP": 1, "COUNT": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with pytest.raises(ValueError, match="array of 3 tasks from 0 to 7 leaves numbers out"):
        PlaceConfig(run_on="slurm").share()


def test_an_array_that_is_none_is_said(monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(ValueError, match=r"tasks of a Slurm array \(sbatch --array"):
        PlaceConfig(run_on="slurm").share()


def test_times_are_shares_of_all_processes():
    take_times()  # of what ran in this process before
    with timed("decode"):
        time.sleep(0.02)
    with timed("crop"):
        pass
    first = take_times()
    assert set(first) == {"decode", "crop"} and first["decode"] >= 0.02 and take_times() == {}
    assert time_shares([{"a": 1.0, "b": 2.0}, {"a": 5.0}, {}]) == {"a": 0.75, "b": 0.25}
    assert time_shares([]) == {}


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of one node with one process at a time."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "pipelines"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.small = {name: small[name] for name in ("num_cpus", "object_store_memory")}
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_ray_a_killed_process_and_a_new_node_lose_and_double_nothing(tmp_path, cluster):
    place = PlaceConfig(run_on="ray")
    items = [number for number in range(30) if number != 5]
    ticks, found = [], []
    (tmp_path / "two nodes").touch()
    for number in run_stage(items, make, place, prepare=open_folder, arguments=(str(tmp_path),), on_tick=ticks.append):
        found.append(number)
        if number == 1:
            cluster.add_node(**cluster.small)
    assert found == items and sum(ticks) == 29 and (tmp_path / "died").exists()
    nodes = {(tmp_path / f"made-{number}").read_text() for number in items}
    assert len(nodes) == 2
    assert run(items, place, str(tmp_path)) == (items, 0)
    with pytest.raises(ValueError, match="^number 5 is not to be had$"):
        run([5], place, str(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_clips_and_tokens_made_on_ray_are_those_made_here(tmp_path, cluster, rng, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "pipelines"))
    from tiny_clips import tiny_config

    from egom2p.pipelines.prepare import PrepareConfig, prepare
    from egom2p.pipelines.tokenization import tokenize

    world = {"kind": "synthetic", "world": {"num_rooms": 2, "duration_s": 4.0, "camera": {"height": 16, "width": 16}}}
    config = PrepareConfig(
        source=world, clip={"height": 16, "width": 16}, output=str(tmp_path / "here"), dataset="w", clips_per_shard=1
    )
    place = PlaceConfig(run_on="ray")
    report = prepare(config)
    assert prepare(replace(config, output=str(tmp_path / "ray"), place=place)) == report
    made = tiny_config(tmp_path, rng)
    (here,) = tokenize(made)
    (on_ray,) = tokenize(replace(made, output=str(tmp_path / "ray_tokens"), place=place))
    assert on_ray.is_complete and on_ray.modalities == here.modalities
    # Floats of a process whose kernels take another number of threads differ in their last digits.
    for name, errors in here.round_trip.items():
        assert on_ray.round_trip[name] == pytest.approx(errors, rel=1e-6), name
    for one, other in ((tmp_path / "here", tmp_path / "ray"), (Path(made.output), tmp_path / "ray_tokens")):
        names = sorted(path.relative_to(one) for path in one.rglob("*.tar"))
        assert names == sorted(path.relative_to(other) for path in other.rglob("*.tar")) and names
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
