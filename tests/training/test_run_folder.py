"""What of a run stays, on the disk and in a bucket, and that a run goes on from either."""

import gzip
import json
import re
import shutil

import pytest
import torch
from toy_task import run_toy

from egom2p.storage import RemoteError, load_json, load_tensors
from egom2p.storage.remote_folders import RemoteFolder
from egom2p.training.run_folder import BestCheckpoint, Retention
from egom2p.training.run_log import RunLog, WandbConfig
from egom2p.training.schedule import Length, Progress
from egom2p.training.task import Measurement
from egom2p.training.throughput import known_peak, peak_flops


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def test_last_every_and_best_stay():
    retention = Retention(keep_last=2, keep_every=10, best=7)
    assert retention.removable([5, 7, 10, 12, 15, 18]) == [5, 12]
    assert Retention(1).removable([5]) == [] and Retention(1).removable([]) == []


def test_best_is_the_lowest_of_one_name(tmp_path):
    def measured(one, two):
        return [Measurement("mix", "a", one), Measurement("mix", "b", two)]

    best = BestCheckpoint("mix/a", tmp_path)
    assert best.is_better(measured(2.0, 0.0))
    best.note(3, measured(2.0, 0.0))
    assert not best.is_better(measured(2.0, -1.0)) and best.is_better(measured(1.9, 9.0))
    again = BestCheckpoint("mix/a", tmp_path)
    assert again.step == 3 and not again.is_better(measured(2.1, 0.0))
    mean = BestCheckpoint("mix", tmp_path)
    assert mean.step is None and mean.is_better(measured(100.0, 100.0))
    with pytest.raises(ValueError, match="keep_best is 'mix/c', but measured are mix/a, mix/b"):
        BestCheckpoint("mix/c", tmp_path).is_better(measured(1.0, 1.0))


