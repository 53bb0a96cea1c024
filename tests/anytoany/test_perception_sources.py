"""What is perceived: codes, states of EgoM2P's encoder, vectors of files, patches of image towers; kept on disk."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_artifacts import invented_clip, make_tiny_world

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.perception.build_perception import build_source, build_tower
from egom2p.anytoany.perception.export_features import ExportConfig, export
from egom2p.anytoany.perception.feature_store import CARD, LEDGER, FeatureLookup, FeatureStore, FeatureWriter
from egom2p.anytoany.perception.media_files import VectorFiles
from egom2p.anytoany.perception.source import (
    CodesConfig,
    EncoderConfig,
    VectorsConfig,
    rows_of,
    source_of_kind,
)
from egom2p.anytoany.perception.token_features import EncoderTower, TokenSource, features_of_tokens
from egom2p.config import to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip, TokenGrid, TokenizerMismatch
from egom2p.layers.lora import LoraConfig
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.prompt_batches import KnownTokens, PromptRow, pack_prompts
from egom2p.models.sampling import TargetPlan
from egom2p.models.weights import save_model
from egom2p.storage import load_json, save_json
from egom2p.tokenizers.pretrained import load_tokenizer

SPECS = (
    ModalitySpec("tok_rgb", "grid", "rgb", TokenGrid((2, 3, 4)), 11, "rgb"),
    ModalitySpec("tok_gaze", "track", "gaze", TokenGrid((5,)), 7, "gaze", tokenizer_fingerprint="sha256:a"),
    ModalitySpec("tok_smell", "track", "generic", TokenGrid((3,)), 13, "smell"),
)
PLAIN = tuple(spec.to_dict() for spec in SPECS)


def clip_of(seed, names=("tok_rgb", "tok_gaze", "tok_smell")):
    rng = np.random.default_rng(seed)
    return TokenClip(
        f"clip{seed}",
        {s.name: rng.integers(0, s.vocab_size, s.num_tokens).astype(np.int32) for s in SPECS if s.name in names},
    )


CLIPS = [clip_of(0), clip_of(1, ("tok_gaze",)), clip_of(2, ("tok_rgb", "tok_smell"))]


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "registers"])
def checkpoint(request, tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EgoM2P(
            ModelConfig(dim=24, num_heads=2, encoder_depth=3, decoder_depth=1, num_registers=request.param), SPECS
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("model") / "final"
    save_model(model, folder)
    return model.eval(), str(folder)


def test_codes_carry_their_positions():
    item = features_of_tokens(CLIPS[0], SPECS)
    assert item.features.shape == (24 + 5 + 3, 1) and item.source.tolist() == [0] * 24 + [1] * 5 + [2] * 3
    assert item.features[:, 0].tolist() == np.concatenate(list(CLIPS[0].tokens.values())).tolist()
    assert item.position[7].tolist() == [0, 1, 3] and item.position[24 + 4].tolist() == [4, 0, 0]
    partly = TokenClip("p", {"tok_gaze": np.array([3, -1, 2, -1, -1])})
    assert features_of_tokens(partly, SPECS).position[:, 0].tolist() == [0, 2]
    with pytest.raises(ValueError, match="none of the perceived"):
        features_of_tokens(CLIPS[1], SPECS[:1])
    with pytest.raises(ValueError, match="wanted at most 5 below 7"):
        features_of_tokens(TokenClip("p", {"tok_gaze": np.full(5, 7)}), SPECS)
    with pytest.raises(TokenizerMismatch):
        features_of_tokens(TokenClip("p", {"tok_gaze": np.zeros(5)}, {"tok_gaze": "sha256:b"}), SPECS)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("modalities", [(), ("tok_gaze", "tok_rgb")])
def test_states_are_those_of_the_encoder(checkpoint, modalities, layer):
    model, folder = checkpoint
    config = EncoderConfig(checkpoint=folder, modalities=modalities, layer=layer)
    source = build_source(config)
    assert source.names == (("tok_rgb", "tok_gaze") if modalities else tuple(spec.name for spec in SPECS))
    items = source.perceive(CLIPS)
    tower = build_tower(config)
    states = tower(rows_of(items)).split([len(item.features) for item in items])
    for clip, item, ours in zip(CLIPS, items, states, strict=True):
        known = [
            KnownTokens(number, clip.tokens[spec.name], np.arange(spec.num_tokens))
            for number, spec in enumerate(SPECS)
            if spec.name in clip.tokens and (not modalities or spec.name in modalities)
        ]
        num_registers = model.config.num_registers
        batch = pack_prompts([PromptRow(tuple(known))], model.modalities, num_registers=num_registers)
        whole, model.encoder = model.encoder, model.encoder[:layer]
        with torch.no_grad():
            wanted = model.encoder_output(batch)[num_registers:]
        model.encoder = whole
        assert len(item.features) == len(wanted) and torch.allclose(ours, wanted, atol=1e-5)
    exported = build_source(replace(config, precomputed=True)).perceive(CLIPS)
    assert all(np.allclose(one.features, two.numpy(), atol=1e-5) for one, two in zip(exported, states, strict=True))
    assert all((one.position == two.position).all() for one, two in zip(exported, items, strict=True))


def test_what_a_clip_lacks_is_predicted_from_the_rest(checkpoint):
    """The likeliest token of every position, modality after modality; what the clip holds stays."""
    model, folder = checkpoint
    source = TokenSource(EncoderConfig(checkpoint=folder))
    whole, without = clip_of(0), clip_of(0, ("tok_rgb",))
    made, missing = source.completed(without)
    assert missing == ("tok_gaze", "tok_smell") and made.key == "clip0"
    assert np.array_equal(made.tokens["tok_rgb"], whole.tokens["tok_rgb"])
    known = dict(without.tokens)
    for name, length in (("tok_gaze", 5), ("tok_smell", 3)):
        asked = TokenClip("asked", dict(known))
        (logits_LV,) = Sampler(model).logits([asked], TargetPlan(target=name), [np.arange(length)])
        known[name] = made.tokens[name]
        assert made.tokens[name].tolist() == logits_LV.argmax(-1).tolist()
    assert source.completed(whole) == (whole, ())
    codes = TokenSource(CodesConfig(width=8, modality_specs=PLAIN))
    assert codes.completed(without) == (without, ()), "no checkpoint, no model that could predict"
    chosen = TokenSource(EncoderConfig(checkpoint=folder, modalities=("tok_rgb", "tok_smell")))
    assert chosen.completed(without)[1] == ("tok_smell",), "what is not perceived is not predicted"


def test_what_of_the_encoder_is_trained(checkpoint):
    folder = checkpoint[1]

    def trained(**settings):
        tower = build_tower(EncoderConfig(checkpoint=folder, **settings))
        assert isinstance(tower, EncoderTower) and not any("decoder" in name for name, _ in tower.named_parameters())
        source = build_source(EncoderConfig(checkpoint=folder))
        states = tower.train()(rows_of(source.perceive(CLIPS)))
        assert states.requires_grad == (settings.get("train", "frozen") != "frozen")
        return [name for name, parameter in tower.named_parameters() if parameter.requires_grad]

    assert trained() == []
    assert all("lora_" in name for name in trained(train="lora", lora=LoraConfig(rank=2))) and trained(train="full")
    for wrong in ({"train": "lora"}, {"train": "full", "precomputed": True}, {"checkpoint": None}):
        with pytest.raises(ValueError):
            EncoderConfig(**{"checkpoint": folder, **wrong})
    with pytest.raises(ValueError, match=r"1 \.\.\. 3"):
        build_tower(EncoderConfig(checkpoint=folder, layer=4))


def test_codes_without_a_checkpoint_and_kinds():
    config = CodesConfig(width=8, modality_specs=PLAIN, modalities=("tok_smell",))
    tower, items = build_tower(config), build_source(config).perceive([CLIPS[0]])
    table = tower.embeddings.token_table
    assert torch.equal(tower(rows_of(items)), table[torch.from_numpy(CLIPS[0].tokens["tok_smell"]).long()])
    sources = (config, VectorsConfig(width=4, kinds=("audio",)))
    with pytest.raises(ValueError, match="audio need exactly one"):
        source_of_kind(sources, "audio")
    assert source_of_kind(sources, "gaze") == 0
    with pytest.raises(ValueError, match="no modality 'tok_taste'"):
        build_source(CodesConfig(width=8, modality_specs=PLAIN, modalities=("tok_taste",)))


def test_signals_are_tokenized_on_the_way(tmp_path):
    world = make_tiny_world(tmp_path)
    config = EncoderConfig(checkpoint=str(world / "model"))
    source = build_source(config)
    clip = invented_clip(0)
    tokens = {name: tokenizer.encode([clip])[0] for name, tokenizer in source.tokenizers.items()}
    (ours,) = source.perceive([clip])
    assert ours.features[:, 0].tolist() == np.concatenate([tokens[spec.name] for spec in source.specs]).tolist()

    out = tmp_path / "features"
    settings = {"perception": replace(config, precomputed=True), "output": str(out)}
    found = ExportConfig(input=str(world / "clips" / "train"), shard_clips=2, max_clips=3, **settings)
    assert export(found) == (3, 0)
    # Killed while writing: a shard without its entry, and half an entry.
    (out / "features-000002.safetensors").write_bytes(b"half")
    with (out / LEDGER).open("a") as opened:
        opened.write('{"shard": "perc')
    again = ExportConfig(input=str(world / "clips" / "train"), shard_clips=2, **settings)
    assert export(again) == (2, 3) and export(again) == (0, 5)
    card = load_json(out / CARD)
    added = ("image_size", "tiles", "num_frames", "clip_s")
    earlier = {name: value for name, value in card["perception"].items() if name not in added}
    save_json(out / CARD, card | {"perception": earlier})
    assert export(again) == (0, 5), "a folder of an earlier version, which had fewer settings"
    save_json(out / CARD, card | {"perception": earlier | {"layer": 1}})
    with pytest.raises(ValueError, match="holds features with perception"):
        export(again)
    save_json(out / CARD, card)
    store = FeatureStore(out)
    assert len(store) == 5 and store.card["names"] == list(source.names)
    wanted = build_source(settings["perception"]).perceive([invented_clip(3)])[0]
    assert np.allclose(store["clip_003"].features, wanted.features, atol=1e-5)
    with pytest.raises(KeyError, match="'nobody'"):
        store["nobody"]
    with pytest.raises(ValueError, match="choose another folder"):
        export(ExportConfig(input=found.input, output=str(out), perception=config))


def test_what_is_looked_at_comes_once_more():
    """States of the cell that the eyes are on, time after time; none of clips without gaze, or with half of it."""
    config = EncoderConfig(
        checkpoint="checkpoints/world_small", modalities=("tok_rgb", "tok_gaze"), fovea="tok_rgb", precomputed=True
    )
    source = build_source(config)
    assert source.names == ("tok_gaze", "tok_rgb", "fovea")
    tokenizer = load_tokenizer("checkpoints/world_small/tokenizers/tok_gaze")
    at_uv = np.repeat([[0.8, 0.2], [0.2, 0.6]], 30, axis=0).astype(np.float32)
    gaze = Stream(at_uv, np.ones(60, bool), np.arange(60) / 30.0, "image")
    clip = AlignedClip("one", {"gaze": gaze}, None, Provenance("d", "r"))
    ids = {
        "tok_rgb": np.random.default_rng(0).integers(0, 1000, 320).astype(np.int32),
        "tok_gaze": tokenizer.encode([clip])[0].astype(np.int32),
    }
    half = dict(ids, tok_gaze=np.where(np.arange(15) < 7, ids["tok_gaze"], -1))
    kinds = (ids, {"tok_rgb": ids["tok_rgb"]}, half)
    clips = [TokenClip(f"clip{number}", tokens) for number, tokens in enumerate(kinds)]
    looked, blind, unsure = source.perceive(clips)
    assert set(blind.source) == {1} and set(unsure.source) == {0, 1}, "nothing is made up of a gaze that is not known"
    assert (looked.position[looked.source == 2] == [[time, 0, 0] for time in range(5)]).all()
    of_pictures = looked.source == 1
    places = map(tuple, looked.position[of_pictures])
    state_of = dict(zip(places, looked.features[of_pictures], strict=True))
    found = looked.features[looked.source == 2]
    wanted = [(0, 1, 6), (1, 1, 6), (3, 4, 1), (4, 4, 1)]  # the eyes jump within the third fifth
    assert all((found[place[0]] == state_of[place]).all() for place in wanted)
    assert build_tower(config).num_sources == 3
    for wrong, message in (
        ({"precomputed": False}, "needs precomputed: true"),
        ({"fovea": "tok_depth"}, "none of the modalities"),
        ({"fovea": "tok_gaze"}, "no modality of pictures"),
        ({"modalities": ("tok_rgb",)}, "needs the gaze"),
    ):
        with pytest.raises(ValueError, match=message):
            build_source(EncoderConfig(**{**to_plain(config), **wrong}))


def test_features_of_other_modalities_are_not_taken_for_those_of_a_model(tmp_path):
    """States that were exported with the fovea, or after another layer, are other features."""
    written = EncoderConfig(checkpoint="checkpoints/world_small", modalities=("tok_rgb",), precomputed=True)
    card = {"source": "egom2p_encoder", "names": ["tok_rgb"], "width": 192, "perception": to_plain(written)}
    FeatureWriter(tmp_path, card)
    FeatureLookup([written], [str(tmp_path)], ConnectorConfig())
    for other in (replace(written, modalities=("tok_rgb", "tok_gaze")), replace(written, layer=1)):
        with pytest.raises(ValueError, match="which no source of the model perceives"):
            FeatureLookup([other], [str(tmp_path)], ConnectorConfig())


def test_the_first_item_is_written_and_none_twice(tmp_path):
    """The published exporter dropped item 0 and lost the last archive."""
    item = features_of_tokens(CLIPS[0], SPECS)
    writer = FeatureWriter(tmp_path, {"source": "codes", "names": [], "width": 1})
    writer.write(["0", "1"], [item, item])
    writer.write(["2"], [item])
    assert FeatureStore(tmp_path).refs == ("0", "1", "2")
    for refs in (["0"], ["3", "3"]):
        with pytest.raises(ValueError, match="there already"):
            writer.write(refs, [item] * len(refs))


def test_vectors_of_files(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    table = pa.table({"video_embed": [vector.tolist() for vector in vectors], "description": list("abcd")})
    pq.write_table(table, tmp_path / "v.parquet")
    np.savez(tmp_path / "v.npz", a=vectors[0], b=vectors)
    np.save(tmp_path / "v.npy", vectors)
    files = VectorFiles(6)
    for ref, wanted in (
        ("v.parquet#2", vectors[2:3]),
        ("v.npz#a", vectors[:1]),
        ("v.npz#b", vectors),
        ("v.npy#3", vectors[3:]),
    ):
        item = files[str(tmp_path / ref)]
        assert np.allclose(item.features, wanted) and item.position[:, 0].tolist() == list(range(len(wanted)))
    for ref, message in (
        ("v.parquet#4", "from 0 to 3"),
        ("v.parquet", "from 0 to 3"),
        ("v.npz#c", "no array 'c'"),
        ("w.npy", "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            files[str(tmp_path / ref)]
    with pytest.raises(ValueError, match="wanted 7 numbers"):
        VectorFiles(7)[str(tmp_path / "v.npy")]
    np.save(tmp_path / "bad.npy", np.full(6, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        files[str(tmp_path / "bad.npy")]
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "w.parquet")
    with pytest.raises(ValueError, match="none of the columns"):
        files[str(tmp_path / "w.parquet") + "#0"]
