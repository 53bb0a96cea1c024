"""The loader: the same batches for any number of workers and ranks, resuming is a seek, bad tokens are named."""

import multiprocessing
import os
import pickle
import signal
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from token_shards import random_clip, tiny_specs, write_tokens

from egom2p.config import load_config, strict
from egom2p.contracts import TokenizerMismatch
from egom2p.data.clip_order import ClipOrder, MixtureOrder
from egom2p.data.masking import AlphasConfig, ModalityAlphas, UnifiedMasking
from egom2p.data.shards.shard_files import split_folders
from egom2p.data.shards.shard_set import ShardWriter, encode_array
from egom2p.data.token_set import TokenSet
from egom2p.data.transfer_masking import TransferMasking
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, EvalLoader, TokenLoader, data_specs, fixed_batches

SPECS = tiny_specs()


def dataset(pattern, **settings):
    both = ModalityAlphas(input_alphas=[0.1, 1.0], target_alphas=[0.1, 1.0])
    alphas = AlphasConfig(alphas_mixture={spec.name: both for spec in SPECS})
    settings = {"max_input_tokens": 10, "max_target_tokens": 10, **settings}
    return DatasetConfig(shards=pattern, alphas=alphas, **settings)


@pytest.fixture
def config(tmp_path):
    full = write_tokens(tmp_path, SPECS, num_clips=20)
    partial = write_tokens(tmp_path, SPECS[:2], dataset="partial", num_clips=9, suffix="npz")
    datasets = {"full": dataset(full, weight=2.0), "partial": dataset(partial, weight=1.0)}
    return DataConfig(datasets=datasets, shards_per_block=2)


def take(config, count, first_clip=0, **settings):
    settings = {"batch_size": 4, "seed": 5, **settings}
    return list(islice(TokenLoader(config, SPECS, **settings).batches(first_clip), count))


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(one, item.name), getattr(other, item.name)) for item in fields(one))
    )


