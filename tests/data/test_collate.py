"""Packing: rows sorted by clip, modality, position; lengths add up; empty segments keep their place."""

import numpy as np
import pytest
import torch
from token_shards import random_clip, text_spec, tiny_specs

from egom2p.contracts import MaskedClip
from egom2p.data.clip_order import clip_rng
from egom2p.data.collate import collate
from egom2p.data.masking import AlphasConfig, MaskingConfig, ModalityAlphas, UnifiedMasking
from egom2p.data.modality_info import default_specs


def masked_clips(specs, count, tokens=12):
    both = ModalityAlphas(input_alphas=[0.1], target_alphas=[0.1])
    alphas = AlphasConfig(alphas_mixture={spec.name: both for spec in specs})
    config = MaskingConfig(alphas=alphas, max_input_tokens=tokens, max_target_tokens=tokens)
    masking = UnifiedMasking(specs, config)
    return [masking(random_clip(specs, clip_rng(0, "ids", i), f"c{i}"), clip_rng(0, "mask", i)) for i in range(count)]


@pytest.mark.parametrize("num_registers", [0, 2])
def test_rows_are_the_clips_laid_end_to_end(num_registers):
    specs = (*tiny_specs(), text_spec())
    clips = masked_clips(specs, 9)
    batch = collate(clips, specs, num_registers, token_budget=9 * 24)
    assert (batch.num_clips, batch.token_budget, batch.modalities) == (9, 216, tuple(spec.name for spec in specs))
    assert batch.input_offsets.tolist() == np.cumsum([0, *batch.input_lengths]).tolist()
    assert batch.target_offsets.tolist() == np.cumsum([0, *batch.target_lengths]).tolist()
    assert batch.segment_offsets.tolist() == np.cumsum([0, *batch.segment_lengths]).tolist()
    assert 0 in batch.segment_lengths and len(batch.segment_lengths) == 9 * len(specs)
    for number, clip in enumerate(clips):
        rows = slice(batch.input_offsets[number], batch.input_offsets[number + 1])
        assert batch.input_modality[rows][:num_registers].tolist() == [len(specs)] * num_registers
        assert batch.input_position[rows][:num_registers].tolist() == list(range(num_registers))
        inputs = [
            (index, position, word)
            for index, spec in enumerate(specs)
            if spec.name in clip.input_ids
            for position, word in zip(clip.input_positions[spec.name], clip.input_ids[spec.name], strict=True)
        ]
        columns = (batch.input_modality, batch.input_position, batch.input_ids)
        found = list(zip(*(column[rows][num_registers:].tolist() for column in columns), strict=True))
        assert found == inputs
        for index, spec in enumerate(specs):
            segment = number * len(specs) + index
            rows = slice(batch.segment_offsets[segment], batch.segment_offsets[segment + 1])
            for column, wanted in (
                (batch.target_ids, clip.target_ids),
                (batch.target_position, clip.target_positions),
                (batch.query_ids, clip.query_ids),
            ):
                assert column[rows].tolist() == list(wanted.get(spec.name, []))
            assert (batch.target_modality[rows] == index).all()


def test_head_order_is_modality_major_and_stable():
    specs = tiny_specs()
    batch = collate(masked_clips(specs, 7), specs)
    assert (batch.target_modality[batch.head_order].int().diff() >= 0).all()
    assert batch.head_counts == tuple(int((batch.target_modality == index).sum()) for index in range(len(specs)))
    start = 0
    for rows in batch.head_counts:
        assert (batch.head_order[start : start + rows].diff() > 0).all()
        start += rows


def test_types_are_small_and_a_full_clip_ships_in_32_kilobytes():
    specs = default_specs()
    batch = collate(masked_clips(specs, 2, tokens=2048), specs)
    assert batch.input_lengths == batch.target_lengths == (2048, 2048)
    assert (batch.input_ids.dtype, batch.input_position.dtype, batch.target_modality.dtype) == (
        torch.int32,
        torch.int16,
        torch.uint8,
    )
    assert batch.transfer_bytes / 2 <= 32_000
    moved = batch.to("meta")
    assert moved.query_ids.shape == moved.head_order.shape == batch.target_ids.shape
    same = batch.to("cpu")
    assert torch.equal(same.head_order, batch.head_order) and torch.equal(same.query_ids, batch.query_ids)


def test_empty_clips_and_sides_are_legal():
    specs = tiny_specs()
    empty = MaskedClip("a", {}, {}, {}, {}, {})
    batch = collate([empty, *masked_clips(specs, 1), empty], specs)
    assert batch.input_lengths[0] == batch.target_lengths[2] == 0
    nothing = collate([empty], specs)
    assert nothing.num_tokens == 0 and nothing.head_counts == (0, 0, 0)
    assert nothing.input_ids.dtype == torch.int32 and nothing.query_ids.shape == (0,)
