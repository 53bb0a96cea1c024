"""The stream of conversations: mixing, packing, ranks, resuming. Some were defects of the published trainer."""

import json
from collections import Counter

import numpy as np
import pytest
from anytoany_toys import talk, toy_features, toy_renderer
from hypothesis import given, settings
from hypothesis import strategies as st

from egom2p.anytoany.conversations.chat import ChatConfig
from egom2p.anytoany.conversations.conversation import TemplateConfig, Templates
from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig, LanguageLoader, Mix, MixConfig
from egom2p.anytoany.conversations.datasets import CaptionsConfig
from egom2p.anytoany.conversations.packing import best_fit_decreasing, collate, even_order
from egom2p.anytoany.types import NO_LOSS
from egom2p.data.clip_order import clip_rng


def test_round_robin_by_progress_uses_every_sample_once_an_epoch():
    sizes = {"a": 7, "b": 100, "c": 3}
    mix = Mix(sizes, MixConfig(), seed=0)
    positions = [mix.locate(position) for position in range(330)]
    for epoch in range(3):
        seen = Counter((name, index) for name, _, index in positions[epoch * 110 : (epoch + 1) * 110])
        assert set(seen.values()) == {1} and len(seen) == 110
    # Progress is even: at half an epoch every data set is half through, to a sample.
    half = Counter(name for name, _, _ in positions[:55])
    assert all(abs(half[name] - size / 2) <= 1 for name, size in sizes.items())
    orders = [[index for name, _, index in positions[e * 110 : (e + 1) * 110] if name == "b"] for e in range(2)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 50), min_size=1, max_size=6), position=st.integers(0, 5000), seed=st.integers(0, 9)
)
def test_seeking_equals_walking(weights, position, seed):
    sizes = {f"d{number}": 5 + number for number in range(len(weights))}
    config = MixConfig(weights=dict(zip(sizes, weights, strict=True)))
    walked = Mix(sizes, config, seed=seed)
    position = position % 400
    for number in range(position):
        walked.locate(number)
    assert Mix(sizes, config, seed=seed).locate(position) == walked.locate(position)


def test_temperature_and_weights():
    sizes = {"small": 10, "large": 1000}
    share = {t: Mix(sizes, MixConfig(temperature=t), seed=0).counts(10000)[0] / 10000 for t in (1.0, 2.0, 1e9)}
    assert abs(share[1.0] - 10 / 1010) < 1e-3 and abs(share[2.0] - 1 / 11) < 1e-3 and abs(share[1e9] - 0.5) < 1e-3
    for weights in ({"small": 1.0}, {"small": 1.0, "large": 1.0, "x": 1.0}):
        with pytest.raises(ValueError, match="weights name"):
            Mix(sizes, MixConfig(weights=weights), seed=0)


def test_packing_wastes_at_most_two_percent():
    for seed in range(5):
        lengths = np.clip(np.random.default_rng(seed).lognormal(4.7, 0.6, 1024), 16, 512).astype(int).tolist()
        rows = best_fit_decreasing(lengths, 2048)
        assert sorted(index for row in rows for index in row) == list(range(1024))
        assert max(sum(lengths[index] for index in row) for row in rows) <= 2048
        assert 1 - sum(lengths) / (2048 * len(rows)) <= 0.02
    with pytest.raises(ValueError, match="does not fit"):
        best_fit_decreasing([5, 11], 10)


def test_even_batches_are_of_similar_length_and_alternate():
    lengths = np.random.default_rng(0).integers(10, 500, 400).tolist()
    order = even_order(lengths, 4)
    assert sorted(order) == list(range(400))
    batches = [[lengths[index] for index in order[start : start + 4]] for start in range(0, 400, 4)]
    assert np.mean([1 - sum(batch) / (4 * max(batch)) for batch in batches]) < 0.03
    means = [np.mean(batch) for batch in batches]
    assert all(max(means[start : start + 5]) - min(means[start : start + 5]) > 200 for start in range(0, 100, 5))


