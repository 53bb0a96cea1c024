"""kill -9 in the middle of a command: the same command again ends as an undisturbed one, bit by bit.

A moment is an event of a run: an optimizer step, a flush to the disk, a rename. The undisturbed run counts them, the
others die before a given part of them has passed, so that the moments are the same ones on every machine. Each run is
a fresh process, forked from a server that has imported what they need.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_artifacts
import torch
from model_toys import LLAMA
from tiny_tokens import pretrain_values, write_tokens

from egom2p.anytoany.download import DownloadConfig, download
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig
from egom2p.config import from_plain, load_config
from egom2p.data.clips.clip_store import write_clips
from egom2p.data.clips.video_files import open_video, write_video
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EvaluationConfig
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.pipelines.prepare import PrepareConfig, prepare
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.storage import fingerprint_of, is_unfinished, load_tensor_metadata, load_tensors
from egom2p.training import loop
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig, train_anytoany
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
TRAINING = {"num_steps": 8, "lr": 0.01, "checkpoint_every": 2, "log_every": 1, "batch_size": 4, "device": "cpu"}
MOMENTS = (0.25, 0.6, 0.95)
MOMENTS_OF_A_LAUNCH = int(os.environ.get("EGOM2P_KILLS", "8"))
Run = Callable[[Path, Path], None]


def run_pretrain(world: Path, output: Path, workers: int = 0) -> None:
    values = pretrain_values(world / "tokens", output, **TRAINING, num_workers=workers)
    pretrain(from_plain(PretrainConfig, values))


def run_tokenizer(world: Path, output: Path, workers: int = 0) -> None:
    network = {
        "architecture": "trajectory_vqvae", "modality": "tok_gaze", "quantity": "gaze", "folder": "gaze",
        "num_samples": tiny_artifacts.NUM_SAMPLES, "dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2,
        "latent_dim": 4, "num_codes": 8,
    }  # fmt: skip
    values = {
        "output_dir": str(output), "network": network, "training": TRAINING | {"num_workers": workers},
        "train": {"root": str(world / "clips"), "datasets": ["train"]},
        "validation": {"root": str(world / "clips"), "datasets": ["val"]},
    }  # fmt: skip
    train_tokenizer(from_plain(TokenizerTrainingConfig, values))


def run_anytoany(world: Path, output: Path, workers: int = 0) -> None:
    data, sets = world / "datasets", ("coco_llava_instruct", "vision_flan", "sam_llava")
    values = {f"data.datasets.{name}.files": f"[{data / name / 'output.parquet'}]" for name in sets}
    values |= {
        "output_dir": output,
        "model.language_model.pretrained": world / "base" / "Meta-Llama-3-8B-Instruct",
        "model.language_model.dtype": "float32",
        "evaluation.datasets.sam_llava.files": f"[{data}/sam_llava/output.parquet]",
        "evaluation.max_conversations": 2,
        "data.window": 64,
        "data.num_workers": workers,
        "training.epochs": "null",
        "training.warmup": 0,
        "training.accumulation": 1,
        "training.dtype": "fp32",
        "training.checkpoint_minutes": "null",
        "training.num_steps": 4,
        "training.checkpoint_every": 2,
        "training.log_every": 1,
    }
    overrides = [f"{key}={value}" for key, value in values.items()]
    train_anytoany(load_config(AnyToAnyTrainingConfig, ROOT / "cfgs/default/anytoany/8B_lora.yaml", overrides))


def run_prepare(world: Path, output: Path) -> None:
    source = {"kind": "plain_folder", "root": str(world / "recordings")}
    clip = {"height": 16, "width": 16}
    prepare(PrepareConfig(source=source, clip=clip, output=str(output), dataset="home", clips_per_shard=2))


def run_tokenize(world: Path, output: Path) -> None:
    tokenizers = {f"tok_{name}": name for name in tiny_artifacts.TOKENIZERS}
    tokenize(
        TokenizeConfig(
            clips=str(world / "clips" / "train"), tokenizers_root=str(world / "tokenizers"), tokenizers=tokenizers,
            output=str(output), batch_size=2, device="cpu",
        )
    )  # fmt: skip


def run_generate(world: Path, output: Path) -> None:
    run_generation(
        GenerationConfig(
            checkpoint=str(world / "model"), input=str(world / "clips" / "val"), output=str(output), join="none",
            targets=("depth", "cam", "gaze"), batch_size=1, device="cpu", progress=False,
        )
    )  # fmt: skip


def run_evaluate(world: Path, output: Path) -> None:
    clips = ClipsConfig(root=str(world / "clips" / "val"), dataset="tiny")
    run_evaluation(
        EvaluationConfig(
            output=str(output), checkpoints={"tiny": str(world / "model")}, clips=clips, num_shown_clips=2,
            tasks=("rgb2gaze", "rgb2camera", "rgb2depth"), device="cpu", progress=False,
        )
    )  # fmt: skip


def make_pretrain(world: Path) -> None:
    for name, count in (("train", 24), ("val", 8)):
        write_tokens(world / "tokens", name, count, seed=count)


def make_tokenizer(world: Path) -> None:
    for name, first in (("train", 0), ("val", 100)):
        write_clips(world / "clips", name, [tiny_artifacts.invented_clip(first + number) for number in range(6)])


def make_anytoany(world: Path) -> None:
    synthetic = SyntheticDataConfig(clips_per_combination=1, vocab_size=600, architecture=LLAMA)
    download(DownloadConfig(output=str(world), source="synthetic", synthetic=synthetic))


def make_recordings(world: Path) -> None:
    for number, name in enumerate("abc"):
        folder = world / "recordings" / name
        folder.mkdir(parents=True)
        write_video(folder / "video.mp4", np.full((120, 24, 32, 3), 60 + 40 * number, np.uint8), 30)


def _counted(run: Run, world: Path, output: Path, last: int | None, environment: dict[str, str]) -> None:
    """Run; die before event `last`, or, without one, leave the number of events in `<output>.events<rank>`."""
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    events = 0

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal events
            events += 1
            if events == last:
                if function is fsync:  # as if the power had gone in the middle of the file
                    with contextlib.suppress(OSError):  # a folder
                        opened = f"/proc/self/fd/{arguments[0]}"
                        os.truncate(opened, os.stat(opened).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    fsync = os.fsync
    os.replace, os.rename, os.fsync = counted(os.replace), counted(os.rename), counted(fsync)
    loop.apply_gradients = counted(loop.apply_gradients)
    with open(output.with_suffix(".said"), "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        run(world, output)
    if last is None:
        output.with_suffix(f".events{environment.get('RANK', 0)}").write_text(str(events))


def process(run: Run, world: Path, output: Path, last: int | None = None, *, dying: int = 0, ranks: int = 1) -> int:
    """Run on one or several ranks, of which `dying` ends at event `last`; the exit code of that one."""
    started = multiprocessing.get_context(START)
    if START == "forkserver":
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # some versions of Python tell their server nothing else
        started.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    children = []
    for rank in range(ranks):
        environment = launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        moment = last if rank == dying else None
        children.append(started.Process(target=_counted, args=(run, world, output, moment, environment)))
        children[-1].start()
    children[dying].join(300)
    for child in children:
        if last is not None or child.exitcode is None:
            child.join(0 if last is not None else 60)  # a machine that is gone takes all its ranks along
            child.kill()
            child.join()
    codes = {child.exitcode for child in children}
    return children[dying].exitcode if last is not None else next((code for code in codes if code), 0)


def killed_and_run_again(run: Run, world: Path, output: Path, last: int, **launch: int) -> None:
    for index in [*world.rglob(".index")]:  # of shards, which the first run makes: the same events each time
        shutil.rmtree(index)
    assert process(run, world, output, last, **launch) == -signal.SIGKILL
    assert process(run, world, output, **launch) == 0, output.with_suffix(".said").read_text()[-3000:]


def undisturbed(run: Run, make: Callable[[Path], None], folder: Path, *, ranks: int = 1) -> tuple[Path, Path, int]:
    if not (folder / "world").is_dir():
        make(folder / "world")
    output = folder / "whole"
    assert process(run, folder / "world", output, ranks=ranks) == 0, output.with_suffix(".said").read_text()[-3000:]
    return folder / "world", output, int(output.with_suffix(".events0").read_text())


def trained(folder: Path) -> dict[str, Any]:
    """All that a training run leaves and that is the same every time: weights, state of the optimizer, losses."""
    assert not [file for file in folder.rglob("*") if is_unfinished(file)], "something half-written was left"
    kept = {}
    for file in sorted(folder.rglob("*.safetensors")):  # their bytes may differ: the library writes notes in any order
        tensors = load_tensors(file)
        kept[str(file.relative_to(folder))] = fingerprint_of(tensors, {"notes": load_tensor_metadata(file)})
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    curve = [(item["step"], item["loss"], item["grad_norm"]) for item in entries if item["kind"] == "train"]
    return kept | {"curve": curve}


def written(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but reports, which tell times. A half-written card of tokenization stays, hidden.

    Of `results.json` without seconds and without its config, which names the output. Of a video to look at how long it
    is: the encoder once made other bits of the same frames.
    """
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = file.relative_to(folder), file.read_bytes()
        if "_report" in file.name or any(is_unfinished(part) for part in name.parts):
            continue
        if file.name == "results.json":
            content = json.dumps(json.loads(content) | {"seconds": None, "config": None}).encode()
        if file.suffix == ".mp4":
            content = str(len(open_video(file))).encode()
        found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


