"""The end of a run on several ranks, in order or because one of them hangs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from egom2p.storage import save_json
from egom2p.training import watchdog
from egom2p.training.distributed import STOP_SIGNALS, ranks_of_launch
from egom2p.training.watchdog import BUSY, HANG_CODE, RUNS, WAITS, Watchdog, activity


@pytest.fixture
def group(monkeypatch):
    """A process group of two ranks whose other rank is already gone; what was called, in order."""
    called = []

    def barrier():
        called.append("barrier")
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: called.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", barrier)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("destroyed"))
    return called


def test_a_peer_that_left_first_is_no_error(group):
    with ranks_of_launch("cpu") as ranks:
        assert ranks.world_size == 2
    assert group == ["gloo", "barrier", "destroyed"]


def test_an_error_inside_is_not_hidden_and_does_not_wait_for_peers(group):
    with pytest.raises(RuntimeError, match="in the run"), ranks_of_launch("cpu"):
        raise RuntimeError("in the run")
    assert group == ["gloo"]


class Left(threading.Event):
    """In place of the end of the process: its code."""

    def __call__(self, code: int) -> None:
        self.code = code
        self.set()


class Peer:
    """Another rank, as far as the store shows it."""

    def __init__(self, store, rank: int) -> None:
        self._store, self._rank, self._beat = store, rank, 0

    def beats(self, *, state: str = RUNS, count: int = 1) -> None:
        self._beat += 1
        beat = {"beat": self._beat, "count": count, "state": state, "stack": f"  in the data of rank {self._rank}\n"}
        self._store.set(f"beat/{self._rank}", json.dumps(beat))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "_BEAT_S", 0.02)
    monkeypatch.setattr(watchdog, "_OBEY_S", 0.3)
    monkeypatch.setattr(watchdog, "_STUCK_S", 0.6)


def guard(store, left, *, rank=0, limit_s=0.4):
    return Watchdog(store, rank=rank, world_size=3, limit_s=limit_s, signals=STOP_SIGNALS, leave=left)


def test_a_rank_that_gives_no_sign_is_named_with_the_stacks_of_all(quick, capsys):
    store, left = dist.HashStore(), Left()
    one, two = Peer(store, 1), Peer(store, 2)
    one.beats(state=WAITS)
    with guard(store, left), activity.doing(WAITS):
        end_s = time.monotonic() + 10
        while not left.is_set() and time.monotonic() < end_s:
            two.beats(state=WAITS)
            time.sleep(0.02)
    assert left.code == HANG_CODE == 4
    said = capsys.readouterr().err
    assert "rank 1 gave no sign of life" in said and "code 4" in said
    assert "in the data of rank 1" in said and "in the data of rank 2" in said and "test_a_rank_that_gives" in said
    others = Left()
    with guard(store, others, rank=2, limit_s=60):
        assert others.wait(10) and others.code == HANG_CODE, "what one rank found ends the others"
    assert capsys.readouterr().err == ""


def test_the_first_rank_is_watched_by_the_others(quick, capsys):
    store, left = dist.HashStore(), Left()
    Peer(store, 0).beats()
    with guard(store, left, rank=1):
        assert left.wait(10) and left.code == HANG_CODE
    assert "rank 0 gave no sign of life" in capsys.readouterr().err


def test_a_rank_that_lives_but_does_not_come_is_named_and_waited_for(quick, capsys):
    store, left = dist.HashStore(), Left()
    one, two = Peer(store, 1), Peer(store, 2)
    with guard(store, left), activity.doing(WAITS):
        for _ in range(60):
            one.beats(state=RUNS)
            two.beats(state=BUSY)  # an evaluation or a checkpoint takes as long as it takes
            time.sleep(0.02)
    said = capsys.readouterr().err
    assert "rank 1 lives but keeps the others waiting" in said and not left.is_set()


@pytest.mark.parametrize("is_silent", [True, False], ids=["stopped", "lost in its data"])
def test_a_signal_is_obeyed_where_a_peer_does_not_come(quick, capsys, is_silent):
    store, left = dist.HashStore(), Left()
    one, two = Peer(store, 1), Peer(store, 2)
    one.beats()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with guard(store, left, limit_s=60), activity.doing(WAITS):
            os.kill(os.getpid(), signal.SIGTERM)
            end_s = time.monotonic() + 10
            while not left.is_set() and time.monotonic() < end_s:
                two.beats(state=WAITS)
                if not is_silent:
                    one.beats()
                time.sleep(0.02)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.code == 143 and "ends by SIGTERM" in capsys.readouterr().err


def test_a_signal_waits_for_peers_that_answer(quick):
    store, left = dist.HashStore(), Left()
    one, two = Peer(store, 1), Peer(store, 2)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with guard(store, left, limit_s=60), activity.doing(WAITS):
            os.kill(os.getpid(), signal.SIGTERM)
            for number in range(60):
                one.beats(state=BUSY)
                two.beats(count=number)
                time.sleep(0.02)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not left.is_set()


def test_a_process_that_was_stopped_itself_blames_nobody(quick):
    store, left = dist.HashStore(), Left()
    for rank in (1, 2):
        Peer(store, rank).beats()
    watched = guard(store, left, limit_s=10)
    watched._turn()
    for seen in watched._seen.values():
        seen.beat_s -= 100
    watched._woken_s -= 100
    watched._turn()
    assert not left.is_set()


def terminated_meanwhile(function):
    def call(watched):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(watched)

    return call


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_whose_process_is_gone_is_named_where_a_collective_breaks(quick, capsys, monkeypatch, rank):
    """Torch says "connection closed by peer" and no rank; the launcher, which sees it too, sends SIGTERM meanwhile."""
    heard = []
    monkeypatch.setattr(Watchdog, "_who_is_gone", terminated_meanwhile(Watchdog._who_is_gone))
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    store, over = dist.HashStore(), threading.Event()
    Peer(store, 1).beats(state=WAITS)
    other = Peer(store, 2 - rank)

    def live() -> None:
        while not over.wait(0.02):
            other.beats(state=WAITS)

    threading.Thread(target=live).start()
    began_s = time.monotonic()
    with pytest.raises(SystemExit) as ended, guard(store, Left(), rank=rank, limit_s=60):
        raise RuntimeError("[pair.cc] Connection closed by peer [127.0.0.1]:4\nand more")
    assert ended.value.code == HANG_CODE and time.monotonic() - began_s < 5
    said = capsys.readouterr().err
    assert "rank 1 broke off" in said and "Connection closed by peer" in said and "and more" not in said
    with pytest.raises(RuntimeError, match="of ours"), guard(dist.HashStore(), Left(), rank=0, limit_s=60) as watched:
        watched._world_size = 1  # all that are left live
        watched._seen = {0: watched._seen[0]}
        raise RuntimeError("a mistake of ours")
    over.set()
    assert signal.signal(signal.SIGTERM, before) and not heard


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for the ranks of a launcher")
@pytest.mark.parametrize("then", ["wait", "SIGTERM", "SIGKILL"])
def test_a_stopped_rank_under_torchrun(tmp_path, then):
    """kill -STOP of rank 1: it is named within the time of `watchdog_s`; SIGTERM to rank 0 is obeyed meanwhile.

    kill -9 of rank 1 names it too. Of three ranks, the others say the same.
    """
    here = Path(__file__).parent
    save_json(
        tmp_path / "options.json", {"num_steps": 100_000, "delay_s": 0.01, "watchdog_s": 8 if then == "wait" else 90}
    )
    environment = os.environ | {"PYTHONPATH": f"{here.parents[1]}:{here.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    command += [str(here / "toy_task.py"), str(tmp_path / "run"), str(tmp_path / "options.json")]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(command, env=environment, stderr=said, stdout=said) as run,
    ):
        log, end_s = tmp_path / "run" / "log.jsonl", time.monotonic() + 90
        while time.monotonic() < end_s and not (log.is_file() and len(log.read_text().splitlines()) > 3):
            time.sleep(0.1)
        by_rank = {}
        for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
            found = re.search(rb"\0RANK=(\d)", Path(f"/proc/{pid}/environ").read_bytes())
            if found:
                by_rank[int(found[1])] = int(pid)
        os.kill(by_rank[1], signal.SIGKILL if then == "SIGKILL" else signal.SIGSTOP)
        stopped_s = time.monotonic()
        if then == "SIGTERM":
            time.sleep(1)
            os.kill(by_rank[0], signal.SIGTERM)
        while Path(f"/proc/{by_rank[0]}").exists() and time.monotonic() < stopped_s + 60:
            if Path(f"/proc/{by_rank[0]}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.1)
        took_s = time.monotonic() - stopped_s
        if then != "SIGKILL":
            os.kill(by_rank[1], signal.SIGKILL)
        run.wait(60)
    text = (tmp_path / "said").read_text()
    assert took_s < 20, text[-3000:]
    wanted = {
        "wait": "rank 1 gave no sign of life",
        "SIGTERM": "ends by SIGTERM, in the middle of a step, for rank 1",
        "SIGKILL": "rank 1 broke off and gives no sign of life",
    }[then]
    assert wanted in text and (then == "SIGKILL" or text.count("toy_task.py") > 2), text[-3000:]
    if then != "SIGKILL":  # of which the launcher shows the code of the rank that was killed
        assert f"exitcode  : {HANG_CODE if then == 'wait' else 143}" in text, text[-3000:]
