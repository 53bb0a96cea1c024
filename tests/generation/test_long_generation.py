"""Recordings of any length: windows, joining, conditioning on the overlap, resume, memory, parts, the Python API."""

import csv
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_artifacts import SIZE, make_tiny_world

import egom2p
from egom2p.contracts import QUANTITIES, AlignedClip, Provenance, Recording, Stream, TokenClip
from egom2p.data.clips.clip_alignment import RecordingTooShort
from egom2p.data.clips.video_files import open_video, write_video
from egom2p.generation import generation, generation_outputs, long_generation
from egom2p.generation.clip_generation import generate_clips
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.generation.generation_inputs import clip_config_of
from egom2p.generation.generation_memory import (
    MemoryEstimate,
    _model_step,
    check_joined_fits,
    fitting_batch,
    in_smaller_batches,
    measure_memory,
)
from egom2p.generation.loaded_model import load_model
from egom2p.generation.long_generation import common_step_s, generate_segment, overlap_of, plan_segments
from egom2p.generation.partial_prompts import InpaintingMask, encode_given, given_positions
from egom2p.generation.request import Request
from egom2p.generation.sample_ranges import HIGH, LOW, range_notes, summary
from egom2p.generation.stitching import StitchConfig
from egom2p.layers.step_memory import LiveBytes
from egom2p.metrics.calibration import calibration, clip_spread
from egom2p.models.sampling import SamplingConfig
from egom2p.viewing import generation_page
from egom2p.viewing.generation_page import write_generation_page

