"""LPIPS and FVD of a protocol end up as numbers: a column with intervals, a line under the table, on the page."""

import csv

import numpy as np
import pytest
import tiny_artifacts
import torch
from tiny_perceptual import lpips_weights, write_program

from egom2p.data.clips.clip_store import write_clips
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EstimatorConfig, EvaluationConfig
from egom2p.evaluation.scoring import ProtocolConfig
from egom2p.evaluation.task_evaluation import ClipScorer
from egom2p.generation.checkpoints import load_checkpoint, pretrained_checkpoint
from egom2p.metrics.perceptual import FvdConfig, Lpips, LpipsConfig, frechet_distance
from egom2p.storage import save_tensors
from egom2p.viewing.report import ReportConfig, write_report


@pytest.fixture
def clips(monkeypatch):
    """Of the size that the pretrained model reads: the tiny one's pictures are too small for LPIPS."""
    monkeypatch.setattr(tiny_artifacts, "SIZE", 64)
    return [tiny_artifacts.invented_clip(number) for number in range(6)]


def test_lpips_and_fvd_are_in_the_results(clips, tmp_path):
    backbone, heads = lpips_weights()
    save_tensors(tmp_path / "alexnet.safetensors", backbone)
    torch.save(heads, tmp_path / "alex.pth")
    digest = write_program(tmp_path / "i3d.pt")
    write_clips(tmp_path / "train", "tiny", clips[:3])
    write_clips(tmp_path / "val", "tiny", clips[3:])
    config = EvaluationConfig(
        output=str(tmp_path / "evaluation"),
        checkpoints={"small": str(pretrained_checkpoint("world_small"))},
        clips=ClipsConfig(root=str(tmp_path / "val"), dataset="tiny"),
        train_clips=ClipsConfig(root=str(tmp_path / "train"), dataset="tiny"),
        tasks=("depth2rgb",),
        protocol=ProtocolConfig(
            lpips=LpipsConfig(backbone=str(tmp_path / "alexnet.safetensors"), heads=str(tmp_path / "alex.pth")),
            fvd=FvdConfig(network=str(tmp_path / "i3d.pt"), sha256=digest, allow_torchscript=True),
        ),
        estimators={"most likely": EstimatorConfig()},
        device="cpu",
        progress=False,
    )
    (task,) = run_evaluation(config).results.to_plain()["tasks"]
    assert {"lpips", "psnr_db", "ssim"} == {metric["key"] for metric in task["metrics"]}
    for row in task["rows"]:
        value = row["values"]["lpips"]
        assert not row["failures"] and value["num_clips"] == 3 and value["low"] <= value["mean"] <= value["high"]
        assert row["of_the_set"]["FVD"] > 0

    tokenizer = load_checkpoint(pretrained_checkpoint("world_small"), device="cpu").tokenizer("tok_rgb")
    decoded, _ = tokenizer.decode(tokenizer.encode(clips[3:]))
    lpips = Lpips(backbone, heads)
    wanted = [lpips(found, clip.rgb).mean() for found, clip in zip(decoded, clips[3:], strict=True)]
    rows = list(csv.DictReader((tmp_path / "evaluation" / "per_clip.csv").read_text().splitlines()))
    ceiling = [float(row["value"]) for row in rows if (row["kind"], row["metric"]) == ("ceiling", "lpips")]
    np.testing.assert_allclose(ceiling, wanted, rtol=1e-4)

    colours = [
        np.stack([np.mean(video, axis=(0, 1, 2)) for video in of]) for of in (decoded, [c.rgb for c in clips[3:]])
    ]
    fvd = next(row["of_the_set"]["FVD"] for row in task["rows"] if row["kind"] == "ceiling")
    assert fvd == pytest.approx(frechet_distance(*colours), rel=1e-3)
    told = f"FVD over 3 clips (lower is better): mean frame {task['rows'][0]['of_the_set']['FVD']:.2f}"
    assert told in (tmp_path / "evaluation" / "results.md").read_text()
    page = write_report(ReportConfig(evaluation=str(tmp_path / "evaluation"))).read_text()
    assert "LPIPS" in page and told in page and "more by chance than by quality" in page


def test_a_set_with_a_clip_of_the_wrong_size_has_no_distance(clips, tmp_path):
    digest = write_program(tmp_path / "i3d.pt")
    protocol = ProtocolConfig(fvd=FvdConfig(network=str(tmp_path / "i3d.pt"), sha256=digest, allow_torchscript=True))
    scorer = ClipScorer("rgb", "rgb", clips[:3], protocol)
    right = scorer.method("right", "model", [clip.rgb for clip in clips[:3]])
    assert right.of_the_set["FVD"] == pytest.approx(0, abs=1e-3)
    wrong = scorer.method("wrong", "model", [clips[0].rgb, clips[1].rgb[:, :32], clips[2].rgb])
    assert list(wrong.failures) == [clips[1].key] and wrong.of_the_set == {}
    assert wrong.values["psnr_db"][1] is None and wrong.values["psnr_db"][2] is not None
