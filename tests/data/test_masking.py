"""Masking: exact disjoint positions, domains honoured, mixtures in proportion, text spelled out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_shards import random_clip, text_spec, tiny_specs

from egom2p.contracts import TokenClip
from egom2p.data.masking import (
    AlphasConfig,
    MaskingConfig,
    ModalityAlphas,
    TransferConfig,
    UnifiedMasking,
    draw_connected,
    draw_split,
)
from egom2p.data.modality_info import default_specs
from egom2p.data.sequence_masking import mask_sequence
from egom2p.data.transfer_masking import TransferMasking

SPECS = tiny_specs()
NAMES = [spec.name for spec in SPECS]


def alphas_of(names, alphas=(0.1, 1.0), **further):
    both = ModalityAlphas(input_alphas=list(alphas), target_alphas=list(alphas))
    return AlphasConfig(alphas_mixture=dict.fromkeys(names, both), **further)


def masking_of(alphas=None, specs=SPECS, **settings_):
    limits = {"max_input_tokens": 12, "max_target_tokens": 12, **settings_}
    return UnifiedMasking(specs, MaskingConfig(alphas=alphas or alphas_of(NAMES), **limits))


def check(masked, clip, specs=SPECS):
    """Positions ascending, ids those of the positions, no position on both sides."""
    for spec in specs:
        sides = [(masked.input_ids, masked.input_positions), (masked.target_ids, masked.target_positions)]
        found = [(ids.get(spec.name), positions.get(spec.name)) for ids, positions in sides]
        for ids, positions in found:
            if ids is not None:
                assert len(ids) > 0 and (np.diff(positions) > 0).all()
                assert np.array_equal(ids, clip.tokens[spec.name][positions])
        if all(positions is not None for _, positions in found):
            assert not set(found[0][1].tolist()) & set(found[1][1].tolist())
    assert all((queries == -1).all() for queries in masked.query_ids.values())


def num_tokens(side):
    return sum(map(len, side.values()))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from(["random", "block", "tube"]),
    st.sampled_from(["random", "span"]),
)
def test_inputs_and_targets_are_disjoint_and_exact(seed, num_input, num_target, grid_positions, track_positions):
    rng = np.random.default_rng(seed)
    clip = random_clip(SPECS, rng)
    masking = masking_of(
        max_input_tokens=num_input,
        max_target_tokens=num_target,
        grid_positions=grid_positions,
        track_positions=track_positions,
    )
    masked = masking(clip, rng)
    check(masked, clip)
    total = sum(spec.num_tokens for spec in SPECS)
    assert num_tokens(masked.input_ids) == min(num_input, total)
    assert num_tokens(masked.target_ids) == min(num_target, total - num_tokens(masked.input_ids))


@pytest.mark.parametrize("positions", ["random", "block", "tube", "span"])
def test_draws_of_positions_are_exact(positions, rng):
    shape = (30,) if positions == "span" else (3, 4, 5)
    size = int(np.prod(shape))
    for num_input, num_target in [(0, 0), (5, 7), (0, size), (size, 0), (size - 3, 3)]:
        counts = {"num_input": num_input, "num_target": num_target, "rng": rng}
        inputs, targets = (
            draw_split(size, **counts)
            if positions == "random"
            else draw_connected(shape, positions=positions, **counts)
        )
        assert (len(inputs), len(targets)) == (num_input, num_target)
        assert len(set(inputs.tolist()) | set(targets.tolist())) == num_input + num_target
        if positions == "span" and num_target:
            assert targets[-1] - targets[0] == num_target - 1
        if positions == "tube" and num_target == 3:
            assert len(set((targets % 20).tolist())) == 1
    with pytest.raises(ValueError, match="do not fit"):
        draw_split(size, num_input=size, num_target=1, rng=rng)


def test_every_position_is_equally_likely(rng):
    counts = np.zeros((2, 20))
    for _ in range(4000):
        for side, positions in enumerate(draw_split(20, num_input=5, num_target=5, rng=rng)):
            counts[side, positions] += 1
    assert np.abs(counts / 4000 - 0.25).max() < 0.04


def test_domains_and_ranges_are_honoured(rng):
    masking = masking_of(
        in_domains=["tok_rgb", "tok_smell"], out_domains=["tok_depth"], min_input_tokens=3, min_target_tokens=2
    )
    seen_in, seen_out = set(), set()
    for _ in range(300):
        masked = masking(random_clip(SPECS, rng), rng)
        assert set(masked.input_ids) <= {"tok_rgb", "tok_smell"} and set(masked.target_ids) <= {"tok_depth"}
        seen_in.add(num_tokens(masked.input_ids))
        seen_out.add(num_tokens(masked.target_ids))
    assert seen_in == set(range(3, 13)) and seen_out == set(range(2, 13))


def test_mixture_follows_its_weights_and_skips_impossible_tasks(rng):
    alphas = alphas_of(
        NAMES,
        [1.0],
        sampling_weights=[0.3],
        transfers={
            "rgb_to_all": TransferConfig(weight=0.6, inputs=["tok_rgb"], targets=["tok_depth", "tok_smell"]),
            "depth_to_rgb": TransferConfig(
                weight=0.1, inputs=["tok_depth"], targets=["tok_rgb"], positions_per_input=5
            ),
        },
    )
    masking = masking_of(alphas)
    sizes = [spec.num_tokens for spec in SPECS]
    kinds = []
    for _ in range(2000):
        clip = random_clip(SPECS, rng)
        masked = masking(clip, rng)
        check(masked, clip)
        counts = num_tokens(masked.input_ids), num_tokens(masked.target_ids)
        whole = {(sizes[1], sizes[0] + sizes[2]): "rgb_to_all", (5, sizes[1]): "depth_to_rgb", (12, 12): "drawn"}
        kinds.append(whole[counts])
    shares = [kinds.count(kind) / len(kinds) for kind in ("drawn", "rgb_to_all", "depth_to_rgb")]
    assert np.allclose(shares, [0.3, 0.6, 0.1], atol=0.035)
    no_rgb = [spec for spec in SPECS if spec.name != "tok_rgb"]
    for _ in range(50):
        masked = masking(random_clip(no_rgb, rng), rng)
        assert (num_tokens(masked.input_ids), num_tokens(masked.target_ids)) == (12, 12)


def test_modalities_that_are_always_targets(rng):
    transfers = {"t": TransferConfig(weight=1.0, inputs=["tok_depth"], targets=["tok_rgb"], positions_per_target=20)}
    masking = masking_of(alphas_of(NAMES, [10.0], always_target=["tok_smell"], transfers=transfers))
    for _ in range(200):
        clip = random_clip(SPECS, rng)
        masked = masking(clip, rng)
        check(masked, clip)
        inputs = len(masked.input_ids.get("tok_smell", ()))
        if num_tokens(masked.target_ids) == 12:
            assert inputs <= 3 and len(masked.target_ids["tok_smell"]) == 6 - inputs
        else:
            assert inputs == 0 and {name: len(ids) for name, ids in masked.target_ids.items()} == {
                "tok_rgb": 20,
                "tok_smell": 6,
            }


def test_input_dropout_keeps_targets(rng):
    masking = masking_of(input_dropout=0.5)
    dropped = sum(not masking(random_clip(SPECS, rng), rng).input_ids for _ in range(400))
    assert 150 < dropped < 250


def test_transfer_takes_all_positions(rng):
    clip = random_clip(SPECS, rng)
    masked = TransferMasking(SPECS, ["tok_rgb"], ["tok_depth", "tok_smell"])(clip, rng)
    check(masked, clip)
    assert np.array_equal(masked.input_ids["tok_rgb"], clip.tokens["tok_rgb"]) and len(masked.input_ids) == 1
    assert {name: len(ids) for name, ids in masked.target_ids.items()} == {"tok_depth": 24, "tok_smell": 6}
    partial = TokenClip("a", {"tok_depth": clip.tokens["tok_depth"]})
    assert list(TransferMasking(SPECS, ["tok_rgb"], ["tok_depth"])(partial, rng).target_ids) == ["tok_depth"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masking_of(alphas_of(["tok_sound"])), "alphas name .'tok_sound'."),
        (lambda: masking_of(in_domains=["tok_sound"]), "in_domains names .'tok_sound'."),
        (lambda: TransferMasking(SPECS, ["tok_rgb"], ["tok_sound"]), "transfer names"),
        (lambda: TransferMasking(SPECS, ["tok_rgb"], ["tok_rgb"]), "disjoint"),
        (lambda: TransferConfig(weight=1, inputs=["a"], targets=["a"]), "disjoint"),
        (lambda: alphas_of(NAMES, sampling_weights=[1.0]), "1 sampling_weights for 2 components"),
        (lambda: ModalityAlphas(input_alphas=[1.0], target_alphas=[]), "one value per component"),
        (lambda: masking_of(max_input_tokens=3, min_input_tokens=5), "min_input_tokens <= max_input_tokens"),
        (lambda: masking_of(out_domains=[]).check(NAMES, where="set toy"), "set toy: clips with .* has a target"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_published_size_is_filled(rng):
    """Waterfill leaves no slot of the published recipe empty, where clamping loses half of them."""
    specs = default_specs()
    alphas = alphas_of([spec.name for spec in specs], [0.01, 0.1, 1.0, 10.0])
    fill = {}
    for policy in ("waterfill", "clamp"):
        limits = {"max_input_tokens": 2048, "max_target_tokens": 2048, "policy": policy}
        masking = masking_of(alphas, specs, **limits)
        masked = [masking(random_clip(specs, rng), rng) for _ in range(60)]
        fill[policy] = np.mean([num_tokens(clip.input_ids) for clip in masked]) / 2048
    assert fill["waterfill"] == 1.0 and fill["clamp"] < 0.7


TEXT = text_spec()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 11),
    st.integers(0, 14),
    st.integers(1, 20),
    st.sampled_from(["random", "all", "binary"]),
)
def test_text_is_kept_or_spelled_out(seed, length, num_input, num_target, scheme):
    rng = np.random.default_rng(seed)
    words = rng.integers(5, TEXT.vocab_size, length).astype(np.int32)
    ids = np.concatenate([words, [TEXT.eos_id], np.full(11 - length, TEXT.pad_id)]).astype(np.int32)
    parts = mask_sequence(ids, TEXT, num_input, num_target, scheme, rng)
    assert len(parts.input_ids) <= num_input and len(parts.target_ids) <= num_target
    assert np.array_equal(parts.query_ids[1:], parts.target_ids[:-1])
    whole = mask_sequence(ids, TEXT, num_input, 99, scheme, np.random.default_rng(seed + 1))
    # Putting the hidden spans back where their sentinels stand gives the text again.
    chain = [*whole.query_ids[:1].tolist(), *whole.target_ids.tolist()]
    hidden: dict[int, list[int]] = {}
    for word in chain[:-1]:
        if word in TEXT.sentinel_ids:
            current = hidden.setdefault(word, [])
        else:
            current.append(word)
    inputs = whole.input_ids.tolist() or list(TEXT.sentinel_ids[:1])
    restored = [piece for word in inputs for piece in hidden.get(word, [word])]
    assert restored == words.tolist()


def test_text_among_grids(rng):
    specs = (*SPECS, TEXT)
    masking = masking_of(alphas_of([*NAMES, "tok_text"]), specs)
    seen = set()
    for _ in range(100):
        clip = random_clip(specs, rng)
        masked = masking(clip, rng)
        for side in (masked.input_ids, masked.target_ids):
            seen.add((side is masked.input_ids, "tok_text" in side))
        if "tok_text" in masked.target_ids:
            assert masked.query_ids["tok_text"][0] == TEXT.sentinel_ids[0]
    assert len(seen) == 4


def spans_written_from_the_description(words, is_kept, num_input, sentinels):
    """Input and target of a text, as 4M describes span masking; nothing clever."""
    is_kept = list(is_kept)
    while True:
        runs, start = [], 0  # (first, end, is kept)
        for i in range(1, len(words) + 1):
            if i == len(words) or is_kept[i] != is_kept[start]:
                runs.append((start, i, is_kept[start]))
                start = i
        num_hidden = sum(not kept for _, _, kept in runs)
        num_shown = sum(end - first for first, end, kept in runs if kept) + num_hidden
        if num_hidden <= len(sentinels) and num_shown <= num_input:
            break
        shortest = min((end - first, first, end) for first, end, kept in runs if kept)
        for i in range(shortest[1], shortest[2]):
            is_kept[i] = False
    shown, spelled, number = [], [], 0
    for first, end, kept in runs:
        if kept:
            shown += words[first:end]
        else:
            shown.append(sentinels[number])
            spelled += [sentinels[number], *words[first:end]]
            number += 1
    spelled.append(TEXT.eos_id)
    return shown, spelled[1:] if number else [], spelled[:-1] if number else []


@pytest.mark.parametrize("scheme", ["all", "random", "binary"])
def test_spans_equal_the_description(scheme):
    for seed in range(400):
        rng = np.random.default_rng(seed)
        words = rng.integers(5, TEXT.vocab_size, int(rng.integers(1, 12))).tolist()
        num_input, num_target = int(rng.integers(1, 14)), int(rng.integers(1, 20))
        ids = np.array([*words, TEXT.eos_id, TEXT.pad_id], dtype=np.int32)
        found = mask_sequence(ids, TEXT, num_input, num_target, scheme, np.random.default_rng(seed))
        # The same draws: how many words stay, then which.
        again = np.random.default_rng(seed)
        num_keep = min(len(words), num_input)
        if scheme == "random":
            num_keep = int(again.integers(0, num_keep + 1))
        elif scheme == "binary":
            num_keep *= int(again.integers(0, 2))
        is_kept = np.zeros(len(words), bool)
        if num_keep:
            is_kept[again.choice(len(words), num_keep, replace=False)] = True
        shown, spelled, fed = spans_written_from_the_description(words, is_kept, num_input, TEXT.sentinel_ids)
        assert found.input_ids.tolist() == (shown if num_keep else [])
        assert found.target_ids.tolist() == spelled[:num_target]
        assert found.query_ids.tolist() == fed[:num_target]


def test_keep_schemes_keep_what_they_say():
    """`all`: as many words as fit; `binary`: all of them or none; `random`: every number of words equally often."""
    words = np.arange(5, 13, dtype=np.int32)
    kept = {}
    for scheme in ("all", "random", "binary"):
        kept[scheme] = [
            int((mask_sequence(words, TEXT, 8, 99, scheme, np.random.default_rng(seed)).input_ids >= 5).sum())
            for seed in range(900)
        ]
    assert set(kept["all"]) == {8}
    assert set(kept["binary"]) == {0, 8} and 0.42 < np.mean(np.array(kept["binary"]) == 8) < 0.58
    assert set(kept["random"]) >= {0, 1, 2, 3, 8} and 0.08 < np.mean(np.array(kept["random"]) == 8) < 0.14


def test_sampling_weights_choose_among_dirichlet_components(rng):
    """Two components that give everything to one modality each: their shares are the weights'."""
    only = {
        "tok_rgb": ModalityAlphas(input_alphas=[1.0, 1.0], target_alphas=[1.0, 0.0]),
        "tok_depth": ModalityAlphas(input_alphas=[1.0, 1.0], target_alphas=[0.0, 1.0]),
    }
    masking = masking_of(AlphasConfig(alphas_mixture=only, sampling_weights=[3.0, 1.0]))
    chosen = [tuple(masking(random_clip(SPECS, rng), rng).target_ids) for _ in range(1500)]
    assert set(chosen) == {("tok_rgb",), ("tok_depth",)}
    assert abs(np.mean([names == ("tok_rgb",) for names in chosen]) - 0.75) < 0.04
