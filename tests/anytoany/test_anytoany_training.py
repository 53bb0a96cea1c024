"""The published run on stand-ins made here: it learns, resumes, and adds up over ranks and accumulation."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from egom2p.anytoany import generate
from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.download import DownloadConfig, download
from egom2p.anytoany.perception.familiarity import Familiarity
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig
from egom2p.config import ConfigError, load_config
from egom2p.data.clips.video_files import write_video
from egom2p.storage import load_tensors, save_tensors
from egom2p.training.distributed import Ranks
from egom2p.training.parallel import prepare_blocks, share_gradients, whole_tensor
from egom2p.training.step import forward_backward
from egom2p.training.tasks.anytoany_task import AnyToAnyTask, AnyToAnyTrainingConfig, train_anytoany

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "cfgs/default/anytoany/8B_lora.yaml"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    synthetic = SyntheticDataConfig(clips_per_combination=1, vocab_size=600, architecture=LLAMA)
    download(DownloadConfig(output=str(folder), source="synthetic", synthetic=synthetic))
    return folder


def overrides(downloads, output, **more):
    data = downloads / "datasets"
    values = {
        "output_dir": output,
        "model.language_model.pretrained": downloads / "base" / "Meta-Llama-3-8B-Instruct",
        "model.language_model.dtype": "float32",
        "data.datasets.coco_llava_instruct.files": f"[{data}/coco_llava_instruct/output.parquet]",
        "data.datasets.vision_flan.files": f"[{data}/vision_flan/output.parquet]",
        "data.datasets.sam_llava.files": f"[{data}/sam_llava/output.parquet]",
        "evaluation.datasets.sam_llava.files": f"[{data}/sam_llava/output.parquet]",
        "evaluation.max_conversations": 4,
        "data.window": 64,
        "training.epochs": "null",
        "training.num_steps": 4,
        "training.warmup": 0,
        "training.step_size": "null",
        "training.accumulation": 2,
        "training.dtype": "fp32",
        "training.num_threads": 1,
        "training.checkpoint_minutes": "null",
    } | more
    return [f"{key}={value}" for key, value in values.items()]


def config_of(downloads, output, **more):
    return load_config(AnyToAnyTrainingConfig, ROOT / CONFIG, overrides(downloads, output, **more))


def losses(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(entry["loss"], entry["grad_norm"]) for entry in entries if entry["kind"] == "train"]


def test_two_times_the_same_steps_are_the_same(downloads, tmp_path, capsys):
    train_anytoany(config_of(downloads, tmp_path / "run", **{"training.check_determinism": 2}))
    assert "2 steps twice" in "".join(capsys.readouterr()) and not (tmp_path / "run").exists()


def test_the_published_config_takes_steps_and_resumes_to_the_bit(downloads, tmp_path, capsys):
    """`finetune-x1` once took no optimizer step, and no run could be continued inside an epoch."""
    result = train_anytoany(config_of(downloads, tmp_path / "whole"))
    assert result.progress.step == 4 and result.progress.clips == 4 * 4 * 2
    reported = "".join(capsys.readouterr())
    assert " rows a step" in reported and "finished after 4 steps, 32 conversations" in reported
    assert "conversations/s" in reported and " clips" not in reported
    adapter = load_tensors(tmp_path / "whole" / "final" / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    assert Familiarity.load(tmp_path / "whole" / "final").spreads[0, 0].limit > 0

    train_anytoany(
        config_of(downloads, tmp_path / "parts", **{"training.num_steps": 2, "training.schedule": "constant"})
    )
    part = {"training.schedule": "constant"}
    train_anytoany(config_of(downloads, tmp_path / "parts2", **part))
    (tmp_path / "parts" / "final").rename(tmp_path / "first_final")
    train_anytoany(config_of(downloads, tmp_path / "parts", **part))
    assert losses(tmp_path / "parts") == losses(tmp_path / "parts2")
    samples = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()]
    assert {"key", "reference", "output"} == set(samples[0]["samples"][0])
    kept = load_tensors(tmp_path / "whole" / "checkpoints" / "step-00000004" / "training.safetensors")
    assert not [name for name in kept if "base_layer" in name or "embed_tokens" in name], "frozen weights were copied"


def test_unknown_keys_are_refused(downloads, tmp_path):
    """`gradient-accumulation-steps=32` was accepted and did nothing."""
    for wrong in ("gradient-accumulation-steps=32", "training.gradient_accumulation_steps=32", "model.lora.r=4"):
        with pytest.raises(ConfigError, match="unknown key"):
            load_config(AnyToAnyTrainingConfig, ROOT / CONFIG, [wrong])
    for useless in (
        ["training.num_workers=2"],
        ["training.step_size=null", "training.batching=tokens", "training.batch_tokens=64"],
    ):
        with pytest.raises(ConfigError, match="has no effect on conversations"):
            load_config(AnyToAnyTrainingConfig, ROOT / CONFIG, useless)


def test_everything_trained_is_float32_and_nothing_trained_is_unused(downloads, tmp_path):
    """Bfloat16 weights under AdamW lose small steps; a head that nothing used was trained and saved."""
    task = AnyToAnyTask(config_of(downloads, tmp_path, **{"model.language_model.dtype": "bfloat16"}), Ranks())
    trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        task.model(next(task.batches(0))).sums.sum().backward()
    unused = [name for name, parameter in trained.items() if parameter.grad is None]
    assert not unused


def test_what_is_perceived_is_never_changed(downloads, tmp_path):
    """Vectors of the data set were cast and moved in place, one after the other."""
    task = AnyToAnyTask(config_of(downloads, tmp_path), Ranks())
    batch = next(task.batches(0))
    seen = list(task.lookup._cache.values())
    before = [(item.features.copy(), item.position.copy()) for item in seen]
    with torch.autocast("cpu", torch.bfloat16):
        task.model(batch.to("cpu")).sums.sum().backward()
    assert len(seen) > 1
    for item, (features, position) in zip(seen, before, strict=True):
        assert item.features.dtype == np.float32 and (item.features == features).all()
        assert (item.position == position).all()


def test_the_8b_recipe_with_files_of_ones_own_answers_about_a_file(downloads, tmp_path, capsys):
    own, tower = tmp_path / "own", "{source: timm_frames, tower: test_vit, tower_weights: random, image_size: 32"
    own.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), np.uint8)
    write_video(own / "walk.mp4", frames, 10)
    Image.fromarray(frames[0]).save(own / "photo.png")
    rows = [{"file": name, "description": f"a {name[:4]}"} for name in ("walk.mp4", "photo.png")] * 8
    (own / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = "{source: vectors, width: 1024, kinds: [image, audio]}"
    more = {
        f"{part}.datasets.own.{key}": value
        for part in ("data", "evaluation")
        for key, value in {"files": f"[{own}/captions.jsonl]", "folder": own}.items()
    }
    more |= {
        "model.perception": f"[{vectors}, {tower}, num_frames: 2, clip_s: 0.5, kinds: [video]}}]",
        "data.mix": "{weights: {coco_llava_instruct: 1, vision_flan: 1, sam_llava: 1, own: 3}}",
        "training.num_steps": 2,
    }
    config = overrides(downloads, tmp_path / "run", **more)
    train_anytoany(load_config(AnyToAnyTrainingConfig, ROOT / "cfgs/default/anytoany/8B_lora_files.yaml", config))
    capsys.readouterr()
    asked = {"model": str(tmp_path / "run" / "final"), "prompt": "{video}\nDescribe this video.", "device": "cpu"}
    for name in ("walk.mp4", "photo.png"):
        generate.main(generate.GenerateConfig(**asked, video=str(own / name), answer=AnswerConfig(max_new_tokens=4)))
        told = capsys.readouterr()
        assert told.out and "STAND-IN" in told.err and f"{name} is unlike" not in told.err


def step_gradients(downloads, tmp_path, *, batch_size, accumulation):
    more = {"training.batch_size": batch_size, "data.batching": "single"}
    task = AnyToAnyTask(config_of(downloads, tmp_path, **more), Ranks())
    batches = task.batches(0)
    window = [next(batches) for _ in range(accumulation)]
    count = tuple(sum(column) for column in zip(*(task.counts(batch) for batch in window), strict=True))
    total = 0.0
    for batch in window:
        loss = task.combine(task.loss(task.model, batch).sums, count)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


def test_accumulation_changes_nothing(downloads, tmp_path):
    """Means of micro-batch means weigh tokens by where they lie."""
    loss, gradients = step_gradients(downloads, tmp_path, batch_size=8, accumulation=1)
    for batch_size, accumulation in ((4, 2), (1, 8)):
        other, parts = step_gradients(downloads, tmp_path, batch_size=batch_size, accumulation=accumulation)
        assert other == pytest.approx(loss, abs=1e-6)
        for name, gradient in gradients.items():
            assert torch.allclose(parts[name], gradient, atol=1e-6), name


def test_a_micro_batch_without_targets_is_no_nan(downloads, tmp_path):
    from dataclasses import replace

    task = AnyToAnyTask(config_of(downloads, tmp_path), Ranks())
    batch = next(task.batches(0))
    silent = replace(batch, labels=torch.full_like(batch.labels, -100), num_targets=0)
    loss = task.combine(task.loss(task.model, silent).sums, task.counts(silent))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in task.model.parameters() if p.grad is not None)


def whole_step(config, ranks, *, accumulation, folder, spread=share_gradients):
    """Loss, targets of this rank and gradients of a first step, as the loop takes it, kept in a file."""
    task = AnyToAnyTask(config, ranks)
    noise = torch.Generator().manual_seed(3)
    for parameter in task.model.parameters():
        if parameter.requires_grad:  # fresh adapters are 0, and so would half of their gradients be
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    batches = task.batches(0)
    window = [next(batches) for _ in range(accumulation)]
    own = sum(task.counts(batch)[0] for batch in window)
    prepare_blocks(task.model, recompute=config.training.activation_checkpointing, compile_blocks=False)
    model = spread(task.model) if ranks.world_size > 1 else task.model
    counts = tuple(ranks.sum_ints([own]))
    step = forward_backward(task, model, window, counts, ranks=ranks, dtype=torch.float32)
    gradients = {
        name: whole_tensor(p.grad).contiguous() for name, p in task.model.named_parameters() if p.requires_grad
    }
    about = {"loss": ranks.sum_tensor(step.loss.double()), "own": torch.tensor(own), "all": torch.tensor(counts)}
    save_tensors(folder / f"rank{ranks.rank}of{ranks.world_size}.safetensors", {**gradients, **about})


def _one_rank(rank, config, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    whole_step(config, Ranks(rank=rank, world_size=2), accumulation=1, folder=folder)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_loss_and_gradients_of_two_ranks_are_those_of_one_with_accumulation(downloads, tmp_path):
    """To 1e-6, of all targets of the step alike; after a step of AdamW rounding of tiny gradients would be as large
    as the gradients.
    """
    config = config_of(downloads, tmp_path / "out", **{"training.batch_size": 3, "data.batching": "single"})
    whole_step(config, Ranks(), accumulation=2, folder=tmp_path)
    torch.multiprocessing.spawn(_one_rank, args=(config, tmp_path), nprocs=2)
    one, *two = (load_tensors(tmp_path / f"rank{name}.safetensors") for name in ("0of1", "0of2", "1of2"))
    targets = [int(rank["own"]) for rank in two]
    assert targets[0] != targets[1] and sum(targets) == int(one["own"]) == int(one["all"])
    for rank in two:
        assert rank.keys() == one.keys()
        assert rank["loss"].item() == pytest.approx(one["loss"].item(), abs=1e-6)
        for name in one.keys() - {"loss", "own", "all"}:
            assert one[name].abs().max() > 0, name
            torch.testing.assert_close(
                rank[name], one[name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: name + text
            )


@pytest.mark.slow
def test_two_ranks_equal_one_with_accumulation(downloads, tmp_path):
    more = {"training.batch_size": 4, "data.batching": "single", "training.log_every": 1}
    train_anytoany(config_of(downloads, tmp_path / "one", **more))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = more | {"training.accumulation": 1}
    arguments = [
        *command,
        "run_training_anytoany.py",
        "--config",
        CONFIG,
        *overrides(downloads, tmp_path / "two", **two),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for one, other in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    weights = [load_tensors(tmp_path / name / "final" / "parts.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


def test_a_dry_run_looks_for_room_for_two_checkpoints(downloads, tmp_path, monkeypatch, capsys):
    config = config_of(downloads, tmp_path / "run", dry_run="true")
    train_anytoany(config)
    written = re.search(r"checkpoints: (\S+) GB each", capsys.readouterr().out)
    assert written is not None and float(written[1]) > 0
    free = int(1.9e9 * float(written[1]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
    with pytest.raises(ValueError, match="two must have room"):
        train_anytoany(config)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_the_published_model_fits_its_card():
    """48 GB and Llama's 8.03 billion parameters, LoRA on q and v, the published projector; nothing is loaded."""
    from egom2p.training.planning.anytoany_memory import estimate

    config = load_config(AnyToAnyTrainingConfig, ROOT / CONFIG)
    size, footprint = estimate(config.model, config.data, config.training)
    assert size.language_model == 8_030_261_248
    assert size.adapters == 32 * 8 * ((4096 + 4096) + (4096 + 1024))
    assert size.connector == 1024 * 8192 + 8192 + 2 * 8192 + 8192 * 8192 + 8192
    assert footprint.weights > 2 * size.language_model and footprint.fits(48e9)
