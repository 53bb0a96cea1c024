"""Chunked cross entropy equals the plain one; averages are what their names say."""

import math

import pytest
import torch
import torch.nn.functional as F
from spy import Spy

from egom2p.models.losses import combine_losses, modality_cross_entropy, row_cross_entropy

VOCAB_SIZES = (5, 13, 3)


def inputs(counts, generator):
    hidden = torch.randn(sum(counts), 8, generator=generator, requires_grad=True)
    table = torch.randn(sum(VOCAB_SIZES), 8, generator=generator, requires_grad=True)
    pairs = zip(counts, VOCAB_SIZES, strict=True)
    targets = torch.cat([torch.randint(0, size, (count,), generator=generator) for count, size in pairs])
    return hidden, table, targets


def plain(hidden, table, targets, counts):
    parts = zip(hidden.split(counts), table.split(VOCAB_SIZES), targets.split(counts), strict=True)
    return torch.stack([F.cross_entropy(h @ t.T, ids, reduction="sum") for h, t, ids in parts])


@pytest.mark.parametrize("counts", [(4, 7, 2), (0, 7, 0), (0, 0, 0)])
@pytest.mark.parametrize("chunk_elements", [1, 26, 10**6])
def test_chunks_equal_the_whole(counts, chunk_elements, generator):
    hidden, table, targets = inputs(counts, generator)
    weights = torch.tensor([1.0, 2.0, 3.0])
    wanted_sums = plain(hidden, table, targets, counts)
    wanted = torch.autograd.grad((wanted_sums * weights).sum(), (hidden, table))
    settings = dict(counts=counts, vocab_sizes=VOCAB_SIZES, chunk_elements=chunk_elements)
    sums = modality_cross_entropy(hidden, table, targets, **settings)
    (sums * weights).sum().backward()
    torch.testing.assert_close(sums, wanted_sums)
    torch.testing.assert_close(hidden.grad, wanted[0])
    torch.testing.assert_close(table.grad, wanted[1])
    rows = row_cross_entropy(hidden, table, targets, **settings)
    torch.testing.assert_close(torch.stack([part.sum() for part in rows.split(counts)]), wanted_sums.detach())
    with torch.no_grad():
        torch.testing.assert_close(modality_cross_entropy(hidden, table, targets, **settings), sums.detach())


def test_no_tensor_is_as_large_as_rows_times_vocabulary(generator):
    num_rows, vocab_size, chunk = 64, 3000, 8
    hidden = torch.randn(num_rows, 8, generator=generator, requires_grad=True)
    table = torch.randn(vocab_size, 8, generator=generator, requires_grad=True)
    targets = torch.randint(vocab_size, (num_rows,), generator=generator)
    settings = dict(counts=(num_rows,), vocab_sizes=(vocab_size,), chunk_elements=chunk * vocab_size)
    with Spy() as spy:
        modality_cross_entropy(hidden, table, targets, **settings).sum().backward()
    assert spy.largest <= max(chunk * vocab_size, table.numel())


def test_half_precision_sums_are_fp32(generator):
    hidden, table, targets = inputs((40, 70, 20), generator)
    wanted = plain(hidden, table, targets, (40, 70, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = modality_cross_entropy(hidden, table, targets, counts=(40, 70, 20), vocab_sizes=VOCAB_SIZES)
    sums.sum().backward()
    assert sums.dtype == torch.float32 and table.grad.dtype == torch.float32
    torch.testing.assert_close(sums, wanted, rtol=0.02, atol=0.02)


def test_averages():
    sums, counts = torch.tensor([10.0, 0.0, 9.0]), (5, 0, 3)
    assert combine_losses(sums, counts).item() == pytest.approx((2 + 3) / 2)
    assert combine_losses(sums, counts, reference_denominator=True).item() == pytest.approx((2 + 3) / 3)
    assert combine_losses(sums, counts, loss_type="token").item() == pytest.approx(19 / 8)
    sizes = (256, 10, 16)
    weighted = combine_losses(sums, torch.tensor(counts), loss_type="weighted_mod", vocab_sizes=sizes)
    assert weighted.item() == pytest.approx((2 + 3 * math.log(256) / math.log(16)) / 2)
    assert combine_losses(torch.zeros(3), (0, 0, 0)).item() == 0
    with pytest.raises(ValueError, match="loss type must be"):
        combine_losses(sums, counts, loss_type="median")
    with pytest.raises(ValueError, match="as many vocabulary sizes"):
        combine_losses(sums, counts, loss_type="weighted_mod")
