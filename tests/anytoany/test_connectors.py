"""From perception features to perception tokens: cost, nesting, independence of neighbours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_toys import features_of, renderer_of, talks, toy_batch, toy_features, toy_model

from egom2p.anytoany.connectors import ConnectorConfig, _cell_of_each, build_connector, position_codes
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.packed_attention import packed_hidden, packed_layout
from egom2p.anytoany.perception.source import rows_of
from egom2p.anytoany.saving import load_anytoany, save_anytoany
from egom2p.anytoany.types import Media, PerceptionFeatures
from egom2p.anytoany.word_lessons import teach_words
from egom2p.config import ConfigError, from_plain

KINDS = ("global_mlp", "st_shuffle", "resampler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


def made(kind, *, width=10, out=12, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ConnectorConfig(
            kind=kind, **{"dim": 24, "num_heads": 2, "num_tokens": 4, "cell": (2, 2, 1), **settings}
        )
        return config, build_connector(config, width=width, out_width=out, num_sources=3)


def grid_features(seed=0, shape=(3, 4, 2), *, drop=0):
    rng = np.random.default_rng(seed)
    position = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)[drop:].astype(np.int16)
    return PerceptionFeatures(
        rng.normal(size=(len(position), 10)).astype(np.float32),
        position,
        rng.integers(0, 3, len(position)).astype(np.int16),
    )


def size_at_8b(kind, num_tokens, **settings):
    config = ConnectorConfig(kind=kind, num_tokens=num_tokens, **settings)
    with torch.device("meta"):
        connector = build_connector(config, width=768, out_width=4096, num_sources=4)
    return sum(parameter.numel() for parameter in connector.parameters())


def test_parameters_are_linear_in_the_number_of_tokens():
    """The published projector needs 75 M at 2 tokens and 69 G at 64."""
    sizes = [size_at_8b("resampler", count, dim=512, depth=2, num_heads=8) for count in (16, 32, 64)]
    assert sizes[2] < 20e6 and sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) == 32 * 512
    assert size_at_8b("st_shuffle", 64, dim=48, cell=(5, 4, 4)) < 20e6
    with torch.device("meta"):
        published = build_connector(
            ConnectorConfig(kind="global_mlp", num_tokens=2), width=1024, out_width=4096, num_sources=1
        )
    assert 75e6 < sum(parameter.numel() for parameter in published.parameters()) < 76e6


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_does_not_depend_on_its_neighbours(kind):
    config, connector = made(kind)
    items = [grid_features(seed, drop=seed) for seed in range(4)]
    counts = [config.span_length(item, "video") for item in items]
    together = connector(rows_of(items), counts).split(counts)
    for item, count, tokens in zip(items, counts, together, strict=True):
        assert tokens.shape == (count, 12)
        assert torch.allclose(connector(rows_of([item]), [count]), tokens, atol=1e-5)
        # Nor on the order in which its rows come.
        order = np.random.default_rng(1).permutation(len(item.features))
        mixed = PerceptionFeatures(item.features[order], item.position[order], item.source[order])
        assert torch.allclose(connector(rows_of([mixed]), [count]), tokens, atol=1e-5)


@pytest.mark.parametrize("kind", ["global_mlp", "resampler"])
def test_the_first_tokens_work_alone(kind):
    """Nested (Matryoshka) counts: fewer tokens are a prefix of all."""
    _, connector = made(kind, num_tokens=8, nested=(1, 2, 4))
    items = [grid_features(seed) for seed in range(3)]
    whole = connector(rows_of(items), [8, 8, 8]).split(8)
    part = connector(rows_of(items), [1, 4, 2]).split([1, 4, 2])
    for all_tokens, first in zip(whole, part, strict=True):
        assert torch.allclose(all_tokens[: len(first)], first, atol=1e-6)
    with pytest.raises(ValueError, match="the connector has 8"):
        connector(rows_of(items), [8, 9, 8])


def test_shuffle_lays_neighbours_into_one_token():
    config, connector = made("st_shuffle")
    item = grid_features(0, drop=5)
    hidden = connector.reduce(connector.norm(torch.from_numpy(item.features)))
    hidden = hidden + connector.source_table[item.source.astype(int)]
    cells = {}
    for row, (source, position) in enumerate(zip(item.source, item.position, strict=True)):
        cell = (int(source), int(position[0]) // 2, int(position[1]) // 2, int(position[2]))
        slot = (int(position[0]) % 2) * 2 + int(position[1]) % 2
        cells.setdefault(cell, torch.zeros(4, 24))[slot] = hidden[row]
    wanted = torch.stack([connector.out(cells[cell].flatten()) for cell in sorted(cells)])
    assert config.span_length(item, "video") == len(cells)
    assert torch.allclose(connector(rows_of([item]), [len(cells)]), wanted, atol=1e-5)
    with pytest.raises(RuntimeError, match="other cells"):
        connector(rows_of([item]), [len(cells) + 1])


POOLED = {"cell": (2, 4, 1), "pool": (2, 2, 1)}


def test_pooling_lays_means_of_blocks_into_one_token():
    config, connector = made("st_shuffle", **POOLED)
    connector.gain.fill_(0.5)
    item = grid_features(0, drop=7)
    hidden = connector.reduce(connector.norm(torch.from_numpy(item.features)))
    hidden = hidden + connector.source_table[item.source.astype(int)]
    blocks = {}
    for row, (source, position) in enumerate(zip(item.source, item.position, strict=True)):
        cell = (int(source), int(position[0]) // 2, int(position[1]) // 4, int(position[2]))
        blocks.setdefault(cell, ([], []))[int(position[1]) % 4 // 2].append(hidden[row])
    zero = torch.zeros(24)
    slots = [
        torch.cat([connector.mean_norm(torch.stack(rows).mean(0)) if rows else zero for rows in blocks[cell]])
        for cell in sorted(blocks)
    ]
    assert any(not rows for both in blocks.values() for rows in both), "a block that the features does not have"
    assert config.span_length(item, "video") == len(slots)
    found = connector(rows_of([item]), [len(slots)])
    assert torch.allclose(found, connector.out(torch.stack(slots)) * 0.5, atol=1e-5)
    with pytest.raises(RuntimeError, match="other cells"):
        connector(rows_of([item]), [len(slots) + 1])


def test_pooled_items_do_not_depend_on_their_neighbours():
    config, connector = made("st_shuffle", **POOLED)
    items = [grid_features(seed, drop=seed) for seed in range(3)]
    counts = [config.span_length(item, "video") for item in items]
    together = connector(rows_of(items), counts).split(counts)
    for item, count, tokens in zip(items, counts, together, strict=True):
        assert torch.allclose(connector(rows_of([item]), [count]), tokens, atol=1e-5)


def test_whitened_features_are_deviations_from_their_slot(folder):
    """What is the same in every clip, 94 to 98 % of an encoder's states, is taken out before anything is learnt, and
    no direction of what is left is louder than the others."""
    config, connector = made("st_shuffle", whiten=True)
    stretch = torch.diag(torch.logspace(0, 0.7, 10))
    items = [grid_features(seed, (3, 4, 2)) for seed in range(40)]
    offset = np.random.default_rng(9).normal(size=(3, 8, 10)) * 20
    rows = rows_of(items)
    rows = replace(rows, features=rows.features @ stretch)
    slot_N = connector._slots(rows)
    moved = replace(rows, features=rows.features + torch.from_numpy(offset[rows.source, slot_N]).float())
    connector.fit(moved)
    for source in range(3):
        own_N = rows.source == source
        deviations_NW = moved.features[own_N] - connector.centre[source, slot_N[own_N]]
        for slot in slot_N[own_N].unique():
            assert deviations_NW[slot_N[own_N] == slot].mean(0).abs().max() < 1e-4
        whitened_NW = connector._whitened(deviations_NW, torch.full((len(deviations_NW),), source))
        spread = torch.linalg.eigvalsh(whitened_NW.T @ whitened_NW / len(whitened_NW))
        assert 0.4 < spread.min() and spread.max() < 1, "a tenth of the mean variance is a floor"
    plain = made("st_shuffle", whiten=True)[1]
    counts = [config.span_length(item, "video") for item in items]
    plain.fit(rows)
    gap = (connector(moved, counts) - plain(rows, counts)).abs().max()
    assert gap < 1e-3, "an offset of slots changes nothing"
    model = toy_model(folder, connector=ConnectorConfig(kind="st_shuffle", dim=24, whiten=True), noise=0.1)
    model.connector.fit(rows_of([toy_features(number) for number in range(9)]))
    save_anytoany(model, folder / "whitened")
    again = load_anytoany(folder / "whitened")
    assert again.connector.centre.abs().max() > 0
    assert torch.equal(again.token_losses(toy_batch(again)), model.token_losses(toy_batch(model)))
    with pytest.raises(ValueError, match="whiten and num_words belong to st_shuffle"):
        ConnectorConfig(kind="resampler", whiten=True)


def test_blocks_are_averaged_before_the_rest_is_done():
    """The same as doing it for each position and averaging then, which costs as many times more as a block holds."""
    config, connector = made("st_shuffle", cell=(2, 4, 2), pool=(1, 2, 2), positions=True)
    items = [grid_features(seed, drop=seed) for seed in range(3)]
    rows, counts = rows_of(items), [config.span_length(item, "video") for item in items]
    each_NC = connector.reduce(connector.norm(rows.features)) + connector.source_table[rows.source.long()]
    each_NC = each_NC + position_codes(rows.position, 24)
    cell_N = _cell_of_each(rows, connector.cell, sum(counts))
    wanted = []
    for cell in range(sum(counts)):
        slots = [each_NC[(cell_N == cell) & (connector._slots(rows) == slot)] for slot in range(connector.num_slots)]
        parts = [connector.mean_norm(own.mean(0)) if len(own) else torch.zeros(24) for own in slots]
        wanted.append(connector.out(torch.cat(parts)))
    assert torch.allclose(connector(rows, counts), torch.stack(wanted), atol=1e-5)


def test_perception_tokens_become_words_of_the_answers(folder):
    """Half of the items are about word 3, half about word 5; features tell which. What is said of all is no word."""
    config, connector = made("st_shuffle", cell=(8, 8, 8), whiten=True, pool=(8, 8, 8), num_words=4)
    table = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    media = [Media("video", str(number)) for number in range(80)]
    items = {}
    for number, one in enumerate(media):
        item = grid_features(number)
        shift = np.zeros(10, np.float32)
        shift[number % 2] = 2.0
        items[one] = PerceptionFeatures(item.features + shift, item.position, np.zeros_like(item.source))
    words = {one: {9, 3 if number % 2 else 5} for number, one in enumerate(media)}
    connector.fit(rows_of(list(items.values())))
    further = {"num_steps": 80, "generator": torch.Generator().manual_seed(0)}

    def rows(some):
        return rows_of([items[one] for one in some])

    loss = teach_words(connector, {one: words[one] for one in media[:60]}, rows, lambda one: 1, table, **further)
    assert loss < 0.1
    assert torch.equal(connector.words[:4], torch.stack([table.mean(0), table[3], table[5], torch.zeros(12)]))
    shares_MV = connector.said(connector.vectors(rows(media[60:]), [1] * 20))
    assert torch.allclose(shares_MV.sum(1), torch.ones(20)) and shares_MV[:, 3:].max() == 0
    assert [int(row.argmax()) for row in shares_MV] == [1 if number % 2 else 2 for number in range(60, 80)]
    tokens_MD = connector(rows(media[60:]), [1] * 20)
    assert torch.allclose(tokens_MD, shares_MV @ connector.words), (
        "mixtures of embeddings as the language model has them"
    )
    model = toy_model(folder, adapt="lora", connector=ConnectorConfig(kind="st_shuffle", dim=24, num_words=3))
    learnt = {Media("video", str(number)): {number % 2} for number in range(9)}
    features = {one: toy_features(number) for number, one in enumerate(learnt)}
    table = model.lm.get_input_embeddings().weight.detach()
    teach_words(
        model.connector,
        learnt,
        lambda some: rows_of([features[one] for one in some]),
        lambda one: model.config.connector.span_length(features[one], "video"),
        table,
        **further,
    )
    save_anytoany(model, folder / "words")
    again = load_anytoany(folder / "words")
    assert torch.equal(again.token_losses(toy_batch(again)), model.token_losses(toy_batch(model)))
    with pytest.raises(ValueError, match="num_words keeps embeddings"):
        replace(model.config, adapt="full")
    with pytest.raises(ValueError, match="no word tells media items"):
        teach_words(connector, {media[0]: {1}}, rows, lambda one: 1, table, **further)


def test_pooling_saves_parameters():
    sizes = [size_at_8b("st_shuffle", 64, dim=48, cell=(5, 8, 8), pool=pool) for pool in ((1, 1, 1), (5, 8, 1))]
    assert sizes[0] > 30 * sizes[1]
    for wrong in (
        {"cell": (5, 8, 8), "pool": (2, 8, 1)},
        {"pool": (0, 1, 1)},
        {"kind": "resampler", "pool": (1, 2, 1)},
        {"kind": "resampler", "positions": True},
    ):
        with pytest.raises(ValueError, match="pool"):
            ConnectorConfig(**{"kind": "st_shuffle", **wrong})


def test_span_lengths():
    per_kind = ConnectorConfig(num_tokens={"video": 8, "gaze": 2}, nested=(1, 4))
    item = toy_features(0)
    assert [per_kind.span_length(item, kind) for kind in ("video", "gaze")] == [8, 2]
    assert per_kind.span_length(item, "video", 4) == 4
    assert ConnectorConfig(kind="gated_xattn", num_tokens=8).span_length(item, "video") == 1
    with pytest.raises(ValueError, match="trained counts"):
        per_kind.span_length(item, "video", 3)
    with pytest.raises(ValueError, match="no count for audio"):
        per_kind.span_length(item, "audio")
    gated = {"kind": "gated_xattn", "num_tokens": 8}
    for wrong, message in ((gated | {"nested": (2,)}, "nested"), (gated | {"num_tokens": {"video": 2}}, "one number")):
        with pytest.raises(ValueError, match=message):
            ConnectorConfig(**wrong)
    for wrong in ({"nested": (9,)}, {"num_tokens": 0}, {"num_tokens": {"smell": 1}}, {"dim": 10, "num_heads": 4}):
        with pytest.raises(ValueError):
            ConnectorConfig(**wrong)


@pytest.mark.parametrize("blocks", [{}, POOLED])
def test_new_tokens_of_cells_are_as_large_as_the_embeddings(folder, blocks):
    model = toy_model(folder, noise=0.0, connector=ConnectorConfig(kind="st_shuffle", dim=24, **blocks))
    batch = toy_batch(model, rows=((2,),))
    tokens = model.perceive(batch).detach()
    table = model.lm.get_input_embeddings().weight.detach()
    assert 0.3 < float(tokens.square().mean().sqrt() / table.square().mean().sqrt()) < 3


@pytest.mark.parametrize("kind", [{"kind": "resampler"}, {"kind": "st_shuffle", **POOLED}])
def test_a_step_of_adam_is_small_against_the_last_layer(folder, kind):
    """It began at the size of the embeddings: one step of 3e-3 replaced it, and unseen captions stayed at 3 %."""
    model = toy_model(folder, noise=0.0, connector=ConnectorConfig(num_tokens=3, dim=24, num_heads=2, **kind))
    assert float(model.connector.out.weight.detach().std()) > 10 * 3e-3


def test_gated_layers_start_as_the_language_model_itself(folder):
    """Gates begin at tanh(0): at step 0 the model equals the one it is made from."""
    settings = {"kind": "gated_xattn", "num_tokens": 4, "dim": 24, "num_heads": 2}
    model = toy_model(folder, noise=0.0, connector=ConnectorConfig(**settings))
    batch = toy_batch(model, rows=((0, 2), (1,)))
    before = model.token_losses(batch)
    model.gated.look_at(None)
    embeddings = model.embed(batch)
    model.gated.look_at(None)
    hidden = packed_hidden(model.lm.base_model, embeddings, batch.positions, packed_layout(batch))
    plain = torch.nn.functional.cross_entropy(
        model.logits(hidden)[batch.labels >= 0], batch.labels[batch.labels >= 0], reduction="none"
    )
    assert torch.equal(before, plain)


def test_gated_layers_look_at_the_last_item_of_their_conversation(folder):
    settings = {"kind": "gated_xattn", "num_tokens": 4, "dim": 24, "num_heads": 2}
    model = toy_model(folder, noise=0.3, connector=ConnectorConfig(**settings))
    rendered = [renderer_of(model).render(talk) for talk in talks(3)]

    def losses(shown):
        return model.token_losses(collate([[rendered[0], rendered[1], rendered[2]]], shown, pad_id=0))

    base = losses(features_of)
    counts = [int(item.is_target.sum()) for item in rendered]
    # talks(3)[1] shows item 1, talks(3)[2] items 2 and 3 before its only answer.
    for changed, moved in ((1, [False, True, False]), (3, [False, False, True])):
        swapped = toy_features(77, rows=1 + changed % 4)
        other = losses(lambda media, c=str(changed), new=swapped: new if media.ref == c else features_of(media))
        pairs = zip(base.split(counts), other.split(counts), strict=True)
        assert [bool((one - two).abs().max() > 1e-4) for one, two in pairs] == moved


@pytest.mark.parametrize(
    ("schema", "values", "key"),
    [(ConnectorConfig, {name: 0}, name) for name in ("dim", "num_heads", "depth", "every", "num_tokens")]
    + [
        (LanguageModelConfig, {"tokenizer": "t", "architecture": {"model_type": "llama", name: 0}}, name)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ],
)
def test_a_size_of_nothing_is_refused_by_its_key(schema, values, key):
    with pytest.raises(ConfigError, match=key):
        from_plain(schema, values)
