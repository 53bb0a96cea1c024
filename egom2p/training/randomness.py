"""Randomness that is a function of numbers, for code that only knows torch's default generators.

Weight initialisation of `nn` modules, stochastic depth and the codebook replacement of libraries draw from the default
generators. Here they are set inside a block and put back after it, so that nothing leaks into the caller's world and a
resumed run draws what the uninterrupted one drew.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed out of several numbers; near numbers give unrelated seeds."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(*numbers: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block with torch's default generators (CPU, and that of a CUDA `device`) set by `numbers`."""
    device = torch.device(device)
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    seed = mixed_seed(*numbers)
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
