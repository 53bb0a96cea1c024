"""The loop keeps its promises on a toy task: lengths, logs, resume to the bit, skipping, clear errors."""

import json
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_task import ToyTask, run_toy

from egom2p.config import ConfigError, from_plain
from egom2p.storage import check_finite, load_json, load_tensors, save_json, save_tensors, write_checksums
from egom2p.training.loop import DEAD_CODE, DeadRunError, train
from egom2p.training.training_config import TrainingConfig


def read_log(folder: Path, kind: str = "train") -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def loss_curve(folder: Path) -> list[tuple[float, ...]]:
    keys = ("step", "clips", "tokens", "token_budget", "loss", "loss/first", "loss/second", "lr", "grad_norm")
    return [tuple(entry[key] for key in keys) for entry in read_log(folder)]


def test_it_learns_logs_and_exports(tmp_path):
    result = run_toy(tmp_path, num_steps=60)
    assert result.progress.step == 60 and result.progress.clips == 240 and result.progress.token_budget == 2400
    curve = read_log(tmp_path)
    assert len(curve) == 60 and curve[-1]["loss"] < 0.6 * curve[0]["loss"]
    assert {"loss/first", "loss/second", "lr", "grad_norm", "tokens_per_s", "clips_per_s"} <= set(curve[0])
    (evaluation,) = read_log(tmp_path, "evaluation")
    assert evaluation["toy/first"] < evaluation["toy/first/unigram_baseline"] == 1.6
    assert set(load_tensors(tmp_path / "final" / "model.safetensors")) == set(
        load_tensors(tmp_path / "checkpoints" / "step-00000060" / "model.safetensors")
    )
    assert load_json(tmp_path / "config.json")["num_steps"] == 60


@pytest.mark.parametrize("length", [{"num_steps": 10}, {"total_token_budget": 400}, {"epochs": 5, "epoch_clips": 8}])
def test_lengths_in_other_units_agree(tmp_path, length):
    per_step = {"num_steps": 1, "total_token_budget": 40, "epochs": 0.5}[next(iter(length))]
    run_toy(tmp_path / "a", num_steps=10, warmup=4)
    run_toy(tmp_path / "b", **({"num_steps": None} | length), warmup=4 * per_step)
    assert loss_curve(tmp_path / "a") == loss_curve(tmp_path / "b")


def test_length_in_real_tokens(tmp_path):
    result = run_toy(tmp_path, num_steps=None, total_tokens=100, warmup=0)
    before_last = read_log(tmp_path)[-2]
    assert before_last["tokens"] < 100 <= result.progress.tokens


