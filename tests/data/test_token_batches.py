"""Batches of a fixed shape: full, resumable by a clip number, the same on any number of ranks, blind to their tail."""

from dataclasses import fields
from itertools import islice

import numpy as np
import pytest
import torch
from token_shards import random_clip, text_spec, tiny_specs, write_tokens

from egom2p.config import load_config
from egom2p.data.clip_order import MixtureOrder, clip_rng
from egom2p.data.collate import BatchShape, collate
from egom2p.data.masking import AlphasConfig, MaskingConfig, ModalityAlphas, TransferConfig, UnifiedMasking
from egom2p.data.modality_info import default_specs
from egom2p.data.shards.shard_files import split_folders
from egom2p.data.token_batches import ClipSize, choose_shape, fit_clips, runs
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, TokenLoader
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.training.tasks.pretrain_config import PretrainConfig

SPECS = tiny_specs()
TEXTUAL = (*SPECS, text_spec())
CAPACITY = 120


def dataset(pattern, specs=SPECS, **settings):
    both = ModalityAlphas(input_alphas=[0.1, 1.0], target_alphas=[0.1, 1.0])
    transfers = {"see": TransferConfig(weight=1.0, inputs=["tok_rgb"], targets=["tok_depth"], positions_per_input=9)}
    alphas = AlphasConfig(alphas_mixture={spec.name: both for spec in specs}, transfers=transfers)
    settings = {"max_input_tokens": 10, "min_target_tokens": 3, "max_target_tokens": 12, **settings}
    return DatasetConfig(shards=pattern, alphas=alphas, **settings)


@pytest.fixture(params=["grids", "texts"])
def loading(request, tmp_path):
    specs = SPECS if request.param == "grids" else TEXTUAL
    full = write_tokens(tmp_path, specs, num_clips=20)
    partial = write_tokens(tmp_path, specs[:2], dataset="partial", num_clips=9)
    datasets = {"full": dataset(full, specs, weight=2.0), "partial": dataset(partial, specs[:2], weight=1.0)}
    return DataConfig(datasets=datasets, shards_per_block=2), specs


def take(loading, count, first_clip=0, **settings):
    config, specs = loading
    settings = {"batch_size": 1, "batch_tokens": CAPACITY, "seed": 5, **settings}
    return list(islice(TokenLoader(config, specs, **settings).batches(first_clip), count))


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(one, item.name), getattr(other, item.name)) for item in fields(one))
    )


@pytest.mark.parametrize("num_registers", [0, 2])
def test_every_batch_has_the_same_shapes_and_is_full(loading, num_registers):
    batches = take(loading, 30, num_registers=num_registers)
    for item in fields(batches[0]):
        if isinstance(getattr(batches[0], item.name), torch.Tensor):
            assert len({getattr(batch, item.name).shape for batch in batches}) == 1, item.name
    slots = len(batches[0].input_lengths)
    assert {batch.num_rows for batch in batches} == {CAPACITY + slots * num_registers}
    assert len({batch.num_clips for batch in batches}) > 1
    filled = [batch.num_tokens - batch.num_clips * num_registers for batch in batches]
    assert min(filled) >= 0.9 * CAPACITY and np.mean(filled) >= 0.98 * CAPACITY
    assert all(batch.token_budget == 22 * batch.num_clips for batch in batches)


def test_resuming_is_a_seek(loading):
    whole = take(loading, 12)
    consumed = sum(batch.num_clips for batch in whole[:5])
    assert all(same(a, b) for a, b in zip(whole[5:], take(loading, 7, first_clip=consumed), strict=True))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_ranks_and_workers_only_share_batches_out(loading, num_workers):
    expected = take(loading, 8)
    for rank in range(2):
        found = take(loading, 4, rank=rank, world_size=2, num_workers=num_workers if rank == 0 else 0)
        assert all(same(a, b) for a, b in zip(expected[rank::2], found, strict=True))


