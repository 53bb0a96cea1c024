"""Over many steps, loads and requests nothing grows: memory, open files, threads, files on the disk."""

import gc
import http.client
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_artifacts
from model_toys import WIDTH, toy_model
from tiny_tokens import pretrain_values, write_sets

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.serve import INFERENCE, CaptionServer, ServeConfig
from egom2p.config import from_plain
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.token_set import TokenSet
from egom2p.generation.checkpoints import load_checkpoint
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask, pretrain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc what this process holds"),
]
GROWTH_MB = 12  # allocators keep some; one model, one store or one answer leaked each time would be far more


def held(folder: Path) -> dict[str, int]:
    """What this process and its folder hold now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) // 1024,
        "threads": threading.active_count(),
        "handles": len(os.listdir("/proc/self/fd")),
        "files": sum(1 for _ in folder.rglob("*")),
    }


def check_flat(samples: list[dict[str, int]], name: str) -> None:
    """Of the last half nothing lies above what the half before it reached."""
    half = len(samples) // 2
    before, after = samples[len(samples) // 4 : half], samples[half:]
    for key in before[0]:
        most, now = max(sample[key] for sample in before), max(sample[key] for sample in after)
        assert now <= most + (GROWTH_MB if key == "memory_mb" else 0), f"{name}: {key} grew from {most} to {now}"
    print(f"{name}: {samples[len(samples) // 4]} to {samples[-1]}")


def repeated(action: Callable[[int], object], folder: Path, times: int, every: int) -> list[dict[str, int]]:
    samples = []
    for number in range(times):
        action(number)
        if number % every == 0:
            samples.append(held(folder))
    return samples


@pytest.mark.parametrize("workers", [0, 2])
def test_training(tmp_path, workers):
    samples = []

    class Watched(PretrainTask):
        def after_step(self):
            super().after_step()
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps % 10 == 9:  # with checkpoints and evaluations before it, and files in work nowhere
                samples.append(held(tmp_path / "run"))

    more = {"checkpoint_every": 10, "evaluate_every": 50, "log_every": 5, "batch_size": 4, "num_workers": workers}
    values = pretrain_values(write_sets(tmp_path / "tokens"), tmp_path / "run", num_steps=400, **more)
    pretrain(from_plain(PretrainConfig, values), Watched)
    check_flat(samples, f"400 steps, {workers} workers")


def test_loading(tmp_path):
    tiny_artifacts.make_tiny_world(tmp_path)
    clips = tmp_path / "clips" / "val"

    def load(_: int) -> None:
        checkpoint = load_checkpoint(tmp_path / "model", device="cpu")
        store = ClipStore(clips, "tiny")
        assert [store[number].key for number in range(len(store))] == store.keys
        tokens = TokenSet(str(tmp_path / "tokens/train/[gaze,cam]/tiny/shard-*.tar"), [
            spec for spec in checkpoint.specs if spec.folder in ("gaze", "cam")
        ])  # fmt: skip
        assert len(tokens)

    check_flat(repeated(load, tmp_path, times=60, every=3), "60 loads")


def test_server(tmp_path):
    config = ServeConfig(model="-", prompt="{video} what?", port=0, answer=AnswerConfig(max_new_tokens=3))
    with CaptionServer(config, Inference(toy_model(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        idle = threading.active_count()

        def ask(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            body = json.dumps({"embedding": [0.01 * (number % 7)] * WIDTH}) if number % 5 else "{"
            connection.request("POST", INFERENCE, body)
            assert connection.getresponse().status == (200 if number % 5 else 400)
            connection.close()
            # The thread of a connection ends some moments after its client is gone: then it counts for nothing.
            ended_s = time.monotonic() + 20
            while threading.active_count() > idle and time.monotonic() < ended_s:
                time.sleep(0.001)

        samples = repeated(ask, tmp_path, times=500, every=20)
        server.shutdown()
    check_flat(samples, "500 requests")
