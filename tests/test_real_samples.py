"""Real recordings through the public commands, with untrained tokenizers: nothing here says anything about quality."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_artifacts import SIZE, TOKENIZERS, invented_clip

from egom2p.config import load_config
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.recordings.conversion import convert
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.geometry import read_tum
from egom2p.pipelines.prepare import PrepareConfig, prepare
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.tokenizers import build_network, save_tokenizer
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from egom2p.viewing.generation_page import write_generation_page

_SOURCES = {
    "rgbd": ("rgbd_7scenes_redkitchen",),
    "aria": ("aria_mps_sample",),
    "video": ("ego4d_clip_lavila", "egom2p_example_data/rgb2dep_h2o.mp4"),
}
_SMALL = ["model.dim=24", "model.encoder_depth=1", "model.decoder_depth=1", "model.num_heads=2"]


@pytest.fixture(scope="module")
def made(real_data_dir, tmp_path_factory):
    """Folder with recordings, clips, tokenizers, tokens and a model that has trained three steps on the mixture."""
    root = tmp_path_factory.mktemp("real")
    for kind, sources in _SOURCES.items():
        for source in sources:
            convert(real_data_dir / source, root / "recordings" / kind)
        overrides = [f"source.root={root / 'recordings' / kind}", f"output={root / 'clips'}", f"dataset={kind}"]
        overrides += [f"clip.height={SIZE}", f"clip.width={SIZE}", "num_workers=0"]
        prepare(load_config(PrepareConfig, "default/data_preparation/plain_folder.yaml", overrides))
    _save_tokenizers(root / "tokenizers")
    overrides = [f"clips={root / 'clips'}", f"output={root / 'tokens'}", f"tokenizers_root={root / 'tokenizers'}"]
    tokenize(load_config(TokenizeConfig, "default/tokenize/real_samples.yaml", overrides))
    overrides = [f"output_dir={root / 'run'}", f"data.tokens_root={root / 'tokens'}", "finetune=null", *_SMALL]
    overrides += [f"tokenizers_root={root / 'tokenizers'}", "training.num_steps=3", "training.device=cpu"]
    pretrain(load_config(PretrainConfig, "default/egom2p/models/main/real_samples.yaml", overrides))
    return root


def _save_tokenizers(root):
    clips = [invented_clip(number) for number in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for config in TOKENIZERS.values():
            network = build_network(config)
            network.fit_normalisation(clips)
            save_tokenizer(network, root / config.modality)


def test_each_source_becomes_clips_of_its_own_streams(made):
    found = {kind: (ClipStore(made / "clips", kind).streams, len(ClipStore(made / "clips", kind))) for kind in _SOURCES}
    assert found == {"rgbd": (("camera", "depth", "rgb"), 1), "aria": (("camera", "gaze"), 5), "video": (("rgb",), 2)}


def test_a_mixture_of_sets_with_different_modalities_trains(made):
    rows = [json.loads(line) for line in (made / "run" / "log.jsonl").read_text().splitlines()]
    seen = {key for row in rows for key in row if key.startswith("loss/tok_")}
    assert seen == {"loss/tok_cam", "loss/tok_depth", "loss/tok_gaze", "loss/tok_rgb"}
    card = json.loads((made / "run" / "final" / "model.json").read_text())
    assert sorted(card["tokenizers"]) == ["tok_cam", "tok_depth", "tok_gaze", "tok_rgb"]


def test_the_videos_get_depth_camera_and_gaze_and_a_page(made, tmp_path):
    model = shutil.copytree(made / "run" / "final", tmp_path / "model")
    overrides = [f"checkpoint={model}", f"input={made / 'clips'}", f"output={tmp_path / 'out'}", "device=cpu"]
    manifest = run_generation(
        load_config(GenerationConfig, "default/egom2p/generation/real_samples.yaml", [*overrides, "progress=false"])
    )
    clips = json.loads(manifest.read_text())["clips"]
    assert len(clips) == 2 and all(clip["given"] == ["tok_rgb"] for clip in clips)
    for clip in clips:
        with np.load(manifest.parent / clip["key"] / "clip.npz") as arrays:
            assert arrays["depth"].shape == (16, SIZE, SIZE) and arrays["gaze"].shape == (60, 2)
        assert len(read_tum(manifest.parent / clip["key"] / "camera.tum")[0]) == 60
    page = write_generation_page(manifest.parent).read_text()
    assert page.count("<video") == 2 and "depth generated" in page
    overrides = [f"checkpoints={{world: {model}}}", f"output={tmp_path / 'numbers'}", f"clips.root={made / 'clips'}"]
    evaluated = run_evaluation(
        load_config(
            EvaluationConfig,
            "default/egom2p/evaluation/real_samples.yaml",
            [*overrides, "device=cpu", "progress=false"],
        )
    )
    assert [task["task"] for task in evaluated.results.to_plain()["tasks"]] == ["rgb2depth", "rgb2cam", "depth2rgb"]
