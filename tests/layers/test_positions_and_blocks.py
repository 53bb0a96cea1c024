"""Sin-cos positions, blocks, stochastic depth."""

import pytest
import torch
from safetensors.torch import load_file

from egom2p.contracts import TokenGrid
from egom2p.layers.attention import AttentionLayout
from egom2p.layers.blocks import (
    BlockConfig,
    DecoderBlock,
    EncoderBlock,
    draw_branch_scale,
    sincos_positions,
    spread_over_rows,
)


@pytest.mark.parametrize(
    "key, shape, dim",
    [("posemb_1d_30x96", (30,), 96), ("posemb_3d_5x2x3x48", (5, 2, 3), 48), ("posemb_3d_5x4x4x96", (5, 4, 4), 96)],
)
def test_positions_are_the_published_ones(parity_dir, key, shape, dim):
    wanted = load_file(parity_dir / "misc" / "schedules_and_posemb.safetensors")[key]
    assert (sincos_positions(TokenGrid(shape), dim) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("dim", [64, 65, 100, 128])
def test_positions_of_any_width_are_distinct_and_end_in_zeros(dim):
    grid = TokenGrid((3, 2, 4))
    codes = sincos_positions(grid, dim)
    assert codes.shape == (24, dim) and len(torch.unique(codes, dim=0)) == 24
    torch.testing.assert_close(codes[:, : dim - dim % 6], sincos_positions(grid, dim - dim % 6))
    assert not codes[:, dim - dim % 6 :].any()
    assert sincos_positions(TokenGrid((5,)), dim).shape == (5, dim)


def test_period_and_scale_change_the_angles():
    grid = TokenGrid((6,))
    codes = sincos_positions(grid, 8, scale=2.0)
    torch.testing.assert_close(codes[2], sincos_positions(grid, 8)[4])
    assert not torch.equal(sincos_positions(grid, 8, period=100.0), sincos_positions(grid, 8))


def test_mlp_widths():
    assert BlockConfig(dim=96, num_heads=4).mlp_dim == 256
    assert BlockConfig(dim=96, num_heads=4, activation="gelu").mlp_dim == 384
    with pytest.raises(ValueError, match="multiple of num_heads, got 10 and 4"):
        BlockConfig(dim=10, num_heads=4)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_blocks_treat_segments_separately(qk_norm, use_bias, generator):
    config = BlockConfig(dim=16, num_heads=2, qk_norm=qk_norm, use_bias=use_bias, activation="gelu")
    encoder, decoder = EncoderBlock(config), DecoderBlock(config)
    hidden = torch.randn(9, 16, generator=generator)
    lengths = (4, 5)
    layout = AttentionLayout.within(torch.tensor([0, 4, 9], dtype=torch.int32), lengths)
    alone = AttentionLayout.within(torch.tensor([0, 4], dtype=torch.int32), (4,))
    torch.testing.assert_close(encoder(hidden, layout)[:4], encoder(hidden[:4], alone))
    context = torch.randn(9, 16, generator=generator)
    together = decoder(hidden, context, layout, layout)
    torch.testing.assert_close(together[:4], decoder(hidden[:4], context[:4], alone, alone))
    has_bias = any(name.endswith("bias") for name, _ in decoder.named_parameters())
    assert has_bias == use_bias


def test_stochastic_depth_is_drawn_per_clip(generator):
    scale = draw_branch_scale(4000, 2, 0.25, device="cpu", generator=generator)
    assert scale.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert scale.mean().item() == pytest.approx(1.0, abs=0.03)
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    spread = spread_over_rows(scale[:3], offsets, 5)
    assert torch.equal(spread, scale[[0, 0, 2, 2, 2]])
    config = BlockConfig(dim=16, num_heads=2)
    hidden = torch.randn(5, 16, generator=generator)
    layout = AttentionLayout.within(offsets, (2, 0, 3))
    kept = EncoderBlock(config)(hidden, layout, torch.zeros(5, 2))
    assert torch.equal(kept, hidden)
