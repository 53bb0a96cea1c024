"""Every size in every variant is built, and small twins of all variants take a step; what each option may change."""

import pytest
import torch
from packing import TINY_SPECS, pack, random_clips

from egom2p.config import load_config
from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.layers.blocks import draw_branch_scale
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.losses import combine_losses

SIZES = {"tiny": (6, 384), "small": (8, 512), "base": (12, 768), "large": (24, 1024), "xlarge": (24, 2048)}
VARIANTS = {
    "swiglu": ["model.activation=swiglu", "model.use_bias=false"],
    "gelu": ["model.activation=gelu", "model.use_bias=true"],
    "qk-norm": ["model.activation=swiglu", "model.use_bias=false", "model.qk_norm=true"],
}
SPECS = (
    ModalitySpec("tok_a", "track", "generic", TokenGrid((30,)), 256, "a"),
    ModalitySpec("tok_b", "grid", "generic", TokenGrid((5, 32, 32)), 64000, "b"),
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_exists_in_every_variant(size, variant):
    """Built without memory; parameters counted by hand from the description of a block."""
    options = [words.removeprefix("model.") for words in VARIANTS[variant]]
    config = load_config(ModelConfig, f"default/egom2p/models/size/{size}.yaml", options)
    with torch.device("meta"):
        model = EgoM2P(config, SPECS)
    depth, dim = SIZES[size]
    assert (config.encoder_depth, config.decoder_depth, config.dim) == (depth, depth, dim)
    has_bias, hidden = config.use_bias, config.mlp_dim
    linear = lambda rows, columns: rows * columns + has_bias * rows  # noqa: E731
    norm = dim * (1 + has_bias)
    heads = 2 * (dim // config.num_heads) * (1 + has_bias) if config.qk_norm else 0
    mlp = linear(hidden, dim) * (2 if variant != "gelu" else 1) + linear(dim, hidden)
    attention = linear(3 * dim, dim) + linear(dim, dim) + heads
    crossing = linear(dim, dim) * 2 + linear(2 * dim, dim) + heads
    encoder = depth * (attention + mlp + 2 * norm) + norm
    decoder = depth * (attention + crossing + mlp + 4 * norm) + norm
    tables = 2 * 64256 * dim + len(SPECS) * dim + dim  # both sides, modalities, mask token
    wanted = encoder + decoder + dim * dim + dim + tables
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu", "use_bias": True},
        {"activation": "swiglu"},
        {"activation": "swiglu", "qk_norm": True},
        {"causal_decoder": True},
        {"num_registers": 3},
        {"drop_path": 0.3},
        {"dim": 40, "num_heads": 5},  # three axes share 40: 36 of them, then zeros
        {"share_embeddings": False},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_every_variant_learns(options, rng):
    torch.manual_seed(0)
    sizes = {"dim": 32, "num_heads": 4, "encoder_depth": 2, "decoder_depth": 2}
    model = EgoM2P(ModelConfig(**sizes | options), TINY_SPECS)
    batch = pack(random_clips(rng, TINY_SPECS, 4), TINY_SPECS, num_registers=options.get("num_registers", 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        output = model(batch)
        loss = combine_losses(output.sums, output.counts)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


def test_the_causal_variant_looks_back_only(rng):
    torch.manual_seed(0)
    settings = {"dim": 32, "num_heads": 4, "encoder_depth": 1, "decoder_depth": 2, "embedding_std": 0.5}
    model = EgoM2P(ModelConfig(**settings, causal_decoder=True), TINY_SPECS)
    ids = [1, 2, 3, 4]
    hidden = []
    for last in (4, 5):
        batch = pack([({}, {"tok_motion": (ids, [0, 1, 2, last])})], TINY_SPECS)
        hidden.append(model.decode(batch, model.encode(batch)))
    assert torch.equal(hidden[0][:3], hidden[1][:3]) and not torch.isclose(hidden[0][3], hidden[1][3]).all()


def test_stochastic_depth_keeps_the_expected_branch(generator):
    """A branch is dropped for a whole clip at the stated rate, and scaled so that its mean stays."""
    scale_B1 = draw_branch_scale(20000, 1, 0.25, device="cpu", generator=generator)
    assert scale_B1.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (scale_B1 == 0).float().mean().item() == pytest.approx(0.25, abs=0.015)
