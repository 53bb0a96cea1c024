"""On a GPU only: a compiled step gives what a plain one gives, and asks nothing of the device."""

import pytest
import torch
from spread_task import SpreadTask

from egom2p.training.distributed import Ranks, autocast
from egom2p.training.parallel import prepare_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gradients(*, compiles: bool, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    task = SpreadTask(Ranks(), batch_size=4, model={"dim": 64, "num_heads": 1})
    model = task.model.cuda()
    if compiles:
        prepare_blocks(model, recompute=False, compile_blocks=True)
    for number, batch in zip(range(3), task.batches(0), strict=False):
        batch = batch.pin_memory().to("cuda")
        model.zero_grad()
        if number == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            with autocast(torch.device("cuda"), dtype):
                output = task.loss(model, batch)
            task.combine(output.sums, output.counts).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_compiled_steps_are_as_close_to_full_precision_as_plain_ones():
    exact = gradients(compiles=False, dtype=torch.float32)
    plain, compiled = gradients(compiles=False), gradients(compiles=True)
    for name, wanted in exact.items():
        errors = [(found[name] - wanted).norm() for found in (plain, compiled)]
        assert errors[1] <= 1.5 * errors[0] + 1e-3 * wanted.norm() + 1e-6, name
