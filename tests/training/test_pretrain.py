"""Pretraining on tiny shards of invented modalities: it learns, resumes, adds up, and refuses wrong data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tokens import DRIFT, SMELL, pretrain_values, write_sets

from egom2p.config import from_plain
from egom2p.contracts import TokenizerMismatch
from egom2p.models.egom2p_model import load_model
from egom2p.storage import load_json, load_tensors, save_json, write_checksums
from egom2p.training.distributed import Ranks
from egom2p.training.step import forward_backward
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask, pretrain


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("tokens"))


def run(tokens: Path, folder: Path, **training):
    return pretrain(from_plain(PretrainConfig, pretrain_values(tokens, folder, **training)))


def curve(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"], entry["tokens"]) for entry in entries if entry["kind"] == "train"]


def test_registers_are_not_counted_as_tokens(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path, num_steps=1)
    sizes = []
    for num_registers in (0, 3):
        plain = values | {"model": values["model"] | {"num_registers": num_registers}}
        task = PretrainTask(from_plain(PretrainConfig, plain), Ranks())
        sizes.append(task.size(next(task.batches(0))))
    assert sizes[0].tokens == sizes[1].tokens > 0 and sizes[1].flops > sizes[0].flops


def test_it_learns_from_its_input_and_exports_a_loadable_model(tokens, tmp_path):
    result = run(tokens, tmp_path, num_steps=120, batch_size=8, warmup=10, log_every=40)
    measured = {(item.group, item.name): item for item in result.measurements}
    assert set(measured) == {("mix", "tok_smell"), ("mix", "tok_drift"), ("smell2drift", "tok_drift")}
    drift = measured["smell2drift", "tok_drift"]
    assert 1.6 < drift.unigram_baseline < 2.5  # 7 ids, all but one equally likely, 16 clips under the counts of 48
    assert drift.value < drift.unigram_baseline - 0.3
    model = load_model(tmp_path / "final")
    assert [spec.name for spec in model.specs] == ["tok_drift", "tok_smell"]
    assert model.specs[0].tokenizer_fingerprint == "sha256:b"
    assert load_model(tmp_path / "checkpoints" / "step-00000120").config == model.config


def test_resume_is_bitwise(tokens, tmp_path):
    common = {"schedule": "constant", "checkpoint_every": 4, "keep_last": 9}
    run(tokens, tmp_path / "whole", num_steps=8, **common)
    run(tokens, tmp_path / "parts", num_steps=4, **common)
    run(tokens, tmp_path / "parts", num_steps=8, **common)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    found, wanted = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_streamed_run_resumes_bitwise_and_only_on_its_lanes(tokens, tmp_path):
    def streamed(folder, lanes=None, **training):
        values = pretrain_values(tokens, folder, schedule="constant", checkpoint_every=4, keep_last=9, **training)
        values["data"] |= {"access": "streaming", "in_memory": False, "streaming_lanes": lanes}
        pretrain(from_plain(PretrainConfig, values))

    streamed(tmp_path / "whole", num_steps=8, num_workers=2)
    streamed(tmp_path / "parts", num_steps=4, num_workers=2)
    with pytest.raises(ValueError, match="clips would be lost or seen twice; continue with data.streaming_lanes=2"):
        streamed(tmp_path / "parts", num_steps=8, num_workers=3)
    with pytest.raises(ValueError, match="found streaming of .*, wanted None"):
        run(tokens, tmp_path / "parts", num_steps=8)
    streamed(tmp_path / "parts", num_steps=8, num_workers=2)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    found, wanted = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_one_batch_equals_its_micro_batches(tokens, tmp_path):
    """Loss and gradients of 4 clips at once and of 2 + 2, whatever modalities each half happens to hold."""
    gradients, losses = [], []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        values = pretrain_values(tokens, tmp_path, batch_size=batch_size, accumulation=accumulation)
        values["model"]["drop_path"] = 0.0
        task = PretrainTask(from_plain(PretrainConfig, values), Ranks())
        batches = task.batches(0)
        window = [next(batches) for _ in range(accumulation)]
        counts = tuple(np.sum([task.counts(batch) for batch in window], axis=0).tolist())
        step = forward_backward(task, task.model, window, counts, ranks=Ranks(), dtype=torch.float32)
        losses.append(step.loss.item())
        gradients.append({name: parameter.grad for name, parameter in task.model.named_parameters()})
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    for other in gradients[1:]:
        for name, wanted in gradients[0].items():
            torch.testing.assert_close(other[name], wanted, atol=1e-6, rtol=0)


def test_another_tokenizer_is_refused_before_any_work(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path / "run")
    for spec, fingerprint in ((SMELL, "sha256:a"), (DRIFT, "sha256:other")):
        card = {"fingerprint": fingerprint, "spec": replace(spec, tokenizer_fingerprint=fingerprint).to_dict()}
        save_json(tmp_path / spec.folder / "tokenizer.json", card)
    values["tokenizers"] = {"tok_smell": str(tmp_path / "smell"), "tok_drift": str(tmp_path / "drift")}
    with pytest.raises(TokenizerMismatch, match="sha256:b.*sha256:other"):
        pretrain(from_plain(PretrainConfig, values))
    with pytest.raises(ValueError, match="tok_drift of the data has no tokenizer"):
        pretrain(from_plain(PretrainConfig, values | {"tokenizers": {"tok_smell": str(tmp_path / "smell")}}))
    assert not (tmp_path / "run").exists()


def test_a_task_that_nothing_can_measure_is_refused_before_any_work(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path / "run")
    validation = values["data"]["validation"]
    for dataset in validation.values():
        dataset["shards"] = dataset["shards"].replace(f"{SMELL.folder},", "").replace(f",{SMELL.folder}", "")
    with pytest.raises(ValueError, match=r"evaluation.tasks.smell2drift: wanted one of \['tok_smell'\]"):
        pretrain(from_plain(PretrainConfig, values))
    assert not (tmp_path / "run").exists()


def test_export_holds_copies_of_the_tokenizers(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path / "run", num_steps=1)
    values["tokenizers"] = {}
    for spec in (SMELL, DRIFT):
        save_json(
            tmp_path / spec.folder / "tokenizer.json",
            {"fingerprint": spec.tokenizer_fingerprint, "spec": spec.to_dict()},
        )
        (tmp_path / spec.folder / "model.safetensors").write_bytes(b"weights")
        values["tokenizers"][spec.name] = str(tmp_path / spec.folder)
    pretrain(from_plain(PretrainConfig, values))
    final = tmp_path / "run" / "final"
    assert load_json(final / "model.json")["tokenizers"]["tok_smell"] == "tokenizers/tok_smell"
    assert (final / "tokenizers" / "tok_smell" / "model.safetensors").read_bytes() == b"weights"


def test_a_run_is_not_resumed_on_other_tokens(tokens, tmp_path):
    run(tokens, tmp_path / "run", num_steps=2)
    card = load_json(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.json")
    card["modalities"][0]["tokenizer_fingerprint"] = "sha256:earlier"
    save_json(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.json", card)
    write_checksums(tmp_path / "run" / "checkpoints" / "step-00000002")
    with pytest.raises(ValueError, match="step-00000002 was trained on .*sha256:earlier.*another output_dir"):
        run(tokens, tmp_path / "run", num_steps=4)


def test_training_starts_from_another_model(tokens, tmp_path):
    run(tokens, tmp_path / "first", num_steps=3)
    values = pretrain_values(tokens, tmp_path / "second", num_steps=1) | {"finetune": str(tmp_path / "first" / "final")}
    values["training"]["lr"] = 0.0
    pretrain(from_plain(PretrainConfig, values))
    found, wanted = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("second", "first"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    values["model"]["dim"] = 32
    with pytest.raises(ValueError, match="first.final: the model to start from"):
        pretrain(from_plain(PretrainConfig, values | {"output_dir": str(tmp_path / "third")}))
