"""A training step never asks the device for a value: neither scalars nor shapes that depend on data."""

import torch
from tiny_tokens import pretrain_values, write_tokens
from torch.utils._python_dispatch import TorchDispatchMode

from egom2p.config import from_plain
from egom2p.training.distributed import Ranks
from egom2p.training.optim import OptimizerConfig, apply_gradients, build_optimizer
from egom2p.training.pretrain_task import PretrainConfig, PretrainTask
from egom2p.training.step import StepSums, forward_backward

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")


class Spy(TorchDispatchMode):
    """Names of operators that make the host wait, in the order they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.num_calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        self.num_calls += 1
        if name in WAITING or (name == "aten::index" and any(_is_bool(index) for index in args[1])):
            self.waiting.append(name)
        return function(*args, **(kwargs or {}))


def _is_bool(index) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


def test_a_step_does_not_wait(tmp_path):
    write_tokens(tmp_path / "tokens", "train", 16, seed=0)
    write_tokens(tmp_path / "tokens", "val", 4, seed=1)
    config = from_plain(PretrainConfig, pretrain_values(tmp_path / "tokens", tmp_path / "run"))
    ranks = Ranks()
    task = PretrainTask(config, ranks)
    optimizer, sums = build_optimizer(task.model, OptimizerConfig()), StepSums(ranks)
    batches = task.batches(0)
    for _ in range(2):
        batch = next(batches)
        with Spy() as spy:
            step = forward_backward(task, task.model, [batch], task.counts(batch), ranks=ranks, dtype=torch.float32)
            sums.add(step)
            sums.add_norm(apply_gradients(optimizer, learning_rate=1e-3, clip_grad_norm=1.0))
        assert spy.num_calls > 100
        assert not spy.waiting
    assert sums.take()["loss"] > 0
