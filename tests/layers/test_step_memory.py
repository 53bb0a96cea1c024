"""Memory of a step without numbers against the bytes torch holds in the same step with numbers."""

import pytest
import torch
from torch import nn

from egom2p.layers.attention import AttentionLayout
from egom2p.layers.blocks import BlockConfig, EncoderBlock
from egom2p.layers.step_memory import LiveBytes, step_memory, step_of_blocks

ROWS, WIDTH = 96, 32
CONFIG = BlockConfig(dim=WIDTH, num_heads=2)


class Stack(nn.Module):
    """Blocks and a head."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(CONFIG) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 50)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        layout = AttentionLayout.within(torch.tensor([0, ROWS], dtype=torch.int32), (ROWS,))
        for block in self.blocks:
            rows = block(rows, layout)
        return self.head(rows).logsumexp(-1).sum()


def step(model: nn.Module) -> torch.Tensor:
    return model(torch.ones(ROWS, WIDTH))


def measured(model: nn.Module, *, is_half: bool, with_gradient: bool) -> tuple[int, int]:
    """Bytes alive after the forward pass, and the most alive at any moment, of a step with numbers."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live, torch.set_grad_enabled(with_gradient):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            result = step(model)
        alive = live.now
        if with_gradient:
            result.backward()
        return alive, live.peak


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("is_half", [False, True])
def test_to_the_byte(is_half, with_gradient):
    model = Stack(2)
    found = step_memory(model, step, autocast=torch.bfloat16 if is_half else None, with_gradient=with_gradient)
    alive, peak = measured(model, is_half=is_half, with_gradient=with_gradient)
    assert found.kept + found.copies == alive and found.peak == pytest.approx(peak, abs=64)
    matrices = sum(parameter.nbytes for parameter in model.parameters() if parameter.ndim == 2)
    assert found.copies == (matrices // 2 if is_half and with_gradient else 0)


def test_deep_models_need_not_be_built():
    depths = []

    def few(depth):
        depths.extend(depth)
        with torch.device("meta"):
            return step_memory(Stack(*depth), step)

    found, whole = step_of_blocks(few, [7]), step_memory(Stack(7), step)
    assert max(depths) == 2 and found.kept == whole.kept
    assert found.peak == pytest.approx(whole.peak, rel=0.02)


def test_the_module_is_left_as_it_is():
    model = Stack(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step_memory(model, step)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