def test_a_run_keeps_its_best_checkpoint(tmp_path):
    """With a rate far too high the toy gets worse at some time; its best step stays, and is measured as noted."""
    run_toy(
        tmp_path,
        num_steps=40,
        lr=0.5,
        schedule="constant",
        evaluate_every=5,
        checkpoint_every=8,
        keep_best="toy",
        keep_last=1,
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    means = {
        entry["step"]: (entry["toy/first"] + entry["toy/second"]) / 2 for entry in log if entry["kind"] == "evaluation"
    }
    note = load_json(tmp_path / "checkpoints" / "best.json")
    assert note["step"] == min(means, key=means.get) and note["value"] == pytest.approx(means[note["step"]])
    assert steps(tmp_path) == sorted({note["step"], 32, 40}), "the one before the newest stays"


def test_a_best_step_that_is_taken_back_is_forgotten(tmp_path):
    """What DeadRunError advises: newer checkpoints are removed, the run goes on. The best one was among them."""
    values = {"lr": 0.05, "schedule": "constant", "evaluate_every": 4, "checkpoint_every": 4, "keep_best": "toy"}
    run_toy(tmp_path, num_steps=12, keep_last=3, **values)
    assert load_json(tmp_path / "checkpoints" / "best.json")["step"] == 12
    shutil.rmtree(tmp_path / "final")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    run_toy(tmp_path, num_steps=8, keep_last=3, allow_changes=True, **values | {"lr": 1e-4})
    assert load_json(tmp_path / "checkpoints" / "best.json")["step"] == 8


@pytest.fixture
def remote(monkeypatch):
    moto = pytest.importorskip("moto")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="runs")
        yield RemoteFolder("s3://runs/toy/one")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_in_a_bucket_goes_on_on_another_machine(tmp_path, remote):
    common = {"schedule": "constant", "checkpoint_every": 3, "keep_every": 6, "keep_best": "toy/first"}
    scratch = tmp_path / "scratch"
    run_toy("s3://runs/toy/one", num_steps=8, scratch_dir=str(scratch), **common)
    assert (scratch / "runs" / "toy" / "one" / "log.jsonl").is_file()
    best = load_json(scratch / "runs" / "toy" / "one" / "checkpoints" / "best.json")["step"]
    assert remote.directories("checkpoints") == [f"step-{step:08d}" for step in sorted({6, 8, best})]
    assert remote.directories() == ["final"]
    remote.remove_directory("final")  # as if the run had not been finished
    shutil.rmtree(scratch)
    run_toy("s3://runs/toy/one", num_steps=14, scratch_dir=str(scratch), **common)
    run_toy(tmp_path / "whole", num_steps=14, **common)
    here = scratch / "runs" / "toy" / "one"
    found, wanted = (load_tensors(folder / "final" / "model.safetensors") for folder in (here, tmp_path / "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {6, 12, 14} <= {int(name[5:]) for name in remote.directories("checkpoints")}
    logged = [json.loads(line)["step"] for line in (here / "log.jsonl").read_text().splitlines()]
    assert logged[0] == 1 and logged[-1] == 14
    remote.download_directory("final", tmp_path / "back")
    assert load_tensors(tmp_path / "back" / "model.safetensors").keys() == wanted.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_upload_that_fails_does_not_end_training_and_is_made_up_for(tmp_path, remote, monkeypatch, capsys):
    whole, calls = RemoteFolder.upload_directory, []

    def refuse_some(self, directory, name):
        calls.append(name)
        if len(calls) in refused:
            raise RemoteError(f"{self.url}/{name}: access is denied (AccessDenied)")
        return whole(self, directory, name)

    monkeypatch.setattr(RemoteFolder, "upload_directory", refuse_some)
    common = {"schedule": "constant", "checkpoint_every": 3, "scratch_dir": str(tmp_path)}
    refused = {2}
    run_toy("s3://runs/toy/one", num_steps=9, keep_last=5, **common)
    said = capsys.readouterr()
    assert "not uploaded, training goes on" in " ".join((said.out + said.err).split())
    assert remote.directories("checkpoints") == ["step-00000003", "step-00000006", "step-00000009"]
    assert remote.directories() == ["final"]
    # The last upload has no next checkpoint: the run says that it is not there, and the same command brings it.
    refused = {len(calls) + number for number in (1, 2, 3)}
    with pytest.raises(RemoteError, match="the same command uploads it"):
        run_toy("s3://runs/toy/two", num_steps=3, **common)
    two = RemoteFolder("s3://runs/toy/two")
    assert (tmp_path / "runs" / "toy" / "two" / "final" / "model.safetensors").is_file() and two.directories() == []
    refused = set()
    run_toy("s3://runs/toy/two", num_steps=3, **common)
    assert two.directories() == ["final"] and two.directories("checkpoints") == ["step-00000003"]


def test_a_window_of_steps_is_profiled(tmp_path):
    run_toy(tmp_path, num_steps=6, profile={"start": 2, "steps": 2})
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps-00000002-00000003.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("mm" in event.get("name", "") for event in events)
    run_toy(tmp_path / "short", num_steps=3, profile={"start": 2, "steps": 5})
    assert not (tmp_path / "short" / "profile").exists()


def test_peaks():
    assert known_peak("NVIDIA H200") == known_peak("NVIDIA GH200 480GB") == 989e12
    assert known_peak("NVIDIA A100-SXM4-80GB") == 312e12 and known_peak("NVIDIA H100 PCIe") == 756e12
    assert known_peak("NVIDIA L40S") == 362e12 and known_peak("Some Other") is None
    cpu = torch.device("cpu")
    assert peak_flops(cpu, torch.bfloat16) is None and peak_flops(cpu, torch.float32, given_tflops=2.0) == 2e12


def test_every_line_for_people_names_its_run(tmp_path, capsys):
    """Two trainings of `make -j2` write to one terminal."""
    for name in ("gaze", "cam"):
        log = RunLog(tmp_path / name, length=Length("steps", 2, 0), wandb_config=WandbConfig(), settings={})
        log.say("starting")
        log.train(Progress(step=1), {"loss": 1.0, "lr": 0.1, "clips_per_s": 2.0}, seconds_left=1)
        log.evaluation(Progress(step=2), [Measurement("task", "error", 0.5)])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.search("starting|step |validation", line)]
    assert [line.split(": ")[0] for line in lines] == ["gaze"] * 3 + ["cam"] * 3
