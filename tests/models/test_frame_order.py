"""Generation frame by frame: what is written when, and what was known by then."""

import numpy as np
import pytest
import torch

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan, writing_order

SPECS = (
    ModalitySpec("tok_smell", "grid", "generic", TokenGrid((3, 2, 4)), 13, "smell"),
    ModalitySpec("tok_sound", "track", "generic", TokenGrid((6,)), 7, "sound"),
)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModelConfig(dim=16, encoder_depth=1, decoder_depth=1, num_heads=2, input_embedding_std=1.0)
        return EgoM2P(config, SPECS).eval()


@pytest.mark.parametrize("num_steps", [1, 3])
def test_frames_are_written_one_after_the_other(rng, num_steps):
    plan = TargetPlan(target="tok_smell", scheme="frames", num_steps=num_steps)
    unknown = np.sort(rng.choice(24, 15, replace=False))
    order = writing_order(plan, unknown, rng, None, frame_size=8)
    assert np.array_equal(np.sort(np.concatenate(order)), unknown)
    frames = [set((part // 8).tolist()) for part in order]
    assert all(len(frame) == 1 for frame in frames)
    numbers = [frame.pop() for frame in frames]
    assert numbers == sorted(numbers) and len(order) == num_steps * 3
    assert writing_order(plan, unknown[:0], rng, None, frame_size=8) == []


def test_each_frame_is_asked_for_given_all_before_it(model):
    """The sampled path is the chain of most likely frames, each computed on its own."""
    start = np.r_[np.arange(8) % 13, np.full(16, -1)].astype(np.int32)
    plan = TargetPlan(target="tok_smell", scheme="frames")
    steps = list(Sampler(model).iterate([TokenClip("c", {"tok_smell": start})], [plan], [0]))
    assert [step.positions[0].tolist() for step in steps] == [list(range(8, 16)), list(range(16, 24))]
    known = start.copy()
    for first in (8, 16):
        positions = np.arange(first, first + 8)
        logits_PV = Sampler(model).logits([TokenClip("c", {"tok_smell": known.copy()})], plan, [positions])[0]
        known[positions] = logits_PV.argmax(1).numpy()
    assert np.array_equal(steps[-1].tokens[0], known)


def test_on_a_track_it_is_position_order(model):
    prompt = TokenClip("c", {"tok_smell": np.arange(24, dtype=np.int32) % 13})
    found = [
        Sampler(model).generate([prompt], [TargetPlan(target="tok_sound", scheme=scheme)], [0])[0].tokens["tok_sound"]
        for scheme in ("frames", "autoregressive")
    ]
    assert np.array_equal(*found)
