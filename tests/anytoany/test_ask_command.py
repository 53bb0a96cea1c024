"""The command line: a prompt with files, answers on standard output."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_toys import BOOKS, toy_config, toy_model
from tiny_artifacts import make_tiny_world

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.conversations.datasets import TextConfig, TextSet
from egom2p.anytoany.generate import GenerateConfig, main, question_of_files
from egom2p.anytoany.model import build_anytoany
from egom2p.anytoany.perception.familiarity import Familiarity, Spread
from egom2p.anytoany.perception.media_files import features_of_vectors
from egom2p.anytoany.perception.source import CodesConfig, EncoderConfig
from egom2p.anytoany.saving import load_anytoany, save_anytoany
from egom2p.anytoany.types import Media, PerceptionFeatures
from egom2p.anytoany.world.factor_world import factor_specs
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig, write_stand_in
from egom2p.config import load_config
from egom2p.data.clips.video_files import write_video
from egom2p.storage import load_tensors, save_tensors

ANSWER = AnswerConfig(max_new_tokens=10)
TINY_LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    model = toy_model(folder, codebooks=BOOKS, noise=0.3)
    save_anytoany(model, folder / "model")
    np.save(folder / "v.npy", np.random.default_rng(0).normal(size=(1, 10)).astype(np.float32))
    return folder, model


def test_answers_and_speed_are_written(saved, capsys, tmp_path):
    folder, model = saved
    file = str(folder / "v.npy")
    settings = {"model": str(folder / "model"), "answer": ANSWER, "device": "cpu"}
    main(GenerateConfig(prompt="{video} what?", video=file, num_answers=2, **settings))
    found = capsys.readouterr()
    question = Inference(model).question("{video} what?", [("video", features_of_vectors(np.load(file)))])
    (wanted,) = Inference(model).answer([question], ANSWER)
    assert found.out.startswith(wanted.text + "\n") and found.out.count(wanted.text) >= 2
    assert re.search(r"perceived in [\d.]+ s, \d+ tokens in [\d.]+ s \([\d.]+ tokens/s\); peak memory", found.err)
    main(GenerateConfig(prompt="hello", tokens_out=str(tmp_path / "said.npz"), **{**settings, "answer": spoken()}))
    assert "gaze: " in capsys.readouterr().out
    assert np.load(tmp_path / "said.npz")["tok_gaze"].shape == (4,)


def spoken():
    return AnswerConfig(max_new_tokens=10, spans=("gaze",))


def test_a_line_break_typed_in_a_shell_is_one(saved):
    """What stands before the question in training is a line break, not a backslash and an n."""
    folder, model = saved
    overrides = [f"model={folder / 'model'}", f"video={folder / 'v.npy'}"]
    for typed in ('prompt="{video}\\nwhat, please?"', "prompt='{video}\nwhat, please?'"):
        config = load_config(GenerateConfig, "default/anytoany/generate.yaml", [*overrides, typed])
        asked = question_of_files(Inference(model), config)
        wanted = Inference(model).question("{video}\nwhat, please?", [("video", asked.features[0])])
        assert asked.rendered.ids.tolist() == wanted.rendered.ids.tolist()


def test_wrong_prompts_are_found_before_anything_is_loaded(saved):
    settings = {"model": "nowhere"}
    with pytest.raises(ValueError, match="no file is left for {video}"):
        main(GenerateConfig(prompt="{video}", **settings))
    with pytest.raises(ValueError, match="no placeholder {gaze} is left for a.npz"):
        main(GenerateConfig(prompt="hi", gaze="a.npz", **settings))
    with pytest.raises(ValueError, match="nowhere is no directory of an any-to-any model"):
        main(GenerateConfig(prompt="hi", **settings))
    with pytest.raises(ValueError, match="did you mean {video}"):
        main(GenerateConfig(prompt="{vidoe}", **settings))
    with pytest.raises(ValueError, match="prompt is empty"):
        main(GenerateConfig(prompt=" ", **settings))
    with pytest.raises(FileNotFoundError, match=r"video: walk.mp4 is not there"):
        main(GenerateConfig(prompt="{video}", video="walk.mp4", model=str(saved[0] / "model")))
    with pytest.raises(ValueError, match="one placeholder, found 2"):
        two = {"video": ("a.mp4", "b.mp4"), "windows": True}
        main(GenerateConfig(prompt="{video}{video}", **two, model=str(saved[0] / "model")))
    for wrong in ({"num_answers": 0}, {"stride_s": 0.0}, {"windows": True, "num_answers": 2}):
        with pytest.raises(ValueError):
            GenerateConfig(prompt="{video}", **wrong, **settings)
    overrides = ["model=m", "video=[a.mp4]", "prompt='{video} ?'"]
    config = load_config(GenerateConfig, "default/anytoany/generate.yaml", overrides)
    assert config.files() == [("video", "a.mp4")]
    overrides = ["model=m", "image=a.parquet#3", "video=['b.npz#clip','c d.npy#0']", "prompt={image} {video}{video}"]
    config = load_config(GenerateConfig, "default/anytoany/generate.yaml", overrides)
    assert [file for _, file in config.files()] == ["a.parquet#3", "b.npz#clip", "c d.npy#0"]


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named(saved, device):
    with pytest.raises(ValueError, match=f"device: {device}"):
        main(GenerateConfig(model=str(saved[0] / "model"), prompt="hi", device=device))


def test_a_video_file_and_its_windows(tmp_path, capsys):
    world = make_tiny_world(tmp_path / "world")
    frames = (np.random.default_rng(0).random((40, 16, 16, 3)) * 255).astype(np.uint8)
    write_video(tmp_path / "walk.mp4", frames, 8.0)
    source = EncoderConfig(checkpoint=str(world / "model"))
    with torch.random.fork_rng():
        model = build_anytoany(toy_config(tmp_path, perception=(source,)))
    save_anytoany(model, tmp_path / "model")
    settings = {"model": str(tmp_path / "model"), "prompt": "{video} what?", "answer": ANSWER, "device": "cpu"}
    main(GenerateConfig(video=str(tmp_path / "walk.mp4"), windows=True, stride_s=1.0, **settings))
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines and float(lines[0].split()[0]) == 0.0 and float(lines[-1].split()[1]) >= 4.0
    assert "holds no tok_cam, tok_depth, tok_gaze: EgoM2P predicted them" in written.err
    inference = Inference(load_anytoany(tmp_path / "model"), predict=False)
    alone = next(inference.perceive_file("video", str(tmp_path / "walk.mp4")))
    completed = next(Inference(inference.model).perceive_file("video", str(tmp_path / "walk.mp4")))
    is_rgb = completed.features.source == alone.features.source[0]
    assert alone.predicted == () and set(alone.features.source) < set(completed.features.source)
    assert np.array_equal(completed.features.features[is_rgb], alone.features.features)
    # The checkpoint is inside the directory: what it was made from may go.
    for name in ("model.safetensors", "model.json"):
        (world / "model" / name).unlink()
    capsys.readouterr()
    main(GenerateConfig(video=str(tmp_path / "walk.mp4"), **settings))
    assert "holds several clips, this is about the first" in capsys.readouterr().err
    with pytest.raises(ValueError, match="perceives video as vectors"):
        vectors = toy_model(tmp_path)
        list(Inference(vectors).perceive_file("video", str(tmp_path / "walk.mp4")))


def test_an_input_unlike_the_training_data_is_told(saved, capsys, tmp_path):
    folder, model = saved
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(90, 10)).astype(np.float32)
    items = {Media("video", str(number)): features_of_vectors(vector) for number, vector in enumerate(vectors)}
    train, held_out = list(items)[:60], list(items)[60:]
    found = Familiarity.measure(model, train, held_out, items.__getitem__)
    covariance = np.cov(vectors[:60].T, bias=True)
    shrunk = covariance + 0.1 * np.trace(covariance) / 10 * np.eye(10)
    centred = vectors - vectors[:60].mean(0)
    distances = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(shrunk), centred) / 10)
    wanted = max(np.quantile(part, 0.99) for part in (distances[60:], distances[:60]))
    assert found.spreads[0, 0].limit == pytest.approx(wanted, rel=1e-4)
    assert found.spreads[0, 0].distance(vectors[70]) == pytest.approx(distances[70], rel=1e-4)
    found.save(tmp_path)
    again = Familiarity.load(tmp_path)
    told = [again.note(model, "video", features_of_vectors(vector), "x") for vector in (vectors[0], vectors[0] + 5)]
    assert (
        told[0] is None
        and "x is unlike what the model was trained on (vectors " in told[1]
        and "times as far off" in told[1]
    )
    assert Familiarity.load(folder) is None
    settings = {"model": str(folder / "model"), "prompt": "{video} what?", "answer": ANSWER, "device": "cpu"}
    main(GenerateConfig(**settings, video=str(folder / "v.npy")))
    assert "says what its training data was like" in capsys.readouterr().err
    for name, is_told in (("near", False), ("far", True)):
        np.save(tmp_path / f"{name}.npy", vectors[:1] + 5 * is_told)
        inference = Inference(model, again)
        question_of_files(inference, GenerateConfig(**settings, video=str(tmp_path / f"{name}.npy")))
        assert ("unlike" in capsys.readouterr().err) == is_told
    alone = Familiarity.measure(model, train, [], items.__getitem__)
    assert 0.8 < alone.spreads[0, 0].limit < 2.5, "without held-out items a fourth of the training's stands in"


@pytest.mark.parametrize(
    ("part", "value"), [("limit", np.nan), ("limit", 0.0), ("floor", -1.0), ("mean", np.zeros(3)), ("more", 1.0)]
)
def test_a_file_of_familiarity_that_says_nothing_is_refused(tmp_path, part, value):
    """A limit of nan would call every input unlike, a negative floor none."""
    spread = Spread.of(np.ones((9, 4), np.float32), np.ones((9, 4), np.float32))
    assert spread.limit > 0, "items that are all the same leave a limit to divide by"
    Familiarity({(0, 0): spread}).save(tmp_path)
    tensors = load_tensors(tmp_path / "familiarity.safetensors") | {f"0/0/{part}": torch.tensor(value).float()}
    save_tensors(tmp_path / "familiarity.safetensors", tensors)
    with pytest.raises(ValueError, match="familiarity.safetensors: "):
        Familiarity.load(tmp_path)


def test_modalities_that_the_training_had_are_missed(tmp_path):
    model, item = two_modalities(tmp_path)
    items = {Media("video", str(number)): item(number, (0, 1)) for number in range(16)}
    found = Familiarity.measure(model, items, [], items.__getitem__)
    assert found.note(model, "video", item(3, (0, 1)), "x") is None
    assert "x is unlike what the model was trained on (no code_gaze in it" in found.note(
        model, "video", item(3, (1,)), "x"
    )
    without = {media: item(number, (1,)) for number, media in enumerate(items)}
    never = Familiarity.measure(model, without, [], without.__getitem__)
    assert never.note(model, "video", item(5, (1,)), "x") is None, "what no training item had is not missed"


def two_modalities(folder):
    """A model of codes of gaze and rgb; `item(number, sources)` has rows of some of both."""
    specs = [spec.to_dict() for spec in factor_specs() if spec.name != "code_cam"]
    source = CodesConfig(width=6, modality_specs=specs)
    model = build_anytoany(replace(toy_config(folder), perception=(source,)))

    def item(number, sources):
        rng = np.random.default_rng(number)
        rows = [np.full(4, which, np.int16) for which in sources]
        source_N = np.concatenate(rows)
        ids_N1 = rng.integers(0, 3, size=(len(source_N), 1)).astype(np.float32)
        position_N3 = np.zeros((len(source_N), 3), np.int16)
        position_N3[:, 0] = np.tile(np.arange(4), len(sources))
        return PerceptionFeatures(ids_N1, position_N3, source_N)

    return model, item


def test_replies_of_a_plain_language_model_are_rows_of_a_text_data_set(tmp_path, capsys):
    base = write_stand_in(tmp_path / "base", SyntheticDataConfig(vocab_size=400, architecture=TINY_LLAMA))
    (tmp_path / "prompts.txt").write_text("# asked\nHow are you?\n\nWhat is rain, and why?\n")
    rows = tmp_path / "replay.jsonl"
    asked = {"model": str(base), "prompts": str(tmp_path / "prompts.txt"), "rows_out": str(rows), "device": "cpu"}
    main(GenerateConfig(**asked, num_answers=2, answer=AnswerConfig(max_new_tokens=400, temperature=1.0)))
    found = TextSet(TextConfig(files=(str(rows),)))
    said = [found.conversation(number, np.random.default_rng(0)).turns for number in range(len(found))]
    left = iter(["How are you?", "What is rain, and why?"] * 2)
    assert all(turns[0].parts[0] in left for turns in said), "in order; random weights may say no whole sentence to one"
    assert len({turns[1].parts for turns in said}) == len(said) > 1, "each has a seed of its own"
    first = rows.read_bytes()
    main(GenerateConfig(**asked, num_answers=2, answer=AnswerConfig(max_new_tokens=400, temperature=1.0)))
    assert rows.read_bytes() == first
    with pytest.raises(ValueError, match="no answer ends, or has a whole sentence, within 1 tokens"):
        main(GenerateConfig(**asked, answer=AnswerConfig(max_new_tokens=1)))
    assert rows.read_bytes() == first
    main(GenerateConfig(model=str(base), prompt="hello", device="cpu", answer=AnswerConfig(max_new_tokens=2)))
    assert "STAND-IN" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is a plain language model, which perceives no video"):
        main(GenerateConfig(model=str(base), prompt="{video}", video=str(rows)))
    with pytest.raises(ValueError, match="prompts and rows_out go together"):
        GenerateConfig(model=str(base), prompts="x.txt")
