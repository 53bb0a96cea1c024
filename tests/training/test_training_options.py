"""Options that must not change the result (recomputing, loss scaling, averaging), and their errors."""

import pytest
import torch
from spread_task import SpreadTask, run_spread
from timm.utils import ModelEmaV3
from torch import nn
from toy_task import ToyModel

from egom2p.config import ConfigError, from_plain
from egom2p.storage import load_json, load_tensors
from egom2p.training.distributed import Ranks
from egom2p.training.ema import Ema, EmaConfig
from egom2p.training.parallel import ParallelConfig, check_parallel, prepare_blocks
from egom2p.training.step import forward_backward
from egom2p.training.training_config import TrainingConfig


def state(folder, step: int, part: str) -> dict[str, torch.Tensor]:
    tensors = load_tensors(folder / "checkpoints" / f"step-{step:08d}" / "training.safetensors")
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


def gradients_and_saved_bytes(*, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Of one step, and the memory that its forward pass keeps for the backward pass, weights apart."""
    task = SpreadTask(Ranks(), batch_size=4, model={"encoder_depth": 4, "decoder_depth": 4})
    prepare_blocks(task.model, recompute=recompute, compile_blocks=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in task.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = next(task.batches(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.model(batch).sums.sum()
        num_bytes = sum(kept.values())
    forward_backward(task, task.model, [batch], task.counts(batch), ranks=Ranks(), dtype=torch.float32)
    return {name: parameter.grad for name, parameter in task.model.named_parameters()}, num_bytes


def test_recomputed_blocks_keep_less_and_give_the_same_gradients():
    wanted, many = gradients_and_saved_bytes(recompute=False)
    found, few = gradients_and_saved_bytes(recompute=True)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=0, msg=name)
    assert few < 0.3 * many


def test_recomputed_stochastic_depth_is_that_of_the_forward_pass(tmp_path):
    for name, recompute in (("a", False), ("b", True)):
        run_spread(
            tmp_path / name, ranks=Ranks(), model={"drop_path": 0.5}, num_steps=3, activation_checkpointing=recompute
        )
    found, wanted = (state(tmp_path / name, 3, "model/") for name in ("b", "a"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=0, msg=name)


@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_timms(generator, warmup):
    model, config = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), EmaConfig(decay=0.8, warmup=warmup)
    ours, theirs = Ema(model, config), ModelEmaV3(model, decay=0.8, use_warmup=warmup)
    for step in range(1, 6):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator))
        model[1].num_batches_tracked += 1
        ours.update(model, step)
        theirs.update(model, step=step)
    for name, wanted in theirs.module.state_dict().items():
        assert torch.equal(ours.tensors(model)[name], wanted), name


def test_tied_weights_are_back_after_the_average_was_shown():
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["table"].weight
    ema = Ema(model, EmaConfig(decay=0.75))
    ema.update(model, 1)
    first = model["head"].weight.detach().clone()
    model["head"].weight.data.add_(1)
    ema.update(model, 2)
    for _ in range(2):
        with ema.put_into(model):
            torch.testing.assert_close(model["head"].weight, first + 0.25)
        torch.testing.assert_close(model["head"].weight, first + 1)
    for average in ema.tensors(model).values():
        torch.testing.assert_close(average, first + 0.25)


def test_average_is_evaluated_exported_and_resumed_to_the_bit(tmp_path):
    ema = {"ema": {"decay": 0.6}}
    run_spread(tmp_path / "whole", ranks=Ranks(), num_steps=6, **ema)
    run_spread(tmp_path / "parts", ranks=Ranks(), num_steps=4, **ema)
    run_spread(tmp_path / "parts", ranks=Ranks(), num_steps=6, **ema)
    run_spread(tmp_path / "without", ranks=Ranks(), num_steps=6)
    for part in ("model/", "ema/"):
        found, wanted = (state(tmp_path / name, 6, part) for name in ("parts", "whole"))
        assert wanted and all(torch.equal(found[name], wanted[name]) for name in wanted)
    weights, without = state(tmp_path / "whole", 6, "model/"), state(tmp_path / "without", 6, "model/")
    assert all(torch.equal(weights[name], without[name]) for name in weights)  # averaging and evaluating leave no trace
    offered = load_tensors(tmp_path / "whole" / "final" / "model.safetensors")
    average = state(tmp_path / "whole", 6, "ema/")
    assert all(torch.equal(offered[name], average[name]) for name in offered)
    assert any(not torch.equal(offered[name], weights[name]) for name in offered)


def test_average_that_is_kept_but_not_offered(tmp_path):
    keep = {"ema": {"decay": 0.6, "evaluate": False, "export": False}}
    kept = run_spread(tmp_path / "kept", ranks=Ranks(), **keep)
    without = run_spread(tmp_path / "without", ranks=Ranks())
    assert [item.value for item in kept.measurements] == [item.value for item in without.measurements]
    found, wanted = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("kept", "without"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_average_begins_where_a_run_without_one_ended(tmp_path):
    run_spread(tmp_path, ranks=Ranks(), num_steps=3)
    run_spread(tmp_path, ranks=Ranks(), num_steps=4, ema={"decay": 0.75})
    before, after = state(tmp_path, 3, "model/"), state(tmp_path, 4, "model/")
    for name, average in state(tmp_path, 4, "ema/").items():
        torch.testing.assert_close(average, 0.75 * before[name] + 0.25 * after[name], atol=1e-6, rtol=0, msg=name)


def test_float16_scales_the_loss_skips_what_overflows_and_resumes(tmp_path):
    """The scale begins at 2^16 and halves at the broken step; gradients have their own size again when logged."""
    options = {"dtype": "fp16", "broken_step": 1, "optimizer": {"kind": "adamw"}, "lr": 0.01}
    run_spread(tmp_path / "half", ranks=Ranks(), num_steps=3, **options)
    notes = [load_json(tmp_path / "half" / "checkpoints" / f"step-{n:08d}" / "training.json") for n in (1, 2, 3)]
    assert [note["loss_scale"]["scale"] for note in notes] == [2.0**16, 2.0**15, 2.0**15]
    resumed = {"num_steps": 4} | options | {"broken_step": -1}
    run_spread(tmp_path / "half", ranks=Ranks(), **resumed)
    note = load_json(tmp_path / "half" / "checkpoints" / "step-00000004" / "training.json")
    assert note["loss_scale"]["scale"] == 2.0**15 and note["loss_scale"]["_growth_tracker"] == 2
    whole = {"num_steps": 1, "dtype": "fp32", "optimizer": {"kind": "adamw"}, "lr": 0.01}
    run_spread(tmp_path / "whole", ranks=Ranks(), **whole)
    norms = []
    for name in ("half", "whole"):
        line = (tmp_path / name / "log.jsonl").read_text().splitlines()[0]
        norms.append(float(line.split('"grad_norm": ')[1].split(",")[0]))
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_same_gradients(recompute):
    plain, compiled = (SpreadTask(Ranks(), batch_size=2, model={"encoder_depth": 1, "decoder_depth": 1}) for _ in "ab")
    prepare_blocks(compiled.model, recompute=recompute, compile_blocks=True)
    for batch in (next(plain.batches(0)), next(plain.batches(8))):
        for task in (plain, compiled):
            task.model.zero_grad()
            task.model(batch).sums.sum().backward()
        for (name, one), other in zip(plain.model.named_parameters(), compiled.model.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema": {"decay": 1.0}}, "ema.decay must be between 0 and 1, got 1.0"),
        ({"ema": {}}, "decay"),
        ({"parallel": {"kind": "fsdp", "shard_size": 1}}, "shard_size must be at least 2"),
        ({"parallel": {"shard_size": 2}}, "only with kind=fsdp"),
        ({"compile": "all"}, "compile"),
        ({"dtype": "fp8"}, "dtype"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(TrainingConfig, {"num_steps": 3, "lr": 1e-3} | values)


def test_what_cannot_be_is_refused_before_training():
    with pytest.raises(ValueError, match="must divide the number of processes, got 4 and 6"):
        check_parallel(ParallelConfig(kind="fsdp", shard_size=4), 6)
    with pytest.raises(ValueError, match="activation_checkpointing works on transformer blocks, and ToyModel has none"):
        prepare_blocks(ToyModel(), recompute=True, compile_blocks=False)