def test_a_batch_keeps_conversations_apart_and_labels_the_next_token():
    renderer = toy_renderer()
    ones = [renderer.render(talk(answer=answer)) for answer in ("a mug", "a red bowl", "the video")]
    batch = collate([ones[:2], ones[2:]], toy_features, pad_id=0, num_positions=100)
    assert batch.num_clips == 3 and batch.num_targets == sum(int(one.is_target.sum()) for one in ones)
    start = 0
    for segment, one in enumerate(ones[:2]):
        rows = slice(start, start + len(one.ids))
        assert batch.ids[0, rows].tolist() == one.ids.tolist()
        assert batch.positions[0, rows].tolist() == list(range(len(one.ids)))
        assert set(batch.segments[0, rows].tolist()) == {segment}
        wanted = [int(i) if t else NO_LOSS for i, t in zip(one.ids[1:], one.is_target[1:], strict=True)] + [NO_LOSS]
        assert batch.labels[0, rows].tolist() == wanted
        start += len(one.ids)
    assert (batch.segments[0, start:] == -1).all() and (batch.labels[0, start:] == NO_LOSS).all()
    assert batch.feature_offsets.tolist() == [0, 4, 8, 12] and batch.media_rows.tolist() == [0, 0, 1]


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    rng = np.random.default_rng(0)
    for name, count in (("a", 60), ("b", 23)):
        rows = [{"clip": f"{name}{n}", "description": "red " * int(rng.integers(1, 20))} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def loader(
    captions, rank=0, world_size=1, *, batch_size=2, max_length=110, batching="packed", seed=0, nested=(), **more
):
    datasets = {name: CaptionsConfig(files=(str(captions / f"{name}.jsonl"),), ref="clip") for name in "ab"}
    config = LanguageDataConfig(
        datasets=datasets, chat=ChatConfig(max_length=max_length), row_tokens=128, window=83, batching=batching, **more
    )
    ranks = {"rank": rank, "world_size": world_size}
    return LanguageLoader(
        config,
        toy_renderer(max_length=max_length),
        toy_features,
        batch_size=batch_size,
        seed=seed,
        nested=nested,
        **ranks,
    )


def rows_of(plans):
    return [tuple(tuple(one.ids.tolist()) + one.spans for one in plan.conversations) for plan in plans]


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_all_ranks_together_see_every_conversation_once_whatever_their_number(captions):
    """With an even number of GPUs the published trainer showed half of its ranks one sample for a whole epoch."""
    whole = loader(captions)
    rows = whole.window_rows(0)
    refs = Counter(span.media.ref for row in rows for one in row.conversations for span in one.spans)
    assert set(refs.values()) == {1} and len(refs) == 83
    wanted = [batch.ids.tolist() for batch in take(whole.batches(0), 16)]
    for world_size in (2, 8):
        shares = [loader(captions, rank, world_size).batches(0) for rank in range(world_size)]
        mixed = [next(shares[number % world_size]).ids.tolist() for number in range(16)]
        assert mixed == wanted
        alone = [loader(captions, rank, world_size) for rank in range(world_size)]
        distinct = [{str(b.ids.tolist()) for b in take(one.batches(0), 3)} for one in alone]
        assert all(len(found) == 3 for found in distinct)


def test_templates_do_not_depend_on_the_number_of_ranks_and_are_drawn_evenly(captions):
    templates = Templates(TemplateConfig(file="caption_video"))
    counts = Counter()
    one = loader(captions)
    for position in range(83 * 10):
        name, before, index = one.mix.locate(position)
        counts[templates.draw(clip_rng(0, f"template of {name}", before))] += 1
    expected = 83 * 10 / len(templates)
    chi_square = sum((counts[text] - expected) ** 2 / expected for text in templates.texts)
    assert len(counts) == len(templates) and chi_square < 45  # 21 degrees of freedom, p = 0.002


@pytest.mark.parametrize("batching", ["packed", "even", "single"])
def test_resuming_is_a_seek(captions, batching):
    one = loader(captions, batching=batching)
    batches = take(one.batches(0), 24)
    consumed = 0
    for number, batch in enumerate(batches):
        if number % 5:
            consumed += batch.num_clips
            continue
        again = loader(captions, batching=batching).batches(consumed)
        assert next(again).ids.tolist() == batch.ids.tolist(), number
        consumed += batch.num_clips


@pytest.mark.parametrize("batching", ["packed", "even"])
def test_workers_change_nothing(captions, batching):
    options = {"batching": batching, "max_length": 40}
    alone, shared = loader(captions, **options), loader(captions, num_workers=2, **options)
    consumed = 0
    for batch, other in zip(take(alone.batches(0), 30), take(shared.batches(0), 30), strict=True):
        assert batch.ids.tolist() == other.ids.tolist() and batch.num_clips == other.num_clips
        consumed += batch.num_clips
    assert consumed > 2 * 83 and alone.dropped == shared.dropped  # over several windows
    again = loader(captions, num_workers=1, **options).batches(consumed)
    assert next(again).ids.tolist() == take(alone.batches(consumed), 1)[0].ids.tolist()


def test_a_position_inside_a_row_cannot_be_resumed_from(captions):
    one = loader(captions)
    starts = np.cumsum([0, *(row.num_consumed for row in one.window_rows(0))])
    inside = next(position for position in range(83) if position not in starts)
    with pytest.raises(ValueError, match="no row begins there"):
        next(loader(captions).rows(inside))


def test_conversations_that_are_too_long_shift_nobodys_share(captions):
    """Uneven drops made ranks wait for each other for ever; here a drop is part of some row of all ranks' stream."""
    short = {"max_length": 40}
    one = loader(captions, **short)
    rows = one.window_rows(0)
    assert one.dropped["a", "too long"] > 5 and sum(row.num_consumed for row in rows) == 83
    for world_size in (2,):
        shares = [take(loader(captions, rank, world_size, **short).batches(0), 15) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        whole = take(loader(captions, **short).batches(0), 15 * world_size)
        flat = [shares[number % world_size][number // world_size] for number in range(15 * world_size)]
        assert [b.ids.tolist() for b in flat] == [b.ids.tolist() for b in whole]
        assert [b.num_clips for b in flat] == [b.num_clips for b in whole]
    with pytest.raises(ValueError, match="left out"):
        loader(captions, max_length=5).window_rows(0)


def test_the_order_is_shuffled_and_the_seed_is_heard(captions):
    """`shuffle: True` of the published config was ignored."""
    firsts = [rows_of(loader(captions, seed=seed).window_rows(0)) for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2]
    assert rows_of(loader(captions).window_rows(0)) != rows_of(loader(captions).window_rows(1))


def test_each_conversation_draws_its_number_of_perception_tokens_from_the_stream_alone(captions):
    """Nested counts were a setting that no training drew from."""
    nested = [toy_renderer(span=span, max_length=110) for span in (1, 2)]
    whole = loader(captions, nested=nested)
    lengths = Counter(
        span.length
        for number in range(4)
        for row in whole.window_rows(number)
        for one in row.conversations
        for span in one.spans
    )
    assert set(lengths) == {1, 2, 3} and min(lengths.values()) > 0.2 * sum(lengths.values())
    assert rows_of(loader(captions, nested=nested).window_rows(3)) == rows_of(whole.window_rows(3))
    wanted = [batch.ids.tolist() for batch in take(whole.batches(0), 4)]
    shares = [loader(captions, rank, 2, nested=nested).batches(0) for rank in range(2)]
    assert [next(shares[number % 2]).ids.tolist() for number in range(4)] == wanted
