"""Image towers: pixels as rows and back, features as timm gives them, files of pictures, training, saving."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_toys import toy_batch, toy_config
from PIL import Image
from tiny_artifacts import invented_clip, make_tiny_world

from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.conversation import TemplateConfig
from egom2p.anytoany.conversations.datasets import CaptionsConfig, CaptionSet, InstructConfig, InstructSet
from egom2p.anytoany.evaluation.harness import file_perception
from egom2p.anytoany.model import build_anytoany
from egom2p.anytoany.perception.build_perception import build_source, build_tower
from egom2p.anytoany.perception.export_features import ExportConfig, export
from egom2p.anytoany.perception.feature_store import FeatureLookup
from egom2p.anytoany.perception.media_files import read_clips
from egom2p.anytoany.perception.source import EncoderConfig, TimmFramesConfig, rows_of
from egom2p.anytoany.perception.timm_frames import PictureGrid, tower_width
from egom2p.anytoany.saving import load_anytoany, save_anytoany
from egom2p.anytoany.types import Media
from egom2p.contracts import TokenClip
from egom2p.data.clips.video_files import write_video
from egom2p.layers.lora import LoraConfig
from egom2p.storage import save_tensors

RNG = np.random.default_rng(0)
CAPTION = TemplateConfig(file="caption_image")


def tower(name="test_convnext", **settings):
    return TimmFramesConfig(tower=name, **{"tower_weights": "random", **settings})


def photo(path, height=50, width=70, **how):
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return pixels


@pytest.mark.parametrize(("size", "cells"), [((12, 8), (3, 2)), ((11, 8), (3, 2))], ids=["even", "cells reach beyond"])
@pytest.mark.parametrize("tiles", [(1, 1), (2, 3)])
def test_pictures_come_back_out_of_their_rows(size, cells, tiles):
    grid = PictureGrid(size, cells, tiles)
    frames = RNG.integers(0, 256, (2, *grid.frame_size, 3), dtype=np.uint8)
    rows, position = grid.rows(frames)
    assert rows.dtype == np.uint8 and rows.shape == (2 * math.prod(tiles) * math.prod(cells), grid.row_width)
    assert len({tuple(row) for row in position.tolist()}) == len(rows)
    assert position.max(0).tolist() == [1, tiles[0] * cells[0] - 1, tiles[1] * cells[1] - 1]
    pictures = grid.pictures(torch.from_numpy(rows)).numpy()
    first = np.moveaxis(pictures[: math.prod(tiles)].reshape(*tiles, 3, *size), 2, -1)
    assert (np.concatenate([np.concatenate(list(row), axis=1) for row in first]) == frames[0]).all()
    # A row holds the pixels of its place, whatever tile it lies in.
    h, w = grid.cell
    if size[0] == h * cells[0]:
        for row, (frame, y, x) in zip(rows, position.tolist(), strict=True):
            assert (row.reshape(h, w, 3) == frames[frame, y * h : (y + 1) * h, x * w : (x + 1) * w]).all()
    with pytest.raises(ValueError, match="made with other settings"):
        grid.pictures(torch.zeros(len(rows), grid.row_width + 3))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_mambaout"])
def test_features_are_timms_own(name):
    """Against timm itself, with its own transforms of a picture of the tower's size; cells where timm has them."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    config = tower(name)
    live = build_tower(config)
    size = live.grid.size
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    rows, position = live.grid.rows(pixels[None])
    item = build_source(config).perceive([invented_clip(0)])[0]
    assert len(item.features) == len(invented_clip(0).rgb) * math.prod(live.grid.cells)
    one = type(item)(rows, position, np.zeros(len(rows), np.int16))
    found = live.eval()(rows_of([one]))
    original = timm.create_model(name, num_classes=0).eval()
    original.load_state_dict(live.tower.state_dict())
    settings = resolve_model_data_config(original)
    shown = create_transform(**{**settings, "crop_pct": 1.0})(Image.fromarray(pixels))[None]
    with torch.no_grad():
        wanted = original.forward_features(shown)
    if name == "test_vit":
        wanted = wanted[:, 1:]
    wanted = wanted.flatten(2).transpose(1, 2) if name == "test_resnet" else wanted.flatten(1, -2)
    assert torch.allclose(found, wanted[0], atol=1e-4)
    assert (position[1] == [0, 0, 1]).all() and live.width == wanted.shape[-1]


