"""Faults of the machine: what a run meets is said in one line that names it, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egom2p.storage import only_writer

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
