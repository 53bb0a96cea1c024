"""Pixels as input (kind `patches`): cut without loss, stored, masked, packed, embedded, shown, never predicted."""

import json
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_artifacts import NUM_FRAMES, SIZE, invented_clip, make_tiny_world

from egom2p.anytoany.perception.source import CodesConfig
from egom2p.anytoany.perception.token_features import perceived_specs
from egom2p.config import from_plain
from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, Stream, TokenClip, TokenizerMismatch
from egom2p.data.clips.upright import mirrored
from egom2p.data.clips.video_files import write_video
from egom2p.data.collate import BatchShape, collate
from egom2p.data.masking import AlphasConfig, MaskingConfig, ModalityAlphas, TransferConfig, UnifiedMasking
from egom2p.data.shards.array_files import encode_array
from egom2p.data.shards.shard_writer import ShardWriter
from egom2p.data.token_batches import ClipSize, Run, fit_clips
from egom2p.data.token_set import TokenSet
from egom2p.data.transfer_masking import TransferMasking
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, TokenLoader
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.generation.checkpoints import Checkpoint, load_checkpoint
from egom2p.generation.clip_generation import generate_clips
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.generation.generation_inputs import read_prompts
from egom2p.generation.generation_memory import measure_memory
from egom2p.generation.request import Request
from egom2p.models.egom2p_model import EgoM2P, ModelConfig, load_model
from egom2p.models.generate import Sampler
from egom2p.models.partial_loading import load_weights
from egom2p.models.sampling import SamplingConfig
from egom2p.models.weights import save_model
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.tokenizers import PatchesConfig, PatchTokenizer, load_tokenizer
from egom2p.training.planning.plan import plan_pretraining
from egom2p.training.planning.training_memory import ClipRows, TrainingMemory, model_without_weights
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain
from egom2p.training.throughput import ModelFlops