def test_layers_sizes_and_widths():
    for settings, cells, width in (
        ({"layer": 2}, (20, 20), 32),
        ({"image_size": 64}, (2, 2), 64),
        ({"name": "test_vit", "image_size": 64, "layer": 3, "tiles": (2, 1)}, (4, 4), 64),
        ({"name": "efficientnet_b1"}, (8, 8), 1280),
        ({"name": "cait_xxs24_224"}, (14, 14), 192),
        ({"name": "pit_ti_224"}, (1, 1), 256),
    ):
        config = tower(**settings)
        assert build_source(config).grid.cells == cells and tower_width(config) == width
    live = build_tower(tower("test_vit", image_size=64, layer=3, tiles=(2, 1), width=64))
    source = build_source(tower("test_vit", image_size=64, layer=3, tiles=(2, 1), num_frames=5))
    (item,) = source.perceive([invented_clip(0)])
    assert item.features.shape == (5 * 2 * 16, 16 * 16 * 3) and live(rows_of([item])).shape == (160, 64)
    with pytest.raises(ValueError, match="has 64 features"):
        build_tower(tower(width=8))
    with pytest.raises(ValueError, match="no layer 9"):
        build_tower(tower(layer=9))
    with pytest.raises(ValueError, match="near: .*resnet"):
        build_source(tower("resnet1800"))
    with pytest.raises(ValueError, match="several sizes"):
        build_source(tower("coat_tiny"))
    with pytest.raises(ValueError, match="needs pictures"):
        source.perceive([TokenClip("a", {"tok": np.zeros(3)})])


