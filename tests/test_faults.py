"""Faults of the machine: what a run meets is said in one line that names it, and nothing is lost."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from egom2p.config import ConfigError, command_line, run_main, strict
from egom2p.config.composition import find_config_file
from egom2p.data.shards.shard_writer import ShardWriter
from egom2p.pipelines.token_shards import Ledger
from egom2p.storage import atomic_directory, load_json, only_writer, save_json, save_tensors

TESTS = Path(__file__).resolve().parent
_HOLD = "import sys; from egom2p.storage import only_writer; lock = only_writer(sys.argv[1]); lock.__enter__()\n"
_SAY = """
import multiprocessing, time
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""
_TOKENS = (
    _HOLD
    + """
from pathlib import Path
from token_shards import tiny_specs, write_tokens
from egom2p.data.masking import AlphasConfig, ModalityAlphas
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, TokenLoader
specs = tiny_specs()
both = ModalityAlphas(input_alphas=[1.0], target_alphas=[1.0])
alphas = AlphasConfig(alphas_mixture={spec.name: both for spec in specs})
shards = write_tokens(Path(sys.argv[2]), specs, num_clips=20)
data = {"a": DatasetConfig(shards=shards, alphas=alphas, max_input_tokens=10, max_target_tokens=10)}
batches = TokenLoader(DataConfig(datasets=data), specs, batch_size=4, seed=0, num_workers=2).batches()
next(batches)
"""
    + _SAY
)
# Windows larger than a pipe, and nobody takes the second: its worker waits in the middle of it.
_CONVERSATIONS = (
    _HOLD
    + """
import json
from pathlib import Path
from anytoany_toys import toy_features, toy_renderer
from egom2p.anytoany.conversations.chat import ChatConfig
from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig, LanguageLoader
from egom2p.anytoany.conversations.datasets import CaptionsConfig
rows = [{"clip": f"a{n}", "description": "red " * 12} for n in range(60)]
file = Path(sys.argv[2], "a.jsonl")
file.write_text("".join(json.dumps(row) + chr(10) for row in rows))
config = LanguageDataConfig(
    datasets={"a": CaptionsConfig(files=(str(file),), ref="clip")}, chat=ChatConfig(max_length=110), row_tokens=128,
    window=3000, num_workers=2,
)
batches = LanguageLoader(config, toy_renderer(max_length=110), toy_features, batch_size=2, seed=0).batches(0)
next(batches)
import time; time.sleep(1)
"""
    + _SAY
)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes live")
@pytest.mark.parametrize("script", [_TOKENS, _CONVERSATIONS], ids=["tokens", "conversations"])
def test_after_kill_9_the_same_folder_is_free_at_once_and_the_workers_end(tmp_path, script):
    """Workers held the lock of a killed run; those of the language model for ever, for their pipe was full."""
    paths = os.pathsep.join([str(TESTS.parent), *(str(TESTS / part) for part in ("data", "anytoany"))])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(is_running, workers))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with only_writer(tmp_path / "run", wait_s=0.5):
            pass
        end_s = time.monotonic() + 10
        while any(map(is_running, workers)) and time.monotonic() < end_s:
            time.sleep(0.1)
        left = [pid for pid in workers if is_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left, f"{len(left)} of 2 workers outlived their run by 10 s"


_ENDS_BY_AN_ERROR = """
import multiprocessing, torch
from torch.utils.data import DataLoader
from egom2p.jobs.workers import from_workers, leave_signals_to_the_parent
loader = DataLoader(range(100), num_workers=2, worker_init_fn=leave_signals_to_the_parent, collate_fn=list)
items = from_workers(loader)
next(items)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
kept = [items]  # as the frames of an error keep it
raise RuntimeError("of the main loop")
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes live")
def test_a_process_that_ends_by_an_error_does_not_wait_for_its_workers(tmp_path):
    """They ignore SIGTERM, which is what Python sends before it waits for them."""
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _ENDS_BY_AN_ERROR]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert ended.returncode == 1 and "RuntimeError: of the main loop" in ended.stderr, ended.stderr[-500:]
    assert "killed by signal" not in ended.stderr
    workers = [int(word) for word in ended.stdout.split()]
    assert len(workers) == 2 and not any(map(is_running, workers))


def test_a_lock_is_waited_for(tmp_path):
    """A run that is requeued comes before the old one has quite ended."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD + "print(1, flush=True)\nimport time; time.sleep(0.8)", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        holder.stdout.readline()
        with (
            pytest.raises(ValueError, match="another process is writing here"),
            only_writer(tmp_path / "run", wait_s=0),
        ):
            pass
        with only_writer(tmp_path / "run"):
            assert holder.poll() is not None or holder.wait(5) == 0


@strict
class Config:
    seed: int = 0


def told(task, config_file, capsys, **environment) -> str:
    """What `run_main` says of a task that ends with code 2."""

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        for name, value in environment.items():
            patch.setenv(name, value)
        run_main(Config, task, arguments=["--config", str(config_file)])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def config_file(tmp_path) -> Path:
    (tmp_path / "job.yaml").write_text("seed: 1\n")
    return tmp_path / "job.yaml"


@contextlib.contextmanager
def largest_file(num_bytes: int):
    """Writing more to one file fails as on a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _save_weights(folder: Path) -> None:
    save_tensors(folder / "a.safetensors", {"a": torch.zeros(100_000)})


def _save_shard(folder: Path) -> None:
    with ShardWriter(folder, "toy", {"cam": "npy"}) as writer:
        writer.write("a", {"cam": b"1" * 400_000})


def _save_json(folder: Path) -> None:
    save_json(folder / "a.json", "1" * 400_000)


def _save_ledger(folder: Path) -> None:
    Ledger(folder / "ledger").append([{"key": "a", "ids": [0] * 100_000}])


def _save_npz(folder: Path) -> None:
    with atomic_directory(folder / "clip") as unfinished:
        np.savez(unfinished / "a.npz", a=np.zeros(100_000))


@pytest.mark.parametrize("write", [_save_weights, _save_shard, _save_json, _save_ledger, _save_npz])
def test_a_disk_that_is_full_is_one_line_with_the_path_and_leaves_no_half(tmp_path, config_file, capsys, write):
    output = tmp_path / "out"
    output.mkdir()

    def task(_):
        with largest_file(100_000):
            write(output)

    said = told(task, config_file, capsys)
    assert str(output) in said and "ulimit -f" in said and "Traceback" not in said and len(said.splitlines()) == 2
    kept = [path for path in output.rglob("*") if path.is_file()]
    assert all(path.name == "ledger" and not list(Ledger(path).entries()) for path in kept)  # its torn line counts not
    write(output)  # with room the same goes through


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; make room"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "Read-only file system; choose an output"),
        (errno.EACCES, "Permission denied; choose a path"),
        (errno.EMFILE, "raise the limit"),
        (errno.EIO, "Input/output error; the disk or network"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_advice(tmp_path, config_file, capsys, monkeypatch, number, advice):
    (tmp_path / "a.json").write_text("1")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    def task(_):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            save_json(tmp_path / "a.json", 2)

    said = told(task, config_file, capsys)
    assert f"error: {tmp_path / 'a.json'}: " in said and advice in said
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "job.yaml"]
        and load_json(tmp_path / "a.json") == 1
    )


def test_an_output_that_is_a_file_or_lies_below_one_is_named(tmp_path, config_file, capsys):
    for output, said in (
        (config_file, "job.yaml: File exists; is a file"),
        (config_file / "run", "a part of this path"),
    ):
        assert said in told(lambda _, output=output: only_writer(output).__enter__(), config_file, capsys)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8000 bytes")]
)
def test_too_little_memory_is_one_line(config_file, capsys, error):
    def task(_):
        raise error

    assert "error: out of memory" in told(task, config_file, capsys)


def test_an_error_of_the_program_keeps_its_traceback(config_file):
    def task(_):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        run_main(Config, task, arguments=["--config", str(config_file)])


def test_what_all_ranks_meet_is_said_by_the_first(tmp_path, config_file, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_OTHER_RANKS_WAIT_S", 0.0)

    def task(_):
        raise ValueError("only I know")

    assert told(task, config_file, capsys, RANK="0").startswith("error: only I know")
    assert told(task, config_file, capsys, RANK="3").startswith("error: rank 3: only I know"), "nobody else may say it"
    config_file.write_text("sede: 1\n")
    assert "did you mean `seed`" in told(task, config_file, capsys, RANK="0")
    assert told(task, config_file, capsys, RANK="1") == ""


@pytest.mark.parametrize(
    "content", ["a: [1", "a: b: c", "- x", "\t- a", "a: &x\nb: *y", "a: !!python/object:os.system 1", "\x00"]
)
def test_a_config_that_is_no_yaml_is_one_line(config_file, capsys, content):
    config_file.write_text(content)
    said = told(print, config_file, capsys)
    assert said.startswith("error: ") and "job.yaml" in said and "Traceback" not in said


def test_a_config_is_found_or_the_nearest_is_named():
    whole = find_config_file("cfgs/default/egom2p/models/main/quickstart.yaml")
    assert find_config_file("cfgs/default/egom2p/models/quickstart.yaml") == whole
    assert find_config_file("default/egom2p/models/quickstart") == whole
    for given, nearest in (
        ("cfgs/egom2p/quickstart.yaml", "did you mean cfgs/default/egom2p/"),
        (
            "cfgs/default/egom2p/models/main/quickstrat.yaml",
            "did you mean cfgs/default/egom2p/models/main/quickstart.yaml",
        ),
        (
            "cfgs/default/ego-b_mod4_500b_clariden_2048_camcv_depthdenoise.yaml",
            "did you mean cfgs/default/egom2p/models/main/ego-b",
        ),
    ):
        with pytest.raises(ConfigError, match=nearest):
            find_config_file(given)
