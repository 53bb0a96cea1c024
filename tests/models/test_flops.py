"""Counted from lengths, the arithmetic of a batch is what torch counts while it runs."""

import numpy as np
import pytest
import torch
from packing import TINY_SPECS, pack, random_clips
from torch.utils.flop_counter import FlopCounterMode

from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.flops import forward_flops, training_flops


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
    assert forward_flops(config, model.vocab_sizes, batch) == counted
    assert training_flops(config, model.vocab_sizes, batch) == 3 * counted