HOT = {"default": SamplingConfig(temperature=1.0, num_steps=2)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = make_tiny_world(tmp_path_factory.mktemp("long"), num_val=1)
    write_video(root / "walk.mp4", _frames(5.3, 16.0), 16.0)
    return root


@pytest.fixture(scope="module")
def checkpoint(world):
    return load_model(world / "model", device="cpu")


def _frames(duration_s: float, rate_hz: float) -> np.ndarray:
    times_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    ramp = np.linspace(0, 1, 2 * SIZE)
    wave = 127 + 127 * np.sin(4 * ramp[None, None] + 3 * ramp[None, :, None] + times_s[:, None, None])
    return np.repeat(wave[..., None], 3, axis=-1).astype(np.uint8)


def _recording(duration_s: float, *, missing_s: tuple[float, float] | None = None) -> Recording:
    frames = _frames(duration_s, 8.0)
    times_s = np.arange(len(frames)) / 8.0
    is_valid = np.ones(len(frames), bool)
    if missing_s is not None:
        is_valid &= ~((times_s >= missing_s[0]) & (times_s < missing_s[1]))
    return Recording("walk", {"rgb": Stream(frames, is_valid, times_s, "uint8")}, None, Provenance("x", "walk"))


def _config(world, output: str, **changes) -> GenerationConfig:
    values = {
        "checkpoint": str(world / "model"),
        "output": str(world / output),
        "input": str(world / "walk.mp4"),
        "targets": ("depth", "cam", "gaze"),
        "device": "cpu",
        "progress": False,
    }
    return GenerationConfig(**(values | changes))


def test_windows_start_where_all_clocks_have_a_sample(checkpoint):
    assert common_step_s((8.0, 30.0)) == 0.5 and common_step_s((8.0, 8.0)) == 0.125
    config = clip_config_of(checkpoint, span="any")
    assert overlap_of(config) == 1.0 and overlap_of(config, 1.5) == 1.5
    with pytest.raises(ValueError, match=r"overlap_s must be one of 0, 0.125, 0.25, .*got 0.7"):
        overlap_of(config, 0.7)
    assert overlap_of(config, 1.75) == 1.75
    with pytest.raises(ValueError, match=r"one of 0, 0.5, 1, 1.5 with join=condition .*got 1.75"):
        overlap_of(config, 1.75, join="condition")
    (segment,) = plan_segments(_recording(7.2), config, overlap_s=1.0)
    # Every second, and the last one as late as the recording allows, so that under half a second is left over.
    assert [window.start_s for window in segment.windows] == [0, 1, 2, 3, 4, 5]
    assert segment.duration_s == 7.0 and segment.unused_s == pytest.approx(0.2, abs=0.1)
    (segment,) = plan_segments(_recording(3.5), config, overlap_s=0.5)
    assert [window.start_s for window in segment.windows] == [0, 1.5]
    (segment,) = plan_segments(_recording(4.0), config, overlap_s=0.5)
    assert [window.start_s for window in segment.windows] == [0, 1.5, 2.0]


def test_windows_may_start_with_any_picture(checkpoint):
    """Overlaps of 1.75 s: every other window starts between two samples of the tracks, all with a picture."""
    recording = _recording(3.2)
    (segment,) = plan_segments(recording, clip_config_of(checkpoint, span="any"), overlap_s=1.75)
    assert [window.start_s for window in segment.windows] == [0, 0.25, 0.5, 0.75, 1.0, 1.25]
    request = Request(targets=("depth", "cam", "gaze"), overlap_s=1.75, stitching=StitchConfig(camera="graph"))
    clip = generate_segment(checkpoint, segment, request, seeds=range(6)).generated.clip
    assert len(clip.depth_m) == len(clip.rgb) == 26
    for track in (clip.world_from_cam, clip.gaze):
        assert len(track) == 97, "the last window's samples lie at 37.5 ... 96.5"
    np.testing.assert_allclose(clip.streams["camera"].times_s, np.arange(97) / 30, atol=1e-9)


def test_a_recording_with_a_hole_becomes_two_stretches(checkpoint):
    config = clip_config_of(checkpoint, span="any")
    first, second = plan_segments(_recording(9.0, missing_s=(4.0, 5.0)), config, overlap_s=1.0)
    assert (first.key, first.duration_s) == ("walk", 4.0)
    assert (second.key, second.start_s, second.duration_s) == ("walk_part2", 5.0, 4.0)
    with pytest.raises(RecordingTooShort, match=r"walk: found rgb 0.000-1.375 s \(12 samples\); wanted 2 s"):
        plan_segments(_recording(1.5), config, overlap_s=1.0)


@pytest.mark.parametrize("join", ["stitch", "condition"])
def test_a_long_video_becomes_one_result(world, join):
    manifest = run_generation(_config(world, f"whole_{join}", join=join))
    about = json.loads(manifest.read_text())
    (clip,) = about["clips"]
    assert clip["key"] == "walk" and not list(manifest.parent.glob(".windows*"))
    assert about["unused_s"]["walk"] < 0.5
    with np.load(manifest.parent / "walk" / "clip.npz") as arrays:
        assert arrays["depth"].shape == (40, SIZE, SIZE) and arrays["depth"].min() > 0
        assert arrays["camera"].shape == (150, 4, 4) and arrays["gaze"].shape == (150, 2)
        assert arrays["rgb"].shape == (40, SIZE, SIZE, 3)
        np.testing.assert_allclose(arrays["camera_times_s"], np.arange(150) / 30, atol=1e-9)
        np.testing.assert_allclose(
            arrays["camera"][:, :3, :3] @ arrays["camera"][:, :3, :3].swapaxes(1, 2),
            np.eye(3)[None].repeat(150, 0),
            atol=1e-6,
        )
    note = json.loads((manifest.parent / "walk" / "clip.json").read_text())
    assert note["windows_s"] == [0, 1, 2, 3] and note["overlaps"]["camera"]["mean"]["num_overlaps"] == 3
    with np.load(manifest.parent / "walk" / "tokens.npz") as arrays:
        assert arrays["tok_cam"].shape[0] == 4
    assert len(open_video(manifest.parent / "walk" / "depth.mp4")) == 40


def test_windows_alone_and_in_batches_give_the_same_recording(checkpoint):
    (segment,) = plan_segments(_recording(5.0), clip_config_of(checkpoint, span="any"), overlap_s=1.0)
    one, all_ = (
        generate_segment(
            checkpoint,
            segment,
            Request(targets=("depth", "cam"), sampling=HOT, batch_size=size),
            seeds=[5, 6, 7, 8],
        ).generated
        for size in (1, 8)
    )
    assert all(np.array_equal(one.tokens.tokens[name], ids) for name, ids in all_.tokens.tokens.items())
    np.testing.assert_allclose(one.clip.world_from_cam, all_.clip.world_from_cam, atol=1e-5)
    np.testing.assert_allclose(one.clip.depth_m, all_.clip.depth_m, rtol=1e-4)


def test_conditioned_windows_hold_the_tokens_of_the_overlap(checkpoint, monkeypatch):
    """What the sequence holds of a window reaches the sampler as given tokens, and is not rewritten."""
    seen = []
    generate = checkpoint.sampler.generate
    monkeypatch.setattr(
        checkpoint.sampler,
        "generate",
        lambda prompts, *rest, **more: (
            seen.append((prompts[0].tokens, made := generate(prompts, *rest, **more))) or made
        ),
    )
    (segment,) = plan_segments(_recording(4.0), clip_config_of(checkpoint, span="any"), overlap_s=1.0)
    request = Request(targets=("depth", "cam", "gaze"), sampling=HOT, join="condition")
    generate_segment(checkpoint, segment, request, seeds=[1, 2, 3])
    assert set(seen[0][0]) == {"tok_rgb"} and len(seen) == 3
    for given, made in seen[1:]:
        for name, share in (("tok_cam", 0.5), ("tok_gaze", 0.5), ("tok_depth", 0.4)):
            is_given = given[name] >= 0
            # 30 of 60 samples; of 16 frames the first eight, which hold two whole steps of five.
            assert is_given.mean() == pytest.approx(share)
            assert np.array_equal(made[0].tokens[name][is_given], given[name][is_given])


def test_an_interrupted_recording_goes_on_where_it_was(world, monkeypatch):
    config = _config(world, "resumed", targets=("cam",), batch_size=1, sampling=HOT)
    whole = np.load(run_generation(_config(world, "at_once", targets=("cam",), sampling=HOT)).parent / "walk/clip.npz")
    from egom2p.models.generate import Sampler

    generate, calls = Sampler.generate, []

    def failing(self, prompts, *rest, **more):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, prompts, *rest, **more)

    monkeypatch.setattr(Sampler, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        run_generation(config)
    assert not (world / "resumed" / "walk").exists()
    resumed = np.load(run_generation(config).parent / "walk" / "clip.npz")
    assert len(calls) == 3 + 2  # the two finished windows were not made again
    np.testing.assert_allclose(resumed["camera"], whole["camera"], atol=1e-5)


def test_a_folder_of_videos_is_a_batch_and_short_ones_are_told(world, capsys):
    folder = world / "several"
    folder.mkdir()
    for name, duration_s in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        write_video(folder / f"{name}.mp4", _frames(duration_s, 8.0), 8.0)
    about = json.loads(run_generation(_config(world, "several_out", input=str(folder), targets=("gaze",))).read_text())
    assert [clip["key"] for clip in about["clips"]] == ["a", "c"]
    assert "b.mp4: found rgb" in about["skipped"]["b"] and "left out b" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"b.mp4: found rgb 0.000-0.875 s \(8 samples\); wanted 2 s") as error:
        run_generation(_config(world, "short", input=str(folder / "b.mp4"), targets=("gaze",)))
    assert "duration_s" not in str(error.value)