@pytest.mark.parametrize("num_registers", [0, 2])
@pytest.mark.parametrize("specs", [SPECS, TEXTUAL])
def test_neither_loss_nor_gradients_see_the_tail(specs, num_registers):
    config = ModelConfig(
        dim=12, encoder_depth=2, decoder_depth=2, num_heads=2, mlp_ratio=2.0, num_registers=num_registers
    )
    clips = masked(specs, 7)
    sides = [sum(len(ids) for clip in clips for ids in side(clip).values()) for side in (inputs_of, targets_of)]
    outputs, gradients = [], []
    for shape in (None, BatchShape(sides[0], sides[1], 7), BatchShape(sides[0] + 3, sides[1] + 5, 11)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = EgoM2P(config, tuple(specs))
        batch = collate(clips, specs, num_registers, shape=shape)
        output = model(batch)
        output.sums.sum().backward()
        assert batch.num_clips == 7 and output.counts == batch.head_counts and sum(output.counts) == sides[1]
        outputs.append(output.sums.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for sums, found in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(sums, outputs[0], atol=1e-5, rtol=1e-5)
        for name, wanted in gradients[0].items():
            torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5, msg=name)


def test_sizes_are_those_of_the_maskings():
    config = dataset("shards", input_dropout=0.0)
    masking = UnifiedMasking(SPECS, config)
    names = [spec.name for spec in SPECS]
    for index, clip in enumerate(masked(SPECS, 200, config)):
        rows = tuple(sum(len(ids) for ids in side(clip).values()) for side in (inputs_of, targets_of))
        assert masking.sizes(names, clip_rng(0, "mask", index)) == (*rows, ())
    assert UnifiedMasking(SPECS, dataset("shards", input_dropout=0.1)).sizes(names, clip_rng(0, "mask", 0)) is None


def test_leaving_out_keeps_rows_together_and_texts_whole():
    clips = masked(TEXTUAL, 12)
    sizes = tuple(size_of(clip) for clip in clips)
    run = next(runs(lambda index: sizes[index], BatchShape(60, 60, 12), 0))
    fitted, num_left_out = fit_clips(clips[: len(run.sizes)], run, BatchShape(60, 60, 12), TEXTUAL, seed=0)
    before = sum(size.inputs + size.targets for size in run.sizes)
    assert before - num_left_out == sum(size_of(clip).inputs + size_of(clip).targets for clip in fitted) <= 120
    assert num_left_out > 0
    for clip, whole in zip(fitted, clips[: len(fitted)], strict=True):
        for ids, positions, full_ids, full_positions in (
            (clip.input_ids, clip.input_positions, whole.input_ids, whole.input_positions),
            (clip.target_ids, clip.target_positions, whole.target_ids, whole.target_positions),
        ):
            for name in ids:
                pairs = set(zip(full_positions[name].tolist(), full_ids[name].tolist(), strict=True))
                assert set(zip(positions[name].tolist(), ids[name].tolist(), strict=True)) <= pairs
                assert (np.diff(positions[name]) > 0).all()
        assert len(clip.target_ids.get("tok_text", ())) == len(whole.target_ids.get("tok_text", ()))
        assert clip.query_ids.keys() == clip.target_ids.keys()


@pytest.mark.parametrize("num_tokens", [8192, 65536])
def test_the_published_mixture_fills_98_percent(num_tokens):
    """Sizes alone decide, so no token is needed: 40 batches of the released recipe's eight data sets."""
    recipe = "default/egom2p/models/main/ego-b_mod4_500b_clariden_2048_camcv_depthdenoise.yaml"
    data = load_config(PretrainConfig, recipe, ["data.tokens_root=tokens", "tokenizers_root=tokenizers"]).data
    specs = default_specs()
    mixture = MixtureOrder({name: dataset.weight for name, dataset in data.datasets.items()}, seed=0)
    maskings = {name: UnifiedMasking(specs, dataset) for name, dataset in data.datasets.items()}
    folders = {name: split_folders(dataset.shards) for name, dataset in data.datasets.items()}
    names = {name: [spec.name for spec in specs if spec.folder in found] for name, found in folders.items()}

    def size(index):
        name, _ = mixture.locate(index)
        rows = maskings[name].sizes(names[name], clip_rng(0, "masking", index))
        return ClipSize(*rows[:2], *rows[:2], rows[2])

    shape = choose_shape(size, num_tokens)
    assert shape.num_rows == num_tokens
    for run in islice(runs(size, shape, 0), 40):
        filled = min(sum(size.inputs for size in run.sizes), shape.num_inputs)
        filled += min(sum(size.targets for size in run.sizes), shape.num_targets)
        assert filled >= 0.98 * num_tokens


def test_a_clip_larger_than_the_batch_is_named(loading):
    with pytest.raises(ValueError, match=r"a batch of 15 tokens is too small: a clip of this mixture has \d\d"):
        take(loading, 1, batch_tokens=15)


def masked(specs, count, config=None):
    if config is None:
        both = ModalityAlphas(input_alphas=[0.5], target_alphas=[0.5])
        alphas = AlphasConfig(alphas_mixture={spec.name: both for spec in specs})
        config = MaskingConfig(alphas=alphas, max_input_tokens=10, max_target_tokens=12)
    masking = UnifiedMasking(specs, config)
    return [masking(random_clip(specs, clip_rng(0, "ids", i), f"c{i}"), clip_rng(0, "mask", i)) for i in range(count)]


def inputs_of(clip):
    return clip.input_ids


def targets_of(clip):
    return clip.target_ids


def size_of(clip):
    sides = (clip.input_ids, clip.target_ids)
    whole = [sum(len(ids) for ids in side.values()) for side in sides]
    free = [sum(len(ids) for name, ids in side.items() if name != "tok_text") for side in sides]
    return ClipSize(*whole, *free)
