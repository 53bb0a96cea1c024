"""The end of a run on several ranks."""

import pytest
import torch.distributed as dist

from egom2p.training.distributed import ranks_of_launch


@pytest.fixture
def group(monkeypatch):
    """A process group of two ranks whose other rank is already gone; what was called, in order."""
    called = []

    def barrier():
        called.append("barrier")
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: called.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", barrier)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("destroyed"))
    return called


def test_a_peer_that_left_first_is_no_error(group):
    with ranks_of_launch("cpu") as ranks:
        assert ranks.world_size == 2
    assert group == ["gloo", "barrier", "destroyed"]


def test_an_error_inside_is_not_hidden_and_does_not_wait_for_peers(group):
    with pytest.raises(RuntimeError, match="in the run"), ranks_of_launch("cpu"):
        raise RuntimeError("in the run")
    assert group == ["gloo"]
