"""Streaming: whole shards one after the other, yet the same clips with the same maskings, none lost, none twice."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from test_token_loader import clips_of, dataset, same
from token_shards import tiny_specs, write_tokens

from egom2p.data.clip_order import LaneOrder
from egom2p.data.shards import shard_streams
from egom2p.data.unified_datasets import DataConfig, TokenLoader

SPECS = tiny_specs()


@pytest.fixture
def config(tmp_path):
    """48 clips in 12 shards."""
    pattern = write_tokens(tmp_path, SPECS, num_clips=48, clips_per_shard=4)
    return DataConfig(datasets={"full": dataset(pattern)}, shards_per_block=1, access="streaming")


@pytest.fixture
def streamed(monkeypatch):
    """Shards that are streamed from here on, in this process."""
    paths = []
    read = shard_streams._streamed
    monkeypatch.setattr(shard_streams, "_streamed", lambda path: paths.append(path) or read(path))
    return paths


def batches(config, count, first_clip=0, batch_size=4, **settings):
    return list(
        islice(TokenLoader(config, SPECS, batch_size=batch_size, seed=5, **settings).batches(first_clip), count)
    )


@pytest.mark.parametrize(("num_lanes", "run", "num_clips"), [(1, 1, 1), (4, 3, 100), (3, 7, 5), (8, 4, 64), (5, 1, 11)])
def test_lanes_are_a_permutation_of_each_window(num_lanes, run, num_clips):
    order = LaneOrder(num_lanes=num_lanes, run=run, num_clips=num_clips)
    window = -(-num_clips // (num_lanes * run)) * num_lanes * run
    assert window >= num_clips
    for first in (0, window, 7 * window):
        found = [order.locate(index) for index in range(first, first + window)]
        assert sorted(found) == list(range(first, first + window))
        lane = [at for row, at in enumerate(found) if row // run % num_lanes == num_lanes - 1]
        assert lane == list(range(lane[0], lane[0] + len(lane)))  # a reader passes consecutive ones


def test_an_epoch_has_the_clips_and_maskings_of_the_indexed_one(config):
    indexed = replace(config, access="indexed")
    wanted = Counter(clip for batch in batches(indexed, 12) for clip in clips_of(batch))
    for lanes in (1, 2, 3):
        found = batches(replace(config, streaming_lanes=lanes), 12)
        assert Counter(clip for batch in found for clip in clips_of(batch)) == wanted


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (2, 2), (3, 1)])
def test_ranks_and_workers_lose_and_double_nothing(config, world_size, num_workers):
    count = 24 // world_size
    ranks = [
        batches(config, count, batch_size=2, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    found = Counter(clip for rank in ranks for batch in rank for clip in clips_of(batch))
    wanted = Counter(clip for batch in batches(replace(config, access="indexed"), 12) for clip in clips_of(batch))
    assert found == wanted and sum(found.values()) == 48
    pinned = replace(config, streaming_lanes=world_size * max(1, num_workers))
    whole = batches(pinned, 24, batch_size=2)  # one rank without workers, on the same lanes: the same batches in turn
    parts = [ranks[number % world_size][number // world_size] for number in range(24)]
    assert [clips_of(batch) for batch in parts] == [clips_of(batch) for batch in whole]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_is_a_seek(config, num_workers):
    whole = batches(config, 40, num_workers=num_workers)
    for first in (3, 16, 29):
        found = batches(config, 3, first_clip=4 * first, num_workers=num_workers)
        assert all(same(a, b) for a, b in zip(found, whole[first : first + 3], strict=True))


def test_each_rank_streams_its_own_shards_once(config, streamed):
    seen = []
    for rank in range(2):
        streamed.clear()
        batches(config, 6, rank=rank, world_size=2)
        assert len(streamed) == len(set(streamed))
        seen.append({path.rpartition("/")[2] for path in streamed if "/rgb/" in path})
    assert len(seen[0] | seen[1]) == 12
    assert len(seen[0] & seen[1]) <= 2  # what was read ahead


def test_mixtures_of_small_and_large_sets(config, tmp_path):
    small = write_tokens(tmp_path, SPECS[:2], dataset="small", num_clips=5, clips_per_shard=2)
    datasets = {"full": replace(config.datasets["full"], weight=3.0), "small": dataset(small)}
    mixture = replace(config, datasets=datasets, streaming_lanes=2, shards_per_block=4)
    found = batches(mixture, 14, world_size=1)  # a window: 53 clips, rounded up
    plain = TokenLoader(mixture, SPECS, batch_size=4, seed=5)
    assert all(same(a, b) for a, b in zip(found, islice(plain.batches(), 14), strict=True))
    assert sum(batch.num_clips for batch in found) == 56
    order = LaneOrder(num_lanes=2, run=4, num_clips=53)
    assert sorted(order.locate(index) for index in range(56)) == list(range(56))


def test_a_shard_that_breaks_off_or_is_another_one_is_named(config, tmp_path):
    loader = TokenLoader(config, SPECS, batch_size=4, seed=5)
    path = tmp_path / "rgb" / "tiny" / "shard-000003.tar"
    sound = path.read_bytes()
    for content in (sound[:2000], sound[:1024]):  # inside a clip, between two
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"shard-000003.tar: (cannot be streamed|clip \S+ has)"):
            list(islice(loader.batches(), 12))
    other = write_tokens(tmp_path / "other", SPECS, num_clips=4, clips_per_shard=4, dataset="other")
    path.write_bytes(Path(other.replace("[depth,rgb,smell]", "rgb").replace("*", "000000")).read_bytes())
    with pytest.raises(ValueError, match="shard-000003.tar: clip tiny_00.. has .* its stream holds no such clip"):
        list(islice(loader.batches(), 12))


def test_what_cannot_be_streamed_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="batching=tokens needs indexed"):
        TokenLoader(config, SPECS, batch_size=4, seed=5, batch_tokens=100)
    with pytest.raises(ValueError, match="choose one"):
        replace(config, in_memory=True)
    with pytest.raises(ValueError, match="streaming_lanes is positive"):
        replace(config, access="indexed", streaming_lanes=2)
    folder = tmp_path / "plain" / "rgb" / "toy"
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.zeros(24, np.int32))
    plain = replace(config, datasets={"plain": dataset(f"{tmp_path}/plain/[rgb]/toy")})
    with pytest.raises(ValueError, match="streaming reads tars"):
        TokenLoader(plain, SPECS, batch_size=4, seed=5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bucket_gives_the_same_batches_in_fewer_requests(config, tmp_path, monkeypatch):
    moto = pytest.importorskip("moto")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    wanted = batches(config, 12)
    requests = []
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="clips")
        for file in [*tmp_path.rglob("*.tar"), *tmp_path.rglob("card.json")]:
            client.upload_file(str(file), "clips", str(file.relative_to(tmp_path)))
        address = "s3://clips/[rgb,depth,smell]/tiny/shard-{000000..000011}.tar"
        remote = replace(config, datasets={"full": dataset(address)})
        TokenLoader(remote, SPECS, batch_size=4, seed=5)  # makes the index
        monkeypatch.setattr("egom2p.storage.remote._read_range", _counted(requests))
        found = batches(remote, 12)
        assert all(same(a, b) for a, b in zip(found, wanted, strict=True))
        again = batches(remote, 2, first_clip=20)
        assert all(same(a, b) for a, b in zip(again, wanted[5:7], strict=True))
    shards = [url for url in requests if url.endswith(".tar")]
    assert len(set(shards)) == 36 and len(shards) <= 36 + 3 * 4


def _counted(requests):
    from egom2p.storage import remote

    read = remote._read_range

    def counted(client, url, *rest):
        requests.append(url)
        return read(client, url, *rest)

    return counted