def test_weights_from_files_and_without_a_network(tmp_path):
    one = build_tower(tower())
    save_tensors(tmp_path / "w.safetensors", {**one.tower.state_dict(), "head.fc.weight": torch.zeros(3)})
    other = build_tower(tower(tower_weights=str(tmp_path / "w.safetensors")))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    save_tensors(tmp_path / "bad.safetensors", {"stem.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"bad.safetensors: stem.0.weight of test_convnext should be .* found \(1,\)"):
        build_tower(tower(tower_weights=str(tmp_path / "bad.safetensors")))
    with pytest.raises(ValueError, match=r"could not be downloaded .* tower_weights"):
        build_tower(tower(tower_weights=None))
    assert build_tower(tower(tower_weights=None), with_weights=False).width == 64


def test_what_of_a_tower_is_trained():
    items = build_source(tower(image_size=64)).perceive([invented_clip(0)])

    def trained(name="test_resnet", **settings):
        live = build_tower(tower(name, image_size=64, **settings)).train()
        before = {key: buffer.clone() for key, buffer in live.named_buffers()}
        states = live(rows_of(items))
        is_trained = settings.get("train", "frozen") != "frozen"
        assert states.requires_grad == is_trained
        assert any(not torch.equal(before[key], buffer) for key, buffer in live.named_buffers()) == is_trained
        return [key for key, parameter in live.named_parameters() if parameter.requires_grad]

    assert trained() == [] and trained(train="full")
    lora = LoraConfig(rank=2, target_modules=("attn.qkv",))
    vit = build_tower(tower("test_vit", image_size=64, train="lora", lora=lora))
    names = [key for key, parameter in vit.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in key for key in names)
    with pytest.raises(ValueError, match="only a live"):
        tower(train="full", precomputed=True)


def test_files_of_pictures(tmp_path):
    config = tower(image_size=64, num_frames=2)
    pixels = photo(tmp_path / "a.png")
    (clip,) = read_clips(str(tmp_path / "a.png"), config)
    assert clip.key == "a" and (clip.rgb == pixels).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    photo(tmp_path / "b.jpg", exif=turned)
    assert next(read_clips(str(tmp_path / "b.jpg"), config)).rgb.shape == (1, 70, 50, 3)
    frames = [Image.fromarray(RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(5)]
    frames[0].save(tmp_path / "c.png", save_all=True, append_images=frames[1:])
    animation = next(read_clips(str(tmp_path / "c.png"), config)).rgb
    assert (animation == np.stack([np.asarray(frame) for frame in frames])).all()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "d.png")
    assert (next(read_clips(str(tmp_path / "d.png"), config)).rgb == 255).all()
    (tmp_path / "e.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"e\.jpg: not a readable image"):
        list(read_clips(str(tmp_path / "e.jpg"), config))
    assert [clip.key for clip in read_clips(str(tmp_path / "[ac].png"), config)] == ["a", "c"]


def test_tokenizers_see_a_picture_as_a_still_video(tmp_path):
    world = make_tiny_world(tmp_path / "world")
    config = EncoderConfig(checkpoint=str(world / "model"), modalities=("tok_rgb",))
    wanted = invented_clip(0).rgb.shape
    half = wanted[0] // 2
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "c.png", save_all=True, append_images=frames[1:])
    (clip,) = read_clips(str(tmp_path / "c.png"), config)
    assert clip.rgb.shape == wanted
    assert (clip.rgb[:half] == (255, 0, 0)).all() and (clip.rgb[-half:] == (0, 0, 255)).all()
    (item,) = build_source(config).perceive([clip])
    out = tmp_path / "features"
    export(ExportConfig(perception=config, input=str(tmp_path / "c.png"), output=str(out)))
    lookup = FeatureLookup([config], [str(out)], ConnectorConfig())
    found = lookup.features(Media("image", str(tmp_path / "c.png")))
    assert (found.features == item.features).all()


def test_pictures_and_videos_are_media_of_conversations(tmp_path):
    """Looked up by their path, or exported before: the same features; what has the wrong settings is refused."""
    photo(tmp_path / "a.jpg")
    write_video(tmp_path / "v.mp4", RNG.integers(0, 256, (40, 16, 32, 3), dtype=np.uint8), 8.0)
    config, connector = (
        tower(image_size=64, num_frames=3, clip_s=1.5),
        ConnectorConfig(kind="st_shuffle", cell=(3, 1, 1)),
    )
    lookup = FeatureLookup([config], [], connector)
    picture, video = Media("image", str(tmp_path / "a.jpg")), Media("video", str(tmp_path / "v.mp4"))
    assert lookup.features(picture).features.shape == (4, 32 * 32 * 3) and lookup.span_length(video) == 4
    assert lookup.features(video).position[:, 0].max() == 2
    with pytest.raises(FileNotFoundError, match=r"no\.jpg: no such picture"):
        lookup.features(Media("image", str(tmp_path / "no.jpg")))
    for settings in ({}, {"precomputed": True}):
        chosen = replace(config, **settings)
        out = tmp_path / f"features{len(settings)}"
        export(ExportConfig(perception=chosen, input=str(tmp_path / "a.jpg"), output=str(out)))
        stored = FeatureLookup([chosen], [str(out)], connector).features(Media("image", "a"))
        wanted = build_source(chosen).perceive(list(read_clips(str(tmp_path / "a.jpg"), chosen)))[0]
        assert stored.features.dtype == wanted.features.dtype
        assert settings or np.array_equal(stored.features, lookup.features(picture).features)
    photo(tmp_path / "b.0.png")
    out = str(tmp_path / "features0")
    more = ExportConfig(perception=config, input=str(tmp_path / "*.*g"), output=out, shard_clips=1)
    assert export(more) == (1, 1)
    assert len(FeatureLookup([config], [out], connector).features(Media("image", "elsewhere/b.0.png")).features) == 4
    photo(tmp_path / "a.png")  # beside a.jpg: rows would silently get the other one's features
    with pytest.raises(ValueError, match="two clips are called 'a'"):
        export(more)
    with pytest.raises(ValueError, match="no source of the model"):
        FeatureLookup([tower(image_size=96)], [str(tmp_path / "features0")], connector)


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"], ids=["plain", "batch norms"])
def test_a_trained_tower_is_saved_with_its_model(tmp_path, name):
    photo(tmp_path / "a.png")
    config = tower(name, image_size=64, train="full", layer=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_anytoany(toy_config(tmp_path, perception=(config,)))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("towers.0.tower.") for name in names)
    item = build_source(config).perceive(list(read_clips(str(tmp_path / "a.png"), config)))[0]
    batch = toy_batch(model)
    batch = type(batch)(
        **{
            **vars(batch),
            "features": torch.from_numpy(np.tile(item.features, (3, 1))).float(),
            "position": torch.from_numpy(np.tile(item.position, (3, 1))).long(),
            "source": torch.zeros(3 * len(item.source), dtype=torch.long),
            "feature_offsets": torch.arange(4) * len(item.source),
        }
    )
    model.train()
    loss = model(batch).sums.sum()
    loss.backward()
    gradients = [parameter.grad for key, parameter in model.named_parameters() if key.startswith("towers.0")]
    assert all(found is not None for found in gradients) and any(found.abs().sum() > 0 for found in gradients)
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.eval()
    save_anytoany(model, tmp_path / "model")
    again = load_anytoany(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(model(batch).sums, again(batch).sums)
    # The folder can be saved again, from where it lies.
    save_anytoany(again, tmp_path / "copy")
    said = next(Inference(load_anytoany(tmp_path / "copy")).perceive_file("image", str(tmp_path / "a.png")))
    assert said.key == "a" and np.array_equal(said.features.features, item.features)
    assert json.loads((tmp_path / "copy" / "anytoany.json").read_text())


def test_rows_of_llava_name_picture_files(tmp_path):
    """As the published files are: a list of conversations, `image` a path below the folder of the pictures."""
    (tmp_path / "pictures").mkdir()
    photo(tmp_path / "pictures" / "a.jpg")
    said = [{"from": "human", "value": "What is this?\n<image>"}, {"from": "gpt", "value": "noise"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "1", "image": "a.jpg", "conversations": said}]))
    config = {"files": [str(tmp_path / "rows.json")], "ref": "image", "folder": str(tmp_path / "pictures")}
    (found,) = InstructSet(InstructConfig(turns="conversations", **config)).conversation(0, RNG).media
    (captioned,) = (
        CaptionSet(CaptionsConfig(caption="id", media="image", templates=CAPTION, **config)).conversation(0, RNG).media
    )
    assert found == captioned == Media("image", str(tmp_path / "pictures" / "a.jpg"))
    lookup = FeatureLookup([tower(image_size=64)], [], ConnectorConfig())
    assert lookup.features(found).features.shape == (4, 32 * 32 * 3)


def test_pictures_that_a_harness_shows(tmp_path):
    with torch.random.fork_rng():
        model = build_anytoany(toy_config(tmp_path, perception=(tower(image_size=64),)))
    pixels = photo(tmp_path / "a.png")
    perceive = file_perception(model)
    found, wanted = perceive("image", Image.fromarray(pixels)), perceive("image", str(tmp_path / "a.png"))
    assert np.array_equal(found.features, wanted.features)
    with pytest.raises(ValueError, match="the task shows dict"):
        perceive("audio", {})