TRAINERS = {
    "pretrain": (run_pretrain, make_pretrain),
    "tokenizer": (run_tokenizer, make_tokenizer),
    "anytoany": (run_anytoany, make_anytoany),
}


_SLOW = pytest.mark.slow  # half a minute a run


@pytest.fixture(scope="module", params=["pretrain", "tokenizer", pytest.param("anytoany", marks=_SLOW)])
def trainer(request, tmp_path_factory):
    run, make = TRAINERS[request.param]
    return run, *undisturbed(run, make, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_training_killed_at_a_fixed_moment_ends_as_an_undisturbed_one(trainer, tmp_path, moment):
    run, world, whole, events = trainer
    assert events > 20
    killed_and_run_again(run, world, tmp_path / "parts", round(moment * events))
    assert trained(tmp_path / "parts") == trained(whole)


@pytest.mark.parametrize(
    ("run", "make"),
    [
        (run_prepare, make_recordings),
        (run_generate, tiny_artifacts.make_tiny_world),
        (run_evaluate, tiny_artifacts.make_tiny_world),
    ],
    ids=["prepare", "generate", "evaluate"],
)
def test_a_job_killed_at_a_fixed_moment_ends_with_the_same_bytes(tmp_path, run, make):
    check_bytes(run, make, tmp_path, MOMENTS)
    assert not [file for file in tmp_path.rglob("*") if is_unfinished(file)], "something half-written was left"


def test_tokenize_killed_at_a_fixed_moment_ends_with_the_same_bytes(tmp_path):
    check_bytes(run_tokenize, tiny_artifacts.make_tiny_world, tmp_path, MOMENTS)


def check_bytes(run, make, folder: Path, moments) -> None:
    world, whole, events = undisturbed(run, make, folder)
    assert events >= len(moments)
    for number, moment in enumerate(moments):
        output = folder / f"parts{number}" / "whole"  # the same last name: it may stand in a file
        output.parent.mkdir()
        killed_and_run_again(run, world, output, max(1, round(moment * events)))
        assert written(output) == written(whole), f"killed before event {round(moment * events)} of {events}"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", TRAINERS)
def test_training_killed_at_thirty_random_moments(tmp_path, name, workers, ranks):
    """Eight moments of each of the four launches: thirty and two of each trainer. Of two ranks either one dies."""
    run, make = TRAINERS[name]
    run = functools.partial(run, workers=workers)
    world, whole, events = undisturbed(run, make, tmp_path, ranks=ranks)
    random = np.random.default_rng(2 * workers + ranks)
    for number in range(MOMENTS_OF_A_LAUNCH):
        dying = number % ranks
        of_rank = int(whole.with_suffix(f".events{dying}").read_text())
        last = int(random.integers(1, of_rank + 1))
        parts = tmp_path / str(number)
        killed_and_run_again(run, world, parts, last, dying=dying, ranks=ranks)
        assert trained(parts) == trained(whole), f"rank {dying} killed before event {last} of {of_rank}"