CONFIG = PatchesConfig(num_frames=NUM_FRAMES, height=SIZE, width=SIZE, rate_hz=8.0, patch=(4, 4, 8))
PIXELS = PatchTokenizer(CONFIG).spec
SIZES = ModelConfig(dim=24, encoder_depth=2, decoder_depth=1, num_heads=2)
NAMES = ("rgb_patches", "tok_cam", "tok_depth", "tok_rgb")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The tiny world with pixels: tokenizers/rgb_patches, and tokens/{train,val} of all modalities but gaze."""
    root = make_tiny_world(tmp_path_factory.mktemp("pixels"))
    PatchTokenizer(CONFIG).save(root / "tokenizers" / "rgb_patches")
    folders = {"tok_cam": "cam", "tok_depth": "depth", "tok_rgb": "rgb", "rgb_patches": "rgb_patches"}
    for split in ("train", "val"):
        common = {"clips": str(root / "clips" / split), "output": str(root / "all" / split)}
        reports = tokenize(TokenizeConfig(tokenizers=folders, tokenizers_root=str(root / "tokenizers"), **common))
        assert reports[0].round_trip["rgb_patches"] == {"exact_round_trip": 1.0}
    return root


def shards(world, split="train", folders="cam,depth,rgb,rgb_patches"):
    return f"{world}/all/{split}/[{folders}]/tiny/shard-000000.tar"


def dataset(pattern, **settings):
    alphas = AlphasConfig(
        alphas_mixture={
            "rgb_patches": ModalityAlphas(input_alphas=[1.0], target_alphas=[0.0]),
            "tok_rgb": ModalityAlphas(input_alphas=[1.0], target_alphas=[1.0]),
            "tok_depth": ModalityAlphas(input_alphas=[1.0], target_alphas=[1.0]),
        },
        transfers={"see": TransferConfig(weight=1.0, inputs=["rgb_patches"], targets=["tok_depth"])},
    )
    return DatasetConfig(
        **{"shards": pattern, "alphas": alphas, "max_input_tokens": 24, "max_target_tokens": 9, **settings}
    )


@pytest.fixture
def loading(world):
    config = DataConfig(datasets={"tiny": dataset(shards(world))})
    specs = tuple(load_tokenizer(world / "tokenizers" / f).spec for f in ("rgb_patches", "cam", "depth", "rgb"))
    assert tuple(spec.name for spec in specs) == NAMES
    return config, specs


def fresh(specs, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EgoM2P(replace(SIZES, **settings), tuple(specs))


def same(one, other):
    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, tuple) else a == b

    return all(equal(getattr(one, item.name), getattr(other, item.name)) for item in fields(one))


# The cutting


def test_cutting_a_video_loses_nothing_and_follows_the_grid():
    tokenizer, clips = PatchTokenizer(CONFIG), [invented_clip(0), invented_clip(1)]
    values_BLP = tokenizer.encode(clips)
    assert values_BLP.dtype == np.uint8 and values_BLP.shape == (2, 4 * 4 * 2, 4 * 4 * 8 * 3)
    video, is_valid = tokenizer.decode(values_BLP)
    assert np.array_equal(video, [clip.rgb for clip in clips]) and is_valid.all()
    # Position (t, y, x) = (2, 1, 1) of the grid (4, 4, 2), by plain slicing.
    assert np.array_equal(values_BLP[1, 2 * 8 + 1 * 2 + 1].reshape(4, 4, 8, 3), clips[1].rgb[8:12, 4:8, 8:16])


def test_the_card_is_the_tokenizer(tmp_path):
    tokenizer = PatchTokenizer(CONFIG)
    tokenizer.save(tmp_path / "card", licence="cc0-1.0")
    again = load_tokenizer(tmp_path / "card")
    assert again.spec == tokenizer.spec and again.config == CONFIG and again.card["licence"] == "cc0-1.0"
    assert ModalitySpec.from_dict(json.loads(json.dumps(again.spec.to_dict()))) == again.spec
    named = PatchTokenizer(replace(CONFIG, modality="pixels", folder="pixels"))
    assert named.fingerprint == again.fingerprint != PatchTokenizer(replace(CONFIG, patch=(4, 8, 4))).fingerprint
    file = tmp_path / "card" / "tokenizer.json"
    file.write_text(file.read_text().replace('"patch": [\n      4', '"patch": [\n      2'))
    with pytest.raises(ValueError, match="tokenizer.json: found fingerprint"):
        load_tokenizer(tmp_path / "card")


def test_what_cannot_be_cut_is_one_error():
    with pytest.raises(ValueError, match="do not fill a video"):
        replace(CONFIG, patch=(3, 4, 4))
    with pytest.raises(ValueError, match="clip clip_000"):
        PatchTokenizer(replace(CONFIG, height=32)).encode([invented_clip(0)])
    with pytest.raises(ValueError, match="wanted uint8"):
        PatchTokenizer(CONFIG).decode(np.zeros((1, 32, 384), np.int32))
    with pytest.raises(ValueError, match="`patch_shape` is '2x4'"):
        ModalitySpec.from_dict({**PIXELS.to_dict(), "patch_shape": "2x4"})
    assert PatchTokenizer(CONFIG).encode([]).shape == (0, 32, 384)
    for wrong in ({"patch_shape": ()}, {"vocab_size": 3}, {"kind": "grid", "vocab_size": 3}):
        with pytest.raises(ValueError, match="rgb_patches"):
            replace(PIXELS, **wrong)


def test_clips_of_another_rate_are_one_error(world):
    """As many samples of twice the time would become ids, and mean another motion."""
    clip = invented_clip(0)
    slow = {name: replace(stream, times_s=2 * stream.times_s) for name, stream in clip.streams.items()}
    for folder in ("rgb_patches", "rgb", "depth", "cam"):
        tokenizer = load_tokenizer(world / "tokenizers" / folder)
        tokenizer.encode([clip])
        with pytest.raises(ValueError, match=r"clip clip_000.*: \w+ has (4|15) samples a second, .* wants (8|30)"):
            tokenizer.encode([replace(clip, streams=slow)])


MOTION = PatchesConfig(num_frames=9, height=64, width=64, rate_hz=8.0, patch=(1, 8, 8), shows="motion")


def sliding_clip(per_frame):
    """A smooth random picture that moves by so many pixels (right, down) from frame to frame."""
    rng, size = np.random.default_rng(0), 200
    spectrum = np.fft.rfft2(rng.normal(size=(size, size, 3)), axes=(0, 1))
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    spectrum *= np.exp(-((x**2 + y**2) * 40**2) / 8)[..., None]
    frames = []
    for frame in range(MOTION.num_frames):
        shift = np.exp(-2j * np.pi * frame * (per_frame[0] * x + per_frame[1] * y))[..., None]
        frames.append(np.fft.irfft2(spectrum * shift, (size, size), axes=(0, 1))[60:124, 60:124])
    video = np.stack(frames)
    video = np.uint8(255 * (video - video.min()) / np.ptp(video))
    times_s = np.arange(len(video)) / 8
    stream = Stream(video, np.ones(len(video), bool), times_s, "uint8")
    return AlignedClip("slides", {"rgb": stream}, None, Provenance("d", "r"))


@pytest.mark.parametrize("per_frame", [(0.0, 0.0), (0.5, -0.3), (-3.0, 2.0), (6.5, 4.0)])
def test_motion_is_how_far_the_picture_moved(per_frame):
    tokenizer, clip = PatchTokenizer(MOTION), sliding_clip(per_frame)
    values_BLP = tokenizer.encode([clip])
    assert values_BLP.dtype == np.uint8 and values_BLP.shape == (1, 8, 8 * 8 * 2)
    motion, is_valid = tokenizer.decode(values_BLP)
    assert motion.shape == (1, 8, 8, 8, 2) and is_valid.all()
    inside = motion[0, :, 2:6, 2:6] * 64
    assert np.abs(np.median(inside, axis=(0, 1, 2)) - per_frame).max() < 0.15
    if any(per_frame):
        assert tokenizer.evaluate([clip])["unexplained_change"] < 0.35
        mirror = tokenizer.decode(tokenizer.encode([mirrored(clip)]))[0] * [-1, 1]
        assert np.abs(np.median(mirror[0, :, 2:6, 2:6] * 64, axis=(0, 1, 2)) - per_frame).max() < 0.15
    else:
        assert (values_BLP == 128).all()


def test_motion_has_a_card_of_its_own(tmp_path):
    PatchTokenizer(MOTION).save(tmp_path / "motion")
    again = load_tokenizer(tmp_path / "motion")
    assert again.spec.grid.shape == (8, 1, 1) and again.spec.patch_shape == (1, 8, 8, 2)
    assert again.fingerprint != PatchTokenizer(replace(MOTION, shows="pixels")).fingerprint
    grey = sliding_clip((0, 0))
    grey.streams["rgb"].values[:] = 90  # nothing to follow
    assert (again.encode([grey]) == 128).all()
    with pytest.raises(ValueError, match="patch must begin with 1"):
        replace(MOTION, patch=(3, 8, 8))


def test_a_model_without_tokens_of_pictures_is_shown_all_their_patches():
    ids = ModalitySpec("tok_rgb", "grid", "rgb", PIXELS.grid, 9, "rgb")
    motion = PatchTokenizer(replace(MOTION, modality="rgb_motion", folder="rgb_motion")).spec

    def shown(word, *specs):
        checkpoint = Checkpoint(Path(), None, SimpleNamespace(specs=specs), {})
        return [spec.name for spec in checkpoint.inputs(word)]

    assert shown("rgb", PIXELS, motion) == ["rgb_patches", "rgb_motion"]
    assert shown("rgb", PIXELS, motion, ids) == ["rgb_patches", "rgb_motion", "tok_rgb"]
    assert shown("rgb_motion", PIXELS, motion) == ["rgb_motion"] and shown("tok_rgb", PIXELS, ids) == ["tok_rgb"]


def test_perception_of_ids_leaves_pixels_out():
    ids = ModalitySpec("tok_rgb", "grid", "rgb", PIXELS.grid, 9, "rgb")
    both = tuple(spec.to_dict() for spec in (PIXELS, ids))
    assert perceived_specs(CodesConfig(width=4, modality_specs=both)) == (ids,)
    with pytest.raises(ValueError, match="rgb_patches are pixels"):
        perceived_specs(CodesConfig(width=4, modality_specs=both, modalities=("rgb_patches",)))


# On disk


def test_stored_pixels_come_back_and_carry_their_fingerprint(world):
    tokens = TokenSet(shards(world), [PIXELS])
    for index in range(len(tokens)):
        assert np.array_equal(
            tokens[index].tokens["rgb_patches"], PatchTokenizer(CONFIG).encode([invented_clip(index)])[0]
        )
    other = PatchTokenizer(replace(CONFIG, patch=(4, 8, 4))).spec
    with pytest.raises(TokenizerMismatch, match="rgb_patches"):
        TokenSet(shards(world), [other])
    # The same cutting of slower pictures shows other motion.
    with pytest.raises(ValueError, match="card.json tells rate_hz 8.0, but rgb_patches has 4.0"):
        TokenSet(shards(world), [replace(PIXELS, rate_hz=4.0)])


@pytest.mark.parametrize(
    "values", [np.zeros((32, 384), np.int32), np.zeros((32, 383), np.uint8), np.zeros((384, 32), np.uint8)]
)
def test_wrong_values_on_disk_are_one_error_that_names_the_file(tmp_path, values):
    with ShardWriter(tmp_path, "tiny", {"rgb_patches": "npy"}) as writer:
        writer.write("clip_0", {"rgb_patches": encode_array(values)})
        writer.card("rgb_patches", PIXELS.to_dict())
    with pytest.raises(ValueError, match=r"shard-000000.tar.*clip_0.*wanted uint8 \(32, 384\)"):
        TokenSet(f"{tmp_path}/[rgb_patches]/tiny/shard-000000.tar", [PIXELS])[0]


def test_pixels_join_tokens_that_are_there_and_the_report_keeps_both(world, tmp_path):
    common = {
        "clips": str(world / "clips" / "val"),
        "output": str(tmp_path),
        "tokenizers_root": str(world / "tokenizers"),
    }
    both = {"tok_depth": "depth", "rgb_patches": "rgb_patches"}
    (whole,) = tokenize(TokenizeConfig(**{**common, "output": str(tmp_path / "whole")}, tokenizers=both))
    for name in both:
        tokenize(TokenizeConfig(**common, tokenizers={name: both[name]}))
    (found,) = tokenize(TokenizeConfig(**common, tokenizers=both))
    assert (found.modalities, found.round_trip) == (whole.modalities, whole.round_trip) and found.clips_per_s is None
    assert tokenize(TokenizeConfig(**common, tokenizers={"tok_depth": "depth"}))[0].num_clips == 4


def test_tokenizing_goes_on_where_it_was_killed(world, tmp_path, monkeypatch):
    common = {"clips": str(world / "clips" / "train"), "tokenizers_root": str(world / "tokenizers"), "batch_size": 1}
    config = TokenizeConfig(
        output=str(tmp_path / "tokens"), tokenizers={"rgb_patches": "rgb_patches"}, num_workers=0, **common
    )
    encode, seen = PatchTokenizer.encode, []

    def dies(self, clips):
        seen.append(clips[0].key)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return encode(self, clips)

    monkeypatch.setattr(PatchTokenizer, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        tokenize(config)
    monkeypatch.setattr(PatchTokenizer, "encode", encode)
    tokenize(replace(config, num_check_clips=0))
    tar = "rgb_patches/tiny/shard-000000.tar"
    assert (tmp_path / "tokens" / tar).read_bytes() == (world / "all" / "train" / tar).read_bytes()


# Maskings and batches


def test_pixels_are_drawn_as_inputs_and_never_as_targets(loading):
    config, specs = loading
    masking, clip = UnifiedMasking(specs, config.datasets["tiny"]), None
    tokens = {spec.name: np.zeros(spec.num_tokens, np.int32) for spec in specs[1:]}
    values = np.random.default_rng(0).integers(0, 256, (32, 384)).astype(np.uint8)
    counts = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clip = masking(TokenClip("clip", tokens | {"rgb_patches": values}), rng)
        positions = clip.input_positions.get("rgb_patches", np.zeros(0, int))
        assert "rgb_patches" not in clip.target_ids
        assert np.array_equal(clip.input_ids.get("rgb_patches", values[:0]), values[positions])
        assert masking.sizes(NAMES, np.random.default_rng(seed)) == (
            sum(map(len, clip.input_ids.values())), sum(map(len, clip.target_ids.values())), (len(positions),)
        )  # fmt: skip
        counts.append(len(positions))
    assert 32 in counts and len({*counts}) > 5


def test_pixels_as_a_target_are_one_error(loading):
    specs = loading[1]
    given = ModalityAlphas(input_alphas=[1.0], target_alphas=[1.0])
    see = {"see": TransferConfig(weight=1.0, inputs=["tok_rgb"], targets=["rgb_patches"])}
    budgets = {"max_input_tokens": 9, "max_target_tokens": 9}
    mixture = {"tok_rgb": given}
    for config in (
        MaskingConfig(alphas=AlphasConfig(alphas_mixture={"rgb_patches": given}), **budgets),
        MaskingConfig(alphas=AlphasConfig(transfers=see), **budgets),
        MaskingConfig(alphas=AlphasConfig(alphas_mixture=mixture, always_target=["rgb_patches"]), **budgets),
        MaskingConfig(alphas=AlphasConfig(alphas_mixture=mixture), out_domains=["rgb_patches"], **budgets),
    ):
        with pytest.raises(ValueError, match="rgb_patches is a target, but patches are input only"):
            UnifiedMasking(specs, config)
    with pytest.raises(ValueError, match="input only"):
        TransferMasking(specs, ["tok_rgb"], ["rgb_patches"])


def test_streaming_and_single_files_give_the_same_clips(world, loading, tmp_path):
    config, specs = loading
    streamed = next(iter(TokenLoader(replace(config, access="streaming"), specs, batch_size=3, seed=5).batches(0)))
    indexed = next(iter(TokenLoader(config, specs, batch_size=3, seed=5).batches(0)))
    assert streamed.patch_counts[0] and same(streamed, indexed)
    common = {"clips": str(world / "clips" / "train"), "tokenizers_root": str(world / "tokenizers")}
    tokenize(TokenizeConfig(output=str(tmp_path), tokenizers={"rgb_patches": "rgb_patches"}, layout="files", **common))
    files, tars = TokenSet(f"{tmp_path}/rgb_patches/tiny/*.npy", [PIXELS]), TokenSet(shards(world), [PIXELS])
    assert len(files) == len(tars)
    for index in range(len(tars)):
        assert np.array_equal(files[index].tokens["rgb_patches"], tars[index].tokens["rgb_patches"])


@pytest.mark.parametrize("batch_tokens", [None, 90])
def test_batches_resume_and_only_drawn_pixels_travel(loading, batch_tokens):
    config, specs = loading
    settings = {"batch_size": 3, "seed": 5, "batch_tokens": batch_tokens}
    whole = list(islice(TokenLoader(config, specs, **settings).batches(0), 12))
    consumed = sum(batch.num_clips for batch in whole[:5])
    resumed = islice(TokenLoader(config, specs, **settings).batches(consumed), 7)
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    workers = islice(TokenLoader(config, specs, **settings, num_workers=2).batches(0), 12)
    assert all(same(a, b) for a, b in zip(whole, workers, strict=True))
    for batch in whole:
        (values_QP,), (rows_Q,), (count,) = batch.patch_values, batch.patch_rows, batch.patch_counts
        assert values_QP.dtype == torch.uint8 and rows_Q.dtype == torch.int32 and len(rows_Q) == len(values_QP)
        assert (batch.input_modality[rows_Q[:count].long()] == 0).all() and (batch.input_modality == 0).sum() == count
        assert batch.input_ids[rows_Q[:count].long()].tolist() == list(range(count))
        without = replace(batch, patch_values=(), patch_rows=(), patch_counts=())
        assert batch.transfer_bytes - without.transfer_bytes == len(rows_Q) * (384 + 4)
        assert batch_tokens or len(rows_Q) == count
    if batch_tokens:
        assert len({batch.patch_values[0].shape for batch in whole}) == 1
        assert all((batch.patch_rows[0][batch.patch_counts[0] :] == len(batch.input_ids)).all() for batch in whole)


def test_more_pixels_than_a_fixed_shape_holds_are_left_out_and_counted(loading):
    specs = loading[1]
    tight = BatchShape(200, 200, 20, num_patches=(4,))
    masking = TransferMasking(specs, ["rgb_patches"], ["tok_depth"])
    tokens = {spec.name: np.zeros(spec.num_tokens, np.int32) for spec in specs[1:]}
    clip = masking(TokenClip("a", tokens | {"rgb_patches": np.zeros((32, 384), np.uint8)}), np.random.default_rng(0))
    size = ClipSize(32, len(clip.target_ids["tok_depth"]), 32, len(clip.target_ids["tok_depth"]), (32,))
    fitted, trimmed = fit_clips([clip, clip], Run(0, (size, size)), tight, specs, 0)
    assert trimmed == 60 and [len(part.input_ids["rgb_patches"]) for part in fitted] == [2, 2]
    assert collate(fitted, specs, shape=tight).patch_counts == (4,)


# The model


def dense_encoder_input(model, clips, specs):
    """Embeddings of clips' inputs row by row, by the definition."""
    rows, tables = [], model.state_dict()
    first = np.cumsum([0, *(spec.vocab_size for spec in specs)])
    for clip in clips:
        for number, spec in enumerate(specs):
            for value, position in zip(
                clip.input_ids.get(spec.name, ()), clip.input_positions.get(spec.name, ()), strict=True
            ):
                row = torch.zeros(1, model.config.dim) + model.positions(
                    torch.tensor([position]), torch.tensor([number])
                )
                if spec.kind == "patches":
                    pixels = (torch.from_numpy(value).double() - 127.5) / 63.75
                    weight, bias = (tables[f"encoder_embeddings.patches.{spec.name}.{k}"] for k in ("weight", "bias"))
                    row = row + (weight.double() @ pixels + bias).float()
                else:
                    row = row + tables["encoder_embeddings.token_table"][first[number] + value]
                rows.append(row)
    return torch.cat(rows)


