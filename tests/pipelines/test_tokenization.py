import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_clips import TRACK, tiny_clip, tiny_config

from egom2p.config import load_config
from egom2p.contracts import TokenizerMismatch
from egom2p.data.clips.clip_store import ClipStore, write_clips
from egom2p.data.modality_info import default_specs
from egom2p.data.shards.shard_set import ShardSet, shard_pattern
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.storage import save_json
from egom2p.tokenizers import TrajectoryVqVaeConfig, build_network, save_tokenizer


@pytest.fixture
def made(tmp_path, rng):
    """Clips of two data sets and tokenizers for rgb, gaze, camera; the config that names them."""
    config = tiny_config(tmp_path, rng)
    write_clips(tmp_path / "clips", "video", [tiny_clip(f"v{i}", rng, ("rgb",)) for i in range(2)])
    return config


def test_clips_become_token_shards_with_cards(made):
    full, video = tokenize(made)
    shards = ShardSet(shard_pattern(made.output, "full", ["rgb", "gaze", "cam"]))
    assert shards.verify() == 7 and shards.shard_starts == (0, 3, 6, 7)
    assert shards.keys == ClipStore(made.clips, "full").keys
    for folder, name in (("rgb", "tok_rgb"), ("gaze", "tok_gaze"), ("cam", "tok_cam")):
        card = shards.card(folder)
        ids = shards.read_array(5, folder)
        assert card["name"] == name and card["tokenizer_fingerprint"].startswith("sha256:")
        assert ids.dtype == np.int32 and ids.shape == (np.prod(card["grid"]),)
        assert 0 <= ids.min() and ids.max() < card["vocab_size"]
        assert full.modalities[name]["num_clips"] == 7 and full.modalities[name]["codes_used"] >= 1
        assert full.round_trip[name]
    assert full.untouched == ("heart",) and full.absent == ()
    assert video.absent == ("tok_cam", "tok_gaze") and video.num_clips == 2
    saved = json.loads((ClipStore(made.clips, "full").root.parent / "tokens/tokenize_report-full.json").read_text())
    assert saved["report"]["num_clips"] == 7


def test_batch_size_changes_nothing(made, tmp_path):
    tokenize(made)
    tokenize(replace(made, output=str(tmp_path / "again"), batch_size=7))
    for path in (tmp_path / "tokens").rglob("*.tar"):
        assert (tmp_path / "again" / path.relative_to(tmp_path / "tokens")).read_bytes() == path.read_bytes()


def test_finished_shards_are_kept_and_missing_ones_made(made, tmp_path):
    tokenize(made)
    first, second = (tmp_path / f"tokens/gaze/full/shard-00000{i}.tar" for i in range(2))
    stamp, content = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    tokenize(made)
    assert first.stat().st_mtime_ns == stamp and second.read_bytes() == content


def test_tokens_of_clips_made_otherwise_do_not_pass_for_finished(made, tmp_path):
    card = tmp_path / "clips" / "meta" / "full" / "card.json"
    save_json(card, {"source": {"kind": "synthetic", "seed": 1}})
    tokenize(made)
    tokenize(made)
    save_json(card, {"source": {"kind": "synthetic", "seed": 2}})
    with pytest.raises(ValueError, match=r"full: found tokens of clips with source .*1}, wanted .*2}"):
        tokenize(made)


def test_ranks_share_the_shards(made, tmp_path, monkeypatch):
    tokenize(made)
    split = replace(made, output=str(tmp_path / "split"), datasets=("full",), num_check_clips=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        tokenize(split)
    for path in (tmp_path / "split").rglob("*.tar"):
        assert (tmp_path / "tokens" / path.relative_to(tmp_path / "split")).read_bytes() == path.read_bytes()
    assert ShardSet(shard_pattern(split.output, "full", ["rgb", "gaze", "cam"])).verify() == 7


def test_a_modality_without_tokenizer_is_an_error_before_any_work(made, tmp_path):
    with pytest.raises(ValueError, match=r"\['tok_depth'\] have no tokenizer; .*'tok_cam', 'tok_gaze', 'tok_rgb'"):
        tokenize(replace(made, modalities=("tok_rgb", "tok_depth")))
    with pytest.raises(ValueError, match=r"tok_depth: .*depth has no tokenizer.json; .*\['cam', 'gaze', 'rgb'\]"):
        tokenize(replace(made, tokenizers={"tok_rgb": "rgb", "tok_depth": "depth"}))
    with pytest.raises(ValueError, match="found the tokenizer of tok_gaze, wanted that of tok_rgb"):
        tokenize(replace(made, tokenizers={"tok_rgb": "gaze"}))
    with pytest.raises(ValueError, match=r"no clips of data set 'gone'; found \['full', 'video'\]"):
        tokenize(replace(made, datasets=("gone",)))
    with pytest.raises(ValueError, match=r"found streams \{'video': \['rgb'\]\}, wanted those of .*gaze"):
        tokenize(replace(made, datasets=("video",), modalities=("tok_rgb", "tok_gaze")))
    assert not (tmp_path / "tokens").exists()


def test_tokens_of_another_tokenizer_are_not_continued(made, tmp_path):
    tokenize(made)
    network = build_network(TrajectoryVqVaeConfig(modality="tok_gaze", quantity="gaze", folder="gaze", **TRACK))
    network.fit_normalisation(list(ClipStore(made.clips, "full")))
    save_tokenizer(network, tmp_path / "tokenizers" / "gaze")
    with pytest.raises(TokenizerMismatch, match=r"tok_gaze were made by tokenizer sha256:\w+, but tokenizer sha256:"):
        tokenize(made)


def test_a_clip_a_tokenizer_refuses_is_an_error_or_is_counted(made, tmp_path, rng):
    bad = tiny_clip("bad", rng)
    bad.streams["camera"].values[3, 0, 3] = np.nan
    write_clips(tmp_path / "clips", "broken", [tiny_clip("g0", rng), bad, tiny_clip("g1", rng)])
    config = replace(made, datasets=("broken",))
    with pytest.raises(ValueError, match="bad"):
        tokenize(config)
    (report,) = tokenize(replace(config, bad_clips="skip"))
    assert list(report.skipped) == ["bad"] and report.num_clips == 2
    (report,) = tokenize(replace(config, bad_clips="skip"))
    assert report.num_clips == 2


def test_the_config_names_the_published_modalities(tmp_path):
    overrides = [f"clips={tmp_path}", f"output={tmp_path}", f"tokenizers_root={tmp_path}"]
    config = load_config(TokenizeConfig, "default/tokenize/clips.yaml", overrides)
    assert sorted(config.tokenizers) == [spec.name for spec in default_specs()]