def clips_of(batch):
    """Rows of each clip, as tuples that can be compared across batches."""
    rows = []
    for i in range(batch.num_clips):
        inputs = slice(batch.input_offsets[i], batch.input_offsets[i + 1])
        targets = slice(batch.target_offsets[i], batch.target_offsets[i + 1])
        columns = [(batch.input_ids, inputs), (batch.input_position, inputs), (batch.input_modality, inputs)]
        columns += [(batch.target_ids, targets), (batch.target_position, targets), (batch.target_modality, targets)]
        rows.append(tuple(tuple(column[part].tolist()) for column, part in columns))
    return rows


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(config, num_workers):
    expected = take(config, 6)
    state = torch.random.get_rng_state()
    found = take(config, 6, num_workers=num_workers)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_reaches_the_workers_too_does_not_end_them(config, number):
    """The loop finishes its step and writes a checkpoint; for that it needs the batches that are on their way."""
    before = set(multiprocessing.active_children())
    batches = TokenLoader(config, SPECS, batch_size=4, seed=5, num_workers=2).batches()
    found = [next(batches)]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:  # possibly at their first breath: signals wait until they know what to do with them
        os.kill(worker.pid, number)
    found += islice(batches, 20)
    batches.close()
    assert len(found) == 21
    assert all(same(a, b) for a, b in zip(take(config, 21), found, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_each_global_batch(config, world_size):
    whole = take(config, 5, batch_size=8)
    ranks = [
        take(config, 5, batch_size=8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        parts = [clips_of(rank[number]) for rank in ranks]
        interleaved = [parts[i % world_size][i // world_size] for i in range(8)]
        assert interleaved == clips_of(batch)


def test_accumulation_sees_the_same_clips(config):
    small = [clip for batch in take(config, 6, batch_size=2) for clip in clips_of(batch)]
    assert small == [clip for batch in take(config, 3, batch_size=4) for clip in clips_of(batch)]


def test_resuming_is_a_seek(config):
    whole = take(config, 40)
    for first in (4, 100):
        assert same(take(config, 1, first_clip=first)[0], whole[first // 4])
    assert not same(whole[0], take(config, 1, seed=6)[0])


def test_in_memory_is_the_same(config):
    assert all(same(a, b) for a, b in zip(take(config, 12), take(replace(config, in_memory=True), 12), strict=True))


def test_each_epoch_has_every_clip_once_in_a_new_order():
    order = ClipOrder([0, 6, 12, 15], seed=1, name="toy", shards_per_block=2)
    epochs = [[order.locate(position) for position in range(epoch * 15, epoch * 15 + 15)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert [order.locate(position) for position in (31, 2, 17)] == [epochs[2][1], epochs[0][2], epochs[1][2]]


def test_mixture_keeps_its_weights_and_every_position():
    weights = {"big": 0.9, "small": 0.097, "tiny": 0.003, "off": 0.0}
    order = MixtureOrder(weights, seed=0)
    found = [order.locate(index) for index in range(2 * 65536 + 50)]
    for name, weight in weights.items():
        positions = [position for owner, position in found if owner == name]
        assert positions == list(range(len(positions)))
        assert len(positions) == pytest.approx(weight * len(found), rel=0.01, abs=1)
    with pytest.raises(ValueError, match="one is positive"):
        MixtureOrder({"off": 0.0}, seed=0)


def test_masks_differ_between_epochs_and_absent_modalities_stay_absent(config):
    only = DataConfig(datasets={"partial": config.datasets["partial"]})
    batches = take(only, 2, batch_size=9)
    smell = [spec.name for spec in SPECS].index("tok_smell")
    for batch in batches:
        assert batch.head_counts[smell] == 0 and not (batch.input_modality == smell).any()
    assert sorted(clips_of(batches[0])) != sorted(clips_of(batches[1]))


def test_slots_are_counted_as_published(config):
    assert take(config, 1, batch_size=3)[0].token_budget == 3 * 20


def test_specs_come_from_the_cards(config, tmp_path):
    assert [spec.tokenizer_fingerprint for spec in data_specs(config)] == ["sha256:0123456789abcdef"] * 3
    assert [spec.with_fingerprint(None) for spec in data_specs(config)] == list(SPECS)
    other = write_tokens(tmp_path, SPECS, dataset="other", fingerprint="sha256:feedfeedfeedfeed")
    with pytest.raises(ValueError, match=r"tok_depth differs from .* in tokenizer_fingerprint sha256:\w+ \(there"):
        data_specs(DataConfig(datasets={**config.datasets, "other": dataset(other)}))


def test_another_tokenizer_or_vocabulary_is_refused_before_the_first_batch(config):
    for change, error, message in [
        ({"tokenizer_fingerprint": "sha256:aaaa"}, TokenizerMismatch, "sha256:0123456789abcdef.*sha256:aaaa"),
        ({"vocab_size": 12}, ValueError, "vocab_size 13, but tok_rgb has 12"),
    ]:
        specs = [replace(spec, **change) if spec.name == "tok_rgb" else spec for spec in SPECS]
        with pytest.raises(error, match=message):
            TokenLoader(config, specs, batch_size=2, seed=0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((3, 2, 4), 13, np.int32), "clip bad: ids from 13 to 13, wanted 24 ids of tok_rgb in 0 ... 12"),
        (np.full((3, 2, 4), -1, np.int64), "clip bad: ids from -1 to -1"),
        (np.zeros((3, 2, 3), np.int32), "clip bad: 18 ids"),
        (np.zeros((3, 2, 4), np.float32), "clip bad: ids are float32"),
    ],
)
def test_bad_tokens_name_shard_and_clip(tmp_path, ids, message):
    with ShardWriter(tmp_path, "toy", {"rgb": "npy"}) as writer:
        writer.write("good", {"rgb": encode_array(np.zeros((3, 2, 4), np.uint16))})
        writer.write("bad", {"rgb": encode_array(ids)})
        writer.write("of another machine", {"rgb": encode_array(np.full((3, 2, 4), 5, ">i4"))})
    tokens = TokenSet(f"{tmp_path}/[rgb]/toy/shard-*.tar", SPECS)
    assert tokens[0].tokens["tok_rgb"].dtype == np.int32
    assert (tokens[2].tokens["tok_rgb"] == 5).all()
    with pytest.raises(ValueError, match=message) as caught:
        tokens[1]
    assert "shard-000000.tar" in str(caught.value)


def test_a_clip_missing_in_one_tar_is_named_by_the_loader(config, tmp_path):
    with ShardWriter(tmp_path, "uneven", {"rgb": "npy"}) as writer:
        writer.write("a", {"rgb": encode_array(np.zeros(24, np.int32))})
        writer.write("b", {"rgb": encode_array(np.zeros(24, np.int32))})
    with ShardWriter(tmp_path, "uneven", {"depth": "npy"}) as writer:
        writer.write("a", {"depth": encode_array(np.zeros(24, np.int32))})
    uneven = DataConfig(datasets={"uneven": dataset(f"{tmp_path}/[rgb,depth]/uneven/shard-*.tar")})
    complaint = "depth/uneven/shard-000000.tar: clip b has no depth"
    with pytest.raises(ValueError, match=complaint):  # before the first batch
        TokenLoader(uneven, SPECS, batch_size=4, seed=5)
    with pytest.raises(ValueError, match=complaint):
        EvalLoader(
            uneven.datasets["uneven"].shards, SPECS, uneven.datasets["uneven"], batch_size=1, num_clips=1, seed=0
        )


def test_a_validation_set_without_targets_is_an_error_before_training(config):
    no_target = replace(config.datasets["partial"], out_domains=["tok_smell"])
    with pytest.raises(ValueError, match="no part of the mixture of maskings has a target"):
        EvalLoader(no_target.shards, SPECS, no_target, batch_size=2, num_clips=2, seed=0)


def test_other_folders_can_carry_a_modality(tmp_path):
    write_tokens(tmp_path, [replace(spec, folder=f"{spec.folder}_v2") for spec in SPECS])
    pattern = f"{tmp_path}/[rgb_v2,smell_v2]/tiny/shard-*.tar"
    names = {"tok_rgb": "rgb_v2", "tok_smell": "smell_v2"}
    assert TokenSet(pattern, SPECS, folder_names=names).modalities == ("tok_rgb", "tok_smell")
    with pytest.raises(ValueError, match="none of its folders"):
        TokenSet(pattern, SPECS)
    with pytest.raises(ValueError, match="folder_names has"):
        TokenSet(pattern, SPECS, folder_names={"tok_sound": "x"})


@pytest.mark.parametrize("world_size", [1, 3])
def test_fixed_batches_are_fixed_finite_and_shared_out(config, world_size):
    full = config.datasets["full"]
    settings = {"batch_size": 3, "num_clips": 11, "seed": 2, "world_size": world_size}
    loaders = [EvalLoader(full.shards, SPECS, full, rank=rank, **settings) for rank in range(world_size)]
    found = [clip for loader in loaders for batch in loader for clip in clips_of(batch)]
    alone = {**settings, "world_size": 1}
    whole = [clip for batch in fixed_batches(full.shards, SPECS, full, **alone) for clip in clips_of(batch)]
    assert len(whole) == 11 and sorted(found) == sorted(whole)
    assert all(same(a, b) for a, b in zip(loaders[0], loaders[0], strict=True))
    assert len(loaders[0]) == sum(1 for _ in loaders[0])


def test_fixed_batches_take_any_masking(config):
    masking = TransferMasking(SPECS, ["tok_rgb"], ["tok_smell"])
    batches = list(fixed_batches(config.datasets["full"].shards, SPECS, masking, batch_size=8, num_clips=99, seed=0))
    assert [batch.num_clips for batch in batches] == [8, 8, 4] and batches[0].input_lengths == (24,) * 8


@strict
class _Root:
    data: DataConfig


def test_quickstart_data_config(tmp_path):
    main = tmp_path / "main.yaml"
    main.write_text("defaults:\n  - /default/egom2p/data/ego/main@data: quickstart\n  - _self_\n")
    data = load_config(_Root, main, ["data.tokens_root=elsewhere"]).data
    world = data.datasets["world"]
    assert world.shards == "elsewhere/train/[rgb,depth,gaze,cam]/world/shard-*.tar"
    assert data.validation["world"].shards == "elsewhere/val/[rgb,depth,gaze,cam]/world/shard-*.tar"
    assert world.alphas.num_components == 1 and set(world.alphas.transfers) == {"rgb_to_all", "depth_to_rgb"}
    specs = load_config(
        _Root, main, ["default/egom2p/alphas_mixture/main@data.datasets.world.alphas=mix_mod4_all2all_uni"]
    )
    assert specs.data.datasets["world"].alphas.num_components == 4
    grid = {"tok_rgb": {"grid": [5, 8, 8], "vocab_size": 1000}, "tok_depth": {"grid": [5, 8, 8], "vocab_size": 125}}
    small = data_specs(replace(data, modalities={**grid, "tok_gaze": None, "tok_cam": None}))
    rng = np.random.default_rng(0)
    masking = UnifiedMasking(small, world)
    masked = [masking(random_clip(small, rng), rng) for _ in range(50)]
    assert all({"tok_gaze", "tok_cam"} <= set(clip.target_ids) for clip in masked)


def test_the_loader_travels_to_spawned_workers(config):
    loader = TokenLoader(config, SPECS, batch_size=4, seed=5)
    first = next(loader.batches())
    assert same(first, next(pickle.loads(pickle.dumps(loader)).batches()))


def test_every_data_set_keeps_its_own_limits_and_domains(config):
    """Clips of one mixture are masked as their own data set says: the two are told apart by their modalities."""
    full, partial = config.datasets["full"], config.datasets["partial"]
    datasets = {
        "full": replace(full, max_input_tokens=3, max_target_tokens=5, out_domains=["tok_smell"]),
        "partial": replace(partial, max_input_tokens=8, max_target_tokens=2, in_domains=["tok_depth"]),
    }
    mixed = replace(config, datasets=datasets)
    modality_of = {index: spec.name for index, spec in enumerate(SPECS)}
    seen = set()
    for batch in take(mixed, 20):
        for inputs, targets in zip(*_modalities_of_clips(batch), strict=True):
            if "tok_smell" in {modality_of[index] for index in targets}:
                seen.add("full")
                room = 6 - sum(modality_of[index] == "tok_smell" for index in inputs)
                assert len(inputs) == 3 and len(targets) == min(5, room)
                assert {modality_of[index] for index in targets} == {"tok_smell"}
            else:
                seen.add("partial")
                assert len(inputs) == 8 and len(targets) == 2 and {modality_of[i] for i in inputs} == {"tok_depth"}
    assert seen == {"full", "partial"}


def _modalities_of_clips(batch):
    sides = (batch.input_modality, batch.input_offsets), (batch.target_modality, batch.target_offsets)
    return [
        [modality[start:end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]
        for modality, offsets in sides
    ]


def test_what_the_data_are_is_known_and_gaps_are_told(config, tmp_path):
    loader = TokenLoader(config, SPECS, batch_size=4, seed=5)
    before, folder = loader.identity(), config.datasets["full"].shards
    assert before["full"]["clips"] == loader.num_clips["full"] and not loader.notes
    assert before == TokenLoader(config, SPECS, batch_size=2, seed=6).identity()
    first = split_folders(folder)
    removed = [sorted(Path(part).parent.glob("shard-*.tar"))[1] for part in first.values()]
    assert len(removed) > 1 and len(list(removed[0].parent.glob("shard-*.tar"))) > 2, "a gap needs neighbours"
    for file in removed:
        file.rename(file.with_suffix(".away"))
    after = TokenLoader(config, SPECS, batch_size=4, seed=5)
    assert after.identity()["full"] != before["full"] and after.identity()["partial"] == before["partial"]
    assert after.notes == [f"data set full: 1 shards are missing between others: {removed[0].name}"]