def masked(loading, count=4):
    config, specs = loading
    masking, tokens = UnifiedMasking(specs, config.datasets["tiny"]), TokenSet(config.datasets["tiny"].shards, specs)
    return [masking(tokens[number], np.random.default_rng(number)) for number in range(count)]


@pytest.mark.parametrize("num_registers", [0, 3])
def test_values_land_at_their_rows(loading, num_registers):
    specs, clips = loading[1], masked(loading)
    model = fresh(specs, num_registers=num_registers)
    batch = collate(clips, specs, num_registers)
    found = model.encoder_output(batch, layer=0)[batch.input_modality != len(specs)]
    torch.testing.assert_close(found, dense_encoder_input(model, clips, specs), atol=1e-5, rtol=1e-5)


def test_only_shown_pixels_matter_and_the_embedding_learns(loading):
    specs, clips = loading[1], masked(loading)
    assert any(0 < len(clip.input_ids.get("rgb_patches", ())) < 32 for clip in clips)
    model, batch = fresh(specs), collate(clips, specs)
    output = model(batch)
    output.sums.sum().backward()
    assert output.counts[0] == 0 and output.sums[0] == 0
    embedding = model.encoder_embeddings.patches["rgb_patches"]
    assert embedding.weight.grad.abs().sum() > 0 and embedding.bias.grad.abs().sum() > 0
    (values,) = batch.patch_values
    changed = replace(batch, patch_values=(255 - values,))
    assert not torch.allclose(model(changed).sums, output.sums)
    # Of a fixed shape, filler and tail change nothing, neither in the losses nor in the gradients.
    shape = BatchShape(len(batch.input_ids) + 5, len(batch.target_ids) + 2, 9, num_patches=(len(values) + 7,))
    padded_model = fresh(specs)
    padded = padded_model(collate(clips, specs, shape=shape))
    padded.sums.sum().backward()
    torch.testing.assert_close(padded.sums, output.sums, atol=1e-5, rtol=1e-5)
    for (name, one), other in zip(model.named_parameters(), padded_model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_a_batch_without_pixels_gives_their_embedding_a_gradient_of_zero(loading):
    specs = loading[1]
    clips = [replace(clip, input_ids={}, input_positions={}) for clip in masked(loading)]
    model = fresh(specs)
    model(collate(clips, specs)).sums.sum().backward()
    assert (model.encoder_embeddings.patches["rgb_patches"].weight.grad == 0).all()


def test_weights_go_to_disk_and_a_model_without_pixels_learns_them(loading, tmp_path):
    specs = loading[1]
    model = fresh(specs)
    save_model(model, tmp_path / "pixels")
    again, batch = load_model(tmp_path / "pixels"), collate(masked(loading), specs)
    assert again.specs == specs and torch.equal(again(batch).sums, model.eval()(batch).sums)
    save_model(fresh(specs[1:]), tmp_path / "tokens")
    report = load_weights(model, tmp_path / "tokens", policy="partial")
    new = ["encoder_embeddings.patches.rgb_patches.bias", "encoder_embeddings.patches.rgb_patches.weight"]
    assert sorted(report.fresh) == [*new, "positions.modality_table[rgb_patches]"] and not report.mismatched
    other = (PatchTokenizer(replace(CONFIG, patch=(4, 8, 4))).spec, *specs[1:])
    report = load_weights(fresh(other), tmp_path / "pixels", policy="partial")
    assert len(report.mismatched) == 3 and all("tokenizer" in line for line in report.mismatched)


def test_costs_count_the_embedding_of_pixels(loading, world, tmp_path):
    specs, clips = loading[1], masked(loading)
    batch, model = collate(clips, specs), model_without_weights(SIZES, specs)
    rows, dim = batch.patch_counts[0], SIZES.dim
    without = replace(batch, patch_counts=(0,))
    flops = ModelFlops(model)
    assert flops.forward(batch) - flops.forward(without) == 2 * rows * dim * 384
    assert flops.training(batch) - flops.training(without) == 4 * rows * dim * 384

    def kept(patches):
        rows = ClipRows(64, {"tok_depth": 8}, patches)
        config = from_plain(PretrainConfig, pretraining(Path("world"), Path("run"))).training
        build = lambda size: model_without_weights(size, specs)  # noqa: E731
        return TrainingMemory(build, SIZES, rows, config.optimizer, is_mixed=False).footprint(8).activations

    plan = plan_pretraining(from_plain(PretrainConfig, pretraining(world, tmp_path / "run")))
    assert not plan.problems and dict(plan.facts)["a clip"].startswith("32 input + ")
    # Values as bytes and, for the gradient of the weights, as float32.
    assert kept({"rgb_patches": 32}) - kept({}) >= 8 * 32 * 384 * 4


# Generation


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Fitted to five clips: from pixels alone to ids of depth that were thrown, which only the clip can tell."""
    output, tokens = tmp_path_factory.mktemp("runs") / "run", TokenSet(shards(world), [PIXELS])
    depth, rng = load_tokenizer(world / "tokenizers" / "depth").spec, np.random.default_rng(0)
    with ShardWriter(world / "thrown", "tiny", {"rgb_patches": "npy", "depth": "npy"}) as writer:
        for clip in (tokens[number] for number in range(len(tokens))):
            ids_L = rng.integers(0, depth.vocab_size, depth.num_tokens).astype(np.int32)
            writer.write(
                clip.key, {"rgb_patches": encode_array(clip.tokens["rgb_patches"]), "depth": encode_array(ids_L)}
            )
        for spec in (PIXELS, depth):
            writer.card(spec.folder, spec.to_dict())
    values = pretraining(world, output)
    values["data"]["datasets"]["thrown"] = {
        **values["data"]["datasets"]["tiny"], "shards": f"{world}/thrown/[depth,rgb_patches]/tiny/shard-000000.tar"
    }  # fmt: skip
    values["data"]["datasets"]["tiny"] |= {"weight": 0.0}
    pretrain(from_plain(PretrainConfig, values))
    return output / "final"


def pretraining(world, output, **settings):
    see = {"weight": 1.0, "inputs": ["rgb_patches"], "targets": ["tok_depth"]}
    mixture = {"alphas": {"transfers": {"see": see}}, "max_input_tokens": 32, "max_target_tokens": 12}
    names = {"rgb_patches": "rgb_patches", "tok_cam": "cam", "tok_depth": "depth", "tok_rgb": "rgb"}
    return {
        "output_dir": str(output),
        "model": {"dim": 24, "encoder_depth": 2, "decoder_depth": 1, "num_heads": 2},
        "tokenizers_root": str(world / "tokenizers"),
        "tokenizers": names,
        "data": {"datasets": {"tiny": {"shards": shards(world), **mixture}}},
        "training": {"num_steps": 150, "lr": 4e-3, "warmup": 5, "batch_size": 5, "device": "cpu", "num_workers": 0},
        **settings,
    }


def test_depth_from_pixels_overfits_a_tiny_set(world, trained):
    checkpoint = load_checkpoint(trained, device="cpu")
    clips = [invented_clip(number) for number in range(5)]
    prompts = checkpoint.tokenize(clips, ["rgb_patches"])
    truth = TokenSet(f"{world}/thrown/[depth]/tiny/shard-000000.tar", [checkpoint.spec("depth")])
    made = checkpoint.sampler.generate(prompts, [SamplingConfig().plan("tok_depth")], [0] * 5)
    right = [np.mean(clip.tokens["tok_depth"] == truth[n].tokens["tok_depth"]) for n, clip in enumerate(made)]
    assert np.mean(right) > 0.95
    shown = [(a.tokens["rgb_patches"], b.tokens["rgb_patches"]) for a, b in zip(made, prompts, strict=True)]
    assert all(np.array_equal(*pair) for pair in shown)


@pytest.mark.parametrize("scheme", ["roar", "maskgit", "autoregressive"])
def test_a_clip_is_the_same_in_any_batch_and_on_the_way_without_questions(world, loading, scheme):
    specs = loading[1]
    tokens = TokenSet(shards(world), specs)
    prompts = [replace(tokens[n], tokens={k: tokens[n].tokens[k] for k in NAMES[:2]}) for n in (0, 1, 0)]
    model = fresh(specs).eval()
    plans = [SamplingConfig(scheme=scheme, num_steps=3, guidance=2.0).plan(name) for name in ("tok_depth", "tok_rgb")]
    together = Sampler(model).generate(prompts, plans, [0, 1, 0])
    ahead = Sampler(model, asks=False, context_bytes=1 << 20)
    for row, prompt in enumerate(prompts):
        for sampler in (Sampler(model), ahead):
            (alone,) = sampler.generate([prompt], plans, [[0, 1, 0][row]])
            for name in ("tok_depth", "tok_rgb"):
                assert np.array_equal(alone.tokens[name], together[row].tokens[name])
    assert np.array_equal(together[0].tokens["tok_depth"], together[2].tokens["tok_depth"])
    # Two at once on one sampler, step by step.
    shared, ends = Sampler(model), [None, None]
    runs = [shared.iterate([prompts[row]], plans[:1], [row]) for row in (0, 1)]
    for steps in zip(*runs, strict=True):
        ends = [step.tokens[0] for step in steps]
    assert all(np.array_equal(end, together[row].tokens["tok_depth"]) for row, end in enumerate(ends))
    # Encoder outputs kept between calls are those of the same pixels, not of the same lines.
    (other,) = ahead.generate([prompts[1]], plans, [0])
    (wanted,) = Sampler(model).generate([prompts[1]], plans, [0])
    assert all(np.array_equal(other.tokens[name], wanted.tokens[name]) for name in ("tok_depth", "tok_rgb"))


def test_pixels_are_no_target_of_generation(trained, loading):
    with pytest.raises(ValueError, match="rgb_patches.*input only"):
        Sampler(fresh(loading[1])).generate([], [SamplingConfig().plan("rgb_patches")], [])
    with pytest.raises(ValueError, match="rgb_patches is input only"):
        Request(targets=("rgb_patches",)).specs(load_checkpoint(trained, device="cpu"))


def test_what_is_shown_of_a_video_can_be_chosen_and_its_pixels_never_tell_the_answer(trained):
    checkpoint, clip = load_checkpoint(trained, device="cpu"), invented_clip(0)
    shown = {
        None: ("tok_cam", "tok_rgb", "rgb_patches"), ("rgb",): ("tok_rgb", "rgb_patches"), ("tok_rgb",): ("tok_rgb",),
        ("rgb_patches",): ("rgb_patches",),
    }  # fmt: skip
    for conditions, wanted in shown.items():
        (made,) = generate_clips(checkpoint, [clip], Request(targets=("depth",), conditions=conditions, join="none"))
        assert made.given == wanted and made.clip.depth_m.shape == (NUM_FRAMES, SIZE, SIZE)
        assert sorted(made.tokens.tokens) == sorted({*wanted, "tok_depth"} - {"rgb_patches"})
    (made,) = generate_clips(checkpoint, [clip], Request(targets=("rgb",), join="none"))
    assert made.given == ("tok_cam", "tok_depth")
    assert measure_memory(checkpoint, Request(targets=("depth",)).plans([checkpoint.spec("depth")])).per_clip > 32 * 384


def test_token_files_hold_pixels_too(world, trained, tmp_path):
    checkpoint = load_checkpoint(trained, device="cpu")
    values_BLP = PatchTokenizer(CONFIG).encode([invented_clip(0), invented_clip(1)])
    for name, values, wanted in (("one", values_BLP[1], values_BLP[1:]), ("two", values_BLP, values_BLP)):
        np.savez(tmp_path / f"{name}.npz", rgb_patches=values)
        found = list(read_prompts(str(tmp_path / f"{name}.npz"), checkpoint, Request(targets=("depth",))))
        assert np.array_equal([clip.tokens["rgb_patches"] for clip in found], wanted)
    made = generate_clips(checkpoint, found, Request(targets=("depth",), join="none"))
    assert [clip.clip.depth_m.shape for clip in made] == [(NUM_FRAMES, SIZE, SIZE)] * 2


def test_recordings_and_evaluation_take_pixels(world, trained, tmp_path):
    frames = np.concatenate([invented_clip(number).rgb for number in range(2)])
    write_video(tmp_path / "walk.mp4", frames, 8.0)
    common = {"checkpoint": str(trained), "device": "cpu", "progress": False, "targets": ("depth",)}
    config = GenerationConfig(input=str(tmp_path / "walk.mp4"), output=str(tmp_path / "made"), **common)
    manifest = json.loads(run_generation(config).read_text())
    assert manifest["clips"][0]["given"] == ["tok_rgb", "rgb_patches"]
    evaluation = {
        "checkpoints": {"run": str(trained)},
        "clips": {"root": str(world / "clips" / "val"), "dataset": "tiny"},
        "train_clips": {"root": str(world / "clips" / "train"), "dataset": "tiny"},
        "tasks": ["rgb2depth", "tok_rgb2depth", "rgb_patches2depth", "rgb_patches+cam2depth"],
        "output": str(tmp_path / "evaluation"),
        "device": "cpu",
    }
    results = run_evaluation(from_plain(EvaluationConfig, evaluation)).results
    assert [table.task for table in results.tables] == evaluation["tasks"]
    with pytest.raises(ValueError, match="rgb_patches2rgb"):
        run_evaluation(from_plain(EvaluationConfig, evaluation | {"tasks": ["rgb_patches2rgb"]}))


def test_a_run_resumes_with_pixels(world, tmp_path):
    whole, parts = (pretraining(world, tmp_path / name) for name in ("whole", "parts"))
    for config, num_steps in ((whole, 6), (parts, 3), (parts, 6)):
        config["training"] |= {"num_steps": num_steps, "warmup": 0, "checkpoint_every": 3, "schedule": "constant"}
        pretrain(from_plain(PretrainConfig, config))
    one, other = ((tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other
