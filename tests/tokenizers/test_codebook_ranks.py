"""Ranks that see different clips keep one codebook."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from moving_clips import moving_clips
from tiny_tokenizers import tiny_trajectory

from egom2p.tokenizers.trajectory.track_quantizers import ResidualVqConfig

NUM_RANKS = 2


RESIDUAL = {"quantizer": ResidualVqConfig(kind="residual_vq"), "kmeans_init": True}


def _one_step(rank: int, folder: str, dead_code_threshold: float, changes: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_RANKS)
    network = tiny_trajectory(dead_code_threshold=dead_code_threshold, **changes)
    network.fit_normalisation(moving_clips(8))
    network(network.batch_from_clips(moving_clips(8)[rank::NUM_RANKS], None))
    torch.save(network.quantizer.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("dead_code_threshold", [0.0, 2.0])
def test_ranks_share_counts_sums_and_revived_codes(tmp_path, dead_code_threshold):
    mp.spawn(_one_step, args=(str(tmp_path), dead_code_threshold, {}), nprocs=NUM_RANKS)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(NUM_RANKS))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    if dead_code_threshold == 0.0:
        alone = tiny_trajectory(dead_code_threshold=0.0)
        alone.fit_normalisation(moving_clips(8))
        alone(alone.batch_from_clips(moving_clips(8), None))
        for name, tensor in alone.quantizer.state_dict().items():
            torch.testing.assert_close(first[name], tensor)


@pytest.mark.slow
def test_ranks_share_residual_codebooks_from_their_first_step_on(tmp_path):
    mp.spawn(_one_step, args=(str(tmp_path), 2.0, RESIDUAL), nprocs=NUM_RANKS)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(NUM_RANKS))
    assert any(name.endswith("layers.1._codebook.embed") for name in first)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
