"""The memory arithmetic against what torch holds: states to the byte, activations within a few per cent."""

import numpy as np
import pytest
import torch

from egom2p.contracts import MaskedClip, ModalitySpec, PackedBatch, TokenGrid
from egom2p.data.collate import collate
from egom2p.data.modality_info import default_specs
from egom2p.layers.blocks import recompute_in_backward, transformer_blocks
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.training.ema import Ema, EmaConfig
from egom2p.training.optim import OptimizerConfig, build_optimizer
from egom2p.training.planning.model_memory import (
    ClipRows,
    block_shapes,
    count_parameters,
    model_without_weights,
    outside_blocks,
    step_footprint,
)
from egom2p.training.planning.step_memory_table import BlockShape, HeadShape, ParameterCounts, Precision, footprint
from egom2p.training.step import apply_gradients

SMELL = ModalitySpec("tok_smell", "grid", "generic", TokenGrid((4, 8, 8)), 100, "smell")
NUM_CLIPS, NUM_INPUTS, NUM_TARGETS = 4, 96, 64


def config(**options) -> ModelConfig:
    return ModelConfig(dim=96, encoder_depth=3, decoder_depth=2, num_heads=4, **options)


def equal_clips(num_registers: int) -> PackedBatch:
    """Clips of one length, for which attention on CPUs needs no padding, as on GPUs."""
    clips = []
    for number in range(NUM_CLIPS):
        positions = np.random.default_rng(number).permutation(SMELL.num_tokens)
        inputs, targets = np.sort(positions[:NUM_INPUTS]), np.sort(positions[NUM_INPUTS : NUM_INPUTS + NUM_TARGETS])
        ids = np.arange(SMELL.num_tokens, dtype=np.int32) % SMELL.vocab_size
        sides = ({SMELL.name: values} for values in (ids[inputs], inputs, ids[targets], targets))
        clips.append(MaskedClip(str(number), *sides, {SMELL.name: np.full(NUM_TARGETS, -1, np.int32)}))
    return collate(clips, (SMELL,), num_registers, 0)


def saved_bytes(model: EgoM2P, batch: PackedBatch, *, is_half: bool) -> int:
    """Bytes that autograd keeps for the backward pass, apart from weights and buffers."""
    sizes: dict[int, int] = {}
    kept = []
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # alive, so that no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            model(batch)
    return sum(sizes.values())


@pytest.mark.parametrize("is_half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "gelu", "use_bias": True}, {"qk_norm": True}, {"drop_path": 0.2}, {"num_registers": 4}],
    ids=str,
)
def test_activations(options, is_half):
    model = EgoM2P(config(**options), (SMELL,)).train()
    measured = saved_bytes(model, equal_clips(model.config.num_registers), is_half=is_half)
    found = step_footprint(
        model,
        ClipRows(NUM_INPUTS, {SMELL.name: NUM_TARGETS}),
        counts=count_parameters(model, OptimizerConfig()),
        num_clips=NUM_CLIPS,
        precision=Precision(compute=2 if is_half else 4),
    )
    # `gathered`: autocast's copies of the matrices, which the backward pass needs too. Norms of heads are counted as on
    # CUDA, where autocast makes them keep a wider input.
    is_wider = is_half and "qk_norm" in options
    assert found.activations + found.gathered == pytest.approx(measured, rel=0.2 if is_wider else 0.01)


def test_recomputed_blocks_keep_their_input():
    model = EgoM2P(config(), (SMELL,)).train()
    for block in transformer_blocks(model):
        recompute_in_backward(block)
    measured = saved_bytes(model, equal_clips(0), is_half=False)
    precision, rows = Precision(compute=4), (NUM_CLIPS * NUM_INPUTS, NUM_CLIPS * NUM_TARGETS)
    blocks = block_shapes(model.config, *rows)
    found = footprint(
        count_parameters(model, OptimizerConfig()),
        blocks,
        precision=precision,
        other_activations=outside_blocks(model.config, *rows, 1, precision),
        recompute=True,
    )
    one_block = max(block.activation_bytes(precision) for block, _ in blocks)
    assert found.activations - one_block == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu", "use_bias": True, "num_registers": 2}], ids=str)
def test_states_to_the_byte(kind, options):
    model = EgoM2P(config(**options), (SMELL,)).train()
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind))
    average = Ema(model, EmaConfig(decay=0.9))
    average.update(model, 1)
    model(equal_clips(model.config.num_registers)).sums.sum().backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    missing = sum(parameter.nbytes for parameter in model.parameters() if parameter.grad is None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    apply_gradients(optimizer, learning_rate=1e-3, clip_grad_norm=1.0)
    moments = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    counts = count_parameters(
        model_without_weights(model.config, (SMELL,)), OptimizerConfig(kind=kind), has_average=True
    )
    found = footprint(counts, ())
    assert found.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert found.gradients == gradients + missing
    assert found.optimizer == moments
    assert found.average == sum(tensor.nbytes for tensor in average.tensors(model).values())


def test_shards_divide_the_states_and_nothing_else():
    counts = ParameterCounts(trainable=10_000_000, in_blocks=8_000_000, largest_block=1_000_000, num_tensors=100)
    blocks = [(BlockShape(rows=1000, width=128, mlp_width=512, num_heads=4), 8)]
    whole, parts = (footprint(counts, blocks, num_shards=number) for number in (1, 8))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name) / 8, abs=1)
    assert parts.activations == whole.activations
    # What lies outside of blocks is whole on every device for the time of a pass.
    assert parts.gathered >= 2 * 4 * 2_000_000


def test_a_published_fact():
    """Base with four published modalities: 6.3 GB of weights, gradients and moments (arithmetic of its publication)."""
    base = ModelConfig(dim=768, encoder_depth=12, decoder_depth=12, num_heads=12)
    counts = count_parameters(model_without_weights(base, default_specs()), OptimizerConfig())
    assert counts.trainable == pytest.approx(395.4e6, rel=0.003)
    states = footprint(counts, ())
    assert (states.weights + states.gradients + states.optimizer) / 1e9 == pytest.approx(6.3, abs=0.05)


def test_the_largest_chunk_of_logits_is_bounded():
    """However many rows there are."""
    few, many = (HeadShape((rows,), (64000,), 768).workspace_bytes(Precision()) for rows in (1048, 1_000_000))
    assert many - few == (1_000_000 - 1048) * 768 * 2 * 2


def test_adapters_of_a_language_model():
    """Frozen weights in half precision have neither gradients nor moments: 8 B parameters, 40 M of adapters."""
    counts = ParameterCounts(trainable=40_000_000, frozen=8_000_000_000, in_blocks=7_000_000_000)
    precision = Precision(compute=2, residual=2, frozen=2)
    block = BlockShape(rows=4096, width=4096, mlp_width=14336, num_heads=32, kv_width=1024)
    head = HeadShape((4096,), (128_256,), 4096, trains=False)
    found = footprint(counts, [(block, 32)], head=head, precision=precision, recompute=True)
    assert found.weights == 16_000_000_000 + 160_000_000
    assert found.gradients == 160_000_000 and found.optimizer == 320_000_000
    assert found.activations < 3e9 and found.head < 3e9
    assert not found.fits(16 * 2**30) and found.fits(48 * 2**30)
