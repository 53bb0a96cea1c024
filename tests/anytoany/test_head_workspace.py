"""Logits in memory at once: a bound that neither the vocabulary nor the number of positions moves."""

import pytest
import torch
import torch.nn.functional as F

from egom2p.anytoany.language.language_model import CHUNK_ELEMENTS, next_token_loss
from egom2p.layers.step_memory import LiveBytes

WIDTH, CHUNK = 16, 2**17


def workspace(vocab_size, num_positions, *, dtype=torch.float32):
    """Most bytes alive beside states and gradients of states, of a frozen head."""
    head = torch.randn(vocab_size, WIDTH, dtype=dtype)
    hidden = torch.randn(num_positions, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.arange(num_positions) % vocab_size
    with LiveBytes() as live:
        next_token_loss(
            hidden, targets, lambda rows: F.linear(rows, head), (), vocab_size=vocab_size, chunk_elements=CHUNK
        ).backward()
    return live.peak - 2 * hidden.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "num_positions"), [(500, 3000), (128_256, 12), (128_256, 48)])
def test_logits_are_bounded(vocab_size, num_positions, dtype):
    found = workspace(vocab_size, num_positions, dtype=dtype)
    assert CHUNK < num_positions * vocab_size, "or one chunk would hold all"
    # Log-probabilities and two gradients, in float32; a chunk is at least a position.
    assert found <= 1.02 * 3 * 4 * max(CHUNK, vocab_size)


def test_the_default_is_within_half_a_gigabyte():
    assert 3 * 4 * CHUNK_ELEMENTS < 0.5e9
