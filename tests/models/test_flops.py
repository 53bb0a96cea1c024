"""Counted from lengths, the arithmetic of a batch is what torch counts while it runs."""

import numpy as np
import pytest
import torch
from packing import TINY_SPECS, pack, random_clips
from torch.utils.flop_counter import FlopCounterMode

from egom2p.layers.lora import LoraConfig, attach_lora
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.training.throughput import ModelFlops


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("num_registers", [0, 2])
def test_forward_pass(activation, num_registers):
    """Plain attention computes exactly the pairs of every segment."""
    config = ModelConfig(
        dim=12, encoder_depth=2, decoder_depth=3, num_heads=2, mlp_ratio=2.0, activation=activation,
        num_registers=num_registers, attention_backend="plain",
    )  # fmt: skip
    model = EgoM2P(config, TINY_SPECS).eval()
    clips = random_clips(np.random.default_rng(0), TINY_SPECS, 5)
    batch = pack(clips, TINY_SPECS, num_registers=num_registers)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch)
    # The product that looks up modality embeddings is no arithmetic of the model.
    lookups = 2 * (sum(batch.input_lengths) + sum(batch.target_lengths)) * len(TINY_SPECS) * config.dim
    counted = counter.get_total_flops() - lookups
    assert ModelFlops(model).forward(batch) == counted
    assert ModelFlops(model).training(batch) == 3 * counted


def test_frozen_weights_need_no_gradient():
    """Counted by hand: one block each of width 4 with MLPs of width 8; adapters of rank 1 on queries, keys, values."""
    config = ModelConfig(
        dim=4, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_ratio=2.0, activation="gelu", num_registers=0
    )
    model = EgoM2P(config, TINY_SPECS)
    batch = pack(random_clips(np.random.default_rng(0), TINY_SPECS, 3), TINY_SPECS, num_registers=0)
    inputs, targets = (sum(lengths) for lengths in batch.clip_lengths)
    square, mlp = 4 * 4, 2 * 4 * 8
    of_input = (3 + 1) * square + mlp + square + 2 * square  # block, context, keys and values of cross-attention
    of_target = (3 + 1) * square + 2 * square + mlp
    heads = 4 * sum(count * size for count, size in zip(batch.head_counts, model.vocab_sizes, strict=True))
    products = inputs * of_input + targets * of_target + heads
    pairs = sum(n * n for n in batch.clip_lengths[0]) + sum(n * n for n in batch.modality_lengths)
    pairs += sum(m * n for n, m in zip(*batch.clip_lengths, strict=True))
    assert ModelFlops(model).training(batch) == 6 * products + 3 * 4 * 4 * pairs
    model.encoder.requires_grad_(False)
    block = inputs * ((3 + 1) * square + mlp)
    assert ModelFlops(model).training(batch) == 6 * products - 2 * block + 3 * 4 * 4 * pairs
    attach_lora(model, LoraConfig(rank=1, target_modules=("attn.qkv",)))  # of the encoder
    adapters = inputs * (4 + 12)
    assert ModelFlops(model).training(batch) == 4 * products + 6 * adapters + 3 * 4 * 4 * pairs
