"""Starting from a trained model: all of it, what fits, adapters on top of it; and measuring it without training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_tokens import DRIFT, SMELL, pretrain_values, write_sets

from egom2p.config import ConfigError, from_plain
from egom2p.models.egom2p_model import EgoM2P, load_model, read_model
from egom2p.models.partial_loading import load_weights
from egom2p.models.weights import find_model, save_model
from egom2p.storage import load_json, load_tensors
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain

HEADS = "decoder_embeddings.head_table"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def first(tokens, tmp_path_factory) -> Path:
    """A short run on both modalities."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    pretrain(from_plain(PretrainConfig, pretrain_values(tokens, folder, num_steps=3)))
    return folder


def smell_only(values: dict) -> dict:
    """The config of a run that knows one of the two modalities."""
    for dataset in (*values["data"]["datasets"].values(), *values["data"]["validation"].values()):
        dataset["shards"] = dataset["shards"].replace("[drift,smell]", "[smell]")
        dataset["max_input_tokens"] = 12
        dataset["alphas"] = {"alphas_mixture": {"tok_smell": {"input_alphas": [1.0], "target_alphas": [1.0]}}}
    values["evaluation"] = {"tasks": {}}
    return values


def run(values: dict, **changes):
    return pretrain(from_plain(PretrainConfig, values | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "final" / "model.safetensors")


def test_a_new_modality_keeps_what_is_known_and_starts_fresh(tokens, tmp_path):
    """One modality, then two: first only the new one's tables move, then everything; resumed in the right phase."""
    run(smell_only(pretrain_values(tokens, tmp_path / "one", num_steps=2)))
    values = pretrain_values(
        tokens, tmp_path / "two", num_steps=6, schedule="constant", checkpoint_every=2, keep_last=9
    )
    values |= {"finetune": str(tmp_path / "one"), "finetune_policy": "partial"}
    frozen = {"until": 4, "train": ["tok_drift"]}
    run(values, frozen=frozen)
    report = load_json(tmp_path / "two" / "finetune.json")
    assert sorted(report["fresh"]) == sorted(
        f"{name}[tok_drift]" for name in ("positions.modality_table", "encoder_embeddings.token_table", HEADS)
    )
    assert f"{HEADS}[tok_smell]" in report["loaded"] and not report["mismatched"] and not report["unused"]
    old, now = weights(tmp_path / "one"), weights(tmp_path / "two")
    at_boundary = load_tensors(tmp_path / "two" / "checkpoints" / "step-00000004" / "model.safetensors")
    for name, tensor in old.items():
        kept = at_boundary[name][-len(tensor) :] if name in report_tables() else at_boundary[name]
        assert torch.equal(kept, tensor), name
        assert not torch.equal(now[name][-len(tensor) :], tensor), name
    # Stopped inside the first phase: the rest of it is still frozen, and the end is the same to the bit.
    for length in (2, 6):
        parts = pretrain_values(tokens, tmp_path / "parts", num_steps=length, schedule="constant")
        run(parts, finetune=str(tmp_path / "one"), finetune_policy="partial", frozen=frozen)
        if length == 2:
            (tmp_path / "parts" / "final").rename(tmp_path / "unused")
    assert all(torch.equal(tensor, now[name]) for name, tensor in weights(tmp_path / "parts").items())


def report_tables():
    return {"positions.modality_table", "encoder_embeddings.token_table", HEADS}


def test_a_resumed_run_does_not_ask_for_its_start_again(tokens, first, tmp_path):
    start = tmp_path / "start"
    save_model(load_model(first / "final"), start)
    values = pretrain_values(tokens, tmp_path / "run", num_steps=1) | {"finetune": str(start)}
    run(values)
    start.rename(tmp_path / "gone")
    values["training"]["num_steps"] = 2
    (tmp_path / "run" / "final").rename(tmp_path / "unused")
    assert run(values).progress.step == 2


def test_strict_wants_the_same_model(tokens, first, tmp_path):
    values = pretrain_values(tokens, tmp_path / "run", num_steps=1) | {"finetune": str(first)}
    for key, value, message in (
        ("dim", 32, r"shape \(1, 24\), wanted \(1, 32\).*finetune_policy=partial"),
        ("encoder_depth", 2, "encoder.1.norm1.weight is not there"),
        ("num_heads", 4, "model.num_heads: 2 -> 4"),
    ):
        with pytest.raises(ValueError, match=message):
            run(values | {"model": values["model"] | {key: value}})
    assert not (tmp_path / "run").exists()


def test_partial_loading_names_every_key(first):
    config, specs, state = read_model(first / "final")
    deeper = replace(config, encoder_depth=2, drop_path=0.0, num_heads=4)
    renamed = (replace(specs[0], vocab_size=9), specs[1].with_fingerprint("sha256:other"))
    model = EgoM2P(deeper, renamed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, first / "final", policy="partial")
    assert report.settings == ("num_heads: 2 -> 4", "encoder_depth: 1 -> 2")
    assert len(report.fresh) == 7 and all(name.startswith("encoder.1.") for name in report.fresh)
    reasons = dict(line.split(": ", 1) for line in report.mismatched)
    assert reasons[f"{HEADS}[tok_drift]"] == "shape (7, 24), wanted (9, 24)"
    assert reasons[f"{HEADS}[tok_smell]"] == "tokenizer sha256:a, wanted sha256:other"
    for name in report.loaded:
        if "[" not in name:
            assert torch.equal(model.state_dict()[name], state[name]), name
    assert torch.equal(model.state_dict()[HEADS], before[HEADS])
    assert "keys loaded" in report.lines()[0] and any("fresh (7)" in line for line in report.lines())


def test_a_model_of_which_nothing_fits_is_refused(first):
    config, specs, _ = read_model(first / "final")
    stranger = EgoM2P(replace(config, dim=48), specs)
    with pytest.raises(ValueError, match="nothing of it fits this model"):
        load_weights(stranger, first / "final", policy="partial")


def test_runs_checkpoints_and_models_are_found(first, tmp_path):
    assert find_model(first) == first / "final" == find_model(first / "final")
    newest = first / "checkpoints" / "step-00000003"
    assert find_model(newest) == newest
    with pytest.raises(FileNotFoundError, match="is this a model or a run"):
        find_model(tmp_path)


def test_adapters_train_alone_and_the_export_is_merged(tokens, first, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'egom2p[anytoany]'")
    from egom2p.layers.lora import LoraConfig, attach_lora, load_lora_state

    lora = {"rank": 2, "alpha": 8.0, "also_train": ["positions.modality_table"]}
    values = pretrain_values(tokens, tmp_path / "run", num_steps=4, checkpoint_every=2, keep_last=9)
    values |= {"finetune": str(first), "lora": lora}
    run(values)
    base, final = load_model(first / "final"), tmp_path / "run" / "final"
    kept = load_tensors(tmp_path / "run" / "checkpoints" / "step-00000004" / "training.safetensors")
    for name, tensor in base.state_dict().items():
        if name != "positions.modality_table":
            there = kept.get(f"model/{name}")
            if there is None:
                layer, _, kind = name.rpartition(".")
                there = kept[f"model/{layer}.base_layer.{kind}"]
            assert torch.equal(there, tensor), name
    adapted = attach_lora(load_model(first / "final"), from_plain(LoraConfig, lora)).eval()
    load_lora_state(adapted, load_tensors(final / "adapter" / "adapter_model.safetensors"))
    merged = load_model(final)
    assert list(merged.state_dict()) == list(base.state_dict())
    batch = next(iter(validation_batches(values)))
    with torch.no_grad():
        torch.testing.assert_close(merged(batch).sums, adapted(batch).sums, atol=1e-5, rtol=1e-5)
        assert (merged(batch).sums - base(batch).sums).abs().max() > 1e-3
    # Interrupted after two steps, the run ends at the same weights.
    for length in (2, 4):
        parts = pretrain_values(tokens, tmp_path / "parts", num_steps=length, schedule="constant")
        run(parts, finetune=str(first), lora=lora)
        if length == 2:
            (tmp_path / "parts" / "final").rename(tmp_path / "unused")
    whole = pretrain_values(tokens, tmp_path / "whole", num_steps=4, schedule="constant")
    run(whole, finetune=str(first), lora=lora)
    wanted = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(tmp_path / "parts").items())


def validation_batches(values: dict):
    from egom2p.data.unified_datasets import EvalLoader

    config = from_plain(PretrainConfig, values)
    dataset = config.data.validation["val"]
    return EvalLoader(dataset.shards, (DRIFT, SMELL), dataset, batch_size=8, num_clips=8, seed=0, num_registers=1)


def test_a_model_is_measured_without_training(tokens, first, tmp_path):
    values = pretrain_values(tokens, tmp_path / "measured", num_steps=3)
    result = run(values, evaluate_only=str(first))
    entries = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    (logged,) = [entry for entry in entries if entry["kind"] == "evaluation"]
    assert {(item.group, item.name) for item in result.measurements} == {
        ("mix", "tok_smell"), ("mix", "tok_drift"), ("smell2drift", "tok_drift"),
    }  # fmt: skip
    for item in result.measurements:
        assert item.value == pytest.approx(logged[f"{item.group}/{item.name}"], abs=1e-6)
        assert item.unigram_baseline == pytest.approx(logged[f"{item.group}/{item.name}/unigram_baseline"])
    written = load_json(tmp_path / "measured" / "evaluation.json")
    assert len(written["measurements"]) == 3 and written["model"].endswith("first/final")
    assert [path.name for path in (tmp_path / "measured").iterdir()] == ["evaluation.json"]
    # On data with fewer modalities the model is measured on those.
    alone = run(smell_only(pretrain_values(tokens, tmp_path / "alone")), evaluate_only=str(first))
    assert {(item.group, item.name) for item in alone.measurements} == {("mix", "tok_smell")}


def test_what_cannot_go_together_is_refused(tokens, tmp_path):
    values = pretrain_values(tokens, tmp_path)
    for changes, message in (
        ({"lora": {}}, "say which with finetune"),
        ({"lora": {}, "finetune": "x", "frozen": {"until": 1}}, "choose one"),
        ({"finetune": "x", "finetune_policy": "some"}, "finetune_policy"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_plain(PretrainConfig, values | changes)
    with pytest.raises(ValueError, match=r"keep_best is 'mox'; wanted one of \['mix', 'smell2drift'\]"):
        run(pretrain_values(tokens, tmp_path / "run", keep_best="mox"))
