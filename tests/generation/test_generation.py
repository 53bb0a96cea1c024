"""Generation from every kind of input, with untrained artifacts: files, times, resume, errors."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_artifacts import NUM_FRAMES, NUM_SAMPLES, SIZE, invented_clip, make_tiny_world

from egom2p.config import deciding, to_plain
from egom2p.contracts import TokenClip
from egom2p.data.clips.video_files import open_video, write_video
from egom2p.generation.checkpoints import load_checkpoint
from egom2p.generation.clip_generation import generate_clips
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.generation.generation_memory import measure_memory
from egom2p.generation.loaded_model import _recordings
from egom2p.generation.request import Request
from egom2p.geometry import read_tum
from egom2p.models.egom2p_model import load_model
from egom2p.models.features import encode_clip
from egom2p.models.sampling import SamplingConfig
from egom2p.models.weights import save_model, tokenizer_locations
from egom2p.storage import load_json
from egom2p.viewing.generation_page import write_generation_page

DEPTH = Request(targets=("depth",), conditions=("rgb",))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp("world"), num_val=2)


@pytest.fixture(scope="module")
def checkpoint(world):
    return load_checkpoint(world / "model", device="cpu")


def _config(world, output: str, **changes) -> GenerationConfig:
    values = {
        "checkpoint": str(world / "model"),
        "output": str(world / output),
        "input": str(world / "clips" / "val"),
        "targets": ("depth", "cam", "gaze"),
        "join": "none",
        "device": "cpu",
        "progress": False,
    }
    return GenerationConfig(**(values | changes))


def test_a_video_becomes_depth_camera_and_gaze(world):
    frames = np.concatenate([invented_clip(number).rgb.repeat(2, 0).repeat(4, 1).repeat(4, 2) for number in range(2)])
    write_video(world / "walk.mp4", frames, 16.0)
    manifest = run_generation(_config(world, "video", input=str(world / "walk.mp4")))
    clips = json.loads(manifest.read_text())["clips"]
    assert len(clips) == 2 and clips[0]["made"] == ["tok_depth", "tok_cam", "tok_gaze"]
    folder = manifest.parent / clips[1]["key"]
    with np.load(folder / "clip.npz") as arrays:
        assert arrays["depth"].shape == (NUM_FRAMES, SIZE, SIZE) and arrays["depth"].min() > 0
        assert arrays["camera"].shape == (NUM_SAMPLES, 4, 4)
        assert arrays["gaze"].shape == (NUM_SAMPLES, 2) and arrays["gaze_is_valid"].dtype == bool
        assert arrays["rgb"].shape == (NUM_FRAMES, SIZE, SIZE, 3)
        poses = arrays["camera"]
        # The second clip of the video: what was made stands on the video's clock.
        assert all(arrays[f"{name}_times_s"][0] == pytest.approx(2.0) for name in ("rgb", "depth", "camera", "gaze"))
    times_s, written = read_tum(folder / "camera.tum")
    assert len(times_s) == NUM_SAMPLES and np.allclose(written, poses, atol=1e-6)
    assert len(open_video(folder / "depth.mp4")) == len(open_video(folder / "gaze.mp4")) == NUM_FRAMES
    page = write_generation_page(manifest.parent).read_text()
    assert 'aria-label="depth generated"' in page and ">truth<" not in page
    assert page.count("<video") == 2 and "http" not in page.replace("http://www.w3.org", "")


def test_gaze_and_depth_are_also_written_on_the_original_picture(world):
    """A picture of 3:2, of which the model sees the central square."""
    square = invented_clip(0).rgb.repeat(2, 0).repeat(4, 1).repeat(4, 2)
    side = square.shape[1]
    frames = np.pad(square, ((0, 0), (0, 0), (side // 4, side // 4), (0, 0)))
    write_video(world / "wide.mp4", frames, 16.0)
    manifest = run_generation(_config(world, "wide", input=str(world / "wide.mp4")))
    folder = manifest.parent / json.loads(manifest.read_text())["clips"][0]["key"]
    picture = json.loads((folder / "clip.json").read_text())["picture"]
    assert (picture["source_width"], picture["left"], picture["width"]) == (side * 3 // 2, side // 4, side)
    own, source = (
        np.genfromtxt(folder / name, delimiter=",", skip_header=1) for name in ("gaze.csv", "gaze_source.csv")
    )
    np.testing.assert_allclose(source[:, 1], own[:, 1] * side + side // 4 - 0.5, atol=1e-3)
    np.testing.assert_allclose(source[:, 2], own[:, 2] * side - 0.5, atol=1e-3)
    with np.load(folder / "depth_source.npz") as whole, np.load(folder / "clip.npz") as arrays:
        depth_mm = whole["depth_mm"]
        assert depth_mm.shape == (NUM_FRAMES, SIZE, SIZE * 3 // 2)
        inside = depth_mm[:, :, SIZE // 4 : SIZE // 4 + SIZE]
        np.testing.assert_allclose(inside / 1000, np.minimum(arrays["depth"], 65.535), atol=6e-4)
        assert not depth_mm[:, :, : SIZE // 4].any()


def test_input_the_model_was_not_trained_on_is_said_once(world, tmp_path, capsys):
    model = shutil.copytree(world / "model", tmp_path / "model")
    shutil.copytree(world / "tokenizers", tmp_path / "tokenizers")
    write_video(tmp_path / "walk.mp4", np.zeros((70, 16, 16, 3), np.uint8), 16.0)
    video, clips = tmp_path / "walk.mp4", world / "clips" / "val"
    for source, dataset, is_said in (
        (video, "world", True), (clips, "tiny", False), (clips, "world", True), (video, "tiny", False),
    ):  # fmt: skip
        shards = f"outputs/tokens/train/[rgb,depth]/{dataset}/shard-*.tar"
        (model / "training_config.json").write_text(json.dumps({"data": {"datasets": {"any": {"shards": shards}}}}))
        config = _config(
            world, f"unfamiliar {source.name} {dataset}", checkpoint=str(model), input=str(source), targets=("gaze",)
        )
        manifest = run_generation(config)
        shown, page = capsys.readouterr().err, write_generation_page(manifest.parent).read_text()
        words = f"model was trained on {dataset}; the input ({'video' if source == video else 'tiny'}) is none of it"
        assert (shown.count(words), page.count(words)) == (int(is_said), int(is_said))


def test_finished_clips_are_kept_and_other_settings_make_them_again(world):
    first = run_generation(_config(world, "resume", targets=("gaze",)))
    folder = first.parent / "clip_100"
    stamp = (folder / "clip.npz").stat().st_mtime_ns
    run_generation(_config(world, "resume", targets=("gaze",)))
    assert (folder / "clip.npz").stat().st_mtime_ns == stamp
    run_generation(_config(world, "resume", targets=("gaze",), seed=5))
    assert (folder / "clip.npz").stat().st_mtime_ns != stamp


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_in_half_precision_say_nearly_the_same(rng, dtype):
    """What a GPU does by default, with the pretrained model: every use of a checkpoint takes such weights."""
    exact, half = (load_checkpoint("world_small", device="cpu", dtype=name) for name in ("fp32", dtype))
    ids = {spec.name: rng.integers(0, spec.vocab_size, spec.num_tokens).astype(np.int32) for spec in exact.specs}
    rgb, truth = TokenClip("a", {"tok_rgb": ids["tok_rgb"]}), ids["tok_depth"]
    plan = SamplingConfig(num_steps=2, temperature=0.01, top_p=0.8, guidance=2.0).plan("tok_depth")
    wanted, found = (each.sampler.log_likelihood([rgb], plan, [truth])[0][0] for each in (exact, half))
    assert found.dtype == np.float32 and np.abs(found - wanted).mean() < 0.1
    assert half.sampler.logits([rgb], plan, [np.arange(3)])[0].dtype == torch.float32
    made = half.sampler.generate([rgb], [plan], [0])[0].tokens["tok_depth"]
    assert made.min() >= 0 and len(made) == len(truth)
    assert encode_clip(half.model, rgb).rows.dtype == torch.float32
    assert half.fingerprint != exact.fingerprint, "results of another precision are other results"
    assert measure_memory(half, [plan]).per_clip > 0


def test_any_field_decides_unless_it_says_otherwise(world):
    """What a forgotten list of keys would keep: every field of the request, also one that nobody thought of.

    The precision decides by the fingerprint of the weights.
    """
    config = _config(world, "decided", targets=("gaze",), max_clips=1)
    beside = {"output", "max_clips", "batch_size", "device", "dtype", "graphs", "progress"}
    assert set(to_plain(config)) - set(deciding(config)) == beside
    assert deciding(replace(config, batch_size=3, device="cpu", output="x")) == deciding(config)
    folder = run_generation(config).parent / "clip_100"
    stamp = (folder / "clip.npz").stat().st_mtime_ns
    run_generation(replace(config, batch_size=3, progress=True))
    assert (folder / "clip.npz").stat().st_mtime_ns == stamp
    for change in ({"stitching": {"anchor": 0.5}}, {"sampling": {"gaze": {"max_new_tokens": 3}}}, {"rate_hz": 5.0}):
        run_generation(_config(world, "decided", targets=("gaze",), max_clips=1, **change))
        assert (folder / "clip.npz").stat().st_mtime_ns != stamp, change
        stamp = (folder / "clip.npz").stat().st_mtime_ns


def test_clips_of_a_reader_are_a_stride_apart(world):
    small = {"num_rooms": 1, "first_seed": 7, "duration_s": 4.0, "camera": {"height": SIZE, "width": SIZE}}
    source = {"kind": "synthetic", "world": small}
    options = {"input": None, "source": source, "targets": ("gaze",), "conditions": ("rgb",)}
    for stride_s, starts_s in ((None, [0, 2]), (1.0, [0, 1, 2])):
        manifest = run_generation(_config(world, f"stride_{stride_s}", stride_s=stride_s, **options))
        keys = [clip["key"] for clip in load_json(manifest)["clips"]]
        found = [np.load(manifest.parent / key / "clip.npz")["rgb_times_s"][0] for key in keys]
        np.testing.assert_allclose(found, starts_s, atol=1e-6)


def test_clips_are_read_as_they_are_needed(world):
    """An input that breaks off late does not cost what was made before, and no hour of video lies in memory."""
    recordings = world / "two_recordings"
    for name in ("a", "b"):
        (recordings / name).mkdir(parents=True)
        frames = invented_clip(0).rgb.repeat(2, 0)
        write_video(recordings / name / "video.mp4", frames, 16.0)
    whole = (recordings / "b" / "video.mp4").read_bytes()
    (recordings / "b" / "video.mp4").write_bytes(whole[: len(whole) // 2])
    config = _config(world, "streamed", input=str(recordings), targets=("gaze",), batch_size=1, progress=True)
    with pytest.raises(ValueError, match="b/video.mp4"):
        run_generation(config)
    kept = world / "streamed" / "a_000000" / "clip.npz"
    stamp = kept.stat().st_mtime_ns
    (recordings / "b" / "video.mp4").write_bytes(whole)
    assert json.loads(run_generation(config).read_text())["num_clips"] == 2
    assert kept.stat().st_mtime_ns == stamp


def test_a_model_trained_again_makes_its_clips_again(world):
    directory = world / "retrained"
    shutil.copytree(world / "model", directory)
    config = _config(world, "retrained_clips", checkpoint=str(directory), targets=("gaze",), max_clips=1)
    note = run_generation(config).parent / "clip_100" / "clip.json"
    before = load_json(note)["settings"]
    model = load_model(directory)
    with torch.no_grad():
        model.decoder_norm.weight.mul_(2.0)
    save_model(model, directory, tokenizer_locations(directory))
    run_generation(config)
    after = load_json(note)["settings"]
    assert before != after and before | {"model": after["model"]} == after


def test_token_shards_and_token_files_are_inputs_too(world, checkpoint):
    shards = str(world / "tokens/train/[rgb,depth]/tiny/shard-{000000..000000}.tar")
    manifest = run_generation(_config(world, "shards", input=shards, targets=("cam",), max_clips=2))
    clips = json.loads(manifest.read_text())["clips"]
    assert len(clips) == 2 and sorted(clips[0]["given"]) == ["tok_depth", "tok_rgb"]
    ids = checkpoint.tokenize([invented_clip(0)], ["tok_rgb"])[0].tokens["tok_rgb"]
    np.savez(world / "some.npz", rgb=ids)
    manifest = run_generation(_config(world, "file", input=str(world / "some.npz"), targets=("depth",)))
    from_file = np.load(manifest.parent / "some" / "tokens.npz")["tok_depth"]
    made = generate_clips(checkpoint, [invented_clip(0)], DEPTH)[0]
    assert np.array_equal(from_file, made.tokens.tokens["tok_depth"])


def test_targets_in_the_input_are_made_anew_and_the_rest_is_kept(checkpoint):
    clip = invented_clip(1)
    made = generate_clips(checkpoint, [clip], DEPTH)[0]
    assert made.given == ("tok_rgb",) and made.made == ("tok_depth",)
    assert np.array_equal(made.clip.rgb, clip.rgb) and np.array_equal(made.clip.gaze, clip.gaze)
    assert not np.array_equal(made.clip.depth_m, clip.depth_m)


def test_a_clip_does_not_depend_on_its_batch(checkpoint):
    hot = {"default": SamplingConfig(temperature=1.0, num_steps=2, guidance=1.5)}
    request = Request(targets=("cam", "gaze"), conditions=("rgb",), sampling=hot)
    clips = [invented_clip(number) for number in range(3)]
    together = generate_clips(checkpoint, clips, request, seeds=[4, 5, 6])
    alone = generate_clips(checkpoint, clips[2:], request, seeds=[6])[0]
    assert np.array_equal(together[2].tokens.tokens["tok_gaze"], alone.tokens.tokens["tok_gaze"])
    np.testing.assert_allclose(together[2].clip.world_from_cam, alone.clip.world_from_cam, atol=1e-5)


def test_bad_requests_say_what_would_be_right(world, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no modality 'sound'.*known"):
        generate_clips(checkpoint, [invented_clip(0)], Request(targets=("sound",)))
    with pytest.raises(ValueError, match="nothing of the input"):
        generate_clips(checkpoint, [invented_clip(0)], Request(targets=("rgb", "depth", "gaze", "camera")))
    with pytest.raises(ValueError, match="no modality 'sound'"):
        run_generation(_config(world, "x", input=str(tmp_path / "absent"), targets=("sound",)))
    with pytest.raises(ValueError, match="found no video"):
        run_generation(_config(world, "x", input=str(tmp_path / "absent")))
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="broken.npz: not a readable array file"):
        run_generation(_config(world, "x", input=str(tmp_path / "broken.npz")))
    with pytest.raises(ValueError, match="no model.json"):
        load_checkpoint(tmp_path)
    card = json.loads((world / "model" / "model.json").read_text())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes((world / "model" / "model.safetensors").read_bytes())
    card["tokenizers"] = {"tok_rgb": str(world / "tokenizers" / "rgb")}
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="tok_depth has no tokenizer"):
        generate_clips(load_checkpoint(tmp_path / "model"), [invented_clip(0)], DEPTH)


def test_what_is_no_recording_is_taken_clip_by_clip(world, tmp_path):
    """Python and generate.py agree on the kinds of input that windows are cut from."""
    (tmp_path / "captions.txt").write_text("the wearer cooks\n")
    for source in (tmp_path / "captions.txt", world / "clips" / "val", world / "tokens/train/rgb/tiny/shard-*.tar"):
        assert _recordings(str(source), None) is None, source
    write_video(tmp_path / "walk.mp4", invented_clip(0).rgb, 8.0)
    assert [recording.name for recording in _recordings(str(tmp_path / "walk.mp4"), None)] == ["walk"]