@pytest.mark.parametrize("log_every", [1, 4])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, log_every):
    common = {"dropout": 0.3, "log_every": log_every, "accumulation": 2, "keep_last": 10}
    run_toy(tmp_path / "whole", num_steps=20, **common)
    # 13 steps are run, 10 are kept: what a SIGKILL after step 13 leaves behind.
    run_toy(tmp_path / "parts", num_steps=13, schedule="constant", checkpoint_every=10, **common)
    (tmp_path / "parts" / "final").rename(tmp_path / "unused")
    (tmp_path / "parts" / "checkpoints" / "step-00000013").rename(tmp_path / "unused13")
    # The cosine of 20 steps differs from that of 13, so both runs are made with a constant rate.
    run_toy(tmp_path / "parts", num_steps=20, schedule="constant", **common)
    run_toy(tmp_path / "constant", num_steps=20, schedule="constant", **common)
    assert loss_curve(tmp_path / "parts") == loss_curve(tmp_path / "constant") != loss_curve(tmp_path / "whole")
    found = load_tensors(tmp_path / "parts" / "final" / "model.safetensors")
    wanted = load_tensors(tmp_path / "constant" / "final" / "model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_signal_saves_and_the_same_command_continues(tmp_path):
    run_toy(tmp_path / "whole", num_steps=40)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    stopped = run_toy(tmp_path / "parts", num_steps=40, delay_s=0.02)
    assert stopped.stopped_by == signal.SIGTERM and 0 < stopped.progress.step < 40
    assert not (tmp_path / "parts" / "final").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finished = run_toy(tmp_path / "parts", num_steps=40)
    assert finished.stopped_by == 0
    assert loss_curve(tmp_path / "parts") == loss_curve(tmp_path / "whole")


def test_finished_run_is_left_alone_and_can_be_prolonged(tmp_path):
    run_toy(tmp_path, num_steps=5, schedule="constant")
    before = (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns
    assert run_toy(tmp_path, num_steps=5, schedule="constant").progress.step == 5
    assert (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns == before
    assert run_toy(tmp_path, num_steps=8, schedule="constant").progress.step == 8
    assert [entry["step"] for entry in read_log(tmp_path)] == list(range(1, 9))


def test_what_a_run_without_checkpoint_logged_is_forgotten(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "evaluation", "step": 0}\n{"kind": "train", "step": 1, "lo')
    run_toy(tmp_path, num_steps=2, evaluate_at_start=True)
    assert [entry["step"] for entry in read_log(tmp_path, "evaluation")] == [0, 2]
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2]


def test_accumulation_equals_a_larger_batch(tmp_path):
    run_toy(tmp_path / "a", batch_size=4, num_steps=5)
    run_toy(tmp_path / "b", batch_size=2, accumulation=2, num_steps=5)
    run_toy(tmp_path / "c", batch_size=1, accumulation=4, num_steps=5)
    for other in ("b", "c"):
        for one, two in zip(loss_curve(tmp_path / "a"), loss_curve(tmp_path / other), strict=True):
            assert one == pytest.approx(two, abs=1e-6)


def test_reference_denominator_averages_per_micro_batch(tmp_path):
    run_toy(tmp_path / "a", batch_size=2, accumulation=2, num_steps=2)
    run_toy(tmp_path / "b", batch_size=2, accumulation=2, num_steps=2, reference_denominator=True)
    assert read_log(tmp_path / "a")[0]["loss"] != pytest.approx(read_log(tmp_path / "b")[0]["loss"], abs=1e-6)


def test_step_with_gradients_that_are_not_finite_changes_nothing(tmp_path):
    run_toy(tmp_path / "a", num_steps=5, nan_step=4, schedule="constant", warmup=0)
    run_toy(tmp_path / "b", num_steps=4, schedule="constant", warmup=0)
    assert read_log(tmp_path / "a")[-1]["loss"] is None
    found = load_tensors(tmp_path / "a" / "checkpoints" / "step-00000005" / "training.safetensors")
    wanted = load_tensors(tmp_path / "b" / "checkpoints" / "step-00000004" / "training.safetensors")
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_retention(tmp_path):
    run_toy(tmp_path, num_steps=20, checkpoint_every=2, keep_last=2, keep_every=8)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (8, 16, 18, 20)]


def test_checkpoint_of_another_model_is_named(tmp_path):
    run_toy(tmp_path, num_steps=2)
    path = tmp_path / "checkpoints" / "step-00000002" / "training.safetensors"
    tensors = load_tensors(path)
    tensors["model/trunk.weight"] = tensors["model/trunk.weight"][:3].clone()
    save_tensors(path, tensors)
    write_checksums(path.parent)
    with pytest.raises(ValueError, match=r"step-00000002.*trunk.weight has shape \(3, 6\), the model wants \(16, 6\)"):
        run_toy(tmp_path, num_steps=4)
    with pytest.raises(ValueError, match="resume is false"):
        run_toy(tmp_path, num_steps=4, resume=False)


@pytest.mark.parametrize("num_steps", [2, 4])
def test_a_run_does_not_go_on_as_another_one(tmp_path, num_steps):
    """config.json says what made the weights beside it, whatever a later command says."""
    run_toy(tmp_path, num_steps=2, lr=1e-3)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.001 -> 0.009\); choose another output_dir"):
        run_toy(tmp_path, num_steps=num_steps, lr=9e-3)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_finished_run_keeps_its_config(tmp_path):
    run_toy(tmp_path, num_steps=2)
    before = (tmp_path / "config.json").read_bytes()
    assert run_toy(tmp_path, num_steps=2, log_every=7).progress.step == 2
    assert (tmp_path / "config.json").read_bytes() == before
    run_toy(tmp_path, num_steps=3)  # a longer run is a new one of the same settings
    assert load_json(tmp_path / "config.json")["num_steps"] == 3


def test_library_does_not_touch_the_callers_randomness(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    run_toy(tmp_path, num_steps=2, dropout=0.5)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 1e-3}, "exactly one of num_steps, total_token_budget, total_tokens, epochs"),
        ({"lr": 1e-3, "num_steps": 3, "total_token_budget": 3}, "num_steps and total_token_budget"),
        ({"num_steps": 3}, "exactly one of lr, blr"),
        ({"lr": 1e-3, "num_step": 3}, "did you mean `num_steps`"),
        ({"lr": 1e-3, "num_steps": 3, "batch_size": 0}, "`batch_size`: must be at least 1"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(TrainingConfig, values)


def test_one_bad_batch_is_said_and_survived(tmp_path, capsys):
    run_toy(tmp_path, num_steps=8, nan_step=4, log_every=4)
    assert "1 of 4 steps skipped" in capsys.readouterr().out
    assert all(entry["loss"] is not None for entry in read_log(tmp_path)), "the mean is that of the other steps"
    assert [entry["skipped_steps"] for entry in read_log(tmp_path)] == [0, 1]
    assert [entry["steps_not_finite"] for entry in read_log(tmp_path)] == [0, 1]
    whole = tmp_path / "whole"
    run_toy(whole, num_steps=8, nan_step=4, log_every=1)
    for line, of in zip(read_log(tmp_path), (slice(0, 4), slice(4, 8)), strict=True):
        steps = [entry for entry in read_log(whole)[of] if not entry["steps_not_finite"]]
        # A term's mean is over rows, of which steps have not quite as many.
        for name, rel in (("loss", 1e-6), ("loss/first", 0.02), ("grad_norm", 1e-6)):
            assert line[name] == pytest.approx(np.mean([entry[name] for entry in steps]), rel=rel)


@pytest.mark.parametrize(("log_every", "keep_last"), [(1, 2), (3, 2), (1000, 2), (1, 1), (3, 1)])
def test_a_run_that_diverged_stops_and_keeps_what_was_good(tmp_path, log_every, keep_last):
    """1e30: the weights stay finite, and no loss is any more. The checkpoint before that step is the one to keep."""
    good = {"checkpoint_every": 1, "log_every": log_every, "warmup": 0, "schedule": "constant", "keep_last": keep_last}
    run_toy(tmp_path, num_steps=4, **good)
    (tmp_path / "final").rename(tmp_path / "unused")
    with pytest.raises(DeadRunError, match="the run is dead: .*nothing was exported"):
        run_toy(tmp_path, num_steps=30, **good | {"lr": 1e30, "allow_changes": True})
    assert not (tmp_path / "final").exists()
    kept = tmp_path / "checkpoints" / "step-00000004"
    check_finite(load_tensors(kept / "model.safetensors"), where=kept)
    for newer in sorted((tmp_path / "checkpoints").iterdir()):
        if newer.name > kept.name:
            newer.rename(tmp_path / newer.name)
    assert (
        run_toy(tmp_path, num_steps=8, allow_changes=True, **good).progress.step == 8
    )  # the way out that the message names
    assert (tmp_path / "final").is_dir()


def test_steps_skipped_in_a_row_end_a_run_also_over_restarts(tmp_path):
    """Gradients that are always too large: the loss is finite, nothing is learned."""
    values = {"num_steps": 40, "optimizer": {"skip_grad_norm": 1e-9}, "log_every": 5}
    with pytest.raises(DeadRunError, match="up to step 20, 20 steps in a row were skipped"):
        run_toy(tmp_path / "whole", **values)
    run_toy(tmp_path / "parts", **values | {"num_steps": 12}, schedule="constant")
    with pytest.raises(DeadRunError, match="up to step 20, 20 steps in a row were skipped"):
        run_toy(tmp_path / "parts", **values, schedule="constant")
    assert run_toy(tmp_path / "allowed", **values, max_skipped_steps=None).progress.step == 40


@dataclass
class _Root:
    output_dir: str
    training: TrainingConfig
    seed: int = 0


def test_a_dead_run_ends_the_command_with_a_code_of_its_own(tmp_path, capsys):
    training = from_plain(TrainingConfig, {"num_steps": 30, "lr": 1e30, "device": "cpu", "log_every": 3})
    with pytest.raises(SystemExit) as ended:
        train(_Root(str(tmp_path), training), lambda config, ranks: ToyTask(ranks, batch_size=8))
    assert ended.value.code == DEAD_CODE == 3
    assert "There is no checkpoint from before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"warmup": -1.0}, {"min_lr": -1e-3}, {"log_every": 0}]
    + [{"optimizer": {"weight_decay": -1.0}}, {"optimizer": {"eps": 0.0}}, {"optimizer": {"betas": (0.9, 1.0)}}]
    + [{"max_skipped_steps": 0}, {"watchdog_s": 0.0}, {"num_workers": -1}, {"checkpoint_minutes": float("nan")}]
    + [{"batch_tokens": 0}],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused_by_key(wrong):
    value = next(iter(wrong.values()))
    key = next(iter(value if isinstance(value, dict) else wrong))
    with pytest.raises(ConfigError, match=key):
        from_plain(TrainingConfig, {"num_steps": 3, "lr": 1e-3} | wrong)


def _flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["training.safetensors", "training.json", "model.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_checkpoint_damaged_in_any_byte_is_named_and_the_one_before_is_taken(tmp_path, capsys, name, part):
    common = {"schedule": "constant", "checkpoint_every": 3, "warmup": 0}
    run_toy(tmp_path / "whole", num_steps=9, **common)
    run_toy(tmp_path / "run", num_steps=6, **common)
    damaged = tmp_path / "run" / "checkpoints" / "step-00000006" / name
    _flip(damaged, round(part * (damaged.stat().st_size - 1)))
    with pytest.raises(
        ValueError, match=f"step-00000006: .* damaged: {name}.*resume=newest_valid goes .* step-00000003"
    ):
        run_toy(tmp_path / "run", num_steps=9, **common)
    capsys.readouterr()
    run_toy(tmp_path / "run", num_steps=9, resume="newest_valid", **common)
    assert "it is damaged-step-00000006 now" in capsys.readouterr().out
    assert loss_curve(tmp_path / "run") == loss_curve(tmp_path / "whole")
    assert (tmp_path / "run" / "checkpoints" / "damaged-step-00000006" / name).is_file()


def test_a_checkpoint_that_lacks_a_file_or_its_list_is_damaged(tmp_path):
    run_toy(tmp_path, num_steps=3)
    for name in ("training.json", "checksums.json"):
        (tmp_path / "checkpoints" / "step-00000003" / name).rename(tmp_path / name)
        with pytest.raises(ValueError, match=f"damaged: .*{name}.*no other one is here"):
            run_toy(tmp_path, num_steps=5)
        (tmp_path / name).rename(tmp_path / "checkpoints" / "step-00000003" / name)


@pytest.mark.parametrize(
    "wrong",
    [{"progress": None}, {"progress": {"step": 2}}, {"optimizer": None}, {"data": 3}, {"skipped_in_a_row": "no"}, None],
    ids=str,
)
def test_a_state_without_its_keys_is_named(tmp_path, wrong):
    run_toy(tmp_path / "run", num_steps=2)
    file = tmp_path / "run" / "checkpoints" / "step-00000002" / "training.json"
    save_json(file, wrong if wrong is None else load_json(file) | wrong)
    write_checksums(file.parent)
    key = "progress" if wrong is None else next(iter(wrong))
    with pytest.raises(ValueError, match=f"training.json: `{key}`"):
        run_toy(tmp_path / "run", num_steps=4)


def test_a_folder_of_somebody_else_is_not_pruned(tmp_path):
    foreign = tmp_path / "run" / "checkpoints" / "step-00000001"
    run_toy(tmp_path / "run", num_steps=4, checkpoint_every=2)
    foreign.mkdir()
    (foreign / "training.json").write_text((foreign.parent / "step-00000002" / "training.json").read_text())
    with pytest.raises(ValueError, match="step-00000001"):
        run_toy(tmp_path / "run", num_steps=6, checkpoint_every=2)
    assert (foreign / "training.json").is_file()


def test_a_log_that_is_none_is_named(tmp_path):
    run_toy(tmp_path / "run", num_steps=2)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"kind": "train"}\n')
    with pytest.raises(ValueError, match="log.jsonl, line 4: no `step`"):
        run_toy(tmp_path / "run", num_steps=4)


def test_data_that_changed_between_two_starts_is_told(tmp_path, capsys, monkeypatch):
    data = {"world": {"clips": 80, "shards": 8}}
    monkeypatch.setattr(ToyTask, "data_identity", lambda self: data)
    run_toy(tmp_path, num_steps=3)
    run_toy(tmp_path, num_steps=5)
    assert "data on the disk" not in capsys.readouterr().out
    data["world"] |= {"clips": 70, "shards": 7}
    run_toy(tmp_path, num_steps=6)
    told = capsys.readouterr().out
    assert "changed since the run began: data on the disk.world.clips: 80 -> 70" in told
