"""Screens: what is asked about them is what they show, unseen layouts are unseen, and their files are perceived."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.datasets import InterleavedConfig, open_dataset
from egom2p.anytoany.perception.build_perception import build_tower
from egom2p.anytoany.perception.feature_store import FeatureLookup
from egom2p.anytoany.perception.source import TimmFramesConfig
from egom2p.anytoany.perception.timm_frames import PictureGrid
from egom2p.anytoany.types import PerceptionFeatures
from egom2p.config import load_config
from egom2p.data.clip_order import clip_rng
from egom2p.storage import load_tensors
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig
from experiments.screens.screen_conversations import questions, screen_texts, write_screens
from experiments.screens.screen_reader import ScreenReaderConfig, reading_order, teach
from experiments.screens.screen_world import ICONS, POSITIONS, WORDS, changed, picture, positions_of, screen

TRAIN = [f"screen-train-0-{number}" for number in range(200)]
UNSEEN = [f"screen-unseen-12-{number}" for number in range(100)]
SIDE = 80


def positions_that_differ(one, two):
    differs = np.abs(np.asarray(one, int) - np.asarray(two, int)).sum(-1)
    return {
        position for position in range(9) if differs[position // 3 * SIDE :, position % 3 * SIDE :][:SIDE, :SIDE].any()
    }


def test_unseen_layouts_are_unseen():
    def seen(names):
        return {(e.word, e.position) for name in names for e in screen(name) if e.kind != "icon"}

    assert not seen(TRAIN) & seen(UNSEEN)
    for word in WORDS:
        train, unseen = (set(positions_of(word, split)) for split in ("train", "unseen"))
        assert train | unseen == set(range(9)) and not train & unseen and len(unseen) == 2
    # All that a split may show is shown, and each word is as frequent as any other.
    assert len(seen(TRAIN)) > 0.95 * 7 * len(WORDS)
    assert all(e.font_px == 12 for name in UNSEEN for e in screen(name))


def test_answers_are_what_is_shown():
    for name in (*TRAIN[:40], *UNSEEN[:40]):
        elements, asked = screen(name), questions(name)
        assert len({e.position for e in elements}) == len({e.word for e in elements}) == 5
        nothing = picture(name, ())
        shown = picture(name, elements)
        # Everything stays inside its place, and nowhere else is anything.
        assert positions_that_differ(nothing, shown) == {e.position for e in elements}
        ((_, said),) = asked["read"]
        word_at = dict(part.split(" ") for part in said.split(", "))
        assert word_at == {POSITIONS[e.position]: e.word for e in elements}
        assert all(word_at[question.split()[-2]] == word for question, word in asked["text"])
        assert all(word_at[position] == question.split()[-1][:-1] for question, position in asked["where"])


def test_changes_are_where_they_are_said_to_be():
    kinds = set()
    for name in [f"change-{split}-0-{number}" for split in ("train", "unseen") for number in range(60)]:
        after, said = changed(name)
        before = screen(name)
        where = {e.word: e.position for e in before} | {e.word: e.position for e in after}
        differing = positions_that_differ(picture(name, before), picture(name, after))
        first = said.split()[0]
        kinds.add(said.split()[1])
        if "moved" in said:
            now = next(e.position for e in after if e.word == first)
            assert differing == {next(e.position for e in before if e.word == first), now}
            assert said == f"{first} moved {POSITIONS[now]}"
        else:
            assert differing == {where[first]} and first not in {e.word for e in after}
        new = [e for e in after if e not in before and e.kind != "icon"]
        assert all(e.position in positions_of(e.word, name.split("-")[1]) for e in new)
    assert kinds == {"became", "moved", "is"}


def test_files_are_perceived_as_conversations(tmp_path):
    folder = tmp_path / "screens"
    files = write_screens(folder, 6, num_unseen=2)
    assert write_screens(folder, 6, num_unseen=2) == files and len(files) == 10
    source = TimmFramesConfig(tower="test_convnext", tower_weights="random", image_size=96)
    lookup = FeatureLookup([source], [], ConnectorConfig(kind="st_shuffle", cell=(2, 1, 1)))
    for file, num_frames in (("train.jsonl", 1), ("change_train.jsonl", 2), ("text_8px_unseen.jsonl", 1)):
        opened = open_dataset(InterleavedConfig(files=(str(folder / file),), folder=str(folder)))
        (media,) = opened.conversation(1, clip_rng(0, "")).media
        assert lookup.features(media).position[:, 0].max() == num_frames - 1
        with Image.open(media.ref) as found:
            name = media.ref.rsplit("/", 1)[1].removesuffix(".png")
            assert (np.asarray(found.convert("RGB")) == np.asarray(picture(name, screen(name)))).all()
    said = {
        turn["text"] for file in files for line in file.read_text().splitlines() for turn in json.loads(line)["turns"]
    }
    known = {word for text in screen_texts() for word in text.replace(",", " ").replace("?", " ").split()}
    left = {word for text in said for word in text.replace(",", " ").replace("?", " ").split()} - known
    assert left <= {"{image}", "{video}"} and set(ICONS) <= known


def test_configs_of_the_experiment_are_valid():
    config = load_config(AnyToAnyTrainingConfig, "experiments/screens/screen.yaml", [])
    assert config.data.datasets.keys() == {"screens", "changes"}
    load_config(ScreenReaderConfig, "experiments/screens/screen_reader.yaml", [])


def test_the_tower_of_a_reader_is_one_that_tower_weights_names(tmp_path):
    source = TimmFramesConfig(tower="test_resnet", tower_weights="random", train="full", layer=4, image_size=48)
    settings = {"num_train": 5, "num_unseen": 2, "batch_size": 8}
    reader = ScreenReaderConfig(output=str(tmp_path), perception=source, num_seen=8 * 4, **settings)
    found = teach(reader)
    assert set(found) == {"words of 8 px", "words of 12 px", "words of 16 px", "words of 24 px", "icons"}
    again = replace(source, tower_weights=str(tmp_path / "tower.safetensors"))
    kept = build_tower(again).tower.state_dict()
    wanted = load_tensors(tmp_path / "tower.safetensors")
    assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in kept)
    with pytest.raises(ValueError, match="multiple of 3"):
        teach(replace(reader, perception=replace(source, image_size=64)))


def test_tiles_are_read_in_the_order_of_the_screen():
    """Cells of a screen in tiles, put back in reading order, are the cells of the whole screen."""
    whole, tiled = (PictureGrid((48 // n, 48 // n), (6 // n, 6 // n), (n, n)) for n in (1, 3))
    shown = np.asarray(picture(TRAIN[0], screen(TRAIN[0])))[None]
    items = [PerceptionFeatures(*grid.rows(shown), np.zeros(36, np.int16)) for grid in (whole, tiled)]
    order = reading_order(items[1:] * 2, (6, 6))
    assert (items[1].features[order[:36]] == items[0].features).all() and (order[36:] == order[:36] + 36).all()
