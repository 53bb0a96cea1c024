"""All backends compute the same attention, forward and backward, for any lengths."""

import pytest
import torch

from egom2p.layers.attention import AttentionLayout, MixedLayout, attend
from egom2p.layers.padding import inverse_permutation

LENGTHS = {
    "equal": ((5, 5, 5), (7, 7, 7)),
    "equal with empty segments": ((0, 5, 0, 5), (0, 7, 0, 7)),
    "ragged": ((3, 0, 9, 1), (4, 2, 0, 6)),
    "many": (tuple(range(1, 60, 3)), tuple(range(60, 0, -3))),
    "one": ((4,), (1,)),
    "no keys at all": ((3, 2), (0, 0)),
    "no queries at all": ((0, 0), (3, 2)),
    "queries and keys in different segments": ((3, 0), (0, 2)),
    "nothing": ((), ()),
}


def layout_of(query_lengths, key_lengths, *, is_causal=False):
    offsets = [torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (query_lengths, key_lengths)]
    return AttentionLayout(*offsets, tuple(query_lengths), tuple(key_lengths), is_causal)


def rows(count, generator):
    return torch.randn(count, 2, 8, generator=generator, requires_grad=True)


def outputs_and_gradients(backend, layout, inputs, upstream):
    for tensor in inputs:
        tensor.grad = None
    attended = attend(*inputs, layout, backend)
    attended.backward(upstream)
    return [attended.detach(), *(tensor.grad.clone() for tensor in inputs)]


def assert_backends_agree(layout, num_queries, num_keys, generator):
    inputs = (rows(num_queries, generator), rows(num_keys, generator), rows(num_keys, generator))
    upstream = torch.randn(num_queries, 2, 8, generator=generator)
    results = {
        backend: outputs_and_gradients(backend, layout, inputs, upstream) for backend in ("plain", "padded", "auto")
    }
    for backend in ("padded", "auto"):
        for found, wanted in zip(results[backend], results["plain"], strict=True):
            assert torch.isfinite(found).all()
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    return results["padded"]


@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 9, 1, 0, 4)], ids=["equal", "ragged"])
@pytest.mark.parametrize("backend", ["plain", "padded"])
def test_grouped_queries_share_keys(lengths, backend, generator):
    """Four query heads on two key heads are what they are when each key head is written twice."""
    layout = layout_of(lengths, lengths, is_causal=True)
    num_rows = sum(lengths)
    few = [torch.randn(num_rows, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(num_rows, 4, 8, generator=generator)
    grouped = outputs_and_gradients(backend, layout, few, upstream)
    attended = attend(few[0], *(part.repeat_interleave(2, dim=1) for part in few[1:]), layout, "plain")
    wanted = [attended, *torch.autograd.grad(attended, few, upstream)]
    for found, expected in zip(grouped, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_backends_agree(lengths, generator):
    query_lengths, key_lengths = lengths
    layout = layout_of(query_lengths, key_lengths)
    attended, *_ = assert_backends_agree(layout, sum(query_lengths), sum(key_lengths), generator)
    segments = zip(attended.split(list(query_lengths)), key_lengths, strict=True) if query_lengths else ()
    assert all(num_keys > 0 or not segment.any() for segment, num_keys in segments)


@pytest.mark.parametrize("lengths", [(4, 4), (1, 6, 0, 3)], ids=["equal", "ragged"])
def test_causal_backends_agree(lengths, generator):
    layout = layout_of(lengths, lengths, is_causal=True)
    attended, *_ = assert_backends_agree(layout, sum(lengths), sum(lengths), generator)
    assert attended.shape[0] == sum(lengths)


def test_mixed_layout_is_each_part_on_its_own_rows(generator):
    query, key, value = rows(8, generator), rows(8, generator), rows(8, generator)
    order = torch.tensor([0, 1, 5, 2, 3, 4, 6, 7])
    parts = (layout_of((2, 1), (2, 1)), layout_of((3, 2), (3, 2), is_causal=True))
    layout = MixedLayout(order, inverse_permutation(order), parts)
    attended = attend(query, key, value, layout)
    own = [tensor[order[3:]] for tensor in (query, key, value)]
    torch.testing.assert_close(attended[order[3:]], attend(*own, parts[1], "plain"), rtol=1e-5, atol=1e-5)
    attended.sum().backward()
    assert torch.isfinite(query.grad).all()


def test_layouts_are_checked():
    with pytest.raises(ValueError, match="2 query segments cannot see 1 key segments"):
        layout_of((1, 2), (3,))
    with pytest.raises(ValueError, match="as many keys"):
        layout_of((1, 2), (1, 3), is_causal=True)
    with pytest.raises(ValueError, match="backend must be"):
        attend(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1), layout_of((1,), (1,)), "fast")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention needs a GPU")
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("is_causal", [False, True])
def test_flash_is_as_close_as_padded_in_half_precision(lengths, is_causal, generator):
    query_lengths, key_lengths = (lengths[0], lengths[0]) if is_causal else lengths
    counts = (sum(query_lengths), sum(key_lengths), sum(key_lengths))
    exact = [torch.randn(count, 2, 64, generator=generator).cuda().requires_grad_() for count in counts]
    layout = layout_of(query_lengths, key_lengths, is_causal=is_causal)
    layout = AttentionLayout(
        layout.query_offsets.cuda(), layout.key_offsets.cuda(), *map(tuple, (query_lengths, key_lengths)), is_causal
    )
    upstream = torch.randn(counts[0], 2, 64, generator=generator).cuda()
    wanted = outputs_and_gradients("padded", layout, exact, upstream)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    errors = {}
    for backend in ("padded", "flash"):
        found = outputs_and_gradients(backend, layout, half, upstream.bfloat16())
        errors[backend] = [(f.float() - w).norm().item() for f, w in zip(found, wanted, strict=True)]
    for flash_error, padded_error in zip(errors["flash"], errors["padded"], strict=True):
        assert flash_error <= 1.5 * padded_error + 1e-3