def test_two_videos_of_one_name_are_refused(world):
    for suffix in ("mp4", "webm"):
        write_video(world / "twins" / f"walk.{suffix}", _frames(2.5, 16.0), 16.0)
    with pytest.raises(ValueError, match="two recordings or clips of the input are called 'walk'"):
        run_generation(_config(world, "twins_out", input=str(world / "twins"), targets=("cam",)))


def test_a_video_that_was_replaced_is_made_again(world, capsys):
    video = world / "changing.mp4"
    config = _config(world, "changed", input=str(video), targets=("cam",))
    for duration_s, num_kept in ((2.5, 0), (2.5, 1), (4.0, 0)):
        if not num_kept:
            write_video(video, _frames(duration_s, 16.0), 16.0)
        manifest = run_generation(config)
        assert ("already there" in capsys.readouterr().err) == bool(num_kept)
    with np.load(manifest.parent / "changing" / "clip.npz") as arrays:
        assert len(arrays["rgb"]) == 32, "4 s at 8 Hz"


@pytest.mark.parametrize("join", ["stitch", "none"])
def test_a_replaced_file_of_a_folder_is_made_again_and_the_others_are_kept(world, capsys, join):
    folder = world / f"folder_{join}"
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", _frames(2.5, 16.0), 16.0)
    config = _config(world, f"folder_{join}_out", input=str(folder), targets=("cam",), join=join)
    for told in ("", "2 of 2 clips were already there", "1 of 2 clips were already there"):
        manifest = run_generation(config)
        assert told in capsys.readouterr().err
        if told.startswith("2"):
            write_video(folder / "b.mp4", 255 - _frames(2.5, 16.0), 16.0)
    keys = sorted(clip["key"] for clip in json.loads(manifest.read_text())["clips"])
    pictures = [np.load(manifest.parent / key / "clip.npz")["rgb"].astype(float) for key in keys]
    assert np.abs(pictures[0] + pictures[1] - 255).mean() < 10


