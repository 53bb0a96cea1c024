"""Tokenizers train from clips on disk, resume to the bit, and end as loadable folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from egom2p.config import ConfigError, from_plain
from egom2p.contracts import AlignedClip, Provenance, Stream
from egom2p.data.clips.clip_store import ClipStore, write_clips
from egom2p.storage import load_tensors, write_checksums
from egom2p.tokenizers.pretrained import load_tokenizer
from egom2p.training.distributed import Ranks
from egom2p.training.tasks.clip_inputs import ClipInputs
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import TokenizerTask, train_tokenizer

FRAMES, SAMPLES, SIZE = 5, 8, 16

GAZE = {
    "architecture": "trajectory_vqvae", "modality": "tok_gaze", "quantity": "gaze", "folder": "gaze",
    "num_samples": SAMPLES, "dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "latent_dim": 4,
    "num_codes": 8,
}  # fmt: skip
DEPTH = {
    "architecture": "video_codec", "modality": "tok_depth", "quantity": "depth", "folder": "depth",
    "num_frames": FRAMES, "height": SIZE, "width": SIZE, "rate_hz": 8.0, "levels": [4, 3], "video_channels": 1,
    "channels": 4, "channel_multipliers": [1, 2], "num_blocks": 1, "attention": False, "latent_channels": 4,
    "window_frames": 5, "windows_per_clip": 1, "pixel_multiple": 8,
}  # fmt: skip


def make_clip(number: int) -> AlignedClip:
    rng = np.random.default_rng(number)
    track_times, frame_times = np.arange(SAMPLES) / 30, np.arange(FRAMES) / 8
    gaze = np.clip(0.5 + 0.05 * rng.standard_normal((SAMPLES, 2)).cumsum(0), 0, 1).astype(np.float32)
    ramp = np.linspace(1, 3, SIZE, dtype=np.float32)[None, :, None] * rng.uniform(0.5, 2)
    depth = np.broadcast_to(ramp, (FRAMES, SIZE, SIZE)).astype(np.float32)
    streams = {
        "gaze": Stream(gaze, rng.random(SAMPLES) < 0.9, track_times, "image"),
        "depth": Stream(depth, np.ones(FRAMES, bool), frame_times, "m"),
    }
    return AlignedClip(f"clip-{number:03d}", streams, None, Provenance("toy", f"r{number}"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, "train", [make_clip(number) for number in range(24)], clips_per_shard=10)
    write_clips(root, "val", [make_clip(1000 + number) for number in range(6)])
    return root


def values(clips: Path, folder: Path, network: dict, **training) -> dict:
    return {
        "output_dir": str(folder),
        "network": network,
        "train": {"root": str(clips), "datasets": ["train"]},
        "validation": {"root": str(clips), "datasets": ["val"]},
        "training": {"num_steps": 12, "lr": 3e-3, "batch_size": 8, "log_every": 1, "device": "cpu"} | training,
    }


def train(clips: Path, folder: Path, network: dict, **training):
    return train_tokenizer(from_plain(TokenizerTrainingConfig, values(clips, folder, network, **training)))


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


@pytest.mark.parametrize(
    ("network", "error", "stream"), [(GAZE, "gaze_error", "gaze"), (DEPTH, "abs_rel", "depth")], ids=["gaze", "depth"]
)
def test_it_trains_resumes_to_the_bit_and_loads(clips, tmp_path, network, error, stream):
    common = {"schedule": "constant", "checkpoint_every": 6, "keep_last": 9}
    result = train(clips, tmp_path / "whole", network, **common)
    train(clips, tmp_path / "parts", network, num_steps=6, **common)
    train(clips, tmp_path / "parts", network, **common)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    found, wanted = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    names = {item.name for item in result.measurements}
    assert {"codes_used", "perplexity"} < names
    tokenizer = load_tokenizer(tmp_path / "whole" / "final")
    assert tokenizer.stream == stream
    assert tokenizer.encode([make_clip(5)]).shape == (1, tokenizer.spec.num_tokens)
    assert tokenizer.card["metrics"].keys() == names


def test_two_times_the_same_steps_are_the_same(clips, tmp_path, capsys):
    train(clips, tmp_path / "run", GAZE, check_determinism=2)
    assert "2 steps twice" in "".join(capsys.readouterr()) and not (tmp_path / "run").exists()


LOSSES = {"flow": {"window": 3, "levels": 1}, "adversarial": {"channels": 8, "num_levels": 1, "start_step": 3}}


def test_further_losses_resume_to_the_bit_and_leave_no_trace_in_the_tokenizer(clips, tmp_path):
    common = {"schedule": "constant", "checkpoint_every": 3, "keep_last": 9}
    for folder, lengths in (("whole", [6]), ("parts", [3, 6])):
        for num_steps in lengths:
            given = values(clips, tmp_path / folder, DEPTH, num_steps=num_steps, **common) | {"losses": LOSSES}
            train_tokenizer(from_plain(TokenizerTrainingConfig, given))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    entries = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    last = [entry for entry in entries if entry["kind"] == "train"][-1]
    assert any("flow" in name for name in last) and any("critic" in name for name in last)
    plain = train(clips, tmp_path / "plain", DEPTH, num_steps=1)
    assert plain is not None
    names = load_tensors(tmp_path / "plain" / "final" / "model.safetensors").keys()
    assert load_tensors(tmp_path / "whole" / "final" / "model.safetensors").keys() == names
    assert load_tokenizer(tmp_path / "whole" / "final").encode([make_clip(5)]).shape[0] == 1
    with pytest.raises(ConfigError, match="losses are for video codecs"):
        from_plain(TokenizerTrainingConfig, values(clips, tmp_path, GAZE) | {"losses": LOSSES})
    given = values(clips, tmp_path, GAZE)
    given["training"] = given["training"] | {"batching": "tokens", "batch_tokens": 64}  # counted clips all the same
    with pytest.raises(ConfigError, match="tokenizers count clips"):
        from_plain(TokenizerTrainingConfig, given)


@pytest.mark.parametrize("network", [GAZE, DEPTH], ids=["gaze", "depth"])
def test_the_average_of_weights_is_what_is_exported(clips, tmp_path, network):
    train(clips, tmp_path / "plain", network)
    train(clips, tmp_path / "ema", network, ema={"decay": 0.9})
    plain, average = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("plain", "ema"))
    assert plain.keys() == average.keys()
    assert any(not torch.equal(plain[name], average[name]) for name in plain)
    tokenizer = load_tokenizer(tmp_path / "ema" / "final")
    clip = make_clip(5)
    assert tokenizer.card["metrics"]["codes_used"] >= 1
    assert np.isfinite(tokenizer.decode(tokenizer.encode([clip]))[0]).all()


def test_training_begins_from_the_weights_of_another_tokenizer(clips, tmp_path):
    train(clips, tmp_path / "first", GAZE)
    final = str(tmp_path / "first" / "final")
    given = values(clips, tmp_path / "second", GAZE, num_steps=1, lr=1e-9) | {"init_from": final}
    train_tokenizer(from_plain(TokenizerTrainingConfig, given))
    first, second = (load_tensors(tmp_path / name / "final" / "model.safetensors") for name in ("first", "second"))
    assert torch.equal(first["mean"], second["mean"])
    torch.testing.assert_close(first["encoder.conv.weight"], second["encoder.conv.weight"])
    card = load_tokenizer(tmp_path / "second" / "final").card
    assert card["training_data"]["init_from"] == final
    other = values(clips, tmp_path / "third", GAZE | {"dim": 8}) | {"init_from": final}
    with pytest.raises(ValueError, match=r"init_from .*final: its weights do not fit"):
        train_tokenizer(from_plain(TokenizerTrainingConfig, other))


def test_codebook_health_is_logged(clips, tmp_path):
    result = train(clips, tmp_path, GAZE, num_steps=2)
    assert {"codes_used", "perplexity", "dead_codes"} < {item.name for item in result.measurements}


def test_batches_depend_on_position_alone(clips, tmp_path):
    """Whatever ranks share a step and whatever fits into memory, position p gives the same input."""
    network = DEPTH | {"window_frames": 3}
    config = from_plain(TokenizerTrainingConfig, values(clips, tmp_path, network, batch_size=8))
    task = TokenizerTask(config, Ranks())
    whole = [batch for batch, _ in zip(task.batches(0), range(4), strict=False)]
    small = from_plain(TokenizerTrainingConfig, values(clips, tmp_path, network, batch_size=4) | {"cache_gb": 0.0})
    for rank in range(2):
        share = TokenizerTask(small, Ranks(rank=rank, world_size=2))
        for wanted, found in zip(whole, share.batches(0), strict=False):
            assert torch.equal(found.tensors["video"], wanted.tensors["video"][rank::2])


def test_threads_make_the_same_batches(clips, tmp_path):
    """Over several epochs, with a memory that holds some clips and not others."""
    made = []
    for num_workers in (0, 3):
        config = from_plain(
            TokenizerTrainingConfig,
            values(clips, tmp_path / "run", DEPTH, num_workers=num_workers) | {"cache_gb": 2e-5},
        )
        batches = TokenizerTask(config, Ranks()).batches(0)
        made.append([next(batches) for _ in range(12)])
        batches.close()
    for one, other in zip(*made, strict=True):
        assert one.counts == other.counts
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_every_epoch_sees_every_clip_once_and_memory_is_bounded(clips, tmp_path):
    config = from_plain(TokenizerTrainingConfig, values(clips, tmp_path, GAZE))
    task = TokenizerTask(config, Ranks())
    inputs = ClipInputs(ClipStore(clips, "train"), task.network, seed=0, cache_bytes=0)
    for epoch in range(2):
        seen = [inputs.clip_index(24 * epoch + position) for position in range(24)]
        assert sorted(seen) == list(range(24))
    inputs.batch(range(8))
    assert not inputs._kept_clips and not inputs._kept_inputs


def test_a_run_of_another_network_is_not_resumed(clips, tmp_path):
    train(clips, tmp_path, GAZE, num_steps=1)
    with pytest.raises(ValueError, match="step-00000001 is a tokenizer with num_codes=8, the config says 16"):
        train(clips, tmp_path, GAZE | {"num_codes": 16}, num_steps=2)


def test_a_run_of_an_earlier_version_with_fewer_settings_is_resumed(clips, tmp_path):
    train(clips, tmp_path, GAZE, num_steps=1)
    card = tmp_path / "checkpoints" / "step-00000001" / "tokenizer.json"
    content = json.loads(card.read_text())
    del content["config"]["has_local_encoder"]
    card.write_text(json.dumps(content))
    write_checksums(card.parent)
    assert train(clips, tmp_path, GAZE, num_steps=2).progress.step == 2


def test_missing_data_is_named(clips, tmp_path):
    wrong = values(clips, tmp_path / "run", GAZE)
    with pytest.raises(ValueError, match="no clips of data set 'tran'.*'train'"):
        train_tokenizer(
            from_plain(TokenizerTrainingConfig, wrong | {"train": {"root": str(clips), "datasets": ["tran"]}})
        )
    with pytest.raises(ConfigError, match="architecture"):
        from_plain(TokenizerTrainingConfig, wrong | {"network": GAZE | {"architecture": "vqvae"}})
    assert not (tmp_path / "run").exists()