def test_pictures_are_frames_at_a_rate(world):
    from PIL import Image

    folder = world / "pictures"
    folder.mkdir()
    for number, frame in enumerate(_frames(2.5, 10.0)):
        Image.fromarray(frame).save(folder / f"{number:04d}.png")
    with pytest.raises(ValueError, match="rate_hz=30"):
        run_generation(_config(world, "pictures_out", input=str(folder), targets=("gaze",)))
    config = _config(world, "pictures_out", input=str(folder), targets=("gaze",), rate_hz=10.0)
    assert json.loads(run_generation(config).read_text())["clips"][0]["key"] == "pictures"


def test_a_reader_of_recordings_is_an_input(world):
    small = {"num_rooms": 1, "first_seed": 7, "duration_s": 2.5, "camera": {"height": SIZE, "width": SIZE}}
    config = _config(
        world,
        "reader",
        input=None,
        source={"kind": "synthetic", "world": small},
        targets=("gaze",),
        conditions=("rgb",),
    )
    assert json.loads(run_generation(config).read_text())["clips"][0]["given"] == ["tok_rgb"]
    with pytest.raises(ValueError, match="either input=<path> or source"):
        _config(world, "x", input=None)


def test_joined_tokens_are_an_input_again(world, checkpoint):
    manifest = run_generation(_config(world, "tokens_first", targets=("gaze",)))
    tokens = str(manifest.parent / "walk" / "tokens.npz")
    again = run_generation(_config(world, "tokens_again", input=tokens, targets=("depth",)))
    assert json.loads(again.read_text())["num_clips"] == 4


def test_smaller_batches_when_memory_runs_out(capsys):
    sizes = []

    def work(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return [item * 10 for item in items]

    assert list(in_smaller_batches(work, [1, 2, 3, 4, 5])) == [10, 20, 30, 40, 50]
    assert sizes == [5, 2, 3, 1, 2] and "do not fit, going on with 2" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shape"):
        list(in_smaller_batches(lambda items: (_ for _ in ()).throw(RuntimeError("shape")), [1, 2]))


def test_the_batch_is_chosen_before_the_work(checkpoint, capsys):
    assert fitting_batch(MemoryEstimate(100, 10), 8, free=1000) == 8
    assert fitting_batch(MemoryEstimate(100, 10), 8, free=None) == 8
    assert fitting_batch(MemoryEstimate(100, 100), 8, free=600) == 3 and "3 at once" in capsys.readouterr().err
    assert fitting_batch(MemoryEstimate(10_000, 100), 8, free=600) == 1
    check_joined_fits("walk", 1000, free=10**6)
    with pytest.raises(ValueError, match="walk: as one result .*join=none"):
        check_joined_fits("walk", 10**6, free=10**6)


def test_memory_is_that_of_a_real_pass(checkpoint):
    """Measured without numbers, against the tensors that live while the same pass is taken."""
    plain, guided = (
        measure_memory(checkpoint, [SamplingConfig(guidance=scale).plan("tok_depth")]) for scale in (1.0, 2.0)
    )
    assert guided.per_clip >= plain.per_clip > 0 and plain.fixed > checkpoint.context_bytes
    plan = SamplingConfig(guidance=2.0).plan("tok_rgb")
    estimate = measure_memory(replace(checkpoint, tokenizers={}), [plan])
    peaks = []
    for count in (2, 6):
        with torch.no_grad(), LiveBytes() as live:
            _model_step(count, checkpoint.model, plan=plan)
        peaks.append(live.peak)
    assert estimate.per_clip == pytest.approx((peaks[1] - peaks[0]) / 4, rel=0.1)


def test_what_is_hidden_does_not_reach_the_tokens_of_the_rest(checkpoint, world):
    """Tokens of the known part are the same whatever stands in the hidden part."""
    clip = checkpoint.generate(_recording(2.0), ["depth", "cam", "gaze"], sampling=HOT)
    for name, count in (("tok_gaze", 60), ("tok_cam", 60), ("tok_depth", 16), ("tok_rgb", 16)):
        tokenizer = checkpoint.tokenizer(name)
        stream = clip.streams[tokenizer.stream]
        is_known = np.arange(count) < count // 2
        changed = np.array(stream.values)
        changed[count // 2 :] = changed[::-1][count // 2 :]
        other = AlignedClip(
            "b", {tokenizer.stream: Stream(changed, stream.is_valid, stream.times_s, "")}, None, clip.provenance
        )
        ids = encode_given(tokenizer, clip, is_known)
        assert np.array_equal(ids, encode_given(tokenizer, other, is_known)), name
        assert np.array_equal(ids >= 0, given_positions(tokenizer.spec, is_known)) and (ids >= 0).any()


def test_the_second_half_of_gaze_and_of_rgb_is_predicted_from_the_first(checkpoint):
    clip = checkpoint.generate(_recording(2.0), ["depth", "gaze"], sampling=HOT)
    for target, stream, half in (("gaze", "gaze", 30), ("rgb", "rgb", 8)):
        masks = {target: InpaintingMask(seconds=(1.0, 2.0))}
        request = Request(targets=(target,), conditions=("depth",), inpainting=masks, sampling=HOT, join="none")
        made = generate_clips(checkpoint, [clip], request)[0]
        values, given = made.clip.streams[stream].values, clip.streams[stream].values
        assert np.array_equal(values[:half], given[:half]) and not np.array_equal(values[half:], given[half:])
    box = {"rgb": InpaintingMask(box=(0.0, 0.0, 0.5, 0.5))}
    request = Request(targets=("rgb",), conditions=("depth",), inpainting=box, sampling=HOT, join="none")
    made = generate_clips(checkpoint, [clip], request)[0]
    assert np.array_equal(made.clip.rgb[:, SIZE // 2 :], clip.rgb[:, SIZE // 2 :])
    assert not np.array_equal(made.clip.rgb[:, : SIZE // 2, : SIZE // 2], clip.rgb[:, : SIZE // 2, : SIZE // 2])
    with pytest.raises(ValueError, match="first camera pose"):
        poses = checkpoint.generate(_recording(2.0), ["cam"])
        first_second = {"cam": InpaintingMask(seconds=(0.0, 1.0))}
        generate_clips(checkpoint, [poses], Request(targets=("cam",), inpainting=first_second, join="none"))
    with pytest.raises(ValueError, match="inpainting names .*no targets"):
        generate_clips(checkpoint, [poses], Request(targets=("gaze",), inpainting=first_second, join="none"))
    with pytest.raises(ValueError, match="join=condition"):
        checkpoint.generate(_recording(2.0), ["cam"], inpainting=first_second, join="condition")


def test_five_lines_of_python(world):
    from egom2p import load_model

    model = load_model(world / "model")
    clip = model.generate(str(world / "walk.mp4"), targets=["depth", "cam", "gaze"], seed=0)
    assert clip.depth_m.shape == (40, SIZE, SIZE) and clip.world_from_cam.shape == (150, 4, 4)
    assert clip.gaze.shape == (150, 2)
    # The same seed gives what generate.py writes.
    with np.load(run_generation(_config(world, "cli")).parent / "walk" / "clip.npz") as arrays:
        np.testing.assert_allclose(arrays["camera"], clip.world_from_cam, atol=1e-5)
    again = model.generate(str(world / "walk.mp4"), targets=["gaze"], seed=1, sampling=HOT)
    other = model.generate(str(world / "walk.mp4"), targets=["gaze"], seed=2, sampling=HOT)
    assert not np.array_equal(again.gaze, other.gaze)
    with pytest.raises(ValueError, match="several recordings"):
        model.generate(str(world / "tokens/train/[rgb,depth]/tiny/shard-{000000..000000}.tar"), targets=["cam"])


def test_the_pretrained_checkpoint_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (None, "checkpoints/world_small", "world_small"):
        assert {spec.quantity for spec in egom2p.load_model(name, device="cpu").specs} >= {"depth", "camera"}


class _Endless:
    """Pictures that are made when they are asked for, as a video's are."""

    height = width = 128

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> np.ndarray:
        grey = (np.asarray(indices, np.int64)[:, None, None, None] * 7 + np.arange(128)[:, None, None]) % 256
        return np.broadcast_to(grey, (len(indices), 128, 128, 3)).astype(np.uint8)


def test_memory_does_not_grow_with_the_recording(world, checkpoint, monkeypatch):
    """Pictures of any length are on the disk, not in memory: from windows to files and page, counted by tracemalloc."""
    config = clip_config_of(checkpoint, span="any")
    frames = (config.num_frames, 128, 128)

    def decoded(checkpoint, tokens, request):
        depth_m = np.linspace(1, 4, np.prod(frames), dtype=np.float32).reshape(frames)
        return {"tok_depth": [[(depth_m, np.ones(frames[0], bool))] for _ in tokens]}

    def made(checkpoint, clips, *rest):
        return [TokenClip(clip.key, {"tok_depth": np.zeros(4, np.int32)}) for clip in clips]

    monkeypatch.setattr(long_generation, "decode_targets", decoded)
    monkeypatch.setattr(long_generation, "_made", made)
    monkeypatch.setattr(
        generation, "clip_config_of", lambda *rest, **more: replace(config, height=128, width=128)
    )  # larger than the tiny model's, so that pictures outweigh everything else
    for module in (generation_outputs, generation_page):  # samples that both lengths reach
        monkeypatch.setattr(module, "_MOST_PIXELS", 1 << 18)
    peaks = {}
    for duration_s in (36.0, 144.0):
        pictures = _Endless(int(duration_s * 8))
        stream = Stream(pictures, np.ones(len(pictures), bool), np.arange(len(pictures)) / 8.0, "uint8")
        recording = Recording("walk", {"rgb": stream}, None, Provenance("x", "walk"))
        monkeypatch.setattr(generation, "_recordings", lambda config, found=recording: iter([found]))
        job = _config(world, f"memory_{duration_s:g}", targets=("depth",), stitching=StitchConfig(depth="scale"))
        tracemalloc.start()
        manifest = run_generation(job)
        write_generation_page(manifest.parent, max_s=10.0)
        peaks[duration_s] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with np.load(manifest.parent / "walk" / "clip.npz") as arrays:
            assert arrays["depth"].shape == arrays["rgb"].shape[:3] == (duration_s * 8, 128, 128)
            assert np.array_equal(arrays["rgb"][-1], pictures.read(np.array([duration_s * 8 - 1]))[0])
        assert not list(manifest.parent.glob(".windows*"))
    whole = 144 * 8 * 128 * 128 * 7
    assert peaks[144.0] < 1.2 * peaks[36.0] and peaks[144.0] < 0.6 * whole, (peaks, whole)


def test_ranges_of_samples_move_about_their_mean():
    """Depth in its logarithm, tracks as they are, positions seen from the first pose; the factor moves the ends."""
    depth = [np.array([[[1.0, 0.0]]], np.float32), np.array([[[4.0, 0.0]]], np.float32)]
    parts = [(values, np.ones(1, bool)) for values in depth]
    for stretch, low, high in ((None, 1.0, 4.0), (2.0, 0.5, 8.0)):
        found = summary(QUANTITIES["depth"], parts, stretch)
        np.testing.assert_allclose(found[""][0], [[[2.0, 0.0]]], rtol=1e-6)
        np.testing.assert_allclose(found[LOW][0], [[[low, 0.0]]], rtol=1e-6)
        np.testing.assert_allclose(found[HIGH][0], [[[high, 0.0]]], rtol=1e-6)
    gaze = [
        (np.array([[0.2, 0.2], [0.5, 0.5]]), np.array([True, True])),
        (np.array([[0.4, 0.2], [0.0, 0.0]]), np.array([True, False])),
    ]
    found = summary(QUANTITIES["gaze"], gaze, 3.0)
    np.testing.assert_allclose(found[""][0], [[0.3, 0.2], [0.5, 0.5]])
    np.testing.assert_allclose(found[LOW][0], [[0.0, 0.2], [0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(found[HIGH][0], [[0.6, 0.2], [0.5, 0.5]])
    poses = np.tile(np.eye(4), (2, 3, 1, 1))
    poses[0, :, :3, 3], poses[1, :, :3, 3] = np.arange(3)[:, None] + 7, 3 * np.arange(3)[:, None] - 2
    found = summary(QUANTITIES["camera"], [(one, np.ones(3, bool)) for one in poses], 1.0)
    np.testing.assert_allclose(found[""][0][:, 0, 3], [0, 2, 4])
    np.testing.assert_allclose(np.stack([found[LOW][0][:, 1], found[HIGH][0][:, 1]]), [[0, 1, 2], [0, 3, 6]])
    assert list(
        summary(QUANTITIES["rgb"], [(np.full((1, 2, 2, 3), grey, np.uint8), np.ones(1, bool)) for grey in (3, 4)], None)
    ) == [""]


def test_ranges_hold_what_their_factor_was_fitted_to(rng):
    """The factor of an evaluation, applied by generation, holds 80 % of the truths of new clips."""
    truths, clips = [], []
    for _ in range(80):
        centre = rng.normal(0, 1, 50)
        truths.append(centre + rng.normal(0, 0.3, 50))
        clips.append(centre + rng.normal(0, 0.1, (8, 50)))
    spreads = [clip_spread(samples, truth, rng) for samples, truth in zip(clips[:40], truths[:40], strict=True)]
    stretch = calibration(spreads).stretch
    held = []
    for samples, truth in zip(clips[40:], truths[40:], strict=True):
        found = summary(QUANTITIES["gaze"], [(sample[:, None], np.ones(50, bool)) for sample in samples], stretch)
        held.append((found[LOW][0][:, 0] <= truth) & (truth <= found[HIGH][0][:, 0]))
    assert np.mean(held) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("join", ["stitch", "none"])
def test_several_samples_become_a_mean_and_its_range(world, checkpoint, join):
    factor = {"num_samples": 3, "stretch": 2.0}
    card = {"clips": "rooms", "tasks": [{"quantity": name, "uncertainty": [factor]} for name in ("depth", "camera")]}
    (world / "model" / "metrics.json").write_text(json.dumps(card))
    job = _config(
        world, f"ranges_{join}", join=join, num_samples=3, sampling=HOT, stitching=StitchConfig(depth="scale")
    )
    manifest = run_generation(job)
    key = json.loads(manifest.read_text())["clips"][0]["key"]
    folder = manifest.parent / key
    note = json.loads((folder / "clip.json").read_text())["ranges"]
    assert note["depth"]["stretch"] == 2.0 and note["depth"]["share"] == 0.8 and note["gaze"]["stretch"] is None
    with np.load(folder / "clip.npz") as arrays:
        for name in ("depth", "gaze"):
            assert arrays[f"{name}_low"].shape == arrays[name].shape
            assert (arrays[f"{name}_low"] <= arrays[name] + 1e-5).all() and (
                arrays[name] <= arrays[f"{name}_high"] + 1e-5
            ).all()
        assert arrays["camera_low"].shape == (len(arrays["camera"]), 3)
        assert np.ptp(arrays["depth_high"] - arrays["depth_low"]) > 0, "samples differ"
        rows = list(csv.DictReader((folder / "gaze_range.csv").read_text().splitlines()))
        np.testing.assert_allclose([float(row["v_high"]) for row in rows], arrays["gaze_high"][:, 1], atol=1e-6)
    with np.load(folder / "tokens.npz") as tokens:
        assert tokens["tok_cam"].shape[-2] == 3 and tokens["tok_rgb"].shape[-2:] != tokens["tok_cam"].shape[-2:]
    page = write_generation_page(manifest.parent).read_text()
    assert "3 samples, moved away from their mean (depth 2.00, camera 2.00 times as far), which holds 80%" in page
    assert "of clips like those it was measured on, rooms only" in page
    assert "of gaze as they are, not calibrated" in page
    # The first sample is the result of one; a short recording's ranges are those of its windows.
    one = run_generation(_config(world, f"one_{join}", join=join, sampling=HOT))
    with np.load(one.parent / key / "tokens.npz") as first, np.load(folder / "tokens.npz") as several:
        first_ids = several["tok_depth"][..., 0, :] if join == "stitch" else several["tok_depth"][0]
        assert np.array_equal(first["tok_depth"], first_ids)
    (world / "model" / "metrics.json").unlink()


def test_samples_that_cannot_differ_are_refused(world):
    with pytest.raises(ValueError, match=r"num_samples=3 samples of temperature 0 are all the same.*tok_cam"):
        run_generation(_config(world, "same", targets=("cam",), num_samples=3))
    with pytest.raises(ValueError, match="num_samples=3 makes whole targets"):
        _config(world, "chained", targets=("cam",), num_samples=3, join="condition", sampling=HOT)


def test_the_page_reads_no_more_than_it_shows(tmp_path, rng):
    """Whatever way an array lies in its file; streams of other lengths end at the same second."""
    frames, track = rng.random((40, 3, 4)).astype(np.float32), np.asfortranarray(rng.random((150, 2)))
    arrays = {}
    for name, values, rate_hz in (("depth", frames, 8.0), ("gaze", track, 30.0)):
        arrays |= {name: values, f"{name}_is_valid": np.ones(len(values), bool)}
        arrays[f"{name}_times_s"] = 3.0 + np.arange(len(values)) / rate_hz
    np.savez_compressed(tmp_path / "clip.npz", **arrays)
    found, duration_s = generation_page._first_seconds(tmp_path / "clip.npz", 2.0)
    assert np.array_equal(found["depth"], frames[:16]) and np.array_equal(found["gaze"], track[:60])
    assert len(found["gaze_is_valid"]) == 60 and duration_s == pytest.approx(149 / 30)


@pytest.mark.parametrize("stretch", [-1.0, 0.0, float("nan"), "much", [1]])
def test_a_factor_of_a_strangers_card_is_looked_at(tmp_path, stretch):
    found = [{"num_samples": 8, "stretch": stretch}]
    (tmp_path / "metrics.json").write_text(json.dumps({"tasks": [{"quantity": "depth", "uncertainty": found}]}))
    with pytest.raises(ValueError, match="metrics.json: .*wanted"):
        range_notes(tmp_path, [], 8)
    assert range_notes(tmp_path, [], 4) == {}
